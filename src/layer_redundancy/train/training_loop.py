"""Training some of a model's weights, by transformers' Trainer: checkpoints, an ETA, less at once when memory runs out.

What is trained is what requires a gradient, and only that is written to checkpoints. The same examples come in the
same order whatever batch fits, so a training that was killed goes on from its last checkpoint as if it had not been.
"""

import gc
import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from layer_redundancy.core import devices, paths, processes
from layer_redundancy.core.errors import StudyError

logger = logging.getLogger(__name__)

WEIGHTS, STATE, OPTIMIZER = "trained.safetensors", "trainer_state.json", "optimizer.pt"  # the last two are Trainer's
POLYNOMIAL_END = 1e-7  # transformers' last learning rate of that schedule
TRAINER = "process.txt"  # in a training's folder: who is at it

Example = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
Collate = Callable[[list[Any]], Mapping[str, Tensor]]
Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Optimization:
    """How weights are trained: AdamW, gradients clipped at a norm of 1.

    Attributes:
        steps: optimizer steps.
        batch: examples a step.
        learning_rate: peak learning rate.
        warmup: steps in which the learning rate rises to its peak.
        schedule: schedule by which it falls, as transformers names it: "cosine", "linear", "constant_with_warmup".
        weight_decay: weight decay of matrices.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """What a training took.

    Attributes:
        log: a row a step (from 1): step, loss (mean over the step's examples), learning_rate; and a row with step and
            validation wherever that was measured (step 0 is before the first).
        seconds: time of all steps, without validation and checkpoints.
        peak_bytes: peak memory: the allocator's peak on a GPU; elsewhere weights, gradients, the optimizer's states and
            what a forward keeps for its backward, counted tensor by tensor.
        trainable: number of weights that were trained: all that a gradient reached.
    """

    log: list[dict[str, float]]
    seconds: float
    peak_bytes: int
    trainable: int

    def curve(self, what: str = "loss") -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of "loss" or "validation", both (N,)."""
        rows = [row for row in self.log if what in row]
        return np.array([row["step"] for row in rows]), np.array([row[what] for row in rows])


@contextmanager
def workplace(settings: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a training's checkpoints: kept when the training does not get to its end, removed when it does.

    One process at a time works there; another one waits, and should then ask whether there is anything left to do.

    Args:
        settings: everything that decides what is trained; JSON.

    Raises:
        StudyError: the cache cannot be written.
    """
    folder = _workplace(settings)
    lock = FileLock(f"{folder}.lock")
    try:
        paths.CACHE.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"{_trainer(folder)} trains this already: waiting for it to finish")
            lock.acquire()
        folder.mkdir(exist_ok=True)
        (folder / TRAINER).write_text(processes.this(), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write to {paths.CACHE} ({error.strerror or error})") from error
    try:
        yield folder
        discard(settings)
    finally:
        lock.release()


def _trainer(folder: Path) -> str:
    """The process that trains in a folder, in a message."""
    try:
        return processes.shown((folder / TRAINER).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return "another process"


def discard(settings: Mapping[str, Any]) -> None:
    """Removes a training's checkpoints, also those of one that was killed after its end, when all was there."""
    folder = _workplace(settings)
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            Path(f"{folder}.lock").unlink()


def _workplace(settings: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return paths.CACHE / f"training-{digest}"


# Most parameters have defaults that suit a causal language model; each is a choice that some caller makes.
def fit(
    model: nn.Module,
    examples: Sequence[Example],
    optimization: Optimization,
    folder: Path,
    *,
    seed: int = 0,
    loss: Loss | None = None,
    collate: Collate | None = None,
    validate: Validate | None = None,
    validate_every: int = 0,
    converged: float = 0.0,
    label: str = "training",
) -> Fitted:
    """Trains what requires a gradient, in place, or goes on where `folder`'s last checkpoint is.

    Trained weights are float32 meanwhile and have their own dtype again afterwards; a model with weights of 16 bits
    computes in bfloat16.

    Args:
        model: model with `requires_grad` set on what is trained; left in evaluation mode, nothing requiring a gradient.
        examples: examples, drawn without replacement, again and again, in an order that `seed` decides.
        optimization: how the weights are trained.
        folder: folder of checkpoints, from `workplace`; one is written a minute.
        seed: seed of the order and of dropout.
        loss: (model, batch) -> mean over the batch's examples, a scalar; the causal loss of `input_ids` (B, T), in nats
            a token, if not given.
        collate: examples -> batch; stacks tensors if not given.
        validate: model -> a number to watch, such as a held-out loss; called in evaluation mode.
        validate_every: steps between validations, also before the first step and after the last; 0 for never.
        converged: training ends with the first pass over all examples whose mean loss is below this, if not before;
            0 for never. The schedule is still that of all steps.
        label: label of the progress bar.

    Raises:
        StudyError: nothing to train or to train on, a loss that is not finite, memory for not even one example, a disk
            that is full; a model whose own forward or backward fails in training.
    """
    from layer_redundancy.train import trainer as training  # the Trainer's imports take seconds: only when it trains

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise StudyError(f"{label}: no weight is to be trained")
    if optimization.schedule == "polynomial" and optimization.learning_rate <= POLYNOMIAL_END:
        raise StudyError(
            f"{label}: a polynomial schedule ends at {POLYNOMIAL_END}: choose a higher rate, or another one"
        )
    if not len(examples):
        raise StudyError(f"{label}: there are no examples to train on")
    dtypes = {name: p.dtype for name, p in trained.items()}
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    device = next(iter(trained.values())).device
    for p in trained.values():
        p.data = p.data.float()
    ordered = training.Ordered(examples, optimization, seed)
    micro = optimization.batch
    try:
        while True:
            arguments = training.arguments(optimization, folder, micro, seed, half, device)
            trainer = training.Training(model, arguments, ordered, loss or causal_loss, collate)
            trainer.watched = training.Watch(trainer, validate, validate_every, label)
            trainer.watched.ends_below(converged, -(-len(examples) // optimization.batch))
            trainer.add_callback(trainer.watched)
            found = last_checkpoint(folder)
            try:
                trainer.train(resume_from_checkpoint=None if found is None else str(found))
                break
            except (RuntimeError, MemoryError) as error:
                smaller = devices.halved(micro, error, f"{label}: training on one example")
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or error
                raise StudyError(f"{label}: cannot write a checkpoint to {folder} ({reason})") from error
            finally:
                trainer.watched.bar.close()
            del trainer
            gc.collect()  # the step that failed still holds its activations
            micro = max(n for n in range(1, smaller + 1) if optimization.batch % n == 0)
            batch = optimization.batch
            logger.warning(f"{label}: out of memory, going on with {micro} of a step's {batch} examples at a time")
    finally:
        training.unwrap(model)
        for name, p in trained.items():
            p.grad = None
            p.data = p.data.to(dtypes[name])
        model.eval().requires_grad_(False)
    log = [row for row in trainer.state.log_history if "loss" in row or "validation" in row]
    trainable = sum(p.numel() for name, p in trained.items() if name not in trainer.watched.untrained)
    return Fitted(log, trainer.watched.spent, trainer.watched.peak, trainable)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; one that was being written when its process was killed cannot be."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    for checkpoint in sorted(numbered, key=lambda path: -int(path.name.partition("-")[2])):
        try:
            json.loads((checkpoint / STATE).read_text())
            load_file(checkpoint / WEIGHTS)
            torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError):
            continue
        return checkpoint
    return None


def bytes_needed(trainable: float, frozen_bytes: float) -> float:
    """About the memory that training takes without activations: AdamW keeps four float32 numbers a trained weight."""
    return 16 * trainable + frozen_bytes


def causal_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of every token but the first of `input_ids` (B, T), nats a token."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
