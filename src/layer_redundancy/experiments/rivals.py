"""Notebook 13: ShortGPT's rivals run live, on the same model, text, tasks and size (ShortGPT table 1, and after).

Sizes are shares of all weights, of which those that are tied count once. The paper's ratio is the 27.1 % that its
table 1 removes of Llama-2-7B; here it is the nearest size that whole blocks reach, and each method comes to within
`method.NEAR` of that, or is left out with a line that says why.

A method reads one of several calibration texts (draws), S of them, and is measured on N blocks of evaluation text.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Count, Share, at_least
from layer_redundancy.config.profiles import Recipe, TaskBudget, TrainingBudget
from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.amounts import Pass
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.experiments import few_blocks, quantization, result_tables
from layer_redundancy.figures.style import words
from layer_redundancy.inputs import first_blocks
from layer_redundancy.methods import registry, replace_me
from layer_redundancy.methods.in_sweeps import RunMaps
from layer_redundancy.methods.method import Plan, nearest
from layer_redundancy.methods.replace_me import Run
from layer_redundancy.models import throughput
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

NOTEBOOK = "13_rivals"
SPEED_VERSION = 1  # raise it when tokens a second are measured in another way

SHORTGPT, SLEB, PRUNER, LACO, LACO_CODE = "shortgpt", "sleb", "llm_pruner", "laco", "laco_code"
SLICE, SLICE_TIED, REPLACE, COMPENSATED = "slice_gpt", "slice_gpt_tied", "replace_me", "magnitude_compensation"
WIDTH = (PRUNER, SLICE, SLICE_TIED)  # those that make a model narrower
FEW = (SLEB, COMPENSATED, LACO, LACO_CODE)  # those that read their text once for every block that goes, or more often

# Nats a token: what matters between two methods, one perplexity twice the other; where losses differ most from text to
# text, 2.7 times; and of what is broken, about what lies between the whole model and one that reads nothing.
MATTERS, MUCH, BROKEN = 0.7, 1.0, 5.0
ACCURACY_MATTERS = 0.2
REGRET = 0.25  # nats: what a rule may cost more than the best run that there is
PRIMARY = "text: removal by Block Influence costs less than the better method that makes the model narrower"


@dataclass(frozen=True)
class Budget:
    """What notebook 13 makes and measures.

    Attributes:
        training: how much text the healed ones are trained on.
        recipe: how they are trained.
        ratio: share of all weights that go where all is measured; None for the paper's.
        methods: names in `methods.registry`; all if empty.
        healed: names of those that are trained after.
        draws: calibration texts; fewer where the corpus has less.
        calibration_blocks: blocks of each text.
        few_blocks: blocks that methods read which read their text again and again.
        few_tokens: first tokens of each of them; None for all.
        shortlist: share of the blocks that are left that greedy removal tries at a step.
        shares: further shares of all weights, at which perplexity alone is measured, on the first text.
        evaluation_blocks: blocks of evaluation text, the first ones; None for all.
        tasks: benchmarks beside the profile's.
        run_shares: shares of the blocks whose runs are replaced by linear maps.
        choosing_blocks: blocks of calibration text on which the best run is chosen.
        speed_texts: texts that are read, and written on, to find tokens a second.
        written: tokens that are written for each.
    """

    training: TrainingBudget
    recipe: Recipe
    ratio: Share | None = None
    methods: tuple[str, ...] = ()
    healed: tuple[str, ...] = (SHORTGPT, PRUNER, SLICE)
    draws: Count = 5
    calibration_blocks: Count = 16
    few_blocks: Count = 4
    few_tokens: Annotated[int | None, at_least(2)] = None
    shortlist: Share = 0.2
    shares: tuple[Share, ...] = (0.1, 0.2)
    evaluation_blocks: Annotated[int | None, at_least(1)] = None
    tasks: tuple[TaskBudget, ...] = ()
    run_shares: tuple[Share, ...] = (0.1, 0.33)
    choosing_blocks: Count = 4
    speed_texts: Count = 2
    written: Count = 16


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method made of one calibration text at one size.

    Attributes:
        method: its name in `methods.registry`.
        plan: the size.
        nll: (N,) mean loss of each block of evaluation text, nats a token.
        read: the same of the text that it read, the first blocks of it; None where that was not measured.
        seconds: what the method took, without loading the model; NaN where its memory was counted.
        tasks: task -> result; empty where none was measured.
    """

    method: str
    plan: Plan
    nll: np.ndarray
    read: np.ndarray | None
    seconds: float
    tasks: Mapping[str, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What a method takes, and what its model is like to use, at the paper's ratio and of the first text.

    Attributes:
        tokens: tokens of calibration text.
        peak_bytes: of tensors held at once while the model is made, the whole model's weights included.
        disk_bytes: of the weight files of its checkpoint, at 16 bits.
        reading, writing: tokens a second over the whole model's, timed in turns with it.
    """

    tokens: int
    peak_bytes: int
    disk_bytes: int
    reading: float
    writing: float


@dataclass(frozen=True, eq=False)
class Runs:
    """All runs of one length, gone, and with linear maps in their place.

    Attributes:
        length: number of blocks.
        starts: (R,) first block of each.
        chosen_by: rule -> place in `starts` of the run that it chooses.
        choosing: "removed" and "replaced" -> (R, N) loss of each block of calibration text that no map was fitted to.
        whole: (N,) the whole model's loss of it.
        judged: the same of evaluation text, of the runs that some rule chose; NaN for the others.
    """

    length: int
    starts: np.ndarray
    chosen_by: Mapping[str, int]
    choosing: Mapping[str, np.ndarray]
    whole: np.ndarray
    judged: Mapping[str, np.ndarray]


BY_INFLUENCE, BY_COSINE, BEST_REMOVED, BEST_REPLACED = (
    "least Block Influence", "least cosine distance", "best removed", "best replaced",
)  # fmt: skip
REMOVED, REPLACED = "removed", "replaced"


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that notebook 13 shows.

    Attributes:
        study: the whole model's.
        text: the evaluation text.
        target: share of all weights that go at the paper's ratio.
        dense: (N,) the whole model's loss, and `dense_read` that of the first blocks of the first calibration text.
        dense_tasks: task -> the whole model's result.
        tasks: the tasks.
        at_ratio: method -> what it made of each calibration text at the paper's ratio; tasks of the first alone.
        by_share: method -> share asked for -> what it made of the first calibration text.
        costs: method -> what it costs.
        dense_disk: bytes of the whole model's weight files, at 16 bits.
        healed: method -> (N,) loss after training.
        left_out: method -> why it is left out.
        runs: runs of each length.
        factors: (number of blocks by Block Influence, (N,) loss without factors, with them) at each share.
    """

    study: Study
    text: TokenBlocks
    target: float
    dense: np.ndarray
    dense_read: np.ndarray
    dense_tasks: Mapping[str, Result]
    tasks: Sequence[ChoiceTask]
    at_ratio: Mapping[str, Sequence[Outcome]]
    by_share: Mapping[str, Mapping[float, Outcome]]
    costs: Mapping[str, Cost]
    dense_disk: int
    healed: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    runs: Sequence[Runs]
    factors: Sequence[tuple[int, np.ndarray, np.ndarray]]

    @property
    def draws(self) -> int:
        """S, calibration texts."""
        return max(map(len, self.at_ratio.values()), default=0)

    def cost(self, method: str) -> np.ndarray:
        """(S, N) loss above the whole model's, nats a token, at the paper's ratio."""
        return np.stack([one.nll for one in self.at_ratio[method]]) - self.dense


# ------------------------------------------------------------------------------------------------ measuring


def measure(study: Study) -> Measured:
    """Makes a model by every method at the paper's ratio and at other sizes, and measures all of them.

    Raises:
        NotApplicable: the model has a single block, or its blocks differ in size; no method can be used on it.
        StudyError: the profile names a method that there is none of.
    """
    few_blocks.need_removable(study, "no method has anything to remove")
    budget = study.profile.budget(Budget)
    for method in (*budget.methods, *budget.healed):
        registry.find(method)
    text = first_blocks(study.evaluation, budget.evaluation_blocks or len(study.evaluation.input_ids))
    tasks = _tasks(study, budget)
    texts = study.inputs.calibration_parts(budget.calibration_blocks, budget.draws)
    if len(texts) < budget.draws:
        logger.warning(f"the corpus has calibration text for {counted(len(texts), 'draw')}, not for {budget.draws}")
    read = first_blocks(texts[0], budget.choosing_blocks)
    target = share_removed(study, budget.ratio)
    plans, left_out = _plans(study, budget, target)

    judged = [Perplexity(text), Perplexity(read, name="perplexity/read")]
    dense = study.sweep([study.dense], [*judged, *tasks])
    runs = _runs(study, budget, texts, text)
    factors = _factors(study, (*budget.shares, target), texts[0], text)
    study.unload()

    at_ratio: dict[str, list[Outcome]] = {}
    by_share: dict[str, dict[float, Outcome]] = {}
    costs: dict[str, Cost] = {}
    healed: dict[str, np.ndarray] = {}
    for method, of_shares in plans.items():
        logger.info(title(method))
        try:
            found = _made(study, method, of_shares, texts, judged, tasks, budget)
        except (DoesNotFit, NotApplicable) as error:
            logger.warning(f"left out: {error}")
            left_out[method] = str(error)
            continue
        at_ratio[method], by_share[method], costs[method] = found.at_ratio, found.by_share, found.cost
        if found.healed is not None:
            healed[method] = found.healed
    return Measured(
        study,
        text,
        target,
        result_tables.cost(dense["perplexity"][study.dense]),
        result_tables.cost(dense["perplexity/read"][study.dense]),
        {task.items.name: dense[task.name][study.dense] for task in tasks},
        tasks,
        at_ratio,
        by_share,
        costs,
        quantization.disk_bytes(study, study.dense),
        healed,
        left_out,
        runs,
        factors,
    )


def share_removed(study: Study, ratio: float | None = None) -> float:
    """The share of all weights (0 to 1) that whole blocks of this model come to, nearest to a ratio.

    Args:
        study: the whole model's.
        ratio: 0 to 1; None for the paper's of Llama-2-7B.

    Raises:
        NotApplicable: blocks differ in size.
    """
    printed = paper_tables.table("table1").query("model == 'Llama-2-7B' and method == 'ShortGPT'")["ratio_percent"]
    wanted = float(printed.iloc[0]) / 100 if ratio is None else ratio
    removed = [plan.removed for plan in study.plans(SHORTGPT)[1:]]
    return min(removed, key=lambda share: abs(share - wanted))


def _tasks(study: Study, budget: Budget) -> list[ChoiceTask]:
    names = set(study.task_names)
    further = [study.inputs.task(one) for one in budget.tasks]
    return [*study.tasks, *(task for task in further if task.items.name not in names)]


def _plans(study: Study, budget: Budget, target: float) -> tuple[dict[str, dict[float, Plan]], dict[str, str]]:
    """Method -> share -> plan, the paper's ratio first; and why others have none; raises NotApplicable if all."""
    found: dict[str, dict[float, Plan]] = {}
    left_out: dict[str, str] = {}
    for method in budget.methods or registry.METHODS:
        try:
            every = study.plans(method)
            plans = {target: nearest(every, target, title(method))}
        except StudyError as error:
            left_out[method] = str(error)
            logger.warning(f"{title(method)} is left out: {error}")
            continue
        for share in budget.shares:
            try:
                plan = nearest(every, share, title(method))
            except StudyError:
                continue  # a size that it does not reach is no point of its curve
            if plan.settings != plans[target].settings:
                plans[share] = plan
        if method == SLEB:
            tried = {"shortlist": budget.shortlist}
            plans = {share: replace(plan, settings={**plan.settings, **tried}) for share, plan in plans.items()}
        found[method] = plans
    if not found:
        raise NotApplicable(f"no method can be used: {next(iter(left_out.values()))}")
    return found, left_out


def _text_of(method: str, text: TokenBlocks, budget: Budget) -> TokenBlocks:
    """What of a calibration text a method gets."""
    return first_blocks(text, budget.few_blocks, budget.few_tokens) if method in FEW else text


@dataclass(frozen=True, eq=False)
class _Made:
    """What one method gave; as in `Measured`."""

    at_ratio: list[Outcome]
    by_share: dict[float, Outcome]
    cost: Cost
    healed: np.ndarray | None


def _made(
    study: Study,
    method: str,
    plans: Mapping[float, Plan],
    texts: Sequence[TokenBlocks],
    judged: Sequence[Perplexity],
    tasks: Sequence[ChoiceTask],
    budget: Budget,
) -> _Made:
    """A method's models, one at a time in memory: that of the first text with all that is asked of it, then the others.

    Args:
        plans: share -> plan, the paper's ratio first.
        judged: evaluation text, and the text that is read.
    """
    target, *others = plans
    given = [_text_of(method, text, budget) for text in texts]
    first = study.made(method, plans[target], given[0])
    outcomes = [_outcome(first, first.making_seconds(), judged, tasks)]
    reading, writing = _speed(study, first, judged[0].blocks, budget)
    disk = quantization.disk_bytes(first, first.dense)
    healed = None
    if method in budget.healed:
        try:
            healed = _healed(first, judged[0], budget)
        except (DoesNotFit, NotApplicable) as error:
            logger.warning(f"{title(method)} is not trained: {error}")
    first.unload()
    peak = None
    for text in given[1:]:
        one = study.made(method, plans[target], text)
        if peak is None:  # this one is counted, which takes time, so that it is not timed
            peak, seconds = one.making_bytes(), np.nan
        else:
            seconds = one.making_seconds()
        outcomes.append(_outcome(one, seconds, judged[:1]))
        one.unload()
    of_shares = {target: outcomes[0]}
    for share in others:
        one = study.made(method, plans[share], given[0])
        of_shares[share] = _outcome(one, one.making_seconds(), judged[:1])
        one.unload()
    assert first.making is not None, "a method made it"
    peak = first.making_bytes() if peak is None else peak
    cost = Cost(first.making.text.num_tokens, peak, disk, reading, writing)
    first.unload()
    return _Made(outcomes, of_shares, cost, healed)


def _outcome(made: Study, seconds: float, judged: Sequence[Perplexity], tasks: Sequence[ChoiceTask] = ()) -> Outcome:
    results = made.sweep([made.dense], [*judged, *tasks], progress=bool(tasks))
    losses = [result_tables.cost(results[one.name][made.dense]) for one in judged]
    of_tasks = {task.items.name: results[task.name][made.dense] for task in tasks}
    assert made.making is not None, "a method made it"
    return Outcome(
        made.making.method, made.making.plan, losses[0], losses[1] if losses[1:] else None, seconds, of_tasks
    )


def _speed(study: Study, made: Study, text: TokenBlocks, budget: Budget) -> tuple[float, float]:
    """Tokens a second that a made model reads and writes, over the whole model's."""
    ids = first_blocks(text, budget.speed_texts).input_ids
    settings = {
        "texts": len(ids),
        "tokens": ids.shape[1],
        "written": budget.written,
        "device": study.profile.device,
    }

    def timed() -> Result:
        dense, own = throughput.tokens_a_second([study.stack.model, made.stack.model], ids, budget.written)
        study.unload()
        return Result({"reading": own.reading / dense.reading, "writing": own.writing / dense.writing})

    found = made.cached(
        made.key("tokens_a_second", SPEED_VERSION, settings=settings),
        timed,
        lambda: Result({"reading": 1.0, "writing": 1.0}),
        lambda: [Pass(3 * ids.numel() * (study.num_blocks + made.num_blocks))],
    )
    return found.summary["reading"], found.summary["writing"]


def _healed(made: Study, perplexity: Perplexity, budget: Budget) -> np.ndarray:
    """(N,) loss after training; the model itself is unloaded, once its checkpoint is written."""
    one = made.written().healed([], budget.recipe, budget.training)
    made.unload()
    one.training()
    found = one.sweep([one.dense], [perplexity])[perplexity.name][one.dense]
    one.unload()
    return result_tables.cost(found)


def _runs(study: Study, budget: Budget, texts: Sequence[TokenBlocks], text: TokenBlocks) -> list[Runs]:
    """Every run of a few lengths, removed, and replaced by linear maps that the first calibration text gives.

    Which run is best is chosen on the first blocks of the second text, and judged on evaluation text.
    """
    num = study.num_blocks
    lengths = sorted({min(num - 2, max(1, round(share * num))) for share in budget.run_shares})
    if num < 3 or len(texts) < 2:
        return []
    reader = study.with_calibration(texts[0])
    try:
        maps = reader.run_maps()
        sums = reader.activation_sums()
        scores = reader.scores("block_influence")
        choosing = Perplexity(first_blocks(texts[1], budget.choosing_blocks), name="perplexity/choosing")
        every = [(start, length) for length in lengths for start in range(1, num - length + 1)]
        found = _removed_and_replaced(study, maps, every, choosing)
        whole = result_tables.cost(study.sweep([study.dense], [choosing])[choosing.name][study.dense])
        cosine = replace_me.distances(sums, "cosine")
        chosen: dict[int, dict[str, int]] = {}
        for length in lengths:
            starts = range(1, num - length + 1)
            influence = [scores[start : start + length].sum() for start in starts]
            chosen[length] = {
                BY_INFLUENCE: int(np.argmin(influence)),
                BY_COSINE: int(np.nanargmin(cosine[length - 1, 1 : num - length + 1])),
                **{
                    rule: int(np.argmin([found[kind][start, length].mean() for start in starts]))
                    for rule, kind in ((BEST_REMOVED, REMOVED), (BEST_REPLACED, REPLACED))
                },
            }
        picked = sorted({(1 + place, length) for length, of in chosen.items() for place in of.values()})
        judged = _removed_and_replaced(study, maps, picked, Perplexity(text))
    except NotApplicable as error:
        logger.warning(f"runs with linear maps are left out: {error}")
        return []
    nothing = np.full(len(text.input_ids), np.nan)
    return [
        Runs(
            length,
            np.arange(1, num - length + 1),
            chosen[length],
            {kind: np.stack([of[start, length] for start in range(1, num - length + 1)]) for kind, of in found.items()},
            whole,
            {
                kind: np.stack([of.get((start, length), nothing) for start in range(1, num - length + 1)])
                for kind, of in judged.items()
            },
        )
        for length in lengths
    ]


def _removed_and_replaced(
    study: Study, maps: RunMaps, runs: Sequence[Run], perplexity: Perplexity
) -> dict[str, dict[Run, np.ndarray]]:
    """Loss (N,) of each run, gone, and with its map in its place."""
    variants_of = {
        REMOVED: {run: variants.block_removal(study.num_blocks, *run) for run in runs},
        REPLACED: {run: maps.variant(run) for run in runs},
    }
    every = [variant for of in variants_of.values() for variant in of.values()]
    results = study.sweep(every, [perplexity], changes=maps)[perplexity.name]
    return {
        kind: {run: result_tables.cost(results[variant]) for run, variant in of.items()}
        for kind, of in variants_of.items()
    }


def _factors(
    study: Study, shares: Sequence[float], read: TokenBlocks, text: TokenBlocks
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """What factors give back of what removal by Block Influence costs, at shares of all weights."""
    reader, num = study.with_calibration(read), study.num_blocks
    sizes = np.array([plan.removed for plan in study.plans(SHORTGPT)])
    counts = sorted({int(np.abs(sizes - share).argmin()) for share in shares} - {0})
    order, factors = reader.order("block_influence"), reader.gap_factors()
    plain = {count: variants.without(num, order[:count]) for count in counts}
    compensated = {count: factors.variant(order[:count]) for count in counts}
    perplexity = Perplexity(text)
    try:
        results = study.sweep([*plain.values(), *compensated.values()], [perplexity], changes=factors)[perplexity.name]
    except NotApplicable as error:
        logger.warning(f"factors are left out: {error}")
        return []
    return [
        (count, result_tables.cost(results[plain[count]]), result_tables.cost(results[compensated[count]]))
        for count in counts
    ]


# ------------------------------------------------------------------------------------------------ tables


def quality(found: Measured) -> pd.DataFrame:
    """What each method leaves of the model at the paper's ratio, the best first.

    Returns:
        method (as in `methods.registry`), removed and removed_of_blocks (percent of all weights, and of those of the
        blocks), draws, perplexity, damage (nats a token above the whole model's, mean over draws and text) with its
        95 % interval low, high over draws and blocks of text; least, most (of a draw); read (damage on the text that
        the first draw read), healed, healed_low, healed_high (damage after training; NaN where none was).
    """
    rows = []
    for method, outcomes in found.at_ratio.items():
        cost, one = found.cost(method), outcomes[0]
        low, high = result_tables.over_seeds(cost)
        row = {
            "method": method,
            "removed": 100 * one.plan.removed,
            "removed_of_blocks": 100 * one.plan.removed_of_blocks,
            "draws": len(cost),
            "perplexity": np.exp(found.dense.mean() + cost.mean()),
            "damage": cost.mean(),
            "low": low,
            "high": high,
            "least": cost.mean(1).min(),
            "most": cost.mean(1).max(),
            "read": np.nan if one.read is None else (one.read - found.dense_read).mean(),
        }
        healed = found.healed.get(method)
        row["healed"] = np.nan if healed is None else (healed - found.dense).mean()
        ends = (np.nan, np.nan) if healed is None else stats.mean_interval(healed - found.dense)
        rows.append(row | dict(zip(("healed_low", "healed_high"), ends, strict=True)))
    return pd.DataFrame(rows).sort_values("damage", ignore_index=True) if rows else pd.DataFrame(rows)


def accuracy(found: Measured) -> pd.DataFrame:
    """What each method leaves of each task at the paper's ratio, of the first draw; the whole model first.

    Returns:
        method ("whole model" for that), task, accuracy with its 95 % Wilson interval low, high, n, chance.
    """
    rows = []
    models = {"whole model": found.dense_tasks, **{name: of[0].tasks for name, of in found.at_ratio.items()}}
    for method, tasks in models.items():
        for task, result in tasks.items():
            right = result_tables.right(result)
            low, high = stats.accuracy_interval(round(right.sum()), len(right))
            rows.append((method, task, right.mean(), low, high, len(right), result.summary["chance"]))
    return pd.DataFrame(rows, columns=["method", "task", "accuracy", "low", "high", "n", "chance"])


def by_share(found: Measured) -> pd.DataFrame:
    """What each method costs at several sizes, of the first draw.

    Returns:
        method, asked (percent of all weights), removed, removed_of_blocks (percent), damage (nats a token above the
        whole model's, paired) with its 95 % interval low, high over blocks of text. Each method's first row is its size
        before anything goes, where it is the whole model; negative where the method makes that larger.
    """
    rows = []
    for method, of_shares in found.by_share.items():
        start = found.study.plans(method)[0]
        rows.append((method, 0.0, 100 * start.removed, 100 * start.removed_of_blocks, 0.0, 0.0, 0.0))
        for share, one in sorted(of_shares.items()):
            paired = one.nll - found.dense
            sizes = 100 * one.plan.removed, 100 * one.plan.removed_of_blocks
            rows.append((method, 100 * share, *sizes, paired.mean(), *stats.mean_interval(paired)))
    columns = ["method", "asked", "removed", "removed_of_blocks", "damage", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def costs(found: Measured) -> pd.DataFrame:
    """What each method takes, and what its model is like to use, at the paper's ratio.

    Returns:
        method, tokens (of calibration text), seconds (median over draws but the second), peak_bytes (of the second),
        disk_bytes (16 bits a weight), disk (percent of the whole model's), reading and writing (tokens a second,
        percent of the whole model's).
    """
    rows = []
    for method, one in found.costs.items():
        seconds = float(np.nanmedian([outcome.seconds for outcome in found.at_ratio[method]]))
        disk = 100 * one.disk_bytes / max(1, found.dense_disk)
        speed = 100 * one.reading, 100 * one.writing
        rows.append((method, one.tokens, seconds, one.peak_bytes, one.disk_bytes, disk, *speed))
    columns = ["method", "tokens", "seconds", "peak_bytes", "disk_bytes", "disk", "reading", "writing"]
    return pd.DataFrame(rows, columns=columns)


def runs(found: Measured) -> pd.DataFrame:
    """Every run of each length, removed and with a linear map in its place.

    Returns:
        length, start, kind (REMOVED or REPLACED), chosen_by (rules, with commas between), choosing (nats a token above
        the whole model's, of calibration text that no map was fitted to), damage (of evaluation text; NaN for what no
        rule chose) with its 95 % interval low, high, paired.
    """
    rows = []
    for one in found.runs:
        for kind, losses in one.choosing.items():
            for place, start in enumerate(one.starts):
                rules = [rule for rule, chosen in one.chosen_by.items() if chosen == place]
                paired = one.judged[kind][place] - found.dense
                ends = stats.mean_interval(paired)
                choosing = losses[place].mean() - one.whole.mean()
                rows.append((one.length, start, kind, ", ".join(rules), choosing, paired.mean(), *ends))
    columns = ["length", "start", "kind", "chosen_by", "choosing", "damage", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def chosen_runs(found: Measured) -> pd.DataFrame:
    """What each rule's run costs on evaluation text, removed and replaced.

    Returns:
        length, rule, first and last (blocks of the run), removed and replaced (nats a token above the whole model's),
        regret (replaced, above that of the best run after replacement) with its 95 % interval low, high, paired.
    """
    rows = []
    for one in found.runs:
        best = one.judged[REPLACED][one.chosen_by[BEST_REPLACED]]
        for rule, place in one.chosen_by.items():
            removed, replaced = (one.judged[kind][place] - found.dense for kind in (REMOVED, REPLACED))
            regret, start = one.judged[REPLACED][place] - best, int(one.starts[place])
            damages = removed.mean(), replaced.mean(), regret.mean()
            rows.append((one.length, rule, start, start + one.length - 1, *damages, *stats.mean_interval(regret)))
    columns = ["length", "rule", "first", "last", "removed", "replaced", "regret", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def factors(found: Measured) -> pd.DataFrame:
    """What factors in the gaps give back of what removal by Block Influence costs.

    Returns:
        blocks (removed), removed (percent of all weights), damage (nats a token above the whole model's), compensated
        (the same with factors), difference (compensated - damage) with its 95 % interval low, high, paired.
    """
    sizes = [plan.removed for plan in found.study.plans(SHORTGPT)] if found.factors else []
    rows = []
    for count, plain, compensated in found.factors:
        paired = compensated - plain
        damages = (plain - found.dense).mean(), (compensated - found.dense).mean()
        rows.append((count, 100 * sizes[count], *damages, paired.mean(), *stats.mean_interval(paired)))
    columns = ["blocks", "removed", "damage", "compensated", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def costs_shown(costs: pd.DataFrame) -> pd.DataFrame:
    """`costs` as people read them."""
    gigabytes, megabytes = costs["peak_bytes"] / 1e9, costs["disk_bytes"] / 1e6
    columns = {
        "method": "method", "tokens": "tokens read", "seconds": "seconds", "peak_bytes": "memory (GB)",
        "disk_bytes": "on disk (MB)", "disk": "on disk (% of whole)", "reading": "reading speed (% of whole)",
        "writing": "writing speed (% of whole)",
    }  # fmt: skip
    return titled(costs).assign(peak_bytes=gigabytes, disk_bytes=megabytes).rename(columns=columns)


def chosen_shown(chosen: pd.DataFrame) -> pd.DataFrame:
    """`chosen_runs` as people read them."""
    columns = {"removed": "removed (nats)", "replaced": "with its map (nats)"}
    ends = [f"{row.regret:.2f} ({row.low:.2f} to {row.high:.2f})" for row in chosen.itertuples()]
    kept = chosen.drop(columns=["regret", "low", "high"])
    return kept.rename(columns=columns).assign(**{"regret (nats, 95 %)": ends})


def factors_shown(factors: pd.DataFrame) -> pd.DataFrame:
    """`factors` as people read them."""
    columns = {
        "blocks": "blocks removed", "removed": "of all weights (%)", "damage": "loss (nats)",
        "compensated": "with factors (nats)",
    }  # fmt: skip
    ends = [f"{row.difference:.2f} ({row.low:.2f} to {row.high:.2f})" for row in factors.itertuples()]
    kept = factors.drop(columns=["difference", "low", "high"])
    return kept.rename(columns=columns).assign(**{"difference (95 %)": ends})


def sizes(found: Measured) -> pd.DataFrame:
    """`quality` as people read it: both sizes, and losses with their intervals as text."""
    rows = []
    for row in quality(found).itertuples():
        rows.append(
            {
                "method": title(str(row.method)),
                "of all weights (%)": row.removed,
                "of the blocks' (%)": row.removed_of_blocks,
                "perplexity": row.perplexity,
                "loss (95 %)": f"{row.damage:.2f} ({row.low:.2f} to {row.high:.2f})",
                "by text": f"{row.least:.2f} to {row.most:.2f}",
                "on its text's first blocks": row.read,
                "after training": row.healed,
            }
        )
    return pd.DataFrame(rows)


def choosing_note(study: Study) -> str:
    """The text on which the best run is chosen, for a caption."""
    blocks, length = study.profile.budget(Budget).choosing_blocks, study.profile.text.block_length
    return (
        f"Drawn: loss on {counted(blocks, 'block')} of {length} tokens of the second calibration text; maps are fitted "
        "to the first"
    )


def texts_note(study: Study, found: Measured) -> str:
    """What methods read, for a caption."""
    budget = study.profile.budget(Budget)
    length = study.profile.text.block_length
    few = f"{budget.few_blocks} of {budget.few_tokens or length}"
    again = ", ".join(title(method) for method in FEW if method in found.at_ratio)
    note = (
        f"Calibration: {counted(found.draws, 'text')} of {study.profile.text.corpus}, "
        f"{budget.calibration_blocks} blocks of {length} tokens each"
    )
    return f"{note} ({again} read {few})" if again else note


def title(method: str) -> str:
    """A method's name for people."""
    return registry.find(method).card.title if method in registry.METHODS else method


def titled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with methods' names for people."""
    return table.assign(method=[title(method) for method in table["method"]])


def cards(found: Measured) -> pd.DataFrame:
    """What each method is: method, paper, code, settings, code_differs, changed; and why one is left out."""
    rows = []
    for method in {**found.at_ratio, **found.left_out}:
        card = registry.find(method).card
        left_out = found.left_out.get(method, "")
        rows.append((card.title, card.paper, card.code, card.settings, card.code_differs, card.changed, left_out))
    columns = ["method", "paper", "code", "settings", "code_differs", "changed", "left_out"]
    return pd.DataFrame(rows, columns=columns)


def reported(found: Measured) -> pd.DataFrame:
    """One method, several sources, and what is measured here: perplexities over the whole model's.

    Returns:
        The columns of `paper_tables.sources_of_methods`, and here: times the whole model's perplexity, of this model.
    """
    table = paper_tables.sources_of_methods()
    here = {method: float(np.exp(found.cost(method).mean())) for method in found.at_ratio}
    measured = [here.get(row.method, np.nan) if "perplexity" in row.metric else np.nan for row in table.itertuples()]
    return table.assign(here=measured)


def contradicted(table: pd.DataFrame) -> pd.DataFrame:
    """The perplexities and MMLU accuracies of `reported` that several sources print, as people read them."""
    several = table[(table["sources"] > 1) & (table["metric"] != "zero_shot") & (table["method"] != "dense")]
    columns = {
        "method": "method", "metric": "measured", "sources": "sources", "least": "least", "most": "most",
        "ratio": "most over least, each over its dense", "impossible": "cannot both be", "here": "here, times dense",
    }  # fmt: skip
    return titled(several)[list(columns)].rename(columns=columns).replace({"measured": METRICS})


METRICS = {"wikitext2_perplexity": "WikiText-2 perplexity", "c4_perplexity": "C4 perplexity", "mmlu": "MMLU (%)"}


# ------------------------------------------------------------------------------------------------ statements


def claim(found: Measured) -> pd.DataFrame:
    """What the papers claim of their methods, as statements that can be false."""
    resamples, seed = found.study.profile.bootstrap_resamples, found.study.profile.seed
    methods, parts = list(found.at_ratio), []

    def judge(statements: verdicts.Statements, values: np.ndarray, on: str = "text") -> None:
        parts.append(verdicts.judge(statements, values, resamples, seed, on))

    if methods:
        values = np.stack([found.cost(method) for method in methods], axis=2)
        judge(partial(_on_text, methods), values if len(values) > 1 else values[0])
        for task, right in _solved(found, methods).items():
            judge(partial(_on_task, methods), right, task)
    trained = [method for method in methods if method in found.healed]
    if SHORTGPT in trained and set(trained) & set(WIDTH):
        healed = np.stack([found.healed[method] - found.dense for method in trained], axis=1)
        judge(partial(_after_training, trained), healed)
    for one in found.runs:
        rules = [BY_INFLUENCE, BY_COSINE, BEST_REPLACED]
        losses = [one.judged[REPLACED][one.chosen_by[rule]] - found.dense for rule in rules]
        losses.append(one.judged[REMOVED][one.chosen_by[BY_COSINE]] - found.dense)
        judge(partial(_on_runs, one.length), np.stack(losses, axis=1))
    return verdicts.verdicts(parts, PRIMARY)


def _least(methods: Sequence[str], mean: np.ndarray, among: Sequence[str]) -> float:
    return min((float(mean[methods.index(one)]) for one in among if one in methods), default=np.nan)


def _on_text(methods: Sequence[str], mean: np.ndarray) -> list[Statement]:
    """Statements about (M,) mean damages of text."""
    by = partial(_least, methods, mean)
    removal = by([SHORTGPT])

    def dearer(name: str, other: float, matters: float = MATTERS) -> Statement:
        return Statement(name, other - removal, 0.0, "above", matters)

    return [
        dearer(PRIMARY, by(WIDTH)),
        dearer("removal by Block Influence costs less than LLM-Pruner", by([PRUNER])),
        dearer("removal by Block Influence costs less than the better SliceGPT", by([SLICE, SLICE_TIED])),
        dearer("LaCo as printed costs more than removal by Block Influence", by([LACO]), BROKEN),
        Statement("LaCo as printed costs more than as its code does it", by([LACO]), by([LACO_CODE]), "above", BROKEN),
        Statement("greedy removal costs less than removal by Block Influence", by([SLEB]), removal, "below", MATTERS),
        Statement("compensated removal costs less than removal alone", by([COMPENSATED]), removal, "below", MATTERS),
        Statement("ReplaceMe costs less than removal by Block Influence", by([REPLACE]), removal, "below", MUCH),
    ]


def _solved(found: Measured, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """Task that the whole model solves -> (N, M) whether each item is answered right."""
    rights = {}
    for task, dense in found.dense_tasks.items():
        right = result_tables.right(dense)
        low, _ = stats.accuracy_interval(round(right.sum()), len(right))
        if low > dense.summary["chance"]:
            parts = [result_tables.right(found.at_ratio[method][0].tasks[task]) for method in methods]
            rights[words(task)] = np.stack(parts, axis=1)
    return rights


def _on_task(methods: Sequence[str], mean: np.ndarray) -> list[Statement]:
    """Statements about (M,) accuracies of a task, of the models of one calibration text."""
    by = partial(_least, methods, -mean)
    removal = -by([SHORTGPT])
    others = {"LLM-Pruner": -by([PRUNER]), "SliceGPT": -by([SLICE, SLICE_TIED])}
    return [
        Statement(f"removal by Block Influence keeps more than {name}", removal, other, "above", ACCURACY_MATTERS)
        for name, other in others.items()
    ]


def _after_training(methods: Sequence[str], mean: np.ndarray) -> list[Statement]:
    by = partial(_least, methods, mean)
    name = "after training, removal by Block Influence costs less than the better method that makes the model narrower"
    return [Statement(name, by(WIDTH) - by([SHORTGPT]), 0.0, "above", MATTERS)]


def _on_runs(length: int, mean: np.ndarray) -> list[Statement]:
    """Statements about damages of runs: by Block Influence, by cosine and the best, replaced; by cosine, removed."""
    influence, cosine, best, removed = map(float, mean)
    of = f"runs of {counted(length, 'block')} with linear maps"
    return [
        Statement(f"{of}: Block Influence chooses one as good as the best", influence - best, REGRET, "below", MUCH),
        Statement(f"{of}: that of least cosine distance costs less than its removal", cosine, removed, "below", MUCH),
    ]
