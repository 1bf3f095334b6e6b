"""What the notebooks will run on a model, known before anything is downloaded or measured.

Variants come from the same calls that the notebooks make. Orders of removal are not known yet, so the paper's own stand
in for them (table 4), or one like it: how much variants share hardly depends on which late blocks go first. What the
store will have by then, from notebooks before, is not counted again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from layer_redundancy.config import paper_tables
from layer_redundancy.config.profiles import Profile, Recipe, TaskBudget, TrainingBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import variants
from layer_redundancy.core.variants import Variant
from layer_redundancy.data import classification_sets
from layer_redundancy.evaluate.trie import num_block_runs, num_held, trie
from layer_redundancy.experiments import benchmarks as table1
from layer_redundancy.experiments import depth_curves, generation
from layer_redundancy.experiments import quantization as table2
from layer_redundancy.measures import greedy, selections

TEMPLATE_TOKENS = 10  # around a text that is to be classified, and its label's word
UNKNOWN_ITEMS = 2000  # about, of a data set that was not counted


@dataclass(frozen=True)
class Shape:
    """What decides how much work a model is.

    Attributes:
        name: hub id or folder.
        blocks: residual blocks.
        heads: query heads a block; 0 without attention.
        heads_a_block: heads that hold as many weights as a block.
        keeps_prefixes: whether prompt prefixes run once (keys and values), or with every item.
    """

    name: str
    blocks: int
    heads: int
    heads_a_block: int
    keeps_prefixes: bool


@dataclass(frozen=True)
class Sweep:
    """Variants measured on a text or benchmark.

    Attributes:
        measurement: "perplexity" or a task's name.
        amount: what a variant puts through the model.
        variants: that are not measured before.
    """

    measurement: str
    amount: Amount
    variants: tuple[Variant, ...]
    keeps_prefixes: bool = True

    @property
    def block_tokens_naive(self) -> int:
        """One plain forward of every sequence for every variant."""
        return sum(map(len, self.variants)) * self.amount.tokens

    @property
    def block_tokens(self) -> int:
        """What runs with common prefixes shared, of blocks and of prompts."""
        tokens = self.amount.shared if self.keeps_prefixes else self.amount.tokens
        return num_block_runs(trie(self.variants)) * tokens

    @property
    def head_tokens(self) -> int:
        """Positions that go through the head."""
        return len(self.variants) * self.amount.scored

    @property
    def held(self) -> int:
        """States kept at once where paths branch."""
        return num_held(trie(self.variants))


@dataclass(frozen=True)
class Writing:
    """Texts that variants write, each by itself.

    Attributes:
        what: prompts of the evaluation text ("continuations"), or a task's name.
        amount: what a variant reads, and writes at most.
        blocks: of each variant.
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
        recipe: which: as `healing` has it, or of method "prompts", where weights stay as they are.
        tokens: of the examples, those that come again counted again.
        length: tokens of an example, about.
        scored: positions that go through the head.
        blocks: of the model that is trained.
        instead: recipe that takes its place where memory does not suffice; None for none.
        spared: it is left out where memory does not suffice.
        kept: what was trained stays on disk.
    """

    recipe: Recipe
    tokens: int
    length: int
    scored: int
    blocks: int
    instead: Recipe | None = None
    spared: bool = False
    kept: bool = True

    @property
    def block_tokens(self) -> int:
        """In forwards: gradients of states cost as much as a forward, gradients of weights as much again.

        Adapters and prompts need those of states alone; of what lies below the last blocks, nothing needs any.
        """
        if self.recipe.method == "partial":
            return self.tokens * (self.blocks + 2 * min(self.blocks, self.recipe.last_blocks))
        return self.tokens * self.blocks * (3 if self.recipe.method == "full" else 2)

    @property
    def head_tokens(self) -> int:
        """Positions that go through the head, in forwards likewise."""
        return self.scored * (3 if self.recipe.method in ("full", "partial") else 2)


@dataclass
class Work:
    """What a notebook runs.

    Attributes:
        notebook: its number.
        sweeps: with several models in one notebook, of all of them.
        passes: block-tokens of single passes: importance sums, plain forwards to compare with, answers of tuned models.
        writings: texts that are generated.
        quantizations: (blocks, tokens of calibration text; 0 for rounding) of each.
        trainings: of weights.
        models: weights that are read from disk, times the model.
        other: models beside the notebook's own: name -> its work.
    """

    notebook: str
    sweeps: list[Sweep] = field(default_factory=list)
    passes: int = 0
    writings: list[Writing] = field(default_factory=list)
    quantizations: list[tuple[int, int]] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    models: int = 1
    other: dict[str, "Work"] = field(default_factory=dict)

    @property
    def num_variants(self) -> int:
        """Distinct variants, of the notebook's own model."""
        return len({v for s in self.sweeps for v in s.variants})

    @property
    def block_tokens(self) -> int:
        """Of sweeps, as they run."""
        return sum(s.block_tokens for s in self.sweeps) + sum(w.block_tokens for w in self.other.values())

    @property
    def block_tokens_naive(self) -> int:
        """Of sweeps, one plain forward a variant."""
        return sum(s.block_tokens_naive for s in self.sweeps) + sum(w.block_tokens_naive for w in self.other.values())


class Planner:
    """Goes through the notebooks in their order and remembers what the store would have.

    Args:
        profile: its texts, tasks and budgets.
        shape: of the model.
        beside: of the model without attention (or, for one without, of the transformer) in notebook 06.
        amounts: task -> amount, for all items.
    """

    def __init__(self, profile: Profile, shape: Shape, beside: Shape | None, amounts: Mapping[str, Amount]):
        self.profile, self.shape, self.beside, self.amounts = profile, shape, beside, amounts
        self._done: dict[tuple[str, str, Amount], set[Variant]] = {}

    def work(self, notebook: str) -> Work:
        """What one of the notebooks, by its number, runs after those asked for before."""
        found = Work(notebook)
        getattr(self, f"_notebook_{notebook}")(found)
        found.sweeps = [s for s in found.sweeps if s.variants]
        return found

    # ------------------------------------------------------------------------------------------------ amounts

    def _text(self, blocks: int, length: int) -> Amount:
        tokens = blocks * (length - 1)
        return Amount(blocks, blocks, tokens, tokens, tokens)

    @property
    def evaluation(self) -> Amount:
        """The profile's perplexity."""
        return self._text(self.profile.text.evaluation_blocks, self.profile.text.block_length)

    @property
    def _calibration_tokens(self) -> int:
        return self.profile.text.calibration_blocks * self.profile.text.block_length

    def task(self, budget: TaskBudget, limit: int | None = None) -> Amount:
        """A benchmark with as many items as the budget says; what is shared is so among the items that are left."""
        whole = self.amounts[budget.name]
        asked = min([n for n in (budget.limit, limit) if n] or [whole.items])
        return part(whole, min(asked, whole.items))

    # ------------------------------------------------------------------------------------------------ variants

    def order(self) -> list[int]:
        """Stands in for the order of Block Influence: the paper's, then the other late blocks, the ends last."""
        known = paper_tables.table("table4").set_index("model")["removed_layers"]
        first = [i for i in known.get(paper_tables.known_model(self.shape.name), ()) if i < self.shape.blocks]
        last = self.shape.blocks - 1
        rest = sorted(range(self.shape.blocks), key=lambda i: (i in (0, 1, last), abs(i / max(1, last) - 0.75)))
        return first + [i for i in rest if i not in first]

    def _plans(self, counts: Sequence[int], turn: int = 0) -> Iterator[Variant]:
        """What the measures leave at these depths; turn > 0: on a redrawn text, which exchanges a few neighbours."""
        num, order = self.shape.blocks, self.order()
        similar = list(order)
        for i in (2 * turn, 2 * turn + 7):
            similar[i : i + 2] = similar[i : i + 2][::-1]
        back = list(range(num))[::-1]
        for measured in (similar, _neighbours(similar), back[1:] + back[:1], back[::-1], back):
            yield from (variants.without(num, measured[:k]) for k in counts)
        yield from (self._similar_run(k) for k in counts if k)

    def _similar_run(self, length: int) -> Variant:
        """Stands in for the run of the smallest angular distance: the one that ends before the last two blocks."""
        num = self.shape.blocks
        return variants.block_removal(num, max(1, num - 2 - length) if length < num - 1 else 0, length)

    def _fresh(self, what: str, amount: Amount, plan: Sequence[Variant], model: str = "") -> Sweep:
        """A sweep of what is not measured yet."""
        done = self._done.setdefault((model or self.shape.name, what, amount), set())
        new = tuple(v for v in dict.fromkeys(plan) if v not in done)
        done.update(new)
        return Sweep(what, amount, new, self.shape.keeps_prefixes)

    def _swept(
        self, plan: Sequence[Variant], model: str = "", limit: int | None = None, loss: str = "perplexity"
    ) -> list[Sweep]:
        """Perplexity (on another text than the profile's, by its name) and the profile's tasks."""
        tasks = [self._fresh(b.name, self.task(b, limit), plan, model) for b in self.profile.tasks]
        return [self._fresh(loss, self.evaluation, plan, model), *tasks]

    def _greedy(self) -> Iterator[Sweep]:
        """The steps of the greedy order."""
        amount = self._text(self.profile.greedy_blocks, self.profile.text.block_length)
        steps: list[Sweep] = []

        def cost(plan: Sequence[Variant]) -> list[float]:
            steps.append(self._fresh("greedy", amount, plan))
            return [float(sum(range(self.shape.blocks)) - sum(variant)) for variant in plan]

        greedy.removal_order(self.shape.blocks, cost, self.profile.greedy_shortlist)
        yield from steps

    def _sums(self, work: Work) -> None:
        if not self._fresh("sums", Amount(0, 0, 0, 0, 0), [variants.dense(self.shape.blocks)]).variants:
            return
        work.passes += self._calibration_tokens * self.shape.blocks

    # ------------------------------------------------------------------------------------------------ notebooks

    def _notebook_01(self, work: Work) -> None:
        self._sums(work)

    def _notebook_02(self, work: Work) -> None:
        num = self.shape.blocks
        work.sweeps += self._swept([variants.dense(num), *variants.single_removal(num)])
        work.passes += 4 * num * (self.profile.text.block_length - 1)

    def _notebook_03(self, work: Work) -> None:
        self._sums(work)
        work.sweeps += self._swept(variants.cumulative_removal(self.shape.blocks, self.order()))

    def _notebook_04(self, work: Work) -> None:
        self._sums(work)
        work.sweeps += self._greedy()
        counts = depth_curves.depths(self.shape.blocks, self.profile.depth_step)
        plan = [*self._plans(counts), *self._greedy_plan(counts)]
        for turn in range(1, self.profile.calibration_resamples + 1):
            plan += self._plans(counts, turn)
        work.sweeps += self._swept(plan)

    def _greedy_plan(self, counts: Sequence[int]) -> list[Variant]:
        order = _neighbours(_neighbours(self.order()[3:] + self.order()[:3]))
        return [variants.without(self.shape.blocks, order[:k]) for k in counts]

    def _notebook_05(self, work: Work) -> None:
        num, heads, budget = self.shape.blocks, self.shape.heads, self.profile.width
        if not heads:
            return
        single = variants.single_heads(num, heads, budget.block_step)
        everywhere = variants.head_everywhere(num, heads)
        size = min(self.shape.heads_a_block, num * heads - 1)
        sets = variants.random_heads(num, heads, size, budget.random_sets, self.profile.seed)
        dense, blocks = variants.dense(num), variants.single_removal(num)
        # Perplexity on these blocks is another measurement than on the profile's, unless they are the same.
        amount = self._text(min(budget.evaluation_blocks, self.evaluation.items), budget.block_length)
        plan = [dense, *single.values(), *everywhere, *sets, *blocks]
        work.sweeps.append(self._fresh("perplexity", amount, plan))
        chosen = sorted({block for block, _ in single})
        for task in self.profile.tasks:
            whole = self.task(task)
            work.sweeps.append(self._fresh(task.name, whole, [dense, *everywhere]))
            turns = min(len(chosen), -(-whole.items // budget.items))
            for turn in range(turns):
                mine = [v for (block, _), v in single.items() if chosen.index(block) % turns == turn]
                items = min(budget.items, whole.items - turn * budget.items)
                # Items are other ones in each turn.
                work.sweeps.append(
                    self._fresh(task.name, part(whole, items), [dense, *mine], f"{self.shape.name}, part {turn}")
                )

    def _notebook_06(self, work: Work) -> None:
        self._compared(work)
        if self.beside is not None:
            other = Planner(self.profile, self.beside, None, self.amounts)
            work.other[self.beside.name] = beside = Work("06")
            other._compared(beside)

    def _compared(self, work: Work) -> None:
        num = self.shape.blocks
        self._sums(work)
        work.sweeps += self._greedy()
        counts = depth_curves.depths(num, self.profile.depth_step if num > 16 else 1)
        singles = variants.single_removal(num)
        plan = [variants.dense(num), *singles, *self._plans(counts), *self._greedy_plan(counts)]
        work.sweeps += self._swept(plan)

    def _notebook_07(self, work: Work) -> None:
        num, budget = self.shape.blocks, self.profile.quantization
        num = min(num, budget.max_blocks or num)
        order = [i for i in self.order() if i < num]
        plan = variants.cumulative_removal(num, order)
        k = table2.removed_in_table(num)
        few = [plan[0], plan[k]]
        tokens = budget.calibration_blocks * self.profile.text.block_length
        self._sums(work)
        work.sweeps += self._swept([*plan, plan[k]], limit=budget.items)
        for bits in budget.bits:
            name = f"{self.shape.name}, GPTQ {bits}"
            work.quantizations.append((num, tokens))
            work.passes += tokens * num  # Block Influence
            work.sweeps += self._swept(plan, name, budget.items)
            if bits in budget.pruned_first:
                work.quantizations.append((num - k, tokens))
                work.sweeps += self._swept([variants.dense(num - k)], f"{name} after", budget.items)
        if budget.ready:
            work.sweeps += self._swept(few, budget.ready, budget.items)
        for bits in budget.rounded:
            work.quantizations.append((num, 0))
            work.sweeps.append(self._fresh("perplexity", self.evaluation, few, f"{self.shape.name}, rounded {bits}"))
        work.models += 3 * len(budget.bits) + len(budget.rounded) + bool(budget.ready)

    def _notebook_08(self, work: Work) -> None:
        num = self.shape.blocks
        self._sums(work)
        count = table1.num_removed(self.shape.name, num)
        plan = [variants.dense(num)]
        plan += [variants.without(num, order[:count]) for order in (self.order(), list(range(num))[::-1])]
        work.sweeps += [self._fresh(b.name, self.task(b), plan) for b in self.profile.benchmarks]
        for budget in self.profile.generative_benchmarks:
            work.writings.append(Writing(budget.name, self.task(budget), tuple(map(len, plan))))

    def _notebook_09(self, work: Work) -> None:
        num, budget = self.shape.blocks, self.profile.generation
        self._sums(work)
        plan = variants.cumulative_removal(num, self.order()[: budget.max_removed])
        written = Amount(budget.prompts, budget.prompts, budget.prompts * budget.prompt_tokens, 0, 0, budget.new_tokens)
        blocks = tuple(map(len, plan))
        work.writings.append(Writing("continuations", written, blocks))
        read = budget.prompts * (budget.prompt_tokens + budget.new_tokens)
        work.passes += read * (sum(blocks) + len(blocks) * num)  # its own reading, and the dense model's of its text
        for task in budget.tasks:
            if task.name != "humaneval":  # left out unless the user lets generated programs run
                work.writings.append(Writing(task.name, self.task(task), blocks))
        deepest = len(plan) - 1
        quarter = min(generation.quarter(num), deepest)
        few = sorted({0, max(1, quarter // 2), quarter, deepest})
        work.sweeps += self._swept([plan[n] for n in few])

    def _notebook_10(self, work: Work) -> None:
        num, budget = self.shape.blocks, self.profile.healing
        healed = sorted({min(num - 1, depth_curves.at_ratio(num, share)) for share in budget.fractions})
        counts = sorted({*healed, *depth_curves.depths(num, self.profile.depth_step)} - {0})
        self._sums(work)
        # similarity, the simple rule, and the last blocks
        rules = [self._similar_run, lambda n: variants.block_removal(num, num - 1 - n, n)]
        plan = [rule(n) for rule in rules for n in counts]
        plan += [variants.block_removal(num, num - n, n) for n in counts]
        own = budget.evaluation_corpus not in ("", self.profile.text.corpus)
        loss = f"perplexity/{budget.evaluation_corpus}" if own else "perplexity"
        work.sweeps += self._swept([variants.dense(num)], loss=loss) + self._swept(plan, loss=loss)
        for variant in [variants.dense(num), *(rule(n) for rule in rules for n in healed)]:
            work.sweeps += self._healed(work, variant, budget.recipe, budget.healing, self.profile.seed, loss)

    def _notebook_11(self, work: Work) -> None:
        num, budget = self.shape.blocks, self.profile.healing
        self._sums(work)
        blocks = min(budget.loss_blocks, self.profile.text.calibration_blocks)
        amount = self._text(blocks, self.profile.text.block_length)
        work.sweeps.append(self._fresh("selection", amount, variants.single_removal(num)))
        work.passes += 3 * amount.tokens * num  # the Taylor measure's gradients
        count = min(num - 1, depth_curves.at_ratio(num, 0.25))
        plan = list(dict.fromkeys(variants.without(num, order[:count]) for order in self._selections()))
        work.sweeps += self._swept(plan)
        last = variants.block_removal(num, num - count, count)
        todo = [(last, recipe, seed) for recipe in budget.recipes for seed in range(budget.seeds)]
        todo += [(variant, budget.ranked_by, self.profile.seed) for variant in plan]
        for variant, recipe, seed in todo:
            work.sweeps += self._healed(work, variant, recipe, budget.tuning, seed)

    def _selections(self) -> Iterator[list[int]]:
        """Stand in for what the seven selections remove first; those that are drawn or given are themselves."""
        num, order = self.shape.blocks, self.order()
        for draw in range(self.profile.healing.random_orders):
            yield selections.order("random", {}, num, self.profile.seed + draw).tolist()
        yield selections.order("reverse_order", {}, num).tolist()
        # Block Influence, perplexity and Taylor nearly agree; norms grow with depth, so that the first blocks go.
        yield order
        yield order[1:] + order[:1]
        yield order[2:] + order[:2]
        yield list(range(num))
        yield [*range(1, num), 0]

    def _healed(
        self, work: Work, kept: Variant, recipe: Recipe, budget: TrainingBudget, seed: int, loss: str = "perplexity"
    ) -> list[Sweep]:
        """A training of what is kept, and the sweeps of what comes of it."""
        name = f"{self.shape.name}, {variants.name(kept)}, {recipe}, {budget}, seed {seed}"
        if self._fresh("training", Amount(0, 0, 0, 0, 0), [kept], name).variants:
            tokens, compared = budget.tokens, work.notebook == "11" and recipe in self.profile.healing.recipes
            work.trainings.append(Training(recipe, tokens, budget.block_length, tokens, len(kept), spared=compared))
            work.passes += 11 * budget.held_out * budget.block_length * len(kept)
            work.models += 2  # to be trained, and to be measured
        return self._swept([variants.dense(len(kept))], name, loss=loss)

    def _notebook_12(self, work: Work) -> None:
        num, budget = self.shape.blocks, self.profile.classification
        weights, lora = Recipe("full", budget.weights_rate), Recipe("lora", budget.lora_rate)
        methods = [(Recipe("prompts", budget.prompt_rate), budget.epochs[0], None), (weights, budget.epochs[1], lora)]
        seeds = len(budget.seeds)
        for name in budget.datasets:
            labels = len(classification_sets.SOURCES[name].labels)
            length = self._prompt_tokens(name, labels)
            amount = self.amounts.get(name)
            items = amount.items if amount else UNKNOWN_ITEMS
            judged = min(budget.test_items or items, items) * length
            shots = labels * budget.shots
            for kept in sorted({k for k in budget.kept if k < num} | {num}):
                work.passes += (1 + len(methods) * seeds) * judged * kept
                if name == budget.datasets[0]:  # once more for each method, timed
                    work.passes += len(methods) * (1 + budget.repeats) * judged * kept
                for recipe, epochs, instead in methods:
                    seen = -(-epochs * shots // budget.batch) * budget.batch
                    virtual = budget.virtual_tokens if recipe.method == "prompts" else 0
                    size = length + virtual
                    one = Training(recipe, seen * size, size, seen, kept, instead, kept=False)
                    work.trainings += [one] * seeds

    def _prompt_tokens(self, name: str, labels: int) -> int:
        """Of a text in its template, after the worked examples."""
        amount, words = self.amounts.get(name), self.profile.classification.max_words
        # A word is about one token and a half, and texts that may have so many words have two thirds of them.
        text = amount.tokens / amount.items if amount else words or 30
        return round((1 + labels * self.profile.classification.demonstrations) * (text + TEMPLATE_TOKENS))


def part(whole: Amount, items: int) -> Amount:
    """As much as some of the items are, drawn at random: the fewer they are, the fewer share a prefix."""
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


def _neighbours(order: Sequence[int]) -> list[int]:
    """The same order with two places exchanged: another measure that nearly agrees."""
    changed = list(order)
    if len(changed) > 3:
        changed[2], changed[3] = changed[3], changed[2]
    return changed
