"""A study that computes nothing: it counts the work that an experiment asks for, and hands back results of its shape.

An experiment's own `measure` runs on it, so a plan cannot differ from what its notebook asks for. Where an experiment
asks for an order of removal, which nobody knows before, the paper's own stands in (`stand_ins`). Work that was counted
once is not counted again, as the store would have it: `Ledger` remembers it by the store's own keys, and what was run
on each sequence of tokens.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from layer_redundancy.config import own_files, profiles
from layer_redundancy.config.profiles import Profile, TaskBudget, TextBudget, TrainingBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import flags, paths, variants
from layer_redundancy.core.errors import DoesNotFit, StudyError
from layer_redundancy.core.store import Key, Producer, Result, Store
from layer_redundancy.core.variants import Variant
from layer_redundancy.data import classification_sets, task_files
from layer_redundancy.data.benchmark_items import TaskItems
from layer_redundancy.data.classification_sets import LabelledPrompts, PromptChoice
from layer_redundancy.data.corpora import Split, TokenBlocks
from layer_redundancy.evaluate import gaps, generate, sweep
from layer_redundancy.evaluate.amounts import Quantization, Sweep, Training, Work, Writing, part, text_amount
from layer_redundancy.evaluate.batches import arrange
from layer_redundancy.evaluate.changes import Changes, needed
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import ChoiceTask, Passages, Perplexity, WrittenAnswers
from layer_redundancy.inputs import Inputs
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import quantize
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import Sharing
from layer_redundancy.planning import stand_ins
from layer_redundancy.study import Study
from layer_redundancy.train import healing

TEMPLATE_TOKENS = 10  # around a text that is to be classified, and its label's word
UNKNOWN_ITEMS = 2000  # about, of a data set that was not counted
UNKNOWN_CHANCE = 0.25


@dataclass
class Ledger:
    """What was asked for, over all notebooks of a plan.

    Attributes:
        work: (model, work) in the order in which it was asked for; the model is the one whose shape it has.
        requests: the place in `work` at which each request begins, of which a notebook waits for the whole.
        loads: number of times that a model's weights are read, by model.
        left_out: work that there is no memory for.
        seen: keys of all work that was asked for before.
        loaded: models that are in memory.
        ran: what makes outputs of sequences -> what they are sequences of -> those that were asked for, as bits.
        places: digest of a sequence -> its bit, of sequences that are known.
        texts: texts that are trained on, by fingerprint.
    """

    work: list[tuple[str, Work]] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    loads: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seen: set[Key] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    ran: dict[Producer, dict[str, int]] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)
    texts: dict[str, TokenBlocks] = field(default_factory=dict)

    def fresh(self, key: Key) -> bool:
        """Whether this is asked for the first time; it is then marked as seen."""
        first = key not in self.seen
        self.seen.add(key)
        return first

    def page(self) -> "Ledger":
        """A ledger for the next notebook, which is spared what this one has."""
        return Ledger(seen=self.seen, ran=self.ran, places=self.places)

    def steps(self) -> list[list[tuple[str, Work]]]:
        """The work, request by request; what no request is known of is one by itself."""
        begins = [0, *range(self.requests[0] if self.requests else len(self.work)), *self.requests, len(self.work)]
        return [self.work[low:high] for low, high in pairwise(begins) if low < high]

    def of(self, kind: type, model: str | None = None) -> list[Any]:
        """The work of one kind, of one model if it is named."""
        return [work for name, work in self.work if isinstance(work, kind) and model in (None, name)]


class DryText(TokenBlocks):
    """Blocks of text of which the shape alone is known."""

    @property
    def fingerprint(self) -> str:
        """What stands for the text in a key."""
        return f"{self.corpus} {self.split} {tuple(self.input_ids.shape)}"


def dry_text(corpus: str, split: Split, blocks: int, length: int) -> DryText:
    """Blocks of text that take no memory."""
    return DryText(torch.zeros(1, 1, dtype=torch.long).expand(blocks, length), corpus, split, bos=False)


@dataclass(frozen=True, eq=False)
class DryItems:
    """Items of a benchmark of which the amount alone is known; the attributes are those of `TaskItems`."""

    name: str
    num_fewshot: int | None
    amount: Amount
    first_item: int = 0
    chance: float = UNKNOWN_CHANCE

    @property
    def num_items(self) -> int:
        return self.amount.items

    @property
    def fingerprint(self) -> str:
        """What stands for the items in a key."""
        return f"{self.name} {self.num_fewshot} {self.first_item}+{self.num_items}"

    def parts(self, size: int) -> list["DryItems"]:
        """The items `size` at a time; the last part may be smaller."""
        starts = range(0, self.num_items, size)
        return [
            replace(self, amount=part(self.amount, min(size, self.num_items - start)), first_item=start)
            for start in starts
        ]


@dataclass(frozen=True, eq=False)
class DryPrompts:
    """Labelled prompts of which numbers and lengths alone are known; the attributes are those of `LabelledPrompts`."""

    train: Sequence[None]
    judged: Sequence[None]
    longest: int
    fingerprint: str
    words: torch.Tensor

    @property
    def train_tokens(self) -> int:
        return len(self.train) * self.longest

    @property
    def judged_tokens(self) -> int:
        return len(self.judged) * self.longest


@dataclass
class Needs:
    """What one model reads, each once, in the order in which it was asked for.

    Attributes:
        corpora: corpora of running text.
        tasks: multiple-choice benchmarks.
        generative_tasks: benchmarks whose answers are generated.
        datasets: data sets to classify.
    """

    corpora: dict[str, None] = field(default_factory=dict)
    tasks: dict[TaskBudget, None] = field(default_factory=dict)
    generative_tasks: dict[TaskBudget, None] = field(default_factory=dict)
    datasets: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DryInputs(Inputs):
    """Inputs of which the amounts alone are known.

    Attributes:
        amount_of: what all items of a benchmark, or of a data set to classify, put through the model; None for a data
            set that nothing is known of.
        needs: what the model reads.
    """

    amount_of: Callable[[TaskBudget | str], Amount | None] = lambda what: None
    needs: Needs = field(default_factory=Needs)

    @property
    def tokenizer(self) -> None:
        """None: whoever counts does not tokenize."""
        return None

    def _token_blocks(self, budget: TextBudget, split: Split, least: int | None = None) -> TokenBlocks:
        self.needs.corpora[own_files.corpus(budget.corpus)] = None  # raises StudyError if it is not there
        blocks = budget.calibration_blocks if split == "calibration" else budget.evaluation_blocks
        return dry_text(budget.corpus, split, blocks, budget.block_length)

    def _packed_blocks(self, corpus: str, split: Split, length: int, count: int) -> TokenBlocks:
        self.needs.corpora[own_files.corpus(corpus)] = None
        return dry_text(corpus, split, count, length)

    def _passages(self, other: Inputs) -> Perplexity | Passages:
        # As many tokens as the other model's, about: nobody knows before.
        text = replace(other.evaluation, corpus=f"{other.evaluation.corpus} as {other.identity.name} reads it")
        return Perplexity(text, name="passages")

    def _token_counts(self) -> np.ndarray:
        self.needs.corpora[own_files.corpus(self.profile.text.corpus)] = None
        return np.zeros(1, np.int64)

    def _training_blocks(self, corpus: str, length: int, count: int, held_out: int, seed: int) -> TokenBlocks:
        return self._packed_blocks(corpus, "calibration", length, count + held_out)

    def _training_counts(self, budget: TrainingBudget) -> np.ndarray:
        return np.zeros(1, np.int64)

    def amount(self, budget: TaskBudget) -> Amount:
        """Amount of the items of a benchmark that its budget asks for."""
        whole = self.amount_of(budget)
        if whole is None:
            raise StudyError(f"nothing is known of how long {budget.name!r} is: it cannot be planned")
        return part(whole, min(budget.limit or whole.items, whole.items))

    def _task(self, budget: TaskBudget) -> ChoiceTask:
        self.needs.tasks[budget] = None
        items = DryItems(task_files.task_name(budget.name), budget.num_fewshot, self.amount(budget))
        return ChoiceTask(cast(TaskItems, items))

    def _prompts_to_classify(self, choice: PromptChoice) -> LabelledPrompts:
        labels = len(classification_sets.SOURCES[choice.dataset].labels)
        self.needs.datasets[choice.dataset] = None
        known = self.amount_of(choice.dataset)
        items = known.items if known else UNKNOWN_ITEMS
        # A word is about one token and a half, and texts that may have so many words have two thirds of them.
        text = known.tokens / known.items if known else choice.max_words or 30
        length = round((1 + labels * choice.demonstrations) * (text + TEMPLATE_TOKENS))
        judged = min(choice.items or items, items)
        shots = [None] * (labels * choice.shots)
        prompts = DryPrompts(shots, [None] * judged, length, str(choice), torch.arange(labels))
        return cast(LabelledPrompts, prompts)


@dataclass(frozen=True, eq=False)
class DryStudy(Study):
    """A study that counts.

    Attributes:
        ledger: the ledger that it counts in.
        shape_of: the model whose shape the work has; models made of it have fewer blocks.
        keeps_prefixes: whether prompt prefixes run once, or with every item.
        other: opens a dry study of another model, with this one's profile and ledger.
        fits: whether the device's memory suffices for a training.
        skips_stored: whether what the store has already is not counted.
    """

    ledger: Ledger = field(default_factory=Ledger)
    shape_of: str = ""
    keeps_prefixes: bool = True
    other: Callable[[str, Profile, Ledger], "DryStudy"] | None = None
    fits: Callable[[Training], bool] = lambda training: True
    skips_stored: bool = False

    @cached_property
    def stack(self) -> Any:
        """Nothing is ever loaded.

        Raises:
            StudyError: always: an experiment asked for the model outside of what it has a study do.
        """
        raise StudyError("a plan loads no model: ask the study for the work, so that it can be counted")

    def unload(self) -> None:
        """Nothing is loaded, but what is measured afterwards loads it again."""
        self.ledger.loaded.discard(self.identity.fingerprint)

    def weight_bytes(self) -> quantize.WeightBytes:
        return quantize.WeightBytes((0,) * self.num_blocks, 0)

    def quantization_method(self) -> None:
        return None

    def _count(self, *work: Work) -> None:
        self.ledger.requests.append(len(self.ledger.work))
        self.ledger.work += [(self.shape_of, one) for one in work]
        if self.identity.fingerprint not in self.ledger.loaded:
            self.ledger.loaded.add(self.identity.fingerprint)
            self.ledger.loads[self.shape_of] = self.ledger.loads.get(self.shape_of, 0) + 1

    # ------------------------------------------------------------------------------------------------ other models

    def of_model(self, model: str) -> "Study":
        assert self.other is not None, "`open_dry` is told how another model is opened"
        return self.other(model, profiles.with_model(self.profile, model), self.ledger)

    def quantized(
        self, scheme: quantize.Scheme, removed: Sequence[int] = (), text: TokenBlocks | None = None
    ) -> "Study":
        self._check_on_disk("quantized")
        other = replace(self, calibration_blocks=self.profile.quantization_blocks)
        text = other.calibration if text is None else text
        scheme, removed = profiles.valid(quantize.Scheme, scheme), variants.indices(removed)
        kept = variants.without(self.num_blocks, removed)
        key = self.key("quantized", 1, kept, text.fingerprint, {"scheme": str(scheme)})
        if self.ledger.fresh(key):
            read = text.num_tokens if scheme.method == "gptq" else 0
            self._count(Quantization(len(kept), read))
        return other._made(f"{self.identity.name}, {scheme}", key, len(kept))

    def pruned(self, removed: Sequence[int]) -> "Study":
        removed = variants.indices(removed)
        kept = variants.without(self.num_blocks, removed)
        key = self.key("pruned", 1, kept)
        return self._made(f"{self.identity.name} without {len(removed)} blocks", key, len(kept))

    def written(self) -> "DryStudy":
        if self.making is not None:
            self.making_seconds()
        if self.healing is not None:
            self.training()  # done when it is written
        return replace(self, healing=None, making=None)

    def _made(self, name: str, key: Key, blocks: int) -> "DryStudy":
        """A study of a model that is made of this one."""
        fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()
        identity = replace(self.identity, name=name, fingerprint=fingerprint, num_hidden_layers=blocks)
        return replace(self, identity=identity, healing=None, making=None)

    # ------------------------------------------------------------------------------------------------ work

    def cached(
        self,
        key: Key,
        compute: Callable[[], Result],
        zeros: Callable[[], Result],
        work: Callable[[], Sequence[Work]] = lambda: (),
    ) -> Result:
        if self._fresh(key):
            self._count(*work())
        return self._known(key) or zeros()

    def _fresh(self, key: Key) -> bool:
        """Whether work of this key is to be counted."""
        return self.ledger.fresh(key) and not (self.skips_stored and self._known(key))

    def _known(self, key: Key) -> Result | None:
        """The stored result; None where the store lacks it or there is no store."""
        return None if self.store is None else self.store.get(key)

    def activation_sums(self) -> ActivationSums:
        found = super().activation_sums()
        if found.norm.any():  # the store has them
            return found
        return stand_ins.activation_sums(self.shape_of, self.num_blocks, len(self.calibration.input_ids))

    def likely_scores(self, measure: str) -> np.ndarray:
        return stand_ins.scores(measure, self.shape_of, self.num_blocks)

    @flags.checked
    def sweep(
        self,
        chosen: Sequence[Variant],
        measurements: Sequence[Perplexity | Passages | ChoiceTask | WrittenAnswers] | None = None,
        progress: bool = True,
        changes: Changes | None = None,
    ) -> dict[str, dict[Variant, Result]]:
        found: dict[str, dict[Variant, Result]] = {}
        wanted: list[Sweep] = []
        if measurements is None:
            measurements = [self.perplexity, *self.tasks]
        chosen = variants.plan(self.num_blocks, chosen)
        for measurement in sweep.distinct(measurements):
            compiled = self.profile.compiled
            if self.store is not None:
                compiled = sweep.is_compiled(self.identity, measurement, self.store, compiled)
            keys = {v: sweep.key(self.identity, v, measurement, bool(compiled)) for v in chosen}
            fresh = {v: sweep.producer(key, bool(compiled)) for v, key in keys.items() if self._fresh(key)}
            wanted += self._lacking(measurement, fresh) if fresh else []
            found[measurement.name] = {v: self._result(measurement, v, key) for v, key in keys.items()}
        if wanted:
            self._count(*wanted)
        if (changed := needed((v for one in wanted for v in one.variants), changes)) and changes is not None:
            self._count(*changes.work(changed))
        return found

    def _result(
        self, measurement: Perplexity | Passages | ChoiceTask | WrittenAnswers, variant: Variant, key: Key
    ) -> Result:
        known = self._known(key)
        if known is None:
            return self._measured(measurement, variant)
        return measurement.with_gold_share(known) if isinstance(measurement, ChoiceTask) else known

    def _lacking(
        self, measurement: Perplexity | Passages | ChoiceTask | WrittenAnswers, fresh: Mapping[Variant, Producer]
    ) -> list[Sweep]:
        """What was not asked for before of a measurement on some variants; it is then marked as asked for."""
        what, wanted = _sequences(measurement, self.ledger.places)
        ran = {v: self.ledger.ran.setdefault(producer, {}) for v, producer in fresh.items()}
        known = {v: of.get(what, 0) for v, of in ran.items()}
        if self.skips_stored and self.store is not None and not what:
            digests = [s.digest for s in measurement.sequences]
            stored = self.store.outputs(fresh.values(), digests)
            known = {
                v: bits | gaps.of_places(map(self.ledger.places.__getitem__, stored[fresh[v]]))
                for v, bits in known.items()
            }
        for v, of in ran.items():
            of[what] = known[v] | wanted
        return [
            Sweep(measurement.name, _amount(measurement, part, self.ledger.places), lacking, self.keeps_prefixes)
            for part, lacking in gaps.parts(wanted, known)
        ]

    def _measured(self, measurement: Perplexity | Passages | ChoiceTask | WrittenAnswers, variant: Variant) -> Result:
        """A result of the right shape; its loss is higher the later the stand-in order would remove what is gone."""
        if isinstance(measurement, Perplexity | Passages):
            loss = stand_ins.loss(self.shape_of, self.num_blocks, variant)
            tokens = _scored_tokens(measurement)
            nll = loss * tokens
            return Result({"perplexity": float(np.exp(loss)), "nll": loss}, {"nll": nll, "tokens": tokens})
        zeros = np.zeros(measurement.items.num_items)
        summary = {"acc": 0.0, "items": len(zeros), "chance": measurement.items.chance}
        names = ("acc", "gold_logprob", "gold_share", "loglikelihood", "written")
        return Result(summary, dict.fromkeys(names, zeros))

    def continuations(self, chosen: Sequence[Variant], lengths: PromptLengths) -> dict[Variant, Result]:
        distinct = [self.dense, *(v for v in variants.plan(self.num_blocks, chosen) if v != self.dense)]
        settings = {"prompts": lengths.prompts, "prompt": lengths.prompt_tokens, "new": lengths.new_tokens}
        fresh = [v for v in distinct if self.ledger.fresh(self.key("continuations", 1, v, settings=settings))]
        if fresh:
            self._count(*(work for variant in fresh for work in self._continuation_work(variant, lengths)))
        return {v: generate.no_continuations((lengths.prompts, lengths.new_tokens)) for v in distinct}

    @flags.checked
    def generative_task(
        self, budget: TaskBudget, chosen: Sequence[Variant], run_generated_code: bool = False
    ) -> dict[Variant, Result]:
        if isinstance(self.inputs, DryInputs):
            self.inputs.needs.generative_tasks[budget] = None
        amount = self.inputs.amount(budget) if isinstance(self.inputs, DryInputs) else Amount(1, 1, 1, 1, 1)
        distinct = variants.plan(self.num_blocks, chosen)
        keys = {v: self.key(f"generative/{budget.name}", 1, v, settings={"limit": budget.limit}) for v in distinct}
        if fresh := [v for v, key in keys.items() if self.ledger.fresh(key)]:
            self._count(Writing(budget.name, amount, tuple(map(len, fresh))))
        zeros = np.zeros(amount.items)
        return {v: Result({"score": 0.0, "metric": "score"}, {"score": zeros}) for v in distinct}

    @flags.checked
    def training(self, keep: bool = True) -> Result:
        made = self._healing()
        if made.recipe.method == "nf4":
            return super().training()
        one = Training(made.recipe, made.budget.tokens, made.budget.block_length, made.budget.tokens, self.num_blocks)
        if not self.fits(one):
            self.ledger.left_out.append(healing.describe(made.recipe))
            raise DoesNotFit(f"training {healing.describe(made.recipe)} does not fit this device's memory")
        self.ledger.texts[made.text.fingerprint] = made.text
        found = super().training(keep=keep)
        self.unload()  # what was trained is loaded again to be measured
        return found


def _sequences(
    measurement: Perplexity | Passages | ChoiceTask | WrittenAnswers, known: dict[bytes, int]
) -> tuple[str, int]:
    """The sequences of a measurement as bits, and what they are sequences of; "" for those whose digests are known."""
    if isinstance(measurement, Perplexity):
        if isinstance(measurement.blocks, DryText):
            blocks, length = measurement.blocks.input_ids.shape
            return f"{measurement.blocks.corpus} {measurement.blocks.split} {length}", (1 << blocks) - 1
    elif isinstance(measurement, ChoiceTask | WrittenAnswers) and isinstance(measurement.items, DryItems):
        items = measurement.items
        return f"{items.name} {items.num_fewshot}", (1 << items.num_items) - 1 << items.first_item
    return "", gaps.of_places(known.setdefault(s.digest, len(known)) for s in measurement.sequences)


def _scored_tokens(text: Perplexity | Passages) -> np.ndarray:
    """Scored tokens of each block of text, or of each passage, (N,)."""
    if isinstance(text, Passages):
        return np.array([len(piece) - 1 for piece in text.pieces])
    blocks, length = text.blocks.input_ids.shape
    return np.full(blocks, length - 1)


def _amount(
    measurement: Perplexity | Passages | ChoiceTask | WrittenAnswers, some: int, known: Mapping[bytes, int]
) -> Amount:
    """The amount of some sequences of a measurement, given as `_sequences` has them."""
    if isinstance(measurement, Perplexity):
        return text_amount(some.bit_count(), measurement.blocks.input_ids.shape[1])
    if isinstance(measurement, Passages):
        count = len(measurement.pieces)
    elif isinstance(measurement.items, DryItems):
        return part(measurement.items.amount, some.bit_count())
    else:
        count = measurement.items.num_items
    arranged = arrange(measurement.sequences, Sharing(prefixes=True))
    places = [k for k, i in enumerate(arranged.order) if some >> known[arranged.sequences[i].digest] & 1]
    sequences = [arranged.sequences[arranged.order[k]] for k in places]
    tokens, scored = sum(len(s.input_ids) for s in sequences), sum(s.num_scored for s in sequences)
    items = round(count * len(places) / len(arranged.order))
    return Amount(items, len(places), tokens, arranged.num_tokens(places), scored)


@flags.checked
def open_dry(
    profile: Profile,
    identity: ModelIdentity,
    amount_of: Callable[[TaskBudget | str], Amount | None],
    ledger: Ledger | None = None,
    keeps_prefixes: bool = True,
    needs: Needs | None = None,
    other: Callable[[str, Profile, Ledger], DryStudy] | None = None,
    fits: Callable[[Training], bool] = lambda training: True,
) -> DryStudy:
    """A dry study of a model.

    Args:
        profile: gives texts, tasks and budgets.
        identity: the model, known by its config alone.
        amount_of: see `DryInputs`.
        ledger: the ledger that it counts in; a new one if not given.
        keeps_prefixes: see `DryStudy`.
        needs: records what the model reads.
        other: opens the dry study of another model.
        fits: whether the device's memory suffices for a training.
    """
    return DryStudy(
        profile,
        identity,
        store=cast(Store, None),  # `_known` asks whether there is one
        inputs=DryInputs(profile, identity, amount_of, Needs() if needs is None else needs),
        figures=Path(paths.FIGURES),
        ledger=Ledger() if ledger is None else ledger,
        shape_of=identity.name,
        keeps_prefixes=keeps_prefixes,
        other=other,
        fits=fits,
    )
