"""What removal costs, as tables for people who prune: scores, sweeps, one model's numbers, two models side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.experiments import benchmarks, layer_importance, result_tables
from layer_redundancy.experiments.bits_per_byte import bits_per_byte, piece_bytes
from layer_redundancy.measures import importance, registry
from layer_redundancy.pruning import choosing
from layer_redundancy.study import Study


def ranking(study: Study, by: str) -> pd.DataFrame:
    """Every block's score and place in a measure's order, first removed first.

    Returns:
        block, rank (1 = removed first), score; for measures from activations also low, high (of the score) and
        rank_low, rank_high: 95 % over bootstrap resamples of the calibration text. `score` is NaN for an order that has
        no scores.
    """
    resamples, seed = study.profile.bootstrap_resamples, study.profile.seed
    if by in registry.REGISTRY and isinstance(registry.REGISTRY[by].kind, registry.Activations):
        sums = study.activation_sums()
        score, low, high = layer_importance.score_intervals(sums, by, resamples, seed)
        _, ranks = layer_importance.order_stability(sums, by, resamples, seed)
        table = pd.DataFrame({"block": ranks["block"], "rank": ranks["rank"], "score": score, "low": low, "high": high})
        table = table.assign(rank_low=ranks["low"].astype(int), rank_high=ranks["high"].astype(int))
    else:
        order = study.order(by)
        scored = registry.REGISTRY[by].has_scores
        score = study.scores(by) if scored else np.full(study.num_blocks, np.nan)
        table = pd.DataFrame({"block": np.arange(study.num_blocks), "rank": importance.ranks(order), "score": score})
    return table.sort_values("rank", ignore_index=True)


def certainty(study: Study, by: str) -> str:
    """How often another calibration text would have removed the same quarter of the blocks, in a sentence."""
    if not isinstance(registry.REGISTRY[by].kind, registry.Activations):
        return "not known: this measure's order has no resamples"
    if study.num_blocks < 2:
        return "nothing to ask: a single block has no order of removal"
    quarter = layer_importance.quarter(study.num_blocks)
    resamples, seed = study.profile.bootstrap_resamples, study.profile.seed
    same = layer_importance.same_set(study.activation_sums(), by, resamples, seed, quarter)
    go = "block goes" if quarter == 1 else f"{quarter} blocks go"
    return f"the same {go} first in {same:.0%} of {resamples} resamples of the calibration text"


def sweep(study: Study, by: str, counts: Sequence[int]) -> pd.DataFrame:
    """The model without so many blocks, on perplexity and the profile's tasks; the dense model first.

    Returns:
        removed (number of blocks), blocks (in ascending order), perplexity, low, high, increase (nats a token above the
        dense model's) with increase_low and increase_high, and for each task its accuracy, low, high, n and chance in
        columns that begin with the task's name. Intervals are 95 %: Student's t over blocks of text, paired for
        `increase`; Wilson for accuracies.
    """
    removed = choosing.removals(study, by, sorted({0, *counts}))
    left = {count: variants.without(study.num_blocks, blocks) for count, blocks in removed.items()}
    return _table(study, study.sweep(list(left.values())), left)


def _table(
    study: Study, results: Mapping[str, Mapping[Any, Result]], left: Mapping[int, variants.Variant]
) -> pd.DataFrame:
    wanted = {name: {v: of[v] for v in left.values()} for name, of in results.items()}
    found, _ = result_tables.perplexity(wanted["perplexity"], study.dense)
    out = pd.DataFrame(
        {
            "removed": list(left),
            "blocks": [" ".join(map(str, blocks)) for blocks in found["removed"]],
            **{name: found[name] for name in ("perplexity", "low", "high")},
            "increase": found["log_increase"],
            "increase_low": found["log_increase_low"],
            "increase_high": found["log_increase_high"],
        }
    )
    for task in study.tasks:
        rows = result_tables.accuracy(wanted[task.name], study.dense, task.items.name)
        for column in ("accuracy", "low", "high", "n", "chance"):
            out[f"{task.items.name} {column}"] = rows[column]
    return out


def evaluation(study: Study) -> pd.DataFrame:
    """A model's own numbers.

    Returns:
        on ("perplexity" or a task), value, low, high (95 %: Student's t over blocks of text, Wilson), n (blocks of text
        or items), chance (of tasks).
    """
    results = study.sweep([study.dense])
    row = _table(study, results, {0: study.dense}).iloc[0]
    rows = [("perplexity", row["perplexity"], row["low"], row["high"], len(study.evaluation.input_ids), np.nan)]
    for name in study.task_names:
        rows.append((name, *(row[f"{name} {column}"] for column in ("accuracy", "low", "high", "n", "chance"))))
    return pd.DataFrame(rows, columns=["on", "value", "low", "high", "n", "chance"])


def costs(study: Study, dense: Mapping[str, Result], pruned: Mapping[str, Result]) -> dict[str, Any]:
    """What a pruned model loses against the dense one, on evaluation text and the profile's tasks.

    Args:
        study: the dense model's.
        dense: measurement -> result of the dense model.
        pruned: the same of the pruned one, whatever was done to it.

    Returns:
        `perplexity`: dense, pruned, low, high, increase (nats a token), increase_low, increase_high, n (blocks of
        text); `tasks`: a list of task, n, chance, dense, pruned, low, high, change, change_low, change_high. Intervals
        are 95 %; those of increase and change are paired.
    """
    before, after = (result_tables.cost(of["perplexity"]) for of in (dense, pruned))
    low, high = np.exp(stats.mean_interval(after))
    increase_low, increase_high = stats.mean_interval(after - before)
    perplexity = {
        "dense": float(dense["perplexity"].summary["perplexity"]),
        "pruned": float(pruned["perplexity"].summary["perplexity"]),
        "low": float(low),
        "high": float(high),
        "increase": float((after - before).mean()),
        "increase_low": float(increase_low),
        "increase_high": float(increase_high),
        "n": len(before),
    }
    both = {
        task.items.name: {
            "dense": result_tables.right(dense[task.name]),
            "pruned": result_tables.right(pruned[task.name]),
        }
        for task in study.tasks
    }
    tasks = []
    chance = {task.items.name: task.items.chance for task in study.tasks}
    found = benchmarks.table(both, chance) if both else pd.DataFrame()
    for name in both:
        rows = found[found["task"] == name].set_index("model")
        one = rows.loc["pruned"]
        tasks.append(
            {
                "task": name,
                "n": int(one["n"]),
                "chance": float(one["chance"]),
                "dense": float(rows["accuracy"]["dense"]),
            }
            | {"pruned": float(one["accuracy"])}
            | {column: float(one[column]) for column in ("low", "high", "change", "change_low", "change_high")}
        )
    return {"perplexity": perplexity, "tasks": tasks}


def comparison(first: Study, second: Study) -> pd.DataFrame:
    """Two models on the same text and tasks.

    Returns:
        on, first, second, difference (second - first), low, high (95 % t interval, paired), n. Text is compared in nats
        a token where both read the same tokens, else in bits a byte, block by block as each cuts the text, and not
        paired: low and high are NaN.

    Raises:
        StudyError: the two have different items of a task.
    """
    results = [one.sweep([one.dense]) for one in (first, second)]
    text = [found["perplexity"][one.dense] for found, one in zip(results, (first, second), strict=True)]
    rows = []
    if first.evaluation.fingerprint == second.evaluation.fingerprint:
        a, b = map(result_tables.cost, text)
        rows.append(("nats a token", a.mean(), b.mean(), (b - a).mean(), *stats.mean_interval(b - a), len(a)))
    else:
        a, b = (
            bits_per_byte(
                {one.dense: result},
                [one.dense],
                piece_bytes(one.evaluation.input_ids.tolist(), one.tokenizer),
            )[0]
            for one, result in zip((first, second), text, strict=True)
        )
        rows.append(("bits a byte", a.mean(), b.mean(), b.mean() - a.mean(), np.nan, np.nan, len(a)))
    for task, other in zip(first.tasks, second.tasks, strict=True):
        if [item.doc_id for item in task.items.items] != [item.doc_id for item in other.items.items]:
            raise StudyError(f"the two models have other items of {task.items.name}: compare them on another task")
        a, b = (
            result_tables.right(found[task.name][one.dense])
            for found, one in zip(results, (first, second), strict=True)
        )
        rows.append((task.items.name, a.mean(), b.mean(), (b - a).mean(), *stats.mean_interval(b - a), len(a)))
    return pd.DataFrame(rows, columns=["on", "first", "second", "difference", "low", "high", "n"])
