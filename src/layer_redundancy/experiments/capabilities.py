"""What a model can do, unit by unit, with and without blocks: redundant for what?

Running text is measured in nats a token, block of text by block of text. A task is measured item by item in two ways:
whether the right choice is the likeliest, and the log of its share among the choices' probabilities, which falls long
before accuracy does.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from layer_redundancy.core import stats, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import result_tables
from layer_redundancy.figures.style import words

TEXT, AGREEMENT, COPYING = "text", "agreement", "copying"
NATS, ACCURACY = "nats", "accuracy"  # units of a loss

Condition = TypeVar("Condition", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Capability:
    """One capability under V variants, by N units: blocks of text, or items.

    Attributes:
        name: "text", or a task in words.
        nats: (N, V) loss: mean negative log-likelihood a token of a block of text, or minus the log of the right
            choice's share among an item's choices, NaN where several choices are right.
        right: (N, V) 1 for an item whose right choice is the likeliest, else 0; None for text.
        chance: accuracy of guessing; NaN for text.
    """

    name: str
    nats: np.ndarray
    right: np.ndarray | None = None
    chance: float = np.nan

    @property
    def units(self) -> int:
        """N, the blocks of text or items."""
        return len(self.nats)

    @property
    def in_nats(self) -> bool:
        """Whether every unit has a loss in nats."""
        return bool(np.isfinite(self.nats).all())

    def of(self, unit: str) -> np.ndarray | None:
        """Loss (N, V) in NATS, or minus what is right; None where there is none. Larger is worse."""
        if unit == NATS:
            return self.nats if self.in_nats else None
        return None if self.right is None else -self.right

    def damage(self, unit: str) -> np.ndarray:
        """(N, V - 1) loss of each variant but the first above that of the first, in a unit that there is."""
        loss = self.of(unit)
        assert loss is not None, f"{self.name} has no loss in {unit}"
        return loss[:, 1:] - loss[:, :1]


def of_results(
    results: Mapping[str, Mapping[Variant, Result]], tasks: Sequence[ChoiceTask], variants: Sequence[Variant]
) -> list[Capability]:
    """Text and tasks under some variants, in this order; tasks that were not measured on all of them are left out."""
    found = []
    if "perplexity" in results:
        found.append(Capability(TEXT, _stacked(results["perplexity"], variants, result_tables.cost)))
    for task in tasks:
        known = results.get(task.name, {})
        if all(variant in known for variant in variants):
            found.append(of_task(task.items.name, known, variants))
    return found


def of_task(task: str, results: Mapping[Condition, Result], conditions: Sequence[Condition]) -> Capability:
    """A task under some variants, or other conditions, in this order."""
    return Capability(
        words(task),
        _stacked(results, conditions, lambda result: -result.arrays["gold_share"]),
        _stacked(results, conditions, result_tables.right),
        results[conditions[0]].summary["chance"],
    )


def _stacked(
    results: Mapping[Condition, Result], conditions: Sequence[Condition], values: Callable[[Result], np.ndarray]
) -> np.ndarray:
    return np.stack([values(results[condition]) for condition in conditions], axis=1)


def damage(capabilities: Sequence[Capability]) -> pd.DataFrame:
    """What each variant loses against the first, paired unit by unit.

    Returns:
        A row a (capability, unit, variant but the first): on, unit (NATS or ACCURACY), place (of the variant, from 1),
        damage with its 95 % interval low, high (Student's t over units), n, seen (whether it differs from nothing at a
        level of `verdicts.LEVEL` for all variants together, Holm).
    """
    parts = []
    for one in capabilities:
        for unit in (NATS, ACCURACY):
            if one.of(unit) is None:
                continue
            rows = []
            for place, paired in enumerate(one.damage(unit).T, start=1):
                low, high = (stats.mean_interval if unit == NATS else stats.paired_interval)(paired)
                rows.append((one.name, unit, place, paired.mean(), low, high, one.units))
            part = pd.DataFrame(rows, columns=["on", "unit", "place", "damage", "low", "high", "n"])
            parts.append(part.assign(seen=above(part) | below(part)))
    return pd.concat(parts, ignore_index=True)


def below(damages: pd.DataFrame, most: float = 0.0) -> pd.Series:
    """Which damages are smaller than a value, at a level of `verdicts.LEVEL` for all rows together (Holm).

    Args:
        damages: damage with its 95 % interval low, high over n units; from `damage`.
        most: the value, same unit.
    """
    degrees = damages["n"] - 1
    error = (damages["high"] - damages["low"]) / 2 / student_t.ppf(0.975, degrees)
    beyond = damages["damage"] - most
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * student_t.sf(np.abs(beyond / error), degrees)
    return (verdicts.holm(p) <= verdicts.LEVEL) & (beyond < 0)


def above(damages: pd.DataFrame, least: float = 0.0) -> pd.Series:
    """Which damages are larger than a value; otherwise as `below`."""
    return below(damages.assign(damage=-damages["damage"]), -least)


def solved(one: Capability) -> bool:
    """Whether the first variant does a task better than chance: the interval of its accuracy lies above it."""
    if one.right is None:
        return False
    low, _ = stats.accuracy_interval(round(one.right[:, 0].sum()), one.units)
    return low > one.chance


def lost(whole: Result, part: Result) -> bool:
    """Whether a task that the whole model solves is surely solved less often by what is left of it."""
    right = np.stack([result_tables.right(whole), result_tables.right(part)], axis=1)
    one = Capability("", np.full(right.shape, np.nan), right, whole.summary["chance"])
    return solved(one) and stats.paired_interval(right[:, 0] - right[:, 1])[0] > 0
