"""Where adapters have a place in a model's blocks, and 4-bit weights beside them."""

import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from layer_redundancy.core import devices, log
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.models import checkpoints, linear, matrices
from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.stack import decoder_stack

logger = logging.getLogger(__name__)

PROBED_TOKENS = 16


@dataclass(frozen=True)
class Places:
    """Which weights of a model's blocks adapters change.

    Attributes:
        layers: names of linear layers.
        stacks: names of parameters that hold a matrix for each expert.
        left_out: name of each other matrix that was asked for -> its number of weights.
        weights: number of weights of all blocks.
    """

    layers: tuple[str, ...]
    stacks: tuple[str, ...]
    left_out: dict[str, int]
    weights: int


def places(model: nn.Module, targets: str = "all") -> Places:
    """Where adapters have a place: linear layers of the residual blocks, and their experts' matrices.

    A layer has none if its own forward is never called, or returns more than its product (the routers of some models),
    or if another module reads its weight past it (as Mamba's kernels do): an adapter would do nothing, or break it. So
    a few tokens are run to see.

    Args:
        model: a causal language model that `decoder_stack` takes apart; of one without storage, only its code tells.
        targets: "all", or "mlp" for what lies outside of attention (all where a block has nothing but attention).

    Raises:
        StudyError: there are none, or the model does not run as it is trained.
    """
    blocks, modules, linear = decoder_stack(model).blocks, _modules(model), all_linear_layers(model)
    stacked = {name: module for name, module in modules.items() if matrices.stacks(module)}
    inside = {name for name in modules if _of_attention(model, name)}
    all_matrices = {
        f"{name}.{own}": p
        for name, module in modules.items()
        for own, p in module.named_parameters(recurse=False)
        if (matrices.is_matrix(p) or (name in linear and own == "weight"))
        and own not in matrices.stacked_biases(module)
    }
    if targets == "mlp" and any(_owner(name) not in inside for name in all_matrices):
        all_matrices = {name: p for name, p in all_matrices.items() if _owner(name) not in inside}
    usable = _usable(model, linear, stacked)
    layers = tuple(name for name in linear if name in usable and f"{name}.weight" in all_matrices)
    stacks = tuple(
        f"{name}.{own}"
        for name, module in stacked.items()
        for own in matrices.stacks(module)
        if name in usable and f"{name}.{own}" in all_matrices
    )
    if not layers and not stacks:
        raise StudyError(f"{type(model).__name__} has no linear layers in its blocks: adapters have no place")
    taken = {*(f"{name}.weight" for name in layers), *stacks}
    left_out = {name: p.numel() for name, p in all_matrices.items() if name not in taken}
    return Places(layers, stacks, left_out, sum(p.numel() for p in blocks.parameters()))


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks and all in them, by their names in the model."""
    path = checkpoints.blocks_path(model)
    return {f"{path}.{name}": module for name, module in model.get_submodule(path).named_modules() if name}


def all_linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers in the blocks, whether adapters have a place there or not, by their names in the model."""
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in _modules(model).items() if isinstance(module, nn.Linear | Conv1D)}


def linear_layers(model: nn.Module, targets: str = "all") -> list[str]:
    """Names of the linear layers among `places`."""
    return list(places(model, targets).layers)


def told(left_out: dict[str, int], of: int) -> str:
    """Names of weights, without the blocks' numbers, and their share of so many weights."""
    names = sorted({without_numbers(_inside_block(name)) for name in left_out})
    return f"{', '.join(names)} ({sum(left_out.values()) / of:.1%} of the blocks' weights)"


def _inside_block(name: str) -> str:
    """A weight's name behind its block's number."""
    return re.sub(r"^.*?\.\d+\.?", "", name, count=1)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _of_attention(model: nn.Module, name: str) -> bool:
    # In some models attention is one of several modules that go by the same name: then it is what has queries.
    inside = _inside_block(name)
    return "attn" in inside or "attention" in inside or hasattr(model.get_submodule(_owner(name)), "q_proj")


def place(name: str) -> str:
    """A weight's name, without numbers where it lies in a list within its block: such a list's members take turns."""
    return name if sum(part.isdigit() for part in name.split(".")) < 2 else without_numbers(name)


def without_numbers(name: str) -> str:
    """A name without the numbers in it."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _usable(model: nn.Module, linear: dict[str, nn.Module], stacked: dict[str, nn.Module]) -> set[str]:
    """The names of linear layers that give their product when they are called, of experts' modules that are called.

    Of a list of experts it is enough that one was called.
    """
    if any(p.is_meta for p in model.parameters()):
        return {name for name, layer in linear.items() if _looks_usable(model, name, layer)} | stacked.keys()
    called: set[str] = set()
    odd: set[str] = set()
    read: set[str] = set()
    everything = linear | stacked
    try:
        with _watched(linear, read), ExitStack() as hooks, _training(model), torch.random.fork_rng(devices=[]):
            for name, module in everything.items():

                def note(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    called.add(place(name))
                    if name in linear and not isinstance(output, Tensor):
                        odd.add(place(name))

                hooks.callback(module.register_forward_hook(note).remove)
            vocabulary, device = model.get_input_embeddings().weight.shape[0], decoder_stack(model).device
            ids = torch.arange(1, PROBED_TOKENS + 1, device=device)[None] * 7 % vocabulary
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
    except Exception as error:
        if devices.lacks_memory(error):
            raise
        raise cannot_be_trained(model, error) from error
    return {name for name in everything if place(name) in called and place(name) not in odd | {place(n) for n in read}}


@cache
def _source(kind: type) -> str:
    """A class's source, which is looked for in the whole of its module: that takes a while."""
    return inspect.getsource(kind)


def _looks_usable(model: nn.Module, name: str, layer: nn.Module) -> bool:
    """The same of a layer without storage, which cannot be run in its model: by itself, and by its owner's source."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    with suppress(OSError, TypeError):  # no source
        if re.search(rf"self\.{child}\.weight\b", _source(type(owner))):  # type: ignore[arg-type]  # classes are hashable
            return False
    row = layer.weight.new_empty(1, getattr(layer, "in_features", layer.weight.shape[0]))
    try:
        return isinstance(layer(row), Tensor)
    except Exception:  # a router that looks at values
        return False


def cannot_be_trained(model: nn.Module, error: Exception) -> StudyError:
    """What to raise where a model's own forward or backward fails as it is trained."""
    kind = type(getattr(model, "get_base_model", lambda: model)()).__name__
    reason = (str(error).splitlines() or [""])[0][:200]
    return NotApplicable(
        f"{kind} cannot be trained here: its own forward or backward fails in training ({type(error).__name__}: "
        f"{reason})"
    )


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode for a while: some models call other kernels in it."""
    before = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _watched(layers: dict[str, nn.Module], read: set[str]) -> Iterator[None]:
    """Collects the names of layers whose weight is read while their own forward does not run."""
    with ExitStack() as undo:
        for name, layer in layers.items():
            running: list[bool] = []

            def weight(self: nn.Module, name: str = name, running: list[bool] = running) -> Tensor:
                if not running:
                    read.add(name)
                return self._parameters["weight"]

            undo.callback(layer.register_forward_pre_hook(lambda *_, r=running: r.append(True)).remove)
            undo.callback(layer.register_forward_hook(lambda *_, r=running: r.clear()).remove)
            undo.callback(setattr, layer, "__class__", type(layer))
            layer.__class__ = type(type(layer).__name__, (type(layer),), {"weight": property(weight)})
        yield


@contextmanager
def as_named() -> Iterator[None]:
    """Keeps peft from taking layers' names for those of transformers 4.

    In models with experts it would put adapters on all experts in place of those on the layers of the same name. peft
    also imports gptqmodel where that is installed, which sets up logging for everybody: logging is left as it was.
    """
    from peft.utils import transformers_weight_conversion as conversion

    with (
        log.undisturbed(),
        attributes(
            (conversion, "convert_peft_config_for_transformers", lambda *_, **__: None),
            (
                conversion,
                "convert_peft_adapter_state_dict_for_transformers",
                lambda adapter_state_dict, **_: adapter_state_dict,
            ),
        ),
    ):
        yield


# ------------------------------------------------------------------------------------------------ 4 bits


def round_to_4_bits(model: nn.Module) -> None:
    """Puts bitsandbytes' 4-bit layers (nf4, its scales rounded too; Dettmers et al. 2023) in the blocks' linear ones.

    Raises:
        NotApplicable: the blocks' linear layers are none that bitsandbytes knows.
    """
    import bitsandbytes as bnb

    class Linear4bit(bnb.nn.Linear4bit):
        """bitsandbytes' layer, which computes on a processor by the library that other linear layers use there."""

        def forward(self, x: Tensor) -> Tensor:
            if linear.available() and linear.fits(x) and self.compute_dtype == torch.float32:
                return _By4Bits.apply(x, self.weight, self.bias)
            return super().forward(x)

    found = places(model)
    check_4_bits(model, found.layers)
    full = found.left_out | {name: model.get_parameter(name).numel() for name in found.stacks}
    if full:
        kind = type(model).__name__
        logger.info(f"{kind}: of 4 bits are linear layers alone, {told(full, found.weights)} keep full precision")
    for name in found.layers:
        parent, _, child = name.rpartition(".")
        old = model.get_submodule(name)
        new = Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=old.weight.dtype,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        new.weight = bnb.nn.Params4bit(
            old.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        )
        new.bias = old.bias
        # On processors with AVX-512 BF16 a forward without gradients would round the scales to bfloat16 for good.
        new.support_avx512bf16_for_cpu = False
        setattr(model.get_submodule(parent), child, new.to(old.weight.device))


class _By4Bits(torch.autograd.Function):
    """The product with a frozen weight of 4 bits, which is unpacked for it and, for the gradient, once more."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return linear.product(input, _unpacked(packed), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return linear.product(grad, _unpacked(ctx.packed).T), None, None


def _unpacked(packed: Tensor) -> Tensor:
    """The values of a bitsandbytes weight, float32 (out, in)."""
    import bitsandbytes as bnb

    return bnb.functional.dequantize_4bit(packed.data, packed.quant_state)


def round_trip_4_bits(model: nn.Module) -> None:
    """The same values as `round_to_4_bits` leaves, in ordinary linear layers of the model's dtype."""
    import bitsandbytes as bnb

    for name in linear_layers(model):
        weight = model.get_submodule(name).weight
        packed, state = bnb.functional.quantize_4bit(weight.data, quant_type="nf4", compress_statistics=True)
        weight.data = bnb.functional.dequantize_4bit(packed, state).to(weight.dtype).reshape(weight.shape)


def check_4_bits(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises NotApplicable where bitsandbytes has no 4-bit form of the blocks' linear layers."""
    kinds = [type(model.get_submodule(name)) for name in layers]
    other = [kind.__name__ for kind in kinds if not issubclass(kind, nn.Linear)]
    if other or not kinds:
        kind = other[0] if other else "its"
        raise NotApplicable(f"{type(model).__name__}: {kind} layers have no 4-bit form: use method lora")
