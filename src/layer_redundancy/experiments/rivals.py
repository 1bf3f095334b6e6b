"""Notebook 13: ShortGPT's rivals run live, on the same model, text, tasks and size (ShortGPT table 1, and after).

Sizes are shares of all weights, of which those that are tied count once. The paper's ratio is the 27.1 % that its
table 1 removes of Llama-2-7B; here it is the nearest size that whole blocks reach, and each method comes to within
`method.NEAR` of that, or is left out with a line that says why.

A method reads one of several calibration texts (draws), S of them, and is measured on N blocks of evaluation text.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
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
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.amounts import Pass
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.experiments import capabilities, few_blocks, quantization, result_tables
from layer_redundancy.experiments.capabilities import Capability
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance
from layer_redundancy.methods import registry, replace_me
from layer_redundancy.methods.in_sweeps import RunMaps
from layer_redundancy.methods.method import Plan, nearest
from layer_redundancy.methods.replace_me import Run
from layer_redundancy.models import throughput
from layer_redundancy.study import Study
from layer_redundancy.train import healing

logger = logging.getLogger(__name__)

NOTEBOOK = "13_rivals"
SPEED_VERSION = 1  # raise it when tokens a second are measured in another way

SHORTGPT, SLEB, PRUNER, LACO, LACO_CODE = "shortgpt", "sleb", "llm_pruner", "laco", "laco_code"
SLICE, SLICE_TIED, REPLACE, COMPENSATED = "slice_gpt", "slice_gpt_tied", "replace_me", "magnitude_compensation"
WIDTH = (PRUNER, SLICE, SLICE_TIED)  # those that make a model narrower
FEW = (SLEB, COMPENSATED)  # those that read their text once for every block that goes, or more often

# Nats a token on the mean; perplexities in another than half or twice the other are told apart by anybody.
MATTERS = 0.7
ACCURACY_MATTERS = 0.2
REGRET = 0.25  # nats: what a rule may cost more than the best run that there is
PRIMARY = "text: removal by Block Influence costs less than the better method that makes the model narrower"


@dataclass(frozen=True)
class Budget:
    """What notebook 13 makes and measures.

    Attributes:
        training: how much text the healed ones are trained on.
        recipe: how they are trained.
        methods: names in `methods.registry`; all if empty.
        healed: names of those that are trained after.
        draws: calibration texts; fewer where the corpus has less.
        calibration_blocks: blocks of each text.
        few_blocks: blocks that methods read which read their text again and again.
        few_tokens: first tokens of each of them; None for all.
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
    methods: tuple[str, ...] = ()
    healed: tuple[str, ...] = (SHORTGPT, PRUNER, SLICE)
    draws: Count = 5
    calibration_blocks: Count = 16
    few_blocks: Count = 4
    few_tokens: Annotated[int | None, at_least(2)] = None
    shares: tuple[Share, ...] = (0.1, 0.2)
    evaluation_blocks: Annotated[int | None, at_least(1)] = None
    tasks: tuple[TaskBudget, ...] = ()
    run_shares: tuple[Share, ...] = (0.1, 0.33)
    choosing_blocks: Count = 4
    speed_texts: Count = 4
    written: Count = 16


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method made of one calibration text at one size.

    Attributes:
        method: its name in `methods.registry`.
        plan: the size.
        nll: (N,) mean loss of each block of evaluation text, nats a token.
        read: the same of the text that it read, the first blocks of it; None where that was not measured.
        seconds: what the method took, without loading the model.
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
        judged: the same of evaluation text, of the runs that some rule chose; NaN for the others.
    """

    length: int
    starts: np.ndarray
    chosen_by: Mapping[str, int]
    choosing: Mapping[str, np.ndarray]
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
        dense_healed: (N,) loss of the whole model after the same training.
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
        NotApplicable: the model has a single block, or its blocks differ in size.
        StudyError: the profile names a method that there is none of.
    """
    few_blocks.need_removable(study, "no method has anything to remove")
    budget = study.profile.budget(Budget)
    text = first_blocks(study.evaluation, budget.evaluation_blocks or len(study.evaluation.input_ids))
    tasks = _tasks(study, budget)
    texts = study.inputs.calibration_parts(budget.calibration_blocks, budget.draws)
    if len(texts) < budget.draws:
        logger.warning(f"the corpus has calibration text for {counted(len(texts), 'draw')}, not for {budget.draws}")
    read = first_blocks(texts[0], budget.choosing_blocks)
    target = paper_share(study)
    plans, left_out = _plans(study, budget, target)

    judged = [Perplexity(text), Perplexity(read, name="perplexity/read")]
    dense = study.sweep([study.dense], [*judged, *tasks])
    runs = _runs(study, budget, texts, text)
    factors = _factors(study, budget, texts[0], text)
    study.unload()

    at_ratio: dict[str, list[Outcome]] = {}
    by_share: dict[str, dict[float, Outcome]] = {}
    costs: dict[str, Cost] = {}
    healed: dict[str, np.ndarray] = {}
    for method, of_shares in plans.items():
        logger.info(registry.find(method).card.title)
        try:
            made = [study.made(method, of_shares[target], _text_of(method, one, budget)) for one in texts]
            outcomes = [_outcome(one, judged if not i else judged[:1], tasks if not i else []) for i, one in enumerate(made)]
            others = {
                share: _outcome(study.made(method, plan, _text_of(method, texts[0], budget)), judged[:1], [])
                for share, plan in of_shares.items()
                if share != target
            }
            costs[method] = _cost(study, made[0], text, budget)
            if method in budget.healed:
                healed[method] = _healed(made[0], judged[0], budget)
        except (DoesNotFit, NotApplicable) as error:
            logger.warning(f"left out: {error}")
            left_out[method] = str(error)
            continue
        at_ratio[method], by_share[method] = outcomes, {target: outcomes[0], **others}
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


def paper_share(study: Study) -> float:
    """The share of all weights (0 to 1) nearest to the paper's of Llama-2-7B that whole blocks of this model come to.

    Raises:
        NotApplicable: blocks differ in size.
    """
    printed = paper_tables.table("table1").query("model == 'Llama-2-7B' and method == 'ShortGPT'")["ratio_percent"]
    wanted = float(printed.iloc[0]) / 100
    removed = [plan.removed for plan in study.plans(SHORTGPT)[1:]]
    return min(removed, key=lambda share: abs(share - wanted))


def _tasks(study: Study, budget: Budget) -> list[ChoiceTask]:
    names = set(study.task_names)
    further = [study.inputs.task(one) for one in budget.tasks]
    return [*study.tasks, *(task for task in further if task.items.name not in names)]


def _plans(
    study: Study, budget: Budget, target: float
) -> tuple[dict[str, dict[float, Plan]], dict[str, str]]:
    """Method -> share -> plan, the paper's ratio first; and why others have none."""
    found: dict[str, dict[float, Plan]] = {}
    left_out: dict[str, str] = {}
    for method in budget.methods or registry.METHODS:
        title = registry.find(method).card.title
        try:
            every = study.plans(method)
            plans = {target: nearest(every, target, title)}
        except StudyError as error:
            left_out[method] = str(error)
            logger.warning(f"{title} is left out: {error}")
            continue
        for share in budget.shares:
            try:
                plan = nearest(every, share, title)
            except StudyError:
                continue  # a size that it does not reach is no point of its curve
            if plan.settings != plans[target].settings:
                plans[share] = plan
        if method == SLEB:
            tried = {"shortlist": study.profile.greedy_shortlist}
            plans = {share: replace(plan, settings={**plan.settings, **tried}) for share, plan in plans.items()}
        found[method] = plans
    return found, left_out


def _text_of(method: str, text: TokenBlocks, budget: Budget) -> TokenBlocks:
    """What of a calibration text a method gets."""
    return first_blocks(text, budget.few_blocks, budget.few_tokens) if method in FEW else text


def _outcome(made: Study, judged: Sequence[Perplexity], tasks: Sequence[ChoiceTask]) -> Outcome:
    seconds = made.making_seconds()
    results = made.sweep([made.dense], [*judged, *tasks], progress=bool(tasks))
    losses = [result_tables.cost(results[one.name][made.dense]) for one in judged]
    of_tasks = {task.items.name: results[task.name][made.dense] for task in tasks}
    made.unload()
    making = made.making
    assert making is not None, "a method made it"
    return Outcome(making.method, making.plan, losses[0], losses[1] if losses[1:] else None, seconds, of_tasks)


def _cost(study: Study, made: Study, text: TokenBlocks, budget: Budget) -> Cost:
    assert made.making is not None, "a method made it"
    ids = first_blocks(text, budget.speed_texts).input_ids
    settings = {"texts": len(ids), "tokens": ids.shape[1], "written": budget.written}

    def timed() -> Result:
        rates = throughput.tokens_a_second([study.stack.model, made.stack.model], ids, budget.written)
        dense, own = rates
        return Result({"reading": own.reading / dense.reading, "writing": own.writing / dense.writing})

    read = ids.numel() * (study.num_blocks + made.num_blocks)
    speed = made.cached(
        made.key("tokens_a_second", SPEED_VERSION, settings=settings),
        timed,
        lambda: Result({"reading": 1.0, "writing": 1.0}),
        lambda: [Pass(4 * 3 * read)],
    )
    disk = quantization.disk_bytes(made, made.dense)
    made.unload()
    study.unload()
    peak = made.making_bytes()
    return Cost(made.making.text.num_tokens, peak, disk, speed.summary["reading"], speed.summary["writing"])


def _healed(made: Study, perplexity: Perplexity, budget: Budget) -> np.ndarray:
    """(N,) loss after training."""
    one = made.written().healed([], budget.recipe, budget.training)
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
        cosine = replace_me.distances(sums, "cosine")
        chosen: dict[int, dict[str, int]] = {}
        for length in lengths:
            starts = np.arange(1, num - length + 1)
            influence = np.array([scores[start : start + length].sum() for start in starts])
            chosen[length] = {
                BY_INFLUENCE: int(influence.argmin()),
                BY_COSINE: int(np.nanargmin(cosine[length - 1, starts])),
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
    study: Study, budget: Budget, read: TokenBlocks, text: TokenBlocks
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """What factors give back of what removal by Block Influence costs, at every share."""
    reader, num = study.with_calibration(read), study.num_blocks
    shares = np.array([plan.removed for plan in study.plans(SHORTGPT)])
    wanted = {int(np.abs(shares - share).argmin()) for share in (*budget.shares, paper_share(study))}
    counts = sorted(count for count in wanted if count)
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
