"""A device that is not there: tensors that say they are on CUDA, lie in the processor's memory, and mix as CUDA's do.

What a model computes there is what it computes on the processor, but for attention's rounding, and what CUDA refuses is
refused: tensors of both devices in one operation, numpy on CUDA's. There are no gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from layer_redundancy.models.attributes import attributes

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
FILLS = ("aten::fill_", "aten::masked_fill", "aten::masked_fill_")


class OnCuda(Tensor):
    """A tensor that says it is on CUDA; `inside` has its numbers."""

    inside: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor) -> "OnCuda":
        made = Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            device=CUDA,
        )  # fmt: skip
        made.inside = inside
        return made

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def tolist(self) -> Any:
        return self.inside.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.inside!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation of torch's, on the numbers inside, with a result that is where it would be."""
    tensors: list[Tensor] = []
    inner_args = [_inside(x, tensors) for x in args]
    inner_kwargs = {name: _inside(x, tensors) for name, x in kwargs.items()}
    there = [isinstance(x, OnCuda) for x in tensors]
    if any(there) and not all(there):
        _check(func, args, tensors)
    on_cuda = any(there)
    if (device := kwargs.get("device")) is not None:
        on_cuda = torch.device(device).type == "cuda"
        inner_kwargs["device"] = torch.device("cpu") if on_cuda else device
    out = func(*inner_args, **inner_kwargs)
    if any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns):
        return kwargs.get("out", args[0])
    if not on_cuda:
        return out
    return OnCuda(out) if isinstance(out, Tensor) else tree_map_only(Tensor, OnCuda, out)


def _inside(x: Any, tensors: list[Tensor]) -> Any:
    """An argument with processor tensors in place of those on CUDA; `tensors` gets all that are in it."""
    if isinstance(x, Tensor):
        tensors.append(x)
        return x.inside if isinstance(x, OnCuda) else x
    return [_inside(one, tensors) for one in x] if isinstance(x, list | tuple) else x


def _check(func: Any, args: tuple, tensors: list[Tensor]) -> None:
    """Raises RuntimeError where CUDA would, for tensors of both devices."""
    name = func._schema.name
    if name in MOVES:
        return
    if name in INDEXES:  # on CUDA, by indices of either device
        allowed = isinstance(args[0], OnCuda) and all(isinstance(x, OnCuda) or not x.dim() for x in args[2:3])
    else:  # single numbers go with whatever there is
        numbers = all(isinstance(x, OnCuda) or not x.dim() for x in tensors)
        allowed = numbers and (name in FILLS or torch.Tag.pointwise in func.tags)
    if not allowed:
        shapes = [(tuple(x.shape), str(x.device)) for x in tensors]
        raise RuntimeError(f"expected all tensors to be on the same device: {name} of {shapes}")


class _Operations(TorchDispatchMode):
    """Catches what makes tensors on CUDA, or moves them there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Does what torch itself cannot do with a device that it was not built for."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return _REPLACED.get(func, func)(*args, **kwargs)


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        device = next((a for a in args if isinstance(a, str | int | torch.device)), kwargs.get("device"))
        dtype = next((a for a in args if isinstance(a, torch.dtype)), kwargs.get("dtype"))
    device = x.device if device is None else torch.device(device)
    dtype = dtype or x.dtype
    if device.type == x.device.type and dtype == x.dtype and not kwargs.get("copy"):
        return x
    return aten._to_copy.default(x, dtype=dtype, device=CUDA if device.type == "cuda" else device)


def _pinned(x: Tensor, *_: Any) -> Tensor:
    if isinstance(x, OnCuda):
        raise RuntimeError("only tensors of the processor can be pinned")
    return x.clone()


def _made(make: Callable) -> Callable:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if not _is_cuda(device) and not any(isinstance(x, OnCuda) for x in args):
            return make(*args, **kwargs) if device is None else make(*args, device=device, **kwargs)
        if isinstance(args[0], Tensor):
            return _to(args[0], device=device, dtype=kwargs.get("dtype"))
        return _to(make(*args, **kwargs), CUDA)

    return made


def _place(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """A view of a tensor by the slices and numbers of an index, and the tensors that index this view."""
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(torch.tensor(i) if isinstance(i, list | range) else i for i in index)
    taken = sum(
        i.dim() if isinstance(i, Tensor) and i.dtype == torch.bool else 1
        for i in index
        if i is not None and i is not Ellipsis
    )
    entries: list[Tensor | None] = []
    dim, rest = 0, x.dim() - taken
    for i in index:
        if i is Ellipsis:
            entries += [None] * rest
            dim += rest
        elif i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, slice):
            x = aten.slice.Tensor(x, dim, *(None if k is None else int(k) for k in (i.start, i.stop)), i.step or 1)
        elif isinstance(i, Tensor) and (i.dim() or i.dtype == torch.bool):
            entries.append(i)
            dim += i.dim() if i.dtype == torch.bool else 1
            continue
        else:
            x = aten.select.int(x, dim, int(i))
            continue
        if i is not Ellipsis:
            entries.append(None)
            dim += 1
    return x, entries


def _item(x: Tensor, index: Any) -> Tensor:
    if not any(isinstance(t, OnCuda) for t in tree_leaves((x, index))):
        return Tensor.__getitem__(x, index)
    view, entries = _place(x, index)
    return aten.alias.default(view) if not any(e is not None for e in entries) else aten.index.Tensor(view, entries)


def _set_item(x: Tensor, index: Any, value: Any) -> None:
    if not any(isinstance(t, OnCuda) for t in tree_leaves((x, index, value))):
        Tensor.__setitem__(x, index, value)
        return
    view, entries = _place(x, index)
    value = value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
    if any(e is not None for e in entries):
        aten.index_put_.default(view, entries, value if value.dim() else _to(value, x.device))
    else:
        aten.copy_.default(view, value)


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask.logical_not(), -torch.inf)
    return aten._scaled_dot_product_attention_math.default(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


_REPLACED: dict[Callable, Callable] = {
    Tensor.to: _to,
    Tensor.cuda: lambda x: _to(x, CUDA),
    Tensor.pin_memory: _pinned,
    Tensor.contiguous: lambda x, **_: x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format),
    torch.tensor: _made(torch.tensor),
    torch.as_tensor: _made(torch.as_tensor),
    torch.asarray: _made(torch.asarray),
    Tensor.copy_: lambda x, source, *_: aten.copy_.default(x, source),
    Tensor.nonzero: lambda x: aten.nonzero.default(x),
    torch.nonzero: lambda x: aten.nonzero.default(x),
    Tensor.__invert__: aten.bitwise_not.default,
    Tensor.__getitem__: _item,
    Tensor.__setitem__: _set_item,
    nn.functional.scaled_dot_product_attention: _attention,
}


# What a GPU's driver would answer.
_DRIVER = {
    "_lazy_init": lambda: None,
    "synchronize": lambda *_: None,
    "mem_get_info": lambda *_: (1 << 30, 1 << 30),
    "memory_reserved": lambda *_: 0,
    "memory_allocated": lambda *_: 0,
    "get_device_properties": lambda *_: SimpleNamespace(total_memory=1 << 30),
    "current_stream": lambda *_: None,
    "Event": lambda **_: SimpleNamespace(record=lambda _: None, synchronize=lambda: None),
}


@contextmanager
def there() -> Iterator[None]:
    """Within, "cuda" is a device that tensors can be made on and moved to: the real one where there is one."""
    if torch.cuda.is_available():
        yield
        return
    with attributes(*((torch.cuda, name, answer) for name, answer in _DRIVER.items())), _Functions(), _Operations():
        yield


def moved(model: nn.Module) -> nn.Module:
    """A model with its parameters and buffers on CUDA (in place); tied weights stay tied."""
    if torch.cuda.is_available():
        return model.to("cuda")
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in known:
                known[id(parameter)] = nn.Parameter(OnCuda(parameter.data), parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = known[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnCuda(buffer)
    return model
