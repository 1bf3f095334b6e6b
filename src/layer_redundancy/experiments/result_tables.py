"""Results -> tidy tables, one row a point of a figure; what figures and CSV files hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from layer_redundancy.config import paper_tables
from layer_redundancy.core import stats, variants
from layer_redundancy.core.stats import INTERVAL, Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums


def importance_scores(
    sums: ActivationSums, resamples: int, seed: int, first_token: Sequence[bool] = (True, False)
) -> pd.DataFrame:
    """Every measure's score of every block, with and without each sequence's first token.

    Returns:
        metric, first_token ("included" or "excluded"), block, score, low, high (95 % bootstrap interval over
        calibration sequences), rank (1 = removed first).
    """
    parts = []
    for first in first_token:
        for name in importance.MEASURES:
            score = importance.scores(sums, name, first)
            low, high = np.percentile(importance.bootstrap_scores(sums, name, resamples, seed, first), INTERVAL, axis=0)
            part = {
                "metric": name,
                "first_token": "included" if first else "excluded",
                "block": np.arange(sums.num_blocks),
                "score": score,
                "low": low,
                "high": high,
                "rank": importance.ranks(importance.removal_order(score, name)),
            }
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def order_stability(
    sums: ActivationSums, measure: str, resamples: int, seed: int, first_token: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How certain a measure's removal order is under resampling of the calibration sequences.

    Returns:
        inclusion: block, k, probability (of being among the first k removed), and with every row the block's rank, low,
        high; and ranks: block, rank, low, high (95 % of the resamples).
    """
    order = importance.removal_order(importance.scores(sums, measure, first_token), measure)
    draws = importance.bootstrap_scores(sums, measure, resamples, seed, first_token)
    orders = importance.removal_order(draws, measure)
    low, high = np.percentile(importance.ranks(orders), INTERVAL, axis=0, method="nearest")
    blocks = np.arange(sums.num_blocks)
    ranks = pd.DataFrame({"block": blocks, "rank": importance.ranks(order), "low": low, "high": high})
    inclusion = pd.DataFrame(importance.inclusion_probability(orders), columns=blocks).assign(k=blocks + 1)
    inclusion = inclusion.melt("k", var_name="block", value_name="probability").astype({"block": int})
    return inclusion.merge(ranks, on="block"), ranks


def order_agreement(sums: ActivationSums, measure: str, resamples: int, seed: int, removed: int) -> dict[str, float]:
    """A removal order's certainty in two numbers.

    Returns:
        kendall: mean rank correlation of a resample's order with the whole text's (1 = the same); same_set: share of
        resamples that remove the same `removed` blocks first.
    """
    order = importance.removal_order(importance.scores(sums, measure), measure)
    orders = importance.removal_order(importance.bootstrap_scores(sums, measure, resamples, seed), measure)
    rank = importance.ranks(order)
    kendall = np.mean([kendalltau(rank, importance.ranks(o)).statistic for o in orders])
    same = np.mean([set(o[:removed]) == set(order[:removed]) for o in orders])
    return {"kendall": float(kendall), "same_set": float(same)}


def angular_grid(sums: ActivationSums, tokens: str = "last") -> pd.DataFrame:
    """n, start, distance of every contiguous run of blocks (Gromov et al. 2024)."""
    grid = importance.angular_grid(sums, tokens)
    n, start = np.nonzero(np.isfinite(grid))
    return pd.DataFrame({"n": n + 1, "start": start, "distance": grid[n, start]})


def perplexity(results: Mapping[Variant, Result], dense: Variant) -> tuple[pd.DataFrame, pd.Series]:
    """Perplexity of every variant.

    Returns:
        A table with removed (tuple of blocks), perplexity, low, high, log_increase (mean NLL a token, in nats, above
        the dense model's), log_increase_low, log_increase_high; and the dense model's row. Intervals are 95 % t
        intervals over blocks of text of equal length; those of the increase are paired, block by block, so that the
        difficulty of the text cancels.
    """
    base = _nll(results[dense])
    rows = []
    for variant, result in results.items():
        nll = _nll(result)
        low, high = stats.mean_interval(nll)
        increase_low, increase_high = stats.mean_interval(nll - base)
        rows.append(
            {
                "removed": variants.removed_blocks(len(dense), variant),
                "perplexity": result.summary["perplexity"],
                "low": np.exp(low),
                "high": np.exp(high),
                "log_increase": (nll - base).mean(),
                "log_increase_low": increase_low,
                "log_increase_high": increase_high,
            }
        )
    table = pd.DataFrame(rows)
    return table, table[[not removed for removed in table["removed"]]].iloc[0]


def _nll(result: Result) -> np.ndarray:
    """Mean NLL a token of each block of text (N,), nats."""
    return result.arrays["nll"] / result.arrays["tokens"]


def damage(results: Mapping[Variant, Result], dense: Variant) -> np.ndarray:
    """What the removal of each single block costs, by block of text or by item.

    Args:
        results: of one measurement, for the dense model and every single removal.

    Returns:
        (N, L): increase of the mean NLL a token in nats of N blocks of text, or for a task the loss of accuracy of N
        items (1: answered by the dense model only, -1: by the pruned one only).
    """

    singles = variants.single_removal(len(dense))
    return np.stack([cost(results[v]) - cost(results[dense]) for v in singles], axis=1)


def cost(result: Result) -> np.ndarray:
    """What is the worse the larger it is: mean NLL a token in nats of each block of text, or for a task -1 for each
    item that is answered right and 0 for each that is not."""
    metric = accuracy_metric(result)
    return _nll(result) if metric is None else -result.arrays[metric]


def accuracy_metric(result: Result) -> str | None:
    """The accuracy that is drawn, or None for a result that is no task's."""
    names = [name for name in result.summary if name.startswith("acc")]
    return primary_metric(names) if names else None


def primary_metric(names: Sequence[str]) -> str:
    """The accuracy that is drawn: acc_norm where the task has it, since answers differ in length; else acc."""
    return "acc_norm" if "acc_norm" in names else names[0]


def accuracy(results: Mapping[Variant, Result], dense: Variant, task: str) -> pd.DataFrame:
    """Accuracy of every variant on one task.

    Returns:
        removed (tuple of blocks), task, metric, accuracy (0 to 1), low, high (95 % Wilson interval), n (items), chance,
        gold_logprob (mean log-probability of the right answer, nats).
    """
    rows = []
    for variant, result in results.items():
        metric = accuracy_metric(result)
        values = result.arrays[metric]
        low, high = stats.accuracy_interval(round(values.sum()), len(values))
        rows.append(
            {
                "removed": variants.removed_blocks(len(dense), variant),
                "task": task,
                "metric": metric,
                "accuracy": values.mean(),
                "low": low,
                "high": high,
                "n": len(values),
                "chance": result.summary["chance"],
                "gold_logprob": result.arrays["gold_logprob"].mean(),
            }
        )
    return pd.DataFrame(rows)


def depth_claim(costs: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    """Does ShortGPT's reading of figure 3 hold: middle-to-late blocks redundant, the first and the last critical?

    Args:
        costs: (N, L) from `damage`.
        resamples: bootstrap resamples of the N blocks of text or items.
        seed: of the resampling.

    Returns:
        statement, measured, threshold, holds, certainty (share of the resamples in which it holds too). "Middle to
        late" are the blocks from a third of the depth on, without the last; "early" those before, without the first.
        Statements about blocks that a shallow model does not have are left out.
    """
    return stats.claim(_depth_statements, costs, resamples, seed)


def _depth_statements(cost: np.ndarray) -> list[Statement]:
    """(statement, measured, threshold, holds) from the mean cost (L,) of each block's removal."""
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


def by_block(table: pd.DataFrame) -> pd.DataFrame:
    """`removed` as a column `block`, for variants that lack at most one block; NaN for the dense model."""
    block = [removed[0] if removed else np.nan for removed in table["removed"]]
    return table.drop(columns="removed").assign(block=block)


def strategies(scores: pd.DataFrame, num_blocks: int, ratio: float) -> pd.DataFrame:
    """ShortGPT's table 3 with what each strategy removes here.

    Args:
        scores: from `importance_scores`.
        ratio: share of blocks removed, 0 to 1; at least one block.

    Returns:
        strategy, rule, source, and the blocks that go first, in order.
    """
    count = max(1, round(ratio * num_blocks))
    rows: list[dict[str, Any]] = []
    for name, measure in importance.MEASURES.items():
        part = scores[(scores["metric"] == name) & (scores["first_token"] == "included")].sort_values("rank")
        rows.append(
            {
                "strategy": name,
                "removed first": measure.removed_first,
                "source": measure.source,
                f"first {count} of {num_blocks} removed": ", ".join(map(str, part["block"][:count])),
            }
        )
    return pd.DataFrame(rows)


def removed_layers(order: Sequence[int], reported: pd.DataFrame) -> pd.DataFrame:
    """A removal order beside those of ShortGPT's table 4, by relative depth, which models of any size share.

    Args:
        order: measured, first removed first.
        reported: `paper.table("table4")`.

    Returns:
        A row for each of the paper's models: the blocks it removes; the same share of the measured order; the mean
        relative depth of both (block / (blocks - 1); 0 = first block, 1 = last); and the difference.
    """
    num = len(order)
    theirs, ours, blocks = [], [], {}
    for row in reported.itertuples():
        count = max(1, round(len(row.removed_layers) / row.num_layers * num))
        blocks[row.model] = (list(row.removed_layers), [int(b) for b in order[:count]])
        theirs.append({"model": row.model, "depth": np.mean(row.removed_layers) / (row.num_layers - 1)})
        ours.append({"model": row.model, "depth": np.mean(order[:count]) / (num - 1)})
    table = paper_tables.compare(pd.DataFrame(ours), pd.DataFrame(theirs), ["model"], "depth")
    names = {"model": "paper's model", "paper": "mean depth, paper", "measured": "mean depth, measured"}
    table.insert(1, "removed, paper", [", ".join(map(str, blocks[m][0])) for m in table["model"]])
    table.insert(2, "removed, measured", [", ".join(map(str, blocks[m][1])) for m in table["model"]])
    return table.rename(columns=names)


def removed_layers_by_place(order: Sequence[int], model: str, reported: pd.DataFrame) -> pd.DataFrame:
    """A removal order beside the paper's for the same model, block by block.

    Args:
        order: measured, first removed first.
        model: id of the measured model.
        reported: `paper.table("table4")`.

    Returns:
        place (1 = removed first), paper, measured, difference (block indices); `paper` is NaN for a model that table 4
        lacks, of which the first quarter of the order is listed.
    """
    row = reported[reported["model"] == paper_tables.known_model(model)]
    theirs = np.array(row["removed_layers"].iloc[0] if len(row) else [], dtype=float)
    ours = np.array(order[: len(theirs) or max(1, len(order) // 4)], dtype=float)

    def column(blocks: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"place": np.arange(1, len(blocks) + 1), "block": blocks})

    return paper_tables.compare(column(ours), column(theirs), ["place"], "block")


def single_removal_values(perplexity: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Figure 3's values, a row a removed block, the dense model ("none") first.

    Args:
        perplexity: from `perplexity`, by block.
        accuracy: from `accuracy`, by block.

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
