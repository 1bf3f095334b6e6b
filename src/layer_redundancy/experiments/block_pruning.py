"""Notebook 10: runs of blocks removed by similarity or by a simple rule, and healed (Gromov et al. 2024).

The paper counts layers from 1: its simple rule, "remove layers L - n to L - 1", keeps the last one, so that in blocks
counted from 0 it removes L - 1 - n, ..., L - 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import log
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import CorpusOrNone, Count, Share, at_least, given
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import stats, variants
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement, judge, verdicts
from layer_redundancy.core.wording import counted
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import capabilities, depth_curves, few_blocks, learning_rates, result_tables
from layer_redundancy.experiments.learning_rates import Trial
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance, unigram
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study
from layer_redundancy.train import healing

SIMILARITY, SIMPLE, LAST, WHOLE = "similarity", "simple rule", "last blocks", "whole model"
HEALED_RULES = (SIMILARITY, SIMPLE)
FEW = (1, 2, 3)  # numbers of blocks at which the last one is looked at
# Differences that somebody would care about. Losses: nats a token, of which removal costs several; a model of single
# tokens lies four above the whole one.
MATTERS = 1.0
RUINED_MATTERS = 2.0  # not healed, where either side costs several nats more
SHARE_MATTERS = 0.2  # of the damage
ACCURACY_MATTERS = 0.15

NOTEBOOK = "10_block_pruning"
# On the embedded profile it sees differences from 0.73 nats on.
PRIMARY = "healed, the simple rule costs more than similarity, a quarter of the blocks gone (nats)"


@dataclass(frozen=True)
class Budget:
    """What notebook 10 trains.

    Attributes:
        training: how much text a pruned model is healed on.
        recipe: the recipe, which decides the weights to train.
        fractions: shares of blocks removed at which the model is healed.
        evaluation_corpus: corpus on whose evaluation split the loss is measured; "" for the profile's.
        evaluation_blocks: blocks of it, the first ones; None for all.
        seeds: trainings of each pruned model: each has text of its own (but of C4 and Alpaca, whose text is the same
            for all), in an order of its own, and other new weights.
    """

    training: TrainingBudget
    recipe: Recipe
    fractions: Annotated[tuple[Share, ...], given()]
    evaluation_corpus: CorpusOrNone = ""
    evaluation_blocks: Annotated[int | None, at_least(1)] = None
    seeds: Count = 1


@dataclass(frozen=True, eq=False)
class Measured:
    """Every rule at every depth, before and after healing.

    Attributes:
        sums: activation sums of the calibration text.
        perplexity: what the loss is measured on.
        counts: numbers of removed blocks, from 0 on.
        healed: the counts at which the model is also healed.
        found: results, one for each rule, depth, state and training seed.
    """

    sums: ActivationSums
    perplexity: Perplexity
    counts: list[int]
    healed: list[int]
    found: list["Pruned"]


def counts(study: Study) -> tuple[list[int], list[int]]:
    """Numbers of removed blocks that are measured, from 0 on, and those of them at which the model is also healed."""
    num, fractions = study.num_blocks, study.profile.budget(Budget).fractions
    healed = sorted({depth_curves.at_ratio(num, share) for share in fractions})
    few = [n for n in FEW if n < num]
    return sorted({0, *few, *healed, *depth_curves.depths(num, study.profile.depth_step)}), healed


def quarter(healed: Sequence[int], num_blocks: int) -> int:
    """The number of removed blocks, of those at which models are healed, that is nearest to a quarter."""
    return min(healed, key=lambda n: (abs(n - num_blocks / 4), n))


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
    """The best start of every n, and whether other calibration text has the same.

    Returns:
        n, start, distance, second (distance of the next best start), low, high (start's 95 % interval over the
        calibration sequences), same (share of their resamples with the same start), simple (the simple rule's start).
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
        low, high = np.percentile(starts, stats.INTERVAL, method="nearest")  # a place has no standard error
        rows.append(
            {
                "n": n,
                "start": start,
                "distance": row[start],
                "second": np.sort(row)[1],
                "low": low,
                "high": high,
                "same": (starts == start).mean(),
                "simple": num - 1 - n,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Pruned:
    """Results of one rule at one depth.

    Attributes:
        rule: rule by which blocks are chosen; WHOLE for the whole model.
        healed: whether the results are from after training.
        count: number of removed blocks.
        removed: the removed blocks.
        loss: result of the perplexity measurement.
        tasks: results by task; of trained models those of the first seed without a quarter of the blocks have them.
        training: what the training took; None without.
        seed: seed of the training.
    """

    rule: str
    healed: bool
    count: int
    removed: tuple[int, ...]
    loss: Result
    tasks: dict[str, Result]
    training: Result | None = None
    seed: int = 0

    @property
    def nll(self) -> np.ndarray:
        """Mean loss of each block of text, (N,), nats a token."""
        return result_tables.cost(self.loss)

    def right(self, task: str) -> np.ndarray:
        """1 for each item that was answered right, else 0; (N,)."""
        return result_tables.right(self.tasks[task])


def _trained(deep: Sequence[int]) -> list[tuple[str, int]]:
    """The rules and depths that are healed: the last blocks only where few of them go."""
    return [(rule, n) for rule in HEALED_RULES for n in deep] + [(LAST, min(deep))]


def trials(study: Study) -> list[Trial]:
    """What `make rates` tries: every rule, at all depths where it is healed together, and the whole model."""
    budget, (_, deep) = study.profile.budget(Budget), counts(study)
    recipe, chosen = budget.recipe, cache(lambda: runs(study.activation_sums(), deep))

    def trial(rule: str, depths: Sequence[int]) -> Trial:
        def loss(rate: float, seed: int) -> float:
            at_rate = replace(recipe, learning_rate=rate)
            losses = []
            for n in depths:
                removed = variants.removed_blocks(study.num_blocks, chosen()[rule][n]) if n else ()
                losses.append(learning_rates.held_out_loss(study, removed, at_rate, budget.training, seed))
            return float(np.mean(losses))

        trained, training = healing.describe(recipe), budget.training
        return Trial("block_pruning", rule, trained, training.steps, training.batch, recipe.learning_rate, loss, chosen)

    every = _trained(deep)
    return [trial(WHOLE, [0]), *(trial(rule, [n for one, n in every if one == rule]) for rule in dict(every))]


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
    perplexity = _perplexity(study, budget)
    found = _swept(study, {(WHOLE, 0): study.dense}, perplexity)
    found += _swept(study, {(rule, n): v for rule, of in chosen.items() for n, v in of.items() if n}, perplexity)
    study.unload()
    recipe = healing.possible(study.identity, budget.recipe)
    todo = [(WHOLE, 0, 0), *((rule, n, seed) for rule, n in _trained(deep) for seed in range(budget.seeds))]
    for rule, n, seed in todo:
        removed = variants.removed_blocks(num, chosen[rule][n]) if n else ()
        other = study.healed(removed, recipe, budget.training, seed)
        training = other.training()
        judged = seed == 0 and n == quarter(deep, num) and rule in HEALED_RULES
        (of,) = _swept(other, {(rule, n): other.dense}, perplexity, with_tasks=judged)
        found.append(replace(of, healed=True, removed=removed, training=training, seed=seed))
        other.unload()
    return Measured(sums, perplexity, ns, deep, found)


def _perplexity(study: Study, budget: Budget) -> Perplexity:
    whole = study.inputs.perplexity_on(budget.evaluation_corpus)
    if budget.evaluation_blocks is None:
        return whole
    return replace(whole, blocks=first_blocks(whole.blocks, budget.evaluation_blocks))


def _swept(
    study: Study, chosen: Mapping[tuple[str, int], Variant], perplexity: Perplexity, *, with_tasks: bool = True
) -> list[Pruned]:
    """Perplexity and the profile's tasks of each rule at each depth."""
    tasks = study.tasks if with_tasks else []
    results = study.sweep(list(chosen.values()), [perplexity, *tasks])
    return [
        Pruned(
            rule,
            False,
            n,
            variants.removed_blocks(study.num_blocks, variant),
            results[perplexity.name][variant],
            {task.items.name: results[task.name][variant] for task in tasks},
        )
        for (rule, n), variant in chosen.items()
    ]


def _groups(found: Sequence[Pruned]) -> dict[tuple[str, bool, int], list[Pruned]]:
    """(rule, healed, count) -> its trainings, in the order of their seeds; a single entry without."""
    groups: dict[tuple[str, bool, int], list[Pruned]] = {}
    for one in found:
        groups.setdefault((one.rule, one.healed, one.count), []).append(one)
    return groups


def table(found: Sequence[Pruned], num_blocks: int, vocabulary: int) -> pd.DataFrame:
    """One row a rule, depth and state.

    Returns:
        rule, healed, count, share (percent of blocks), removed, seeds, loss (nats a token), damage (the loss above the
        whole model's, paired by blocks of text), low, high (95 % of it, over blocks of text and seeds, if several),
        normalized (loss / log vocabulary, as the paper draws it), seconds, peak_bytes, trainable (means over seeds).
    """
    groups = _groups(found)
    dense = groups[WHOLE, False, 0][0].nll
    rows = []
    for (rule, healed, count), runs in groups.items():
        nll = np.stack([one.nll for one in runs])
        low, high = result_tables.over_seeds(nll - dense)
        row = {
            "rule": rule,
            "healed": healed,
            "count": count,
            "share": 100 * count / num_blocks,
            "removed": runs[0].removed,
            "seeds": len(runs),
            "loss": nll.mean(),
            "damage": (nll - dense).mean(),
            "low": low,
            "high": high,
            "normalized": nll.mean() / log(vocabulary),
        }
        took = [one.training.summary for one in runs if one.training is not None]
        row |= {name: np.mean([t[name] for t in took]) if took else np.nan for name in COSTS}
        rows.append(row)
    return pd.DataFrame(rows)


COSTS = ("seconds", "peak_bytes", "trainable")


def accuracy_table(found: Sequence[Pruned], num_blocks: int) -> pd.DataFrame:
    """One row a rule, depth, state and task; of trained models the first seed's.

    Returns:
        rule, healed, count, share (percent of blocks), task, accuracy, low, high (95 % Wilson), n, chance.
    """
    rows = []
    for one in found:
        of = {
            "rule": one.rule,
            "healed": one.healed,
            "count": one.count,
            "share": 100 * one.count / num_blocks,
        }
        for task, result in one.tasks.items():
            right = result_tables.right(result)
            low, high = stats.accuracy_interval(right.sum(), len(right))
            accuracy = {"accuracy": right.mean(), "low": low, "high": high}
            rows.append(of | {"task": task} | accuracy | {"n": len(right), "chance": result.summary["chance"]})
    columns = ["rule", "healed", "count", "share", "task", "accuracy", "low", "high", "n", "chance"]
    return pd.DataFrame(rows, columns=columns)


def curve_table(found: Sequence[Pruned], tokens_a_step: int) -> pd.DataFrame:
    """rule, count, seed, tokens, held_out (nats a token) while models were healed, wherever that was measured."""
    parts = []
    for one in found:
        if one.training is not None:
            arrays = one.training.arrays
            part = {"tokens": arrays["held_out_step"] * tokens_a_step, "held_out": arrays["held_out"]}
            parts.append(pd.DataFrame(part).assign(rule=one.rule, count=one.count, seed=one.seed))
    return pd.concat(parts, ignore_index=True)[["rule", "count", "seed", "tokens", "held_out"]]


def last_block_table(found: Sequence[Pruned]) -> pd.DataFrame:
    """What it costs to lose the very last block too, rather than the one before the others: last blocks - simple rule,
    up to the depth at which models are healed last; beyond it both are far worse than a guess.

    Returns:
        count, healed, difference (nats a token, paired by blocks of text and seeds), low, high (95 %), seeds.
    """
    groups, rows = _groups(found), []
    deepest = max(count for _, healed, count in groups if healed)
    for (rule, healed, count), runs in groups.items():
        if count <= max(deepest, *FEW) and rule == LAST and (SIMPLE, healed, count) in groups:
            pairs = zip(runs, groups[SIMPLE, healed, count], strict=True)
            values = np.stack([one.nll - other.nll for one, other in pairs])
            rows.append((count, healed, values.mean(), *result_tables.over_seeds(values), len(values)))
    columns = ["count", "healed", "difference", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns).sort_values(["healed", "count"], ignore_index=True)


def drawn(accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of accuracies that stand on items enough to be drawn."""
    return accuracies[accuracies["n"] >= result_tables.DRAWN].reset_index(drop=True)


def above_whole(study: Study, measured: Measured) -> float:
    """What a model of single tokens, counted in the text to heal on, costs above the whole model, nats a token."""
    dense = next(one for one in measured.found if not one.count and not one.healed).nll
    counts = study.inputs.training_counts(study.profile.budget(Budget).training)
    return float((unigram.loss(counts, measured.perplexity.blocks) - dense).mean())


def transitions(found: Sequence[Pruned], num_blocks: int) -> pd.DataFrame:
    """Where accuracy falls to chance: the share of removed blocks at which it is first nearer to chance than to dense.

    Returns:
        rule, task, before, after (percent of blocks: the last measured share at which it is not, and the first at which
        it is, NaN where it never is), n, known (whether the whole model's own accuracy lies above chance with 95 %
        confidence: where it does not, no transition can be seen).
    """
    dense = next(one for one in found if not one.count and not one.healed)
    rows = []
    for rule in HEALED_RULES:
        mine = sorted((o for o in found if o.rule == rule and not o.healed), key=lambda one: one.count)
        for task, result in dense.tasks.items():
            chance, whole = result.summary["chance"], dense.right(task)
            fallen = [one.right(task).mean() < (whole.mean() + chance) / 2 for one in mine]
            shares = [0.0, *(100 * one.count / num_blocks for one in mine)]
            first = fallen.index(True) if any(fallen) else len(fallen)
            known = stats.accuracy_interval(whole.sum(), len(whole))[0] > chance
            after = shares[first + 1] if any(fallen) else np.nan
            rows.append((rule, task, shares[first], after, len(whole), known))
    return pd.DataFrame(rows, columns=["rule", "task", "before", "after", "n", "known"])


def claim(found: Sequence[Pruned], num_blocks: int, resamples: int, seed: int) -> pd.DataFrame:
    """The paper's statements as ones that can be false, and what the data say; columns as `verdicts.verdicts`."""
    groups = _groups(found)
    healed = sorted({count for _, trained, count in groups if trained and count})
    deep, few = quarter(healed, num_blocks), min(healed)
    more = [n for n in FEW[1:] if (LAST, False, n) in groups]
    keys = list(groups)
    seeds = max(len(runs) for runs in groups.values())
    # What is not trained, or once, is the same whatever the seed.
    values = np.stack(
        [np.stack([runs[s % len(runs)].nll for runs in groups.values()], axis=1) for s in range(seeds)]
    )  # (S, N, M)

    def removed(means: np.ndarray) -> list[Statement]:
        at = dict(zip(keys, means, strict=True))
        return [
            Statement(
                f"before healing, the simple rule costs more than similarity, {counted(few, 'block')} gone (nats)",
                at[SIMPLE, False, few] - at[SIMILARITY, False, few], 0.0, matters=RUINED_MATTERS,
            ),
            Statement(
                "of one block, losing the last costs more than losing the one before it (nats)",
                at[LAST, False, 1] - at[SIMPLE, False, 1], 0.0, matters=MATTERS,
            ),
            Statement(
                "of two or three blocks, losing the last ones costs more than sparing the very last (nats, mean)",
                float(np.mean([at[LAST, False, n] - at[SIMPLE, False, n] for n in more])) if more else np.nan,
                0.0, matters=RUINED_MATTERS,
            ),
        ]  # fmt: skip

    def trained(means: np.ndarray) -> list[Statement]:
        at = dict(zip(keys, means, strict=True))
        before, after = at[SIMILARITY, False, deep], at[SIMILARITY, True, deep]
        damage = before - at[WHOLE, False, 0]
        undone = (before - after) / damage if damage > 0 else np.nan
        return [
            Statement(PRIMARY, at[SIMPLE, True, deep] - after, 0.0, matters=MATTERS),
            Statement(
                "healing undoes a part of what a quarter of the blocks costs, by similarity (share)",
                undone, 0.0, matters=SHARE_MATTERS,
            ),
            Statement(
                "healing undoes at least 0.9 of what a quarter of the blocks costs, by similarity (share)",
                undone, 0.9, matters=SHARE_MATTERS,
            ),
            Statement(
                f"losing the last block too costs more once healed, {counted(few, 'block')} gone (nats)",
                at[LAST, True, few] - at[SIMPLE, True, few], 0.0, matters=MATTERS,
            ),
        ]  # fmt: skip

    parts = [
        judge(removed, values[0], resamples, seed),
        judge(trained, values if seeds > 1 else values[0], resamples, seed),
    ]
    states = [groups[key][0] for key in ((WHOLE, False, 0), (SIMILARITY, False, deep), (SIMILARITY, True, deep))]
    for task, whole in states[0].tasks.items():
        # Of what was not lost, nothing can come back.
        if len(states[0].right(task)) < result_tables.DRAWN or not capabilities.lost(whole, states[1].tasks[task]):
            continue
        right = np.stack([one.right(task) for one in states], axis=1)

        def regained(means: np.ndarray, words: str = capabilities.words(task)) -> list[Statement]:
            whole, before, after = means
            name = f"healed, {words} is nearer to the whole model's than to what removal left (accuracy)"
            return [Statement(name, after, (whole + before) / 2, matters=ACCURACY_MATTERS)]

        parts.append(judge(regained, right, resamples, seed, on=capabilities.words(task)))
    return verdicts(parts, PRIMARY)


def vocabulary(study: Study) -> int:
    """Tokens of the model's vocabulary: log of it is what guessing among them costs."""
    return len(study.tokenizer)
