"""Importance measures: sums over tokens -> one score a block -> the order in which blocks are removed.

Pure functions on `ActivationSums`. `measures.registry` defines the measures.
"""

from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from layer_redundancy.core import flags, stats
from layer_redundancy.core.arguments import shown, whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures import registry
from layer_redundancy.measures.activations import ActivationSums

MEASURES = registry.Listed(registry.SCORES)


def _weighted(sums: ActivationSums, name: str, first_token: bool, weights: np.ndarray) -> np.ndarray:
    """Scores (R, L) for R weightings (R, S) of the sequences."""
    mean_of = registry.find(name, lambda measure: measure.from_sums).kind
    if isinstance(mean_of, registry.Position):
        return np.tile(mean_of.score(sums.num_blocks), (len(weights), 1))
    assert isinstance(mean_of, registry.Activations), f"{name} does not follow from sums"
    total, tokens = mean_of.numerator(sums), sums.tokens
    if mean_of.last_token:
        tokens = np.ones_like(tokens)
    elif not first_token:
        assert mean_of.first is not None, f"{name} does not say what the first tokens' share is"
        total, tokens = total - mean_of.first(sums), tokens - 1
    counts = stats.weighted_sums(weights, tokens[:, None])
    if (counts <= 0).any():
        raise StudyError("no token is left: leaving out the first token needs sequences of at least two tokens")
    mean = stats.weighted_sums(weights, total) / counts
    return 1 - mean if mean_of.complement else mean


@flags.checked
def scores(sums: ActivationSums, measure: str, first_token: bool = True) -> np.ndarray:
    """The score of every block.

    Args:
        sums: activation sums from `activations.collect`.
        measure: the name of a measure from activations or the position, such as those of MEASURES.
        first_token: count each sequence's first token too, as the papers do; it is an attention sink in most models.

    Returns:
        (L,) float64. block_influence lies in 0..2, angular_distance in 0..1, hidden_norm has the units of the residual
        stream, the rest have none.

    Raises:
        StudyError: unknown measure, or no token is left.
    """
    return _weighted(sums, measure, first_token, np.ones((1, len(sums.tokens))))[0]


@flags.checked
def bootstrap_scores(
    sums: ActivationSums, measure: str, resamples: int, seed: int = 0, first_token: bool = True
) -> np.ndarray:
    """Scores under resampling of the calibration sequences with replacement: how far another text would move them.

    Args:
        resamples: R, number of resamples.
        seed: seed of the resampling; the same seed draws the same sequences for every measure.

    Returns:
        (R, L) float64.
    """
    weights = stats.unit_counts(len(sums.tokens), resamples, seed).astype(np.float64)
    return _weighted(sums, measure, first_token, weights)


def removal_order(score: np.ndarray, measure: str) -> np.ndarray:
    """The order in which blocks are removed. Ties break toward the deeper block.

    Args:
        score: (L,) or (R, L) scores by `measure`.
        measure: the name of a measure that has scores.

    Returns:
        Block indices, first removed first; int64 of the same shape, each row distinct.

    Raises:
        StudyError: unknown measure, no scores, or one that is not finite.
    """
    removed_first = registry.find(measure, lambda known: known.has_scores).removed_first
    try:
        score = np.asarray(score, dtype=np.float64)
    except (TypeError, ValueError):
        raise StudyError(f"scores must be a number a block, not {shown(score)}") from None
    if not score.ndim or not score.shape[-1]:
        raise StudyError(f"scores must be a number a block, not {shown(score)}: no order of removal follows from them")
    if not np.isfinite(score).all():
        raise StudyError(f"{measure} has scores that are NaN or infinite: no order of removal follows from them")
    key = score if removed_first == "smallest" else -score
    # A stable sort of the reversed blocks keeps deeper ones first among equals.
    reversed_order = np.argsort(key[..., ::-1], axis=-1, kind="stable")
    return score.shape[-1] - 1 - reversed_order


def ranks(order: np.ndarray) -> np.ndarray:
    """When each block is removed: order (..., L) of block indices -> (..., L) ranks by block, 1 = removed first."""
    return np.argsort(order, axis=-1, kind="stable") + 1


def equal_together(orders: Mapping[str, Iterable[Hashable]]) -> list[list[str]]:
    """Names of equal orders, or equal ranks, together: of reverse order and hidden norm, say; as they come."""
    groups: dict[tuple, list[str]] = {}
    for name, order in orders.items():
        groups.setdefault(tuple(order), []).append(name)
    return list(groups.values())


def angular_grid(sums: ActivationSums, tokens: str = "last") -> np.ndarray:
    """Angular distance of every contiguous run of blocks (Gromov et al. 2024, eq. 7).

    Args:
        tokens: "last" for the last token of each sequence, as in the paper; "all" for the mean over tokens.

    Returns:
        (L, L) float64, entry [n-1, l] = d(X_l, X_{l+n}) in 0..1; NaN where l + n > L.
    """
    if tokens not in ("last", "all"):
        raise StudyError(f"angular distance over {tokens!r} tokens is not known: choose 'last' or 'all'")
    pairs = sums.last_angle.mean(0) if tokens == "last" else sums.angle.sum(0) / sums.tokens.sum()
    num_blocks = sums.num_blocks
    grid = np.full((num_blocks, num_blocks), np.nan)
    for n in range(1, num_blocks + 1):
        grid[n - 1, : num_blocks - n + 1] = np.diagonal(pairs, offset=n)
    return grid


def best_start(grid: np.ndarray, n: int) -> int:
    """The first block of the run of n blocks with the smallest angular distance (Gromov et al. 2024, eq. 6).

    Ties go to the deeper run.

    Raises:
        StudyError: n is not between 1 and the number of blocks.
    """
    if not 1 <= whole(n, "the number of blocks of a run") <= len(grid):
        raise StudyError(f"a run of {n} blocks is out of range: choose 1 to {len(grid)}")
    row = grid[n - 1, : len(grid) - n + 1]
    return int(len(row) - 1 - np.argmin(row[::-1]))


def inclusion_probability(orders: np.ndarray) -> np.ndarray:
    """How certain a removal order is.

    Args:
        orders: (R, L) removal orders of R resamples.

    Returns:
        (L, L) float64, entry [k-1, b] = share of the resamples that have block b among the first k removed.
    """
    position = ranks(orders)  # (R, L)
    steps = np.arange(1, orders.shape[1] + 1)
    return (position[None] <= steps[:, None, None]).mean(axis=1)
