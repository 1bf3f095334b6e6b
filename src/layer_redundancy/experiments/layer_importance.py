"""Notebook 01: how much each block changes the residual stream (ShortGPT 2.2, figures 2a, 4 and 8, tables 3 and 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables
from layer_redundancy.core import flags, stats, verdicts
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.experiments import depth_curves, few_blocks
from layer_redundancy.figures.style import title_of
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

NOTEBOOK = "01_layer_importance"
QUARTER = 0.25
# On the embedded profile (64 blocks of text) a difference of 0.043 of the share is found with a power of 0.8.
PRIMARY = "a single block of text chooses more than three in four of the blocks that all others choose"
SAME = 0.75  # of the quarter of the blocks that goes first, more than so much is to be the same


def measure(study: Study) -> ActivationSums:
    """One pass over the calibration text, from which every importance measure follows."""
    few_blocks.say_if_single(study)
    few_blocks.say_what_shares_are(study.num_blocks, [QUARTER])
    return study.activation_sums()


def importance_scores(
    sums: ActivationSums, resamples: int, seed: int, first_token: Sequence[bool] = (True, False)
) -> pd.DataFrame:
    """Every measure's score of every block, with and without each sequence's first token.

    Returns:
        metric, first_token ("included" or "excluded"), block, score, low, high (95 % interval over calibration
        sequences), rank (1 = removed first).
    """
    parts = []
    for first in first_token:
        for name in importance.MEASURES:
            score, low, high = score_intervals(sums, name, resamples, seed, first)
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
def score_intervals(
    sums: ActivationSums, measure: str, resamples: int, seed: int, first_token: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A measure's score of every block, with the ends of its 95 % interval over calibration sequences; (L,) each."""
    score = importance.scores(sums, measure, first_token)
    draws = importance.bootstrap_scores(sums, measure, resamples, seed, first_token)
    ends = [stats.interval(one, drawn, len(sums.tokens)) for one, drawn in zip(score, draws.T, strict=True)]
    low, high = np.transpose(ends)
    return score, low, high


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


def quarter(num_blocks: int) -> int:
    """The number of blocks that is closest to a quarter; see `depth_curves.at_ratio`."""
    return depth_curves.at_ratio(num_blocks, QUARTER)


@flags.checked
def chosen(sums: ActivationSums, measure: str, count: int, first_token: bool = True) -> np.ndarray:
    """The blocks that a measure removes first, so many of them, in their order."""
    return importance.removal_order(importance.scores(sums, measure, first_token), measure)[:count]


def alike_by_text(sums: ActivationSums, measure: str, count: int) -> np.ndarray:
    """How far each single sequence chooses the blocks that all others together choose.

    Args:
        count: blocks chosen.

    Returns:
        (S,) share of the blocks that are the same, 0 to 1.

    Raises:
        StudyError: a single sequence, which has no others.
    """
    each = np.eye(len(sums.tokens), dtype=bool)
    return np.array(
        [_same(chosen(sums.of(one), measure, count), chosen(sums.of(~one), measure, count)) for one in each]
    )


def same_set(sums: ActivationSums, measure: str, resamples: int, seed: int, count: int) -> float:
    """The share of the resampled texts by which the same blocks go first, so many of them."""
    orders = importance.removal_order(importance.bootstrap_scores(sums, measure, resamples, seed), measure)
    first = set(chosen(sums, measure, count))
    return float(np.mean([set(order[:count]) == first for order in orders]))


def _same(first: np.ndarray, second: np.ndarray) -> float:
    """The share of the first that is among the second."""
    return float(np.isin(first, second).mean())


def claim(sums: ActivationSums, resamples: int, seed: int) -> pd.DataFrame:
    """What the papers say of the order, and this study: columns of `verdicts.verdicts`.

    No statement of a model of one or two blocks, of which a quarter is none; none on the blocks between the first and
    the last where there are fewer than `few_blocks.RANKED`.
    """
    num, name = sums.num_blocks, "block_influence"
    if not few_blocks.is_a_block(num, QUARTER):
        return verdicts.verdicts([], PRIMARY)
    count = quarter(num)
    depths = paper_tables.table("table4")
    paper = min(np.mean(row.removed_layers) / (row.num_layers - 1) for row in depths.itertuples())

    def statements(sums: ActivationSums) -> list[Statement]:
        score = importance.scores(sums, name)
        first = chosen(sums, name, count)
        depth = first.mean() / (num - 1)
        found = [
            Statement("the quarter that goes first lies in the second half of the depth", depth, 0.5, "above", 0.2),
            Statement("the quarter lies as deep as in the paper's models", depth, paper, "above", 0.2),
            Statement(
                "without each text's first token more than three in four of the quarter are the same",
                _same(first, chosen(sums, name, count, first_token=False)), SAME, "above", 1 / count,
            ),
            Statement(
                "relative magnitude chooses more than three in four of the same blocks",
                _same(first, chosen(sums, "relative_magnitude", count)), SAME, "above", 1 / count,
            ),
        ]  # fmt: skip
        inner = score[1:-1]
        if few_blocks.can_be_ranked(len(inner)):
            (tau,) = stats.kendall_taus(np.arange(len(inner)), inner[None])
            most = inner.max()
            found += [
                Statement("the first block has more Block Influence than any inner one", score[0], most, "above", 0.05),
                Statement("the last block has more Block Influence than any inner one", score[-1], most, "above", 0.05),
                Statement(
                    "inner blocks have less Block Influence the deeper they lie (Kendall's tau)",
                    tau, 0.0, "below", 0.2,
                ),
            ]  # fmt: skip
        return found

    parts = []
    on = "calibration text"
    if len(sums.tokens) > 1:
        alike = alike_by_text(sums, name, count)[:, None]
        parts.append(
            verdicts.judge(
                lambda means: [Statement(PRIMARY, means[0], SAME, "above", 0.05)], alike, resamples, seed, on
            )
        )
    draws = [statements(one) for one in sums.resampled(resamples, seed)]
    step = 1 / count  # of a share of the chosen blocks
    least = step / len(sums.tokens)
    parts.append(verdicts.judged_draws(statements(sums), [draws], [len(sums.tokens)], on, least))
    return verdicts.verdicts(parts, PRIMARY)


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
        strategy, removed first (smallest or largest score), source, goes first (blocks, in order); no row for a single
        block, which cannot go.
    """
    if num_blocks < 2:
        return pd.DataFrame()
    count = depth_curves.at_ratio(num_blocks, ratio)
    rows: list[dict[str, Any]] = []
    for name, measure in importance.MEASURES.items():
        part = scores[(scores["metric"] == name) & (scores["first_token"] == "included")].sort_values("rank")
        rows.append(
            {
                "strategy": title_of(name),
                "removed first": measure.removed_first,
                "source": measure.source,
                "goes first": ", ".join(map(str, part["block"][:count])),
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
        place (1 = removed first), paper, measured, difference (block indices); no row for a model that table 4 lacks.
    """
    row = reported[reported["model"] == paper_tables.known_model(model)]
    if row.empty:
        return pd.DataFrame()
    theirs = np.array(row["removed_layers"].iloc[0], dtype=float)

    def column(blocks: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"place": np.arange(1, len(blocks) + 1), "block": blocks})

    ours = np.array(order[: len(theirs)], dtype=float)
    return paper_tables.compare(column(ours), column(theirs), ["place"], "block")
