"""Scores of the dense and the pruned models on a set of benchmarks, their averages, and what the paper reports.

Scores are kept item by item, benchmark -> method -> (N,) in 0..1, the same N items for every method of a benchmark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import between
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import stats, variants
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.wording import counted
from layer_redundancy.data import task_files
from layer_redundancy.evaluate import generative_tasks
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.study import Study

Scores = Mapping[str, Mapping[str, np.ndarray]]
KEPT = 0.92  # "our method maintains 92 % performance while reducing approximately 25 % of the parameters" (ShortGPT, 1)


NOTEBOOK = "08_benchmarks"


@dataclass(frozen=True)
class Budget:
    """What notebook 08 measures: it has few variants, and so affords more than the profile's tasks.

    Attributes:
        tasks: multiple-choice benchmarks of table 1.
        generative_tasks: benchmarks whose answers are generated.
        ratio: share of the blocks that is removed; None ("auto") for the paper's number of blocks.
    """

    tasks: tuple[TaskBudget, ...]
    generative_tasks: tuple[TaskBudget, ...] = ()
    ratio: Annotated[float | None, between(0, 1)] = None


@dataclass(frozen=True, eq=False)
class Measured:
    """The dense model and two pruned ones on the benchmarks.

    Attributes:
        methods: method -> variant, the dense model first; it alone where no block can be removed.
        num_removed: number of blocks that the pruned models lack.
        tasks: the multiple-choice benchmarks.
        results: measurement -> variant -> result, of the multiple-choice benchmarks.
        generated: benchmark -> variant -> result, of the generative benchmarks.
    """

    methods: dict[str, Variant]
    num_removed: int
    tasks: Sequence[ChoiceTask]
    results: Mapping[str, Mapping[Variant, Result]]
    generated: Mapping[str, Mapping[Variant, Result]]

    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Benchmark -> method -> (items,) score in 0..1."""
        found = scores(self.results, self.methods)
        for name, results in self.generated.items():
            metric = generative_tasks.primary_metric(next(iter(results.values())))
            found[name] = {method: results[v].arrays[metric] for method, v in self.methods.items()}
        return found

    def chance(self) -> dict[str, float]:
        """Multiple-choice benchmark -> accuracy of guessing."""
        return {task.items.name: task.items.chance for task in self.tasks}


def measure(study: Study, limit: int | None = None) -> Measured:
    """Measures the dense model, Block Influence's and reverse order's removals on the profile's benchmarks.

    Of a single block, which cannot be removed, the dense model alone.

    Args:
        study: the study of the model.
        limit: items of each benchmark, for a quick look; None for as many as the profile gives.
    """
    budget, num = study.profile.budget(Budget), study.num_blocks
    chosen, written = budget.tasks, budget.generative_tasks
    if limit is not None:
        chosen, written = (tuple(replace(one, limit=limit) for one in of) for of in (chosen, written))
    count = num_removed(study.identity.name, num, budget.ratio)
    few_blocks.say_if_single(study)
    methods = {"Dense": study.dense}
    if count:
        few_blocks.say_what_shares_are(num, [9 / 32 if budget.ratio is None else budget.ratio])
        methods["ShortGPT"] = variants.without(num, study.order("block_influence")[:count])
        methods["reverse order"] = variants.without(num, study.order("reverse_order")[:count])
    tasks = [study.inputs.task(one) for one in chosen]
    results = study.sweep(list(methods.values()), tasks)
    generated = {task_files.task_name(one.name): study.generative_task(one, list(methods.values())) for one in written}
    return Measured(methods, count, tasks, results, generated)


def note(study: Study, found: Measured, limit: int | None = None) -> str:
    """What is removed, in a caption."""
    text = f"{found.num_removed} of {counted(study.num_blocks, 'block')} removed"
    if found.num_removed:
        removed = ", ".join(map(str, variants.removed_blocks(study.num_blocks, found.methods["ShortGPT"])))
        text += f"; ShortGPT removes {removed}"
    else:
        text += ": the dense model alone"
    return text + (f". A quick look: {limit} items a benchmark" if limit else "")


def num_removed(model: str, num_blocks: int, ratio: float | None = None) -> int:
    """Blocks removed for table 1: as many as the paper removes of the same model, else 9 of 32 as of its 7B models; or
    the share that is given.

    A model under a known name that has another number of blocks is another model.
    """
    reported = paper_tables.removed_blocks(model, num_blocks)
    if reported and ratio is None:
        return len(reported)
    return min(num_blocks - 1, depth_curves.at_ratio(num_blocks, 9 / 32 if ratio is None else ratio))


def scores(results: Mapping[str, Mapping[Variant, Result]], methods: Mapping[str, Variant]) -> dict[str, dict]:
    """Accuracies item by item.

    Args:
        results: measurement -> variant -> result, of multiple-choice tasks.
        methods: method -> variant.
    """
    found = {}
    for name, of_variant in results.items():
        metric = result_tables.accuracy_metric(next(iter(of_variant.values())))
        assert metric is not None, f"{name} is no task"
        chosen = {method: of_variant[variant].arrays[metric] for method, variant in methods.items()}
        found[name.removeprefix("task/")] = chosen
    return found


def table(scores: Scores, chance: Mapping[str, float]) -> pd.DataFrame:
    """One row a (benchmark, method).

    Args:
        scores: benchmark -> method -> (items,) scores; the first method is the dense model.
        chance: benchmark -> accuracy of guessing; none for a benchmark that is not multiple choice.

    Returns:
        task, method, n, chance, accuracy, low, high (95 %: Wilson, or Student's t for scores that are not 0 or 1),
        change (from the dense model), change_low, change_high (95 % t interval, paired by item), kept (percent of the
        dense model's).
    """
    rows = []
    for task, of_method in scores.items():
        dense = next(iter(of_method.values()))
        for method, values in of_method.items():
            if np.isin(values, (0, 1)).all():
                low, high = stats.accuracy_interval(round(values.sum()), len(values))
            else:
                low, high = stats.mean_interval(values)
            change_low, change_high = stats.mean_interval(values - dense)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "n": len(values),
                    "chance": chance.get(task, np.nan),
                    "accuracy": values.mean(),
                    "low": low,
                    "high": high,
                    "change": (values - dense).mean(),
                    "change_low": change_low,
                    "change_high": change_high,
                    "kept": 100 * values.mean() / dense.mean() if dense.any() else np.nan,
                }
            )
    return pd.DataFrame(rows)


def wide(measured: pd.DataFrame) -> pd.DataFrame:
    """`table` as table 1 is printed: a row a method, a column a benchmark, in percent with its 95 % interval."""
    columns = {}
    for task, part in measured.groupby("task", sort=False):
        bounds = 100 * part[["accuracy", "low", "high"]].to_numpy()
        cells = [f"{value:.1f} ({low:.1f} to {high:.1f})" for value, low, high in bounds]
        columns[f"{task} (n={part['n'].iloc[0]})"] = pd.Series(cells, index=part["method"])
    return pd.DataFrame(columns).rename_axis("method").reset_index()


def averages(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    """Mean over the benchmarks, each weighing the same, and the percentage of the dense model's that is kept.

    Returns:
        method, average, low, high, kept, kept_low, kept_high; all in percent, 95 % over bootstrap resamples of each
        benchmark's items.
    """
    methods, means, draws = _drawn(scores, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a model that gets nothing right, no share is kept
        kept = np.where(means[0] > 0, 100 * means / means[0], np.nan)
        kept_draws = np.where(draws[:, :1] > 0, 100 * draws / draws[:, :1], np.nan)
    rows = []
    for i, method in enumerate(methods):
        low, high = stats.percentile_interval(100 * draws[:, i])
        kept_low, kept_high = (
            np.nanpercentile(kept_draws[:, i], stats.INTERVAL) if kept[i] == kept[i] else (np.nan,) * 2
        )
        rows.append((method, 100 * means[i], low, high, kept[i], kept_low, kept_high))
    return pd.DataFrame(rows, columns=["method", "average", "low", "high", "kept", "kept_low", "kept_high"])


def _drawn(scores: Scores, resamples: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(methods, (M,) averages over benchmarks, (R, M) the same over resamples of the items)."""
    methods = list(next(iter(scores.values())))
    groups = [np.stack([of_method[method] for method in methods], axis=1) for of_method in scores.values()]
    return methods, *stats.task_averages(groups, resamples, seed)


def claim(scores: Scores, pruned: str, rival: str, resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT's claim on table 1, here: 92 % is kept, and Block Influence beats removing the last blocks.

    Args:
        scores: benchmark -> method -> (items,) scores; the first method is the dense model.
        pruned: the method claimed for.
        rival: the method to beat.

    Returns:
        statement, measured, threshold, holds, certainty (share of the bootstrap resamples in which it holds too). No
        row where the two were not measured, or the dense model gets nothing right.
    """
    methods, means, draws = _drawn(scores, resamples, seed)
    if not {pruned, rival} <= set(methods) or not means[0]:
        return pd.DataFrame(columns=stats.CLAIM)
    a, b = methods.index(pruned), methods.index(rival)
    rows = [
        ("92 % of the dense model's average is kept", means[a] / means[0], KEPT, draws[:, a] >= KEPT * draws[:, 0]),
        (f"{pruned} keeps a higher average than {rival}", means[a], means[b], draws[:, a] > draws[:, b]),
    ]
    return pd.DataFrame(
        [(name, x, y, x >= y if y == KEPT else x > y, held.mean()) for name, x, y, held in rows],
        columns=stats.CLAIM,
    )


def reported_claim() -> pd.DataFrame:
    """The same claim on the paper's own numbers, with averages as they follow from its cells.

    Returns:
        model, ShortGPT kept as printed and as computed (percent of the dense average), the best other method and what
        it keeps, and whether each half of the claim holds: 92 % kept, best method.
    """
    rows = []
    for model, part in paper_tables.table1_averages().groupby("model", sort=False):
        part = part.set_index("method").drop("Dense")
        others = part["percentage"].drop("ShortGPT")
        ours = part.loc["ShortGPT"]
        rows.append(
            {
                "model": model,
                "ShortGPT kept, printed": ours["percentage_reported"],
                "ShortGPT kept, computed": ours["percentage"],
                "best other": others.idxmax(),
                "it keeps, computed": others.max(),
                "92 % kept": "yes" if ours["percentage"] >= 100 * KEPT else "no",
                "best method": "yes" if ours["percentage"] > others.max() else "no",
            }
        )
    return pd.DataFrame(rows)


def beside_paper(averages: pd.DataFrame, model: str) -> pd.DataFrame:
    """What is kept of the dense average: reported for each model and method, and measured here.

    Returns:
        model, method, removed parameters (percent), average and kept as printed and as computed from the cells; then
        the measured rows, with what is computed only.
    """
    reported = paper_tables.table1_averages()
    theirs = pd.DataFrame(
        {
            "model": reported["model"],
            "method": reported["method"],
            "average, printed": reported["average_reported"],
            "average, computed": reported["average"],
            "kept, printed (%)": reported["percentage_reported"],
            "kept, computed (%)": reported["percentage"],
        }
    )
    ours = pd.DataFrame(
        {
            "model": f"{model}, measured here",
            "method": averages["method"],
            "average, computed": averages["average"],
            "kept, computed (%)": averages["kept"],
        }
    )
    return pd.concat([theirs, ours], ignore_index=True)


def by_benchmark(measured: pd.DataFrame, model: str, names: Mapping[str, str]) -> pd.DataFrame:
    """Scores beside the paper's, benchmark by benchmark, for a model of its table 1.

    Args:
        measured: measured scores, from `table`.
        model: id of the measured model.
        names: task -> the paper's name of the benchmark, for tasks that score as the paper does.

    Returns:
        benchmark, method, paper, measured, difference (percent); no row for a model or benchmark that the paper lacks.
    """
    rows = paper_tables.table("table1")
    rows = rows[rows["model"] == paper_tables.known_model(model)]
    cells = list(dict.fromkeys(names.values()))
    theirs = rows.melt("method", [c for c in rows if c in cells], "benchmark", "score")
    ours = measured[measured["task"].isin(names) & measured["method"].isin(rows["method"])]
    ours = ours.assign(benchmark=ours["task"].map(names), score=100 * ours["accuracy"])
    theirs = theirs[theirs["method"].isin(ours["method"])]
    return paper_tables.compare(ours, theirs, ["benchmark", "method"], "score")


def known_tasks(measured: pd.DataFrame) -> list[str]:
    """The benchmarks that the dense model does better than chance, or all if there is none; argument from `table`."""
    dense = measured[measured["method"] == "Dense"].set_index("task")
    known = [task for task in dense.index if not dense["low"][task] <= dense["chance"][task]]
    return known or list(dense.index)


def markers(methods: Sequence[str]) -> pd.DataFrame:
    """MMLU accuracies of table 1 as hollow markers for figure 1: method, label, accuracy (0 to 1)."""
    rows = paper_tables.table("table1")
    rows = rows[rows["method"].isin([*methods, "LLM-Pruner", "SliceGPT", "LaCo"])]
    labels = "MMLU, paper, " + rows["model"]
    return pd.DataFrame({"method": rows["method"], "label": labels, "accuracy": rows["MMLU"] / 100})
