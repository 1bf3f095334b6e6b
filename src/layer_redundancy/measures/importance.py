"""Importance measures: sums over tokens -> one score a block -> the order in which blocks are removed.

Pure functions on `ActivationSums`. The definitions, with X_i the residual stream entering block i and X_{i+1} leaving
it (before the final norm), means over real tokens of the whole calibration set, token-weighted:

    block_influence     1 - mean_t cos(X_i,t , X_{i+1},t)                     smallest first   ShortGPT eq. 2
    relative_magnitude  mean_t ||X_{i+1},t - X_i,t|| / ||X_{i+1},t||          smallest first   Samragh et al. 2023
    hidden_norm         mean_t ||X_{i+1},t||                                  largest first    ShortGPT 4.4
    sequential          -i                                                    largest first    ShortGPT table 3
    reverse_order       -i                                                    smallest first   ShortGPT table 3
    angular_distance    arccos cos(X_i,t , X_{i+1},t) / pi, t the last        smallest first   Gromov et al. 2024, n = 1
                        token of each sequence, mean over sequences
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layer_redundancy.core import stats
from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures.activations import ActivationSums


@dataclass(frozen=True)
class Measure:
    """An importance measure.

    Attributes:
        name: the field's term.
        removed_first: "smallest" or "largest" score goes first.
        source: paper and place.
        numerator: sums -> (S, L) sum over all tokens, or None for a measure of the position alone.
        first: sums -> (S, L) the first tokens' share of it.
        complement: the score is one minus the mean.
        last_token: `numerator` holds each sequence's last token alone, and the mean is over sequences.
    """

    name: str
    removed_first: str
    source: str
    numerator: Callable[[ActivationSums], np.ndarray] | None = None
    first: Callable[[ActivationSums], np.ndarray] | None = None
    complement: bool = False
    last_token: bool = False


def _next(pairs: np.ndarray) -> np.ndarray:
    """(S, L+1, L+1) -> (S, L): the entry of each block's input with its output."""
    return np.diagonal(pairs, offset=1, axis1=1, axis2=2)


MEASURES = {
    m.name: m
    for m in (
        Measure(
            "block_influence", "smallest", "ShortGPT eq. 2",
            lambda s: _next(s.cosine), lambda s: _next(s.first_cosine), complement=True,
        ),
        Measure(
            "relative_magnitude", "smallest", "Samragh et al. 2023",
            lambda s: s.relative_magnitude, lambda s: s.first_relative_magnitude,
        ),
        Measure("hidden_norm", "largest", "ShortGPT 4.4", lambda s: s.norm[:, 1:], lambda s: s.first_norm[:, 1:]),
        Measure("sequential", "largest", "ShortGPT table 3"),
        Measure("reverse_order", "smallest", "ShortGPT table 3"),
        Measure(
            "angular_distance", "smallest", "Gromov et al. 2024, n = 1",
            lambda s: _next(s.last_angle), last_token=True,
        ),
    )
}  # fmt: skip


def _measure(name: str) -> Measure:
    if name not in MEASURES:
        raise StudyError(f"unknown importance measure {name!r}: choose one of {', '.join(MEASURES)}")
    return MEASURES[name]


def _weighted(sums: ActivationSums, measure: Measure, first_token: bool, weights: np.ndarray) -> np.ndarray:
    """Scores (R, L) for R weightings (R, S) of the sequences."""
    if measure.numerator is None:
        return np.tile(-np.arange(sums.num_blocks, dtype=np.float64), (len(weights), 1))
    total, tokens = measure.numerator(sums), sums.tokens
    if measure.last_token:
        tokens = np.ones_like(tokens)
    elif not first_token:
        total, tokens = total - measure.first(sums), tokens - 1
    counts = stats.weighted_sums(weights, tokens[:, None])
    if (counts <= 0).any():
        raise StudyError("no token is left: leaving out the first token needs sequences of at least two tokens")
    mean = stats.weighted_sums(weights, total) / counts
    return 1 - mean if measure.complement else mean


def scores(sums: ActivationSums, measure: str, first_token: bool = True) -> np.ndarray:
    """The score of every block.

    Args:
        sums: from `activations.collect`.
        measure: a key of MEASURES.
        first_token: count each sequence's first token too, as the papers do; it is an attention sink in most models.

    Returns:
        (L,) float64. block_influence lies in 0..2, angular_distance in 0..1, hidden_norm has the units of the residual
        stream, the rest have none.

    Raises:
        StudyError: unknown measure, or no token is left.
    """
    return _weighted(sums, _measure(measure), first_token, np.ones((1, len(sums.tokens))))[0]


def bootstrap_scores(
    sums: ActivationSums, measure: str, resamples: int, seed: int = 0, first_token: bool = True
) -> np.ndarray:
    """Scores under resampling of the calibration sequences with replacement: how far another text would move them.

    Args:
        resamples: R, number of resamples.
        seed: of the resampling; the same seed draws the same sequences for every measure.

    Returns:
        (R, L) float64.
    """
    weights = stats.unit_counts(len(sums.tokens), resamples, seed).astype(np.float64)
    return _weighted(sums, _measure(measure), first_token, weights)


def removal_order(score: np.ndarray, measure: str) -> np.ndarray:
    """The order in which blocks are removed. Ties break toward the deeper block.

    Args:
        score: (L,) or (R, L) scores of `measure`.

    Returns:
        Block indices, first removed first; int64 of the same shape, each row distinct.

    Raises:
        StudyError: unknown measure, or a score that is not finite.
    """
    score = np.asarray(score, dtype=np.float64)
    if not np.isfinite(score).all():
        raise StudyError(f"{measure} has scores that are NaN or infinite: no order of removal follows from them")
    key = score if _measure(measure).removed_first == "smallest" else -score
    # A stable sort of the reversed blocks keeps deeper ones first among equals.
    reversed_order = np.argsort(key[..., ::-1], axis=-1, kind="stable")
    return score.shape[-1] - 1 - reversed_order


def ranks(order: np.ndarray) -> np.ndarray:
    """When each block is removed: order (..., L) of block indices -> (..., L) ranks by block, 1 = removed first."""
    return np.argsort(order, axis=-1, kind="stable") + 1


def angular_grid(sums: ActivationSums, tokens: str = "last") -> np.ndarray:
    """Angular distance of every contiguous run of blocks (Gromov et al. 2024, eq. 6).

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
    """The first block of the run of n blocks with the smallest angular distance; ties toward the deeper run.

    Raises:
        StudyError: n is not between 1 and the number of blocks.
    """
    if not 1 <= n <= len(grid):
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
