"""Notebook 04: which importance measure should choose what to remove (ShortGPT 4.4, figures 5 and 9)?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from layer_redundancy.config.checks import Whole
from layer_redundancy.core import flags, stats
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import depth_curves, few_blocks
from layer_redundancy.experiments.depth_curves import RATIOS, at_ratio
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

NOTEBOOK = "04_metric_comparison"


@dataclass(frozen=True)
class Budget:
    """What notebook 04 measures beside the profile's texts.

    Attributes:
        calibration_resamples: resamples of the calibration text whose removal orders are evaluated too.
    """

    calibration_resamples: Whole = 4


@dataclass(frozen=True, eq=False)
class Measured:
    """Every measure's order at some depths, on the calibration text and on redrawn ones.

    Attributes:
        sums: activation sums of the calibration text.
        greedy: the greedy order; (L,).
        counts: numbers of removed blocks.
        by_order: measure -> count -> variant.
        again: the same for each redrawn calibration text.
        results: measurement -> variant -> result.
    """

    sums: ActivationSums
    greedy: np.ndarray
    counts: list[int]
    by_order: dict[str, dict[int, Variant]]
    again: list[dict[str, dict[int, Variant]]]
    results: Mapping[str, Mapping[Variant, Result]]

    def curves(self) -> dict[str, dict[str, np.ndarray]]:
        """Measurement -> measure -> (K, N) from `depth_curves.values`."""
        return {
            name: {measure: depth_curves.values(of, removals) for measure, removals in self.by_order.items()}
            for name, of in self.results.items()
        }


def measure(study: Study) -> Measured:
    """Removes blocks in every measure's order, and in the greedy one, at the profile's depths.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
    """
    few_blocks.need_removable(study, "measures have nothing to choose from")
    few_blocks.need_task(study)
    few_blocks.say_what_shares_are(study.num_blocks, RATIOS)
    budget, num = study.profile.budget(Budget), study.num_blocks
    sums, greedy = study.activation_sums(), study.greedy_order()
    counts = depth_curves.depths(num, study.profile.depth_step)
    by_order = depth_curves.removals_by_measure(sums, counts, greedy)
    texts = sums.resampled(budget.calibration_resamples, study.profile.seed)
    again = [depth_curves.removals_by_measure(text, counts) for text in texts]
    chosen = [variant for one in [by_order, *again] for removals in one.values() for variant in removals.values()]
    return Measured(sums, greedy, counts, by_order, again, study.sweep(chosen))


def curves(study: Study, found: Measured) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Perplexity and accuracy along every measure's order, as `depth_curves.measure_curves` has them."""
    return depth_curves.measure_curves(found.results, found.by_order, found.again, study.dense, study.task_names)


def best_by_ratio(study: Study, found: Measured) -> pd.DataFrame:
    """`best` for every measurement: its columns, and on (the measurement)."""
    seed, resamples = study.profile.seed, study.profile.bootstrap_resamples
    return pd.concat(
        best(of, found.by_order, study.num_blocks, name != "perplexity", resamples, seed).assign(
            on=name.removeprefix("task/")
        )
        for name, of in found.curves().items()
    )


def agreement(study: Study, found: Measured) -> pd.DataFrame:
    """Kendall's tau between all orders: a, b, tau; no row for fewer blocks than `few_blocks.RANKED`."""
    if not few_blocks.can_be_ranked(study.num_blocks):
        return pd.DataFrame(columns=["a", "b", "tau"])
    orders = {name: importance.removal_order(importance.scores(found.sums, name), name) for name in importance.MEASURES}
    return order_correlation(orders | {"greedy": found.greedy})


def claim(study: Study, found: Measured, accuracy: pd.DataFrame) -> pd.DataFrame:
    """`metric_claim` on perplexity and every task that the dense model does better than chance."""
    dense = accuracy[accuracy["count"] == 0].drop_duplicates("task").set_index("task")
    known = [t for t in study.task_names if dense["low"][t] > dense["chance"][t]]
    drawn = found.curves()
    chosen = {name: drawn[name] for name in ["perplexity", *(f"task/{t}" for t in known)]}
    return metric_claim(chosen, found.counts, study.profile.bootstrap_resamples, study.profile.seed)


def area(curve: np.ndarray, counts: Sequence[int], until: int | None = None) -> np.ndarray:
    """Mean (N,) of a curve (K, N) over the depths from the first of counts to `until`, by the trapezoid rule.

    Args:
        until: one of counts; the last if not given.
    """
    end = len(counts) if until is None else list(counts).index(until) + 1
    return np.trapezoid(curve[:end], counts[:end], axis=0) / (counts[end - 1] - counts[0])


def half(num_blocks: int) -> int:
    """Number of removed blocks up to which areas are compared: beyond it every model is worse than a guess."""
    return min(num_blocks - 1, at_ratio(num_blocks, RATIOS[-1]))


def areas(
    curves: Mapping[str, np.ndarray], counts: Sequence[int], until: int, resamples: int, seed: int
) -> pd.DataFrame:
    """The area under each measure's curve.

    Args:
        curves: measure -> (K, N), all on the same N.
        counts: numbers of removed blocks at the K depths.
        until: the last of these numbers that the area includes.

    Returns:
        metric, area (mean over the depths of the mean NLL in nats or of the accuracy), low, high (95 % over bootstrap
        resamples of the N, the same for all measures).
    """
    rows = []
    for name, curve in curves.items():
        by_unit = area(curve, counts, until)
        draws = stats.bootstrap_means(by_unit, resamples, seed)
        low, high = stats.percentile_interval(draws)
        rows.append({"metric": name, "area": by_unit.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def area_table(
    results: Mapping[str, Mapping[Variant, Result]],
    by_order: Mapping[str, Mapping[int, Variant]],
    again: Sequence[Mapping[str, Mapping[int, Variant]]],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """`areas` of every measurement, up to half of the blocks and over all depths, the best first.

    Returns:
        on (measurement), depths, metric, area, low, high, text_low, text_high (range over the redrawn texts).
    """
    parts = []
    counts = list(next(iter(by_order.values())))
    for name, of_variant in results.items():
        drawn = {m: depth_curves.values(of_variant, removals) for m, removals in by_order.items()}
        for depths_of, until in (("to 50 %", half(counts[-1] + 1)), ("all", counts[-1])):
            table = areas(drawn, counts, until, resamples, seed)
            spread = [
                [
                    area(depth_curves.values(of_variant, p[m]), counts, until).mean()
                    for p in [by_order, *again]
                    if m in p
                ]
                for m in table["metric"]
            ]
            table = table.assign(text_low=[min(s) for s in spread], text_high=[max(s) for s in spread])
            table.insert(0, "depths", depths_of)
            table.insert(0, "on", name.removeprefix("task/"))
            parts.append(table.sort_values("area", ascending=name == "perplexity", kind="stable"))
    return pd.concat(parts, ignore_index=True)


@flags.checked
def best(
    curves: Mapping[str, np.ndarray],
    by_order: Mapping[str, Mapping[int, Variant]],
    num_blocks: int,
    largest: bool,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The best measure at each of RATIOS and by the area up to half of the blocks, and how certain that is.

    Ratios that are no block of a model of few are left out.

    Args:
        curves: measure -> (K, N); "greedy" is a reference and takes no part.
        removals: measure -> count -> variant, at the same depths.
        largest: whether the largest value is best (accuracy) or the smallest (NLL).

    Returns:
        removed ("10 %", ..., "0 to 50 %": the area), best (measure; several that leave the same blocks stand together),
        value, next (the best of those that leave others), next_value, certainty (share of the bootstrap resamples of
        the N in which the best is better than every other).
    """
    names = [name for name in curves if name != "greedy"]
    counts = list(next(iter(by_order.values())))
    rows = []
    for ratio in (*(ratio for ratio in RATIOS if few_blocks.is_a_block(num_blocks, ratio)), None):
        if ratio is None:
            until = half(num_blocks)
            units = np.stack([area(curves[name], counts, until) for name in names], axis=1)
            left: list[tuple] = [tuple(by_order[name][k] for k in counts if k <= until) for name in names]
        else:
            k = min(num_blocks - 1, at_ratio(num_blocks, ratio))
            units = np.stack([curves[name][counts.index(k)] for name in names], axis=1)
            left = [by_order[name][k] for name in names]
        score = units if largest else -units
        order = np.argsort(-score.mean(0), kind="stable")
        same = [i for i in range(len(names)) if left[i] == left[order[0]]]
        others = [i for i in order if i not in same]
        draws = stats.bootstrap_means(score, resamples, seed)
        ahead = draws[:, order[0]] > draws[:, others].max(1) if others else np.ones(resamples, bool)
        rows.append(
            {
                "removed": "0 to 50 %" if ratio is None else f"{ratio:.0%}".replace("%", " %"),
                "best": ", ".join(names[i] for i in same),
                "value": units[:, order[0]].mean(),
                "next": names[others[0]] if others else "",
                "next_value": units[:, others[0]].mean() if others else np.nan,
                "certainty": ahead.mean(),
            }
        )
    return pd.DataFrame(rows)


def order_correlation(orders: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Kendall's tau between removal orders: a, b, tau (1: the same order, -1: the reverse)."""
    ranks = {name: importance.ranks(np.asarray(order)) for name, order in orders.items()}
    rows = [(a, b, float(kendalltau(ranks[a], ranks[b]).statistic)) for a in ranks for b in ranks]
    return pd.DataFrame(rows, columns=["a", "b", "tau"])


def metric_claim(
    curves: Mapping[str, Mapping[str, np.ndarray]], counts: Sequence[int], resamples: int, seed: int
) -> pd.DataFrame:
    """ShortGPT 4.4: BI outperforms other measures, relative magnitude is highly competitive, hidden norm is good for
    accuracy only.

    Args:
        curves: measurement -> measure -> (K, N); "perplexity" holds mean NLL in nats, the others accuracy.
        counts: numbers of removed blocks at the K depths.

    Returns:
        on (measurement), statement, measured, threshold (areas up to half of the blocks: mean accuracy, or mean NLL in
        nats), holds, certainty.
    """
    parts = []
    for name, of_measure in curves.items():
        names = list(of_measure)
        until = half(counts[-1] + 1)
        units = np.stack([area(of_measure[measure], counts, until) for measure in names], axis=1)
        parts.append(
            stats.claim(_metric_statements(names, name != "perplexity"), units, resamples, seed).assign(
                on=name.removeprefix("task/")
            )
        )
    return pd.concat(parts, ignore_index=True)


def _metric_statements(names: Sequence[str], largest: bool) -> Callable[[np.ndarray], list[Statement]]:
    sign = 1 if largest else -1
    rivals = [n for n in ("relative_magnitude", "hidden_norm", "sequential", "reverse_order") if n in names]

    def statements(mean: np.ndarray) -> list[Statement]:
        at = dict(zip(names, mean, strict=True))

        def better(a: str, b: str) -> bool:
            return bool(sign * at[a] > sign * at[b])

        found = [(f"BI is better than {b}", at["block_influence"], at[b], better("block_influence", b)) for b in rivals]
        place = 1 + sum(sign * at[n] > sign * at["relative_magnitude"] for n in (*rivals, "block_influence"))
        found.append(("relative magnitude is among the paper's two best: place", place, 2, place <= 2))
        wanted = "good" if largest else "poor"
        place = 1 + sum(sign * at[n] > sign * at["hidden_norm"] for n in (*rivals, "block_influence"))
        found.append((f"hidden norm is {wanted}: place of five", place, 2.5, (place <= 2) == largest))
        if "greedy" in at:
            found.append(("BI is as good as the greedy order", at["block_influence"], at["greedy"],
                         bool(sign * at["block_influence"] >= sign * at["greedy"])))  # fmt: skip
        return found

    return statements
