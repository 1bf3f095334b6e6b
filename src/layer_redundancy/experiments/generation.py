"""Notebook 09: what pruned models write, beside what they choose, and whether their errors accumulate.

A pruned model and the dense one are compared at each position of a continuation in three ways:

    free-running    each continues the prompt with its own tokens;
    teacher-forced  both read the dense model's continuation;
    own text        both read the pruned model's continuation.

Free-running agreement falls along the continuation once a token differs, even if the text stays as good, and so it does
for a model that nobody would call damaged: the same weights at 8 bits. That one is the control. Errors accumulate if
they bring the pruned model where it errs more: agreement on its own text then lies below teacher-forced agreement, and
below what the control shows of that. Late in a text much is repetition, which either model follows easily, so tokens
that end a repeated 4-gram are left out.

Whether writing suffers before choosing is asked with the same items in two ways: is the right choice the likeliest of
the choices, and is it what the model would write?

Statistics are functions of arrays (prompts, positions). Intervals and verdicts are over prompts, or items.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Count, Share, given
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import flags, stats, variants, verdicts
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.data import task_files
from layer_redundancy.evaluate import generate, generative_tasks
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import ChoiceTask, WrittenAnswers
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

NOTEBOOK = "09_generation"
CONTROL = Scheme(8, "rtn")  # a change of the weights that harms nothing
NEAR_ZERO = 0.1  # "scores approaching zero": less than a tenth of what the dense model has
MARGIN = 0.05  # share of tokens: fewer errors than that are no accumulation that anybody would notice
TOKENS_MATTER = 0.1  # share of tokens: one more error in ten tokens is worth telling
KEPT_MATTERS = 0.25  # of what the whole model has above chance: the smallest difference of what is kept worth telling
REMOVED = "Blocks removed by Block Influence"
WHOLE, EIGHT_BITS, REAL = "whole model", "8 bits", "real text"


@dataclass(frozen=True)
class Budget:
    """What notebook 09 lets variants write.

    Attributes:
        prompts, prompt_tokens, new_tokens: see `generate.PromptLengths`.
        fractions: shares of the blocks that are removed; the smallest is where text still makes sense, the largest the
            paper's.
        written: multiple-choice tasks that are also asked openly.
        tasks: generative benchmarks of lm-eval; one that runs generated code needs the notebook's leave too.
    """

    prompts: Count
    prompt_tokens: Count
    new_tokens: Count
    fractions: Annotated[tuple[Share, ...], given()] = (0.07, 0.25)
    written: tuple[TaskBudget, ...] = ()
    tasks: tuple[TaskBudget, ...] = ()

    @property
    def lengths(self) -> PromptLengths:
        """The prompts."""
        return PromptLengths(self.prompts, self.prompt_tokens, self.new_tokens)


Answers = dict[str, np.ndarray]  # who answers -> (items,) 0 to 1


@dataclass(frozen=True, eq=False)
class Measured:
    """What the models write and answer. Models are named as figures name them: WHOLE, EIGHT_BITS, "2 blocks removed".

    Attributes:
        removals: name of a pruned model -> number of its removed blocks, ascending.
        shares: name of a pruned model -> the share of the blocks that the budget has it lose, 0 to 1.
        texts: model -> result of `generate.run`, or of `Study.continuations_by`.
        chosen, written: task -> model -> (items,) 1 where the answer is right, by choosing and by writing.
        chance: task -> chance of choosing right.
        generated: generative benchmark -> model -> (items,) scores.
    """

    removals: dict[str, int]
    shares: dict[str, float]
    texts: dict[str, Result]
    chosen: dict[str, Answers]
    written: dict[str, Answers]
    chance: dict[str, float]
    generated: dict[str, Answers]

    @property
    def most(self) -> str | None:
        """The pruned model that lost the most blocks; None where no block can go."""
        return next(reversed(self.removals), None)


def removed_name(count: int) -> str:
    """A pruned model as figures name it."""
    return f"{count} block{'s' * (count > 1)} removed"


@flags.checked
def measure(study: Study, run_generated_code: bool = False) -> Measured:
    """Removes blocks in the order of Block Influence; the models continue prompts and answer benchmarks.

    Args:
        study: the study of the model.
        run_generated_code: without it benchmarks that run what the model writes are left out, in a line.
    """
    budget, num = study.profile.budget(Budget), study.num_blocks
    few_blocks.say_if_single(study)
    few_blocks.say_what_shares_are(num, budget.fractions)
    asked = {max(1, round(num * fraction)): fraction for fraction in sorted(budget.fractions)}
    counts = [count for count in asked if count < num]
    order = study.order("block_influence").tolist() if counts else []
    removals = {removed_name(count): count for count in counts}
    shares = {removed_name(count): asked[count] for count in counts}
    pruned = {name: variants.without(num, order[:count]) for name, count in removals.items()}
    models = {WHOLE: study.dense} | pruned
    control = _control(study)

    written = study.continuations(list(models.values()), budget.lengths)
    texts = {WHOLE: written[study.dense]}
    texts |= {} if control is None else {EIGHT_BITS: study.continuations_by(control, budget.lengths)}
    texts |= {name: written[variant] for name, variant in pruned.items()}

    tasks = [study.inputs.task(one) for one in budget.written]
    generated: dict[str, Answers] = {}
    for task in budget.tasks:
        name = task_files.task_name(task.name)
        if not run_generated_code and generative_tasks.runs_code(task, trust_remote_code=study.profile.trust_tasks):
            logger.warning(f"{name} left out: it runs what the model writes, which run_generated_code=True allows")
            continue
        answers = study.generative_task(task, list(models.values()), run_generated_code)
        metric = generative_tasks.primary_metric(answers[study.dense])
        generated[name] = {who: answers[variant].arrays[metric] for who, variant in models.items()}
    if not budget.tasks:
        logger.info(
            f"the {study.profile.name} profile has no generative benchmark: tasks asked openly stand in for one"
        )
    return Measured(removals, shares, texts, *_both_ways(study, control, models, tasks), generated)


def _control(study: Study) -> Study | None:
    """The same model with 8 bits a weight; None where it cannot be made, which is said in a line."""
    try:
        return study.quantized(CONTROL)
    except NotApplicable as error:
        logger.info(f"the control at 8 bits is left out, and what is compared with it: {error}")
        return None


def _both_ways(
    study: Study, control: Study | None, models: Mapping[str, Variant], tasks: list[ChoiceTask]
) -> tuple[dict[str, Answers], dict[str, Answers], dict[str, float]]:
    chosen: dict[str, Answers] = {}
    written: dict[str, Answers] = {}
    for task in tasks:
        name, openly = task.items.name, WrittenAnswers(task)
        found = study.sweep(list(models.values()), [task, openly])
        chosen[name] = {who: result_tables.right(found[task.name][v]) for who, v in models.items()}
        written[name] = {who: found[openly.name][v].arrays["written"] for who, v in models.items()}
        if control is not None:
            at_8 = control.sweep([control.dense], [task, openly])
            chosen[name][EIGHT_BITS] = result_tables.right(at_8[task.name][control.dense])
            written[name][EIGHT_BITS] = at_8[openly.name][control.dense].arrays["written"]
    return chosen, written, {task.items.name: task.items.chance for task in tasks}


# ------------------------------------------------------------------------------------------------ text


def agreement(tokens: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether a token is the reference's at the same position: (N, T) and (N, T) -> float64 (N, T) of 0 and 1."""
    return (tokens == reference).astype(float)


def agreements(found: Measured, model: str) -> dict[str, np.ndarray]:
    """Agreement of a model with the dense one by what the two read: name -> float64 (N, T) of 0 and 1."""
    reference, arrays = found.texts[WHOLE].arrays["tokens"], found.texts[model].arrays
    return {
        "teacher-forced": agreement(arrays["forced"], reference),
        "own text": agreement(arrays["tokens"], arrays["judged"]),
        "free-running": agreement(arrays["tokens"], reference),
    }


def fresh(tokens: np.ndarray, n: int = generate.NGRAM) -> np.ndarray:
    """Where a continuation is new: (N, T) -> bool (N, T), False where the n-gram ending there is a repeat.

    A model that has begun to repeat itself is easily followed, whatever it has lost.
    """
    new = np.ones(tokens.shape, dtype=bool)
    for places, row in zip(new, tokens.tolist(), strict=True):
        seen: set[tuple] = set()
        for end in range(n, len(row) + 1):
            gram = tuple(row[end - n : end])
            places[end - 1] = gram not in seen
            seen.add(gram)
    return new


def real_text(study: Study) -> np.ndarray:
    """What really follows the prompts; int64 (prompts, new tokens)."""
    lengths = study.profile.budget(Budget).lengths
    return study.prompts(lengths).input_ids[:, lengths.prompt_tokens :].numpy()


def text_quality(found: Measured, text: np.ndarray) -> pd.DataFrame:
    """What becomes of generated text.

    Args:
        text: int64 (N, T) the real text that follows the prompts.

    Returns:
        model (REAL for the real text), measure, value, low, high (95 %, over prompts), n (prompts). Measures:
        "same tokens" (as the dense model writes, 0 to 1), "repeated 4-grams" (share, 0 to 1), "perplexity" (under the
        dense model that reads prompt and text).
    """
    rows = []

    def add(model: str, measure: str, values: np.ndarray, exp: bool = False) -> None:
        numbers = (values.mean(), *stats.mean_interval(values))
        value, low, high = map(generate.perplexity, numbers) if exp else numbers
        rows.append({"model": model, "measure": measure, "value": value, "low": low, "high": high, "n": len(values)})

    for model, result in found.texts.items():
        add(model, "same tokens", agreements(found, model)["free-running"].mean(1))
        add(model, "repeated 4-grams", generate.repetition(result.arrays["tokens"]))
        add(model, "perplexity", result.arrays["nll"].mean(1, dtype=float), exp=True)
    add(REAL, "repeated 4-grams", generate.repetition(text))
    add(REAL, "perplexity", found.texts[WHOLE].arrays["text_nll"].mean(1, dtype=float), exp=True)
    return pd.DataFrame(rows)


def by_position(found: Measured, resamples: int, seed: int, window: int = 1) -> pd.DataFrame:
    """Agreement with the dense model along the continuation, of tokens that end no repeated 4-gram.

    Args:
        window: positions that are taken together, so that a point is steadier.

    Returns:
        model, reading ("teacher-forced", "own text"), position (1 = first new token; the middle of a window), agreement
        (0 to 1), low, high (95 %, over prompts), n (prompts). Without the dense model.
    """
    parts = []
    for model in (name for name in found.texts if name != WHOLE):
        for reading, (same, new) in _fresh_agreement(found, model).items():
            same, new = _windows(same, window), _windows(new, window)
            drawn = stats.bootstrap_means(np.stack([same, new], axis=1), resamples, seed)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio, draws = same.mean(0) / new.mean(0), drawn[:, 0] / drawn[:, 1]
            ends = [stats.interval(r, draws[:, i], len(same)) for i, r in enumerate(ratio)]
            part = {"position": _middles(found.texts[model].arrays["tokens"].shape[1], window), "agreement": ratio}
            part |= {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
            parts.append(pd.DataFrame({"model": model, "reading": reading, **part, "n": len(same)}))
    columns = ["model", "reading", "position", "agreement", "low", "high", "n"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _fresh_agreement(found: Measured, model: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By reading: agreement where the text is new, else 0; and where it is new. (N, T) each."""
    agrees = agreements(found, model)
    read = {"teacher-forced": found.texts[WHOLE], "own text": found.texts[model]}
    new = {reading: fresh(result.arrays["tokens"]).astype(float) for reading, result in read.items()}
    return {reading: (agrees[reading] * where, where) for reading, where in new.items()}


def _windows(values: np.ndarray, window: int) -> np.ndarray:
    """(N, T) -> (N, ceil(T / window)) sums; the last window may be shorter."""
    cuts = range(0, values.shape[1], window)
    return np.stack([values[:, c : c + window].sum(axis=1) for c in cuts], axis=1)


def _middles(length: int, window: int) -> np.ndarray:
    starts = np.arange(0, length, window)
    return (starts + 1 + np.minimum(starts + window, length)) / 2


def note(study: Study) -> str:
    """Prompts and continuations in a caption."""
    lengths = study.profile.budget(Budget).lengths
    prompts = study.prompts(lengths)
    return (
        f"{prompts.corpus}, {prompts.split} split, {lengths.prompts} prompts of {lengths.prompt_tokens} tokens, "
        f"{lengths.new_tokens} new ones, greedy. {REMOVED}"
    )


def samples(study: Study, found: Measured) -> pd.DataFrame:
    """What the models write after the first prompt: model, text."""

    def shorten(ids: torch.Tensor | np.ndarray) -> str:
        return " ".join(study.tokenizer.decode(ids).split())

    lengths = study.profile.budget(Budget).lengths
    prompt = study.prompts(lengths).input_ids[0, : lengths.prompt_tokens][-24:]
    rows = [{"model": "prompt", "text": "... " + shorten(prompt)}]
    rows += [{"model": name, "text": shorten(result.arrays["tokens"][0])} for name, result in found.texts.items()]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------ answers


def answers(found: Measured) -> pd.DataFrame:
    """Right answers to the same items, by choosing and by writing.

    Returns:
        task, how ("chosen", "written"), model, accuracy (0 to 1), low, high (95 %, Wilson), n (items), chance.
    """
    rows = []
    for how, of_tasks in (("chosen", found.chosen), ("written", found.written)):
        for task, of_models in of_tasks.items():
            for model in (name for name in found.texts if name in of_models):
                right = of_models[model]
                low, high = stats.accuracy_interval(round(right.sum()), len(right))
                row = {"task": task, "how": how, "model": model, "accuracy": right.mean(), "low": low, "high": high}
                rows.append(row | {"n": len(right), "chance": found.chance[task] if how == "chosen" else 0.0})
    return pd.DataFrame(rows, columns=["task", "how", "model", "accuracy", "low", "high", "n", "chance"])


def compared(found: Measured, model: str, num_blocks: int) -> pd.DataFrame:
    """What is kept here beside what the paper's models keep of XSum, for which they write, and of MMLU (table 1).

    Returns:
        model, removed (%), score, how, kept (share of the dense model's score above chance), n. No row where nothing
        was removed; none of a task whose dense score may be chance.
    """
    if found.most is None:
        return pd.DataFrame()
    table = paper_tables.table("table1").set_index(["method", "model"])
    rows: list[tuple] = []
    for task, how, chance in (("XSum", "written", 0.0), ("MMLU", "chosen", 25.0)):
        shares = (table.loc["ShortGPT", task] - chance) / (table.loc["Dense", task] - chance)
        rows += [(m, table.loc[("ShortGPT", m), "ratio_percent"], task, how, shares[m], None) for m in shares.index]
    removed = 100 * found.removals[found.most] / num_blocks
    for how, of_tasks in (("chosen", found.chosen), ("written", found.written), ("written", found.generated)):
        for task, of_models in of_tasks.items():
            chance = found.chance.get(task, 0.0) if how == "chosen" else 0.0
            whole, rest = of_models[WHOLE], of_models[found.most]
            if _above(whole, chance):
                kept = (rest.mean() - chance) / (whole.mean() - chance)
                rows.append((model, removed, task, how, kept, len(whole)))
    columns = ["model", "removed (%)", "score", "how", "kept", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64"})


def _above(scores: np.ndarray, chance: float) -> bool:
    """Whether the mean of scores (items,) is surely above chance, so that a share of the difference says something."""
    right_or_wrong = np.isin(scores, (0, 1)).all()
    interval = (
        stats.accuracy_interval(int(scores.sum()), len(scores)) if right_or_wrong else stats.mean_interval(scores)
    )
    return len(scores) > 1 and interval[0] > chance


# ------------------------------------------------------------------------------------------------ the paper's claims


FEWEST = "with the fewest blocks removed"
ACCUMULATE = "errors accumulate: more of its tokens are errors on its own text than on the whole model's"
# Detectable on the embedded profile: 0.04 of the tokens.
PRIMARY = f"{FEWEST}, {ACCUMULATE}"


def claim(study: Study, found: Measured) -> pd.DataFrame:
    """The paper's claims on generation, made into statements that can be false: the table of `verdicts.verdicts`."""
    resamples, seed = study.profile.bootstrap_resamples, study.profile.seed
    depths = _depths(found)
    parts = []
    if EIGHT_BITS in found.texts and depths:
        parts.append(_accumulation(found, depths, resamples, seed))
    for task, chance in found.chance.items():
        # Who writes the answer no more often than a guesser chooses it has little to lose.
        if depths and _above(found.chosen[task][WHOLE], chance) and _above(found.written[task][WHOLE], chance):
            parts.append(_writing_first(found, task, depths, resamples, seed))
    for task, of_models in found.generated.items():
        if depths and _above(of_models[WHOLE], 0.0):
            parts.append(_near_zero(task, of_models, depths, resamples, seed))
    return verdicts.verdicts(parts, PRIMARY)


def _depths(found: Measured) -> dict[str, str]:
    """What statements call a pruned model -> its name: FEWEST, or the share of the blocks that is asked for."""
    return {
        f"without {100 * found.shares[name]:g} % of the blocks" if place else FEWEST: name
        for place, name in enumerate(found.removals)
    }


def _accumulation(found: Measured, depths: Mapping[str, str], resamples: int, seed: int) -> pd.DataFrame:
    """Do errors accumulate (the paper's appendix D)? Halves are those of the continuation, repeats left out.

    Each share of errors is that of a model less the 8-bit model's, which stands for what the text alone does.
    """
    columns: dict[str, np.ndarray] = {}
    for model in (EIGHT_BITS, *depths.values()):
        for reading, (same, new) in _fresh_agreement(found, model).items():
            half = same.shape[1] // 2
            for part, where in (("early", slice(half)), ("late", slice(half, None))):
                columns[f"{model} {reading} {part} errors"] = (new - same)[:, where].sum(1)
                columns[f"{model} {reading} {part} all"] = new[:, where].sum(1)

    def statements(means: np.ndarray) -> list[Statement]:
        mean = dict(zip(columns, means, strict=True))

        def errors(model: str, reading: str, part: str) -> float:
            place = f"{model} {reading} {part}"
            return mean[f"{place} errors"] / mean[f"{place} all"] if mean[f"{place} all"] else np.nan

        def on_own_text(model: str) -> float:
            return errors(model, "own text", "late") - errors(model, "teacher-forced", "late")

        def along(model: str) -> float:
            return errors(model, "teacher-forced", "late") - errors(model, "teacher-forced", "early")

        rows = []
        for what, model in depths.items():
            more = on_own_text(model) - on_own_text(EIGHT_BITS)
            rows.append(Statement(f"{what}, {ACCUMULATE}", more, MARGIN, "above", TOKENS_MATTER))
            more = along(model) - along(EIGHT_BITS)
            rows.append(Statement(f"{what}, it errs as often late in a text as early", more, MARGIN, "within"))
        return rows

    values = np.stack(list(columns.values()), axis=1)
    return verdicts.judge(statements, values, resamples, seed, "written text, beyond the 8-bit model")


def _writing_first(found: Measured, task: str, depths: Mapping[str, str], resamples: int, seed: int) -> pd.DataFrame:
    """Does writing an answer suffer more than choosing it? Of what the dense model has above chance."""
    chance, models = found.chance[task], (WHOLE, *depths.values())
    columns = [of[task][model] for model in models for of in (found.chosen, found.written)]

    def statements(means: np.ndarray) -> list[Statement]:
        chosen, written = means[::2] - chance, means[1::2]
        if chosen[0] <= 0 or written[0] <= 0:
            kept = np.full((2, len(models)), np.nan)
        else:
            kept = np.stack([chosen / chosen[0], written / written[0]])
        name = "less is kept of writing the answer than of choosing it"
        return [
            Statement(f"{what}, {name}", kept[1, i], kept[0, i], "below", KEPT_MATTERS)
            for i, what in enumerate(depths, 1)
        ]

    return verdicts.judge(statements, np.stack(columns, axis=1), resamples, seed, task)


def _near_zero(task: str, of_models: Answers, depths: Mapping[str, str], resamples: int, seed: int) -> pd.DataFrame:
    """Do scores approach zero? Of what the dense model has."""
    values = np.stack([of_models[model] for model in (WHOLE, *depths.values())], axis=1)

    def statements(means: np.ndarray) -> list[Statement]:
        kept = means[1:] / means[0] if means[0] > 0 else np.full(len(depths), np.nan)
        return [
            Statement(f"{what}, less than a tenth of the score is kept", share, NEAR_ZERO, "below", KEPT_MATTERS)
            for what, share in zip(depths, kept, strict=True)
        ]

    return verdicts.judge(statements, values, resamples, seed, task)
