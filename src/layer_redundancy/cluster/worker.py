"""What runs on a worker: the driver's orders, on studies that keep the model loaded from one order to the next."""

import contextlib
import io
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from layer_redundancy.cluster import code
from layer_redundancy.cluster.tasks import TOKENS, Answer, Lacks, Order, OtherModel, Place, TextPlace
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import cache, devices, flags, log, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import IN_MEMORY, Store, packed
from layer_redundancy.core.variants import Variant, name
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import changes as of_blocks
from layer_redundancy.evaluate import sweep, sweep_estimate
from layer_redundancy.evaluate.changes import Changes
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.evaluate.sweep import Part
from layer_redundancy.inputs import Inputs
from layer_redundancy.methods.making import Making
from layer_redundancy.models import checkpoints, throughput
from layer_redundancy.models import compiled as compiled_blocks
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.checks import Sharing, sharing
from layer_redundancy.models.stack import DecoderStack
from layer_redundancy.study import Study
from layer_redundancy.train.healing import Healing

MADE = ("quantized-", "pruned-", "trained-", "made-", "healed-")  # checkpoints, and what was trained, in the cache

_one_at_a_time = threading.Lock()  # a model in memory serves one order


@dataclass(frozen=True)
class Spec:
    """A study as it is sent.

    Attributes:
        profile, healing, making, calibration_blocks, calibration_text: as in `Study`.
        identity: the model, without its config.
        place: where its weights are, or those of the model that it is made of in memory.
        of: fingerprint of these weights.
        trained: where what was trained from them is, once the driver has it.
        text: the text that `healing` trains on, in whose place there is none; None where it is short and there.
    """

    profile: Profile
    identity: ModelIdentity
    place: Place
    of: str
    healing: Healing | None
    making: Making | None
    calibration_blocks: int | None
    calibration_text: TokenBlocks | None
    trained: Place | None = None
    text: TextPlace | None = None

    @property
    def key(self) -> tuple:
        """What tells studies apart on a worker."""
        text = None if self.calibration_text is None else self.calibration_text.fingerprint
        return self.identity.fingerprint, repr(self.profile), self.calibration_blocks, text


@dataclass(frozen=True, eq=False)
class WorkerStudy(Study):
    """A study on a worker. Those of one model share it in memory."""

    @property
    def stack(self) -> DecoderStack:
        for other in self._alike():
            if "stack" in vars(other):
                vars(self)["stack"] = vars(other)["stack"]
        return super().stack

    def _alike(self) -> list["WorkerStudy"]:
        return [one for one in _here.studies.values() if one.identity.fingerprint == self.identity.fingerprint]

    def unload(self) -> None:
        for other in self._alike():
            vars(other).pop("stack", None)
        super().unload()


class _Here:
    """What this process keeps from one order to the next.

    Attributes:
        studies: by `Spec.key`.
        inputs: texts and tasks, by profile and model.
        models: models found on this machine, by fingerprint of their weights.
        store: of the order that is run.
        asked: fingerprints of the models that this order has asked for.
    """

    def __init__(self) -> None:
        self.studies: dict[tuple, WorkerStudy] = {}
        self.inputs: dict[tuple, Inputs] = {}
        self.models: dict[tuple[str, str], ModelIdentity] = {}
        self.store: Store
        self.asked: set[str] = set()


_here = _Here()


def opened(spec: Spec) -> WorkerStudy:
    """The worker's study of what is sent.

    Raises:
        Lacks: its folder has to be sent first.
        OtherModel: this machine has another model of that name.
        StudyError: the model cannot be had here.
    """
    _here.asked.add(spec.identity.fingerprint)
    if spec.key not in _here.studies:
        base = _found(spec)
        made = spec.healing or spec.making
        identity = base if made is None else replace(base, **_made(spec.identity))
        inputs_key = repr(spec.profile), base.fingerprint
        if inputs_key not in _here.inputs:
            _here.inputs[inputs_key] = Inputs(spec.profile, base)
        _here.studies[spec.key] = WorkerStudy(
            spec.profile,
            replace(identity, name=spec.identity.name),
            _here.store,
            _here.inputs[inputs_key],
            paths.FIGURES,
            healing=spec.healing and replace(spec.healing, identity=base, text=_text(spec)),
            making=spec.making and replace(spec.making, identity=base),
            calibration_blocks=spec.calibration_blocks,
            calibration_text=spec.calibration_text,
        )
    study = _here.studies[spec.key]
    object.__setattr__(study, "store", _here.store)
    return study


class RememberedText(TokenBlocks):
    """A text of which nothing but the fingerprint is there: nothing can be trained on it."""

    known: str

    @property
    def fingerprint(self) -> str:
        return self.known


def _text(spec: Spec) -> TokenBlocks:
    """The text that a study's model is trained on, or was."""
    assert spec.healing is not None, "only what is healed has one"
    if (text := spec.text) is None:
        return spec.healing.text
    if spec.trained is not None:
        found = RememberedText(torch.zeros(0, 1, dtype=torch.long), text.corpus, text.split, text.bos)
        object.__setattr__(found, "known", text.fingerprint)
        return found
    file = paths.CACHE / text.place.name / TOKENS
    if not file.is_file():
        raise Lacks(text.place.folder, text.place.name)
    return TokenBlocks(torch.from_numpy(np.load(file).astype(np.int64)), text.corpus, text.split, text.bos)


def _made(identity: ModelIdentity) -> dict[str, Any]:
    """What of a model's identity is another than that of the model it is made of."""
    return {one: getattr(identity, one) for one in ("name", "fingerprint", "num_hidden_layers")}


def _found(spec: Spec) -> ModelIdentity:
    """The model whose weights are read, as this machine has it."""
    known = spec.of, spec.profile.dtype
    if known not in _here.models:
        place, profile = spec.place, spec.profile
        if place.model:
            one = checkpoints.identify(replace(profile, model=place.model, revision=place.revision))
            if one.fingerprint != spec.of:
                raise OtherModel(
                    f"model {place.model} is {one.revision} ({one.fingerprint[:8]}) there and "
                    f"{spec.identity.revision} ({spec.of[:8]}) here"
                )
            _here.models[known] = one
        else:
            for folder in place.candidates(paths.CACHE):
                one = checkpoints.identify(replace(profile, model=folder, revision=None))
                if one.fingerprint == spec.of:
                    _here.models[known] = one
                    break
            else:
                raise Lacks(place.folder, place.name)
    if spec.trained is not None and not (paths.CACHE / spec.trained.name).is_dir():
        raise Lacks(spec.trained.folder, spec.trained.name)
    return _here.models[known]


def run(order: bytes) -> Answer:
    """Runs an order.

    Raises:
        Exception: a fault of the program; what a user can mend is in the answer.
    """
    address, started = _address(), time.perf_counter()
    theirs, content = pickle.loads(order)
    if difference := code.difference(code.here(), theirs):
        return Answer(address, refused=difference)
    with _one_at_a_time, Store(Path(IN_MEMORY)) as store, _quiet() as remarks:
        _here.store, _here.asked = store, set()
        cache.made_here.clear()
        try:
            todo: Order = cloudpickle.loads(content)
        except Lacks as lacks:
            return Answer(address, lacks=lacks)
        except OtherModel as other:
            return Answer(address, refused=str(other))
        except StudyError as error:
            return Answer(address, error=_named(error, address))
        _let_go()
        os.environ["LAYER_REDUNDANCY_NOTEBOOK"] = todo.notebook
        devices.use_threads(todo.threads)
        for key, model, result in todo.given:
            store.put(key, model, result)
        value, failed = None, None
        try:
            value = todo.act()
        except StudyError as error:
            failed = error
        made = [one.name for one in cache.made_here if one.name.startswith(MADE)]
        return Answer(
            address,
            value=value,
            stored=store.contents(),
            error=failed,
            made=list(dict.fromkeys(made)),
            remarks=remarks,
            seconds=time.perf_counter() - started,
        )


def _named(error: StudyError, address: str) -> StudyError:
    return type(error)(f"worker {address}: {error}")


def _address() -> str:
    """This worker, as the scheduler knows it."""
    from distributed import get_worker

    try:
        return get_worker().address
    except ValueError:  # no worker at all: a test
        return "here"


def _let_go() -> None:
    """Frees the models in memory that the order at hand did not ask for."""
    for key, study in list(_here.studies.items()):
        if study.identity.fingerprint not in _here.asked:
            study.unload()
            del _here.studies[key]


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Nothing is drawn: the driver has one progress bar for all. Yields the warnings, which the driver says."""
    remarks: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            remarks.append(record.getMessage())

    logger, handler = logging.getLogger(log.PACKAGE), Keep(logging.WARNING)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield remarks
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)


# ------------------------------------------------------------------------------------------------ what is asked


@dataclass(frozen=True)
class Kind:
    """What a sweep has to know of a model before it is cut.

    Attributes:
        sharing: what its sequences may share.
        batch_tokens: tokens a forward may hold.
        compiled_from: tokens of a measurement from which its blocks are worth compiling; None for never.
        load_seconds: what it took to have the model in memory.
    """

    sharing: Sharing
    batch_tokens: int
    compiled_from: float | None
    load_seconds: float


def kind(study: Study) -> Kind:
    """Finds out what a sweep of a study's model has to know."""
    start = time.perf_counter()
    stack = study.stack
    seconds = time.perf_counter() - start
    return Kind(
        sharing(stack.model),
        throughput.batch_tokens(stack, study.profile.batch_tokens),
        compiled_blocks.pays_from(stack),
        seconds,
    )


def rates(
    study: Study, samples: Sequence[tuple[Sequence[ScoredSequence], bool]], batch_tokens: int
) -> list[tuple[float, float]]:
    """Block-tokens and head-tokens a second of some sequences of each measurement, by compiled blocks or by others."""
    found = []
    for sequences, compiled in samples:
        stack = compiled_blocks.compiled(study.stack) if compiled else study.stack
        found.append(sweep_estimate.rates(stack, sequences, batch_tokens))
    return found


@flags.checked
def run_piece(
    study: Study,
    part: Part,
    variants: Sequence[Variant],
    batch_tokens: int,
    compiled: bool,
    changes: Changes | None,
) -> tuple[dict[str, dict[bytes, bytes]], StudyError | None]:
    """A piece of a sweep: name of a variant -> digest of a sequence -> outputs as the store has them, and what kept
    the others from being made; arguments as `sweep.run_part`."""
    changed = of_blocks.needed(variants, changes)
    apply = None if changes is None or not changed else changes(study.stack, changed)
    found, error = sweep.run_part(study.identity, study.stack, variants, part, batch_tokens, compiled, apply)
    return {name(variant): packed(outputs) for variant, outputs in found.items()}, error
