"""A model without attention beside a transformer (notebook 06): costs in bits per byte, which any two models share.

Perplexity a token cannot be compared between models that cut text into other tokens, and the loss of one block cannot
between models of other depths; bits a byte, at a share of the blocks, can.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import Count, Model
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

# Shares of the dense model's bits per byte: what "hardly costs anything" and "is of use" mean in the claims.
CHEAP, USEFUL = 0.05, 0.25


NOTEBOOK = "06_rwkv_redundancy"


@dataclass(frozen=True)
class Budget:
    """What notebook 06 measures.

    Attributes:
        recurrent_model: the model without attention that is set beside the profile's own: the embedded name, a hub id,
            or a local folder.
        scale: the model without attention is measured on so many times the profile's evaluation text and items.
    """

    recurrent_model: Model
    scale: Count = 1


@dataclass(frozen=True, eq=False)
class OneModel:
    """What is measured of one of the two models.

    Attributes:
        study: the study of the model.
        sums: activation sums of its calibration text.
        greedy: the greedy order; (L,).
        counts: numbers of removed blocks.
        by_order: measure -> count -> variant.
        singles: every single removal.
        results: measurement -> variant -> result.
    """

    study: Study
    sums: ActivationSums
    greedy: np.ndarray
    counts: list[int]
    by_order: dict[str, dict[int, Variant]]
    singles: list[Variant]
    results: Mapping[str, Mapping[Variant, Result]]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.study.identity.name

    @cached_property
    def costs(self) -> dict[str, np.ndarray]:
        """Bits per byte along each measure's order: measure -> (K, N); "single" (L, N) and "dense" (1, N) too."""
        study, perplexity = self.study, self.results["perplexity"]
        sizes = block_bytes(study.evaluation, study.tokenizer)
        chosen = {name: list(removals.values()) for name, removals in self.by_order.items()}
        chosen |= {"single": self.singles, "dense": [study.dense]}
        return {name: bits_per_byte(perplexity, of, sizes) for name, of in chosen.items()}

    @cached_property
    def curves(self) -> pd.DataFrame:
        """`measure_curves` of every measure."""
        costs = {name: self.costs[name] for name in self.by_order}
        return measure_curves(costs, self.counts, self.study.num_blocks, self.name)

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Accuracy along every measure's order, as in `depth_curves.measure_curves`, with a column model."""
        study = self.study
        _, accuracy = depth_curves.measure_curves(self.results, self.by_order, [], study.dense, study.task_names)
        return accuracy.assign(model=self.name)

    @cached_property
    def summary(self) -> np.ndarray:
        """`summary` of the model."""
        return summary(self.costs["single"], self.costs["dense"][0], self.costs["block_influence"], self.counts)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """`agreement` of the model, with a column model."""
        profile = self.study.profile
        table = agreement(
            self.sums,
            self.costs["single"],
            self.costs["dense"][0],
            self.greedy,
            profile.bootstrap_resamples,
            profile.seed,
        )
        return table.assign(model=self.name)


@dataclass(frozen=True, eq=False)
class Measured:
    """The two models that are compared.

    Attributes:
        recurrent: the model without attention.
        transformer: the transformer.
        checked: the recurrent model's variants that were also run by plain forwards.
        deviation: largest difference between these plain forwards and the sweep, nats a token.
    """

    recurrent: OneModel
    transformer: OneModel
    checked: list[Variant]
    deviation: float


def measure(study: Study, beside: str = "") -> Measured:
    """Measures a model without attention and a transformer alike.

    Args:
        study: the study of a model of either kind.
        beside: the model of the other kind; "" for the profile's.

    Raises:
        NotApplicable: one of the two has a single block, or the profile no task.
        StudyError: as `Study.of_model`; two models of the same kind.
    """
    few_blocks.need_task(study)
    recurrent, transformer = pair(study, beside)
    for one in (recurrent, transformer):
        few_blocks.need_removable(one, "removals from it cannot be compared with those from another model")
        few_blocks.say_what_shares_are(one.num_blocks, depth_curves.RATIOS)
        if not few_blocks.can_be_ranked(one.num_blocks):
            logger.info(f"{one.identity.name}: {few_blocks.no_ranks(one.num_blocks)}")
    mine, other = _one_model(recurrent), _one_model(transformer)
    num = recurrent.num_blocks
    checked = [recurrent.dense, *list(mine.results["perplexity"])[1 : num + 1 : max(1, num // 3)]]
    return Measured(mine, other, checked, recurrent.deviation(checked))


def pair(study: Study, beside: str = "") -> tuple[Study, Study]:
    """The study of the model without attention, and that of the transformer; arguments and errors as `measure`.

    The first has `Budget.scale` times the profile's evaluation text and items.
    """
    budget = study.profile.budget(Budget)
    is_transformer = study.identity.num_attention_heads > 0
    other = study.of_model(beside or (budget.recurrent_model if is_transformer else study.profile.own_model))
    if is_transformer == (other.identity.num_attention_heads > 0):
        kind = "transformers" if is_transformer else "without attention"
        raise StudyError(f"{study.identity.name} and {other.identity.name} are both {kind}: compare one of each kind")
    recurrent, transformer = (other, study) if is_transformer else (study, other)
    text, tasks = recurrent.profile.text, recurrent.profile.tasks
    return (
        recurrent.with_profile(
            text=replace(text, evaluation_blocks=budget.scale * text.evaluation_blocks),
            tasks=tuple(replace(task, limit=task.limit and budget.scale * task.limit) for task in tasks),
        ),
        transformer,
    )


def _one_model(study: Study) -> OneModel:
    """Single removals, and every measure's order, on text and tasks."""
    num, step = study.num_blocks, study.profile.depth_step
    sums, greedy = study.activation_sums(), study.greedy_order()
    counts = depth_curves.depths(num, step if num > 16 else 1)
    by_order = depth_curves.removals_by_measure(sums, counts, greedy)
    singles = variants.single_removal(num)
    chosen = [v for removals in by_order.values() for v in removals.values()]
    results = study.sweep([study.dense, *singles, *chosen])
    return OneModel(study, sums, greedy, counts, by_order, singles, results)


def block_bytes(blocks: TokenBlocks, tokenizer: Any) -> np.ndarray:
    """Bytes of UTF-8 that the scored tokens of each block stand for, (N,); all but the first token are scored."""
    return np.array([len(tokenizer.decode(ids[1:]).encode()) for ids in blocks.input_ids.tolist()])


def bits_per_byte(results: Mapping[Variant, Result], chosen: Sequence[Variant], sizes: np.ndarray) -> np.ndarray:
    """Bits that a byte of each block of text costs each variant, (K, N).

    Args:
        results: results of the perplexity measurement.
        chosen: the K variants.
        sizes: bytes of each block of text, from `block_bytes`.
    """
    return np.stack([results[variant].arrays["nll"] / math.log(2) / sizes for variant in chosen])


def measure_curves(costs: Mapping[str, np.ndarray], counts: Sequence[int], num_blocks: int, model: str) -> pd.DataFrame:
    """Bits per byte along each measure's order.

    Args:
        costs: measure -> (K, N) from `bits_per_byte`.
        counts: numbers of removed blocks at the K depths.
        num_blocks: number of blocks of the dense model.
        model: name of the model.

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
        dense: (N,) bits per byte of the dense model.
        by_influence: (K, N) along the order of Block Influence.
        counts: numbers of removed blocks at the K depths.

    Returns:
        For each block of text: the dense model's bits per byte; then, in the same unit above the dense model's, each of
        the L single removals and the removals nearest to `depth_curves.RATIOS` (NaN for a ratio that is no block).
    """
    num = len(single)
    at = [list(counts).index(depth_curves.at_ratio(num, ratio)) for ratio in depth_curves.RATIOS]
    ratios = by_influence[at] - dense
    ratios[[not few_blocks.is_a_block(num, ratio) for ratio in depth_curves.RATIOS]] = np.nan
    return np.column_stack([dense, (single - dense).T, ratios.T])


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
        values: model -> its `summary`.
        resamples: bootstrap resamples of the blocks of text.
        seed: seed of the resampling.

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
        recurrent, transformer: each model's `summary`; the texts are cut into other blocks, so the two are drawn apart.
        resamples: bootstrap resamples of each model's blocks of text.
        seed: seed of the resampling.

    Returns:
        statement, measured, threshold, holds, certainty. Nothing is stated of a ratio that is no block of a model.
    """
    both = [
        [units.mean(0), *stats.bootstrap_means(units, resamples, s)]
        for units, s in ((recurrent, seed), (transformer, seed + 1))
    ]
    drawn = [_statements(_figures(a), _figures(b)) for a, b in zip(*both, strict=True)]
    rows = [(*row, np.mean([again[i][-1] for again in drawn[1:]])) for i, row in enumerate(drawn[0])]
    return pd.DataFrame(rows, columns=stats.CLAIM)


def _statements(recurrent: Mapping[str, float], transformer: Mapping[str, float]) -> list[stats.Statement]:
    cheap, quarter = f"blocks under {CHEAP:.0%}", f"{depth_curves.RATIOS[1]:.0%} removed, %"
    stated = [
        (f"{name}: most single blocks cost under {CHEAP:.0%}", of[cheap], 0.5, bool(of[cheap] > 0.5))
        for name, of in (("without attention", recurrent), ("transformer", transformer))
    ]
    stated += [
        (f"{name}: a quarter by BI costs under {USEFUL:.0%}", of[quarter], 100 * USEFUL, of[quarter] < 100 * USEFUL)
        for name, of in (("without attention", recurrent), ("transformer", transformer))
        if np.isfinite(of[quarter])
    ]
    for ratio in depth_curves.RATIOS:
        key = f"{ratio:.0%} removed, %"
        a, b = recurrent[key], transformer[key]
        if np.isnan(a) or np.isnan(b):
            continue
        stated.append(
            (f"{ratio:.0%} by BI costs no more without attention than in the transformer", a, b, bool(a <= b))
        )
    return stated


def kept(accuracy: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """What a quarter of the blocks, removed by Block Influence, leaves of the accuracy: printed and measured.

    Args:
        accuracy: accuracies of all models, from `OneModel.accuracy`: model, metric, task, count, share, accuracy,
            low, high, n, chance.
        printed: the paper's numbers, `paper_tables.table("rwkv")`.

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
        far = (of["share"] - 100 * depth_curves.RATIOS[1]).abs()
        whole, quarter = of.loc[0], of.loc[far[far.index > 0].idxmin()]
        room = whole["accuracy"] - whole["chance"]
        for now in (whole, quarter):
            above = 100 * (now["accuracy"] - now["chance"]) / room if whole["low"] > whole["chance"] else np.nan
            found = (
                *(100 * now[["accuracy", "low", "high"]]),
                now["n"],
                100 * now["accuracy"] / whole["accuracy"] if whole["accuracy"] else np.nan,
                above,
            )
            rows.append(("measured", model, task, now["share"], *found))
    columns = ["source", "model", "task", "removed", "accuracy", "low", "high", "n", "kept", "above_chance"]
    return pd.DataFrame(rows, columns=columns)


def agreement(
    sums: ActivationSums, single: np.ndarray, dense: np.ndarray, greedy: np.ndarray, resamples: int, seed: int
) -> pd.DataFrame:
    """How well each measure predicts what a block's removal costs.

    Args:
        sums: activation sums of the calibration text.
        single: (L, N) bits per byte of evaluation text without each block.
        dense: (N,) bits per byte of the dense model.
        greedy: the greedy order.
        resamples: bootstrap resamples of the evaluation text.
        seed: seed of the resampling.

    Returns:
        measure, tau (Kendall's, between the measure's order and that of the costs; 1: the same), low, high (95 %). No
        row for fewer blocks than `few_blocks.RANKED`.
    """
    if not few_blocks.can_be_ranked(sums.num_blocks):
        return pd.DataFrame(columns=["measure", "tau", "low", "high"])
    orders = {name: importance.removal_order(importance.scores(sums, name), name) for name in importance.MEASURES}
    damage = (single - dense[None]).T
    again = stats.bootstrap_means(damage, resamples, seed)
    rows = []
    for name, order in (orders | {"greedy": np.asarray(greedy)}).items():
        ranks = importance.ranks(order)
        (tau,) = stats.kendall_taus(ranks, damage.mean(0)[None])
        rows.append((name, tau, *np.quantile(stats.kendall_taus(ranks, again), [0.025, 0.975])))
    return pd.DataFrame(rows, columns=["measure", "tau", "low", "high"])


def agreement_table(found: Measured) -> pd.DataFrame:
    """`agreement` of both models side by side: measure, and tau, low, high of each that has enough blocks."""
    parts = [one.agreement for one in (found.recurrent, found.transformer) if len(one.agreement)]
    if not parts:
        return pd.DataFrame()
    both = pd.concat(parts, ignore_index=True)
    table = both.pivot(index="measure", columns="model", values=["tau", "low", "high"])  # noqa: PD010 - each cell once
    table = table.swaplevel(axis=1).loc[list(dict.fromkeys(both["measure"])), list(dict.fromkeys(both["model"]))]
    table.columns = [" ".join(column) for column in table.columns]
    return table.reset_index()


def single_removals(found: Measured) -> pd.DataFrame:
    """Perplexity and accuracy of the recurrent model, dense and with one block removed; columns as in notebook 02."""
    study, results = found.recurrent.study, found.recurrent.results
    perplexity, _ = result_tables.perplexity(results["perplexity"], study.dense)
    accuracy = pd.concat(
        [result_tables.accuracy(results[task.name], study.dense, task.items.name) for task in study.tasks]
    )
    alone = [table[[len(removed) < 2 for removed in table["removed"]]] for table in (perplexity, accuracy)]
    return pd.concat(map(result_tables.by_block, alone), ignore_index=True)
