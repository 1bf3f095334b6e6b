"""Training some of a model's weights, by transformers' Trainer: checkpoints, an ETA, less at once when memory runs out.

What is trained is what requires a gradient, and only that is written to checkpoints. The same examples come in the
same order whatever batch fits, so a training that was killed goes on from its last checkpoint as if it had not been.
"""

import gc
import hashlib
import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from layer_redundancy.core import devices, paths
from layer_redundancy.core.errors import StudyError

CHECKPOINT_SECONDS = 60.0
WEIGHTS, STATE, OPTIMIZER = "trained.safetensors", "trainer_state.json", "optimizer.pt"  # the last two are Trainer's

Example = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Optimization:
    """How weights are trained: AdamW, gradients clipped at a norm of 1.

    Attributes:
        steps: optimizer steps.
        batch: examples a step.
        learning_rate: at its peak.
        warmup: steps in which it rises to that.
        schedule: by which it falls, as transformers names it: "cosine", "linear", "constant_with_warmup".
        weight_decay: of matrices.
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
        seconds: of all steps, without validation and checkpoints.
        peak_bytes: of memory: the allocator's peak on a GPU; elsewhere weights, gradients, the optimizer's states and
            what a forward keeps for its backward, counted tensor by tensor.
        trainable: number of weights that were trained.
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
        settings: all that decides what is trained; JSON.

    Raises:
        StudyError: the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = paths.CACHE / f"training-{digest}"
    lock = FileLock(f"{folder}.lock")
    try:
        paths.CACHE.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("another process trains this already: waiting for it")
            lock.acquire()
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot write to {paths.CACHE} ({error.strerror or error})") from error
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    finally:
        lock.release()


# Most parameters have defaults that suit a causal language model; each is a choice that some caller makes.
def fit(
    model: nn.Module,
    examples: Sequence[Example],
    optimization: Optimization,
    folder: Path,
    *,
    seed: int = 0,
    loss: Loss | None = None,
    collate: Callable[[list[Any]], Mapping[str, Tensor]] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    validate_every: int = 0,
    label: str = "training",
) -> Fitted:
    """Trains what requires a gradient, in place, or goes on where `folder`'s last checkpoint is.

    Trained weights are float32 meanwhile and have their own dtype again afterwards; a model with weights of 16 bits
    computes in bfloat16.

    Args:
        model: with `requires_grad` set on what is trained. Left in evaluation mode, with nothing requiring a gradient.
        examples: drawn without replacement, again and again, in an order of `seed`.
        optimization: how.
        folder: of checkpoints, from `workplace`; one a minute.
        seed: of the order and of dropout.
        loss: (model, batch) -> mean over the batch's examples, a scalar; the causal loss of `input_ids` (B, T), in nats
            a token, if not given.
        collate: examples -> batch; stacks tensors if not given.
        validate: model -> a number to watch, such as a held-out loss; called in evaluation mode.
        validate_every: steps; 0 for never. Then also before the first and after the last.
        label: of the progress bar.

    Raises:
        StudyError: nothing to train or to train on, a loss that is not finite, memory for not even one example, a disk
            that is full.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise StudyError(f"{label}: no weight is to be trained")
    if not len(examples):
        raise StudyError(f"{label}: there are no examples to train on")
    dtypes = {name: p.dtype for name, p in trained.items()}
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    device = next(iter(trained.values())).device
    use_cache, model.config.use_cache = model.config.use_cache, False
    for p in trained.values():
        p.data = p.data.float()
    ordered = _Ordered(examples, optimization, seed)
    micro = optimization.batch
    try:
        while True:
            arguments = _arguments(optimization, folder, micro, seed, half, device)
            trainer = _Training(model, arguments, ordered, loss, collate)
            trainer.watched = _Watch(trainer, validate, validate_every, label)
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
            print(f"{label}: out of memory, going on with {micro} of a step's {optimization.batch} examples at a time")
    finally:
        extract_model_from_parallel(model, keep_fp32_wrapper=False)  # which computes in bfloat16 for good
        model.config.use_cache = use_cache
        for name, p in trained.items():
            p.grad = None
            p.data = p.data.to(dtypes[name])
        model.eval().requires_grad_(False)
    log = [row for row in trainer.state.log_history if "loss" in row or "validation" in row]
    trainable = sum(p.numel() for p in trained.values())
    return Fitted(log, trainer.watched.spent, trainer.watched.peak, trainable)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; one that was being written when its process was killed cannot be."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / STATE).read_text())
            load_file(checkpoint / WEIGHTS)
            torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError):
            continue
        return checkpoint
    return None


def bytes_needed(trainable: int, frozen_bytes: int) -> int:
    """About the memory that training takes without activations: AdamW keeps four float32 numbers a trained weight."""
    return 16 * trainable + frozen_bytes


class _Ordered:
    """All examples of a training, in the order in which they come: one permutation of the seed after the other."""

    def __init__(self, examples: Sequence[Example], optimization: Optimization, seed: int):
        self._examples, self._length = examples, optimization.steps * optimization.batch
        rng, num = np.random.default_rng(seed), len(examples)
        turns = [rng.permutation(num) for _ in range(math.ceil(self._length / num))]
        self._order = np.concatenate(turns)[: self._length]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Example:
        return self._examples[int(self._order[place])]


def _arguments(
    optimization: Optimization, folder: Path, micro: int, seed: int, half: bool, device: torch.device
) -> TrainingArguments:
    """How transformers' Trainer trains: as `fit` says, `micro` examples at a time, and without its own habits."""
    AcceleratorState._reset_state(reset_partial_state=True)  # keeps the precision of a training before
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=optimization.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=optimization.batch // micro,
        learning_rate=optimization.learning_rate,
        lr_scheduler_type=optimization.schedule,
        warmup_steps=optimization.warmup,
        weight_decay=optimization.weight_decay,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=half,
        use_cpu=not devices.is_gpu(device),
        seed=seed,
        train_sampling_strategy="sequential",  # `_Ordered` has the order
        save_strategy="no",  # `_Watch` says when
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=devices.is_gpu(device),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # it would copy the model to every GPU there is
    return arguments


class _Training(Trainer):
    """transformers' Trainer with losses of our own, checkpoints of trained weights alone, and no messages of its own.

    What it does stays its own: its draws of random numbers decide the dropout, so that another loop around the same
    optimizer would train other weights.
    """

    def __init__(self, model: nn.Module, arguments: TrainingArguments, examples: _Ordered, loss, collate):
        with _quiet():
            super().__init__(model, arguments, train_dataset=examples, data_collator=collate or default_collate)
        self.model_accepts_loss_kwargs = False  # so that it divides by the accumulated batches, whatever the loss
        self._loss = loss or causal_loss
        self.watched: _Watch

    def train(self, *args, **kwargs):
        with _quiet():
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.watched.counting():
            return self._loss(model, inputs)

    def log(self, logs, start_time=None):
        # Kept in the trainer's state, and so in checkpoints.
        if "loss" in logs:
            row = {key: logs[key] for key in ("loss", "learning_rate")} | {"step": self.state.global_step}
            self.watched.logged(row)

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])


class _Watch(TrainerCallback):
    """What is seen of a training while it runs, and what it takes."""

    def __init__(self, trainer: _Training, validate, validate_every: int, label: str):
        self._trainer, self._validate, self._every, self._label = trainer, validate, validate_every, label
        self.spent, self.peak = 0.0, 0
        self._step_start = self._saved = time.monotonic()
        self._counted, self._held_out = False, {}
        self.bar = tqdm(total=trainer.args.max_steps, desc=label, unit="step", mininterval=1.0)

    def on_train_begin(self, args, state, control, **_):
        if state.global_step:
            last = [row for row in state.log_history if "seconds" in row][-1]
            self.spent, self.peak = last["seconds"], last["peak_bytes"]
            print(f"{self._label}: going on at step {state.global_step} of {args.max_steps}")
        self.bar.n = state.global_step
        self.bar.refresh()
        devices.reset_peak(args.device)
        if self._every and not state.global_step:
            self._validate_now()

    def on_step_begin(self, args, state, control, **_):
        self._step_start = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        if devices.is_gpu(args.device):
            devices.synchronize(args.device)
            self.peak = max(self.peak, devices.peak_bytes(args.device))
        self.spent += time.monotonic() - self._step_start
        control.should_log = True
        control.should_save = time.monotonic() - self._saved > CHECKPOINT_SECONDS and state.global_step < args.max_steps
        return control

    def on_save(self, args, state, control, **_):
        self._saved = time.monotonic()

    def logged(self, row: dict[str, float]) -> None:
        """Takes a step's row, before a checkpoint is written."""
        if not math.isfinite(row["loss"]):
            raise StudyError(
                f"{self._label}: the loss is {row['loss']} at step {row['step']}: choose a lower learning rate, or "
                "dtype float32"
            )
        state = self._trainer.state
        state.log_history.append(row | {"seconds": self.spent, "peak_bytes": self.peak})
        self.bar.set_postfix(self._held_out | {"loss": f"{row['loss']:.4g}"}, refresh=False)
        self.bar.update()
        if self._every and (row["step"] % self._every == 0 or row["step"] == state.max_steps):
            self._validate_now()

    def _validate_now(self) -> None:
        state, model = self._trainer.state, self._trainer.model
        model.eval()
        with torch.no_grad():
            value = float(self._validate(model))
        model.train()
        state.log_history.append({"step": state.global_step, "validation": value})
        self._held_out = {"held out": f"{value:.4g}"}
        self.bar.write(f"{self._label}: step {state.global_step}, held out {value:.4f}")

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts, at the first forward on a CPU, the memory that training holds."""
        if self._counted or devices.is_gpu(self._trainer.args.device):
            yield
            return
        self._counted = True
        with devices.saved_for_backward() as saved:
            yield
        held = [*self._trainer.model.parameters(), *self._trainer.model.buffers()]
        quantized = [tensor.quant_state for tensor in held if getattr(tensor, "quant_state", None) is not None]
        weights = devices.storages([*held, *(state.absmax for state in quantized)])
        trained = sum(p.numel() * 4 for p in self._trainer.model.parameters() if p.requires_grad)
        activations = sum(size for place, size in saved.items() if place not in weights)
        self.peak = max(self.peak, sum(weights.values()) + 3 * trained + activations)  # a gradient, two moments


def causal_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of every token but the first of `input_ids` (B, T), nats a token."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs of a training."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
