"""Training what is left of a pruned model: LoRA, QLoRA, all weights, or the last blocks with or without the head.

A healed model is kept as what was trained (adapters, or the trained weights themselves) and built again from the dense
model when it is needed: without some blocks, with 4-bit weights where they were trained beside such, adapters merged.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache as cache_in_memory
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import cache, devices
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, check_tokens, decoder_stack
from layer_redundancy.train import adapters, training_loop
from layer_redundancy.train.adapters import linear_layers, round_to_4_bits, round_trip_4_bits

logger = logging.getLogger(__name__)

LATER = ("head", "validations")  # fields that came later: their defaults are no part of a healed model's name
RULES_VERSION = 1  # raise it when the same settings give other weights
ADAPTERS_VERSION = 2  # likewise, where adapters are on experts' matrices, or not on all linear layers
WEIGHTS, RECORD = "trained.safetensors", "training.json"


@dataclass(frozen=True)
class Healing:
    """All that decides a healed model.

    Attributes:
        identity: identity of the dense model.
        dtype: dtype of its weights.
        device: a device that `loading.load` takes.
        removed: removed blocks, ascending.
        recipe: the recipe, which decides the weights to train.
        budget: how much text to train on.
        text: the blocks of text; the last `budget.held_out` are not trained on.
        seed: seed of the order of text and of new weights; it has decided which text.
    """

    identity: ModelIdentity
    dtype: str
    device: str
    removed: tuple[int, ...]
    recipe: Recipe
    budget: TrainingBudget
    text: TokenBlocks
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the model, as JSON-compatible values; another value is another model."""
        return {
            "model": self.identity.fingerprint,
            "removed": list(self.removed),
            "recipe": _named(self.recipe),
            "budget": _named(self.budget),
            "text": self.text.fingerprint,
            "seed": self.seed,
            "rules": RULES_VERSION,
            **rules_of_adapters(self.identity, self.recipe),
            # torch and the processor move the last digits only.
            **{name: version(name) for name in ("transformers", "peft", "bitsandbytes")},
        }

    @property
    def healed_identity(self) -> ModelIdentity:
        """Identity of the healed model in the store."""
        fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        return replace(
            self.identity,
            name=f"{self.identity.name} without {len(self.removed)} blocks, {describe(self.recipe)}",
            fingerprint=fingerprint,
            num_hidden_layers=self.identity.num_hidden_layers - len(self.removed),
        )


def _named(one: Recipe | TrainingBudget) -> dict[str, Any]:
    """The fields that decide a healed model."""
    later = [f.name for f in fields(one) if f.name in LATER and getattr(one, f.name) == f.default]
    return {name: value for name, value in asdict(one).items() if name not in later}


def rules_of_adapters(identity: ModelIdentity, recipe: Recipe) -> dict[str, Any]:
    """What decides a model besides, where its blocks hold more than linear layers that adapters have a place in."""
    return {"adapters": ADAPTERS_VERSION} if recipe.method in ("lora", "qlora") and _beyond_layers(identity) else {}


@cache_in_memory
def _beyond_layers(identity: ModelIdentity) -> bool:
    with checkpoints.shapes(identity) as shapes:
        found = adapters.places(shapes)
        linear = {f"{name}.weight" for name in adapters.all_linear_layers(shapes)}
        return bool(found.stacks) or not linear.isdisjoint(found.left_out)


def describe(recipe: Recipe) -> str:
    """A recipe in a table."""
    return {
        "lora": f"LoRA, rank {recipe.rank}",
        "qlora": f"QLoRA, rank {recipe.rank}",
        "full": "all weights",
        "partial": _partial(recipe),
        "nf4": "4 bits, untrained",
    }[recipe.method]


def _partial(recipe: Recipe) -> str:
    if recipe.head == "kept":
        return f"last {recipe.last_blocks}, head kept" if recipe.last_blocks else "final norm"
    return f"head and last {recipe.last_blocks}" if recipe.last_blocks else "head"


# ------------------------------------------------------------------------------------------------ which weights


def untie_head(model: nn.Module) -> nn.Module:
    """The head, with weights of its own if it had the embedding's; config and exports know it."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return head


def prepare(model: nn.Module, recipe: Recipe, seed: int = 0) -> nn.Module:
    """Sets `requires_grad` on what a recipe trains, adding adapters where it wants them.

    Args:
        model: the pruned model; changed in place.
        recipe: the recipe, which decides the weights to train.
        seed: seed of new weights.

    Returns:
        The model to train: peft's around it, or itself.

    Raises:
        StudyError: the model has no place for it.
    """
    model.requires_grad_(False)
    if recipe.method == "partial" and recipe.head == "trained":
        untie_head(model)
    if recipe.method in ("full", "partial"):
        for part in _parts(model, recipe):
            part.requires_grad_(True)
        return model
    import peft

    found, dropout = adapters.places(model, recipe.targets), recipe.dropout
    kind = type(model).__name__
    if found.left_out:
        left_out = adapters.told(found.left_out, found.weights)
        logger.warning(f"{kind}: adapters leave out {left_out}, which stay as they are")
    if found.stacks and dropout:
        logger.warning(f"{kind}: adapters on experts' matrices take no dropout, so that none is used (not {dropout:g})")
        dropout = 0.0
    if recipe.method == "qlora":
        round_to_4_bits(model)
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=dropout,
        target_modules=list(found.layers),
        target_parameters=list(found.stacks) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with adapters.as_named():
        return peft.get_peft_model(model, config)


def _parts(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """What a recipe trains all weights of; of a model that also reads images, the language model alone."""
    stack, head = decoder_stack(model), model.get_output_embeddings()
    if recipe.method == "partial":
        return [*([head] if recipe.head == "trained" else []), *stack.final, *_last(stack, recipe)]
    around = next(module for module in model.modules() if stack.blocks in module.children())
    return [model.get_input_embeddings(), around, *stack.final, head]


def _last(stack: DecoderStack, recipe: Recipe) -> list[nn.Module]:
    """The last blocks that a recipe trains; all blocks if it asks for more than there are."""
    return list(stack.blocks)[max(0, len(stack) - recipe.last_blocks) :]


def check(recipe: Recipe, name: str, method: str | None) -> None:
    """Raises NotApplicable for a recipe that trains or rounds weights themselves, of a model of that name, where these
    are quantized by a method."""
    if method is not None and recipe.method in ("full", "partial", "nf4"):
        raise NotApplicable(
            f"{name} has quantized weights ({method}), which take no gradient: train adapters (lora), or its "
            "full-precision model"
        )


def check_shapes(shapes: nn.Module, recipe: Recipe) -> None:
    """Raises StudyError where a model of these shapes has no place for what a recipe trains.

    Args:
        shapes: the model, without weights; nothing is left of it.
        recipe: the recipe.
    """
    if trainable_weights(shapes, recipe) and recipe.method == "qlora":
        adapters.check_4_bits(shapes, linear_layers(shapes))
    tied = shapes.get_output_embeddings().weight is shapes.get_input_embeddings().weight
    if tied and recipe.method == "partial" and recipe.head == "trained":
        untie_head(shapes)
        with torch.device("meta"):
            read_again = type(shapes)(shapes.config)
        if dict(read_again.named_parameters()).keys() != dict(shapes.named_parameters()).keys():
            raise NotApplicable(
                f"the head of a {type(shapes).__name__} cannot be trained apart from the embedding: train adapters "
                "(lora), or leave the head as it is (head = 'kept')"
            )


def possible(identity: ModelIdentity, recipe: Recipe) -> Recipe:
    """The recipe, or LoRA beside full-precision weights in QLoRA's place where these have no 4-bit form (GPT-2)."""
    if recipe.method == "qlora":
        with checkpoints.shapes(identity) as shapes:
            try:
                adapters.check_4_bits(shapes, linear_layers(shapes))
            except NotApplicable:
                logger.warning(f"{identity.name}: its layers have no 4-bit form, so that LoRA stands in for QLoRA")
                return replace(recipe, method="lora")
    return recipe


def trainable_weights(shapes: nn.Module, recipe: Recipe) -> int:
    """Number of weights a recipe trains, of a model without storage (`models.shapes`) or with."""
    if recipe.method in ("full", "partial"):
        trained = {id(p): p for part in _parts(shapes, recipe) for p in part.parameters()}
        return sum(p.numel() for p in trained.values())
    if recipe.method == "nf4":
        return 0
    found = adapters.places(shapes, recipe.targets)
    layers = [shapes.get_submodule(name).weight.shape for name in found.layers]
    stacks = [shapes.get_parameter(name).shape for name in found.stacks]
    return recipe.rank * (sum(map(sum, layers)) + sum(experts * (a + b) for experts, a, b in stacks))


# ------------------------------------------------------------------------------------------------ training, building


def heal(work: Healing) -> Path:
    """Trains, unless that is done, and returns the folder of what was trained: adapters or weights, and `RECORD`.

    Args:
        work: what to train. Meanwhile the loss on held-out text is shown.

    Raises:
        StudyError: as `training.fit` and `prepare`; no memory for the recipe, no text to train on.
    """
    settings = work.settings
    place = cache.made_folder("healed", settings)
    if place.is_dir():
        training_loop.discard(settings)
        return cache.checked(place)
    with training_loop.workplace(settings) as folder:
        if place.is_dir():  # another process made it meanwhile
            return cache.checked(place)
        model, wrapped, names, fitted = _trained(work, folder)

        def write(target: Path) -> None:
            target.mkdir()
            if wrapped is model:
                tensors = {name: model.get_parameter(name).detach().cpu().contiguous() for name in names}
                save_file(tensors, target / WEIGHTS)
            else:
                wrapped.save_pretrained(target)
            note = {"settings": settings, **asdict(fitted)}
            (target / RECORD).write_text(json.dumps(note))

        return cache.made_once("healed", settings, write)


def _trained(work: Healing, folder: Path) -> tuple[nn.Module, nn.Module, list[str], training_loop.Fitted]:
    """The model, what of it was trained (peft's model around it, or itself), its trained parameters, what it took."""
    model = _pruned(work)
    check_memory(model, work.recipe)
    wrapped = prepare(model, work.recipe, work.seed)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return model, wrapped, names, _fit(work, wrapped, folder)


def tried(work: Healing) -> Result:
    """What `training_result` says of a training whose weights are not kept; raises StudyError as `heal`."""
    with training_loop.workplace(work.settings) as folder:
        return _result(asdict(_trained(work, folder)[-1]))


def _fit(work: Healing, model: nn.Module, folder: Path) -> training_loop.Fitted:
    budget, device = work.budget, next(model.parameters()).device
    check_text(work)
    trained_on = len(work.text.input_ids) - budget.held_out
    check_tokens(model, work.text.input_ids)
    held_out = work.text.input_ids[trained_on:].to(device)

    rows = 2 * budget.batch  # without gradients they take less memory than half of them with

    def validate(model: nn.Module) -> float:
        nonlocal rows
        while True:
            try:  # blocks are of one length: the mean over a part's tokens is that over its blocks
                losses = [
                    len(part) * training_loop.causal_loss(model, {"input_ids": part}).item()
                    for part in held_out.split(rows)
                ]
                return sum(losses) / len(held_out)
            except (RuntimeError, MemoryError) as error:
                rows = devices.halved(min(rows, len(held_out)), error, "one held-out block")

    return training_loop.fit(
        model,
        [{"input_ids": row} for row in work.text.input_ids[:trained_on]],
        training_loop.Optimization(
            budget.steps, budget.batch, work.recipe.learning_rate, budget.warmup, budget.schedule
        ),
        folder,
        seed=work.seed,
        validate=validate if len(held_out) else None,
        validate_every=budget.validate_every,
        label=f"{describe(work.recipe)}, {len(work.removed)} blocks removed, seed {work.seed}",
    )


def check_text(work: Healing) -> None:
    """Raises StudyError where all text is held out."""
    text, budget = work.text, work.budget
    if len(text.input_ids) <= budget.held_out:
        raise StudyError(
            f"corpus {text.corpus!r} has {len(text.input_ids)} blocks of {budget.block_length} tokens, "
            f"{budget.held_out} of them held out: nothing is left to train on"
        )


def check_memory(model: nn.Module, recipe: Recipe) -> None:
    """Raises DoesNotFit if a model's weights, gradients and AdamW's states leave no memory for a forward."""
    trainable = trainable_weights(model, recipe)
    device = next(model.parameters()).device
    # The model lies in memory already; of what is trained there will be a float32 copy.
    needed, free = training_loop.bytes_needed(trainable, 0), devices.available(device)
    if needed > 0.9 * free:
        raise DoesNotFit(
            f"training {describe(recipe)} ({trainable / 1e9:.2f} billion weights) takes {needed / 1e9:.0f} GB beside "
            f"the model, {free / 1e9:.0f} are free on {device}: leave it out, or use a larger device"
        )


def _pruned(work: Healing) -> nn.Module:
    model = loading.load(work.identity, work.dtype, work.device)
    surgery.cut(model, work.removed)
    return model


def build(work: Healing) -> nn.Module:
    """The healed model, ordinary weights of the dense model's dtype, trained before if need be.

    After QLoRA these are the 4-bit weights' values with the adapters added, which is what was trained.

    Raises:
        StudyError: as `heal`.
    """
    if work.recipe.method == "nf4":
        model = _pruned(work)
        adapters.check_4_bits(model, linear_layers(model))
        round_trip_4_bits(model)
        return loading.prepare(model)
    folder = heal(work)
    model = _pruned(work)
    if work.recipe.method in ("lora", "qlora"):
        import peft

        if work.recipe.method == "qlora":
            round_trip_4_bits(model)
        with adapters.as_named(), cache.reading(folder):
            model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    else:
        prepare(model, work.recipe)
        with cache.reading(folder):
            weights = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
    return loading.prepare(model)


def record(folder: Path) -> dict[str, Any]:
    """What `heal` wrote of a training: log, seconds, peak_bytes, trainable."""
    with cache.reading(folder):
        return json.loads((folder / RECORD).read_text())


def training_result(folder: Path) -> Result:
    """What a training took, as a result for the store.

    Returns:
        summary: seconds, peak_bytes, trainable; arrays: step and loss (N,), held_out_step and held_out (M,), the
        losses in nats a token.
    """
    found = record(folder)
    with cache.reading(folder):
        return _result(found)


def _result(found: Mapping[str, Any]) -> Result:
    steps = [row for row in found["log"] if "loss" in row]
    validations = [row for row in found["log"] if "validation" in row]
    arrays = {
        "step": np.array([row["step"] for row in steps]),
        "loss": np.array([row["loss"] for row in steps]),
        "held_out_step": np.array([row["step"] for row in validations]),
        "held_out": np.array([row["validation"] for row in validations], dtype=float),
    }
    return Result({name: found[name] for name in ("seconds", "peak_bytes", "trainable")}, arrays)


def untrained() -> Result:
    """What `training_result` says where nothing is trained."""
    nothing = {name: np.zeros(0) for name in ("step", "loss", "held_out_step", "held_out")}
    return Result({"seconds": 0.0, "peak_bytes": 0, "trainable": 0}, nothing)


def no_training(steps: int) -> Result:
    """A result of the same shape for a training that was not done."""
    arrays = {"step": np.arange(1, steps + 1), "loss": np.zeros(steps)}
    arrays |= {"held_out_step": np.arange(1), "held_out": np.zeros(1)}
    return Result({"seconds": 0.0, "peak_bytes": 0, "trainable": 0}, arrays)
