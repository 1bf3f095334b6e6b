"""Greedy continuations by pruned models: how far they follow the dense model, and what their errors grow into.

A pruned model and the dense one are compared at each position of a continuation in three ways:

    free-running    each continues the prompt with its own tokens;
    teacher-forced  both read the dense model's continuation;
    own text        both read the pruned model's continuation.

Free-running agreement must fall along the continuation once a token differs, even if the text stays as good. The other
two are the controls, since there both models read the same: if errors accumulate, in that they bring the pruned model
where it errs more, agreement on its own text falls with position and lies below teacher-forced agreement; if both are
low from the first token on, errors need not accumulate to ruin the text. Until the first error all three read the same
tokens, so free-running and teacher-forced part from the dense model at the same position.

Statistics are functions of arrays (prompts, positions). Intervals and certainties: bootstrap over prompts (items).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Count
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import flags, stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.data import task_files
from layer_redundancy.evaluate import generate, generative_tasks
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

NOTEBOOK = "09_generation"
NEAR_ZERO = 0.1  # "scores approaching zero": less than a tenth of what the dense model has above chance


@dataclass(frozen=True)
class Budget:
    """What notebook 09 lets variants write.

    Attributes:
        prompts, prompt_tokens, new_tokens: see `generate.PromptLengths`.
        max_removed: the most blocks that are removed.
        tasks: generative benchmarks of lm-eval; one that runs generated code needs the notebook's leave too.
    """

    prompts: Count
    prompt_tokens: Count
    new_tokens: Count
    max_removed: Count
    tasks: tuple[TaskBudget, ...] = ()

    @property
    def lengths(self) -> PromptLengths:
        """The prompts."""
        return PromptLengths(self.prompts, self.prompt_tokens, self.new_tokens)


@dataclass(frozen=True, eq=False)
class Measured:
    """What variants write and answer, in the order of Block Influence.

    Attributes:
        removals: number of removed blocks -> variant.
        continuations: variant -> result of `generate.run`.
        generated: generative benchmark -> variant -> result.
        few: numbers of removed blocks at which multiple choice is measured.
        choices: measurement -> variant -> result, at these numbers of removed blocks.
    """

    removals: dict[int, Variant]
    continuations: Mapping[Variant, Result]
    generated: Mapping[str, Mapping[Variant, Result]]
    few: list[int]
    choices: Mapping[str, Mapping[Variant, Result]]

    @property
    def dense(self) -> Variant:
        """The whole model."""
        return self.removals[0]

    @property
    def deepest(self) -> int:
        """The largest number of removed blocks."""
        return max(self.removals)

    @property
    def quarter(self) -> int:
        """The paper's 25 %, or the deepest."""
        return min(quarter(len(self.dense)), self.deepest)

    @property
    def shown(self) -> list[int]:
        """Numbers of removed blocks that are looked at closely; none where none can be removed."""
        return sorted({1, max(1, self.quarter // 2), self.quarter} & (set(self.removals) - {0}))


@flags.checked
def measure(study: Study, run_generated_code: bool = False) -> Measured:
    """Removes blocks in the order of Block Influence; every variant continues prompts and answers benchmarks.

    Args:
        study: the study of the model.
        run_generated_code: without it benchmarks that run what the model writes are left out, in a line.
    """
    budget = study.profile.budget(Budget)
    few_blocks.say_if_single(study)
    few_blocks.say_what_shares_are(study.num_blocks, [0.25])
    order = study.order("block_influence")[: budget.max_removed]
    removals = dict(enumerate(variants.cumulative_removal(study.num_blocks, order)))
    continuations = study.continuations(list(removals.values()), budget.lengths)
    generated = {}
    for task in budget.tasks:
        name = task_files.task_name(task.name)
        if not run_generated_code and generative_tasks.runs_code(task, trust_remote_code=study.profile.trust_tasks):
            logger.warning(f"{name} left out: it runs what the model writes, which run_generated_code=True allows")
            continue
        generated[name] = study.generative_task(task, list(removals.values()), run_generated_code)
    if not budget.tasks:
        logger.info(f"the {study.profile.name} profile has no generative benchmark: agreement stands in for one")
    deepest = max(removals)
    at_quarter = min(quarter(study.num_blocks), deepest)
    few = sorted({0, max(1, at_quarter // 2), at_quarter, deepest} & set(removals))
    choices = study.sweep([removals[n] for n in few])
    return Measured(removals, continuations, generated, few, choices)


def scores(study: Study, found: Measured) -> dict[str, "Scored"]:
    """Agreement with the dense model, the generative benchmarks, and multiple choice at a few depths."""
    table = own_scores(found.continuations, found.dense)
    for name, answers in found.generated.items():
        metric = generative_tasks.primary_metric(answers[found.dense])
        table[name] = ("generative", {v: r.arrays[metric] for v, r in answers.items()}, 0.0)
    for task in study.tasks:
        accuracies = {variant: result_tables.right(result) for variant, result in found.choices[task.name].items()}
        table[task.items.name] = ("multiple choice", accuracies, task.items.chance)
    return table


def real_text(study: Study) -> np.ndarray:
    """What really follows the prompts; int64 (prompts, new tokens)."""
    lengths = study.profile.budget(Budget).lengths
    return study.prompts(lengths).input_ids[:, lengths.prompt_tokens :].numpy()


def note(study: Study) -> str:
    """Prompts and continuations in a caption."""
    lengths = study.profile.budget(Budget).lengths
    prompts = study.prompts(lengths)
    return (
        f"Generation: {prompts.corpus}, {prompts.split} split, {lengths.prompts} prompts of "
        f"{lengths.prompt_tokens} tokens, {lengths.new_tokens} new ones, greedy"
    )


def samples(study: Study, found: Measured) -> pd.DataFrame:
    """What the models write after the first prompt: removed, text."""

    def shorten(ids: torch.Tensor | np.ndarray) -> str:
        return " ".join(study.tokenizer.decode(ids).split())

    lengths = study.profile.budget(Budget).lengths
    prompt = study.prompts(lengths).input_ids[0, : lengths.prompt_tokens][-24:]
    rows = [{"removed": "prompt", "text": "... " + shorten(prompt)}]
    rows += [
        {"removed": str(n), "text": shorten(found.continuations[found.removals[n]].arrays["tokens"][0])}
        for n in [0, *found.shown]
    ]
    return pd.DataFrame(rows)


def agreement(tokens: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether a token is the reference's at the same position: (N, T) and (N, T) -> float64 (N, T) of 0 and 1."""
    return (tokens == reference).astype(float)


def undiverged(agrees: np.ndarray) -> np.ndarray:
    """Whether no token up to a position, that one included, differs: (N, T) of 0 and 1 -> (N, T) of 0 and 1."""
    return np.minimum.accumulate(agrees, axis=1)


def independent_errors(forced: np.ndarray) -> np.ndarray:
    """Share of prompts that would not have diverged if errors were independent: a ** (1, ..., T).

    Args:
        forced: (..., N, T) teacher-forced agreement, 0 to 1; its mean over N and T is the rate a.

    Returns:
        float64 (..., T).
    """
    rate = forced.mean(axis=(-1, -2))
    return rate[..., None] ** np.arange(1, forced.shape[-1] + 1)


def chance_agreement(tokens: np.ndarray) -> float:
    """How often continuations of two different prompts have the same token at the same position, 0 to 1.

    Args:
        tokens: int64 (N, T), continuations by one model; the result is nan if N is 1.
    """
    num = len(tokens)
    same = (tokens[:, None] == tokens[None]).mean(axis=-1)
    return float((same.sum() - num) / (num * (num - 1))) if num > 1 else float("nan")


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


def by_position(
    results: Mapping[Variant, Result], dense: Variant, resamples: int, seed: int, window: int = 1
) -> pd.DataFrame:
    """Agreement with the dense model along the continuation.

    Args:
        results: variant -> result, from `generate.run`.
        window: positions that are averaged, so that a point is steadier; shares that have not diverged are not.

    Returns:
        removed (number of blocks), reading ("teacher-forced", "own text", "free-running", "not yet diverged",
        "independent errors": what the last would be if errors were independent at the teacher-forced rate), position
        (1 = first new token; the middle of a window), agreement (0 to 1), low, high (95 %, bootstrap over prompts), n
        (prompts). Without the dense model.
    """
    parts = []
    for variant in results:
        if variant == dense:
            continue
        agrees = agreements(results, dense, variant)
        forced, free = agrees["teacher-forced"], agrees["free-running"]
        curves = {reading: _windows(values, window) for reading, values in agrees.items()}
        curves["not yet diverged"] = undiverged(free)
        for reading, values in curves.items():
            step = 1 if reading == "not yet diverged" else window
            low, high = np.percentile(stats.bootstrap_means(values, resamples, seed), stats.INTERVAL, axis=0)
            part = {"position": _middles(free.shape[1], step), "agreement": values.mean(0), "low": low, "high": high}
            parts.append(_labelled(part, dense, variant, reading, len(free)))
        drawn = stats.bootstrap_means(forced, resamples, seed)[:, None]  # one rate a resample
        low, high = np.percentile(independent_errors(drawn), stats.INTERVAL, axis=0)
        expected = {"position": _middles(free.shape[1], 1), "agreement": independent_errors(forced)}
        parts.append(_labelled(expected | {"low": low, "high": high}, dense, variant, "independent errors", len(free)))
    return pd.concat(parts, ignore_index=True)


def _labelled(part: dict, dense: Variant, variant: Variant, reading: str, num: int) -> pd.DataFrame:
    removed = len(variants.removed_blocks(len(dense), variant))
    return pd.DataFrame({"removed": removed, "reading": reading, **part, "n": num})


def agreements(results: Mapping[Variant, Result], dense: Variant, variant: Variant) -> dict[str, np.ndarray]:
    """Agreement of a variant with the dense model by what the two read: name -> float64 (N, T) of 0 and 1."""
    reference, arrays = results[dense].arrays["tokens"], results[variant].arrays
    return {
        "teacher-forced": agreement(arrays["forced"], reference),
        "own text": agreement(arrays["tokens"], arrays["judged"]),
        "free-running": agreement(arrays["tokens"], reference),
    }


def _windows(values: np.ndarray, window: int) -> np.ndarray:
    """(N, T) -> (N, ceil(T / window)) means; the last window may be shorter."""
    cuts = range(0, values.shape[1], window)
    return np.stack([values[:, c : c + window].mean(axis=1) for c in cuts], axis=1)


def _middles(length: int, window: int) -> np.ndarray:
    starts = np.arange(0, length, window)
    return (starts + 1 + np.minimum(starts + window, length)) / 2


def by_depth(
    results: Mapping[Variant, Result], dense: Variant, text: np.ndarray, resamples: int, seed: int
) -> pd.DataFrame:
    """What becomes of generated text as blocks go.

    Args:
        results: variant -> result, from `generate.run`.
        text: int64 (N, T) the real text that follows the prompts.

    Returns:
        removed (number of blocks; NaN for the real text), measure, value, low, high (95 %, bootstrap over prompts), n
        (prompts). Measures: "free-running", "teacher-forced" and "own text" (agreement, 0 to 1),
        "repetition" (share of repeated 4-grams, 0 to 1), "perplexity" (of the generated tokens under the dense model
        that reads prompt and continuation).
    """
    rows = []

    def add(removed: float, measure: str, values: np.ndarray, exp: bool = False) -> None:
        low, high = stats.percentile_interval(stats.bootstrap_means(values, resamples, seed))
        numbers = [values.mean(), low, high]
        value, low, high = map(generate.perplexity, numbers) if exp else numbers
        row = {"removed": removed, "measure": measure, "value": value, "low": low, "high": high, "n": len(values)}
        rows.append(row)

    for variant, result in results.items():
        removed = len(variants.removed_blocks(len(dense), variant))
        for reading, values in agreements(results, dense, variant).items():
            add(removed, reading, values.mean(1))
        add(removed, "repetition", generate.repetition(result.arrays["tokens"]))
        add(removed, "perplexity", result.arrays["nll"].mean(1, dtype=float), exp=True)
    add(np.nan, "repetition", generate.repetition(text))
    add(np.nan, "perplexity", results[dense].arrays["text_nll"].mean(1, dtype=float), exp=True)
    return pd.DataFrame(rows)


def kept(
    name: str, kind: str, scores: Mapping[Variant, np.ndarray], dense: Variant, chance: float, resamples: int, seed: int
) -> pd.DataFrame:
    """How much of what the dense model has above chance a variant keeps, on one measure.

    Args:
        name: name of the measure.
        kind: "generative" or "multiple choice".
        scores: variant -> (N,) scores of prompts or items, 0 to 1; the dense model's among them.
        chance: score without knowledge; the dense model's mean must lie above it.

    Returns:
        removed (number of blocks), task, kind, score, kept ((score - chance) / (dense - chance)), low, high (95 %,
        paired bootstrap over items), n (items), chance.
    """
    base = scores[dense]
    if not base.mean() > chance:
        raise StudyError(f"the dense model is at chance on {name}: what a pruned one keeps of that says nothing")
    drawn_base = stats.bootstrap_means(base, resamples, seed) - chance
    rows = []
    for variant, values in scores.items():
        drawn = stats.bootstrap_means(values, resamples, seed) - chance
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(drawn_base > 0, drawn / drawn_base, np.nan)
        low, high = np.nanpercentile(shares, stats.INTERVAL)
        rows.append(
            {
                "removed": len(variants.removed_blocks(len(dense), variant)),
                "task": name,
                "kind": kind,
                "score": values.mean(),
                "kept": (values.mean() - chance) / (base.mean() - chance),
                "low": low,
                "high": high,
                "n": len(values),
                "chance": chance,
            }
        )
    return pd.DataFrame(rows)


def kept_scores(known: Mapping[str, "Scored"], dense: Variant, resamples: int, seed: int) -> pd.DataFrame:
    """`kept` on every score that the dense model does better than chance; without a row if there is none."""
    parts = [kept(name, kind, of, dense, chance, resamples, seed) for name, (kind, of, chance) in known.items()]
    columns = ["removed", "task", "kind", "score", "kept", "low", "high", "n", "chance"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def accumulation(
    results: Mapping[Variant, Result], dense: Variant, variant: Variant, resamples: int, seed: int
) -> pd.DataFrame:
    """What becomes of the text, and do errors accumulate (the paper's appendix D)? Statements on one variant.

    Returns:
        removed (number of blocks), statement, measured, threshold, holds, certainty (share of the bootstrap resamples
        of the prompts in which it holds too). Halves are those of the continuation. The statements on its own text
        leave tokens out that end a repeated 4-gram.
    """
    agrees = agreements(results, dense, variant)
    forced, free, own = agrees["teacher-forced"], agrees["free-running"], agrees["own text"]
    half, steps = free.shape[1] // 2, np.arange(1, free.shape[1] + 1)
    columns = {
        "rate": forced.mean(1),
        "together": undiverged(free).sum(1),
        "nll": results[variant].arrays["nll"].mean(1, dtype=float),
        "dense_nll": results[dense].arrays["nll"].mean(1, dtype=float),
        "repeated": generate.repetition(results[variant].arrays["tokens"]),
        "dense_repeated": generate.repetition(results[dense].arrays["tokens"]),
    }
    new = {"forced": fresh(results[dense].arrays["tokens"]), "own": fresh(results[variant].arrays["tokens"])}
    for name, values in (("free", free), ("forced", forced), ("own", own)):
        for part, where in (("early", slice(half)), ("late", slice(half, None))):
            columns[f"{name}_{part}"] = values[:, where].mean(1)
            if name in new:  # sums and numbers of tokens: their ratio is over all prompts
                columns[f"{name}_{part}_new"] = (values * new[name])[:, where].mean(1)
                columns[f"{name}_{part}_all"] = new[name][:, where].mean(1)

    def statements(mean: pd.Series) -> list[tuple[str, float, float, bool]]:
        drop, forced_drop = mean.free_early - mean.free_late, mean.forced_early - mean.forced_late
        expected = (mean.rate**steps).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            own_early, own_late = mean.own_early_new / mean.own_early_all, mean.own_late_new / mean.own_late_all
            forced_late = mean.forced_late_new / mean.forced_late_all
        pairs = [
            ("text repeats itself more than the dense model's (4-grams)", mean.repeated, mean.dense_repeated, False),
            ("text is less likely than the dense model's own (nats a token)", mean.nll, mean.dense_nll, False),
            ("free-running agreement falls from half to half by more than teacher-forced", drop, forced_drop, False),
            ("on its own text, agreement is lower in the second half (repeats left out)", own_late, own_early, True),
            ("second half: agreement is lower on its own text than teacher-forced", own_late, forced_late, True),
            ("the first error comes sooner (tokens) than independent ones would", mean.together, expected, True),
        ]
        return [(name, a, b, a < b if below else a > b) for name, a, b, below in pairs]

    table = np.stack(list(columns.values()), axis=1)
    again = [
        [holds for *_, holds in statements(pd.Series(row, columns))]
        for row in stats.bootstrap_means(table, resamples, seed)
    ]
    whole = statements(pd.Series(table.mean(0), columns))
    return _claim_rows(dense, variant, whole, np.mean(again, axis=0))


def _claim_rows(dense: Variant, variant: Variant, statements: Sequence[tuple], certainty: Sequence) -> pd.DataFrame:
    columns = ["statement", "measured", "threshold", "holds"]
    table = pd.DataFrame(statements, columns=columns).assign(certainty=certainty)
    table.insert(0, "removed", len(variants.removed_blocks(len(dense), variant)))
    return stats.stated(table)


def first_to_suffer(
    generative: Mapping[Variant, np.ndarray],
    other: Mapping[Variant, np.ndarray],
    chances: tuple[float, float],
    names: tuple[str, str],
    dense: Variant,
    variant: Variant,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Does generation suffer more than another task, and does it come near zero? Two statements on one variant.

    Args:
        generative: variant -> (N,) scores, 0 to 1.
        other: the same for a multiple-choice task, which has other items.
        chances: score without knowledge of each of the two.
        names: name of each of the two, for the statements.

    Returns:
        As `accumulation`; measured is the share that is kept of what the dense model has above chance. Prompts and
        items are resampled independently.
    """

    def shares(scores: Mapping[Variant, np.ndarray], chance: float, seed: int) -> tuple[float, np.ndarray]:
        pair = np.stack([scores[variant], scores[dense]], axis=1) - chance
        drawn = stats.bootstrap_means(pair, resamples, seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return pair[:, 0].mean() / pair[:, 1].mean(), drawn[:, 0] / drawn[:, 1]

    mine, mine_drawn = shares(generative, chances[0], seed)
    theirs, theirs_drawn = shares(other, chances[1], seed + 1)
    statements = [
        (f"{names[0]} keeps less of its score above chance than {names[1]}", mine, theirs, mine < theirs),
        (f"{names[0]} keeps less than a tenth: near zero", mine, NEAR_ZERO, mine < NEAR_ZERO),
    ]
    certainty = [(mine_drawn < theirs_drawn).mean(), (mine_drawn < NEAR_ZERO).mean()]
    return _claim_rows(dense, variant, statements, certainty)


Scored = tuple[str, Mapping[Variant, np.ndarray], float]  # kind, variant -> (N,) scores 0 to 1, chance


def own_scores(results: Mapping[Variant, Result], dense: Variant) -> dict[str, Scored]:
    """Agreement with the dense model as a score of each prompt: "free-running" and "teacher-forced"."""
    chance = chance_agreement(results[dense].arrays["tokens"])
    kinds = {"free-running": "generative", "teacher-forced": "one token at a time"}
    return {
        name: (kind, {v: agreements(results, dense, v)[name].mean(1) for v in results}, chance)
        for name, kind in kinds.items()
    }


def known(scores: Mapping[str, Scored], dense: Variant) -> dict[str, Scored]:
    """The scores on which the dense model is better than chance."""
    return {name: scored for name, scored in scores.items() if scored[1][dense].mean() > scored[2]}


def compared(kept: pd.DataFrame, model: str, removed: int, num_blocks: int) -> pd.DataFrame:
    """What is kept here beside what the paper's models keep of XSum, for which they write, and of MMLU (table 1).

    Args:
        kept: rows of `kept` for all scores.
        removed: number of removed blocks, out of num_blocks.

    Returns:
        model, removed (%), score, kind, kept (share of the dense model's score above chance), 95 %, n. No row where
        nothing was removed.
    """
    if not removed:
        return pd.DataFrame()
    table = paper_tables.table("table1").set_index(["method", "model"])
    rows = []
    for task, kind, chance in (("XSum", "generative", 0.0), ("MMLU", "multiple choice", 25.0)):
        shares = (table.loc["ShortGPT", task] - chance) / (table.loc["Dense", task] - chance)
        rows += [
            (m, table.loc[("ShortGPT", m), "ratio_percent"], task, kind, shares[m], "", None) for m in shares.index
        ]
    for row in kept[kept["removed"] == removed].itertuples():
        interval = f"{row.low:.2f} to {row.high:.2f}"
        rows.append((model, 100 * removed / num_blocks, row.task, row.kind, row.kept, interval, row.n))
    columns = ["model", "removed (%)", "score", "kind", "kept", "95 %", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64"})


def claim(
    results: Mapping[Variant, Result],
    scores: Mapping[str, Scored],
    dense: Variant,
    removals: Mapping[int, Variant],
    shown: Sequence[int],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The paper's claims on generation: `first_to_suffer` at the deepest of `shown`, `accumulation` at each.

    Args:
        results: variant -> result, from `generate.run`.
        scores: the scores on which the dense model is better than chance.
        removals: number of removed blocks -> variant.
        shown: numbers of removed blocks; where there is none, nothing is stated.
    """
    if not shown:
        return pd.DataFrame(columns=["removed", *stats.CLAIM], dtype=object)
    parts = []
    for a, (kind, mine, chance) in scores.items():
        for b, (other, theirs, other_chance) in scores.items():
            if (kind, other) == ("generative", "multiple choice"):
                names = ("agreement with the dense model's text" if a == "free-running" else a, b)
                chances, variant = (chance, other_chance), removals[max(shown)]
                parts.append(first_to_suffer(mine, theirs, chances, names, dense, variant, resamples, seed))
    parts += [accumulation(results, dense, removals[n], resamples, seed) for n in shown]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["removed", "statement"])


def quarter(num_blocks: int) -> int:
    """The paper's 25 % in blocks; at least one."""
    return max(1, round(num_blocks / 4))
