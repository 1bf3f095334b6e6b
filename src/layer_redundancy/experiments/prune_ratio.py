"""Notebook 03: a growing share of the blocks removed by Block Influence (ShortGPT figure 2b, 4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted, span
from layer_redundancy.evaluate import without_a_model
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import capabilities, depth_curves, few_blocks, result_tables
from layer_redundancy.experiments.capabilities import AGREEMENT, COPYING, TEXT, Capability
from layer_redundancy.figures.style import words
from layer_redundancy.measures import unigram
from layer_redundancy.models import checkpoints
from layer_redundancy.study import Study

NOTEBOOK = "03_prune_ratio"
# On the embedded profile (200 items of each task) a difference of 9 points of accuracy is found with a power of 0.8.
PRIMARY = "up to a quarter of the blocks, copying loses more accuracy than agreement"
COST = 0.05  # of the accuracy: what a quarter of the blocks costs in the paper's introduction
COSTLY = 0.15  # more than that matters: a fifth of the accuracy instead of a twentieth; less is not seen on 200 items
HARMLESS = 0.05  # of accuracy: what is less counts as no harm
BROKEN = 20  # percent of what exceeds the broken model's accuracy: with less an ability counts as gone
HALVED = (35, 65)  # percent of the same


@dataclass(frozen=True)
class Budget:
    """What notebook 03 measures beside the profile's tasks.

    Attributes:
        tasks: benchmarks that are measured at `depths` alone.
    """

    tasks: tuple[TaskBudget, ...] = ()


@dataclass(frozen=True, eq=False)
class Measured:
    """Every depth of removal in the order of an importance measure.

    Attributes:
        order: the blocks, first removed first; (L,).
        removals: number of removed blocks -> variant.
        tasks: the profile's tasks, and those of the budget.
        results: measurement -> variant -> result; the budget's tasks at few depths.
    """

    order: np.ndarray
    removals: dict[int, Variant]
    tasks: Sequence[ChoiceTask]
    results: Mapping[str, Mapping[Variant, Result]]

    def along(self, name: str) -> dict[int, Variant]:
        """The removals of which a measurement has results."""
        return {k: variant for k, variant in self.removals.items() if variant in self.results[name]}


def measure(study: Study, by: str = "block_influence") -> Measured:
    """Removes blocks in the order of an importance measure until one is left.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
        StudyError: a measure that is not known, or not computed from activations or positions.
    """
    few_blocks.need_removable(study, "there is no share of the blocks to remove")
    few_blocks.need_task(study)
    few_blocks.say_what_shares_are(study.num_blocks, [0.25])
    order, budget = study.order(by), study.profile.budget(Budget)
    removals = dict(enumerate(variants.cumulative_removal(study.num_blocks, order)))
    results = study.sweep(list(removals.values()))
    names = set(study.task_names)
    further = [task for one in budget.tasks if (task := study.inputs.task(one)).items.name not in names]
    if further:
        results |= study.sweep([removals[k] for k in depths(study.num_blocks)], further)
    return Measured(order, removals, [*study.tasks, *further], results)


def depths(num_blocks: int) -> list[int]:
    """Numbers of removed blocks at which the budget's tasks are measured: none, those of RATIOS, and all but one."""
    return sorted({0, *at_ratios(num_blocks), num_blocks - 1})


def at_ratios(num_blocks: int) -> list[int]:
    """The numbers of removed blocks closest to RATIOS."""
    return sorted({depth_curves.at_ratio(num_blocks, ratio) for ratio in depth_curves.RATIOS})


# ------------------------------------------------------------------------------------------------------------- tables


def perplexity(study: Study, found: Measured) -> pd.DataFrame:
    """`result_tables.perplexity` along the depths, with weights (share of all weights removed, percent)."""
    table, _ = result_tables.perplexity(found.results["perplexity"], study.dense)
    return _with_weights(study, depth_curves.along(table, found.removals, study.num_blocks))


def accuracy(study: Study, found: Measured) -> pd.DataFrame:
    """`result_tables.accuracy` of all tasks along the depths, with weights."""
    parts = [
        depth_curves.along(
            result_tables.accuracy(found.results[task.name], study.dense, task.items.name),
            found.along(task.name),
            study.num_blocks,
        )
        for task in found.tasks
    ]
    return _with_weights(study, pd.concat(parts, ignore_index=True))


def _with_weights(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    shares = weights_removed(study)
    removed = [[int(block) for block in text.split()] for text in table["removed"]]
    return table.assign(weights=[100 * sum(shares[block] for block in blocks) for blocks in removed])


def rules(found: Measured) -> pd.DataFrame:
    """What rules without a model get of the tasks.

    Returns:
        Columns of `without_a_model.table`: its rules that always choose, in words for a figure, and of each task the
        largest accuracy of so many. That has no interval: it is chosen on the items that it is judged on.
    """
    table = without_a_model.table(found.tasks)
    if table.empty:
        return table
    known = table[table["rule"].isin(SHOWN_RULES)]
    known = known.assign(rule=[SHOWN_RULES[rule] for rule in known["rule"]])
    largest = without_a_model.largest(table)
    name = f"largest of {span(largest.pop('rules'))}"
    return pd.concat([known, largest.assign(rule=name)], ignore_index=True)


SHOWN_RULES = {
    "most like the text before (TF-IDF)": "TF-IDF",
    "most frequent words": "frequent words",
    "longest": "longest",
    "shortest": "shortest",
}


def unigram_loss(study: Study, found: Measured) -> float:
    """Loss above the dense model's of who knows how frequent tokens are in the calibration text, nats a token."""
    dense = found.results["perplexity"][study.dense].summary["nll"]
    return float(unigram.loss(study.inputs.token_counts, study.evaluation).mean() - dense)


def weights_removed(study: Study) -> np.ndarray:
    """(L,) share of all of the model's weights, tied ones once, that is each block's."""
    occupied = study.weight_bytes()
    whole = sum(occupied.blocks) + occupied.rest
    return np.array(occupied.blocks, float) / max(whole, 1)


def paper_weights(removed: int) -> float:
    """Share (percent) of all weights of Llama-2-7B that so many of its 32 blocks are."""
    from transformers import LlamaConfig

    with checkpoints.shapes_of(LlamaConfig(num_hidden_layers=32)) as model:  # all else is Llama-2-7B's by default
        path = checkpoints.blocks_path(model)
        sizes = {name: one.numel() for name, one in model.named_parameters()}
    block = sum(size for name, size in sizes.items() if name.startswith(f"{path}.0."))
    return 100 * removed * block / sum(sizes.values())


def curves(found: Measured) -> list[Capability]:
    """Text and the tasks that were measured at every depth, by number of removed blocks."""
    return capabilities.of_results(found.results, found.tasks, list(found.removals.values()))


def left(study: Study, found: Measured) -> pd.DataFrame:
    """What is left of each capability at RATIOS.

    Returns:
        A row a (number of removed blocks, capability): count, share and weights (percent removed), on, accuracy with
        its 95 % interval low, high, n, dense (accuracy of the dense model), floor (that of the model without nearly all
        blocks), lost (accuracy, paired) with lost_low, lost_high, left (percent of what exceeds the floor; NaN where
        the dense model's interval holds chance) with left_low, left_high, nats (lost, paired: a token of text, or the
        right choice's share) with nats_low, nats_high.
    """
    num, resamples, seed = study.num_blocks, study.profile.bootstrap_resamples, study.profile.seed
    counts = at_ratios(num)
    chosen = [found.removals[k] for k in (0, *counts, num - 1)]
    known = capabilities.of_results(found.results, found.tasks, chosen)
    shares = weights_removed(study)
    rows = []
    for place, k in enumerate(counts, start=1):
        base = {"count": k, "share": 100 * k / num, "weights": 100 * shares[found.order[:k]].sum()}
        for one in known:
            paired = one.nats[:, place] - one.nats[:, 0]  # NaN of a task that has no loss in nats
            row = base | {"on": one.name, "n": one.units, "nats": paired.mean()}
            row["nats_low"], row["nats_high"] = stats.mean_interval(paired)
            if one.right is not None:
                row |= _accuracy_left(one, place, resamples, seed)
            rows.append(row)
    columns = [
        "count", "share", "weights", "on", "accuracy", "low", "high", "n", "dense", "floor", "lost", "lost_low",
        "lost_high", "left", "left_low", "left_high", "nats", "nats_low", "nats_high",
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=columns)


def _accuracy_left(one: Capability, place: int, resamples: int, seed: int) -> dict[str, float]:
    assert one.right is not None
    right = one.right[:, [0, place, -1]]
    dense, here, floor = right.mean(0)
    low, high = stats.accuracy_interval(round(right[:, 1].sum()), len(right))
    row = {"accuracy": here, "low": low, "high": high, "dense": dense, "floor": floor, "lost": dense - here}
    row["lost_low"], row["lost_high"] = stats.paired_interval(right[:, 0] - right[:, 1])
    if capabilities.solved(one) and dense > floor:
        share = _share_left(right.mean(0)[None])
        drawn = _share_left(stats.bootstrap_means(right, resamples, seed))
        row["left"] = 100 * share[0]
        row["left_low"], row["left_high"] = stats.interval(row["left"], 100 * drawn[np.isfinite(drawn)], len(right))
    return row


def _share_left(means: np.ndarray) -> np.ndarray:
    """(R, 3) accuracies of the dense model, of a pruned one and of the broken one -> (R,) share left of the rest."""
    dense, here, floor = means.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(dense > floor, (here - floor) / (dense - floor), np.nan)


def in_words(left: pd.DataFrame, num_blocks: int) -> list[str]:
    """What the table says to somebody who would remove so many blocks, a sentence a depth; argument from `left`."""
    sentences = []
    for count, part in left.groupby("count", sort=True):
        parts = [f"{row['on']} {_in_words(row)}" for row in part.to_dict("records")]
        weights = part["weights"].iloc[0]
        of_weights = f", {weights:.0f} % of the weights" if weights else ""
        sentences.append(
            f"{counted(int(count), 'block')} of {num_blocks} gone ({part['share'].iloc[0]:.0f} %{of_weights}): "
            f"{'; '.join(parts)}."
        )
    return sentences


def _in_words(found: Mapping[str, Any]) -> str:
    """What became of a capability, in a few words, which its interval allows."""
    if np.isnan(found["accuracy"]):
        return f"costs {found['nats']:.2f} nats a token more (perplexity times {np.exp(min(found['nats'], 99)):.3g})"
    change = f"{found['accuracy']:.2f} instead of {found['dense']:.2f}"
    if np.isnan(found["left"]):
        return f"not seen in the whole model ({change})"
    if found["lost_high"] < HARMLESS:
        return f"kept ({change})"
    if found["lost_low"] <= 0:
        return f"not seen to fall ({change}; by {100 * found['lost_high']:.0f} points at most)"
    if found["left_high"] < BROKEN:
        return f"gone ({change})"
    share = f"{found['left']:.0f} %, {found['left_low']:.0f} to {found['left_high']:.0f}"
    if found["left_low"] <= 0:
        return f"not told from a broken model's ({share}; {change})"
    if HALVED[0] < found["left_low"] and found["left_high"] < HALVED[1]:
        return f"halved ({share}; {change})"
    return f"down to {share} ({change})"


def kept(left: pd.DataFrame, accuracy: pd.DataFrame, reported: pd.DataFrame, num_blocks: int) -> pd.DataFrame:
    """What is left above guessing at the ratios for which the paper prints MMLU, beside what is left here.

    Args:
        left: from `left`, for the floor of each task.
        accuracy: accuracies at all depths, from `accuracy`.
        reported: `paper_tables.mmlu_by_ratio()`.

    Returns:
        paper's model, removed there and here (blocks), the paper's MMLU kept, of the dense model's accuracy and of what
        exceeds chance (percent), and for every task what is left above the floor (percent); NaN where it was not
        measured, or the dense model's interval holds chance.
    """
    last = left[left["count"] == left["count"].max()].set_index("on")
    rows = []
    for entry in reported[reported["share"] > 0].itertuples():
        of_model = reported[reported["label"] == entry.label]
        base = of_model.loc[of_model["share"] == 0, "accuracy"].iloc[0]
        k = depth_curves.at_ratio(num_blocks, entry.share / 100)
        row = {
            "paper's model": entry.model,
            "removed, paper": f"{entry.removed} of {entry.num_layers}",
            "removed, here": f"{k} of {num_blocks}",
            "MMLU kept, paper (%)": 100 * entry.accuracy / base,
            "MMLU, above chance, paper (%)": 100 * (entry.accuracy - 0.25) / (base - 0.25),
        }
        for task, part in accuracy.groupby("task", sort=False):
            on, at = words(str(task)), part.set_index("count")
            dense, floor = at["accuracy"].get(0, np.nan), last["floor"].get(on, np.nan)
            known = k in at.index and at["low"].get(0, 0) > at["chance"].iloc[0] and dense > floor
            row[f"{on}, above the broken model (%)"] = (
                100 * (at["accuracy"][k] - floor) / (dense - floor) if known else np.nan
            )
        rows.append(row)
    return pd.DataFrame(rows)


def cliffs(study: Study, found: Measured) -> pd.DataFrame:
    """Where the accuracy of each task that the dense model can do falls.

    Returns:
        on, count (removed blocks at the first depth after the fall) with its 95 % interval low, high, block
        (removed there), before, after (mean accuracy), share, share_low, share_high (percent of the blocks); no row
        where the dense model can do no task.
    """
    seed, resamples, num = study.profile.seed, study.profile.bootstrap_resamples, study.num_blocks
    rows = []
    for one in curves(found):
        if one.right is None or not capabilities.solved(one):
            continue
        at = cliff(one.right.T, resamples, seed)
        row: dict[str, Any] = {"on": one.name, **at, "block": int(found.order[int(at["count"]) - 1])}
        rows.append(row | {f"share{end}": 100 * at[key] / num for end, key in ENDS.items()})
    return pd.DataFrame(rows)


ENDS = {"": "count", "_low": "low", "_high": "high"}


def cliff(curve: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Where a curve of accuracy falls: the depth that splits it best into a level before and a level after.

    Args:
        curve: (K, N) accuracy of N items at 0, 1, ..., K - 1 removed blocks; K at least 2.
        resamples: bootstrap resamples of the items.
        seed: seed of the resampling.

    Returns:
        count: removed blocks at the first depth after the fall, the one with the smallest sum of squares about the two
        levels (Hinkley 1970); low, high: percentiles of resamples that hold 95 %; before, after: the levels.
    """
    count, before, after = _split(curve.mean(1))
    drawn = [_split(mean)[0] for mean in stats.bootstrap_means(curve.T, resamples, seed)]
    low, high = map(int, np.percentile(drawn, stats.INTERVAL, method="nearest"))
    return {"count": count, "low": low, "high": high, "before": before, "after": after}


def _split(mean: np.ndarray) -> tuple[int, float, float]:
    """(first index after the fall, level before, level after); the first of equals."""
    costs = [mean[:c].var() * c + mean[c:].var() * (len(mean) - c) for c in range(1, len(mean))]
    c = int(np.argmin(np.round(costs, 12))) + 1
    return c, float(mean[:c].mean()), float(mean[c:].mean())


# --------------------------------------------------------------------------------------------------------- statements


def claim(study: Study, found: Measured) -> pd.DataFrame:
    """ShortGPT 4.1 and its introduction on what was measured; a table of `verdicts.verdicts`.

    No row for two blocks, of which one can go: a single step has no steadiness, takes all of the fall, and is half of
    the blocks.
    """
    num, seed, resamples = study.num_blocks, study.profile.seed, study.profile.bootstrap_resamples
    if num < 3:
        return verdicts.verdicts([], PRIMARY)
    count = depth_curves.at_ratio(num, 0.25)
    all_along = {one.name: one for one in curves(found)}
    tasks = {name: one for name, one in all_along.items() if capabilities.solved(one)}
    parts = [declines(all_along[TEXT], resamples, seed)] if TEXT in all_along else []
    if {AGREEMENT, COPYING} <= set(tasks):
        parts.append(faster(tasks[COPYING], tasks[AGREEMENT], count, resamples, seed))
    if tasks:
        parts.append(step(list(tasks.values()), resamples, seed))
    both = capabilities.of_results(found.results, found.tasks, [study.dense, found.removals[count]])
    parts += [quarter(one, resamples, seed) for one in both if capabilities.solved(one)]
    return verdicts.verdicts(parts, PRIMARY)


def declines(text: Capability, resamples: int, seed: int) -> pd.DataFrame:
    """Whether the loss grows with nearly every block."""
    steps = np.arange(text.nats.shape[1])

    def statements(mean: np.ndarray) -> list[Statement]:
        (tau,) = stats.kendall_taus(steps, mean[None])
        return [Statement("the loss grows with the number of blocks gone: Kendall's tau", tau, 0.8, "above", 0.1)]

    return verdicts.judge(statements, text.nats, resamples, seed, text.name)


def faster(one: Capability, other: Capability, count: int, resamples: int, seed: int) -> pd.DataFrame:
    """Whether one task loses more accuracy than another, on average over the depths up to a quarter of the blocks."""
    assert one.right is not None and other.right is not None
    right = one.right, other.right
    name = f"up to a quarter of the blocks, {one.name} loses more accuracy than {other.name}"

    def lost(means: np.ndarray) -> list[float]:
        """(R, K) accuracies by depth -> R means of what is lost at 1 to `count` removed blocks."""
        return list((means[:, :1] - means[:, 1 : count + 1]).mean(-1))

    def statement(a: float, b: float) -> list[Statement]:
        return [Statement(name, a, b, "above", 0.1)]

    whole = [lost(of.mean(0)[None]) for of in right]
    a, b = whole[0][0], whole[1][0]
    drawn = [lost(stats.bootstrap_means(of, resamples, seed + place)) for place, of in enumerate(right)]
    draws = [[statement(again, b) for again in drawn[0]], [statement(a, again) for again in drawn[1]]]
    on = f"{one.name} against {other.name}"
    return verdicts.judged_draws(statement(a, b), draws, [one.units, other.units], on)


def step(tasks: Sequence[Capability], resamples: int, seed: int) -> pd.DataFrame:
    """Whether one block's removal takes at least half of the whole fall of the tasks' mean accuracy.

    The step is the largest on one half of the items, and judged on the other, and the other way round: the largest of
    many noisy steps would always seem large. Items of different tasks are independent, so that any of them may stand
    side by side.
    """
    units = min((task.units for task in tasks), default=0)
    if units < 4:
        return pd.DataFrame()
    right = np.mean([task.right[:units] for task in tasks if task.right is not None], axis=0)
    steps = [int(np.argmax(-np.diff(right[start::2].mean(0)))) for start in (0, 1)]
    fall = -np.diff(right, axis=1)
    judged = fall[:, steps[0]].copy()
    judged[::2] = fall[::2, steps[1]]

    def statements(mean: np.ndarray) -> list[Statement]:
        share = mean[0] / mean[1] if mean[1] > 0 else np.nan
        return [Statement("one block's removal takes half of the whole fall of accuracy", share, 0.5, "above", 0.2)]

    on = f"mean of {' and '.join(task.name for task in tasks)}"
    return verdicts.judge(statements, np.stack([judged, right[:, 0] - right[:, -1]], axis=1), resamples, seed, on)


def quarter(task: Capability, resamples: int, seed: int) -> pd.DataFrame:
    """Whether a quarter of the blocks costs a task no more of its accuracy than the paper's models; of two variants."""
    assert task.right is not None

    def statements(mean: np.ndarray) -> list[Statement]:
        lost = (mean[0] - mean[1]) / mean[0] if mean[0] > 0 else np.nan
        name = f"a quarter of the blocks costs less than {100 * COST:.0f} % of the accuracy"
        return [Statement(name, float(lost), COST, "below", COSTLY)]

    return verdicts.judge(statements, task.right, resamples, seed, task.name)
