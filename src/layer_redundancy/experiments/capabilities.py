"""What a model can do, unit by unit, with and without blocks: redundant for what?

Running text is measured in nats a token, block of text by block of text. A task is measured item by item in two ways:
whether the right choice is the likeliest, and the log of its share among the choices' probabilities, which falls long
before accuracy does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layer_redundancy.core import stats
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import result_tables

TEXT = "text"
NATS, ACCURACY = "nats", "accuracy"  # units of a loss


def words(task: str) -> str:
    """A task's name in words."""
    return task.replace("_", " ")


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


def of_results(
    results: Mapping[str, Mapping[Variant, Result]], tasks: Sequence[ChoiceTask], variants: Sequence[Variant]
) -> list[Capability]:
    """Text and tasks under some variants, in this order; tasks that were not measured on all of them are left out."""
    found = []
    if "perplexity" in results:
        found.append(Capability(TEXT, _stacked(results["perplexity"], variants, result_tables.cost)))
    for task in tasks:
        of_task = results.get(task.name, {})
        if all(variant in of_task for variant in variants):
            found.append(
                Capability(
                    words(task.items.name),
                    _stacked(of_task, variants, lambda result: -result.arrays["gold_share"]),
                    _stacked(of_task, variants, result_tables.right),
                    of_task[variants[0]].summary["chance"],
                )
            )
    return found


def _stacked(results: Mapping[Variant, Result], variants: Sequence[Variant], values: object) -> np.ndarray:
    assert callable(values)
    return np.stack([values(results[variant]) for variant in variants], axis=1)


def damage(capabilities: Sequence[Capability]) -> pd.DataFrame:
    """What each variant loses against the first, paired unit by unit.

    Returns:
        A row a (capability, unit, variant but the first): on, unit (NATS or ACCURACY), place (of the variant, from 1),
        damage with its 95 % interval low, high (Student's t over units), n, seen (whether the interval excludes 0).
    """
    rows = []
    for one in capabilities:
        for unit in (NATS, ACCURACY):
            loss = one.of(unit)
            if loss is None:
                continue
            for place in range(1, loss.shape[1]):
                paired = loss[:, place] - loss[:, 0]
                low, high = (stats.mean_interval if unit == NATS else stats.paired_interval)(paired)
                row = {"on": one.name, "unit": unit, "place": place, "damage": paired.mean(), "low": low, "high": high}
                rows.append(row | {"n": one.units, "seen": bool(low > 0 or high < 0)})
    return pd.DataFrame(rows)


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
