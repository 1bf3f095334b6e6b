"""Results along an order of removal -> curves, cliffs, areas and what they say of importance measures.

A curve is an array (K, N): K depths of removal, N blocks of text (mean NLL a token, nats) or items (accuracy). Means
over N are what is drawn; resampling N says how certain they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from layer_redundancy.core import stats, variants
from layer_redundancy.core.stats import INTERVAL, Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import result_tables
from layer_redundancy.measures import importance, registry
from layer_redundancy.measures.activations import ActivationSums

RATIOS = (0.10, 0.25, 0.50)  # shares of blocks removed at which measures are compared


def depths(num_blocks: int, step: int = 1) -> list[int]:
    """Numbers of removed blocks at which measures are compared: every step-th, all but one, and those of RATIOS."""
    last = num_blocks - 1
    return sorted({*range(0, last, step), last, *(min(last, at_ratio(num_blocks, ratio)) for ratio in RATIOS)})


def at_ratio(num_blocks: int, ratio: float) -> int:
    """The number of blocks closest to a share of them, at least one."""
    return max(1, round(ratio * num_blocks))


def plans(
    sums: ActivationSums, counts: Sequence[int], greedy: Sequence[int] | None = None
) -> dict[str, dict[int, Variant]]:
    """What each measure leaves when so many blocks are removed: measure -> count -> variant.

    Args:
        sums: of the calibration text.
        counts: numbers of removed blocks, from `depths`.
        greedy: the greedy order, drawn as a measure of its own.

    Returns:
        Every measure of the registry's list of curves; "greedy" only if it is given; and "angular_blocks", since the
        rule of angular_distance removes one contiguous run of blocks (of each length the run with the smallest
        distance; Gromov et al. 2024).
    """
    num = sums.num_blocks
    orders = {
        name: importance.removal_order(importance.scores(sums, name), name)
        for name, measure in registry.Listed(registry.CURVES).items()
        if measure.from_sums
    }
    if greedy is not None:
        orders["greedy"] = np.asarray(greedy)
    chosen = {name: {k: variants.without(num, order[:k]) for k in counts} for name, order in orders.items()}
    grid = importance.angular_grid(sums)
    runs = {k: variants.block_removal(num, importance.best_start(grid, k), k) for k in counts if k}
    return chosen | {"angular_blocks": {k: runs.get(k, variants.dense(num)) for k in counts}}


def values(results: Mapping[Variant, Result], plan: Mapping[int, Variant]) -> np.ndarray:
    """(K, N) of one measurement along a plan: mean NLL a token of blocks of text in nats, or accuracy of items."""
    rows = [results[variant] for variant in plan.values()]
    sign = 1 if result_tables.accuracy_metric(rows[0]) is None else -1
    return np.stack([sign * result_tables.cost(row) for row in rows])


def along(table: pd.DataFrame, plan: Mapping[int, Variant], num_blocks: int) -> pd.DataFrame:
    """Rows of `tables.perplexity` or `tables.accuracy` at the depths of a plan.

    Returns:
        The table's columns with count (blocks removed), share (of the blocks, percent) and removed as text.
    """
    rows = table.assign(removed=[tuple(removed) for removed in table["removed"]]).set_index("removed")
    keys = [variants.removed_blocks(num_blocks, variant) for variant in plan.values()]
    parts = [rows.loc[[key]].assign(count=k, share=100 * k / num_blocks) for k, key in zip(plan, keys, strict=True)]
    out = pd.concat(parts).reset_index()
    return out.assign(removed=[" ".join(map(str, removed)) for removed in out["removed"]])


def by_measure(
    results: Mapping[str, Mapping[Variant, Result]],
    plans: Mapping[str, Mapping[int, Variant]],
    again: Sequence[Mapping[str, Mapping[int, Variant]]],
    dense: Variant,
    tasks: Sequence[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves of all measures.

    Args:
        results: measurement -> variant -> result.
        plans: from `plans`.
        again: the same on redrawn calibration texts; measures that it lacks have no band.
        tasks: names.

    Returns:
        perplexity: metric, count, share (percent of blocks), removed, perplexity, low, high (range over the redrawn
        texts), log_increase with its 95 % interval; and accuracy: metric, task, count, share, removed, metric_name,
        accuracy, low, high (95 % Wilson), n, chance, text_low, text_high (range over the redrawn texts).
    """
    num = len(dense)
    table, _ = result_tables.perplexity(results["perplexity"], dense)
    parts, accuracies = [], []
    for name, plan in plans.items():
        same = [plan, *(texts[name] for texts in again if name in texts)]
        part = along(table.drop(columns=["low", "high"]), plan, num)
        spread = np.stack([along(table, p, num)["perplexity"] for p in same])
        parts.append(part.assign(metric=name, low=spread.min(0), high=spread.max(0)))
        for task in tasks:
            of_task = results[f"task/{task}"]
            rows = result_tables.accuracy(of_task, dense, task).rename(columns={"metric": "metric_name"})
            spread = np.stack([values(of_task, p).mean(1) for p in same])
            accuracies.append(
                along(rows, plan, num).assign(metric=name, text_low=spread.min(0), text_high=spread.max(0))
            )
    return pd.concat(parts, ignore_index=True), pd.concat(accuracies, ignore_index=True)


def kept(accuracy: pd.DataFrame, num_blocks: int, reported: pd.DataFrame) -> pd.DataFrame:
    """What is left of the accuracy at the ratios for which the paper prints MMLU.

    Args:
        accuracy: from `along`, at all depths.
        reported: `paper.mmlu_by_ratio()`.

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
            row[f"{task} kept, measured (%)"] = 100 * value / dense
            row[f"{task}, above chance (%)"] = 100 * (value - chance) / (dense - chance) if dense > chance else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def cliff(curve: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Where a curve of accuracy falls: the depth that splits it best into a level before and a level after.

    Args:
        curve: (K, N) accuracy of N items at 0, 1, ..., K - 1 removed blocks; K at least 2.
        resamples: bootstrap resamples of the items.
        seed: of the resampling.

    Returns:
        count: removed blocks at the first depth after the fall, the one with the smallest sum of squares about the two
        levels (Hinkley 1970); low, high: 95 % of the resamples; certainty: share of the resamples with the same count;
        before, after: the levels; falls: share of the resamples in which the level after is the lower one.
    """
    found = [_split(mean) for mean in stats.bootstrap_means(curve.T, resamples, seed)]
    count, before, after = _split(curve.mean(1))
    counts = np.array([c for c, _, _ in found])
    low, high = np.percentile(counts, INTERVAL, method="nearest")
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


def area(curve: np.ndarray, counts: Sequence[int], until: int | None = None) -> np.ndarray:
    """(N,) mean of a curve (K, N) over the depths from the first of counts to `until`, by the trapezoid rule.

    Args:
        until: one of counts; the last if not given.
    """
    end = len(counts) if until is None else list(counts).index(until) + 1
    return np.trapezoid(curve[:end], counts[:end], axis=0) / (counts[end - 1] - counts[0])


def half(num_blocks: int) -> int:
    """Removed blocks up to which areas are compared: beyond them every model is worse than a guess."""
    return min(num_blocks - 1, at_ratio(num_blocks, RATIOS[-1]))


def areas(
    curves: Mapping[str, np.ndarray], counts: Sequence[int], until: int, resamples: int, seed: int
) -> pd.DataFrame:
    """The area under each measure's curve.

    Args:
        curves: measure -> (K, N), all on the same N.
        counts: removed blocks at the K depths.
        until: the last of them that counts.

    Returns:
        metric, area (mean over the depths of the mean NLL in nats or of the accuracy), low, high (95 % over bootstrap
        resamples of the N, the same for all measures).
    """
    rows = []
    for name, curve in curves.items():
        by_unit = area(curve, counts, until)
        draws = stats.bootstrap_means(by_unit, resamples, seed)
        low, high = np.percentile(draws, INTERVAL)
        rows.append({"metric": name, "area": by_unit.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def area_table(
    results: Mapping[str, Mapping[Variant, Result]],
    plans: Mapping[str, Mapping[int, Variant]],
    again: Sequence[Mapping[str, Mapping[int, Variant]]],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """`areas` of every measurement, up to half of the blocks and over all depths, the best first.

    Returns:
        on (measurement), depths, metric, area, low, high, text_low, text_high (range over the redrawn texts).
    """
    parts = []
    counts = list(next(iter(plans.values())))
    for name, of_variant in results.items():
        drawn = {m: values(of_variant, plan) for m, plan in plans.items()}
        for depths_of, until in (("to 50 %", half(counts[-1] + 1)), ("all", counts[-1])):
            table = areas(drawn, counts, until, resamples, seed)
            spread = [
                [area(values(of_variant, p[m]), counts, until).mean() for p in [plans, *again] if m in p]
                for m in table["metric"]
            ]
            table = table.assign(text_low=[min(s) for s in spread], text_high=[max(s) for s in spread])
            table.insert(0, "depths", depths_of)
            table.insert(0, "on", name.removeprefix("task/"))
            parts.append(table.sort_values("area", ascending=name == "perplexity", kind="stable"))
    return pd.concat(parts, ignore_index=True)


def best(
    curves: Mapping[str, np.ndarray],
    plan: Mapping[str, Mapping[int, Variant]],
    num_blocks: int,
    largest: bool,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The best measure at each of RATIOS and by the area up to half of the blocks, and how certain that is.

    Args:
        curves: measure -> (K, N); "greedy" is a reference and takes no part.
        plan: from `plans`, with the same depths.
        largest: whether the largest value is best (accuracy) or the smallest (NLL).

    Returns:
        removed ("10 %", ..., "0 to 50 %": the area), best (measure; several that leave the same blocks stand together),
        value, next (the best of those that leave others), next_value, certainty (share of the bootstrap resamples of
        the N in which the best is better than every other).
    """
    names = [name for name in curves if name != "greedy"]
    counts = list(next(iter(plan.values())))
    rows = []
    for ratio in (*RATIOS, None):
        if ratio is None:
            until = half(num_blocks)
            units = np.stack([area(curves[name], counts, until) for name in names], axis=1)
            left = [tuple(plan[name][k] for k in counts if k <= until) for name in names]
        else:
            k = min(num_blocks - 1, at_ratio(num_blocks, ratio))
            units = np.stack([curves[name][counts.index(k)] for name in names], axis=1)
            left = [plan[name][k] for name in names]
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


def ratio_claim(
    curves: Mapping[str, np.ndarray], chance: Mapping[str, float], resamples: int, seed: int
) -> pd.DataFrame:
    """ShortGPT 3.4 on figure 5: performance declines with the ratio, and accuracy falls at a certain block.

    Args:
        curves: measurement -> (L, N) at 0, 1, ..., L - 1 removed blocks; "perplexity" holds mean NLL in nats.
        chance: task -> accuracy of guessing.

    Returns:
        on (measurement), statement, measured, threshold, holds, certainty.
    """
    parts = []
    for name, curve in curves.items():
        steps = np.arange(len(curve))
        quarter = at_ratio(len(curve), 0.25)

        def statements(mean: np.ndarray, name=name, steps=steps, quarter=quarter) -> list[Statement]:
            worse = mean if name == "perplexity" else -mean
            tau = kendalltau(steps, worse).statistic
            said = [("declines steadily with blocks removed: Kendall's tau", tau, 0.8, bool(tau > 0.8))]
            if name == "perplexity":
                return said
            total = mean[0] - mean[-1]
            largest = -np.diff(mean).min() / total if total > 0 else 0.0
            kept = mean[quarter] / mean[0]
            above = (mean[quarter] - chance[name]) / max(mean[0] - chance[name], 1e-9)
            return [
                *said,
                ("one block's removal takes at least half of the whole fall", largest, 0.5, bool(largest >= 0.5)),
                ("92 % of the accuracy is left after a quarter of the blocks", kept, 0.92, bool(kept >= 0.92)),
                ("92 % of what exceeds chance is left after a quarter", above, 0.92, bool(above >= 0.92)),
            ]

        parts.append(stats.claim(statements, curve.T, resamples, seed).assign(on=name.removeprefix("task/")))
    return pd.concat(parts, ignore_index=True)


def metric_claim(
    curves: Mapping[str, Mapping[str, np.ndarray]], counts: Sequence[int], resamples: int, seed: int
) -> pd.DataFrame:
    """ShortGPT 4.4: BI outperforms other measures, relative magnitude is highly competitive, hidden norm is good for
    accuracy only.

    Args:
        curves: measurement -> measure -> (K, N); "perplexity" holds mean NLL in nats, the others accuracy.
        counts: removed blocks at the K depths.

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


def _metric_statements(names: Sequence[str], largest: bool):
    sign = 1 if largest else -1
    rivals = [n for n in ("relative_magnitude", "hidden_norm", "sequential", "reverse_order") if n in names]

    def statements(mean: np.ndarray) -> list[Statement]:
        at = dict(zip(names, mean, strict=True))

        def better(a: str, b: str) -> bool:
            return bool(sign * at[a] > sign * at[b])

        said = [(f"BI is better than {b}", at["block_influence"], at[b], better("block_influence", b)) for b in rivals]
        place = 1 + sum(sign * at[n] > sign * at["relative_magnitude"] for n in (*rivals, "block_influence"))
        said.append(("relative magnitude is among the paper's two best: place", place, 2, place <= 2))
        wanted = "good" if largest else "poor"
        place = 1 + sum(sign * at[n] > sign * at["hidden_norm"] for n in (*rivals, "block_influence"))
        said.append((f"hidden norm is {wanted}: place of five", place, 2.5, (place <= 2) == largest))
        if "greedy" in at:
            said.append(("BI is as good as the greedy order", at["block_influence"], at["greedy"],
                         bool(sign * at["block_influence"] >= sign * at["greedy"])))  # fmt: skip
        return said

    return statements
