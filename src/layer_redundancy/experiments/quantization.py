"""Notebook 07, fewer blocks and fewer bits, apart and together (ShortGPT table 2): is one orthogonal to the other?

Damage is an increase of the mean NLL a token, in nats, over the dense full-precision model's on the same text: what
pruning multiplies the perplexity by, and what quantization does, would multiply where the two are orthogonal. The
interaction is what pruning and quantization together cost beyond the sum of what each costs alone. It is judged against
the smaller of the two damages: whoever adds them up is wrong by the interaction, which may be small beside a large
damage and yet several times the small one.

GPTQ makes another model of every calibration text, so that what is said of it must hold for others: it is made from
several texts (draws), S of them, and these are resampled together with the N blocks of evaluation text.
"""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Bits, ModelOrNone, at_least
from layer_redundancy.core import cache, stats, variants, verdicts
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import checkpoints, quantize, surgery
from layer_redundancy.models.quantize import Scheme, WeightBytes
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

FULL = "full precision"
MEASURE = "block_influence"

# Of the smaller damage. What counts as the same in trials of equivalence is 0.8 to 1.25 of the other; so a pruned model
# that loses a quarter more by quantization than the whole one still counts as losing the same.
ADDITIVE = 0.25
TWICE = 1.0  # of the smaller damage: who adds the two up has forgotten it altogether
FREE = 0.01  # nats: a hundredth of the perplexity
SHARES = (0.1, 0.25)  # of the blocks, removed at every precision; without half of them no small model is of any use
MATTERS = 0.5  # nats by which a mix of blocks and bits must be better than another of its size to be worth a choice
ADDING = 4  # bits at which damages may add up; models of 3 differ too much from text to text for a quarter to be seen
# Detectable at the embedded budget, five of GPTQ's texts and 32 blocks of evaluation text: 0.23 of the smaller damage.
PRIMARY = (
    f"the paper's share of blocks removed, GPTQ at {ADDING} bits: "
    "the damages add up, within a quarter of the smaller one"
)
COSTS_MORE = "the paper's share of blocks removed, GPTQ at {} bits: both together cost more than the sum"

NOTEBOOK = "07_quantization"
EXPORT_VERSION = 1  # raise it when a variant is exported in another way


@dataclass(frozen=True)
class Budget:
    """What notebook 07 quantizes and measures.

    Attributes:
        bits: numbers of bits a weight that GPTQ leaves, each measured at several depths of removal.
        drawn: numbers of bits, of `bits`, at which GPTQ is made from several calibration texts.
        draws: number of these texts; fewer where the corpus has less text.
        rounded: numbers of bits to which weights are also rounded, for comparison.
        pruned_first: numbers of bits, of `bits`, to which the model is also quantized after blocks were removed.
        scored: numbers of bits, of `bits`, at which the profile's tasks are scored too, beside full precision.
        evaluation_blocks: number of first blocks of the evaluation text; None for all.
        max_blocks: blocks that are kept of a deeper model, evenly spaced, for a quick look; None for all.
        ready: a checkpoint that somebody else quantized, measured beside ours; "" for none.
    """

    bits: tuple[Bits, ...] = (8, 4, 3)
    drawn: tuple[Bits, ...] = (4, 3)
    draws: Annotated[int, at_least(1)] = 5
    rounded: tuple[Bits, ...] = (8, 4, 3)
    pruned_first: tuple[Bits, ...] = (4, 3)
    scored: tuple[Bits, ...] = (8, 4, 3)
    evaluation_blocks: Annotated[int | None, at_least(1)] = None
    max_blocks: Annotated[int | None, at_least(1)] = None
    ready: ModelOrNone = ""


@dataclass(frozen=True)
class Precision:
    """One model at one precision of its weights, and what was measured of it.

    Attributes:
        name: the precision's name in figures.
        nll: variant -> mean NLL a token in nats, (S, N): S draws of GPTQ's text (1 where nothing is drawn), N blocks of
            evaluation text.
        weights: bytes that its weights occupy.
        disk: variant in the table -> bytes of the weight files of its exported checkpoint.
        tasks: task -> variant in the table -> result, of the first draw; empty where they are not scored.
        sums: activation sums of one calibration text by each draw's model, for Block Influence.
        first: (S, N) mean NLL of the models that were quantized after the table's blocks were removed; None where that
            was not measured.
        first_bytes: bytes of such a model's weights, in memory and on disk.
        bits: bits a weight that GPTQ left, 16 at full precision; None for what is measured at the table's depths only.
    """

    name: str
    nll: Mapping[Variant, np.ndarray]
    weights: WeightBytes
    disk: Mapping[Variant, int]
    tasks: Mapping[str, Mapping[Variant, Result]] = field(default_factory=dict)
    sums: tuple[ActivationSums, ...] = ()
    first: np.ndarray | None = None
    first_bytes: tuple[int, int] = (0, 0)
    bits: int | None = None


def removed_in_table(num_blocks: int) -> int:
    """Blocks removed for the table: the paper's share, and at least one."""
    return depth_curves.at_ratio(num_blocks, paper_tables.share_removed())


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that notebook 07 shows.

    Attributes:
        study: the study of the full-precision model, with the blocks that the budget leaves it.
        text: the evaluation text.
        draws: number of calibration texts from which GPTQ was made.
        removals: number of removed blocks -> variant, in the order of the full-precision model's Block Influence, the
            same for all precisions: those of `SHARES` and of the table for all, those of `steps` for the one concerned.
        steps: (more bits, fewer bits, count) for each two neighbouring numbers of bits: without so many blocks, the
            model of more bits is no larger than the whole model of fewer.
        precisions: full, GPTQ by bits, then, at the table's two depths only, the ready checkpoint, and rounding to
            nearest, of which perplexity alone is measured.
    """

    study: Study
    text: TokenBlocks
    draws: int
    removals: dict[int, Variant]
    steps: list[tuple[int, int, int]]
    precisions: list[Precision]

    @property
    def k(self) -> int:
        """Number of blocks removed for the table."""
        return removed_in_table(self.study.num_blocks)


def measure(study: Study, ready: str = "") -> Measured:
    """Measures a few depths of removal at full precision and at each number of bits.

    Args:
        study: the study of the full-precision model.
        ready: a checkpoint that somebody else quantized; "" for the profile's, if the model is its own.

    Raises:
        NotApplicable: the model is quantized already, or cannot be.
    """
    budget = study.profile.budget(Budget)
    own_ready = budget.ready if study.profile.is_own_model else ""
    study = reduced(study, budget)
    num = study.num_blocks
    few_blocks.say_if_single(study)
    if num > 1 and not few_blocks.can_be_ranked(num):
        logger.info(few_blocks.no_ranks(num))
    # What is wrong with it shows before hours are spent.
    other = _opened_ready(study, ready or own_ready, must_be_there=bool(ready)) if ready or own_ready else None
    texts = study.quantization_texts(budget.draws)
    if budget.drawn and len(texts) < budget.draws:
        logger.warning(
            f"the corpus has calibration text for {counted(len(texts), 'draw')} of GPTQ's, not for {budget.draws}: "
            "lower quantization_blocks for more"
        )
    order, k = study.order(MEASURE), removed_in_table(num)
    common = {0, k, *(depth_curves.at_ratio(num, share) for share in SHARES)}
    sizes = {bits: study.quantized(Scheme(bits)).weight_bytes() for bits in budget.bits}
    steps = _steps({16: study.weight_bytes(), **sizes}, order)
    counts = sorted(common | {count for _, _, count in steps})
    removals: dict[int, Variant] = {count: variants.without(num, order[:count]) for count in counts}
    few: list[Variant] = [removals[count] for count in dict.fromkeys((0, k))]
    text = first_blocks(study.evaluation, budget.evaluation_blocks or len(study.evaluation.input_ids))
    measurement = Perplexity(text)

    def at_the_tables_depths(of: Study, scored: bool) -> dict[str, Any]:
        """Sizes, and tasks if they are scored, of a model in the table."""
        # A model that cannot be exported without its blocks is refused by it.
        disk = {variant: disk_bytes(of, variant) for variant in few}
        tasks = of.sweep(few, of.tasks) if scored and of.tasks else {}
        return {"weights": of.weight_bytes(), "disk": disk, "tasks": tasks}

    def at_all_depths(name: str, bits: int, draws: Sequence[Study], scored: bool, **more: Any) -> Precision:
        """A precision at all its depths, with Block Influence."""
        mine = common | {count for more_bits, _, count in steps if more_bits == bits}
        every = [removals[count] for count in sorted(mine)]
        sums, nll = [], []
        for one in draws:
            sums.append(one.activation_sums())
            nll.append(_nll(one, every, measurement))
            if one is draws[0]:
                more |= at_the_tables_depths(one, scored)
            one.unload()  # one model at a time is held
        stacked = {variant: np.stack([of[variant] for of in nll]) for variant in every}
        return Precision(name, stacked, sums=tuple(sums), bits=bits, **more)

    def at_few_depths(name: str, one: Study, scored: bool) -> Precision:
        nll = {variant: values[None] for variant, values in _nll(one, few, measurement).items()}
        found = Precision(name, nll, **at_the_tables_depths(one, scored))
        one.unload()
        return found

    found = [at_all_depths(FULL, 16, [study], scored=True)]
    for bits in budget.bits:
        logger.info(f"GPTQ, {bits} bits")
        scheme, drawn, scored = Scheme(bits), texts if bits in budget.drawn else texts[:1], bits in budget.scored
        first = _removed_first(study, scheme, order[:k], drawn, measurement) if bits in budget.pruned_first else {}
        draws = [study.quantized(scheme, text=one) for one in drawn]
        found.append(at_all_depths(f"GPTQ, {bits} bits", bits, draws, scored, **first))
    if other is not None:
        found.append(at_few_depths(ready or own_ready, other, scored=True))
    for bits in budget.rounded:
        found.append(at_few_depths(f"rounded, {bits} bits", study.quantized(Scheme(bits, "rtn")), scored=False))
    return Measured(study, text, len(texts) if budget.drawn else 1, removals, steps, found)


def _removed_first(
    study: Study,
    scheme: Scheme,
    removed: np.ndarray,
    texts: Sequence[TokenBlocks],
    measurement: Perplexity,
) -> dict[str, Any]:
    """What `Precision` has of models that are quantized after blocks were removed, one a calibration text."""
    if not len(removed):
        return {}
    nll: list[np.ndarray] = []
    found: dict[str, Any] = {}
    for text in texts:
        one = study.quantized(scheme, removed.tolist(), text)
        nll.append(_nll(one, [one.dense], measurement)[one.dense])
        if text is texts[0]:
            found["first_bytes"] = one.weight_bytes().of(one.dense), disk_bytes(one, one.dense)
        one.unload()
    return found | {"first": np.stack(nll)}


def _nll(study: Study, chosen: Sequence[Variant], measurement: Perplexity) -> dict[Variant, np.ndarray]:
    """Mean NLL a token of N blocks of text for some variants, each (N,), nats."""
    results = study.sweep(chosen, [measurement], progress=len(chosen) > 2)[measurement.name]
    return {variant: result_tables.cost(result) for variant, result in results.items()}


def _steps(weights: Mapping[int, WeightBytes], order: np.ndarray) -> list[tuple[int, int, int]]:
    """How many blocks a model must lose to be no larger than the whole model at the next lower number of bits.

    Args:
        weights: bits a weight -> bytes of its weights.
        order: the blocks, first removed first, (L,).

    Returns:
        (more bits, fewer bits, blocks to remove at more bits) for each two neighbours; without those where no number of
        blocks weighs as much.
    """
    num, steps = len(order), []
    ranked = sorted(weights, reverse=True)
    for more, fewer in itertools.pairwise(ranked):
        target = weights[fewer].of(range(num))
        fits = (n for n in range(1, num) if weights[more].of(variants.without(num, order[:n])) <= target)
        if (count := next(fits, None)) is not None:
            steps.append((more, fewer, count))
    return steps


def reduced(study: Study, budget: Budget) -> Study:
    """The study with as many blocks as the budget affords.

    Raises:
        NotApplicable: the model is quantized already, or cannot be.
    """
    quantize.check(study.identity)
    if budget.max_blocks is not None and budget.max_blocks < study.num_blocks:
        kept = np.linspace(0, study.num_blocks - 1, budget.max_blocks).round().astype(int)
        study = study.pruned([block for block in range(study.num_blocks) if block not in kept])
    return study


def _opened_ready(study: Study, ready: str, must_be_there: bool) -> Study | None:
    """The ready checkpoint with the same texts and tasks.

    Args:
        study: the study of the full-precision model.
        ready: the checkpoint.
        must_be_there: whether the user asked for it; else it is left out with a message where it cannot be had.

    Returns:
        Its study; None where it is left out.

    Raises:
        StudyError: it cannot be had, and the user asked for it.
    """
    try:
        other = study.of_model(ready)
        checkpoints.check_library(other.identity)
        if other.num_blocks != study.num_blocks:
            raise StudyError(f"it has {other.num_blocks} blocks, {study.identity.name} has {study.num_blocks}")
    except StudyError as error:
        if must_be_there:
            raise StudyError(f"ready={ready}: {error}") from error
        logger.warning(f"{ready} left out: {error}")
        return None
    return other


def disk_bytes(study: Study, variant: Variant) -> int:
    """Bytes of the weight files of a variant's checkpoint: at 16 bits, or packed if the model is quantized.

    It is found out by exporting it, which checks that the checkpoint gives equal logits when it is loaded again; of
    a whole quantized model, that is what it was loaded from. Ready GPTQ checkpoints cannot be exported: the bytes
    of their tensors are given.
    """
    method = study.quantization_method()
    if method and variant == study.dense:
        return quantize.disk_bytes(checkpoints.local_folder(study.identity))
    if method not in (None, "compressed-tensors"):
        return study.weight_bytes().of(variant)

    def compute() -> Result:
        model = study.stack.model
        if model.dtype == torch.float32 and not method:
            model = copy.deepcopy(model)
            for parameter in model.parameters():  # not buffers, such as rotary frequencies
                parameter.data = parameter.data.bfloat16()  # float16 overflows where models outgrow it
        with cache.scratch_folder("export") as scratch:
            removed = variants.removed_blocks(study.num_blocks, variant)
            return Result({"bytes": quantize.disk_bytes(surgery.export(model, None, removed, scratch / "model"))})

    key = study.key("disk_bytes", EXPORT_VERSION, variant)
    return int(study.cached(key, compute, lambda: Result({"bytes": 0})).summary["bytes"])


# ------------------------------------------------------------------------------------------------ tables


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (S, N) values of S draws on N blocks of text; of the blocks alone if S is 1."""
    return stats.mean_interval(values[0]) if len(values) == 1 else stats.crossed_interval(values)


def table(precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int) -> pd.DataFrame:
    """Table 2: the paper's rows, and each precision without and with removal.

    Args:
        precisions: the precisions, from `measure`.
        removals: number of removed blocks -> variant.
        k: number of removed blocks.

    Returns:
        source, weights, setting ("dense", "ShortGPT": removed after quantization, "removed first": before it), blocks,
        draws (of GPTQ's text), perplexity with its 95 % interval, MMLU as the paper prints it, each task's accuracy in
        percent with its interval, as text, on disk and in memory (MB, 10^6 bytes of weights).
    """
    rows = [
        {
            "source": "paper",
            "weights": row.model,
            "setting": {"Baseline": "dense"}.get(row.setting, row.setting),
            "blocks": row.layers,
            "draws": np.nan,
            "perplexity": row.perplexity,
            "95 %": None,
            "MMLU": row.mmlu,
        }
        for row in paper_tables.table("table2").itertuples()
    ]
    for precision, setting, blocks, nll, tasks, in_memory, on_disk in _rows(precisions, removals, k):
        row = {
            "source": "measured",
            "weights": precision.name,
            "setting": setting,
            "blocks": blocks,
            "draws": len(nll),
            "perplexity": np.exp(nll.mean()),
            "95 %": "{:.2f} to {:.2f}".format(*np.exp(_mean_interval(nll))),
        }
        for name, result in tasks.items():
            values = result_tables.right(result)
            low, high = stats.accuracy_interval(round(values.sum()), len(values))
            task = f"{name.removeprefix('task/')} (n={len(values)})"
            row[task] = f"{100 * values.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append(row | {"on disk (MB)": on_disk / 1e6, "in memory (MB)": in_memory / 1e6})
    sizes = ["on disk (MB)", "in memory (MB)"]
    found = pd.DataFrame(rows)
    return found[[*(column for column in found if column not in sizes), *sizes]]


def _rows(
    precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int
) -> Iterator[tuple[Precision, str, int, np.ndarray, dict[str, Result], int, int]]:
    for precision in precisions:
        for setting, variant in (("dense", removals[0]), *([("ShortGPT", removals[k])] if k else [])):
            tasks = {name: of[variant] for name, of in precision.tasks.items()}
            sizes = precision.weights.of(variant), precision.disk[variant]
            yield precision, setting, len(variant), precision.nll[variant], tasks, *sizes
        if precision.first is not None:
            yield precision, "removed first", len(removals[k]), precision.first, {}, *precision.first_bytes


def points(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> pd.DataFrame:
    """Every depth of removal of every precision that was measured at all of them, by the bytes of its weights.

    Returns:
        weights, count (blocks removed), draws, megabytes, perplexity with its 95 % interval low, high, and front
        (whether no other point is both smaller and better).
    """
    rows = []
    for precision in _at_all_depths(precisions):
        for count, variant in removals.items():
            if variant not in precision.nll:
                continue
            nll = precision.nll[variant]
            low, high = np.exp(_mean_interval(nll))
            size = precision.weights.of(variant) / 1e6
            rows.append((precision.name, count, len(nll), size, np.exp(nll.mean()), low, high))
    columns = ["weights", "count", "draws", "megabytes", "perplexity", "low", "high"]
    found = pd.DataFrame(rows, columns=columns)
    best = found.sort_values(["megabytes", "perplexity"])["perplexity"].cummin()
    return found.assign(front=found["perplexity"] <= best.reindex(found.index))


def _at_all_depths(precisions: Sequence[Precision]) -> list[Precision]:
    return [one for one in precisions if one.bits is not None]


def _paired(full: Precision, other: Precision, variant: Variant, dense: Variant) -> np.ndarray:
    """(S, N, 4) mean NLL: dense and pruned at full precision (equal in all draws), then at the other one."""
    whole = [np.broadcast_to(full.nll[one], other.nll[one].shape) for one in (dense, variant)]
    return np.stack([*whole, other.nll[dense], other.nll[variant]], axis=-1)


def _damages(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 4) values of `_paired` -> damage by pruning alone, by quantization alone, and the interaction."""
    dense, pruned, quantized, both = np.moveaxis(values, -1, 0)
    return pruned - dense, quantized - dense, both - pruned - quantized + dense


def of_smaller(values: np.ndarray) -> float:
    """The interaction as a share of the smaller damage, of four means as `_paired` has them; NaN where one is none."""
    pruning, quantization, extra = _damages(values)
    smaller = min(pruning, quantization)
    return float(extra / smaller) if smaller > 0 else np.nan


def interaction(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> pd.DataFrame:
    """What pruning and quantization cost together, against the sum of what each costs alone.

    Returns:
        weights, draws, count (blocks removed), share (percent), pruning, quantization, sum, both (nats a token),
        interaction (both minus sum) with its 95 % interval low, high (draws and blocks of text, paired), least and most
        of the draws, and relative (of the smaller of the two damages). No row where nothing can be removed.
    """
    full, *others = _at_all_depths(precisions)
    rows = []
    for precision in others:
        for count, variant in removals.items():
            if not count or not {variant} <= full.nll.keys() & precision.nll.keys():
                continue
            values = _paired(full, precision, variant, removals[0])
            pruning, quantization, extra = _damages(values)
            low, high = _mean_interval(extra)
            total = pruning.mean() + quantization.mean()
            rows.append(
                {
                    "weights": precision.name,
                    "draws": len(values),
                    "count": count,
                    "share": 100 * count / len(removals[0]),
                    "pruning": pruning.mean(),
                    "quantization": quantization.mean(),
                    "sum": total,
                    "both": total + extra.mean(),
                    "interaction": extra.mean(),
                    "low": low,
                    "high": high,
                    "least": extra.mean(1).min(),
                    "most": extra.mean(1).max(),
                    "relative": of_smaller(values.mean((0, 1))),
                }
            )
    return pd.DataFrame(rows)


def draws_of_gptq(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> pd.DataFrame:
    """Each model that GPTQ made, where it made several of one number of bits.

    Returns:
        weights, draw (from 1), count (blocks removed), pruning, quantization, interaction (nats a token, mean over the
        blocks of text).
    """
    full, *others = _at_all_depths(precisions)
    rows = []
    for precision in others:
        for count, variant in removals.items():
            if not count or not {variant} <= full.nll.keys() & precision.nll.keys() or len(precision.nll[variant]) < 2:
                continue
            parts = _damages(_paired(full, precision, variant, removals[0]).mean(1))
            rows += [(precision.name, 1 + i, count, *one) for i, one in enumerate(zip(*parts, strict=True))]
    return pd.DataFrame(rows, columns=["weights", "draw", "count", "pruning", "quantization", "interaction"])


def order_of_steps(precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int) -> pd.DataFrame:
    """Does it matter whether one prunes or quantizes first?

    Returns:
        weights, blocks, draws, perplexity of quantizing first and of removing first, and the difference of their mean
        NLL (removing first minus quantizing first, nats a token) with its 95 % interval (draws and blocks of text,
        paired), and least and most of the draws.
    """
    rows = []
    for precision in precisions:
        if precision.first is None:
            continue
        change = precision.first - precision.nll[removals[k]]
        low, high = _mean_interval(change)
        rows.append(
            {
                "weights": precision.name,
                "blocks": len(removals[k]),
                "draws": len(change),
                "perplexity, quantized first": np.exp(precision.nll[removals[k]].mean()),
                "perplexity, removed first": np.exp(precision.first.mean()),
                "difference (nats)": change.mean(),
                "low": low,
                "high": high,
                "least": change.mean(1).min(),
                "most": change.mean(1).max(),
            }
        )
    return pd.DataFrame(rows)


def influence(precisions: Sequence[Precision]) -> pd.DataFrame:
    """Block Influence at each precision: weights, block, score (mean over the draws), low, high (their range)."""
    parts = []
    for precision, every in _with_sums(precisions):
        score = np.stack([importance.scores(sums, MEASURE) for sums in every])
        columns = {"score": score.mean(0), "low": score.min(0), "high": score.max(0)}
        parts.append(pd.DataFrame({"weights": precision.name, "block": np.arange(score.shape[1]), **columns}))
    return pd.concat(parts, ignore_index=True)


def _with_sums(precisions: Sequence[Precision]) -> list[tuple[Precision, list[ActivationSums]]]:
    """The precisions whose Block Influence was measured, with the sums of the text that all of them have in common."""
    found = [p for p in precisions if p.sums]
    common = min(len(sums.tokens) for p in found for sums in p.sums)
    return [(p, [sums.first(common) for sums in p.sums]) for p in found]


def order_after(
    precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int, resamples: int, seed: int
) -> pd.DataFrame:
    """Block Influence's order at full precision and after quantization, both by the calibration text that all have.

    Returns:
        weights, draws (of GPTQ's text), sequences (of calibration text), tau (Kendall's, with the full-precision order,
        mean over the draws; 1: the same) with low, high (percentiles, as of places in an order: draws and calibration
        text resampled, the same text for both orders), "among the first k of every draw" (blocks, as text) and "draws
        with the same blocks" (whose first k are those of full precision). Without tau for fewer blocks than
        `few_blocks.RANKED`, and without a row where nothing can be removed.
    """
    if not k:
        return pd.DataFrame()
    (_, (whole,)), *others = _with_sums(precisions)
    order, again = _orders(whole, resamples, seed)
    rows = []
    for precision, every in others:
        orders, resampled = zip(*(_orders(sums, resamples, seed) for sums in every), strict=True)
        taus = [_tau(order, mine) for mine in orders]
        drawn = np.array([[_tau(a, b) for a, b in zip(again, of, strict=True)] for of in resampled])
        picked = stats.unit_rows(len(every), resamples, seed + 1)  # draws, which vary apart from the text
        means = np.take_along_axis(drawn.T, picked, axis=1).mean(1)
        low, high = np.percentile(means, stats.INTERVAL, method="nearest")
        first = [set(mine[:k].tolist()) for mine in orders]
        always = set.intersection(*first)
        rows.append(
            {
                "weights": precision.name,
                "draws": len(every),
                "sequences": len(whole.tokens),
                "tau": np.mean(taus),
                "low": low,
                "high": high,
                f"among the first {k} of every draw": ", ".join(str(b) for b in orders[0][:k] if int(b) in always),
                "draws with the same blocks": sum(one == set(order[:k].tolist()) for one in first),
            }
        )
    table = pd.DataFrame(rows)
    ranked = few_blocks.can_be_ranked(len(removals[0]))
    return table if ranked else table.drop(columns=["tau", "low", "high"], errors="ignore")


def _orders(sums: ActivationSums, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of removal (L,), and those of the resamples of the text (R, L)."""
    scores, again = importance.scores(sums, MEASURE), importance.bootstrap_scores(sums, MEASURE, resamples, seed)
    return importance.removal_order(scores, MEASURE), importance.removal_order(again, MEASURE)


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.kendall_taus(importance.ranks(a), importance.ranks(b)[None])[0])


def reported(precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int) -> pd.DataFrame:
    """What removal costs in accuracy before and after quantization: the paper's two tables, and measured.

    Returns:
        source, weights, task, n, loss at full precision and loss when quantized (points of accuracy in percent), and
        their difference, the interaction (negative: removal costs the quantized model less), with the 95 % t interval
        over items, low, high. The paper's are from tables 1 and 2, which print no intervals and may differ in more than
        the weights. No row where nothing can be removed.
    """
    if not k:
        return pd.DataFrame()
    one, two = paper_tables.table("table1"), paper_tables.table("table2").set_index("setting")
    of_model = one[one["model"] == "Llama-2-7B"].set_index("method")["MMLU"]
    losses = of_model["Dense"] - of_model["ShortGPT"], two["mmlu"]["Baseline"] - two["mmlu"]["ShortGPT"]
    rows = [
        ("paper, tables 1 and 2", two["model"].iloc[0], "MMLU", np.nan, *losses, losses[1] - losses[0], *[np.nan] * 2)
    ]
    full, *others = precisions

    def loss(of: Mapping[Variant, Result]) -> np.ndarray:
        return result_tables.cost(of[removals[k]]) - result_tables.cost(of[removals[0]])

    for name in full.tasks:
        before = loss(full.tasks[name])
        for precision in others:
            if name not in precision.tasks:
                continue
            after = loss(precision.tasks[name])
            low, high = stats.paired_interval(after - before)
            found = [100 * one for one in (before.mean(), after.mean(), (after - before).mean(), low, high)]
            rows.append(("measured", precision.name, name.removeprefix("task/"), len(after), *found))
    columns = ["source", "weights", "task", "n", "loss, full precision", "loss, quantized", "interaction"]
    return pd.DataFrame(rows, columns=[*columns, "low", "high"])


# ------------------------------------------------------------------------------------------------ statements


def claim(
    precisions: Sequence[Precision],
    removals: Mapping[int, Variant],
    k: int,
    steps: Sequence[tuple[int, int, int]],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """ShortGPT 4.5: pruning is "orthogonal to quantization methods", made into statements that can be false.

    Args:
        precisions: the precisions, from `measure`.
        removals: number of removed blocks -> variant.
        k: number of removed blocks in the table.
        steps: as `Measured.steps`.
        resamples: bootstrap resamples of the draws, and of the blocks of text.
        seed: seed of the resampling.

    Returns:
        The table of `verdicts.verdicts`: whether the damages add up at ADDING bits, or cost more together, whether 8
        bits are free, whether the order of the two steps matters, and whether fewer bits cost less than fewer blocks of
        the same size.
        Of a model of one block, what needs no removal.
    """
    full, *others = _at_all_depths(precisions)
    dense, pruned, parts = removals[0], removals[k], []

    def judge(columns: Sequence[np.ndarray], statement: Callable[[np.ndarray], Statement]) -> None:
        """Judges a statement about the means of (S, N) values, or (1, N) where nothing was drawn."""
        draws = max(map(len, columns))
        values = np.stack([np.broadcast_to(one, (draws, one.shape[1])) for one in columns], axis=-1)
        units = values if draws > 1 else values[0]
        parts.append(verdicts.judge(lambda mean: [statement(mean)], units, resamples, seed))

    for one in others:
        if one.bits == 8:  # which cost so little that a share of it cannot be told
            judge([full.nll[dense], one.nll[dense]], _is_free)
        elif k:
            columns = [full.nll[dense], full.nll[pruned], one.nll[dense], one.nll[pruned]]
            if one.bits == ADDING:
                judge(columns, _adds_up)
            judge(columns, partial(_costs_more, str(one.bits)))
        if one.first is not None:
            judge([full.nll[dense], one.nll[dense], one.nll[pruned], one.first], partial(_same_in_both_orders, one))
    by_bits = {one.bits: one for one in (full, *others)}
    for more, fewer, count in steps:
        name = f"all blocks at {fewer} bits are better than fewer blocks at {more} bits of the same size"
        columns = [by_bits[fewer].nll[dense], by_bits[more].nll[removals[count]]]
        judge(columns, partial(_is_better, name))
    return verdicts.verdicts(parts, PRIMARY)


def _adds_up(mean: np.ndarray) -> Statement:
    return Statement(PRIMARY, of_smaller(mean), ADDITIVE, "within")


def _costs_more(bits: str, mean: np.ndarray) -> Statement:
    return Statement(COSTS_MORE.format(bits), of_smaller(mean), 0.0, "above", TWICE)


def _is_free(mean: np.ndarray) -> Statement:
    name = "GPTQ at 8 bits costs less than a hundredth of the perplexity"
    return Statement(name, mean[1] - mean[0], FREE, "below", FREE / 2)


def _same_in_both_orders(one: Precision, mean: np.ndarray) -> Statement:
    full, quantized, after, before = mean
    cost = quantized - full
    name = f"blocks removed before GPTQ at {one.bits} bits cost as much as after it, within a quarter of what it costs"
    return Statement(name, (before - after) / cost if cost > 0 else np.nan, ADDITIVE, "within")


def _is_better(name: str, mean: np.ndarray) -> Statement:
    return Statement(name, mean[0] - mean[1], 0.0, "below", MATTERS)
