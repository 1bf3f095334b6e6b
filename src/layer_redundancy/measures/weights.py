"""Importance from weights alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from layer_redundancy.models.matrices import stacked_biases, stacks


def matrices(block: nn.Module) -> list[nn.Parameter]:
    """A block's weight matrices: its parameters of two dimensions or more. Norms and biases are none."""
    biases = {id(module.get_parameter(name)) for module in block.modules() for name in stacked_biases(module)}
    return [p for p in block.parameters() if p.ndim >= 2 and id(p) not in biases]


def magnitude(blocks: Sequence[nn.Module], p: int) -> np.ndarray:
    """Sum over each block's weight matrices of their entrywise p-norm; (L,) float64, in the weights' units.

    Public code sums the squares for p = 2; here it is their root. Experts in one tensor are a matrix each.

    Args:
        blocks: L residual blocks with ordinary weights.
        p: 1 or 2.
    """
    found = []
    for block in blocks:
        stacked = {id(module.get_parameter(name)) for module in block.modules() for name in stacks(module)}
        norms = [
            torch.linalg.vector_norm(w.detach(), p, (1, 2) if id(w) in stacked else None, dtype=torch.float64).sum()
            for w in matrices(block)
        ]
        found.append(float(sum(norms)))
    return np.array(found)
