"""Notebook 11: which blocks to select, and which weights to train afterwards (Lu et al. 2024)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config import own_files, paper_tables
from layer_redundancy.config.checks import Count, Share, given
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import DoesNotFit, NotApplicable
from layer_redundancy.core.store import Result
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import selections
from layer_redundancy.models import surgery
from layer_redundancy.study import Study
from layer_redundancy.train import healing as recipes

logger = logging.getLogger(__name__)

REPORTED = {"lora": "lora", "qlora": "qlora", "partial": "head_last_3"}  # the paper's columns


NOTEBOOK = "11_healing"


@dataclass(frozen=True)
class Budget:
    """What notebook 11 selects and trains.

    Attributes:
        training: how much text to train on.
        recipes: the recipes that are compared.
        selection_recipe: the recipe with which selections of blocks are compared.
        ratio: share of the blocks that is removed.
        seeds: seeds of the order of text and of new weights, for each recipe.
        random_orders: number of random selections, whose mean counts as one selection.
        loss_blocks: blocks of calibration text on which the Taylor and perplexity measures are measured.
    """

    training: TrainingBudget
    recipes: Annotated[tuple[Recipe, ...], given()]
    selection_recipe: Recipe
    ratio: Share = 0.25
    seeds: Count = 3
    random_orders: Count = 3
    loss_blocks: Count = 8


@dataclass(frozen=True)
class Tuned:
    """One training and what came of it.

    Attributes:
        recipe: the recipe, which decided the weights to train.
        seed: seed of the training.
        loss: result of the perplexity measurement on evaluation text.
        tasks: results by task.
        training: what the training took.
    """

    recipe: Recipe
    seed: int
    loss: Result
    tasks: dict[str, Result]
    training: Result

    @property
    def nll(self) -> np.ndarray:
        """Mean loss of each block of text, (N,), nats a token."""
        return result_tables.cost(self.loss)


def num_removed(study: Study) -> int:
    """Number of blocks that are removed: the budget's share, by default a quarter as in the paper."""
    return min(study.num_blocks - 1, depth_curves.at_ratio(study.num_blocks, study.profile.budget(Budget).ratio))


def selection_recipe(study: Study) -> str:
    """The recipe with which selections are compared, in a caption."""
    return recipes.describe(study.profile.budget(Budget).selection_recipe)


def last_blocks(study: Study) -> tuple[int, ...]:
    """The last blocks, the very last among them: what the paper's recipe removes."""
    return tuple(range(study.num_blocks - num_removed(study), study.num_blocks))


@dataclass(frozen=True, eq=False)
class Measured:
    """Recipes and selections.

    Attributes:
        removed: the last quarter of the blocks, which the recipes are compared on.
        recipes: recipe's description -> its trainings, one a seed.
        selections: every selection before and after training, the best after it first.
    """

    removed: tuple[int, ...]
    recipes: dict[str, list[Tuned]]
    selections: list["Selected"]


def measure(study: Study) -> Measured:
    """Trains what the paper's recipe leaves in every way, and what every selection leaves in one.

    Raises:
        NotApplicable: no recipe is possible, or the model has a single block.
    """
    few_blocks.need_removable(study, "there is nothing to select, nor to heal")
    few_blocks.say_what_shares_are(study.num_blocks, [study.profile.budget(Budget).ratio])
    removed = last_blocks(study)
    return Measured(removed, compared(study, removed), selected(study))


def tuned(study: Study, removed: Sequence[int], recipe: Recipe, seed: int) -> Tuned:
    """Trains what is left without some blocks, and measures it."""
    other = study.healed(removed, recipe, study.profile.budget(Budget).training, seed)
    training = other.training()
    results = other.sweep([other.dense])
    of = {task.items.name: results[task.name][other.dense] for task in other.tasks}
    return Tuned(recipe, seed, results["perplexity"][other.dense], of, training)


def compared(study: Study, removed: Sequence[int]) -> dict[str, list[Tuned]]:
    """Recipe's description -> its trainings, one a seed; recipes that memory does not suffice for, or that the model
    has no place for, are left out with a message.

    Raises:
        NotApplicable: none is left.
    """
    found: dict[str, list[Tuned]] = {}
    budget = study.profile.budget(Budget)
    study.unload()
    for recipe in budget.recipes:
        try:
            runs = [tuned(study, removed, recipe, seed) for seed in range(budget.seeds)]
        except (DoesNotFit, NotApplicable) as error:
            logger.warning(f"left out: {error}")
            continue
        found[recipes.describe(recipe)] = runs
    if not found:
        raise NotApplicable("no recipe is possible: use another model or a larger device")
    return found


# ------------------------------------------------------------------------------------------------ selections


@dataclass(frozen=True)
class Selected:
    """What a selection removes, and what is left of the model; of a random one, of several draws.

    Attributes:
        name: one of `selections.SELECTIONS`.
        removed: blocks of each draw.
        before: (N,) loss of each block of text, the mean over draws, nats a token.
        after: the same of the trained models.
        accuracy: task -> (items,) share of draws that answer right, before and after.
    """

    name: str
    removed: list[tuple[int, ...]]
    before: np.ndarray
    after: np.ndarray
    accuracy: dict[str, tuple[np.ndarray, np.ndarray]]


def orders(study: Study) -> dict[str, list[np.ndarray]]:
    """The orders in which every selection removes blocks, chosen on calibration text; of the random one several."""
    budget, seed = study.profile.budget(Budget), study.profile.seed
    text = first_blocks(study.calibration, budget.loss_blocks)
    draws = {name: budget.random_orders if name == "random" else 1 for name in selections.SELECTIONS}
    return {name: [study.order(name, text, seed + draw) for draw in range(number)] for name, number in draws.items()}


def _printed_selections(printed: pd.DataFrame) -> list[str]:
    """The study's selections that the paper's table has a column for; one that it lacks has nothing reported."""
    return [name for name in selections.SELECTIONS if name in printed]


def selected(study: Study) -> list[Selected]:
    """Every selection at a quarter of the blocks, before and after the profile's training for it."""
    num, count, budget = study.num_blocks, num_removed(study), study.profile.budget(Budget)
    chosen = {
        name: [tuple(sorted(int(block) for block in order[:count])) for order in draws]
        for name, draws in orders(study).items()
    }
    left = {removed: variants.without(num, removed) for draws in chosen.values() for removed in draws}
    results = study.sweep(list(left.values()))
    study.unload()
    healed = {removed: tuned(study, removed, budget.selection_recipe, study.profile.seed) for removed in left}
    found = []
    for name, draws in chosen.items():
        raw = [results["perplexity"][left[removed]] for removed in draws]
        accuracy = {}
        for task in study.tasks:
            first = [result_tables.right(results[task.name][left[removed]]) for removed in draws]
            then = [result_tables.right(healed[removed].tasks[task.items.name]) for removed in draws]
            accuracy[task.items.name] = np.mean(first, axis=0), np.mean(then, axis=0)
        before = np.mean([result_tables.cost(r) for r in raw], axis=0)
        after = np.mean([healed[removed].nll for removed in draws], axis=0)
        found.append(Selected(name, draws, before, after, accuracy))
    return sorted(found, key=lambda one: one.after.mean())


def selection_table(found: Sequence[Selected]) -> pd.DataFrame:
    """One row a selection, the best after training first.

    Returns:
        selection, draws, removed (of the first draw), loss, low, high, healed_loss, healed_low, healed_high (nats a
        token, 95 % t intervals over blocks of text), and for each task accuracy before and after in percent; reported
        (the paper's average accuracy at a quarter, LoRA, in percent, mean over its four models), reported_rank.
    """
    printed = paper_tables.table("reassessing_selections")
    means = printed[printed["ratio_percent"] == 25][_printed_selections(printed)].mean()
    ranks = means.rank(ascending=False).astype(int)
    rows = []
    for one in found:
        low, high = stats.mean_interval(one.before)
        healed_low, healed_high = stats.mean_interval(one.after)
        row = {"selection": one.name, "draws": len(one.removed), "removed": one.removed[0]}
        row |= {"loss": one.before.mean(), "low": low, "high": high}
        row |= {"healed_loss": one.after.mean(), "healed_low": healed_low, "healed_high": healed_high}
        for task, (before, after) in one.accuracy.items():
            row |= {f"{task} before": 100 * before.mean(), f"{task} after": 100 * after.mean()}
        rows.append(row | {"reported": means.get(one.name, np.nan), "reported_rank": ranks.get(one.name, np.nan)})
    return pd.DataFrame(rows)


def reported_selections() -> pd.DataFrame:
    """The paper's own table at both ratios with its best selection, to compare with what its text states.

    Returns:
        model ("mean" for their mean), ratio_percent, a column a selection (average accuracy of eight benchmarks, LoRA,
        in percent), best.
    """
    printed = paper_tables.table("reassessing_selections")
    names = _printed_selections(printed)
    means = printed.groupby("ratio_percent")[names].mean().reset_index().assign(model="mean")
    both = pd.concat([printed, means], ignore_index=True).sort_values("ratio_percent", kind="stable")
    return both[["model", "ratio_percent", *names]].assign(best=both[names].idxmax(axis=1))


# ------------------------------------------------------------------------------------------------ recipes


def recipe_table(found: Mapping[str, Sequence[Tuned]], resamples: int, seed: int) -> pd.DataFrame:
    """One row a recipe, the best first.

    Returns:
        recipe, label, seeds, loss, perplexity (exp of the mean loss over seeds), low, high (95 % over seeds and blocks
        of text), lowest, highest (seed's perplexity), task, accuracy, accuracy_low, accuracy_high (95 % over seeds and
        items), n, chance, trainable, peak_bytes, seconds (means over seeds).
    """
    rows = []
    for label, runs in found.items():
        nll = np.stack([run.nll for run in runs])
        low, high = stats.interval_over_seeds_and_units(nll, resamples, seed)
        by_seed = np.exp(nll.mean(1))
        row = {
            "recipe": runs[0].recipe.method,
            "label": label,
            "seeds": len(runs),
            "loss": nll.mean(),
            "perplexity": np.exp(nll.mean()),
            "low": np.exp(low),
            "high": np.exp(high),
            "lowest": by_seed.min(),
            "highest": by_seed.max(),
        }
        for task in runs[0].tasks:
            right = np.stack([result_tables.right(run.tasks[task]) for run in runs])
            accuracy_low, accuracy_high = stats.interval_over_seeds_and_units(right, resamples, seed)
            row |= {
                "task": task,
                "accuracy": right.mean(),
                "accuracy_low": accuracy_low,
                "accuracy_high": accuracy_high,
            }
            row |= {"n": right.shape[1], "chance": runs[0].tasks[task].summary["chance"]}
        for name in ("trainable", "peak_bytes", "seconds"):
            row[name] = float(np.mean([run.training.summary[name] for run in runs]))
        rows.append(row)
    columns = {
        "task": "",
        "accuracy": np.nan,
        "accuracy_low": np.nan,
        "accuracy_high": np.nan,
        "n": 0,
        "chance": np.nan,
    }
    table = pd.DataFrame(rows)
    table = table.assign(**{name: value for name, value in columns.items() if name not in table})
    return table.sort_values("loss", ignore_index=True)


def curve_table(found: Mapping[str, Sequence[Tuned]], tokens_a_step: int) -> pd.DataFrame:
    """recipe, label, seed, tokens, held_out (nats a token) wherever that was measured."""
    parts = []
    for label, runs in found.items():
        for run in runs:
            arrays = run.training.arrays
            part = {"tokens": arrays["held_out_step"] * tokens_a_step, "held_out": arrays["held_out"]}
            parts.append(pd.DataFrame(part).assign(recipe=run.recipe.method, label=label, seed=run.seed))
    return pd.concat(parts, ignore_index=True)[["recipe", "label", "seed", "tokens", "held_out"]]


def beside_reported(table: pd.DataFrame) -> pd.DataFrame:
    """What each recipe costs and reaches here beside what the paper prints, as ratios to LoRA, since model and device
    differ: recipe, what, measured, reported (Llama-3.1-8B-It, mean of eight accuracies in the last row).
    """
    cost = paper_tables.table("reassessing_cost").set_index("recipe")
    accuracy = paper_tables.table("reassessing_recipes")
    accuracy = accuracy[(accuracy["model"] == "Llama-3.1-8B-It") & (accuracy["selection"] == "reverse_order")].iloc[0]
    mine = table.set_index("recipe")
    rows = []
    for recipe, printed in REPORTED.items():
        if recipe not in mine.index or "lora" not in mine.index:
            continue
        for what, column, theirs in (
            ("weights trained", "trainable", "trainable_millions"),
            ("memory", "peak_bytes", "memory_gigabytes"),
            ("seconds", "seconds", "seconds"),
        ):
            measured = mine[column][recipe] / mine[column]["lora"]
            reported = cost[theirs][printed] / cost[theirs]["lora"]
            rows.append({"recipe": recipe, "what": what, "measured": measured, "reported": reported})
        measured = mine["accuracy"][recipe] - mine["accuracy"]["lora"]
        reported = accuracy[printed] - accuracy["lora"]
        rows.append({"recipe": recipe, "what": "accuracy (points)", "measured": 100 * measured, "reported": reported})
    return pd.DataFrame(rows).assign(relative_to="LoRA")


def claim(found: Mapping[str, Sequence[Tuned]], chosen: Sequence[Selected], resamples: int, seed: int) -> pd.DataFrame:
    """The paper's statements as ones that can be false, by the loss in nats a token; columns as `stats.claim`."""
    mean = {runs[0].recipe.method: np.mean([run.nll for run in runs], axis=0) for runs in found.values()}
    names = [one.name for one in chosen]
    values = np.stack([*mean.values(), *(one.after for one in chosen)], axis=1)

    def statements(means: np.ndarray) -> list[tuple[str, float, float, bool]]:
        at = dict(zip(mean, means, strict=False))
        of = dict(zip(names, means[len(mean) :], strict=True))
        stated = []
        if "partial" in at:
            for other, text in (("lora", "LoRA"), ("qlora", "QLoRA"), ("full", "all weights")):
                if other in at:
                    gap = at[other] - at["partial"]
                    stated.append((f"training head and last blocks beats {text} (nats)", gap, 0.0, gap > 0))
        if {"lora", "qlora"} <= set(at):
            gap = at["qlora"] - at["lora"]
            stated.append(("QLoRA is behind LoRA (nats)", gap, 0.0, gap > 0))
        best = min(v for name, v in of.items() if name != "reverse_order")
        gap = best - of["reverse_order"]
        stated.append(
            ("trained, reverse order beats every other selection (nats, to the best of them)", gap, 0.0, gap > 0)
        )
        gap = of["random"] - max(v for name, v in of.items() if name in ("perplexity", "taylor", "block_influence"))
        stated.append(
            ("perplexity, Taylor and Block Influence all beat random (nats, the worst of them)", gap, 0.0, gap > 0)
        )
        return stated

    return stats.claim(statements, values, resamples, seed)


def check_export(study: Study, folder: str) -> None:
    """Raises StudyError where `export` could not write a folder, before hours are spent; "" is none."""
    if folder:
        own_files.new_folder(folder, study.profile.model)


def export(study: Study, removed: Sequence[int], recipe: Recipe, folder: str | Path) -> Path:
    """Writes a trained model as a checkpoint for transformers, which must give equal logits; see `surgery.export`.

    A relative path of the folder starts at the working directory.

    Raises:
        StudyError: as `own_files.new_folder`, before anything is trained, and `surgery.export`.
    """
    target = own_files.new_folder(folder, study.profile.model)
    other = study.healed(removed, recipe, study.profile.budget(Budget).training, study.profile.seed)
    return surgery.export(other.stack.model, other.tokenizer, [], target)
