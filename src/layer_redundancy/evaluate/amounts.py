"""How much each kind of work is: what an experiment asks a study for, in numbers.

A study that computes writes down the work that it did, one that only plans adds up the work that it would do: both from
the same declarations, so that a plan is what its notebooks run.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from layer_redundancy.config.profiles import Recipe
from layer_redundancy.config.sources import Amount
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.trie import num_block_runs, num_held, trie


@dataclass(frozen=True)
class Sweep:
    """Variants measured on a text or benchmark.

    Attributes:
        measurement: "perplexity" or a task's name.
        amount: what a variant puts through the model.
        variants: the variants that were not measured before.
        keeps_prefixes: whether prompt prefixes run once; else they run with every item.
    """

    measurement: str
    amount: Amount
    variants: tuple[Variant, ...]
    keeps_prefixes: bool = True

    @property
    def block_tokens_naive(self) -> int:
        """Block-tokens of one plain forward of every sequence for every variant."""
        return sum(map(len, self.variants)) * self.amount.tokens

    @property
    def block_tokens(self) -> int:
        """Block-tokens that run with common prefixes shared, of blocks and of prompts."""
        tokens = self.amount.shared if self.keeps_prefixes else self.amount.tokens
        return _block_runs(self.variants) * tokens

    @property
    def head_tokens(self) -> int:
        """Positions that go through the head."""
        return len(self.variants) * self.amount.scored

    @property
    def held(self) -> int:
        """States kept at once where paths branch."""
        return num_held(trie(self.variants))


@lru_cache(maxsize=1024)
def _block_runs(variants: tuple[Variant, ...]) -> int:
    """How often a block runs for one batch; a plan asks for it again and again."""
    return num_block_runs(trie(variants))


@dataclass(frozen=True)
class Pass:
    """Tokens that run through blocks for anything but a sweep: activations, gradients, texts to classify.

    Attributes:
        block_tokens: tokens times the blocks that run on them.
    """

    block_tokens: int


@dataclass(frozen=True)
class Writing:
    """Texts that variants write, each by itself.

    Attributes:
        what: prompts of the evaluation text ("continuations"), or a task's name.
        amount: what a variant reads, and writes at most.
        blocks: the number of blocks of each variant.
    """

    what: str
    amount: Amount
    blocks: tuple[int, ...]

    @property
    def block_tokens(self) -> int:
        """Tokens read, and written, times blocks."""
        return sum(self.blocks) * (self.amount.tokens + self.amount.items * self.amount.answers)


@dataclass(frozen=True)
class Training:
    """Weights that are trained.

    Attributes:
        recipe: the weights to train: one of `healing`'s recipes, or method "prompts", where weights stay as they are.
        tokens: tokens of the examples; repeated ones count each time.
        length: approximate number of tokens of an example.
        scored: positions that go through the head.
        blocks: number of blocks of the model that is trained.
        kept: whether what was trained stays on disk.
    """

    recipe: Recipe
    tokens: int
    length: int
    scored: int
    blocks: int
    kept: bool = True

    @property
    def block_tokens(self) -> int:
        """Block-tokens in forwards: gradients of states cost as much as a forward, gradients of weights as much again.

        Adapters and prompts need those of states alone; below the last blocks that are trained nothing needs any.
        """
        if self.recipe.method == "partial":
            return self.tokens * (self.blocks + 2 * min(self.blocks, self.recipe.last_blocks))
        return self.tokens * self.blocks * (3 if self.recipe.method == "full" else 2)

    @property
    def head_tokens(self) -> int:
        """Positions that go through the head, in forwards as above."""
        return self.scored * (3 if self.recipe.method in ("full", "partial") else 2)


@dataclass(frozen=True)
class Quantization:
    """Weights that are quantized.

    Attributes:
        blocks: number of blocks of the model.
        tokens: tokens of calibration text that GPTQ reads; 0 for rounding.
    """

    blocks: int
    tokens: int

    @property
    def block_tokens(self) -> int:
        """Block-tokens of the calibration text."""
        return self.blocks * self.tokens


Work = Sweep | Pass | Writing | Training | Quantization


def text_amount(blocks: int, length: int) -> Amount:
    """Running text: every token but a block's first is predicted."""
    tokens = blocks * (length - 1)
    return Amount(blocks, blocks, tokens, tokens, tokens)


def part(whole: Amount, items: int) -> Amount:
    """The amount of some items drawn at random: the fewer they are, the fewer share a prefix."""
    if not whole.items or items >= whole.items:
        return whole
    share = items / whole.items
    sequences, tokens = max(1, round(share * whole.sequences)), round(share * whole.tokens)
    shared = share * whole.shared
    if 0 < whole.groups < whole.sequences:
        prefix = (whole.tokens - whole.shared) / (whole.sequences - whole.groups)  # tokens
        own = whole.shared - whole.groups * prefix
        together = whole.sequences / whole.items  # inputs of an item, which share with each other at least
        groups = min(whole.groups, items) if together > 1 else whole.groups * (1 - (1 - 1 / whole.groups) ** items)
        shared = min(tokens, share * own + groups * prefix)
    return replace(
        whole, items=items, sequences=sequences, tokens=tokens, shared=round(shared),
        scored=round(share * whole.scored), groups=min(whole.groups, items),
    )  # fmt: skip
