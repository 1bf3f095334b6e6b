"""Evaluates many variants of one model, running what they have in common once.

A measurement's sequences run in batches, each on all variants, as a trie of what the variants begin with. Outputs go to
the store as they come, and several processes may share a sweep.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from torch import Tensor, cat
from tqdm import tqdm

from layer_redundancy.core import devices, flags
from layer_redundancy.core import variants as named
from layer_redundancy.core.arguments import listed, shown
from layer_redundancy.core.devices import halved
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import IN_MEMORY, Key, Outputs, Producer, Result, Store, settings_text
from layer_redundancy.core.variants import Element, Variant, describe, name
from layer_redundancy.core.waiting import Wait
from layer_redundancy.evaluate import changes as of_blocks
from layer_redundancy.evaluate import gaps, scoring, sweep_estimate
from layer_redundancy.evaluate.batches import ArrangedSequences, arrange
from layer_redundancy.evaluate.changes import Apply, Prepare
from layer_redundancy.evaluate.prefixes import shared_prefixes
from layer_redundancy.evaluate.ragged_batches import batch_of
from layer_redundancy.evaluate.scoring import Measurement
from layer_redundancy.evaluate.sweep_estimate import Missing
from layer_redundancy.evaluate.trie import depth_first, num_block_runs, trie
from layer_redundancy.models import architectures, rotary, throughput
from layer_redundancy.models import compiled as compiled_blocks
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.compiled import CompiledStack
from layer_redundancy.models.stack import DecoderStack

logger = logging.getLogger(__name__)

KEEP_SECONDS = 5  # how often a batch's outputs go to the store while it runs
_Measured = TypeVar("_Measured", bound=Measurement)

POLL_SECONDS = 0.5  # how often to ask whether another process has finished what it is at


@flags.checked
def key(identity: ModelIdentity, variant: Variant, measurement: Measurement, compiled: bool = False) -> Key:
    """The store's key of one variant's measurement, by blocks as they are or compiled."""
    return Key(
        model=identity.fingerprint,
        variant=name(variant),
        measurement=measurement.name,
        data=measurement.data,
        settings=_settings(measurement, compiled),
        version=measurement.version + _corrections(identity, variant, measurement),
    )


def _settings(measurement: Measurement, compiled: bool) -> str:
    settings = measurement.settings
    return settings_text({**json.loads(settings), "compiled": True}) if compiled else settings


def is_compiled(
    identity: ModelIdentity, measurement: Measurement, store: Store, compiled: bool | None = None
) -> bool | None:
    """Whether a measurement runs on compiled blocks: as asked, or else as it was begun; None where neither says.

    Compiled kernels round otherwise, so that all variants of a model are measured alike: a measurement that the store
    has of some of them, or of some of its sequences, goes on as those were made, whatever runs it.
    """
    if compiled is not None:
        return compiled
    for way in (False, True):
        one = Key(identity.fingerprint, "", measurement.name, measurement.data, _settings(measurement, way))
        if store.has_begun(one):
            return way
    for way in (False, True):
        if store.has_outputs(identity.fingerprint, way, _digests(measurement)):
            return way
    return None


def _digests(measurement: Measurement) -> Iterator[bytes]:
    """Digests of the sequences, which are not made before one is asked for."""
    for sequence in measurement.sequences:
        yield sequence.digest


def distinct(measurements: Iterable[_Measured]) -> list[_Measured]:
    """Measurements as a user lists them, each once.

    Raises:
        StudyError: something is none, or two of one name would measure different things.
    """
    found: dict[str, _Measured] = {}
    for one in listed(measurements, "measurements", "[study.perplexity, *study.tasks]"):
        if not all(hasattr(one, part) for part in ("name", "settings", "result")):
            raise StudyError(f"{shown(one)} cannot be measured: give a list such as [study.perplexity, *study.tasks]")
        other = found.setdefault(one.name, one)
        if other is not one and any(getattr(other, k) != getattr(one, k) for k in ("data", "settings", "version")):
            raise StudyError(
                f"two measurements are called {one.name!r}, and one's results would hide the other's: give one another "
                f"name, such as Perplexity(text, name='{one.name}/other'), or measure them one after the other"
            )
    return list(found.values())


def _corrections(identity: ModelIdentity, variant: Variant, measurement: Measurement) -> int:
    """How often values of this kind were found wrong and put right; older ones are not used again."""
    if identity.config is None:
        return 0
    architecture, corrected = architectures.find(identity.config), 0
    if any(isinstance(element, tuple) for element in variant):
        corrected += architecture.corrected_heads
    if architecture.corrected_prefixes:
        sequences = measurement.sequences
        shared = shared_prefixes([s.input_ids for s in sequences], [s.num_scored for s in sequences])
        corrected += architecture.corrected_prefixes * any(prefix for prefix, _ in shared)
    if rotary.scaled_from(identity.config) is not None:
        corrected += rotary.corrected(identity.config, max(len(s.input_ids) for s in measurement.sequences))
    return corrected


# Nine parameters: what is measured of what, where from, where to, and four settings that most callers leave alone.
@flags.checked
def run(
    identity: ModelIdentity,
    get_stack: Callable[[], DecoderStack],
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    store: Store,
    batch_tokens: int | None = 2048,
    progress: bool = True,
    compiled: bool | None = None,
    changes: Prepare | None = None,
) -> dict[str, dict[Variant, Result]]:
    """Measures every variant, taking what the store has and storing the rest.

    What the store has is known by sequence: eight blocks of text are part of 32, and of whatever else is measured on
    them. Outputs are stored every few seconds, so a run killed at any moment continues about where it was. Several
    processes may sweep one store: each takes batches that no other is at, and what one finishes the others do not run.
    None waits for another that measures other variants.

    Tokens that sequences begin with in common run once a batch, where the model can go on from there; the rest shares
    batches by length. A batch that does not fit in memory is halved; where memory is known to be too little for
    `batch_tokens`, batches are smaller from the start.

    Args:
        identity: the model.
        get_stack: loads it; called only if something is missing in the store.
        variants: what to keep; duplicates are measured once.
        measurements: what to measure on each; duplicates are measured once.
        store: where results are and go.
        batch_tokens: tokens a forward may hold; None for as many as `throughput` finds on this device.
        progress: log the estimate, and draw a progress bar with the time left, in block-tokens.
        compiled: run compiled blocks (`models.compiled`); None for a measurement to go on as it was begun, and else
            where it pays. Results of the two are kept apart.
        changes: makes the changes of variants that have changed blocks; called only if such a variant lacks something.

    Returns:
        measurement name -> variant -> result.

    Raises:
        StudyError: a variant that the model does not have, as `distinct` and `changes`; NaN logits, memory too small
            for a single sequence, a full disk. What was finished is in the store.
    """
    variants, measurements = named.plan(identity.num_hidden_layers, variants), distinct(measurements)
    results, lacking = from_store(identity, variants, measurements, store, compiled)
    if lacking:
        changed = of_blocks.needed((v for one in lacking for v in one.keys), changes)
        store.tell_what_is_not_kept()
        stack = get_stack()
        apply = changes(stack, changed) if changes is not None and changed else None
        shared = sharing(stack.model)
        parts: dict[bool, list[tuple[Lacking, ArrangedSequences]]] = {False: [], True: []}
        for one in lacking:
            arranged, way = arrange(one.measurement.sequences, shared), one.compiled
            if way is None:
                way = compiled_blocks.pays(stack, arranged.num_tokens())
            elif way and compiled is None and not devices.is_gpu(stack.device):
                raise StudyError(
                    f"{one.measurement.name} of {identity.name} was measured with compiled blocks on a GPU, and some "
                    "of it is missing: set compiled = true in the profile to go on like that on this device, or false "
                    "to measure all of it anew"
                )
            parts[way].append((one, arranged))
        for way, part in parts.items():
            if part:
                if way:
                    logger.info("blocks are compiled, which takes some seconds for each kind of them")
                run_by = compiled_blocks.compiled(stack) if way else stack
                for which, of_variants in _run(identity, run_by, part, store, batch_tokens, progress, apply).items():
                    results[which] = {v: (results[which] | of_variants)[v] for v in variants}
    return results


@flags.checked
def from_store(
    identity: ModelIdentity,
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    store: Store,
    compiled: bool | None = None,
) -> tuple[dict[str, dict[Variant, Result]], list["Lacking"]]:
    """What the store has of measurements on variants, and what it lacks; arguments and the first as `run`.

    A result of which all outputs are there is made of them, and stored.
    """
    results: dict[str, dict[Variant, Result]] = {}
    lacking: list[Lacking] = []
    for measurement in measurements:
        way = is_compiled(identity, measurement, store, compiled)
        keys = {v: key(identity, v, measurement, bool(way)) for v in variants}
        found = store.present(keys)
        one = Lacking(measurement, way, {v: keys[v] for v in variants if v not in found})
        found |= one.made(identity, store)
        results[measurement.name] = {v: found[v] for v in variants if v in found}
        if one.keys:
            lacking.append(one)
    return results, lacking


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a measurement's sequences, arranged as in the whole: what one worker of several runs of it.

    Attributes:
        name: the measurement's, for messages.
        arranged: these sequences; their batches are batches of the whole.
    """

    name: str
    arranged: ArrangedSequences


@flags.checked
def run_part(
    identity: ModelIdentity,
    stack: DecoderStack,
    variants: Sequence[Variant],
    part: Part,
    batch_tokens: int,
    compiled: bool = False,
    apply: Apply | None = None,
) -> tuple[dict[Variant, dict[bytes, Outputs]], StudyError | None]:
    """Runs a part of a measurement on variants; nothing is stored.

    A batch that does not fit in memory is halved.

    Args:
        identity: the model.
        stack: the model taken apart.
        variants: what to run, each on all sequences of the part.
        part: the sequences.
        batch_tokens: tokens a forward may hold.
        compiled: run compiled blocks.
        apply: changes blocks; None where no variant has changed ones.

    Returns:
        variant -> digest of a sequence -> its outputs; and what kept the others from being made, such as NaN logits.
    """
    with Store(Path(IN_MEMORY)) as store:
        run_by = compiled_blocks.compiled(stack) if compiled else stack
        shared = _Shared(identity, run_by, store, batch_tokens, apply)
        producers = {v: Producer(identity.fingerprint, name(v), compiled) for v in variants}
        running = _Batches(shared, part.name, part.arranged, producers, {v: {} for v in variants})
        with tqdm(disable=True) as bar:
            try:
                running.run(bar)
            except StudyError as error:
                return running.outputs, error
    return running.outputs, None


@flags.checked
def producer(of: Key, compiled: bool) -> Producer:
    """What makes the outputs that a result of this key is made of."""
    return Producer(of.model, of.variant, compiled, of.version)


@dataclass(frozen=True, eq=False)
class Lacking:
    """A measurement that the store has no result of for some variants.

    Attributes:
        compiled: whether blocks are compiled; None where nothing says.
        keys: those variants, and the store's keys of what they lack.
        outputs: of each of them what there is: digest of a sequence -> its outputs.
    """

    measurement: Measurement
    compiled: bool | None
    keys: dict[Variant, Key]
    outputs: dict[Variant, dict[bytes, Outputs]] = field(default_factory=dict)

    def missing(self, arranged: ArrangedSequences) -> Missing:
        """What is left to run."""
        return _missing(arranged, list(self.keys), self.outputs)

    def made(self, identity: ModelIdentity, store: Store) -> dict[Variant, Result]:
        """The results for which the store has all outputs; they are stored and no longer lacking."""
        if not self.keys or self.compiled is None:  # where nothing says, nothing is there
            return {}
        digests = list(_digests(self.measurement))
        producers = {v: producer(of, self.compiled) for v, of in self.keys.items()}
        stored = store.outputs(producers.values(), digests)
        found = {}
        for v, one in producers.items():
            self.outputs[v] = stored[one]
            if all(digest in self.outputs[v] for digest in digests):
                outputs = self.outputs.pop(v)
                found[v] = self.measurement.result([outputs[digest] for digest in digests])
                store.put(self.keys.pop(v), identity.name, found[v])
        return found


def _run(
    identity: ModelIdentity,
    stack: DecoderStack,
    lacking: Sequence[tuple[Lacking, ArrangedSequences]],
    store: Store,
    batch_tokens: int | None,
    progress: bool,
    apply: Apply | None,
) -> dict[str, dict[Variant, Result]]:
    """Measures what the store lacks, and stores it; arguments and errors as `run`, and `apply` as in `_Shared`."""
    batch_tokens = throughput.batch_tokens(stack, batch_tokens)
    common = _Shared(identity, stack, store, batch_tokens, apply)
    runs = [_MeasurementRun(common, one, arranged) for one, arranged in lacking]
    expected = None
    if progress:
        expected = sweep_estimate.estimate_missing(stack, [one.missing() for one in runs], batch_tokens)
        logger.info(str(expected))
    start, total = time.monotonic(), expected.block_tokens_shared if expected else 0
    found: dict[str, dict[Variant, Result]] = {}
    ran: list[Missing] = []
    with tqdm(total=total, unit="block-token", unit_scale=True, disable=not progress, mininterval=1.0) as bar:
        for one in runs:
            bar.set_description(one.name)
            one.read_store()  # what an earlier one of these sequences has left there
            ran.append(one.missing())
            one.run(bar)
            found[one.name] = one.results()
    amounts = sweep_estimate.amounts(ran)
    del amounts["head_tokens_naive"]
    store.log_sweep(
        notebook=os.environ.get("LAYER_REDUNDANCY_NOTEBOOK", ""),
        model_name=identity.name,
        **amounts,
        seconds_estimated=expected.seconds if expected else None,
        seconds=time.monotonic() - start,
    )
    return found


@dataclass(frozen=True, eq=False)
class _Shared:
    """What the measurements of one sweep share.

    Attributes:
        identity: the model's identity.
        stack: the model taken apart.
        store: where outputs and results go.
        batch_tokens: tokens a forward may hold.
        apply: changes blocks; None where no variant has changed ones.
    """

    identity: ModelIdentity
    stack: DecoderStack
    store: Store
    batch_tokens: int
    apply: Apply | None


@lru_cache(maxsize=16)
def _block_runs(variants: tuple[Variant, ...]) -> int:
    return num_block_runs(trie(variants))


Places = tuple[int, int]  # a batch: the first place in the order of the arranged sequences, and the one after the last


def _missing(
    arranged: ArrangedSequences,
    variants: Sequence[Variant],
    outputs: Mapping[Variant, Container[bytes]],
    places: Places | None = None,
) -> Missing:
    """What is left to run of the variants, of all sequences or of a batch, where there are such outputs."""
    low, high = places or (0, len(arranged.order))
    digests = [arranged.sequences[i].digest for i in arranged.order[low:high]]
    known = {v: gaps.bits(digest in outputs.get(v, ()) for digest in digests) for v in variants}
    parts = gaps.parts(gaps.bits([True] * len(digests)), known)
    return Missing(arranged, [([low + k for k in gaps.places(part)], chosen) for part, chosen in parts])


class _Batches:
    """Batches of sequences on the variants that lack something of them: what they share, and how far they are.

    Args:
        shared: what measurements of a sweep share.
        name: the measurement's, for messages.
        arranged: the sequences.
        producers: the variants, and what makes their outputs.
        outputs: of each variant what there is.

    Attributes:
        variants: these variants.
        outputs: their outputs so far, whichever process made them: variant -> digest of a sequence -> its outputs.
        batch_tokens: tokens a forward may hold, given the memory that the variants' states take.
        bar: progress bar, in block-tokens.
    """

    bar: tqdm

    def __init__(
        self,
        shared: _Shared,
        name: str,
        arranged: ArrangedSequences,
        producers: dict[Variant, Producer],
        outputs: dict[Variant, dict[bytes, Outputs]],
    ):
        self.shared, self.name, self.arranged = shared, name, arranged
        self.variants, self.producers, self.outputs = list(producers), producers, outputs
        self.digests = [arranged.sequences[i].digest for i in arranged.order]
        self.batch_tokens = sweep_estimate.fitting_batch(shared.stack, trie(self.variants), shared.batch_tokens)
        names = sorted(producer.variant for producer in producers.values())
        self._digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]

    def missing(self, places: Places | None = None) -> Missing:
        """What is left to run, of all sequences or of a batch."""
        return _missing(self.arranged, self.variants, self.outputs, places)

    def run(self, bar: tqdm) -> None:
        """Runs every batch, first those that no other process is at.

        Where others are at all that is left, it runs beside them what they do for other variants, and waits for those
        that do it for the same ones.
        """
        store, self.bar, bar_start, done, wait = self.shared.store, bar, bar.n, 0, None
        pending = [places for places in self.arranged.batches(self.batch_tokens) if self.missing(places).parts]
        unread: set[Places] = set()  # batches of which others may have written more than was read
        planned = {places: self._block_tokens(places) for places in pending}
        while pending:
            places = next((p for beside in (False, True) for p in pending if self.claim(p, beside)), None)
            if places is None:
                wait = wait or Wait()
                wait.say(lambda: self._waiting(pending))
                time.sleep(POLL_SECONDS)
                continue
            wait = None
            if store.changed():
                unread.update(pending)
            if places in unread:
                unread.remove(places)
                self.read_store(places)
            at = pending.index(places)
            pending[at : at + 1] = self._run_claimed(places)
            done += planned.get(places, 0)
            bar.update(bar_start + done - bar.n)  # what others have run counts as done
        self.read_store()

    def _block_tokens(self, places: Places) -> int:
        """Block-tokens that a batch lacks."""
        return sum(self.arranged.num_tokens(part) * _block_runs(tuple(v)) for part, v in self.missing(places).parts)

    def read_store(self, places: Places | None = None) -> None:
        """Takes over outputs that the store has by now, from whichever process, of all sequences or of a batch."""
        low, high = places or (0, len(self.digests))
        digests = self.digests[low:high]
        lacking = {self.producers[v]: v for v in self.variants if any(d not in self.outputs[v] for d in digests)}
        for one, outputs in self.shared.store.outputs(lacking, digests).items():
            self.outputs[lacking[one]].update(outputs)

    def claim(self, places: Places, beside: bool = False) -> bool:
        """Claims a batch, or renews the claim; False if another process is at it.

        Args:
            beside: also where another is at it, unless that is for the same variants.
        """
        store, (batch, own) = self.shared.store, self._claim_names(places)
        free = store.claim(batch)
        if (free or beside) and store.claim(own):
            return True
        store.release(batch)
        return False

    def _waiting(self, pending: Sequence[Places]) -> str:
        """For whom the last batches wait."""
        whom = self.shared.store.claimant(self._claim_names(pending[0])[1])
        return f"{self.name}: waiting for {whom}"

    def _claim_names(self, places: Places) -> tuple[str, str]:
        """Names of what a process claims: the batch that begins with this sequence, and the same for its variants."""
        one = self.producers[self.variants[0]]
        batch = [one.model, one.compiled, one.version, self.digests[places[0]].hex()]
        return json.dumps(batch), json.dumps([*batch, self._digest])

    def _run_claimed(self, places: Places) -> list[Places]:
        """Runs a batch on the variants that lack some of its outputs, and releases the claim.

        Returns:
            What is left to run: nothing, or the batch's halves where memory ran out.
        """
        low, high = places
        try:
            for part, variants in self.missing(places).parts:
                _BatchRun(self, places, part, variants).run()
        except (MemoryError, RuntimeError) as e:
            length = len(self.arranged.sequences[self.arranged.order[low]].input_ids)
            middle = low + halved(high - low, e, f"{self.name}: one sequence of {length} tokens")
            return [(low, middle), (middle, high)]
        else:
            return []
        finally:
            for name in self._claim_names(places):
                self.shared.store.release(name)


class _MeasurementRun(_Batches):
    """One measurement on the variants that lack something of it."""

    def __init__(self, shared: _Shared, lacking: Lacking, arranged: ArrangedSequences):
        self.measurement, compiled = lacking.measurement, isinstance(shared.stack, CompiledStack)
        self.keys = {v: key(shared.identity, v, self.measurement, compiled) for v in lacking.keys}
        producers = {v: producer(of, compiled) for v, of in self.keys.items()}
        outputs = {v: lacking.outputs.get(v, {}) for v in self.keys}
        super().__init__(shared, self.measurement.name, arranged, producers, outputs)

    def results(self) -> dict[Variant, Result]:
        """The results of a run, which are stored."""
        found, digests = {}, list(_digests(self.measurement))
        for v, of in self.keys.items():
            found[v] = self.measurement.result([self.outputs[v][digest] for digest in digests])
            self.shared.store.put(of, self.shared.identity.name, found[v])
        return found


class _BatchRun:
    """Some sequences of a batch on the variants that lack them; outputs go to the measurement's and to the store."""

    def __init__(self, measuring: _Batches, places: Places, chosen: Sequence[int], variants: Sequence[Variant]):
        self._measuring, self._places, self._variants = measuring, places, variants
        arranged = measuring.arranged
        sequences = [arranged.sequences[arranged.order[k]] for k in chosen]
        prefixes = [arranged.prefixes[k] for k in chosen]
        self._batch = batch_of(measuring.shared.stack, sequences, prefixes, measuring.batch_tokens)
        self._ran = [measuring.digests[chosen[i]] for i in self._batch.in_order]
        self._targets = scoring.Targets([sequences[i] for i in self._batch.in_order])
        self._head_rows = scoring.head_rows(measuring.shared.stack)
        # Variants whose states wait for the head: it is fast on many rows only.
        self._waiting: list[tuple[Variant, Tensor]] = []
        # Variants that the head was asked for, and what gives their outputs.
        self._asked: list[tuple[list[Variant], Callable[[], list[list[Outputs]]]]] = []
        self._kept = time.monotonic()

    def run(self) -> None:
        """Runs it; what was scored by then goes to the store whatever happens."""
        waiting = self._waiting
        try:
            for variant, states in depth_first(trie(self._variants), self._batch.start, self._run_block):
                waiting.append((variant, self._batch.select(states)))
                if (len(waiting) + 1) * self._targets.num_rows > self._head_rows:
                    self._score()
            self._score()
        finally:
            self._keep()

    def _run_block(self, element: Element, states: tuple[Tensor, ...], shared: dict) -> tuple[Tensor, ...]:
        due = time.monotonic() - self._kept > KEEP_SECONDS
        if due:
            self._score()
        with of_blocks.running(element, self._measuring.shared.apply) as block:
            out = self._batch.run_block(block, states, shared)
        self._measuring.bar.update(self._batch.num_tokens)
        if due:  # only now, so that a GPU has the block to run while the store is written
            self._keep()
            self._measuring.claim(self._places, beside=True)
        return out

    def _score(self) -> None:
        """The head on the states that wait for it."""
        if not self._waiting:
            return
        variants, states = zip(*self._waiting, strict=True)
        self._waiting.clear()
        # A variant's last block may be on another device than the next one's.
        together = cat([x.to(states[0].device) for x in states])
        wait = scoring.score(self._measuring.shared.stack, together, self._targets, len(variants))
        self._asked.append((list(variants), wait))

    def _keep(self) -> None:
        """Outputs that the head was asked for go to the measurement's and to the store.

        Raises:
            StudyError: some are NaN or infinite; the others were kept.
        """
        measuring, fresh, refused = self._measuring, dict[Producer, dict[bytes, Outputs]](), []
        asked, self._asked = self._asked, []
        for variants, wait in asked:
            for variant, of_sequences in zip(variants, wait(), strict=True):
                outputs = dict(zip(self._ran, of_sequences, strict=True))
                if scoring.finite(outputs.values()):
                    measuring.outputs[variant].update(outputs)
                    fresh[measuring.producers[variant]] = outputs
                else:
                    refused.append(variant)
        measuring.shared.store.put_outputs(fresh)
        self._kept = time.monotonic()
        if refused:
            what = f"{measuring.name}, {describe(len(measuring.shared.stack), refused[0])}"
            raise StudyError(f"{what}: logits are NaN or infinite; use dtype float32 or check the weights")
