"""What a sweep will take: tokens, seconds and memory, from a few blocks timed on this device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layer_redundancy.core import devices
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.wording import counted, duration
from layer_redundancy.evaluate import scoring
from layer_redundancy.evaluate.batches import PREFIX_BATCHES, ArrangedSequences, Batch, arrange
from layer_redundancy.evaluate.ragged_batches import RaggedBatch, batch_of, may_be_ragged
from layer_redundancy.evaluate.scoring import Measurement, ScoredSequence
from layer_redundancy.evaluate.trie import Node, num_block_runs, num_held, trie
from layer_redundancy.models import throughput
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack


@dataclass(frozen=True, eq=False)
class Missing:
    """What a sweep has to run of one measurement.

    Attributes:
        arranged: all its sequences.
        parts: some of their places, ascending, and the variants that lack them; no place is in two parts.
    """

    arranged: ArrangedSequences
    parts: Sequence[tuple[Sequence[int], Sequence[Variant]]]

    @classmethod
    def all_of(cls, arranged: ArrangedSequences, variants: Sequence[Variant]) -> "Missing":
        """Nothing is there."""
        return cls(arranged, [(range(len(arranged.order)), variants)])

    @property
    def variants(self) -> list[Variant]:
        """The variants that lack something."""
        return list(dict.fromkeys(variant for _, variants in self.parts for variant in variants))


@dataclass(frozen=True)
class SweepEstimate:
    """What a sweep will run and take, before it starts. Block-tokens: tokens times the blocks that run on them.

    Attributes:
        variants: number of variants of the model.
        block_tokens_naive: one plain forward of every sequence for every variant.
        block_tokens_shared: what runs here.
        head_tokens_naive: positions that a plain forward puts through the head.
        head_tokens: positions that are scored, the only ones that go through the head here.
        seconds: estimated time, from a few blocks and one call of the head timed on this device.
        peak_bytes: estimated device memory: weights, states where paths branch, and one forward's workspace.
        shares_prefixes: whether prompt prefixes run once; a model that can start from none runs them with every item.
    """

    variants: int
    block_tokens_naive: int
    block_tokens_shared: int
    head_tokens_naive: int
    head_tokens: int
    seconds: float
    peak_bytes: int
    shares_prefixes: bool = True

    def __str__(self) -> str:
        share = self.block_tokens_shared / self.block_tokens_naive
        text = (
            f"{counted(self.variants, 'variant')}: {self.block_tokens_naive:.3g} block-tokens one by one, "
            f"{self.block_tokens_shared:.3g} shared ({share:.0%}); head on {self.head_tokens:.3g} of "
            f"{self.head_tokens_naive:.3g} tokens; about {duration(self.seconds)}, "
            f"{self.peak_bytes / 1e9:.1f} GB of memory here"
        )
        if not self.shares_prefixes:
            text += "; the model cannot go on from what prompts share, so every item runs its whole prompt"
        return text


def estimate(
    stack: DecoderStack,
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    batch_tokens: int | None = 2048,
) -> SweepEstimate:
    """What `sweep.run` would take for these variants and measurements with an empty store; times a few blocks."""
    variants = list(dict.fromkeys(variants))
    missing = [Missing.all_of(arrange(m.sequences, sharing(stack.model)), variants) for m in measurements]
    return estimate_missing(stack, missing, throughput.batch_tokens(stack, batch_tokens))


def amounts(missing: Sequence[Missing]) -> dict[str, int]:
    """The fields of `SweepEstimate` that need no timing: variants, block-tokens and head-tokens, naive and not."""
    naive = shared = head_naive = head = 0
    for one in missing:
        for places, variants in one.parts:
            sequences = [one.arranged.sequences[one.arranged.order[k]] for k in places]
            tokens = sum(len(s.input_ids) for s in sequences)
            naive += sum(map(len, variants)) * tokens
            shared += num_block_runs(trie(variants)) * one.arranged.num_tokens(places)
            head_naive += len(variants) * tokens
            head += len(variants) * sum(s.num_scored for s in sequences)
    return {
        "variants": len({v for one in missing for v in one.variants}),
        "block_tokens_naive": naive,
        "block_tokens_shared": shared,
        "head_tokens_naive": head_naive,
        "head_tokens": head,
    }


def estimate_missing(stack: DecoderStack, missing: Sequence[Missing], batch_tokens: int) -> SweepEstimate:
    """The estimate for what is given; runs a few blocks of the first batch of each measurement to time them."""
    seconds, states = 0.0, 0
    for one in missing:
        root, of_measurement = trie(one.variants), amounts([one])
        batch, (block_rate, head_rate) = _timed(stack, one.arranged, fitting_batch(stack, root, batch_tokens))
        seconds += of_measurement["block_tokens_shared"] / block_rate + of_measurement["head_tokens"] / head_rate
        held = sum(s.numel() * s.element_size() for s in batch.start)
        states = max(states, (num_held(root) + 2) * held)
    weights = sum(p.numel() * p.element_size() for p in stack.model.parameters())
    vocabulary = stack.model.get_input_embeddings().weight.shape[0]
    forward = _forward_bytes(stack, batch_tokens) + scoring.head_bytes(stack, vocabulary)
    return SweepEstimate(
        **amounts(missing),
        seconds=seconds,
        peak_bytes=weights + states + forward,
        shares_prefixes=sharing(stack.model).prefixes,
    )


def workspace(stack: DecoderStack) -> int:
    """Bytes a token that a block's forward takes, roughly: the widest activations of its MLP."""
    config, element = stack.model.config.get_text_config(), stack.model.get_input_embeddings().weight.element_size()
    return 4 * element * max(config.hidden_size, getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)


def _forward_bytes(stack: DecoderStack, batch_tokens: int) -> int:
    """Bytes that a block's forward takes at most; without padding, what would be several forwards runs in one."""
    return batch_tokens * workspace(stack) * (PREFIX_BATCHES if may_be_ragged(stack) else 1)


def fitting_batch(stack: DecoderStack, root: Node, batch_tokens: int) -> int:
    """`batch_tokens`, or as many as half of the free memory holds of states where paths branch and of workspace.

    A GPU says when there is too little; a computer may kill the process instead, so it is not put to the test.
    """
    size = stack.model.config.get_text_config().hidden_size
    state = size * stack.model.get_input_embeddings().weight.element_size() * PREFIX_BATCHES
    token = (num_held(root) + 2) * state + _forward_bytes(stack, 1)
    return max(1, min(batch_tokens, devices.available(stack.device) // 2 // token))


def rates(stack: DecoderStack, sequences: Sequence[ScoredSequence], batch_tokens: int) -> tuple[float, float]:
    """Block-tokens and head-tokens a second for many batches like these sequences, timed on one of them."""
    return _timed(stack, arrange(sequences, sharing(stack.model)), batch_tokens, devices.steady_seconds)[1]


def _timed(
    stack: DecoderStack, arranged: ArrangedSequences, batch_tokens: int, seconds: Callable = devices.seconds
) -> tuple[Batch | RaggedBatch, tuple[float, float]]:
    """The first batch that fits in memory, and `_rates` on it."""
    high = arranged.batch_end(0, batch_tokens)
    while True:
        try:
            chosen = [arranged.sequences[i] for i in arranged.order[:high]]
            batch = batch_of(stack, chosen, arranged.prefixes[:high], batch_tokens)
            return batch, _rates(stack, batch, seconds)
        except (MemoryError, RuntimeError) as e:
            longest = len(arranged.sequences[arranged.order[0]].input_ids)
            high = devices.halved(high, e, f"one sequence of {longest} tokens")


def _rates(stack: DecoderStack, batch: Batch | RaggedBatch, seconds: Callable) -> tuple[float, float]:
    """Block-tokens and head-tokens a second on this device."""
    middle = len(stack) // 2
    block = throughput.block_seconds(stack, lambda: batch.run_block(middle, batch.start, {}), seconds)
    # A sequence that asks for every position, so that the head's share of scoring is what is timed.
    # The last block's output: a residual stream that was cut is wider there than at its start.
    states = batch.run_block(len(stack) - 1, batch.start, {})[-1].flatten(0, 1)[: scoring.head_rows(stack)]
    rows = len(states)
    targets = scoring.Targets([ScoredSequence((0,) * rows, ((0,) * rows,))])

    def score() -> None:
        scoring.score(stack, states, targets)()

    if stack.compiled:
        score()  # what compiles it is not counted
    head = seconds(score, stack.device)
    return batch.num_tokens / block, rows / head
