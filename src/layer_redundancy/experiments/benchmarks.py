"""Notebook 08: what is left on benchmarks, beside perplexity (ShortGPT table 1 and figure 1).

Scores are kept item by item, benchmark -> model -> (N,) in 0..1, the same N items for every model of a benchmark. A
model is named by a label, such as "ShortGPT, 8 of 30"; the whole model is "Dense", as in the paper's table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Share, between
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted, span
from layer_redundancy.data import task_files
from layer_redundancy.evaluate import generative_tasks, without_a_model
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.figures.style import words
from layer_redundancy.study import Study

Scores = Mapping[str, Mapping[str, np.ndarray]]
KEPT = 0.92  # "our method maintains 92% performance while reducing approximately 25% of the parameters" (ShortGPT, 1)
NO_MODEL = "no model, largest of rules"
DENSE, PRUNED, RIVAL, BROKEN = "Dense", "ShortGPT", "reverse order", "a single block"  # kinds of model
SURE = 4  # standard errors: of a smaller score the share that is left is anything
MOST_DRAWN = 6  # benchmarks in one panel: more cannot be told apart
MOST_TESTED = 4  # benchmarks with a statement each: every statement makes the others harder to support

# Differences that matter: of the share that is left on average and of one benchmark, and of the right answer's share.
ON_AVERAGE, OF_ONE, OF_SHARE = 0.15, 0.25, 0.1

NOTEBOOK = "08_benchmarks"
# Detectable at the embedded budget, 400, 400 and 200 items of three benchmarks: 0.10 of what exceeds a single block's.
PRIMARY = "ShortGPT: 92 % is left of what exceeds a single block's score, averaged over tasks"


@dataclass(frozen=True)
class Budget:
    """What notebook 08 measures: it has few variants, and so affords more than the profile's tasks.

    Attributes:
        tasks: multiple-choice benchmarks of table 1.
        tasks_of_few: likewise, on the dense model and at `ratio` only.
        generative_tasks: benchmarks whose answers are generated.
        ratio: share of the blocks that is removed; None ("auto") for the paper's number of blocks.
        further_ratios: other shares that Block Influence removes.
    """

    tasks: tuple[TaskBudget, ...]
    tasks_of_few: tuple[TaskBudget, ...] = ()
    generative_tasks: tuple[TaskBudget, ...] = ()
    ratio: Annotated[float | None, between(0, 1)] = None
    further_ratios: tuple[Share, ...] = (0.1, 0.5)


@dataclass(frozen=True, eq=False)
class Measured:
    """The dense model and pruned ones on perplexity and the benchmarks.

    Attributes:
        models: label -> variant, the dense model first, then less and less of it by Block Influence, then reverse
            order's; the dense model alone where no block can be removed.
        kinds: label -> DENSE, PRUNED (as many blocks as the paper removes, by Block Influence), RIVAL (as many, the
            last), BROKEN (a single block is left), or "" for other depths.
        weights: label -> share of the weights that is gone, in percent.
        num_removed: number of blocks that PRUNED and RIVAL lack.
        tasks: the multiple-choice benchmarks.
        results: measurement -> variant -> result, of perplexity and the multiple-choice benchmarks.
        generated: benchmark -> variant -> result, of the generative benchmarks.
        limits: benchmark -> items that the profile or the user lets it have at most; None for all.
    """

    models: dict[str, Variant]
    kinds: dict[str, str]
    weights: dict[str, float]
    num_removed: int
    tasks: Sequence[ChoiceTask]
    results: Mapping[str, Mapping[Variant, Result]]
    generated: Mapping[str, Mapping[Variant, Result]]
    limits: Mapping[str, int | None] = field(default_factory=dict)

    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Benchmark -> label -> (items,) score in 0..1, of the models that it was measured on."""
        found = scores({task.name: self.results[task.name] for task in self.tasks}, self.models)
        for name, results in self.generated.items():
            metric = generative_tasks.primary_metric(next(iter(results.values())))
            found[name] = {label: results[v].arrays[metric] for label, v in self.models.items()}
        return found

    def chance(self) -> dict[str, float]:
        """Multiple-choice benchmark -> accuracy of guessing."""
        return {task.items.name: task.items.chance for task in self.tasks}

    def label(self, kind: str) -> str | None:
        """The label of the model of a kind; None where there is none."""
        return next((label for label, one in self.kinds.items() if one == kind), None)

    def removed(self, label: str) -> int:
        """Number of blocks that a model lacks."""
        return len(self.models[DENSE]) - len(self.models[label])


def measure(study: Study, limit: int | None = None) -> Measured:
    """Measures the dense model, Block Influence's and reverse order's removals on text and the profile's benchmarks.

    Of a single block, which cannot be removed, the dense model alone.

    Args:
        study: the study of the model.
        limit: items of each benchmark, for a quick look; None for as many as the profile gives.
    """
    budget, num = study.profile.budget(Budget), study.num_blocks
    chosen, of_few, written = budget.tasks, budget.tasks_of_few, budget.generative_tasks
    if limit is not None:
        chosen, of_few, written = (tuple(replace(one, limit=limit) for one in of) for of in (chosen, of_few, written))
    count = num_removed(study.identity.name, num, budget.ratio)
    few_blocks.say_if_single(study)
    models, kinds = {DENSE: study.dense}, {DENSE: DENSE}
    if count:
        few_blocks.say_what_shares_are(num, [paper_tables.share_removed() if budget.ratio is None else budget.ratio])
        order = study.order("block_influence")
        for k in sorted({count, *(depth_curves.at_ratio(num, one) for one in budget.further_ratios)}):
            label = f"{PRUNED}, {k} of {num}"
            models[label], kinds[label] = variants.without(num, order[:k]), PRUNED if k == count else ""
        label = f"{RIVAL}, {count} of {num}"
        models[label], kinds[label] = variants.without(num, study.order("reverse_order")[:count]), RIVAL
        last = variants.without(num, order[: num - 1])
        if last not in models.values():
            models[BROKEN], kinds[BROKEN] = last, BROKEN
    tasks, fewer = ([study.inputs.task(one) for one in of] for of in (chosen, of_few))
    results = study.sweep(list(models.values()), [study.perplexity, *tasks])
    if fewer:
        few = [variant for label, variant in models.items() if kinds[label] in (DENSE, PRUNED, RIVAL)]
        results = results | study.sweep(few, fewer)
    generated = {task_files.task_name(one.name): study.generative_task(one, list(models.values())) for one in written}
    sizes = study.weight_bytes()
    gone = {label: 100 * sizes.removed(variant) for label, variant in models.items()}
    limits = {task_files.task_name(one.name): one.limit for one in (*chosen, *of_few, *written)}
    return Measured(models, kinds, gone, count, [*tasks, *fewer], results, generated, limits)


def note(study: Study, found: Measured, limit: int | None = None) -> str:
    """What is removed, in a caption."""
    pruned = found.label(PRUNED)
    if pruned is None:
        text = f"0 of {counted(study.num_blocks, 'block')} removed: the dense model alone"
    else:
        removed = ", ".join(map(str, variants.removed_blocks(study.num_blocks, found.models[pruned])))
        text = f"{pruned}, lacks blocks {removed}"
    return text + (f". A quick look: {limit} items a benchmark" if limit else "")


def num_removed(model: str, num_blocks: int, ratio: float | None = None) -> int:
    """Blocks removed for table 1: as many as the paper removes of the same model, else the share of its 7B models; or
    the share that is given.

    A model under a known name that has another number of blocks is another model.
    """
    reported = paper_tables.removed_blocks(model, num_blocks)
    if reported and ratio is None:
        return len(reported)
    share = paper_tables.share_removed() if ratio is None else ratio
    return depth_curves.at_ratio(num_blocks, share)


def scores(results: Mapping[str, Mapping[Variant, Result]], models: Mapping[str, Variant]) -> dict[str, dict]:
    """Accuracies item by item.

    Args:
        results: measurement -> variant -> result, of multiple-choice tasks.
        models: label -> variant.
    """
    found = {}
    for name, of_variant in results.items():
        metric = result_tables.accuracy_metric(next(iter(of_variant.values())))
        assert metric is not None, f"{name} is no task"
        chosen = {label: of_variant[v].arrays[metric] for label, v in models.items() if v in of_variant}
        found[name.removeprefix("task/")] = chosen
    return found


# ---------------------------------------------------------------------------------------------------- tables


def table(scores: Scores, chance: Mapping[str, float]) -> pd.DataFrame:
    """One row a (benchmark, model).

    Args:
        scores: benchmark -> label -> (items,) scores; the first is the dense model.
        chance: benchmark -> accuracy of guessing; none for a benchmark that is not multiple choice.

    Returns:
        task, model, n, chance, low, high, accuracy (95 %: Wilson, or Student's t for scores that are not 0 or 1),
        change_low, change_high, change (from the dense model, 95 % t interval, paired by item).
    """
    rows = []
    for task, of_model in scores.items():
        dense = next(iter(of_model.values()))
        for model, values in of_model.items():
            if np.isin(values, (0, 1)).all():
                low, high = stats.accuracy_interval(round(values.sum()), len(values))
            else:
                low, high = stats.mean_interval(values)
            change_low, change_high = stats.paired_interval(values - dense) if values is not dense else (0.0, 0.0)
            rows.append(
                {
                    "task": task,
                    "model": model,
                    "n": len(values),
                    "chance": chance.get(task, np.nan),
                    "low": low,
                    "high": high,
                    "accuracy": values.mean(),
                    "change_low": change_low,
                    "change_high": change_high,
                    "change": (values - dense).mean(),
                }
            )
    return pd.DataFrame(rows)


def known_tasks(measured: pd.DataFrame) -> list[str]:
    """The benchmarks that the dense model can do, by `table`.

    It does them better than guessing, and exceeds a single block's score, of which shares are taken, by SURE standard
    errors or more (the score of guessing, where a single block was not measured).
    """
    known = []
    for task, part in measured.groupby("task", sort=False):
        rows = part.set_index("model")
        dense = rows.loc[DENSE]
        if BROKEN in rows.index:
            exceeds, half = -rows["change"][BROKEN], rows["change_high"][BROKEN] - rows["change"][BROKEN]
        else:
            exceeds, half = dense["accuracy"] - np.nan_to_num(dense["chance"]), dense["high"] - dense["accuracy"]
        if not dense["low"] <= dense["chance"] and exceeds > max(0, SURE / 2 * half):
            known.append(str(task))
    return known


def models_table(found: Measured, measured: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as people read it: a row a model.

    Args:
        found: what was measured.
        measured: its scores, from `table`.

    Returns:
        model, removed (blocks), weights removed (%), perplexity, nats more (a token, against the dense model, with its
        95 % interval), and a column a known benchmark, in percent with its 95 % interval; that comes first where the
        items are fewer than `result_tables.DRAWN`.
    """
    text, _ = result_tables.perplexity(found.results["perplexity"], found.models[DENSE])
    text = text.set_index("removed")
    known = known_tasks(measured)
    rows = []
    for label, variant in found.models.items():
        one = text.loc[[variants.removed_blocks(len(found.models[DENSE]), variant)]].iloc[0]
        more = f"{one['log_increase']:.2f} ({one['log_increase_low']:.2f} to {one['log_increase_high']:.2f})"
        row = {
            "model": label,
            "removed": found.removed(label),
            "weights removed (%)": found.weights[label],
            "perplexity": one["perplexity"],
            "nats more": "" if label == DENSE else more,
        }
        for task in known:
            part = measured[(measured["task"] == task) & (measured["model"] == label)]
            n = measured.loc[measured["task"] == task, "n"].iloc[0]
            row[f"{words(task)}, % (n={n})"] = _percent(part.iloc[0]) if len(part) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(row: pd.Series) -> str:
    value, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    between = f"{low:.0f} to {high:.0f}"
    return f"{value:.1f} ({between})" if row["n"] >= result_tables.DRAWN else f"{between} ({value:.1f})"


def changes(found: Measured, measured: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """What is left of each known benchmark, and on average.

    Args:
        measured: scores, from `table`.

    Returns:
        A row a (benchmark, pruned model), and (all, pruned model): task, model, n, chance, low, high, accuracy,
        change_low, change_high, change, left (percent of what the dense model's score exceeds a single block's by) with
        left_low and left_high, 95 %.
    """
    known = known_tasks(measured)
    rows = measured[measured["task"].isin(known)].copy()
    left, errors = {}, {}
    scores = found.scores()
    for label in found.models:
        for place, task in enumerate(known):
            if label not in scores[task]:
                continue
            values = np.stack([scores[task][name] for name in (DENSE, label)] + [_floor(found, scores, task)], axis=1)
            whole, n = _left(values.mean(0), len(values)), len(values)
            draws = np.array([_left(mean, n) for mean in stats.bootstrap_means(values, resamples, seed + place)])
            left[task, label], errors[task, label] = whole, (stats.standard_error(draws, n), n)
    for name, place in (("left", 0), ("left_low", 1), ("left_high", 2)):
        rows[name] = [
            100 * _with_interval(left[key], [errors[key]], 1)[place]
            for key in zip(rows["task"], rows["model"], strict=True)
        ]
    for label in found.models:
        tasks = [task for task in known if label in scores[task]]
        if len(tasks) < max(2, len(known)):
            continue  # another average
        each = [left[task, label] for task in tasks]
        low_high = _with_interval(float(np.mean(each)), [errors[task, label] for task in tasks], len(tasks))
        part = rows[rows["model"] == label]
        row = {"task": "average", "model": label, "n": part["n"].sum(), "accuracy": part["accuracy"].mean()}
        row |= {"change": part["change"].mean()}
        row |= dict(zip(("left", "left_low", "left_high"), 100 * np.array(low_high), strict=True))
        rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
    return rows.assign(task=[words(task) for task in rows["task"]], removed=[found.removed(m) for m in rows["model"]])


def _with_interval(value: float, errors: Sequence[tuple[float, int]], parts: int) -> tuple[float, float, float]:
    """A mean of so many parts of which each has a standard error on so many units, with its 95 % interval."""
    error, degrees = stats.combined([one / parts for one, _ in errors], [n for _, n in errors])
    half = stats.student_t.ppf(0.975, degrees) * error if degrees >= 1 else np.nan
    return float(value), float(value - half), float(value + half)


def _floor(found: Measured, scores: Scores, task: str) -> np.ndarray:
    """(items,) what a broken model scores: with a single block left, or by guessing where that is the pruned one."""
    if BROKEN in scores[task]:
        return scores[task][BROKEN]
    return np.full(len(scores[task][DENSE]), found.chance().get(task, 0.0))


def _left(means: np.ndarray, n: int) -> float:
    """Means of (dense, pruned, floor) on n items -> the share that is left of what exceeds the floor."""
    dense, pruned, floor = means
    return (pruned - floor) / max(dense - floor, 1 / n)


def answers(found: Measured, measured: pd.DataFrame) -> pd.DataFrame:
    """Benchmarks whose accuracy cannot tell the dense model from a guess, by the right answer's share.

    Args:
        measured: scores, from `table`.

    Returns:
        task, model, removed, n, low, high, accuracy, share (of the right answer among the choices' probabilities, mean
        over items), share_change from the dense model's with its 95 % interval (share_low, share_high), paired by item,
        and nats (the change of the share's log, likewise).
    """
    known, rows = known_tasks(measured), []
    for task in found.tasks:
        if task.items.name in known:
            continue
        labels = [label for label, variant in found.models.items() if variant in found.results[task.name]]
        logs = {label: _gold_share(found, task, label) for label in labels}
        for label, log in logs.items():
            part = measured[(measured["task"] == task.items.name) & (measured["model"] == label)].iloc[0]
            change = np.exp(log) - np.exp(logs[DENSE])
            low, high = stats.mean_interval(change)
            row = {"task": words(task.items.name), "model": label, "removed": found.removed(label)}
            row |= part[["n", "low", "high", "accuracy"]].to_dict() | {"share": np.exp(log).mean()}
            row |= {"share_change": change.mean(), "share_low": low, "share_high": high}
            rows.append(row | {"nats": (log - logs[DENSE]).mean()})
    return pd.DataFrame(rows)


def _gold_share(found: Measured, task: ChoiceTask, label: str) -> np.ndarray:
    return found.results[task.name][found.models[label]].arrays["gold_share"]


# ---------------------------------------------------------------------------------------------------- statements


def claim(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT's claim on table 1, here: 92 % is left, and Block Influence beats removing the last blocks.

    Returns:
        Columns of `verdicts.verdicts`. The average is over the benchmarks that the dense model can do; no statement on
        them where there is none, or no block can go.
    """
    pruned, rival = found.label(PRUNED), found.label(RIVAL)
    if pruned is None or rival is None:
        return verdicts.verdicts([], PRIMARY)
    scores = found.scores()
    known = known_tasks(table(scores, found.chance()))
    few = next(
        (label for label, kind in found.kinds.items() if not kind and found.removed(label) < found.num_removed), None
    )
    models = [DENSE, pruned, rival, *([few] if few else [])]
    values = {
        task: np.stack([_floor(found, scores, task), *(scores[task][name] for name in models)], axis=1)
        for task in known
        if set(models) <= set(scores[task])
    }

    def statements(means: Mapping[str, np.ndarray]) -> list[Statement]:
        left = {task: _left(mean[[1, 2, 0]], len(values[task])) for task, mean in means.items()}
        average = float(np.mean(list(left.values())))
        by_rival = float(np.mean([_left(mean[[1, 3, 0]], len(values[task])) for task, mean in means.items()]))
        all_said = [
            Statement(PRIMARY, average, KEPT, "above", ON_AVERAGE),
            Statement(
                "ShortGPT leaves more than reverse order, averaged over tasks", average, by_rival, "above", ON_AVERAGE
            ),
        ]
        if len(left) > 1:
            all_said += [
                Statement(f"ShortGPT: 92 % is left of {words(task)}", left[task], KEPT, "above", OF_ONE)
                for task in (left if len(left) <= MOST_TESTED else ())
            ]
        if few and {"copying", "agreement"} <= set(left):
            kept = [_left(means[task][[1, 4, 0]], len(values[task])) for task in ("agreement", "copying")]
            name = "with the fewest blocks removed, less is left of copying than of agreement"
            all_said.append(Statement(name, kept[0] - kept[1], 0.0, "above", ON_AVERAGE))
        return all_said

    parts = []
    if values:
        whole = {task: of_items.mean(0) for task, of_items in values.items()}
        draws = [
            [statements(whole | {task: mean}) for mean in stats.bootstrap_means(values[task], resamples, seed + place)]
            for place, task in enumerate(values)
        ]
        parts.append(verdicts.judged_draws(statements(whole), draws, list(map(len, values.values())), "accuracy"))
    for task in [task for task in found.tasks if task.items.name not in known][:MOST_TESTED]:
        share = np.exp(_gold_share(found, task, DENSE))[:, None]
        if np.isfinite(share).all():
            parts.append(verdicts.judge(_more_than_guessed(task), share, resamples, seed, "share of the right answer"))
    return verdicts.verdicts(parts, PRIMARY)


def _more_than_guessed(task: ChoiceTask) -> verdicts.Statements:
    name = f"{words(task.items.name)}: the whole model gives the right answer more than an equal share"
    return lambda means: [Statement(name, means[0], task.items.chance, "above", OF_SHARE)]


# ---------------------------------------------------------------------------------------------------- the paper's table


def reported_claim() -> pd.DataFrame:
    """The same claim on the paper's own numbers, with averages as they follow from its cells.

    Returns:
        model, what ShortGPT removes of the weights as printed and by the published shape (percent), what it keeps as
        printed and from the cells (percent of the dense average), the best other method and what it keeps, and whether
        each half of the claim holds: 92 % kept, best method.
    """
    rows = []
    weights = paper_tables.weights_removed().set_index("model")
    for model, part in paper_tables.table1_averages().groupby("model", sort=False):
        part = part.set_index("method").drop(DENSE)
        others = part["percentage"].drop(PRUNED)
        ours = part.loc[PRUNED]
        rows.append(
            {
                "model": model,
                "weights removed, printed (%)": weights["printed"][model],
                "weights removed, by its shape (%)": weights["weights"][model],
                "kept, printed (%)": ours["percentage_reported"],
                "kept, from the cells (%)": ours["percentage"],
                "best other": others.idxmax(),
                "it keeps, from the cells (%)": others.max(),
                "92 % kept": "yes" if ours["percentage"] >= 100 * KEPT else "no",
                "best method": "yes" if ours["percentage"] > others.max() else "no",
            }
        )
    return pd.DataFrame(rows)


def reported_averages() -> pd.DataFrame:
    """Table 1's averages: model, method, average and percentage of the dense one, as printed and from the 13 cells."""
    reported = paper_tables.table1_averages()
    return pd.DataFrame(
        {
            "model": reported["model"],
            "method": reported["method"],
            "average, printed": reported["average_reported"],
            "average, from the cells": reported["average"],
            "kept, printed (%)": reported["percentage_reported"],
            "kept, from the cells (%)": reported["percentage"],
        }
    )


def by_benchmark(found: Measured, measured: pd.DataFrame, model: str, names: Mapping[str, str]) -> pd.DataFrame:
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
    ours = measured.assign(method=measured["model"].map(found.kinds))
    ours = ours[ours["task"].isin(names) & ours["method"].isin(rows["method"])]
    ours = ours.assign(benchmark=ours["task"].map(names), score=100 * ours["accuracy"])
    theirs = theirs[theirs["method"].isin(ours["method"])]
    return paper_tables.compare(ours, theirs, ["benchmark", "method"], "score")


# ---------------------------------------------------------------------------------------------------- the figure


def drawn(found: Measured, measured: pd.DataFrame, rules: pd.DataFrame) -> pd.DataFrame:
    """The figure's accuracies: of benchmarks that the dense model can do, on `result_tables.DRAWN` items or more.

    Where there are none: of any benchmark, on so many items or on as many as were asked for, as in a quick look.

    Args:
        measured: scores, from `table`.
        rules: how far rules get that read nothing, from `without_a_model.table`.

    Returns:
        task, model, accuracy, low, high, n, chance of at most MOST_DRAWN benchmarks; `model` NO_MODEL for the largest
        of the rules, whose low and high are NaN.
    """
    rows = measured[measured["task"].isin(known_tasks(measured)) & (measured["n"] >= result_tables.DRAWN)]
    if rows.empty:
        least = [min(result_tables.DRAWN, found.limits.get(task) or result_tables.DRAWN) for task in measured["task"]]
        rows = measured[measured["n"] >= least]
    rows = rows[rows["task"].isin(list(dict.fromkeys(rows["task"]))[:MOST_DRAWN])]
    largest = without_a_model.largest(rules)
    largest = largest[largest["task"].isin(rows["task"])].assign(model=NO_MODEL)
    rows = pd.concat([rows, largest], ignore_index=True)
    columns = ["task", "model", "accuracy", "low", "high", "n", "chance"]
    return rows[columns].assign(task=[words(task) for task in rows["task"]])


def rules_note(rules: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What NO_MODEL is among the rows of `drawn`, in a caption."""
    tried = without_a_model.largest(rules[rules["task"].map(words).isin(rows["task"])])["rules"]
    many = span(tried) if len(tried) else "no"
    return f"No model: the largest of {many} rules, picked on these items, so it has no interval"


def reported_scores() -> pd.DataFrame:
    """MMLU accuracies of table 1: method, model, accuracy (0 to 1)."""
    rows = paper_tables.table("table1")
    return pd.DataFrame({"method": rows["method"], "model": rows["model"], "accuracy": rows["MMLU"] / 100})
