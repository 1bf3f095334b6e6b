"""Every bootstrap, interval and test of the study.

Each function draws in its own way: which units, in which order and through which call. The committed numbers depend on
that to the last bit, so functions that are alike here stay apart (`tests/core/test_stats.py` holds literal values of
each). All of them raise StudyError for a number of resamples below 1, a seed that is none, and nothing to resample.

Resampling is with replacement, as many as there are. R is the number of resamples, N that of the units that are drawn:
blocks of text, items, prompts or calibration sequences.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from layer_redundancy.core.arguments import is_whole, plain, shown, whole
from layer_redundancy.core.errors import StudyError

INTERVAL = (2.5, 97.5)  # percentiles of resampled places in an order, which have no standard error
MOST = 10**6  # resamples: more move no interval, and no memory holds them


# ------------------------------------------------------------------------------------- intervals without resampling


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean of a few values (N,); NaN for a single one.

    Text blocks are few, and the bootstrap's percentiles are too narrow for few.
    """
    if len(values) < 2:
        return np.nan, np.nan
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean of paired differences (N,); NaN for a single one.

    Items on which all agree would make it too sure: it is never narrower than if a single one of N had differed.
    """
    low, high = mean_interval(differences)
    if len(differences) > 1 and np.isin(differences, (-1, 0, 1)).all():
        half = max((high - low) / 2, float(student_t.ppf(0.975, len(differences) - 1)) / len(differences))
        return differences.mean() - half, differences.mean() + half
    return low, high


def accuracy_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion (Wilson 1927), which stays inside 0..1 and is sound for small n.

    Raises:
        StudyError: not 0 to n successes of at least one trial.
    """
    if not (n >= 1 and 0 <= successes <= n and successes == int(successes) and n == int(n)):
        raise StudyError(
            f"{shown(successes)} of {shown(n)} is no proportion: give 0 to n successes of 1 or more trials"
        )
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


# ------------------------------------------------------------------------------------------------ drawing


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The random numbers of a seed; several numbers make one seed.

    Raises:
        StudyError: it is no seed, or none, with which no number would come out again.
    """
    numbers = plain(seed) if isinstance(plain(seed), list | tuple) else [plain(seed)]
    if not numbers or any(not is_whole(number) or number < 0 for number in numbers):
        raise StudyError(f"a seed must be a whole number from 0, not {shown(seed)}")
    return np.random.default_rng(seed)


def _checked(num: int, resamples: int, least: int = 1) -> None:
    """Raises StudyError where there is nothing to draw from, or resamples are fewer than makes sense, or more."""
    whole(resamples, "the number of resamples", least, MOST)
    if num < 1:
        raise StudyError("there is nothing to resample: no block of text, item, prompt or seed was measured")


# ------------------------------------------------------------------------------------------ intervals from resamples


def standard_error(draws: np.ndarray, units: int) -> float:
    """The standard error of a figure from its bootstrap resamples; NaN for a single unit, which varies in none, and for
    a single resample.

    Args:
        draws: (R,) the figure in each resample.
        units: N, how many were resampled. Resampling shows (N - 1) / N of the variance, which is made up for here.
    """
    if min(units, len(draws)) < 2:
        return np.nan
    if np.all(draws == draws[0]):
        return 0.0  # of equal numbers numpy's has a rounding error
    return float(np.std(draws, ddof=1) * np.sqrt(units / (units - 1)))


def combined(errors: Sequence[float], units: Sequence[int]) -> tuple[float, float]:
    """The standard error of a figure that several independent kinds of unit make uncertain, and its degrees of freedom.

    Args:
        errors: the standard error that each kind makes.
        units: how many units there are of each kind; where an error comes from fewer resamples, how many those are.

    Returns:
        The root of the sum of squares, and Welch and Satterthwaite's degrees of freedom: those of the kind that matters
        most, where one does. NaN and 0 where a kind has a single unit.
    """
    squares, degrees = np.square(errors), np.array(units) - 1
    if (degrees < 1).any():
        return np.nan, 0.0
    total = squares.sum()
    return float(np.sqrt(total)), float(total**2 / (squares**2 / degrees).sum()) if total > 0 else float(degrees.min())


def interval(estimate: float, draws: np.ndarray, units: int) -> tuple[float, float]:
    """95 % interval of a figure from its bootstrap resamples: Student's t times their standard error on either side.

    The percentiles of the resamples are too narrow where units are few: those of the mean of 4 normal values hold it in
    81 % of the cases instead of 95, of 8 in 89 %.

    Args:
        estimate: the figure on all data.
        draws: (R,) the figure in each resample.
        units: N, how many were resampled.

    Returns:
        NaN for a single unit or resample.
    """
    return interval_over_kinds(estimate, [draws], [units])


def interval_over_kinds(estimate: float, draws: Sequence[np.ndarray], units: Sequence[int]) -> tuple[float, float]:
    """95 % interval of a figure that several independent kinds of unit make uncertain, from resamples of each.

    Args:
        estimate: the figure on all data.
        draws: for each kind (R,), the figure in each of its resamples.
        units: for each kind, how many units were resampled.

    Returns:
        NaN where a kind has a single unit or resample.
    """
    errors = [standard_error(d, n) for d, n in zip(draws, units, strict=True)]
    error, degrees = combined(errors, [min(n, len(d)) for d, n in zip(draws, units, strict=True)])
    half = student_t.ppf(0.975, degrees) * error if degrees >= 1 else np.nan
    return float(estimate - half), float(estimate + half)


def crossed_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S, N) values of S seeds or draws on N units, where both could have been others.

    The variances of the means of either kind, added: what belongs to single cells counts twice, to the safe side.
    """
    kinds = values.mean(1), values.mean(0)
    errors = [means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan for means in kinds]
    error, degrees = combined(errors, values.shape)
    half = student_t.ppf(0.975, degrees) * error if degrees >= 1 else np.nan
    return float(values.mean() - half), float(values.mean() + half)


# --------------------------------------------------------------------------------------- one kind of unit resampled


def weighted_sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(R, N) weights of N rows of values (N, M) -> float64 (R, M), the same to the last bit wherever the operands lie.

    A matrix product's order of summation may depend on their place in memory; differences of 1 - cosine show it.
    """
    total = np.zeros((len(weights), values.shape[1]))
    for weight, value in zip(weights.T, values, strict=True):
        total += weight[:, None] * value
    return total


def unit_counts(num: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of N units is drawn in each resample: (R, N) int64, every row sums to N."""
    _checked(num, resamples)
    return generator(seed).multinomial(num, np.full(num, 1 / num), size=resamples)


def unit_rows(num: int, resamples: int, seed: int) -> np.ndarray:
    """Which of N units each resample consists of: (R, N) int64 of indices. Not the draws of `unit_counts`."""
    _checked(num, resamples, least=0)
    return generator(seed).integers(num, size=(resamples, num))


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means over resampled blocks of text, items, prompts or sequences: (N, ...) -> float64 (R, ...).

    A seed draws the same for the same N, so that differences between two of them are paired.
    """
    num = len(values)
    means = weighted_sums(unit_counts(num, resamples, seed) / num, values.reshape(num, -1).astype(float))
    return means.reshape(resamples, *values.shape[1:])


# ------------------------------------------------------------------------------------------------- rank correlation


def kendall_taus(first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between one ranking and many: scipy's `kendalltau` without p-values, which take most of its time.

    Args:
        first: (L,) numbers.
        others: (N, L) numbers.

    Returns:
        (N,) float64; nan where all numbers of a ranking are equal.
    """
    i, j = np.triu_indices(len(first), 1)
    sign = np.sign(np.subtract(first[i], first[j], dtype=float))
    signs = np.sign(others[:, i] - others[:, j])
    untied = np.sqrt(np.count_nonzero(sign)), np.sqrt(np.count_nonzero(signs, axis=1))
    with np.errstate(invalid="ignore"):
        return np.clip(signs @ sign / untied[0] / untied[1], -1.0, 1.0)
