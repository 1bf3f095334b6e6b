"""A model without attention beside a transformer (notebook 06): costs in bits per byte, which any two models share.

Perplexity a token cannot be compared between models that cut text into other tokens, and the loss of one block cannot
between models of other depths; bits a byte, at a share of the blocks, can.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from layer_redundancy.config import profiles
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.experiments import depth_curves
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

# Of the dense model's bits per byte: what "hardly costs anything" and "is of use" mean in the claims.
CHEAP, USEFUL = 0.05, 0.25


def pair(
    profile: str, model: str = "", revision: str = "", trust_remote_code: bool = False, beside: str = ""
) -> tuple[Study, Study]:
    """The two models that are compared: one without attention, and a transformer.

    Args:
        profile: smoke, embedded or paper.
        model: the user's own, of either kind; "" for the profile's two.
        revision, trust_remote_code: of `model`.
        beside: the model of the other kind; "" for the profile's.

    Returns:
        The study of the model without attention, and of the transformer; figures of both go to one folder. The first
        has `recurrent_scale` times the profile's evaluation text and items.

    Raises:
        StudyError: as `Study`; two models of the same kind.
    """
    mine = Study(profile, model, revision, trust_remote_code)
    is_transformer = mine.identity.num_attention_heads > 0
    other = Study(profile, beside or (mine.profile.recurrent_model if is_transformer else _transformer(profile)))
    other.figures = mine.figures
    if is_transformer == (other.identity.num_attention_heads > 0):
        kind = "transformers" if is_transformer else "without attention"
        raise StudyError(f"{mine.identity.name} and {other.identity.name} are both {kind}: compare one of each kind")
    recurrent, transformer = (other, mine) if is_transformer else (mine, other)
    scale, text = recurrent.profile.recurrent_scale, recurrent.profile.text
    recurrent.profile = replace(
        recurrent.profile,
        text=replace(text, evaluation_blocks=scale * text.evaluation_blocks),
        tasks=tuple(replace(t, limit=t.limit and scale * t.limit) for t in recurrent.profile.tasks),
    )
    return recurrent, transformer


def _transformer(profile: str) -> str:
    return profiles.PROFILES[profile].model


def block_bytes(blocks: TokenBlocks, tokenizer) -> np.ndarray:
    """Bytes of UTF-8 that the scored tokens of each block stand for, (N,); all but the first token are scored."""
    return np.array([len(tokenizer.decode(ids[1:]).encode()) for ids in blocks.input_ids.tolist()])


def bits_per_byte(results: Mapping[Variant, Result], plan: Sequence[Variant], sizes: np.ndarray) -> np.ndarray:
    """Bits that a byte of each block of text costs each variant, (K, N).

    Args:
        results: of perplexity.
        plan: K variants.
        sizes: from `block_bytes`.
    """
    return np.stack([results[variant].arrays["nll"] / math.log(2) / sizes for variant in plan])


def measure_curves(costs: Mapping[str, np.ndarray], counts: Sequence[int], num_blocks: int, model: str) -> pd.DataFrame:
    """Bits per byte along each measure's order.

    Args:
        costs: measure -> (K, N) from `bits_per_byte`.
        counts: removed blocks at the K depths.
        num_blocks: of the dense model.
        model: its name.

    Returns:
        model, metric, count, share (percent of the blocks), bits_per_byte, low, high (95 % t interval over blocks of
        text).
    """
    rows = []
    for metric, cost in costs.items():
        for count, values in zip(counts, cost, strict=True):
            low, high = stats.mean_interval(values)
            rows.append((model, metric, count, 100 * count / num_blocks, values.mean(), low, high))
    return pd.DataFrame(rows, columns=["model", "metric", "count", "share", "bits_per_byte", "low", "high"])


def summary(single: np.ndarray, dense: np.ndarray, by_influence: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """What the claims are about, by block of text: (N, 4 + ratios).

    Args:
        single: (L, N) bits per byte without each block.
        dense: (N,).
        by_influence: (K, N) along the order of Block Influence.
        counts: removed blocks at the K depths.

    Returns:
        For each block of text: the dense model's bits per byte; then, in the same unit above the dense model's, each of
        the L single removals and the removals nearest to `curves.RATIOS`.
    """
    at = [list(counts).index(depth_curves.at_ratio(len(single), ratio)) for ratio in depth_curves.RATIOS]
    return np.column_stack([dense, (single - dense).T, (by_influence[at] - dense).T])


def _figures(mean: np.ndarray) -> dict[str, float]:
    """Numbers of a row of the table from the means of `summary`."""
    dense, single, ratios = mean[0], mean[1 : -len(depth_curves.RATIOS)], mean[-len(depth_curves.RATIOS) :]
    return {
        "dense bits per byte": dense,
        "cheapest block, %": 100 * single.min() / dense,
        "median block, %": 100 * np.median(single) / dense,
        "dearest block, %": 100 * single.max() / dense,
        f"blocks under {CHEAP:.0%}": float((single < CHEAP * dense).mean()),
    } | {f"{r:.0%} removed, %": 100 * x / dense for r, x in zip(depth_curves.RATIOS, ratios, strict=True)}


def redundancy(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> pd.DataFrame:
    """How redundant the models' blocks are.

    Args:
        values: model -> `summary`.
        resamples: bootstrap resamples of the blocks of text.
        seed: of the resampling.

    Returns:
        quantity, and for each model its value, low, high (95 % of the resamples). Percentages are of the dense model's
        bits per byte.
    """
    parts = []
    for model, units in values.items():
        again = pd.DataFrame(map(_figures, stats.bootstrap_means(units, resamples, seed)))
        low, high = again.quantile(0.025), again.quantile(0.975)
        parts.append(pd.DataFrame({model: _figures(units.mean(0)), f"{model} low": low, f"{model} high": high}))
    return pd.concat(parts, axis=1).rename_axis("quantity").reset_index()


def claim(recurrent: np.ndarray, transformer: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT 4.3 on RWKV: "also exhibits a high level of redundancy", so redundancy "is universal".

    Args:
        recurrent, transformer: from `summary`; the texts are cut into other blocks, so the two are drawn apart.
        resamples: bootstrap resamples of each.
        seed: of the resampling.

    Returns:
        statement, measured, threshold, holds, certainty.
    """
    both = [
        [units.mean(0), *stats.bootstrap_means(units, resamples, s)]
        for units, s in ((recurrent, seed), (transformer, seed + 1))
    ]
    said = [_statements(_figures(a), _figures(b)) for a, b in zip(*both, strict=True)]
    rows = [(*row, np.mean([again[i][-1] for again in said[1:]])) for i, row in enumerate(said[0])]
    return pd.DataFrame(rows, columns=["statement", "measured", "threshold", "holds", "certainty"])


def _statements(recurrent: Mapping[str, float], transformer: Mapping[str, float]) -> list[stats.Statement]:
    cheap, quarter = f"blocks under {CHEAP:.0%}", f"{depth_curves.RATIOS[1]:.0%} removed, %"
    said = [
        (f"{name}: most single blocks cost under {CHEAP:.0%}", of[cheap], 0.5, bool(of[cheap] > 0.5))
        for name, of in (("without attention", recurrent), ("transformer", transformer))
    ]
    said += [
        (f"{name}: a quarter by BI costs under {USEFUL:.0%}", of[quarter], 100 * USEFUL, of[quarter] < 100 * USEFUL)
        for name, of in (("without attention", recurrent), ("transformer", transformer))
    ]
    for ratio in depth_curves.RATIOS:
        key = f"{ratio:.0%} removed, %"
        a, b = recurrent[key], transformer[key]
        said.append((f"{ratio:.0%} by BI costs no more without attention than in the transformer", a, b, bool(a <= b)))
    return said


def kept(accuracy: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """What a quarter of the blocks, removed by Block Influence, leaves of the accuracy: printed and measured.

    Args:
        accuracy: of all models, from `measured`: model, metric, task, count, share, accuracy, low, high, n, chance.
        printed: `paper.table("rwkv")`.

    Returns:
        source (paper or measured), model, task, removed (percent of the blocks), accuracy, low, high (percent; 95 %
        interval), n, kept (percent of the dense model's), above_chance (the same of what exceeds chance; none where
        chance lies in the dense model's interval, nor for the paper, whose benchmarks we do not know).
    """
    dense = printed.loc[printed["ratio_percent"] == 0, "average"].item()
    rows = []
    for row in printed.itertuples():
        found = (row.average, np.nan, np.nan, np.nan, 100 * row.average / dense, np.nan)
        rows.append(("paper, later version", row.model, "average", row.ratio_percent, *found))
    by_influence = accuracy[accuracy["metric"] == "block_influence"]
    for (model, task), of in by_influence.groupby(["model", "task"], sort=False):
        of = of.set_index("count")
        whole, quarter = of.loc[0], of.loc[(of["share"] - 100 * depth_curves.RATIOS[1]).abs().idxmin()]
        room = whole["accuracy"] - whole["chance"]
        for now in (whole, quarter):
            above = 100 * (now["accuracy"] - now["chance"]) / room if whole["low"] > whole["chance"] else np.nan
            found = (
                *(100 * now[["accuracy", "low", "high"]]),
                now["n"],
                100 * now["accuracy"] / whole["accuracy"],
                above,
            )
            rows.append(("measured", model, task, now["share"], *found))
    columns = ["source", "model", "task", "removed", "accuracy", "low", "high", "n", "kept", "above_chance"]
    return pd.DataFrame(rows, columns=columns)


def agreement(
    sums: ActivationSums, single: np.ndarray, dense: np.ndarray, greedy: Sequence[int], resamples: int, seed: int
) -> pd.DataFrame:
    """How well each measure tells what a block's removal costs.

    Args:
        sums: of the calibration text.
        single: (L, N) bits per byte of evaluation text without each block.
        dense: (N,).
        greedy: the greedy order.
        resamples: bootstrap resamples of the evaluation text.
        seed: of the resampling.

    Returns:
        measure, tau (Kendall's, between the measure's order and that of the costs; 1: the same), low, high (95 %).
    """
    orders = {name: importance.removal_order(importance.scores(sums, name), name) for name in importance.MEASURES}
    damage = (single - dense[None]).T
    again = stats.bootstrap_means(damage, resamples, seed)
    rows = []
    for name, order in (orders | {"greedy": np.asarray(greedy)}).items():
        ranks = importance.ranks(order)
        taus = [kendalltau(ranks, cost).statistic for cost in again]
        rows.append((name, kendalltau(ranks, damage.mean(0)).statistic, *np.quantile(taus, [0.025, 0.975])))
    return pd.DataFrame(rows, columns=["measure", "tau", "low", "high"])


def measured(study: Study) -> dict:
    """Everything that notebook 06 wants of one model: single removals, and every measure's order, on text and tasks."""
    num, profile = study.num_blocks, study.profile
    sums, greedy = study.activation_sums(), study.greedy_order()
    counts = depth_curves.depths(num, profile.depth_step if num > 16 else 1)
    plans = depth_curves.plans(sums, counts, greedy)
    singles = variants.single_removal(num)
    results = study.sweep([study.dense, *singles, *(v for plan in plans.values() for v in plan.values())])
    sizes, perplexity = block_bytes(study.evaluation, study.tokenizer), results["perplexity"]
    costs = {name: bits_per_byte(perplexity, list(plan.values()), sizes) for name, plan in plans.items()}
    single, dense = bits_per_byte(perplexity, singles, sizes), bits_per_byte(perplexity, [study.dense], sizes)[0]
    tasks = [measurement.items.name for measurement in study.measurements[1:]]
    _, accuracy = depth_curves.by_measure(results, plans, [], study.dense, tasks)
    return {
        "sums": sums,
        "greedy": greedy,
        "results": results,
        "single": single,
        "dense": dense,
        "curves": measure_curves(costs, counts, num, study.identity.name),
        "accuracy": accuracy.assign(model=study.identity.name),
        "summary": summary(single, dense, costs["block_influence"], counts),
        "agreement": agreement(sums, single, dense, greedy, profile.bootstrap_resamples, profile.seed)
        .assign(model=study.identity.name),
    }  # fmt: skip
