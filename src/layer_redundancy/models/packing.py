"""Quantized weights that were unpacked when they were loaded, packed again to be saved."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from layer_redundancy.models import architectures, linear


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model whose weights are quantized; none of one that is not, or not by compressed-tensors."""
    return [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]


def unpacked() -> dict[str, Any]:
    """Options of `from_pretrained` to unpack weights once, not at every forward; every matrix is there to be read."""
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def plain(model: nn.Module) -> nn.Module:
    """Gives the modules of an unpacked model their own forwards again (in place); all of it lies on one device.

    compressed-tensors wraps each of them, to move weights and to round them where they are not rounded yet: neither is
    of use any longer, both cost time at every call, and faster forwards would not be used.
    """
    from compressed_tensors.offload import remove_dispatch
    from compressed_tensors.quantization import QuantizationStatus

    remove_dispatch(model)
    for module in layers(model):
        scheme = module.quantization_scheme
        if scheme.input_activations is None and scheme.output_activations is None:
            module.quantization_status = QuantizationStatus.DECOMPRESSED
            vars(module).pop("forward", None)
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward
    return model


@contextmanager
def packed(model: nn.Module) -> Iterator[dict[str, Tensor] | None]:
    """A model whose weights are quantized and unpacked, packed again for as long as it is saved; others as they are.

    Yields:
        The tensors to save, those that 16 bits hold exactly as such; None for a model that has nothing to pack, which
        is saved as it is.
    """
    parts = layers(model)
    if not parts:
        yield None
        return
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.utils import get_direct_state_dict, replace_direct_state_dict

    before = vars(model.config).get("quantization_config")
    originals = [(module, get_direct_state_dict(module), module.quantization_status) for module in parts]
    scales = [module.weight_scale.data for module in parts]
    try:
        for module in parts:  # in bfloat16, quotients of 8 bits would not always be rounded right
            module.weight.data, module.weight_scale.data = module.weight.float(), module.weight_scale.float()
        with quietly(), linear.of_torch(model):
            compressor = ModelCompressor.from_pretrained_model(model)
            compressor.compress_model(model, skip_compressed=True)
            compressor.remove_decompression_hook(model)
        for module, scale in zip(parts, scales, strict=True):
            module.weight_scale.data = scale
        settings = compressor.quantization_config.model_dump(exclude=["quant_method"])
        # The names that it gives are those in the file, which in a model of several parts are not those of the modules
        # that they are compared with when the checkpoint is loaded.
        whole_layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m not in parts]
        settings["ignore"] = list(dict.fromkeys([*settings["ignore"], *whole_layers]))
        model.config.quantization_config = settings | {"quant_method": "compressed-tensors"}
        halves: dict[int, Tensor] = {}  # tied weights stay one tensor
        state = model.state_dict()
        whole = architectures.find(model.config).whole_when_packed
        yield {
            name: tensor if name in whole else halves.setdefault(tensor.data_ptr(), _halved(tensor))
            for name, tensor in state.items()
        }
    finally:
        for module, state, status in originals:  # the very weights, which need not be unpacked
            replace_direct_state_dict(module, state)
            module.quantization_status = status
        if before is None:
            vars(model.config).pop("quantization_config", None)
        else:
            model.config.quantization_config = before


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.float16) if tensor.dtype == torch.float32 else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


@contextmanager
def quietly() -> Iterator[None]:
    """Hides compressed-tensors' bars for every second of work, and that our settings are used, not the checkpoint's."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        yield
