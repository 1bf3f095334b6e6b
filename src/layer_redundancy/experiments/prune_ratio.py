"""Notebook 03: a growing share of the blocks removed by Block Influence (ShortGPT figure 2b, 4.1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.study import Study

NOTEBOOK = "03_prune_ratio"


@dataclass(frozen=True, eq=False)
class Measured:
    """Every depth of removal in the order of an importance measure.

    Attributes:
        order: the blocks, first removed first; (L,).
        removals: number of removed blocks -> variant.
        results: measurement -> variant -> result.
    """

    order: np.ndarray
    removals: dict[int, Variant]
    results: Mapping[str, Mapping[Variant, Result]]

    def curves(self) -> dict[str, np.ndarray]:
        """Measurement -> values (L, N) from `depth_curves.values`."""
        return {name: depth_curves.values(of, self.removals) for name, of in self.results.items()}


def measure(study: Study, by: str = "block_influence") -> Measured:
    """Removes blocks in the order of an importance measure until one is left.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
        StudyError: a measure that is not known, or not computed from activations or positions.
    """
    few_blocks.need_removable(study, "there is no share of the blocks to remove")
    few_blocks.need_task(study)
    few_blocks.say_what_shares_are(study.num_blocks, [0.25])
    order = study.order(by)
    removals = dict(enumerate(variants.cumulative_removal(study.num_blocks, order)))
    return Measured(order, removals, study.sweep(list(removals.values())))


def perplexity(study: Study, found: Measured) -> pd.DataFrame:
    """`result_tables.perplexity` along the depths."""
    table, _ = result_tables.perplexity(found.results["perplexity"], study.dense)
    return depth_curves.along(table, found.removals, study.num_blocks)


def accuracy(study: Study, found: Measured) -> pd.DataFrame:
    """`result_tables.accuracy` of all tasks along the depths."""
    return pd.concat(
        depth_curves.along(
            result_tables.accuracy(found.results[task.name], study.dense, task.items.name),
            found.removals,
            study.num_blocks,
        )
        for task in study.tasks
    )


def known_tasks(accuracy: pd.DataFrame) -> list[str]:
    """The tasks that the dense model does better than chance; argument from `accuracy`."""
    dense = accuracy[accuracy["count"] == 0].set_index("task")
    return [task for task in dense.index if dense["low"][task] > dense["chance"][task]]


def cliffs(study: Study, found: Measured, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Where each known task's accuracy falls.

    Returns:
        task, columns of `cliff`, block (removed at the cliff), share, share_low, share_high (percent of the blocks); no
        row where the dense model knows no task.
    """
    seed, resamples = study.profile.seed, study.profile.bootstrap_resamples
    curves = found.curves()
    table = pd.DataFrame([{"task": t, **cliff(curves[f"task/{t}"], resamples, seed)} for t in known_tasks(accuracy)])
    if len(table):
        table = table.assign(block=found.order[table["count"] - 1])
        for end, column in (("share", "count"), ("share_low", "low"), ("share_high", "high")):
            table[end] = 100 * table[column] / study.num_blocks
    return table


def cliff_table(cliffs: pd.DataFrame) -> pd.DataFrame:
    """`cliffs` with the headings of the table."""
    names = {"count": "removed at the cliff", "block": "block removed there", "low": "95 % from", "high": "to"}
    names |= {"certainty": "same in resamples", "falls": "after is lower"}
    columns = ["task", "count", "block", "low", "high", "certainty", "before", "after", "falls"]
    return cliffs[columns].rename(columns=names)


def claim(study: Study, found: Measured, accuracy: pd.DataFrame) -> pd.DataFrame:
    """`ratio_claim` on perplexity and every known task."""
    seed, resamples = study.profile.seed, study.profile.bootstrap_resamples
    curves, known = found.curves(), known_tasks(accuracy)
    chance = accuracy[accuracy["count"] == 0].set_index("task")["chance"]
    chosen = {"perplexity": curves["perplexity"], **{t: curves[f"task/{t}"] for t in known}}
    return ratio_claim(chosen, chance.to_dict(), resamples, seed)


def kept(accuracy: pd.DataFrame, num_blocks: int, reported: pd.DataFrame) -> pd.DataFrame:
    """What is left of the accuracy at the ratios for which the paper prints MMLU.

    Args:
        accuracy: accuracies at all depths, from `depth_curves.along`.
        reported: `paper_tables.mmlu_by_ratio()`.

    Returns:
        paper's model, removed there (blocks), removed here; then for the paper's MMLU and for every task measured the
        accuracy kept, of the dense model's, and above chance, of what the dense model has above chance (percent).
    """
    rows = []
    for entry in reported[reported["share"] > 0].itertuples():
        of_model = reported[reported["label"] == entry.label]
        base = of_model.loc[of_model["share"] == 0, "accuracy"].iloc[0]
        k = min(num_blocks - 1, max(1, round(entry.share / 100 * num_blocks)))
        row = {
            "paper's model": entry.model,
            "removed, paper": f"{entry.removed} of {entry.num_layers}",
            "removed, here": f"{k} of {num_blocks}",
            "MMLU kept, paper (%)": 100 * entry.accuracy / base,
            "MMLU, above chance, paper (%)": 100 * (entry.accuracy - 0.25) / (base - 0.25),
        }
        for task, part in accuracy.groupby("task", sort=False):
            part = part.set_index("count")
            chance, value, dense = part["chance"].iloc[0], part["accuracy"][k], part["accuracy"][0]
            row[f"{task} kept, measured (%)"] = 100 * value / dense if dense else np.nan
            row[f"{task}, above chance (%)"] = 100 * (value - chance) / (dense - chance) if dense > chance else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def cliff(curve: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Where a curve of accuracy falls: the depth that splits it best into a level before and a level after.

    Args:
        curve: (K, N) accuracy of N items at 0, 1, ..., K - 1 removed blocks; K at least 2.
        resamples: bootstrap resamples of the items.
        seed: seed of the resampling.

    Returns:
        count: removed blocks at the first depth after the fall, the one with the smallest sum of squares about the two
        levels (Hinkley 1970); low, high: 95 % of the resamples; certainty: share of the resamples with the same count;
        before, after: the levels; falls: share of the resamples in which the level after is the lower one.
    """
    found = [_split(mean) for mean in stats.bootstrap_means(curve.T, resamples, seed)]
    count, before, after = _split(curve.mean(1))
    counts = np.array([c for c, _, _ in found])
    low, high = np.percentile(counts, stats.INTERVAL, method="nearest")
    return {
        "count": count,
        "low": int(low),
        "high": int(high),
        "certainty": float((counts == count).mean()),
        "before": before,
        "after": after,
        "falls": float(np.mean([b > a for _, b, a in found])),
    }


def _split(mean: np.ndarray) -> tuple[int, float, float]:
    """(first index after the fall, level before, level after); the first of equals."""
    costs = [mean[:c].var() * c + mean[c:].var() * (len(mean) - c) for c in range(1, len(mean))]
    c = int(np.argmin(np.round(costs, 12))) + 1
    return c, float(mean[:c].mean()), float(mean[c:].mean())


def ratio_claim(
    curves: Mapping[str, np.ndarray], chance: Mapping[str, float], resamples: int, seed: int
) -> pd.DataFrame:
    """ShortGPT 4.1 on figure 5: performance declines with the ratio, and accuracy falls at a certain block.

    Args:
        curves: measurement -> (L, N) at 0, 1, ..., L - 1 removed blocks; "perplexity" holds mean NLL in nats.
        chance: task -> accuracy of guessing.

    Returns:
        on (measurement), statement, measured, threshold, holds, certainty. No row for two blocks, of which one can go:
        a single step has no steadiness, takes all of the fall, and is half of the blocks.
    """
    parts = []
    for name, curve in curves.items():
        steps = np.arange(len(curve))
        quarter = depth_curves.at_ratio(len(curve), 0.25)
        if len(curve) < 3:
            continue

        def statements(
            mean: np.ndarray, name: str = name, steps: np.ndarray = steps, quarter: int = quarter
        ) -> list[Statement]:
            worse = mean if name == "perplexity" else -mean
            (tau,) = stats.kendall_taus(steps, worse[None])
            first = [("declines steadily with blocks removed: Kendall's tau", tau, 0.8, bool(tau > 0.8))]
            if name == "perplexity":
                return first
            total = mean[0] - mean[-1]
            largest = -np.diff(mean).min() / total if total > 0 else 0.0
            kept = mean[quarter] / mean[0]
            above = (mean[quarter] - chance[name]) / max(mean[0] - chance[name], 1e-9)
            return [
                *first,
                ("one block's removal takes at least half of the whole fall", largest, 0.5, bool(largest >= 0.5)),
                ("92 % of the accuracy is left after a quarter of the blocks", kept, 0.92, bool(kept >= 0.92)),
                ("92 % of what exceeds chance is left after a quarter", above, 0.92, bool(above >= 0.92)),
            ]

        parts.append(stats.claim(statements, curve.T, resamples, seed).assign(on=name.removeprefix("task/")))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*stats.CLAIM, "on"])
