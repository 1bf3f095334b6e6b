"""Notebook 02: every block removed in turn (ShortGPT 2.1, figure 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.study import Study

NOTEBOOK = "02_single_layer_removal"


@dataclass(frozen=True, eq=False)
class Measured:
    """The dense model and every single removal.

    Attributes:
        results: measurement -> variant -> result.
        checked: variants that were also run by plain forwards.
        deviation: largest difference between these plain forwards and the sweep, nats a token.
    """

    results: Mapping[str, Mapping[Variant, Result]]
    checked: tuple[Variant, ...]
    deviation: float


def measure(study: Study) -> Measured:
    """Measures the dense model and every single removal on perplexity and the profile's tasks.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
    """
    few_blocks.need_removable(study, "nothing to remove in turn")
    few_blocks.need_task(study)
    chosen = [study.dense, *variants.single_removal(study.num_blocks)]
    results = study.sweep(chosen)
    checked = tuple(chosen[:: max(1, len(chosen) // 3)])
    return Measured(results, checked, study.deviation(checked))


def perplexity(study: Study, found: Measured) -> pd.DataFrame:
    """Columns of `result_tables.perplexity`, `removed` as `block` (NaN for the dense model)."""
    return result_tables.by_block(result_tables.perplexity(found.results["perplexity"], study.dense)[0])


def accuracy(study: Study, found: Measured) -> pd.DataFrame:
    """Columns of `result_tables.accuracy` for all tasks, `removed` as `block` (NaN for the dense model)."""
    parts = [result_tables.accuracy(found.results[t.name], study.dense, t.items.name) for t in study.tasks]
    return result_tables.by_block(pd.concat(parts))


def claim(study: Study, found: Measured) -> pd.DataFrame:
    """ShortGPT's reading of figure 3 as statements, on perplexity and every task that the dense model can do.

    Returns:
        Columns of `stats.claim`, and on (the measurement).
    """
    table = accuracy(study, found)
    better = table[table["block"].isna() & (table["low"] > table["chance"])]["task"]
    seed, resamples = study.profile.seed, study.profile.bootstrap_resamples
    return pd.concat(
        depth_claim(result_tables.damage(found.results[name], study.dense), resamples, seed).assign(on=name)
        for name in ["perplexity", *(f"task/{task}" for task in better)]
    )


def depth_claim(costs: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    """Does ShortGPT's reading of figure 3 hold: middle-to-late blocks redundant, the first and the last critical?

    Args:
        costs: (N, L) costs, from `result_tables.damage`.
        resamples: bootstrap resamples of the N blocks of text or items.
        seed: seed of the resampling.

    Returns:
        statement, measured, threshold, holds, certainty (share of the resamples in which it holds too). "Middle to
        late" are the blocks from a third of the depth on, without the last; "early" those before, without the first.
        Statements about blocks that a shallow model does not have are left out.
    """
    return stats.claim(_depth_statements, costs, resamples, seed)


def _depth_statements(cost: np.ndarray) -> list[Statement]:
    """Statements on the mean cost (L,) of each block's removal."""
    num = len(cost)
    third = max(1, num // 3)
    inner, early, middle = cost[1:-1], cost[1:third], cost[third : num - 1]
    statements = []
    if len(inner):
        limit = np.percentile(inner, 90)
        for name, value in (("first", cost[0]), ("last", cost[-1])):
            statements.append((f"{name} block costs more than 90 % of the inner blocks", value, limit, value > limit))
    if len(middle):
        if len(early):
            a, b = np.median(middle), np.median(early)
            statements.append(("median middle-to-late block costs less than the median early one", a, b, a < b))
        a, b = middle.min(), np.delete(cost, range(third, num - 1)).min()
        statements.append(("the cheapest block is a middle-to-late one", a, b, a < b))
    return statements


def values(perplexity: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Figure 3's values, a row a removed block, the dense model ("none") first.

    Args:
        perplexity: perplexities by block, from `perplexity`.
        accuracy: accuracies by block, from `accuracy`.

    Returns:
        removed block, perplexity, log_increase with its 95 % interval, and each task's accuracy with its own.
    """
    table = perplexity.set_index("block")
    out = pd.DataFrame({"perplexity": table["perplexity"], "log_increase": table["log_increase"]})
    out["95 % (paired)"] = _intervals(table["log_increase_low"], table["log_increase_high"], 3)
    for task, part in accuracy.groupby("task", sort=False):
        part = part.set_index("block")
        out[f"{task} ({part['metric'].iloc[0]}, n={part['n'].iloc[0]})"] = part["accuracy"]
        out[f"{task} 95 %"] = _intervals(part["low"], part["high"], 2)
    out = out.sort_index(na_position="first").reset_index(names="removed block")
    out["removed block"] = ["none" if np.isnan(b) else str(int(b)) for b in out["removed block"]]
    return out


def _intervals(low: pd.Series, high: pd.Series, digits: int) -> pd.Series:
    return pd.Series([f"{a:.{digits}f} to {b:.{digits}f}" for a, b in zip(low, high, strict=True)], index=low.index)
