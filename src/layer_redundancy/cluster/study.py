"""A study whose work is done by a cluster's workers; what they find goes to the driver's store.

The third interpreter of what experiments ask for, beside `Study`, which does the work itself, and `planning.dry`, which
counts it.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from layer_redundancy.cluster import worker
from layer_redundancy.cluster.pool import PIECE, Pool, Task, key_of
from layer_redundancy.cluster.tasks import TOKENS, Order, Place, TextPlace
from layer_redundancy.cluster.worker import Kind, Spec
from layer_redundancy.config.profiles import EMBEDDED, TaskBudget
from layer_redundancy.core import cache, flags, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Key, Result, Store
from layer_redundancy.core.variants import Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import cutting, generate, sweep
from layer_redundancy.evaluate.amounts import Work
from layer_redundancy.evaluate.batches import ArrangedSequences, arrange
from layer_redundancy.evaluate.changes import Changes
from layer_redundancy.evaluate.cutting import Piece
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import ChoiceTask, Passages, Perplexity, WrittenAnswers
from layer_redundancy.evaluate.sweep import Lacking, Part
from layer_redundancy.evaluate.trie import num_block_runs, trie
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

LONG_TEXT = 2**18  # tokens of a text beyond which it goes to each machine once, and not with every order
SAMPLE = 64  # sequences of a measurement that are timed
LOADS = 3  # a piece takes at least so many times what loading the model takes
OF_CHANGES = 3  # a piece with changed blocks is so many times as long, since each makes them ready for itself


class NotStored(StudyError):
    """The store lacks something, and no worker has been asked for it yet."""


@dataclass(frozen=True)
class Cutting:
    """How sweeps are cut.

    Attributes:
        seconds: how long a piece should take.
        rates: block-tokens and head-tokens a second of a worker; None to have them timed on one. With rates that are
            given the cut is the same whatever the workers, and so are the numbers, to the last bit.
        workers: for how many it is cut; None for those that are there.
    """

    seconds: float = PIECE
    rates: tuple[float, float] | None = None
    workers: int | None = None


@dataclass(frozen=True, eq=False)
class Sent(Study):
    """A study whose work is sent to workers, where it becomes a study of theirs.

    Attributes:
        pool: hands out the work.
        notebook: the notebook that asks.
        cutting: how sweeps are cut.
        threads: threads of the processor of each worker; None for as many as it has.
    """

    pool: Pool = field(default=None)  # type: ignore[assignment]  # given by `on`
    notebook: str = ""
    cutting: Cutting = field(default_factory=Cutting)
    threads: int | None = None

    @classmethod
    def on(cls, study: Study, pool: Pool, **settings: Any) -> Self:
        """The same study on a cluster; settings are this class's further attributes."""
        own = {one.name: getattr(study, one.name) for one in fields(Study)}
        return cls(**own, pool=pool, **settings)

    def __reduce__(self) -> tuple[Callable[[Spec], Study], tuple[Spec]]:
        """A worker's own study of the same model is what it becomes there."""
        return worker.opened, (self._spec(),)

    @property
    def _on_disk(self) -> ModelIdentity:
        """The model whose weights are read: this one, or that which it is made of in memory."""
        return next((one.identity for one in (self.healing, self.making) if one is not None), self.identity)

    def _spec(self) -> Spec:
        base, trained = self._on_disk, None
        if self.healing is not None and self.healing.recipe.method != "nf4":
            folder = cache.made_folder("healed", self.healing.settings)
            trained = Place(folder=str(folder), name=folder.name) if folder.is_dir() else None
        bare = partial(replace, config=None)
        healing, text = self.healing, None
        if healing is not None and healing.text.num_tokens > LONG_TEXT:
            text = _placed(healing.text)
            healing = replace(healing, text=replace(healing.text, input_ids=healing.text.input_ids[:0]))
        return Spec(
            self.profile,
            bare(self.identity),
            self._place(base),
            base.fingerprint,
            healing and replace(healing, identity=bare(healing.identity)),
            self.making and replace(self.making, identity=bare(self.making.identity)),
            self.calibration_blocks,
            self.calibration_text,
            trained,
            text,
        )

    def _place(self, base: ModelIdentity) -> Place:
        """Where a worker finds the weights."""
        if base.name in EMBEDDED:
            return Place(model=base.name)
        folder = Path(base.source)
        if not folder.is_dir():
            return Place(model=base.source, revision=base.hub_revision)
        of_cache = folder.parent == paths.CACHE
        return Place(folder=str(folder), name=folder.name if of_cache else f"received-{base.fingerprint[:16]}")

    def _task(self, what: str, key: Sequence[Any], act: Callable[[], Any], **more: Any) -> Task:
        """A task of this study; `given` and the fields of `Task`."""
        order = Order(act, more.pop("given", ()), self.notebook, self.threads or self.profile.threads)
        rank = self.pool.rank(self.identity.fingerprint)
        title = f"{self.notebook}: {what}" if self.notebook else what
        return Task(title, key_of(*key), order.packed(), rank=rank, **more)

    def _seconds(self, block_tokens: float) -> float:
        """How long so many block-tokens take, by what is known of the model that this one is made of."""
        rate = self._rate()
        return block_tokens / rate if rate else 0.0

    def _rate(self) -> float | None:
        """Block-tokens a second, if such a model was timed; one that is made of another is about as fast as that."""
        known = self.pool.kinds
        return known.get(("rate", self._base())) or known.get(("rate", self._base(of_method=False)))

    @flags.checked
    def _base(self, of_method: bool = True) -> str:
        """What models have in common that may share as much, and run as fast."""
        made = self.making.method if self.making is not None and of_method else ""
        return f"{self._on_disk.fingerprint} {made}"

    def _result_task(
        self, key: Key, compute: Callable[[], Result], work: Callable[[], Sequence[Work]] = lambda: ()
    ) -> Task:
        """To compute a result; arguments as `Study.cached`."""
        tokens = sum(one.block_tokens for one in work())
        return self._task(
            f"{key.measurement} of {self.identity.name}",
            ["result", *key.values()],
            partial(_computed, self, key, compute, work),
            seconds=self._seconds(tokens),
            block_tokens=tokens,
            claims=[json.dumps(key.values())],
            there=lambda store: store.get(key) is not None,
        )

    def _folder_task(self, target: Path, ask: Callable[[], Study], work: Sequence[Work]) -> Task:
        """To make a checkpoint; arguments as `Study._folder`, and the folder in the cache."""
        tokens = sum(one.block_tokens for one in work)
        return self._task(
            f"checkpoint {target.name}",
            ["folder", target.name],
            partial(_nothing_of, ask),
            seconds=max(self._seconds(tokens), PIECE),
            block_tokens=tokens,
            claims=[f"folder {target.name}"],
            there=lambda store: target.is_dir(),
        )


@dataclass(frozen=True, eq=False)
class DistributedStudy(Sent):
    """A study on a cluster."""

    @property
    def stack(self) -> DecoderStack:
        """Nothing is loaded here.

        Raises:
            NotStored: always: the model is a worker's.
        """
        raise NotStored(f"something of {self.identity.name} was asked for that is for a worker to measure")

    def unload(self) -> None:
        """Nothing is loaded here."""

    @property
    def _draws(self) -> bool:
        """The pool has one bar for all."""
        return False

    def _folder(self, make: Callable[[], Path], ask: Callable[[], Study], *work: Work) -> Path:
        for _ in range(2):
            try:
                with cache.only_read():
                    return make()
            except cache.NotMade as missing:
                target = missing.target
            self.pool.run([self._folder_task(target, ask, work)])
        raise StudyError(f"checkpoint {target.name} was made on a worker and cannot be had from there")

    def cached(
        self,
        key: Key,
        compute: Callable[[], Result],
        zeros: Callable[[], Result],
        work: Callable[[], Sequence[Work]] = lambda: (),
    ) -> Result:
        if (found := self.store.get(key)) is None:
            self.pool.run([self._result_task(key, compute, work)])
            found = self.store.get(key)
        assert found is not None, f"{key.measurement} was computed and is not stored"
        return found

    @flags.checked
    def sweep(
        self,
        chosen: Sequence[Variant],
        measurements: Sequence[Perplexity | Passages | ChoiceTask | WrittenAnswers] | None = None,
        progress: bool = True,
        changes: Changes | None = None,
    ) -> dict[str, dict[Variant, Result]]:
        measured: Sequence[Any] = [self.perplexity, *self.tasks] if measurements is None else measurements
        asked, distinct = variants.plan(self.num_blocks, chosen), sweep.distinct(measured)
        left = None
        while True:
            _, lacking = sweep.from_store(self.identity, asked, distinct, self.store, self.profile.compiled)
            if not lacking:
                return super().sweep(chosen, measurements, progress=progress, changes=changes)
            if self._finds_out(lacking):
                continue  # other experiments have computed meanwhile
            before, left = left, sum(map(self._left, lacking))
            assert before is None or left < before, f"workers leave {left} outputs of {self.identity.name} unmade"
            others = self._under_way(lacking)
            own = self._tasks(lacking, changes)
            # Own ones first: what they raise is told at once, and not after what other experiments wait for.
            self.pool.run(own)
            for task in others:
                self.pool.wait(task)

    def _under_way(self, lacking: Sequence[Lacking]) -> list[Task]:
        """Tasks of other experiments that make something of it; that is then no longer lacking."""
        found: dict[int, Task] = {}
        for one in lacking:
            every = {sequence.digest for sequence in one.measurement.sequences}
            for variant in one.keys:
                outputs = one.outputs.setdefault(variant, {})
                for task in self.pool.at_work(self.identity.fingerprint, variants.name(variant)):
                    if common := every & task.sequences:
                        found[id(task)] = task
                        outputs |= {digest: [] for digest in common - outputs.keys()}
        return list(found.values())

    def _finds_out(self, lacking: Sequence[Lacking]) -> bool:
        """Whether something had to be asked of a worker before a sweep can be cut, and was."""
        if self._is_small(lacking):
            return False
        kinds = self.pool.kinds
        if (known := self._of_kind()) not in kinds:
            task = self._task(f"a look at {self.identity.name}", known, partial(worker.kind, self))
            self.pool.run([task])
            kinds[known] = task.value
            return True
        if self.cutting.rates is not None:
            return False
        new = {known: one for one in lacking if (known := self._of_rate(one, self._arranged(one))) not in kinds}
        if new:
            samples = []
            for one in new.values():
                of = self._arranged(one)
                samples.append(([of.sequences[i] for i in of.order[:SAMPLE]], self._way(one, of)))
            act = partial(worker.rates, self, samples, self._kind().batch_tokens)
            task = self._task(f"rates of {self.identity.name}", ["rates", *new], act)
            self.pool.run([task])
            kinds.update(zip(new, task.value, strict=True))
            kinds.setdefault(("rate", self._base()), task.value[0][0])
        return bool(new)

    def _of_kind(self) -> tuple:
        return "kind", self._base(), self.num_blocks, self.profile.batch_tokens

    def _kind(self) -> Kind:
        """What has to be known of the model before its sweep is cut."""
        return self.pool.kinds[self._of_kind()]

    def _arranged(self, one: Lacking) -> ArrangedSequences:
        kinds, sharing = self.pool.kinds, self._kind().sharing
        known = "arranged", id(one.measurement), sharing
        if known not in kinds:  # with the measurement, so that nothing else gets its number
            kinds[known] = one.measurement, arrange(one.measurement.sequences, sharing)
        return kinds[known][1]

    def _of_rate(self, one: Lacking, of: ArrangedSequences) -> tuple:
        return "rates", self._base(), one.measurement.name, self._way(one, of)

    def _tasks(self, lacking: Sequence[Lacking], changes: Changes | None) -> list[Task]:
        """What is to be done of a sweep: pieces, or all of it where that is a small one."""
        if self._is_small(lacking):
            return [self._whole(one, changes) for one in lacking if self._left(one)]
        kind, tasks = self._kind(), list[Task]()
        seconds = max(self.cutting.seconds, LOADS * kind.load_seconds) * (OF_CHANGES if changes else 1)
        # Several measurements share the workers: cut for all of them each, they would lose more sharing than need be.
        workers = math.ceil((self.cutting.workers or max(1, len(self.pool.alive()))) / len(lacking))
        for one in lacking:
            of = self._arranged(one)
            missing, rates = one.missing(of), self.cutting.rates or self.pool.kinds[self._of_rate(one, of)]
            pieces = cutting.cut(missing, rates, kind.batch_tokens, seconds, workers)
            tasks += [self._piece(one, of, piece, changes) for piece in pieces]
            if len(pieces) > 1:
                logger.info(
                    f"{self.notebook or self.identity.name}: {one.measurement.name} of {len(one.keys)} variants in "
                    f"{len(pieces)} pieces, {cutting.lost(pieces, missing):.1%} of it run twice"
                )
        return sorted(tasks)

    def _left(self, one: Lacking) -> int:
        """Outputs that are neither there nor under way."""
        every = {sequence.digest for sequence in one.measurement.sequences}
        return sum(len(every - one.outputs.get(v, {}).keys()) for v in one.keys)

    def _is_small(self, lacking: Sequence[Lacking]) -> bool:
        """Whether it is not worth cutting, by what is known of how fast the model is."""
        rate = self._rate()
        if rate is None or self.cutting.rates is not None:
            return False
        return sum(map(_block_tokens, lacking)) / rate < self.cutting.seconds / 2

    def _whole(self, one: Lacking, changes: Changes | None) -> Task:
        """A measurement on the variants that lack something of it, in one go."""
        tokens, chosen = _block_tokens(one), list(one.keys)
        what = ["sweep", *(key.values() for key in one.keys.values())]
        return self._task(
            f"{one.measurement.name} of {self.identity.name}",
            what,
            partial(_swept, self, chosen, one.measurement, changes),
            seconds=self._seconds(tokens),
            block_tokens=tokens,
            claims=[key_of(*what)],
            there=lambda store: all(store.get(key) is not None for key in one.keys.values()),
            makes=[(self.identity.fingerprint, variants.name(v)) for v in chosen],
            sequences=frozenset(s.digest for s in one.measurement.sequences),
        )

    def _way(self, one: Lacking, of: ArrangedSequences) -> bool:
        """Whether a measurement runs compiled blocks."""
        if one.compiled is not None:
            return one.compiled
        least = self._kind().compiled_from
        return least is not None and of.num_tokens() >= least

    def _piece(self, one: Lacking, of: ArrangedSequences, piece: Piece, changes: Changes | None) -> Task:
        way, kind = self._way(one, of), self._kind()
        part = Part(
            one.measurement.name,
            ArrangedSequences(
                sequences=[of.sequences[of.order[k]] for k in piece.places],
                order=tuple(range(len(piece.places))),
                prefixes=tuple(of.prefixes[k] for k in piece.places),
                groups=tuple(of.groups[k] for k in piece.places),
                alike_up_to=of.alike_up_to,
            ),
        )
        digests = [s.digest for s in part.arranged.sequences]
        producers = {
            variants.name(v): sweep.producer(sweep.key(self.identity, v, one.measurement, way), way)
            for v in piece.variants
        }
        names, model = sorted(producers), self.identity.fingerprint
        chosen = key_of(*names)
        of_changes = None if changes is None or not variants.changes_of(piece.variants) else changes
        first, last = digests[0].hex(), digests[-1].hex()
        return self._task(
            f"{one.measurement.name} of {self.identity.name}",
            ["piece", model, way, chosen, *(digest.hex() for digest in digests)],
            partial(worker.run_piece, self, part, piece.variants, kind.batch_tokens, way, of_changes),
            seconds=piece.seconds,
            block_tokens=piece.block_tokens,
            producers=producers,
            claims=[json.dumps([model, way, chosen, first, last])],
            there=partial(_has_outputs, list(producers.values()), digests),
            makes=[(model, name) for name in names],
            sequences=frozenset(digests),
        )

    def continuations(self, chosen: Sequence[Variant], lengths: PromptLengths) -> dict[Variant, Result]:
        def read(variant: Variant) -> None:
            Study.continuations(self, [variant], lengths)

        def ask(some: Sequence[Variant], **given: Any) -> None:
            self._each(
                some, read, lambda v: partial(_written, self, v, lengths), "continuations", str(lengths),
                lambda v: self._continuation_work(v, lengths), **given,
            )  # fmt: skip

        ask([self.dense])
        dense = super().continuations([self.dense], lengths)[self.dense]
        key = generate.key_of(self.identity, self.dense, self.prompts(lengths), lengths, {})
        others = [v for v in variants.plan(self.num_blocks, chosen) if v != self.dense]
        ask(others, given=[(key, self.identity.name, dense)])
        return super().continuations(chosen, lengths)

    @flags.checked
    def generative_task(
        self, budget: TaskBudget, chosen: Sequence[Variant], run_generated_code: bool = False
    ) -> dict[Variant, Result]:
        def read(variant: Variant) -> None:
            Study.generative_task(self, budget, [variant], run_generated_code=run_generated_code)

        self._each(
            variants.plan(self.num_blocks, chosen),
            read,
            lambda v: partial(_answered, self, budget, v, run_generated_code),
            f"generative/{budget.name}",
            str(budget),
            lambda v: (),
        )
        return super().generative_task(budget, chosen, run_generated_code=run_generated_code)

    def _each(
        self,
        chosen: Sequence[Variant],
        read: Callable[[Variant], None],
        act: Callable[[Variant], Callable[[], Any]],
        what: str,
        settings: str,
        work: Callable[[Variant], Sequence[Work]],
        given: Sequence[tuple[Key, str, Result]] = (),
    ) -> None:
        """Has something done for each variant that the store lacks.

        Args:
            chosen: the variants.
            read: reads it from the store; raises NotStored where it lacks it.
            act: what a worker does for a variant.
            what, settings: name it.
            work: what it takes.
            given: results that a worker needs beside.
        """
        tasks = []
        for variant in chosen:
            with suppress(NotStored):
                read(variant)
                continue
            tokens = sum(one.block_tokens for one in work(variant))
            key = [what, self.identity.fingerprint, variants.name(variant), settings, repr(self.profile.text)]
            task = self._task(
                f"{what} of {self.identity.name}",
                key,
                act(variant),
                given=given,
                seconds=self._seconds(tokens),
                block_tokens=tokens,
                claims=[json.dumps(key)],
            )
            tasks.append(task)
        self.pool.run(tasks)


def _placed(text: TokenBlocks) -> TextPlace:
    """A text in a folder of the cache, which is sent to machines that lack it."""

    def write(target: Path) -> None:
        target.mkdir()
        np.save(target / TOKENS, text.input_ids.numpy().astype(np.int32))

    folder = cache.made_once("text", {"tokens": text.fingerprint}, write)
    place = Place(folder=str(folder), name=folder.name)
    return TextPlace(text.fingerprint, text.corpus, text.split, text.bos, place)


def _block_tokens(one: Lacking) -> int:
    """Block-tokens of all of a measurement on the variants that lack something of it, prompts unshared."""
    tokens = sum(len(s.input_ids) for s in one.measurement.sequences)
    return tokens * num_block_runs(trie(list(one.keys)))


def _has_outputs(producers: Sequence[Any], digests: Sequence[bytes], store: Store) -> bool:
    return all(len(of) == len(set(digests)) for of in store.outputs(producers, digests).values())


# ------------------------------------------------------------------------------------------------ what workers do


def _nothing_of(ask: Callable[[], Study]) -> None:
    ask()


def _computed(study: Study, key: Key, compute: Callable[[], Result], work: Callable[[], Sequence[Work]]) -> None:
    study.cached(key, compute, compute, work)


def _swept(study: Study, chosen: Sequence[Variant], measurement: Any, changes: Changes | None) -> None:
    study.sweep(chosen, [measurement], progress=False, changes=changes)


def _written(study: Study, variant: Variant, lengths: PromptLengths) -> None:
    study.continuations([variant], lengths)


def _answered(study: Study, budget: TaskBudget, variant: Variant, run_generated_code: bool) -> None:
    study.generative_task(budget, [variant], run_generated_code=run_generated_code)
