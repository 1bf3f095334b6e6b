"""Blocks as compiled kernels: one graph for all blocks of a kind, whatever their number, rows and tokens.

A block's own Python runs its small operations one by one, each a pass over memory; compiled, they become a few. On a
GPU that takes a quarter to two fifths of a block's time away, and costs some seconds a graph when the first block of a
kind runs. Weights are inputs of a graph, and so are lengths; the keys and values of prefixes go in and out of it as
tensors. What a block does is traced, so two blocks of one class that differ in more than weights (sliding and full
attention) get a graph each.

Compiled kernels round otherwise than the operations one by one, in 16 bits by as much as a step of them.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from layer_redundancy.core import devices
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models.architectures import Architecture
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import BlockCalls, DecoderStack, PrefixKeys, has_key_value_cache
from layer_redundancy.models.states import PrefixStates

logger = logging.getLogger(__name__)

BACKEND = "inductor"
GRAPHS = 64  # kinds of blocks times kinds of calls, of all models that a process has run; then it ends with an error
WORTH = 2e13  # operations of one block on a measurement: below, a sweep gains less than compiling takes


class NotCompiled(Exception):
    """A function that torch cannot compile: why, in one line."""


@cache
def function(plain: Callable, backend: str | Callable) -> Callable:
    """A function compiled, once for all; what of it cannot be traced is an error, and never run as it is unseen."""
    return torch.compile(plain, backend=backend, fullgraph=True, dynamic=True)


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Lets a compiled `function` be called: one graph for all lengths, and so many graphs.

    Raises:
        StudyError: `what` takes more graphs than there may be.
        NotCompiled: it cannot be compiled.
        Exception: memory ran out while it was.
    """
    # Imported where they are needed: they take long.
    from torch import _dynamo as dynamo
    from torch.fx.experimental import _config as shapes

    lengths = shapes.patch(use_duck_shape=False)  # lengths that are equal in one call need not be in the next
    limits = dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS)
    try:
        with lengths, limits:
            yield
    except dynamo.exc.FailOnRecompileLimitHit as error:
        raise StudyError(
            f"{GRAPHS} graphs do not suffice for {what}: set compiled = false in the profile, so that none are"
        ) from error
    except dynamo.exc.TorchDynamoException as error:
        inner = getattr(error, "inner_exception", error)
        if devices.lacks_memory(inner):
            raise inner from error
        raise NotCompiled(f"{type(inner).__name__}: {inner}".strip().partition("\n")[0]) from error


def pays(stack: DecoderStack, tokens: int) -> bool:
    """Whether blocks are worth compiling for a measurement of so many tokens.

    It depends on the device, on a block's size and on the measurement, and not on how many variants a sweep asks for
    nor on how many blocks there are: all variants of a model, and what is left of it without some blocks, are alike.
    """
    least = pays_from(stack)
    return least is not None and tokens >= least


def pays_from(stack: DecoderStack) -> float | None:
    """Tokens of a measurement from which blocks are worth compiling for it; None for never."""
    if not devices.is_gpu(stack.device) or not compiles(stack):
        return None
    weights = max(sum(p.numel() for p in block.parameters()) for block in stack.blocks)
    return WORTH / (2.0 * weights)


def compiles(stack: DecoderStack) -> bool:
    """Whether the model's blocks are of a kind that can be compiled.

    A recurrence over tokens, step by step in Python, would become a graph with a part for each of them.
    """
    return has_key_value_cache(stack.model) and sharing(stack.model).prefixes


def compiled(stack: DecoderStack) -> "CompiledStack":
    """The same model with blocks that run compiled; the model itself is left as it is."""
    return CompiledStack(**vars(stack))


@dataclass(frozen=True)
class CompiledStack(DecoderStack):
    """A model whose blocks run compiled, where they can.

    Blocks run as they are while something listens to them or takes their place (removed heads, hooks, weights kept
    elsewhere), where they need gradients, and where their kind does not compile, which a line in the log says.
    """

    compiled: ClassVar[bool] = True

    _refused: set[tuple] = field(default_factory=set, compare=False)  # kinds of calls that do not compile

    def run_block(
        self,
        index: int,
        hidden: Tensor,
        calls: BlockCalls,
        keys: PrefixKeys | PrefixStates | None = None,
    ) -> Tensor:
        block = self.blocks[index]
        kind = (type(block), keys is not None and calls.cache is not None)
        if isinstance(keys, PrefixStates) or kind in self._refused or not compiles(self) or not _is_plain(block):
            return super().run_block(index, hidden, calls, keys)
        args, kwargs = calls.arguments(index, keys)
        try:
            with torch.no_grad(), compiling(f"the blocks of {type(self.model).__name__}"):
                return function(_run, BACKEND)(self.architecture, block, hidden, args, kwargs)
        except NotCompiled as error:
            self._refused.add(kind)
            logger.info(f"{type(block).__name__} is not compiled and runs as it is ({error})")
            return self.run_block(index, hidden, calls, keys)


def _is_plain(block: nn.Module) -> bool:
    """Whether nothing listens to a block or its parts, replaces their forwards, or needs gradients of them."""
    return not any(
        module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in block.modules()
    )


def _run(architecture: Architecture, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    out = architecture.run_block(block, hidden, args, kwargs)
    return out[0] if isinstance(out, tuple | list) else out
