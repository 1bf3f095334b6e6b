"""Quantized weights that were unpacked when they were loaded, packed again to be saved."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr

import torch
from torch import Tensor, nn

from layer_redundancy.models import architectures


@contextmanager
def packed(model: nn.Module, restore: bool = True) -> Iterator[dict[str, Tensor] | None]:
    """A model that `load` unpacked, packed again for as long as it is saved; others as they are.

    Args:
        model: the model.
        restore: give it back its very weights; else those that follow from what is packed when the context ends.

    Yields:
        The tensors to save, those that 16 bits hold exactly as such; None for a model that has nothing to pack, which
        is saved as it is.
    """
    parts = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    if not parts:
        yield None
        return
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    before = vars(model.config).get("quantization_config")
    originals = [(module, module.weight.data, module.weight_scale.data) for module in parts]
    try:
        for module, weight, scale in originals:  # in bfloat16, quotients of 8 bits would not always be rounded right
            module.weight.data, module.weight_scale.data = weight.float(), scale.float()
        with no_bars():
            compressor.compress_model(model, skip_compressed=True)
        for module, _, scale in originals:
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
        with no_bars():
            compressor.decompress_model(model)
        if restore:
            for module, weight, _ in originals:
                module.weight.data = weight
        if before is None:
            vars(model.config).pop("quantization_config", None)
        else:
            model.config.quantization_config = before


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.to(torch.float16) if tensor.dtype == torch.float32 else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def no_bars() -> AbstractContextManager:
    """Hides the bars that compressed-tensors draws for every second of work."""
    return redirect_stderr(io.StringIO())
