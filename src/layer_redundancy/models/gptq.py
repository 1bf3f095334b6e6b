"""llm-compressor's GPTQ, with the same numbers in less time.

Imported only where something is quantized: llm-compressor takes seconds to import.
"""

from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationType
from compressed_tensors.quantization.utils import calculate_range
from compressed_tensors.utils.impl_backend import ImplBackend
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.helpers import accumulate_hessian, column_scale_window, make_empty_hessian
from pydantic import PrivateAttr
from torch import Tensor, nn


class GPTQ(GPTQModifier):
    """GPTQ that multiplies an input by itself once for all layers that read it: queries, keys and values, say."""

    _last: tuple[Any, Any, Any] = PrivateAttr(default=(None, None, None))  # an input, its Hessian, its sequences

    def calibrate_module(self, module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        """Adds an input's part to a layer's Hessian."""
        if args[0] is not self._last[0]:
            nothing = make_empty_hessian(module, device=args[0].device)
            count = torch.zeros((), device=args[0].device)
            self._last = args[0], *accumulate_hessian(args[0], module, nothing, count)
        _, hessian, sequences = self._last
        if module in self._hessians:
            self._hessians[module] += hessian
            self._num_samples[module] += sequences
        else:
            self._hessians[module], self._num_samples[module] = hessian.clone(), sequences.clone()

    def compress_modules(self) -> None:
        """Quantizes the layers of a block."""
        self._last = None, None, None
        super().compress_modules()


def _fits(weights: Tensor, *_: Any, scale: Tensor, quant_args: QuantizationArgs, **__: Any) -> bool:
    on_processor = weights.device.type == "cpu" and len(weights) == 1
    return on_processor and scale.dtype == torch.float32 and quant_args.type == QuantizationType.INT


@ImplBackend.register("gptq_block_update", _fits, 1)
def _update_by_columns(
    weights: Tensor,
    inverse: Tensor,
    quantized: Tensor,
    errors: Tensor,
    losses: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    g_idx: Tensor | None,
    quant_args: QuantizationArgs,
    i1: int,
) -> None:
    """Quantizes some columns, one after the other, each one's error made up for by those that follow.

    llm-compressor's own for a processor reads and writes a column across all rows of memory; here each lies together.
    Every number comes from the same operations in the same order.

    Args:
        weights: (1, rows, columns).
        inverse: the factor of the Hessian's inverse, (1, columns, columns).
        quantized, errors, losses: (1, rows, columns), what is found.
        scale, zero_point, global_scale, g_idx, quant_args, i1: as `column_scale_window` takes them.
    """
    _, rows, width = weights.shape
    scales, zeros = column_scale_window(
        scale, zero_point, global_scale, g_idx, quant_args, num_rows=rows, i1=i1, i2=i1 + width
    )
    lowest, highest = (bound.item() for bound in calculate_range(quant_args, weights.device))
    columns, scales = weights[0].t().contiguous(), scales[0].t().contiguous()  # (columns, rows)
    zeros = None if zeros is None else zeros[0].t().contiguous()
    found, missed, change = (torch.empty_like(columns) for _ in range(3))
    factors = inverse[0].contiguous()
    for i, (column, step, nearest, error) in enumerate(zip(columns, scales, found, missed, strict=True)):
        torch.div(column, step, out=nearest)
        if zeros is not None:
            nearest += zeros[i]
        nearest.clamp_(lowest, highest).round_()
        if zeros is not None:
            nearest -= zeros[i]
        nearest *= step
        torch.sub(column, nearest, out=error).div_(factors[i, i])
        if i + 1 < width:
            later = change[i + 1 :]
            torch.mul(factors[i, i + 1 :, None], error, out=later)
            columns[i + 1 :] -= later
    quantized[0], errors[0] = found.t(), missed.t()
    losses.copy_(errors.square())
