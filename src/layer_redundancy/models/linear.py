"""Linear layers of a processor, by the faster of the two libraries that torch brings.

torch multiplies float32 matrices by MKL, which takes instructions of half the width on processors that are not Intel's:
on one of AMD with AVX-512, oneDNN is 2.2 times as fast. The layers stay what they are, `nn.Linear` with their names and
weights; only the product is another library's, rounded otherwise in the last digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def available() -> bool:
    """Whether this torch has oneDNN, and the processor instructions that it gains from."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def by_onednn(model: nn.Module) -> nn.Module:
    """Lets the linear layers of a model that lie in the processor's memory use oneDNN, where it is `available`."""
    if available():
        _retype(model, nn.Linear, Linear)
    return model


def by_torch(model: nn.Module) -> nn.Module:
    """Undoes `by_onednn`."""
    _retype(model, Linear, nn.Linear)
    return model


@contextmanager
def of_torch(model: nn.Module) -> Iterator[None]:
    """A model with torch's own linear layers for as long as a library looks at their class."""
    ours = [module for module in model.modules() if type(module) is Linear]
    for module in ours:
        module.__class__ = nn.Linear
    try:
        yield
    finally:
        for module in ours:
            module.__class__ = Linear


def _retype(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        # Kinds of their own stay, and so do those whose forward another library has replaced.
        if type(module) is old and "forward" not in vars(module) and module.weight.device.type == "cpu":
            module.__class__ = new


class Linear(nn.Linear):
    """`nn.Linear` by oneDNN, wherever input and weight are float32 and on the processor."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not (fits(input) and fits(weight) and not torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, weight, bias)):
            return _Differentiable.apply(input, weight, bias)
        return product(input, weight, bias)


def fits(x: Tensor) -> bool:
    """Whether `product` takes it: float32, on the processor, not empty."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias; float32 (..., in), (out, in), (out,) -> (..., out)."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Differentiable(torch.autograd.Function):
    """`_product` with gradients, which are products too."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What a gradient does not need is not kept, as torch does it.
        needs = ctx.needs_input_grad
        ctx.save_for_backward(input if needs[1] else None, weight if needs[0] else None)
        return product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = None if weight is None else product(grad, weight.T)
        of_weight = None if input is None else product(rows.T, input.reshape(-1, input.shape[-1]).T)
        return of_input, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
