"""Where the dear blocks lie, by ranks: what can be said of costs in any unit, and of models of any size."""

import numpy as np

from layer_redundancy.experiments import single_layer_removal

# Statements on one model or many; each is of a share, which chance alone would make a half.
FIRST = "the first block costs more than most inner ones"
LAST = "the last block costs more than most inner ones"
CHEAPER = "a middle-to-late block costs less than an early one, more often than not"
OFTEN = 0.25  # of a share of blocks, or of pairs of them, that matters


def dearer(cost: float, others: np.ndarray) -> float:
    """Share of the others that cost less than a block, ties counted as half."""
    return float((others < cost).mean() + (others == cost).mean() / 2)


def by_depth(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs (M,) of middle-to-late blocks and (E,) of early ones, by notebook 02's rule."""
    num = len(costs)
    return costs[single_layer_removal.middle_to_late(num)], costs[single_layer_removal.early_blocks(num)]


def wins(costs: np.ndarray) -> np.ndarray:
    """(M, E) 1 where a middle-to-late block costs less than an early one, a half where both cost the same."""
    middle, early = by_depth(costs)
    return (middle[:, None] < early) + 0.5 * (middle[:, None] == early)
