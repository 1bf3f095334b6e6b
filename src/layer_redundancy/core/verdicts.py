"""Statements about what was measured, and what the data say of each: supported, refuted, undecided, not testable here.

An experiment words a claim as a few statements that can be false, judges each on its units (`judge`, `judged_draws`),
and gives them together to `verdicts`, which corrects for their number (Holm 1979) and says how small a difference could
have been seen at all.

Standard errors are those of bootstrap resamples, with Student's t of one degree of freedom less than there are units:
right for a mean of few normal values, where the percentiles of the resamples are too narrow, and defined for any other
figure. N is the number of units: blocks of text, items, prompts, seeds or draws of calibration text. M is the number of
values of a unit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import nct
from scipy.stats import t as student_t

from layer_redundancy.core import stats

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTABLE = "supported", "refuted", "undecided", "not testable here"
LEVEL = 0.05  # of all statements of a notebook together, two-sided
POWER = 0.8  # below it a statement that nothing was found for counts as not tested

COLUMNS = [
    "role", "statement", "on", "measured", "threshold", "holds_if", "difference", "low", "high", "p", "detectable",
    "matters", "power", "verdict",
]  # fmt: skip
_SHOWN = ["statement", "on", "measured", "holds if", "difference (95 %)", "detectable", "p", "verdict"]
_RAW = ["statement", "on", "measured", "threshold", "holds_if", "matters", "error", "degrees"]


@dataclass(frozen=True)
class Statement:
    """Something that a claim says, in numbers.

    Attributes:
        name: the statement in plain words.
        measured: the measured value, any unit.
        threshold: what it is compared with, same unit; a measured value too, or a number.
        holds: "above": it holds if measured > threshold; "below": if measured < threshold; "within": if |measured| <
            threshold, so that `threshold` is the largest difference that still counts as none.
        matters: the smallest difference between the two that anybody would care about, same unit. Of "within" it is
            the threshold, and need not be given.
    """

    name: str
    measured: float
    threshold: float
    holds: Literal["above", "below", "within"] = "above"
    matters: float | None = None

    @property
    def difference(self) -> float:
        """measured - threshold; of "within" the measured value, which is a difference itself."""
        return self.measured if self.holds == "within" else self.measured - self.threshold


Statements = Callable[[np.ndarray], list[Statement]]


def judge(
    statements: Statements, values: np.ndarray, resamples: int, seed: int, on: str = "perplexity", least: float = 0.0
) -> pd.DataFrame:
    """Statements about means over units, with the standard error of each; `verdicts` decides.

    Args:
        statements: (M,) means -> statements, as many and of the same names in the same order whatever the means.
        values: (N, M) of N independent units, or (S, N, M) of two crossed kinds of unit, such as S training seeds or
            draws of calibration text on N blocks of evaluation text: both are resampled.
        resamples: bootstrap resamples of each kind of unit.
        seed: the seed of the resampling.
        on: the measurement that the statements are about.
        least: as in `judged_draws`.

    Returns:
        A row a statement that has numbers, for `verdicts`.

    Raises:
        StudyError: as `stats.bootstrap_means`.
    """
    values = np.asarray(values, float)
    kinds = [values] if values.ndim == 2 else [values.mean(1), values.mean(0)]
    whole = statements(kinds[0].mean(0))
    drawn = []
    for place, one in enumerate(kinds):
        # Where all units agree, resamples do too; of single units at 0 or 1 that would be too sure.
        coarse = 1 / len(one) if np.isin(one, (-1, 0, 1)).all() else 0.0
        drawn.append(([statements(mean) for mean in stats.bootstrap_means(one, resamples, seed + place)], coarse))

    def error(draws: np.ndarray, units: int, kind: int) -> float:
        return max(stats.standard_error(draws, units), drawn[kind][1])

    return _raw(whole, [draws for draws, _ in drawn], list(map(len, kinds)), error, on, least)


def judged_draws(
    whole: Sequence[Statement],
    draws: Sequence[Sequence[Sequence[Statement]]],
    units: Sequence[int],
    on: str = "perplexity",
    least: float = 0.0,
) -> pd.DataFrame:
    """As `judge`, for what is no function of means: statements on resamples of one's own.

    Args:
        whole: the statements on all data.
        draws: for each independent kind of unit that was drawn, the statements on each of its resamples.
        units: for each kind, how many units there are.
        on: the measurement that the statements are about.
        least: the standard error of a figure that comes out the same in all resamples. One that moves in steps, such
            as a share of few blocks, may have been too coarse to show what varies: its smallest step over the number of
            units, as if a single one had moved it.
    """

    def error(draws: np.ndarray, units: int, kind: int) -> float:
        return stats.standard_error(draws, units)

    return _raw(whole, draws, units, error, on, least)


def _raw(
    whole: Sequence[Statement],
    draws: Sequence[Sequence[Sequence[Statement]]],
    units: Sequence[int],
    error_of: Callable[[np.ndarray, int, int], float],
    on: str,
    least: float = 0.0,
) -> pd.DataFrame:
    rows = []
    for i, one in enumerate(whole):
        if np.isnan(one.measured) or np.isnan(one.threshold):
            continue  # a model too small for it
        again = [np.array([drawn[i].difference for drawn in of_kind], float) for of_kind in draws]
        errors = [error_of(d, n, kind) for kind, (d, n) in enumerate(zip(again, units, strict=True))]
        error, degrees = stats.combined(errors, [min(n, len(d)) for d, n in zip(again, units, strict=True)])
        error = least if error == 0 else error
        matters = one.threshold if one.holds == "within" else one.matters
        rows.append((one.name, on, one.measured, one.threshold, one.holds, matters, error, degrees))
    return pd.DataFrame(rows, columns=_RAW)


def verdicts(parts: Sequence[pd.DataFrame], primary: str) -> pd.DataFrame:
    """What the data say of all statements of a notebook.

    Args:
        parts: tables from `judge` and `judged_draws`.
        primary: the name of the notebook's one primary statement; a model too small for it may lack it.

    Returns:
        A row a statement, the primary first: role ("primary" or ""), statement, on, measured, threshold, holds_if
        ("above", "below" or "within"), difference (measured - threshold; of "within" measured) with its 95 % interval
        low, high; p (two-sided, after Holm's correction for all rows), detectable (the smallest difference that is
        found with a probability of 0.8 at the level that is left after the correction), matters, power (the probability
        to find a difference that matters), verdict.

    Raises:
        ValueError: the primary statement is there more than once, or one says of no difference that it matters.
    """
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else None
    if rows is None:
        return pd.DataFrame(columns=COLUMNS)
    leads = rows["statement"] == primary
    if leads.sum() > 1:
        raise ValueError(f"{primary!r} must be one statement")
    if rows["matters"].isna().any():
        silent = rows.loc[rows["matters"].isna(), "statement"].iloc[0]
        raise ValueError(f"{silent!r} must say what difference matters")
    within = rows["holds_if"] == "within"
    difference = rows["measured"] - rows["threshold"].where(~within, 0.0)
    half = student_t.ppf(0.975, rows["degrees"]) * rows["error"]
    decided = [_p(row) for row in rows.itertuples()]
    p = holm(np.array([one for one, _ in decided]))
    level = LEVEL / max(1, np.isfinite(p).sum())
    critical = student_t.ppf(1 - level / 2, rows["degrees"])
    # To be found equal while it is, both sides must be seen: each with half of what may be missed.
    seen = np.where(within, (1 + POWER) / 2, POWER)
    out = rows.assign(
        role=np.where(leads, "primary", ""),
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=p,
        detectable=(critical + student_t.ppf(seen, rows["degrees"])) * rows["error"],
        power=[_power(row, c) for row, c in zip(rows.itertuples(), critical, strict=True)],
    )
    out["verdict"] = [
        NOT_TESTABLE if np.isnan(row.p)
        else (SUPPORTED if holds else REFUTED) if row.p <= LEVEL
        else NOT_TESTABLE if row.power < POWER
        else UNDECIDED
        for row, (_, holds) in zip(out.itertuples(), decided, strict=True)
    ]  # fmt: skip
    return out.sort_values("role", ascending=False, kind="stable", ignore_index=True)[COLUMNS]


def _p(row: Any) -> tuple[float, bool]:
    """Two-sided p of a raw row, and on which side it lies (True: the statement's)."""
    measured, threshold, error, degrees = row.measured, row.threshold, row.error, row.degrees
    if not (degrees >= 1 and np.isfinite(error)):
        return np.nan, False

    def beyond(distance: float) -> float:
        """One-sided p of a value so far on the right side."""
        if error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(student_t.sf(distance / error, degrees))

    if row.holds_if == "within":
        # Two one-sided tests (Schuirmann 1987).
        holds = max(beyond(threshold - measured), beyond(threshold + measured))
        fails = beyond(abs(measured) - threshold)
    else:
        sign = 1 if row.holds_if == "above" else -1
        holds, fails = beyond(sign * (measured - threshold)), beyond(sign * (threshold - measured))
    return min(1.0, 2 * min(holds, fails)), holds < fails


def _power(row: Any, critical: float) -> float:
    """The probability to find a difference that matters; to find equality, where there is none."""
    matters, error, degrees = row.matters, row.error, row.degrees
    if matters is None or np.isnan(matters) or not (degrees >= 1 and np.isfinite(error)):
        return np.nan
    if error == 0:
        return 1.0
    if row.holds_if == "within":
        return float(max(0.0, 2 * student_t.cdf(matters / error - critical, degrees) - 1))
    return float(nct.sf(critical, degrees, matters / error))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (K,) corrected for their number so that all together err at their level (Holm 1979); NaN stays NaN."""
    out = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps * p[order]))
    return out


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `verdicts` as people read it: fewer columns, numbers with their intervals as text."""
    signs = {"above": ">", "below": "<", "within": "within ±"}
    rows = []
    for row in table.itertuples():
        rows.append(
            {
                "statement": f"{row.statement}{' (primary)' if row.role == 'primary' else ''}",
                "on": row.on,
                "measured": _short(row.measured),
                "holds if": f"{signs[row.holds_if]} {_short(row.threshold)}".replace("± ", "±"),
                "difference (95 %)": f"{_short(row.difference)} ({_short(row.low)} to {_short(row.high)})",
                "detectable": _short(row.detectable),
                "p": "" if np.isnan(row.p) else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}",
                "verdict": row.verdict,
            }
        )
    return pd.DataFrame(rows, columns=_SHOWN)


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"


def summary(table: pd.DataFrame) -> str:
    """The verdicts in a line or two: the primary statement's, then how many there are of each."""
    if table.empty:
        return "no statement can be made about this model"
    counts = table["verdict"].value_counts()
    line = ", ".join(f"{counts[v]} {v}" for v in (SUPPORTED, REFUTED, UNDECIDED, NOT_TESTABLE) if v in counts)
    lines = [f"{len(table)} statements: {line}"]
    for row in table[table["role"] == "primary"].itertuples():
        interval = f"{_short(row.difference)}, 95 % {_short(row.low)} to {_short(row.high)}"
        lines.insert(0, f"'{row.statement}' ({row.on}) is {row.verdict} (difference {interval})")
    return "\n".join(lines)
