"""Notebook 04: which importance measure should choose what to remove (ShortGPT 4.4, figures 5 and 9)?

Orders of removal are compared by the loss that they leave, on the same blocks of text, up to half of the blocks: beyond
it every model is worse than a guess. Most statements are about depths to a third, where a model still tells something
of its text; deeper, losses grow by nats a block, and a mean over depths says which order broke last. An order depends
on the calibration text too, so resamples of that text give other orders, whose losses are measured as well: an interval
here is over evaluation text and calibration text. The greedy order alone is searched once and stays as it was found:
a search costs hundreds of evaluations, so that what is said of it is said of this one order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from layer_redundancy.config.checks import Count, Whole
from layer_redundancy.core import stats, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.experiments.depth_curves import RATIOS, at_ratio
from layer_redundancy.figures.style import title_of
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

NOTEBOOK = "04_metric_comparison"
# Its smallest detectable effect on the embedded profile: 0.07 nats a token.
PRIMARY = "over depths to a third of the blocks, Block Influence's mean loss is within 0.1 nats of relative magnitude's"
EQUAL = 0.1  # nats a token that count as none, between measures that cost the same
WORTH = 0.25  # nats a token for which a greedy search, which costs hundreds of evaluations, would be worth it
DEEP = 0.5  # nats a token that matter where models lose two nats and more
RUINED = 2.0  # nats a token, beside an order that ruins the model from the first blocks on: tokens 7 times less likely
ITEMS_MATTER = 0.2  # of accuracy: what an order that suits a task should gain
GREEDY = "the greedy order (one search)"
THIRD = 1 / 3
TO_THIRD, TO_HALF = "0 to 33 %", "0 to 50 %"

Curves = Mapping[str, np.ndarray]  # measure -> (K, N): mean NLL a token of N blocks of text at K depths, nats


@dataclass(frozen=True)
class Budget:
    """What notebook 04 measures beside the profile's tasks.

    Attributes:
        evaluation_blocks: number of first blocks of the profile's evaluation text that are used.
        calibration_resamples: resamples of the calibration text whose removal orders are evaluated too; many give the
            same, which is measured once. With none, intervals are over evaluation text alone.
        depth_step: losses are measured at every depth_step-th number of removed blocks.
    """

    evaluation_blocks: Count = 128
    calibration_resamples: Whole = 20
    depth_step: Count = 1


@dataclass(frozen=True, eq=False)
class Measured:
    """Every measure's order at some depths, on the calibration text and on redrawn ones.

    Attributes:
        sums: activation sums of the calibration text.
        greedy: the greedy order; (L,).
        perplexity: what losses are measured on.
        counts: the K numbers of removed blocks, from 0 to half of the blocks.
        by_order: measure -> count -> variant.
        again: the same for each resample of the calibration text, without greedy.
        losses: variant -> its perplexity.
        tasks: name of a task -> variant -> result, at the depths of RATIOS of `by_order`, and of the dense model.
    """

    sums: ActivationSums
    greedy: np.ndarray
    perplexity: Perplexity
    counts: list[int]
    by_order: dict[str, dict[int, Variant]]
    again: list[dict[str, dict[int, Variant]]]
    losses: Mapping[Variant, Result]
    tasks: Mapping[str, Mapping[Variant, Result]]

    def curves(self, by_order: Mapping[str, Mapping[int, Variant]] | None = None) -> dict[str, np.ndarray]:
        """Losses along orders: measure -> (K, N); what a resample lacks is as it is without."""
        orders = self.by_order if by_order is None else self.by_order | dict(by_order)
        return {measure: depth_curves.values(self.losses, removals) for measure, removals in orders.items()}


def measure(study: Study) -> Measured:
    """Removes blocks in every measure's order, and in the greedy one.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
    """
    few_blocks.need_removable(study, "measures have nothing to choose from")
    few_blocks.need_task(study)
    few_blocks.say_what_shares_are(study.num_blocks, RATIOS)
    budget, num = study.profile.budget(Budget), study.num_blocks
    sums, greedy = study.activation_sums(), study.greedy_order()
    counts = sorted({*depth_curves.depths(num, budget.depth_step), at_ratio(num, THIRD)})
    counts = [k for k in counts if k <= at_ratio(num, RATIOS[-1])]
    by_order = depth_curves.removals_by_measure(sums, counts, greedy)
    texts = sums.resampled(budget.calibration_resamples, study.profile.seed)
    again = [depth_curves.removals_by_measure(text, counts) for text in texts]
    perplexity = Perplexity(first_blocks(study.evaluation, budget.evaluation_blocks))
    chosen = [variant for one in [by_order, *again] for removals in one.values() for variant in removals.values()]
    losses = study.sweep([study.dense, *chosen], [perplexity])[perplexity.name]
    few = [removals[k] for removals in by_order.values() for k in ratio_counts(num).values()]
    results = study.sweep([study.dense, *few], study.tasks)
    tasks = {task.items.name: results[task.name] for task in study.tasks}
    return Measured(sums, greedy, perplexity, counts, by_order, again, losses, tasks)


def ratio_counts(num_blocks: int) -> dict[str, int]:
    """The numbers of blocks at which measures are compared: "10 %" -> 3, ...; ratios that are no block are left out."""
    return {
        f"{100 * ratio:.0f} %": at_ratio(num_blocks, ratio)
        for ratio in RATIOS
        if few_blocks.is_a_block(num_blocks, ratio)
    }


def weight_share(study: Study) -> float:
    """Percent of the model's weights that a block holds, of its mean block."""
    weights = study.weight_bytes()
    total = sum(weights.blocks) + weights.rest
    return 100 * float(np.mean(weights.blocks)) / total if total else np.nan


def merged(by_order: Mapping[str, Mapping[int, Variant]], counts: Sequence[int]) -> list[list[str]]:
    """Measures that leave the same blocks at all of some depths, together; in the order of the measures."""
    return importance.equal_together({name: [removals[k] for k in counts] for name, removals in by_order.items()})


# ------------------------------------------------------------------------------------------------ tables


def gaps(study: Study, found: Measured) -> pd.DataFrame:
    """What each measure's order loses beside the greedy one.

    Returns:
        metric (measures of equal orders together, with commas between), count (blocks removed), share (percent of the
        blocks), weights (percent of the weights), loss (mean NLL a token, nats), gap (above the greedy order's) with
        its 95 % interval over blocks of evaluation text and resamples of the calibration text low, high, the greedy
        order staying as it is; loss_low, loss_high (range of the loss over the resamples).
    """
    draws, rows = _Draws(study, found), []
    per_block = weight_share(study)
    for group in merged(found.by_order, found.counts):
        for place, k in enumerate(found.counts):

            def gap(curves: Curves, name: str = group[0], place: int = place) -> float:
                return float(curves[name][place] - curves["greedy"][place])

            losses = [curves[group[0]][place] for curves in draws.of_calibration or [draws.whole]]
            value, low, high = draws.interval(gap)
            rows.append(
                {
                    "metric": ", ".join(group),
                    "count": k,
                    "share": 100 * k / study.num_blocks,
                    "weights": k * per_block,
                    "loss": draws.whole[group[0]][place],
                    "gap": value,
                    "low": low,
                    "high": high,
                    "loss_low": min(losses),
                    "loss_high": max(losses),
                }
            )
    return pd.DataFrame(rows)


class _Draws:
    """Mean curves (K,) of every measure on all data and on resamples of each of the two kinds of unit.

    Attributes:
        whole: measure -> (K,).
        of_calibration: the same for each resample of the calibration text.
        of_text: the same for each resample of the blocks of evaluation text.
        units: how many sequences of calibration text and blocks of evaluation text there are. The spread over the
            calibration text has no more degrees of freedom than it has resamples, which `stats` sees to.
    """

    def __init__(self, study: Study, found: Measured):
        curves = found.curves()
        self.whole = {name: curve.mean(1) for name, curve in curves.items()}
        self.of_calibration = [{n: c.mean(1) for n, c in found.curves(one).items()} for one in found.again]
        names = list(curves)
        stacked = np.stack([curves[name] for name in names]).transpose(2, 0, 1)  # (N, measures, K)
        means = stats.bootstrap_means(stacked, study.profile.bootstrap_resamples, study.profile.seed)
        self.of_text = [dict(zip(names, mean, strict=True)) for mean in means]
        self.units = [len(found.sums.tokens), len(stacked)]

    def interval(self, figure: Callable[[Curves], float]) -> tuple[float, float, float]:
        """A figure of the mean curves, and the ends of its 95 % interval."""
        value = figure(self.whole)
        kinds = [np.array([figure(curves) for curves in kind]) for kind, _ in self._kinds]
        return value, *stats.interval_over_kinds(value, kinds, [units for _, units in self._kinds])

    def judged(self, statements: Callable[[Curves], list[Statement]]) -> pd.DataFrame:
        """What `verdicts.verdicts` decides about statements on mean curves."""
        kinds = [[statements(curves) for curves in kind] for kind, _ in self._kinds]
        return verdicts.judged_draws(statements(self.whole), kinds, [units for _, units in self._kinds])

    @property
    def _kinds(self) -> list[tuple[list[Curves], int]]:
        """Resamples of each kind of unit, and how many units: of evaluation text alone where no other was redrawn."""
        draws: list[list[Curves]] = [[*self.of_calibration], [*self.of_text]]
        return [(of, units) for of, units in zip(draws, self.units, strict=True) if of]


def capabilities(study: Study, found: Measured) -> pd.DataFrame:
    """How each measure's order serves each task at the depths of RATIOS, and the dense model.

    Returns:
        metric (as in `gaps`; "" for the dense model), task, count, share, weights, accuracy with its 95 % Wilson
        interval low, high, n, chance, gold_logprob (mean log-probability of the right choice, nats).
    """
    counts, per_block, parts = list(ratio_counts(study.num_blocks).values()), weight_share(study), []
    for task, results in found.tasks.items():
        table = result_tables.accuracy(results, study.dense, task).drop(columns="metric")
        whole = depth_curves.along(table, {0: study.dense}, study.num_blocks)
        parts.append(whole.assign(metric="", weights=0.0))
        for group in merged(found.by_order, counts):
            removals = {k: found.by_order[group[0]][k] for k in counts}
            rows = depth_curves.along(table, removals, study.num_blocks)
            parts.append(rows.assign(metric=", ".join(group), weights=rows["count"] * per_block))
    columns = ["metric", "task", "count", "share", "weights", "accuracy", "low", "high", "n", "chance", "gold_logprob"]
    return pd.concat(parts, ignore_index=True)[columns]


def area(curve: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Mean of a curve (K, ...) over the depths from the first of counts to the last, by the trapezoid rule."""
    return np.trapezoid(curve, counts, axis=0) / (counts[-1] - counts[0]) if len(counts) > 1 else curve[0]


def best(study: Study, found: Measured) -> pd.DataFrame:
    """The best measure at each of RATIOS, and for the loss by its mean over the depths to a third and to half.

    Greedy, a reference, takes no part. Measures that leave the same blocks stand together, and count as one. The best
    of several on the very text and items that it is judged on looks better than it is, so that nothing is tested here.

    Returns:
        on ("perplexity" or a task), removed ("10 %", ..., TO_THIRD, TO_HALF), of (how many measures differ), best,
        value (mean NLL a token in nats, the smallest of them; or accuracy, the largest), next (the best of the others),
        next_value.
    """
    losses = {name: curve.mean(1) for name, curve in found.curves().items()}
    names = {name: removals for name, removals in found.by_order.items() if name != "greedy"}
    counts, rows = ratio_counts(study.num_blocks), []
    third = [k for k in found.counts if k <= at_ratio(study.num_blocks, THIRD)]
    means = {TO_THIRD: third, TO_HALF: found.counts} if third != found.counts else {TO_HALF: found.counts}
    for removed, depths in ({r: [k] for r, k in counts.items()} | means).items():
        at = [found.counts.index(k) for k in depths]
        values = {
            title: float(area(losses[name][at], depths)) for title, name in _titled(merged(names, depths)).items()
        }
        rows += _best_row("perplexity", removed, values, largest=False)
    for task, results in found.tasks.items():
        for removed, k in counts.items():
            left = {title: names[name][k] for title, name in _titled(merged(names, [k])).items()}
            values = {title: float(result_tables.right(results[variant]).mean()) for title, variant in left.items()}
            rows += _best_row(task, removed, values, largest=True)
    columns = ["on", "removed", "of", "best", "value", "next", "next_value"]
    return pd.DataFrame(rows, columns=columns)


def _titled(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Names for people of measures that stand together -> the first of them."""
    return {", ".join(map(title_of, group)): group[0] for group in groups}


def _best_row(on: str, removed: str, values: Mapping[str, float], largest: bool) -> list[dict[str, object]]:
    """A row of `best`; none where all measures leave the same blocks."""
    if len(values) < 2:
        return []
    first, second = sorted(values, key=values.__getitem__, reverse=largest)[:2]
    row = {"on": on, "removed": removed, "of": len(values), "best": first, "value": values[first], "next": second}
    return [row | {"next_value": values[second]}]


def agreement(study: Study, found: Measured) -> pd.DataFrame:
    """Kendall's tau between all orders: a, b, tau; no row for fewer blocks than `few_blocks.RANKED`.

    Measures of equal orders stand together.
    """
    if not few_blocks.can_be_ranked(study.num_blocks):
        return pd.DataFrame(columns=["a", "b", "tau"])
    orders = {name: importance.removal_order(importance.scores(found.sums, name), name) for name in importance.MEASURES}
    orders["greedy"] = found.greedy
    return order_correlation({", ".join(group): orders[group[0]] for group in importance.equal_together(orders)})


def order_correlation(orders: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Kendall's tau between removal orders: a, b, tau (1: the same order, -1: the reverse)."""
    ranks = {name: importance.ranks(np.asarray(order)) for name, order in orders.items()}
    rows = [(a, b, float(kendalltau(ranks[a], ranks[b]).statistic)) for a in ranks for b in ranks]
    return pd.DataFrame(rows, columns=["a", "b", "tau"])


# ------------------------------------------------------------------------------------------------ verdicts


def claim(study: Study, found: Measured) -> pd.DataFrame:
    """ShortGPT 4.4: BI outperforms the other metrics, hidden norm is good for accuracy; and greedy beside it.

    Returns:
        `verdicts.verdicts` of statements on the loss, over evaluation and calibration text, and on every task that the
        dense model does better than chance, at a tenth and a quarter of the blocks, over items. The greedy order is the
        one that was found, whatever the calibration text.
    """
    third, counts = at_ratio(study.num_blocks, THIRD), ratio_counts(study.num_blocks)
    others = rivals(found)
    parts = [_Draws(study, found).judged(lambda curves: loss_statements(curves, found.counts, third, others))]
    for task, results in found.tasks.items():
        dense = result_tables.right(results[study.dense])
        low, _ = stats.accuracy_interval(round(dense.sum()), len(dense))
        if low > results[study.dense].summary["chance"]:
            for removed, (name, what) in TASK_STATEMENTS.items():
                if removed in counts:
                    left = [found.by_order[order][counts[removed]] for order in (name, "block_influence")]
                    right = np.stack([result_tables.right(results[variant]) for variant in left], axis=1)

                    def more(accuracy: np.ndarray, what: str = what) -> list[Statement]:
                        return [Statement(what, float(accuracy[0]), float(accuracy[1]), "above", ITEMS_MATTER)]

                    parts.append(
                        verdicts.judge(more, right, study.profile.bootstrap_resamples, study.profile.seed, task)
                    )
    return verdicts.verdicts(parts, PRIMARY)


def rivals(found: Measured) -> dict[str, str]:
    """The measures that Block Influence should be ahead of, in words; one of two that give the same order."""
    words = {
        "hidden_norm": "hidden norm's",
        "sequential": "that of the first blocks first",
        "reverse_order": "that of the last blocks first",
        "angular_blocks": "that of runs of the smallest angular distance",
    }
    if found.by_order["hidden_norm"] == found.by_order["reverse_order"]:
        words["hidden_norm"] = "hidden norm's, which removes the last blocks first"
        del words["reverse_order"]
    return words


def loss_statements(curves: Curves, depths: Sequence[int], third: int, others: Mapping[str, str]) -> list[Statement]:
    """Statements on the mean losses (K,) of every measure at the K depths.

    Args:
        third: one of the depths, a third of the blocks.
        others: from `rivals`.
    """
    at = list(depths).index(third)
    mean = {name: float(area(curve[: at + 1], depths[: at + 1])) for name, curve in curves.items()}
    ours, over = mean["block_influence"], "over depths to a third of the blocks"
    found = [Statement(PRIMARY, ours - mean["relative_magnitude"], EQUAL, "within")]
    found += [
        Statement(
            f"{over}, Block Influence's mean loss is below {words}",
            ours,
            mean[name],
            "below",
            DEEP if name == "angular_blocks" else RUINED,
        )
        for name, words in others.items()
    ]
    what = f"{over}, {GREEDY} has a mean loss within {WORTH} nats of Block Influence's"
    found.append(Statement(what, mean["greedy"] - ours, WORTH, "within"))
    if at + 1 < len(depths):
        what = f"from a third to half of the blocks, {GREEDY} has a mean loss below Block Influence's"
        greedy, influence = (float(area(curves[name][at:], depths[at:])) for name in ("greedy", "block_influence"))
        found.append(Statement(what, greedy, influence, "below", DEEP))
    return found


TASK_STATEMENTS = {  # by what is removed, as `ratio_counts` names it
    "10 %": ("greedy", f"without a tenth of the blocks, {GREEDY} leaves more items right than Block Influence's"),
    "25 %": (
        "hidden_norm",
        "without a quarter of the blocks, hidden norm's order leaves more items right than Block Influence's",
    ),
}
