"""Notebook 10: runs of blocks removed by similarity or by a simple rule, and healed (Gromov et al. 2024).

The paper counts layers from 1: its simple rule, "remove layers L - n to L - 1", keeps the last one, so that in blocks
counted from 0 it removes L - 1 - n, ..., L - 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import CorpusOrNone, Share, given
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import stats, variants
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study
from layer_redundancy.train import healing

SIMILARITY, SIMPLE, LAST = "similarity", "simple rule", "last blocks"
HEALED_RULES = (SIMILARITY, SIMPLE)
NO_ACCURACY = {"accuracy": np.nan, "accuracy_low": np.nan, "accuracy_high": np.nan, "n": 0, "chance": np.nan}


NOTEBOOK = "10_block_pruning"


@dataclass(frozen=True)
class Budget:
    """What notebook 10 trains.

    Attributes:
        training: how much text a pruned model is healed on.
        recipe: the recipe, which decides the weights to train.
        fractions: shares of blocks removed at which the model is healed.
        evaluation_corpus: corpus on whose evaluation split the loss is measured; "" for the profile's.
    """

    training: TrainingBudget
    recipe: Recipe
    fractions: Annotated[tuple[Share, ...], given()]
    evaluation_corpus: CorpusOrNone = ""


@dataclass(frozen=True, eq=False)
class Measured:
    """Every rule at every depth, before and after healing.

    Attributes:
        sums: activation sums of the calibration text.
        perplexity: what the loss is measured on.
        counts: numbers of removed blocks, from 0 on.
        healed: the counts at which the model is also healed.
        found: results, one for each rule, depth and state.
    """

    sums: ActivationSums
    perplexity: Perplexity
    counts: list[int]
    healed: list[int]
    found: list["Pruned"]


def counts(study: Study) -> tuple[list[int], list[int]]:
    """Numbers of removed blocks that are measured, from 0 on, and those of them at which the model is also healed."""
    num, fractions = study.num_blocks, study.profile.budget(Budget).fractions
    healed = sorted({min(num - 1, depth_curves.at_ratio(num, share)) for share in fractions})
    return sorted({0, *healed, *depth_curves.depths(num, study.profile.depth_step)}), healed


def runs(sums: ActivationSums, ns: Sequence[int]) -> dict[str, dict[int, Variant]]:
    """Rule -> number of removed blocks -> variant.

    `similarity` removes the run of the smallest angular distance on calibration text, `simple rule` the deepest blocks
    but the very last, `last blocks` the deepest with the very last.
    """
    num, grid = sums.num_blocks, importance.angular_grid(sums)
    starts = {
        SIMILARITY: lambda n: importance.best_start(grid, n),
        SIMPLE: lambda n: num - 1 - n,
        LAST: lambda n: num - n,
    }
    return {
        rule: {n: variants.block_removal(num, start(n), n) if n else variants.dense(num) for n in ns}
        for rule, start in starts.items()
    }


def best_starts(sums: ActivationSums, resamples: int, seed: int) -> pd.DataFrame:
    """The best start of every n, and how certain it is.

    Returns:
        n, start, distance, second (distance of the next best start), low, high (start's 95 % interval over resamples
        of the calibration sequences), certainty (share of the resamples with the same start), simple (the simple
        rule's start).
    """
    num, each = sums.num_blocks, sums.last_angle
    weights = stats.unit_counts(len(each), resamples, seed)
    again = stats.weighted_sums(weights / len(each), each.reshape(len(each), -1)).reshape(-1, num + 1, num + 1)
    grid = importance.angular_grid(sums)
    rows = []
    for n in range(1, num):
        start, row = importance.best_start(grid, n), grid[n - 1, : num - n + 1]
        drawn = np.diagonal(again, offset=n, axis1=1, axis2=2)
        starts = drawn.shape[1] - 1 - np.argmin(drawn[:, ::-1], axis=1)  # ties toward the deeper run
        low, high = np.percentile(starts, stats.INTERVAL)
        rows.append(
            {
                "n": n,
                "start": start,
                "distance": row[start],
                "second": np.sort(row)[1],
                "low": low,
                "high": high,
                "certainty": (starts == start).mean(),
                "simple": num - 1 - n,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Pruned:
    """Results of one rule at one depth.

    Attributes:
        rule: rule by which blocks are chosen; "" for the whole model.
        healed: whether the results are from after training.
        count: number of removed blocks.
        removed: the removed blocks.
        loss: result of the perplexity measurement.
        tasks: results by task.
        training: what the training took; None without.
    """

    rule: str
    healed: bool
    count: int
    removed: tuple[int, ...]
    loss: Result
    tasks: dict[str, Result]
    training: Result | None = None

    @property
    def nll(self) -> np.ndarray:
        """Mean loss of each block of text, (N,), nats a token."""
        return result_tables.cost(self.loss)

    def right(self, task: str) -> np.ndarray:
        """1 for each item that was answered right, else 0; (N,)."""
        return result_tables.right(self.tasks[task])


def measure(study: Study) -> Measured:
    """The dense model, every rule at every depth, each healed where the profile says, and the dense model trained.

    What healed models gain only because they have seen such text, the dense one gains too.

    Raises:
        NotApplicable: the model has a single block.
    """
    few_blocks.need_removable(study, "no run of blocks can go")
    budget, num = study.profile.budget(Budget), study.num_blocks
    few_blocks.say_what_shares_are(num, [*budget.fractions, *depth_curves.RATIOS])
    ns, deep = counts(study)
    sums = study.activation_sums()
    chosen = runs(sums, ns)
    perplexity = study.inputs.perplexity_on(budget.evaluation_corpus)
    found = _swept(study, {("", 0): study.dense}, perplexity)
    found += _swept(study, {(rule, n): v for rule, of in chosen.items() for n, v in of.items() if n}, perplexity)
    study.unload()
    recipe = healing.possible(study.identity, budget.recipe)
    for rule, n in [("", 0), *((rule, n) for rule in HEALED_RULES for n in deep)]:
        removed = variants.removed_blocks(num, chosen[rule or SIMPLE][n])
        other = study.healed(removed, recipe, budget.training, study.profile.seed)
        training = other.training()
        (of,) = _swept(other, {(rule, n): other.dense}, perplexity)
        found.append(replace(of, healed=True, removed=removed, training=training))
    return Measured(sums, perplexity, ns, deep, found)


def _swept(study: Study, chosen: Mapping[tuple[str, int], Variant], perplexity: Perplexity) -> list[Pruned]:
    """Perplexity and the profile's tasks of each rule at each depth."""
    results = study.sweep(list(chosen.values()), [perplexity, *study.tasks])
    return [
        Pruned(
            rule,
            False,
            n,
            variants.removed_blocks(study.num_blocks, variant),
            results[perplexity.name][variant],
            {task.items.name: results[task.name][variant] for task in study.tasks},
        )
        for (rule, n), variant in chosen.items()
    ]


def table(found: Sequence[Pruned], num_blocks: int, vocabulary: int) -> pd.DataFrame:
    """One row a rule, depth, state and task.

    Returns:
        rule, healed, count, share (percent of blocks), removed, loss (nats a token), low, high (95 % t interval over
        blocks of text), normalized (loss / log vocabulary, as the paper draws it), perplexity, task, accuracy,
        accuracy_low, accuracy_high (95 % Wilson), n, chance, seconds, peak_bytes, trainable.
    """
    rows = []
    for one in found:
        low, high = stats.mean_interval(one.nll)
        row = {
            "rule": one.rule or "whole model",
            "healed": one.healed,
            "count": one.count,
            "share": 100 * one.count / num_blocks,
            "removed": one.removed,
            "loss": one.nll.mean(),
            "low": low,
            "high": high,
            "normalized": one.nll.mean() / log(vocabulary),
            "perplexity": one.loss.summary["perplexity"],
        }
        took = one.training.summary if one.training else {}
        row |= {name: took.get(name, np.nan) for name in ("seconds", "peak_bytes", "trainable")}
        for task, result in one.tasks.items() or {"": None}.items():
            rows.append(row | {"task": task} | (NO_ACCURACY if result is None else accuracy_row(result)))
    return pd.DataFrame(rows)


def curve_table(found: Sequence[Pruned], tokens_a_step: int) -> pd.DataFrame:
    """rule, count, tokens, held_out (nats a token) while models were healed, wherever that was measured."""
    parts = []
    for one in found:
        if one.training is not None:
            arrays = one.training.arrays
            part = {"tokens": arrays["held_out_step"] * tokens_a_step, "held_out": arrays["held_out"]}
            parts.append(pd.DataFrame(part).assign(rule=one.rule or "whole model", count=one.count))
    return pd.concat(parts, ignore_index=True)[["rule", "count", "tokens", "held_out"]]


def accuracy_row(result: Result) -> dict[str, float]:
    """accuracy, accuracy_low, accuracy_high (95 % Wilson), n, chance of a task's result."""
    right = result_tables.right(result)
    low, high = stats.accuracy_interval(right.sum(), len(right))
    accuracy = {"accuracy": right.mean(), "accuracy_low": low, "accuracy_high": high}
    return accuracy | {"n": len(right), "chance": result.summary["chance"]}


def transitions(found: Sequence[Pruned], num_blocks: int, resamples: int, seed: int) -> pd.DataFrame:
    """Where accuracy falls to chance: the share of removed blocks at which it is first nearer to chance than to dense.

    Returns:
        rule, healed, task, share (percent; NaN where it never is), low, high (95 % over resampled items, a resample in
        which it never is counting as 100), known (the whole model's accuracy lies above chance with 95 % certainty).
    """
    dense = next(one for one in found if not one.count and not one.healed)
    rows = []
    for rule in HEALED_RULES:
        for healed in (False, True):
            mine = sorted((o for o in found if o.rule == rule and o.healed == healed), key=lambda one: one.count)
            for task in dense.tasks:
                chance = dense.tasks[task].summary["chance"]
                right = np.stack([dense.right(task), *(one.right(task) for one in mine)], axis=1)  # (N, K)
                shares = np.array([100 * one.count / num_blocks for one in mine])
                draws = stats.bootstrap_means(right, resamples, seed)
                again = [_first_low(mean, shares, chance) for mean in draws]
                low, high = np.percentile(np.nan_to_num(again, nan=100.0), stats.INTERVAL)
                rows.append(
                    {
                        "rule": rule,
                        "healed": healed,
                        "task": task,
                        "share": _first_low(right.mean(0), shares, chance),
                        "low": low,
                        "high": high,
                        "known": bool((draws[:, 0] > chance).mean() >= 0.95),
                    }
                )
    return pd.DataFrame(rows)


def _first_low(mean: np.ndarray, shares: np.ndarray, chance: float) -> float:
    below = mean[1:] < (mean[0] + chance) / 2
    return float(shares[below.argmax()]) if below.any() else np.nan


def claim(found: Sequence[Pruned], num_blocks: int, resamples: int, seed: int) -> pd.DataFrame:
    """The paper's statements as ones that can be false, by the loss on evaluation text; columns as `stats.claim`."""
    by = {(one.rule, one.healed, one.count): one.nll for one in found}
    ns = sorted({one.count for one in found if one.healed and one.count})
    keys = [("", False, 0), ("", True, 0)]
    keys += [(rule, healed, n) for rule in HEALED_RULES for healed in (False, True) for n in ns]
    keys += [(LAST, False, n) for n in ns]
    values = np.stack([by[key] for key in keys], axis=1)

    def statements(mean: np.ndarray) -> list[tuple[str, float, float, bool]]:
        at = dict(zip(keys, mean, strict=True))
        gains = [at[rule, False, n] - at[rule, True, n] for rule in HEALED_RULES for n in ns]
        undone = [
            (at[rule, False, n] - at[rule, True, n]) / (at[rule, False, n] - at["", True, 0])
            for rule in HEALED_RULES
            for n in ns
        ]
        raw = float(np.mean([at[SIMPLE, False, n] - at[SIMILARITY, False, n] for n in ns]))
        after = float(np.mean([at[SIMPLE, True, n] - at[SIMILARITY, True, n] for n in ns]))
        steps = {h: _steepest([at["", h, 0], *(at[SIMILARITY, h, n] for n in ns)], [0, *ns]) for h in (False, True)}
        last = min(at[LAST, False, n] - at[SIMPLE, False, n] for n in ns)
        return [
            ("healing lowers the loss at every depth, by either rule (nats)", min(gains), 0.0, min(gains) > 0),
            ("healing undoes at least 0.9 of the damage at every depth", min(undone), 0.9, min(undone) >= 0.9),
            ("before healing similarity is better than the simple rule (mean difference, nats)", raw, 0.0, raw > 0),
            ("healed, the two rules differ less than before (nats)", abs(after), abs(raw), abs(after) < abs(raw)),
            ("healed, similarity still is the better rule (mean difference, nats)", after, 0.0, after > 0),
            (
                "the loss rises less steeply once healed (steepest rise, nats a block)",
                steps[True], steps[False], steps[True] < steps[False],
            ),
            ("the last block should never go: what it costs beside the simple rule (nats)", last, 0.0, last > 0),
        ]  # fmt: skip

    return stats.claim(statements, values, resamples, seed)


def _steepest(losses: Sequence[float], ns: Sequence[int]) -> float:
    return float(np.max(np.diff(losses) / np.diff(ns)))


def vocabulary(study: Study) -> int:
    """Tokens of the model's vocabulary: log of it is what guessing among them costs."""
    return len(study.tokenizer)
