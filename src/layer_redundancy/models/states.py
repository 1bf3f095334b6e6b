"""What one block remembers of prefixes where it carries a state instead of keys and values."""

from typing import Any

import torch
from torch import Tensor, nn

from layer_redundancy.models.architectures import Architecture


class PrefixStates:
    """Keeps a block's states after prefixes, then lets sequences start from them.

    Most states know nothing of padding, so that prefixes of several lengths may run one after the other; their rows are
    counted on.

    Attributes:
        rows: the prefix's row for each sequence of the batch that continues the prefixes; None while prefixes run.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self._states: tuple[Tensor, ...] = ()

    def run_block(
        self, architecture: Architecture, block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Tensor:
        """The block on X (batch, tokens, hidden size), with its other arguments; returns X of the same shape."""
        if self.rows is not None:
            rows = self.rows
            before = tuple(x.index_select(0, rows.to(x.device)) for x in self._states)
            return architecture.run_block_from(block, hidden, args, kwargs, before)[0]
        out, after = architecture.run_block_from(block, hidden, args, kwargs, None)
        self._states = tuple(map(torch.cat, zip(self._states, after, strict=True))) if self._states else after
        return out
