"""Notebook 01: how much each block changes the residual stream (ShortGPT 2.2, figures 2a, 4 and 8, tables 3 and 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables
from layer_redundancy.core import flags, stats
from layer_redundancy.core.wording import counted
from layer_redundancy.experiments import few_blocks
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

NOTEBOOK = "01_layer_importance"


def measure(study: Study) -> ActivationSums:
    """One pass over the calibration text, from which every importance measure follows."""
    few_blocks.say_if_single(study)
    few_blocks.say_what_shares_are(study.num_blocks, [0.25])
    return study.activation_sums()


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
            low, high = np.percentile(
                importance.bootstrap_scores(sums, name, resamples, seed, first), stats.INTERVAL, axis=0
            )
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


@flags.checked
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
    low, high = np.percentile(importance.ranks(orders), stats.INTERVAL, axis=0, method="nearest")
    blocks = np.arange(sums.num_blocks)
    ranks = pd.DataFrame({"block": blocks, "rank": importance.ranks(order), "low": low, "high": high})
    inclusion = pd.DataFrame(importance.inclusion_probability(orders), columns=blocks).assign(k=blocks + 1)
    inclusion = inclusion.melt("k", var_name="block", value_name="probability").astype({"block": int})
    return inclusion.merge(ranks, on="block"), ranks


def order_agreement(sums: ActivationSums, measure: str, resamples: int, seed: int, removed: int) -> dict[str, float]:
    """A removal order's certainty in two numbers.

    Returns:
        kendall: mean rank correlation of a resample's order with the whole text's (1 = the same; NaN for fewer blocks
        than `few_blocks.RANKED`); same_set: share of resamples that remove the same `removed` blocks first.
    """
    order = importance.removal_order(importance.scores(sums, measure), measure)
    orders = importance.removal_order(importance.bootstrap_scores(sums, measure, resamples, seed), measure)
    rank = importance.ranks(order)
    ranked = few_blocks.can_be_ranked(sums.num_blocks)
    kendall = np.mean(stats.kendall_taus(rank, importance.ranks(orders))) if ranked else np.nan
    same = np.mean([set(o[:removed]) == set(order[:removed]) for o in orders])
    return {"kendall": float(kendall), "same_set": float(same)}


def agreement_note(sums: ActivationSums, measure: str, resamples: int, seed: int) -> str:
    """How far the orders of resampled calibration texts agree with a removal order, in a line."""
    num = sums.num_blocks
    if num < 2:
        return "left out: a single block has no order of removal"
    count = max(1, num // 4)
    again = order_agreement(sums, measure, resamples, seed, removed=count)
    same = f"removes the same {counted(count, 'block')} first in {again['same_set']:.0%} of the resamples"
    if not few_blocks.can_be_ranked(num):
        return f"a resample's order {same}; {few_blocks.no_ranks(num)}"
    return f"a resample's order agrees with this one by Kendall's tau {again['kendall']:.3f} on average; it {same}"


def first_token_note(sums: ActivationSums, measure: str) -> str:
    """How far a removal order agrees with that without each sequence's first token, in a line."""
    num = sums.num_blocks
    if num < 2:
        return "left out: a single block has no order of removal"
    count = max(1, num // 4)
    with_sink, without = (
        importance.removal_order(importance.scores(sums, measure, first), measure).tolist() for first in (True, False)
    )
    same = len(set(with_sink[:count]) & set(without[:count]))
    tau = f"Kendall's tau {paper_tables.removal_overlap(with_sink, without, num)['kendall']:.3f}, "
    return (
        f"with and without each sequence's first token: {tau if few_blocks.can_be_ranked(num) else ''}"
        f"{same} of the first {count} removed blocks are the same"
    )


def angular_grid(sums: ActivationSums, tokens: str = "last") -> pd.DataFrame:
    """n, start, distance of every contiguous run of blocks (Gromov et al. 2024)."""
    grid = importance.angular_grid(sums, tokens)
    n, start = np.nonzero(np.isfinite(grid))
    return pd.DataFrame({"n": n + 1, "start": start, "distance": grid[n, start]})


def strategies(scores: pd.DataFrame, num_blocks: int, ratio: float) -> pd.DataFrame:
    """ShortGPT's table 3 with what each strategy removes here.

    Args:
        scores: every measure's scores, from `importance_scores`.
        ratio: share of blocks removed, 0 to 1; at least one block.

    Returns:
        strategy, rule, source, and the blocks that go first, in order; no row for a single block, which cannot go.
    """
    if num_blocks < 2:
        return pd.DataFrame()
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
        order: the measured order, first removed first.
        reported: the paper's order, from `paper_tables.table("table4")`.

    Returns:
        A row for each of the paper's models: the blocks it removes; the same share of the measured order; the mean
        relative depth of both (block / (blocks - 1); 0 = first block, 1 = last); and the difference. No row for a
        single block, which cannot go.
    """
    num = len(order)
    if num < 2:
        return pd.DataFrame()
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
        order: the measured order, first removed first.
        model: id of the measured model.
        reported: the paper's order, from `paper_tables.table("table4")`.

    Returns:
        place (1 = removed first), paper, measured, difference (block indices); `paper` is NaN for a model that table 4
        lacks, of which the first quarter of the order is listed. No row for a single block, which cannot go.
    """
    if len(order) < 2:
        return pd.DataFrame()
    row = reported[reported["model"] == paper_tables.known_model(model)]
    theirs = np.array(row["removed_layers"].iloc[0] if len(row) else [], dtype=float)
    ours = np.array(order[: len(theirs) or max(1, len(order) // 4)], dtype=float)

    def column(blocks: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"place": np.arange(1, len(blocks) + 1), "block": blocks})

    return paper_tables.compare(column(ours), column(theirs), ["place"], "block")
