"""Norms of weights, against plain computations."""

import numpy as np

import tiny_models
from layer_redundancy.measures import weights


def test_magnitudes_are_norms():
    blocks = tiny_models.build("llama").model.layers
    matrices = [[p for p in block.parameters() if p.ndim == 2] for block in blocks]
    by_hand = [sum(p.abs().sum().item() for p in of) for of in matrices]
    np.testing.assert_allclose(weights.magnitude(blocks, 1), by_hand, rtol=1e-6)
    by_hand = [sum(p.square().sum().sqrt().item() for p in of) for of in matrices]
    np.testing.assert_allclose(weights.magnitude(blocks, 2), by_hand, rtol=1e-6)
