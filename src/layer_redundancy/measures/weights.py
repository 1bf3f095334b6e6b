"""Importance from weights alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


def matrices(block: nn.Module) -> list[nn.Parameter]:
    """A block's weight matrices: its parameters of two dimensions or more. Norms and biases are none."""
    return [p for p in block.parameters() if p.ndim >= 2]


def magnitude(blocks: Sequence[nn.Module], p: int) -> np.ndarray:
    """Sum over each block's weight matrices of their entrywise p-norm; (L,) float64, in the weights' units.

    Public code sums the squares for p = 2; here it is their root.

    Args:
        blocks: L residual blocks with ordinary weights.
        p: 1 or 2.
    """
    norms = [[torch.linalg.vector_norm(w.detach(), ord=p, dtype=torch.float64) for w in matrices(b)] for b in blocks]
    return np.array([float(sum(of_block)) for of_block in norms])
