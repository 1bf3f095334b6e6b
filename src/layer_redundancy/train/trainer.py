"""transformers' Trainer as `training_loop.fit` uses it: order of examples, settings, what is watched and kept."""

import logging
import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from layer_redundancy.core import devices
from layer_redundancy.core.errors import Diverged, StudyError
from layer_redundancy.train import adapters
from layer_redundancy.train.training_loop import WEIGHTS, Collate, Example, Loss, Optimization, Validate

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0


class Ordered:
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


def arguments(
    optimization: Optimization, folder: Path, micro: int, seed: int, half: bool, device: torch.device
) -> TrainingArguments:
    """Settings of transformers' Trainer: as `fit` trains, `micro` examples at a time, and without its own habits."""
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
        train_sampling_strategy="sequential",  # `Ordered` has the order
        save_strategy="no",  # `Watch` says when
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


def unwrap(model: nn.Module) -> None:
    """Takes off the wrapper in which accelerate lets a model compute in bfloat16; without this it stays for good."""
    extract_model_from_parallel(model, keep_fp32_wrapper=False)


class Training(Trainer):
    """transformers' Trainer with losses of our own, checkpoints of trained weights alone, and no messages of its own.

    What it does stays its own: its draws of random numbers decide the dropout, so that another loop around the same
    optimizer would train other weights.
    """

    def __init__(
        self, model: nn.Module, arguments: TrainingArguments, examples: Ordered, loss: Loss, collate: Collate | None
    ) -> None:
        with _quiet():
            super().__init__(model, arguments, train_dataset=examples, data_collator=collate or default_collate)
        self.model_accepts_loss_kwargs = False  # so that it divides by the accumulated batches, whatever the loss
        self._loss = loss
        self.watched: Watch
        # It would collect garbage before the first step, which takes a third of a second; an accelerator is new here.
        self.accelerator.free_memory = lambda *objects: objects

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with _quiet():
            return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        # As Trainer's own on one device; that one puts every module into training mode again, at every step.
        try:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()
        except StudyError:
            raise
        except Exception as error:
            if devices.lacks_memory(error):
                raise
            raise adapters.cannot_be_trained(self.model, error) from error

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        with self.watched.counting():
            return self._loss(model, inputs)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # nobody asks, and Trainer would walk through all weights at every step to tell

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Kept in the trainer's state, and so in checkpoints.
        if "loss" in logs:
            row = {key: logs[key] for key in ("loss", "learning_rate")} | {"step": self.state.global_step}
            self.watched.logged(row)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except RuntimeError as error:  # torch's, of a file that it cannot write to its end; it does not say why
            if devices.lacks_memory(error):
                raise
            raise OSError("is the disk full?") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])


class Watch(TrainerCallback):
    """Shows a training's progress while it runs, and measures what it takes."""

    def __init__(self, trainer: Training, validate: Validate | None, validate_every: int, label: str) -> None:
        # Weakly: nothing of a training may wait for the garbage collector, and that is slow where much is imported.
        self._trainer = weakref.proxy(trainer)
        self._validate, self._every, self._label = validate, validate_every, label
        self.spent, self.peak = 0.0, 0
        self._step_start = self._saved = time.monotonic()
        self._counted = self.stepped = False
        self._held_out: dict[str, str] = {}
        self._converged, self._pass_steps = 0.0, 1
        self.untrained: frozenset[str] = frozenset()
        self.bar = tqdm(total=trainer.args.max_steps, desc=label, unit="step", mininterval=1.0)

    def ends_below(self, converged: float, pass_steps: int) -> None:
        """Ends the training once the mean loss of a pass over the examples, so many steps, is lower."""
        self._converged, self._pass_steps = converged, pass_steps

    def _has_converged(self, step: int) -> bool:
        if step % self._pass_steps:
            return False
        losses = [row["loss"] for row in self._trainer.state.log_history if "loss" in row]
        return float(np.mean(losses[-self._pass_steps :])) < self._converged

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step:
            last = [row for row in state.log_history if "seconds" in row][-1]
            self.spent, self.peak = last["seconds"], last["peak_bytes"]
            logger.info(f"{self._label}: going on at step {state.global_step} of {args.max_steps}")
        self.bar.n = state.global_step
        self.bar.refresh()
        devices.reset_peak(args.device)
        self._trainer.model.train()
        if self._every and not state.global_step:
            self._validate_now()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step_start = time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tells once of weights that no gradient reached, though they are to be trained."""
        if self.stepped:
            return
        self.stepped = True
        trained = {name: p for name, p in self._trainer.model.named_parameters() if p.requires_grad}
        reached = {adapters.place(name) for name, p in trained.items() if p.grad is not None}
        self.untrained = frozenset(name for name in trained if adapters.place(name) not in reached)
        if self.untrained:
            names = sorted(set(map(adapters.without_numbers, self.untrained)))
            number = sum(trained[name].numel() for name in self.untrained)
            logger.warning(
                f"{self._label}: no gradient reaches {', '.join(names)} ({number} weights): they stay as they are"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if devices.is_gpu(args.device):
            devices.synchronize(args.device)
            self.peak = max(self.peak, devices.peak_bytes(args.device))
        self.spent += time.monotonic() - self._step_start
        control.should_log = True
        control.should_save = time.monotonic() - self._saved > CHECKPOINT_SECONDS and state.global_step < args.max_steps
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()

    def logged(self, row: dict[str, float]) -> None:
        """Takes a step's row, before a checkpoint is written."""
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"{self._label}: the loss is {row['loss']} at step {row['step']}: choose a lower learning rate, or "
                "dtype float32"
            )
        state = self._trainer.state
        state.log_history.append(row | {"seconds": self.spent, "peak_bytes": self.peak})
        self.bar.set_postfix(self._held_out | {"loss": f"{row['loss']:.4g}"}, refresh=False)
        self.bar.update()
        ends = row["step"] == state.max_steps
        if self._has_converged(int(row["step"])):
            ends = self._trainer.control.should_training_stop = True
        if self._every and (row["step"] % self._every == 0 or ends):
            self._validate_now()

    def _validate_now(self) -> None:
        assert self._validate is not None, "it is given where `validate_every` is"
        state, model = self._trainer.state, self._trainer.model
        model.eval()
        with torch.no_grad():
            value = float(self._validate(model))
        model.train()
        state.log_history.append({"step": state.global_step, "validation": value})
        self._held_out = {"held out": f"{value:.4g}"}
        logger.info(f"{self._label}: step {state.global_step}, held out {value:.4f}")

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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what transformers logs of a training."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
