"""Results along an order of removal -> curves; and which blocks each measure removes at which depths.

A curve is an array (K, N): K depths of removal, N blocks of text (mean NLL a token, nats) or items (accuracy). Means
over N are what is drawn; resampling N shows how certain they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from layer_redundancy.core import variants
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import result_tables
from layer_redundancy.measures import importance, registry
from layer_redundancy.measures.activations import ActivationSums

RATIOS = (0.10, 0.25, 0.50)  # shares of blocks removed at which measures are compared


def depths(num_blocks: int, step: int = 1) -> list[int]:
    """Numbers of removed blocks at which measures are compared: every step-th, all but one, and those of RATIOS."""
    last = num_blocks - 1
    return sorted({*range(0, last, step), last, *(at_ratio(num_blocks, ratio) for ratio in RATIOS)})


def at_ratio(num_blocks: int, ratio: float) -> int:
    """The number of blocks closest to a share of them; at least one, and never all: none of a single block."""
    return min(num_blocks - 1, max(1, round(ratio * num_blocks)))


def removals_by_measure(
    sums: ActivationSums, counts: Sequence[int], greedy: Sequence[int] | np.ndarray | None = None
) -> dict[str, dict[int, Variant]]:
    """What each measure leaves when so many blocks are removed: measure -> count -> variant.

    Args:
        sums: activation sums of the calibration text.
        counts: numbers of removed blocks, from `depths`.
        greedy: the greedy order, drawn as a measure of its own.

    Returns:
        Every measure of the registry's list of curves; "greedy" only if it is given; and "angular_blocks", since the
        rule of angular_distance removes one contiguous run of blocks (of each length the run with the smallest
        distance; Gromov et al. 2024).
    """
    num = sums.num_blocks
    orders = {
        name: importance.removal_order(importance.scores(sums, name), name)
        for name, measure in registry.Listed(registry.CURVES).items()
        if measure.from_sums
    }
    if greedy is not None:
        orders["greedy"] = np.asarray(greedy)
    chosen: dict[str, dict[int, Variant]] = {
        name: {k: variants.without(num, order[:k]) for k in counts} for name, order in orders.items()
    }
    grid = importance.angular_grid(sums)
    runs = {k: variants.block_removal(num, importance.best_start(grid, k), k) for k in counts if k}
    return chosen | {"angular_blocks": {k: runs.get(k, variants.dense(num)) for k in counts}}


def values(results: Mapping[Variant, Result], removals: Mapping[int, Variant]) -> np.ndarray:
    """(K, N) values of a measurement along removals: mean NLL a token of text blocks (nats), or accuracy of items."""
    rows = [results[variant] for variant in removals.values()]
    sign = 1 if result_tables.accuracy_metric(rows[0]) is None else -1
    return np.stack([sign * result_tables.cost(row) for row in rows])


def along(table: pd.DataFrame, removals: Mapping[int, Variant], num_blocks: int) -> pd.DataFrame:
    """Rows of `result_tables.perplexity` or `result_tables.accuracy` at the depths of some removals.

    Returns:
        The table's columns with count (blocks removed), share (of the blocks, percent) and removed as text.
    """
    rows = table.assign(removed=[tuple(removed) for removed in table["removed"]]).set_index("removed")
    keys = [variants.removed_blocks(num_blocks, variant) for variant in removals.values()]
    parts = [rows.loc[[key]].assign(count=k, share=100 * k / num_blocks) for k, key in zip(removals, keys, strict=True)]
    out = pd.concat(parts).reset_index()
    return out.assign(removed=[" ".join(map(str, removed)) for removed in out["removed"]])
