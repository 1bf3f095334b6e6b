"""Notebook 11: which blocks to select, and which weights to train afterwards (Lu et al. 2024)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config import own_files, paper_tables
from layer_redundancy.config.checks import Count, Rate, Share, at_least, given
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import flags, stats, variants
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.verdicts import Statement, judge, verdicts
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import capabilities, depth_curves, few_blocks, learning_rates, result_tables
from layer_redundancy.experiments.learning_rates import Trial
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import selections, unigram
from layer_redundancy.models import surgery
from layer_redundancy.study import Study
from layer_redundancy.train import healing as recipes

logger = logging.getLogger(__name__)

REPORTED = {"lora": "lora", "qlora": "qlora", "partial": "head_last_3"}  # the paper's columns
# Differences that somebody would care about. Losses: nats a token, of which eight blocks by Block Influence cost 1.2
# before training, the last eight 18.
MATTERS = 0.1  # between two recipes
ROUNDED_MATTERS = 0.15  # where one of them is beside weights of 4 bits, whose rounding alone costs 0.4
SELECTIONS_MATTER = 1.0  # between two selections
ACCURACY_MATTERS = 0.1
RANDOM = "random"

NOTEBOOK = "11_healing"
# On the embedded profile it sees differences from 0.067 nats on.
PRIMARY = "training head and last blocks beats LoRA (nats)"


@dataclass(frozen=True)
class Budget:
    """What notebook 11 selects and trains.

    Attributes:
        training: how much text to train on.
        recipes: the recipes that are compared.
        selection_recipe: the recipe with which selections of blocks are compared.
        ratio: share of the blocks that is removed.
        recipes_on: the selection that recipes are compared on.
        selections: the selections that are compared; all if empty.
        rates: learning rates of the selections that have another than the selection recipe's.
        seeds: trainings of each: each has text of its own (but of C4 and Alpaca, whose text is the same for all), in an
            order of its own, and other new weights.
        random_orders: number of random selections; a training seed has one of them, in turn.
        loss_blocks: blocks of calibration text on which the Taylor and perplexity measures are measured.
        evaluation_blocks: blocks of evaluation text, the first ones; None for all.
    """

    training: TrainingBudget
    recipes: Annotated[tuple[Recipe, ...], given()]
    selection_recipe: Recipe
    ratio: Share = 0.25
    recipes_on: str = "reverse_order"
    selections: tuple[str, ...] = ()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    seeds: Count = 3
    random_orders: Count = 3
    loss_blocks: Count = 8
    evaluation_blocks: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True)
class Tuned:
    """One training and what came of it.

    Attributes:
        recipe: the recipe, which decided the weights to train.
        seed: seed of the training.
        loss: result of the perplexity measurement on evaluation text.
        tasks: results by task; empty where none was measured.
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


def kind(recipe: Recipe) -> str:
    """A recipe's name in tables and figures: its method, but for partial training that leaves the head as it is."""
    return "partial_kept" if recipe.method == "partial" and recipe.head == "kept" else recipe.method


def num_removed(study: Study) -> int:
    """Number of blocks that are removed: the budget's share, by default a quarter as in the paper."""
    return depth_curves.at_ratio(study.num_blocks, study.profile.budget(Budget).ratio)


def selection_recipe(study: Study) -> str:
    """The recipe with which selections are compared, in a caption."""
    return recipes.describe(study.profile.budget(Budget).selection_recipe)


@dataclass(frozen=True, eq=False)
class Measured:
    """Recipes and selections.

    Attributes:
        removed: the blocks that are gone where recipes are compared.
        before: the whole model, and what was removed of it before any training: "whole model", "untrained", "unigram"
            (a model of single tokens) -> (N,) loss of each block of evaluation text, nats a token.
        tasks: "whole model" and "untrained" -> results by task.
        held_out: "whole model", "untrained" and "unigram" -> loss on the text that is held out from the training text.
        perplexity: what losses are measured on.
        recipes: recipe's description -> its trainings, one a seed; "4 bits, untrained" too, where QLoRA is among them.
        selections: every selection before and after training, the best after it first.
    """

    removed: tuple[int, ...]
    before: dict[str, np.ndarray]
    tasks: dict[str, dict[str, Result]]
    held_out: dict[str, float]
    perplexity: Perplexity
    recipes: dict[str, list[Tuned]]
    selections: list["Selected"]


def measure(study: Study) -> Measured:
    """Trains what one selection leaves in every way, and what every selection leaves in one.

    Raises:
        NotApplicable: no recipe is possible, or the model has a single block.
    """
    few_blocks.need_removable(study, "there is nothing to select, nor to heal")
    budget = study.profile.budget(Budget)
    few_blocks.say_what_shares_are(study.num_blocks, [budget.ratio])
    chosen = chosen_blocks(study)
    removed = chosen[budget.recipes_on][0]
    perplexity = _perplexity(study)
    left = variants.without(study.num_blocks, removed)
    found = study.sweep([study.dense, left], [perplexity, *study.tasks])
    states = {"whole model": study.dense, "untrained": left}
    before = {name: result_tables.cost(found[perplexity.name][variant]) for name, variant in states.items()}
    before["unigram"] = unigram.loss(study.inputs.token_counts, perplexity.blocks)
    tasks = {
        name: {task.items.name: found[task.name][variant] for task in study.tasks} for name, variant in states.items()
    }
    held_out, trained = _held_out(study), compared(study, removed)
    for runs in trained.values():
        if runs[0].recipe.method not in ("qlora", "nf4") and held_out:
            held_out["untrained"] = float(runs[0].training.arrays["held_out"][0])
    return Measured(removed, before, tasks, held_out, perplexity, trained, selected(study, chosen))


def _perplexity(study: Study) -> Perplexity:
    blocks = study.profile.budget(Budget).evaluation_blocks
    if blocks is None:
        return study.perplexity
    return replace(study.perplexity, blocks=first_blocks(study.evaluation, blocks))


def _held_out(study: Study) -> dict[str, float]:
    """Losses on the text that is held out from the training text; nothing where none is."""
    training = study.profile.budget(Budget).training
    if not training.held_out:
        return {}
    text = study.inputs.training_text(training, 0)
    held_out = replace(text, input_ids=text.input_ids[-training.held_out :])
    found = study.sweep([study.dense], [Perplexity(held_out)])["perplexity"][study.dense]
    single = unigram.loss(study.inputs.training_counts(training), held_out)
    return {"whole model": float(found.summary["nll"]), "unigram": float(single.mean())}


@flags.checked
def tuned(study: Study, removed: Sequence[int], recipe: Recipe, seed: int, *, with_tasks: bool = False) -> Tuned:
    """Trains what is left without some blocks, and measures it."""
    other = study.healed(removed, recipe, study.profile.budget(Budget).training, seed)
    training, perplexity = other.training(), _perplexity(study)
    tasks = other.tasks if with_tasks else []
    results = other.sweep([other.dense], [perplexity, *tasks])
    of = {task.items.name: results[task.name][other.dense] for task in tasks}
    other.unload()
    return Tuned(recipe, seed, results[perplexity.name][other.dense], of, training)


def compared(study: Study, removed: Sequence[int]) -> dict[str, list[Tuned]]:
    """Recipe's description -> its trainings, one a seed, the first of which has accuracies too; recipes that memory
    does not suffice for, or that the model has no place for, are left out with a message.

    Raises:
        NotApplicable: none is left.
    """
    found: dict[str, list[Tuned]] = {}
    budget = study.profile.budget(Budget)
    study.unload()
    for recipe in budget.recipes:
        try:
            runs = [tuned(study, removed, recipe, seed, with_tasks=seed == 0) for seed in range(budget.seeds)]
            if recipe.method == "qlora":
                rounded = replace(recipe, method="nf4")
                found[recipes.describe(rounded)] = [tuned(study, removed, rounded, 0)]
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
    """What a selection removes, and what is left of the model.

    Attributes:
        name: one of `selections.SELECTIONS`.
        removed: blocks of each training seed; they differ where the selection is random.
        before: (S, N) loss of each block of text under what is left for each seed, nats a token.
        after: the same of the trained models.
    """

    name: str
    removed: list[tuple[int, ...]]
    before: np.ndarray
    after: np.ndarray


def orders(study: Study) -> dict[str, list[np.ndarray]]:
    """The orders in which every selection removes blocks, chosen on calibration text; of the random one several.

    Raises:
        StudyError: the profile names a selection that there is none of.
    """
    budget, seed = study.profile.budget(Budget), study.profile.seed
    names = list(selections.SELECTIONS)
    for name in (budget.recipes_on, *budget.selections):
        if name not in names:
            raise StudyError(f"[budgets.healing] names a selection {name!r}: choose from {', '.join(names)}")
    if budget.selections:
        names = [name for name in names if name in (budget.recipes_on, *budget.selections)]
    text = first_blocks(study.calibration, budget.loss_blocks)
    draws = {name: budget.random_orders if name == RANDOM else 1 for name in names}
    return {name: [study.order(name, text, seed + draw) for draw in range(number)] for name, number in draws.items()}


def chosen_blocks(study: Study) -> dict[str, list[tuple[int, ...]]]:
    """Selection -> the blocks that each of its orders removes first, ascending."""
    count = num_removed(study)
    return {
        name: [tuple(sorted(int(block) for block in order[:count])) for order in draws]
        for name, draws in orders(study).items()
    }


def recipe_for(study: Study, selection: str) -> Recipe:
    """The recipe with which a selection is compared, at the rate that the profile has for it."""
    budget = study.profile.budget(Budget)
    rate = budget.rates.get(selection, budget.selection_recipe.learning_rate)
    return replace(budget.selection_recipe, learning_rate=rate)


def trials(study: Study) -> list[Trial]:
    """What `make rates` tries: every recipe on the selection on which they are compared, every selection with its."""
    budget = study.profile.budget(Budget)
    chosen = cache(lambda: chosen_blocks(study))
    names = [name for name in selections.SELECTIONS if not budget.selections or name in budget.selections]
    pairs = [(budget.recipes_on, recipe) for recipe in budget.recipes]
    pairs += [(name, recipe_for(study, name)) for name in names]

    def trial(selection: str, recipe: Recipe) -> Trial:
        def loss(rate: float, seed: int) -> float:
            draws, at_rate = chosen()[selection], replace(recipe, learning_rate=rate)
            return learning_rates.held_out_loss(study, draws[seed % len(draws)], at_rate, budget.training, seed)

        trained, training = recipes.describe(recipe), budget.training
        return Trial("healing", selection, trained, training.steps, training.batch, recipe.learning_rate, loss, chosen)

    return list({one.name: one for one in (trial(*pair) for pair in pairs)}.values())


def _printed_selections(printed: pd.DataFrame) -> list[str]:
    """The study's selections that the paper's table has a column for; one that it lacks has nothing reported."""
    return [name for name in selections.SELECTIONS if name in printed]


def selected(study: Study, chosen: Mapping[str, Sequence[tuple[int, ...]]]) -> list[Selected]:
    """Every selection at a quarter of the blocks, before and after the profile's training for it."""
    num, seeds, perplexity = study.num_blocks, range(study.profile.budget(Budget).seeds), _perplexity(study)
    left = {removed: variants.without(num, removed) for draws in chosen.values() for removed in draws}
    results = study.sweep(list(left.values()), [perplexity])[perplexity.name]
    study.unload()
    found = []
    for name, draws in chosen.items():
        removed = [draws[seed % len(draws)] for seed in seeds]
        before = np.stack([result_tables.cost(results[left[blocks]]) for blocks in removed])
        recipe = recipe_for(study, name)
        after = np.stack([tuned(study, removed[seed], recipe, seed).nll for seed in seeds])
        found.append(Selected(name, removed, before, after))
    return sorted(found, key=lambda one: one.after.mean())


def selection_table(found: Sequence[Selected], dense: np.ndarray) -> pd.DataFrame:
    """One row a selection, the best after training first.

    Args:
        found: the selections.
        dense: (N,) the whole model's loss.

    Returns:
        selection, draws, removed (of the first draw), loss, healed_loss (nats a token), damage, low, high,
        healed_damage, healed_low, healed_high (above the whole model's loss, paired by blocks of text; 95 % over blocks
        of text and, if several, seeds); reported (the paper's average accuracy at a quarter, LoRA, in percent, mean
        over its four models), reported_rank.
    """
    printed = paper_tables.table("reassessing_selections")
    means = printed[printed["ratio_percent"] == 25][_printed_selections(printed)].mean()
    ranks = means.rank(ascending=False).astype(int)
    rows = []
    for one in found:
        # What is the same for every seed is no second measurement.
        before = one.before if len(set(one.removed)) > 1 else one.before[:1]
        low, high = result_tables.over_seeds(before - dense)
        healed_low, healed_high = result_tables.over_seeds(one.after - dense)
        row = {"selection": one.name, "draws": len(set(one.removed)), "removed": one.removed[0]}
        row |= {"loss": before.mean(), "healed_loss": one.after.mean()}
        row |= {"damage": (before - dense).mean(), "low": low, "high": high}
        row |= {"healed_damage": (one.after - dense).mean(), "healed_low": healed_low, "healed_high": healed_high}
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


def recipe_table(found: Mapping[str, Sequence[Tuned]], dense: np.ndarray) -> pd.DataFrame:
    """One row a recipe, the best first.

    Args:
        found: the recipes' trainings.
        dense: (N,) the whole model's loss.

    Returns:
        recipe (`kind`), label, seeds, loss (nats a token), damage (above the whole model's loss, paired by blocks of
        text), low, high (95 % of it, over blocks of text and, if several, seeds), perplexity, trainable, peak_bytes,
        seconds (means over seeds).
    """
    rows = []
    for label, runs in found.items():
        nll = np.stack([run.nll for run in runs])
        low, high = result_tables.over_seeds(nll - dense)
        row = {
            "recipe": kind(runs[0].recipe),
            "label": label,
            "seeds": len(runs),
            "loss": nll.mean(),
            "damage": (nll - dense).mean(),
            "low": low,
            "high": high,
            "perplexity": np.exp(nll.mean()),
        }
        for name in ("trainable", "peak_bytes", "seconds"):
            row[name] = float(np.mean([run.training.summary[name] for run in runs]))
        rows.append(row)
    return pd.DataFrame(rows).sort_values("loss", ignore_index=True)


def capability_table(measured: Measured) -> pd.DataFrame:
    """What the whole model can do, the pruned one, and the first seed's model of each recipe.

    Returns:
        model (a recipe's label, "whole model", "untrained"), recipe (`kind`, or the same words), task, accuracy, low,
        high (95 % Wilson), n, chance.
    """
    models = [(name, name, tasks) for name, tasks in measured.tasks.items()]
    models += [(label, kind(runs[0].recipe), runs[0].tasks) for label, runs in measured.recipes.items()]
    rows = []
    for label, recipe, tasks in models:
        for task, result in tasks.items():
            right = result_tables.right(result)
            low, high = stats.accuracy_interval(right.sum(), len(right))
            row = {"model": label, "recipe": recipe, "task": task, "accuracy": right.mean(), "low": low, "high": high}
            rows.append(row | {"n": len(right), "chance": result.summary["chance"]})
    columns = ["model", "recipe", "task", "accuracy", "low", "high", "n", "chance"]
    return pd.DataFrame(rows, columns=columns)


def drawn(accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of accuracies that stand on items enough to be drawn."""
    return accuracies[accuracies["n"] >= result_tables.DRAWN].reset_index(drop=True)


def curve_table(found: Mapping[str, Sequence[Tuned]], tokens_a_step: int) -> pd.DataFrame:
    """recipe, label, seed, tokens, held_out (nats a token) wherever that was measured."""
    parts = []
    for label, runs in found.items():
        for run in runs:
            arrays = run.training.arrays
            part = {"tokens": arrays["held_out_step"] * tokens_a_step, "held_out": arrays["held_out"]}
            parts.append(pd.DataFrame(part).assign(recipe=kind(run.recipe), label=label, seed=run.seed))
    return pd.concat(parts, ignore_index=True)[["recipe", "label", "seed", "tokens", "held_out"]]


def beside_reported(table: pd.DataFrame) -> pd.DataFrame:
    """What each recipe costs here beside what the paper prints, as ratios to LoRA, since model and device differ:
    recipe, what, measured, reported (Llama-3.1-8B-It).
    """
    cost = paper_tables.table("reassessing_cost").set_index("recipe")
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
    return pd.DataFrame(rows).assign(relative_to="LoRA")


def claim(measured: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """The paper's statements as ones that can be false, and what the data say; columns as `verdicts.verdicts`."""
    of_recipe = {kind(runs[0].recipe): runs for runs in measured.recipes.values()}
    of_selection = {one.name: one for one in measured.selections}
    seeds = len(measured.selections[0].after)
    columns = {("before", name): [values] * seeds for name, values in measured.before.items()}
    columns |= {("recipe", name): [runs[s % len(runs)].nll for s in range(seeds)] for name, runs in of_recipe.items()}
    columns |= {("selection", name): list(one.after) for name, one in of_selection.items()}
    values = np.stack([np.stack(of, axis=0) for of in columns.values()], axis=2)  # (S, N, M)

    def statements(means: np.ndarray) -> list[Statement]:
        at = dict(zip(columns, means, strict=True))
        stated = []

        def behind(first: tuple[str, str], second: tuple[str, str]) -> float | None:
            """How much more the first costs, nats a token; None where one was not measured."""
            return at[first] - at[second] if {first, second} <= at.keys() else None

        for other, text, matters in (
            ("lora", "LoRA", MATTERS),
            ("qlora", "QLoRA", ROUNDED_MATTERS),
            ("full", "all weights", MATTERS),
        ):
            gap = behind(("recipe", other), ("recipe", "partial"))
            if gap is not None:
                name = f"training head and last blocks beats {text} (nats)"
                stated.append(Statement(name, gap, 0.0, matters=matters))
        gap = behind(("recipe", "partial_kept"), ("recipe", "partial"))
        if gap is not None:
            stated.append(Statement("training the head too helps the last blocks (nats)", gap, 0.0, matters=MATTERS))
        gap = behind(("recipe", "qlora"), ("recipe", "lora"))
        rounding = behind(("recipe", "nf4"), ("before", "untrained"))
        if gap is not None and rounding is not None:
            name = "QLoRA is behind LoRA by less than rounding costs untrained (nats)"
            stated.append(Statement(name, gap, rounding, "below", ROUNDED_MATTERS))
        for other, text in (
            ("block_influence", "Block Influence"),
            ("perplexity", "single-block perplexity"),
        ):
            gap = behind(("selection", other), ("selection", "reverse_order"))
            if gap is not None:
                name = f"trained, reverse order beats {text} (nats)"
                stated.append(Statement(name, gap, 0.0, matters=SELECTIONS_MATTER))
        return stated

    parts = [judge(statements, values if seeds > 1 else values[0], resamples, seed)]
    for task, whole in measured.tasks["whole model"].items():
        states = {"whole": whole, "untrained": measured.tasks["untrained"][task]}
        if not capabilities.lost(whole, states["untrained"]):
            continue  # nothing can come back
        for name in ("lora", "partial"):
            if name in of_recipe and task in of_recipe[name][0].tasks:
                states[name] = of_recipe[name][0].tasks[task]
        right = np.stack([result_tables.right(result) for result in states.values()], axis=1)
        if len(right) >= result_tables.DRAWN:
            parts.append(judge(_regained(list(states), task), right, resamples, seed, on=capabilities.words(task)))
    return verdicts(parts, PRIMARY)


def _regained(names: Sequence[str], task: str) -> Callable[[np.ndarray], list[Statement]]:
    """Statements on how much of a task comes back; (M,) accuracies of models of these names."""

    def statements(means: np.ndarray) -> list[Statement]:
        at = dict(zip(names, means, strict=True))
        middle = (at.pop("whole") + at.pop("untrained")) / 2
        texts = {"lora": "LoRA", "partial": "training head and last blocks"}
        return [
            Statement(
                f"{texts[name]} brings back half of what {capabilities.words(task)} lost (accuracy)",
                value, middle, matters=ACCURACY_MATTERS,
            )
            for name, value in at.items()
        ]  # fmt: skip

    return statements


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
