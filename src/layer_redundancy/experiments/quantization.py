"""Notebook 07, fewer blocks and fewer bits, apart and together (ShortGPT table 2): is one orthogonal to the other?

Damage is an increase of the mean NLL a token, in nats, over the dense full-precision model's on the same text: what
pruning multiplies the perplexity by, and what quantization does, would multiply where the two are orthogonal. The
interaction is what pruning and quantization together cost beyond the sum of what each costs alone.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from layer_redundancy.config import paper_tables
from layer_redundancy.config.checks import Bits, ModelOrNone, at_least
from layer_redundancy.core import cache, stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import checkpoints, quantize, surgery
from layer_redundancy.models.quantize import Scheme, WeightBytes
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

FULL = "full precision"
ADDITIVE = 0.10  # share of the sum of the two damages; an interaction below it counts as none
SIZES = (1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)  # shares of the size at 16 bits that a mix may take
MEASURE = "block_influence"


NOTEBOOK = "07_quantization"
EXPORT_VERSION = 1  # raise it when a variant is exported in another way


@dataclass(frozen=True)
class Budget:
    """What notebook 07 quantizes and measures.

    Attributes:
        bits: numbers of bits a weight; all depths of removal are measured at each.
        rounded: numbers of bits to which weights are also rounded, for comparison.
        pruned_first: numbers of bits to which the model is also quantized after blocks were removed.
        items: number of first items of each of the profile's tasks; None for all.
        max_blocks: blocks that are kept of a deeper model, evenly spaced, for a quick look; None for all.
        ready: a checkpoint that somebody else quantized, measured beside ours; "" for none.
    """

    bits: tuple[Bits, ...] = (8, 4, 3)
    rounded: tuple[Bits, ...] = (8, 4, 3)
    pruned_first: tuple[Bits, ...] = (8, 4, 3)
    items: Annotated[int | None, at_least(1)] = None
    max_blocks: Annotated[int | None, at_least(1)] = None
    ready: ModelOrNone = ""


@dataclass(frozen=True)
class Precision:
    """One model at one precision of its weights, and what was measured of it.

    Attributes:
        name: the precision's name in figures.
        results: measurement -> variant -> result.
        weights: bytes that its weights occupy.
        disk: variant in the table -> bytes of the weight files of its exported checkpoint.
        sums: activation sums of the calibration text, for Block Influence; None where they were not measured.
        own: what is left of it when as many blocks as in the table are removed in the order of its own Block Influence.
        pruned_first: measurement -> result, of the model that was quantized after the table's blocks were removed.
        pruned_first_bytes: bytes of that model's weights, in memory and on disk.
    """

    name: str
    results: Mapping[str, Mapping[Variant, Result]]
    weights: WeightBytes
    disk: Mapping[Variant, int]
    sums: ActivationSums | None = None
    own: Variant | None = None
    pruned_first: Mapping[str, Result] = field(default_factory=dict)
    pruned_first_bytes: tuple[int, int] = (0, 0)


def removed_in_table(num_blocks: int) -> int:
    """Blocks removed for the table: the paper's share, 9 of 32, and at least one."""
    layers = paper_tables.table("table2").set_index("setting")["layers"]
    share = (layers["Baseline"] - layers["ShortGPT"]) / layers["Baseline"]
    return min(num_blocks - 1, max(1, round(share * num_blocks)))


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that notebook 07 shows.

    Attributes:
        study: the study of the full-precision model, with the blocks and items that the budget leaves it.
        removals: number of removed blocks -> variant, in the order of the full-precision model's Block Influence, the
            same for all precisions.
        precisions: full, GPTQ by bits, then, at the table's two depths only, the ready checkpoint, and rounding to
            nearest, of which perplexity alone is measured.
    """

    study: Study
    removals: dict[int, Variant]
    precisions: list[Precision]

    @property
    def k(self) -> int:
        """Number of blocks removed for the table."""
        return removed_in_table(self.study.num_blocks)


def measure(study: Study, ready: str = "") -> Measured:
    """Measures all depths of removal at full precision and at each number of bits.

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
    order = study.order(MEASURE)
    removals: dict[int, Variant] = {k: variants.without(num, order[:k]) for k in range(num)}
    k = removed_in_table(num)
    few = list(dict.fromkeys([removals[0], removals[k]]))
    found = [_measured(study, FULL, removals.values(), few, k)]
    for bits in budget.bits:
        logger.info(f"GPTQ, {bits} bits")
        scheme = Scheme(bits, "gptq")
        first: dict = {}
        if k and bits in budget.pruned_first:
            pruned = study.quantized(scheme, removed=order[:k].tolist())
            of_dense = {name: of[pruned.dense] for name, of in pruned.sweep([pruned.dense], progress=False).items()}
            size = pruned.weight_bytes().of(pruned.dense), disk_bytes(pruned, pruned.dense)
            first = {"pruned_first": of_dense, "pruned_first_bytes": size}
        found.append(_measured(study.quantized(scheme), f"GPTQ, {bits} bits", removals.values(), few, k, **first))
    if other is not None:
        found.append(_measured(other, ready or own_ready, few, few))
    for bits in budget.rounded:
        found.append(_measured(study.quantized(Scheme(bits, "rtn")), f"rounded, {bits} bits", few, few, tasks=False))
    return Measured(study, removals, found)


def reduced(study: Study, budget: Budget) -> Study:
    """The study with as many items of each task and as many blocks as the budget affords.

    Raises:
        NotApplicable: the model is quantized already, or cannot be.
    """
    quantize.check(study.identity)
    if budget.items is not None:
        tasks = study.profile.tasks
        study = study.with_profile(
            tasks=tuple(replace(t, limit=min(budget.items, t.limit or budget.items)) for t in tasks)
        )
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


def _measured(
    study: Study,
    name: str,
    removals: Iterable[Variant],
    few: Sequence[Variant],
    k: int | None = None,
    tasks: bool = True,
    **more: Any,
) -> Precision:
    """One precision: some removals, exports of a few of them, and, with k, its own order of removal; tasks or not."""
    chosen = list(removals)
    if k is not None:
        sums = study.activation_sums()
        own = variants.without(
            study.num_blocks, importance.removal_order(importance.scores(sums, MEASURE), MEASURE)[:k]
        )
        chosen.append(own)
        more |= {"sums": sums, "own": own}
    # First, since a model that cannot be exported without its blocks is refused by it.
    disk = {variant: disk_bytes(study, variant) for variant in few}
    # The few take seconds, of which an estimate and a bar would be a third.
    measurements: list[Perplexity | ChoiceTask] = [study.perplexity, *(study.tasks if tasks else [])]
    results = study.sweep(chosen, measurements, progress=len(chosen) > len(few))
    return Precision(name, results, study.weight_bytes(), disk, **more)


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


def _tasks(precision: Precision) -> list[str]:
    return [name for name in precision.results if name != "perplexity"]


def _nll(precision: Precision, chosen: Sequence[Variant]) -> np.ndarray:
    """Mean NLL a token of N blocks of text for K variants, (N, K), nats."""
    return np.stack([result_tables.cost(precision.results["perplexity"][variant]) for variant in chosen], axis=1)


def table(precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int) -> pd.DataFrame:
    """Table 2: the paper's rows, and each precision without and with removal.

    Args:
        precisions: the precisions, from `measure`.
        removals: number of removed blocks -> variant.
        k: number of removed blocks.

    Returns:
        source, weights, setting ("dense", "ShortGPT": removed after quantization, "removed first": before it), blocks,
        perplexity with its 95 % interval, MMLU as the paper prints it, each task's accuracy in percent with its
        interval and number of items, on disk and in memory (MB, 10^6 bytes of weights).
    """
    rows = [
        {
            "source": "paper",
            "weights": row.model,
            "setting": {"Baseline": "dense"}.get(row.setting, row.setting),
            "blocks": row.layers,
            "perplexity": row.perplexity,
            "95 %": None,
            "MMLU": row.mmlu,
        }
        for row in paper_tables.table("table2").itertuples()
    ]
    for precision, setting, variant, results, in_memory, on_disk in _rows(precisions, removals, k):
        nll = result_tables.cost(results["perplexity"])
        row = {
            "source": "measured",
            "weights": precision.name,
            "setting": setting,
            "blocks": len(variant),
            "perplexity": np.exp(nll.mean()),
            "95 %": "{:.2f} to {:.2f}".format(*np.exp(stats.mean_interval(nll))),
        }
        for name in _tasks(precision):
            values = result_tables.right(results[name])
            low, high = stats.accuracy_interval(round(values.sum()), len(values))
            task = f"{name.removeprefix('task/')} (n={len(values)})"
            row |= {task: 100 * values.mean(), f"{task}, 95 %": f"{100 * low:.1f} to {100 * high:.1f}"}
        rows.append(row | {"on disk (MB)": on_disk / 1e6, "in memory (MB)": in_memory / 1e6})
    return pd.DataFrame(rows)


def _rows(
    precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int
) -> Iterator[tuple[Precision, str, Variant, dict[str, Result], int, int]]:
    for precision in precisions:
        for setting, variant in (("dense", removals[0]), *([("ShortGPT", removals[k])] if k else [])):
            results = {name: of[variant] for name, of in precision.results.items()}
            yield precision, setting, variant, results, precision.weights.of(variant), precision.disk[variant]
        if precision.pruned_first:
            yield precision, "removed first", removals[k], dict(precision.pruned_first), *precision.pruned_first_bytes


def points(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> pd.DataFrame:
    """Every depth of removal of every precision that was measured at all of them, by the bytes of its weights.

    Returns:
        weights, count (blocks removed), megabytes, perplexity, low, high (95 % t interval over blocks of text), and for
        each task a row with task, accuracy, low, high (95 % Wilson), n and chance in their place.
    """
    num, parts = len(removals[0]), []
    for precision in _complete(precisions, removals):
        frames = [result_tables.perplexity(precision.results["perplexity"], removals[0])[0]]
        for name in _tasks(precision):
            of_task = result_tables.accuracy(precision.results[name], removals[0], name.removeprefix("task/"))
            frames.append(of_task.rename(columns={"metric": "metric_name"}))
        megabytes = {count: precision.weights.of(variant) / 1e6 for count, variant in removals.items()}
        for frame in frames:
            drawn = depth_curves.along(frame, removals, num)
            parts.append(drawn.assign(weights=precision.name, megabytes=drawn["count"].map(megabytes)))
    columns = ["weights", "count", "megabytes", "perplexity", "low", "high", "task", "metric_name", "accuracy", "n"]
    return pd.concat(parts, ignore_index=True).reindex(columns=[*columns, "chance"])


def _complete(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> list[Precision]:
    return [p for p in precisions if set(removals.values()) <= set(p.results["perplexity"])]


def best_mix(
    precisions: Sequence[Precision], removals: Mapping[int, Variant], resamples: int, seed: int
) -> pd.DataFrame:
    """The mix of blocks and bits with the lowest perplexity whose weights fit in a size.

    Args:
        precisions: the precisions, from `measure`.
        removals: number of removed blocks -> variant.
        resamples: bootstrap resamples of the blocks of text.
        seed: seed of the resampling.

    Returns:
        at most (MB; and in percent of the weights at 16 bits), weights, removed (blocks), megabytes, perplexity,
        next (the best mix at another precision), next perplexity, certainty (share of the resamples in which it is
        still better than the next). Sizes that no mix fits in are left out.
    """
    complete = _complete(precisions, removals)
    mixes = [(p, count, p.weights.of(variant)) for p in complete for count, variant in removals.items()]
    nll = np.concatenate([_nll(p, list(removals.values())) for p in complete], axis=1)  # (N, mixes)
    mean, draws = nll.mean(0), stats.bootstrap_means(nll, resamples, seed)
    whole = complete[0].weights.of(removals[0])
    rows = []
    for size in SIZES:
        fitting = [i for i in np.argsort(mean, kind="stable") if mixes[i][2] <= size * whole]
        if not fitting:
            continue
        first = fitting[0]
        best, count, megabytes = mixes[first]
        row = {
            "at most (%)": 100 * size,
            "at most (MB)": size * whole / 1e6,
            "weights": best.name,
            "removed": count,
            "megabytes": megabytes / 1e6,
            "perplexity": np.exp(mean[first]),
        }
        others = [i for i in fitting if mixes[i][0] is not best]
        if others:
            other = others[0]
            row["next"] = f"{mixes[other][0].name}, {mixes[other][1]} removed"
            row["next perplexity"] = np.exp(mean[other])
            row["certainty"] = (draws[:, first] < draws[:, other]).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def interaction(precisions: Sequence[Precision], removals: Mapping[int, Variant]) -> pd.DataFrame:
    """What pruning and quantization cost together, against the sum of what each costs alone.

    Returns:
        weights, count (blocks removed), share (percent), pruning, quantization, sum, both (nats a token), interaction
        (both minus sum) with its 95 % t interval, paired by block of text: low, high; and relative (of the sum). No row
        where nothing can be removed.
    """
    if len(removals) < 2:
        return pd.DataFrame()
    full, *others = _complete(precisions, removals)
    rows = []
    for precision in others:
        parts = _damages(full, precision, list(removals.values()))
        for i, count in enumerate(removals):
            pruning, quantization, both = (part[:, i] for part in parts)
            extra = both - pruning - quantization
            low, high = stats.mean_interval(extra)
            total = pruning.mean() + quantization.mean()
            rows.append(
                {
                    "weights": precision.name,
                    "count": count,
                    "share": 100 * count / len(removals[0]),
                    "pruning": pruning.mean(),
                    "quantization": quantization.mean(),
                    "sum": total,
                    "both": both.mean(),
                    "interaction": extra.mean(),
                    "low": low,
                    "high": high,
                    "relative": extra.mean() / total if total > 0 else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _damages(full: Precision, other: Precision, chosen: Sequence[Variant]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damage (N, K) by pruning alone, by quantization alone (equal at every depth), and by both; the first is dense."""
    whole, few = _nll(full, chosen), _nll(other, chosen)
    base = whole[:, :1]
    return whole - base, np.broadcast_to(few[:, :1] - base, few.shape), few - base


def order_of_steps(precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int) -> pd.DataFrame:
    """Does it matter whether one prunes or quantizes first?

    Returns:
        weights, perplexity of quantizing first and of removing first, and the difference of their mean NLL (removing
        first minus quantizing first, nats a token) with its 95 % t interval, paired by block of text.
    """
    rows = []
    for precision in precisions:
        if not precision.pruned_first:
            continue
        after, before = _nll(precision, [removals[k]])[:, 0], result_tables.cost(precision.pruned_first["perplexity"])
        low, high = stats.mean_interval(before - after)
        rows.append(
            {
                "weights": precision.name,
                "blocks": len(removals[k]),
                "perplexity, quantized first": np.exp(after.mean()),
                "perplexity, removed first": np.exp(before.mean()),
                "difference (nats)": (before - after).mean(),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def influence(precisions: Sequence[Precision]) -> pd.DataFrame:
    """Block Influence at each precision: weights, block, score, rank (1 = removed first)."""
    parts = []
    for precision, sums in _with_sums(precisions):
        score = importance.scores(sums, MEASURE)
        rank = importance.ranks(importance.removal_order(score, MEASURE))
        parts.append(
            pd.DataFrame({"weights": precision.name, "block": np.arange(len(score)), "score": score, "rank": rank})
        )
    return pd.concat(parts, ignore_index=True)


def _with_sums(precisions: Sequence[Precision]) -> list[tuple[Precision, ActivationSums]]:
    """The precisions whose Block Influence was measured, with the sums of the text that all of them have in common."""
    found = [(p, p.sums) for p in precisions if p.sums is not None]
    common = min(len(sums.tokens) for _, sums in found)
    return [(p, sums.first(common)) for p, sums in found]


def order_after(
    precisions: Sequence[Precision], removals: Mapping[int, Variant], k: int, resamples: int, seed: int
) -> pd.DataFrame:
    """Block Influence's order before and after quantization.

    Returns:
        weights, tau (Kendall's, with the full-precision order; 1: the same), low, high (95 % of the bootstrap
        resamples of the calibration text that all have, the same draws for all), removed (the first k), same (of them
        also removed first at full precision), perplexity by the full-precision order and by its own, difference (own
        minus full precision's, nats a token) with its 95 % t interval. Without tau for fewer blocks than
        `few_blocks.RANKED`, and without a row where nothing can be removed.
    """
    if not k:
        return pd.DataFrame()
    measured = _with_sums(precisions)
    (full, _), *others = measured
    orders = {
        p.name: (
            importance.removal_order(importance.scores(sums, MEASURE), MEASURE),
            importance.removal_order(importance.bootstrap_scores(sums, MEASURE, resamples, seed), MEASURE),
        )
        for p, sums in measured
    }
    order, draws = orders[full.name]
    rows = []
    for precision, _ in others:
        assert precision.own is not None, "it is measured with the sums"
        mine, my_draws = orders[precision.name]
        taus = [_tau(a, b) for a, b in zip(draws, my_draws, strict=True)]
        nll = _nll(precision, [removals[k], precision.own])
        change = nll[:, 1] - nll[:, 0]
        low, high = stats.mean_interval(change)
        rows.append(
            {
                "weights": precision.name,
                "tau": _tau(order, mine),
                "low": np.percentile(taus, stats.INTERVAL[0]),
                "high": np.percentile(taus, stats.INTERVAL[1]),
                f"first {k} removed": ", ".join(map(str, mine[:k])),
                "same": len(set(mine[:k]) & set(order[:k])),
                "perplexity, full precision's order": np.exp(nll[:, 0].mean()),
                "perplexity, own order": np.exp(nll[:, 1].mean()),
                "difference (nats)": change.mean(),
                "difference 95 %": "the same blocks" if precision.own == removals[k] else f"{low:.3f} to {high:.3f}",
            }
        )
    table = pd.DataFrame(rows)
    ranked = few_blocks.can_be_ranked(len(removals[0]))
    return table if ranked else table.drop(columns=["tau", "low", "high"], errors="ignore")


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(importance.ranks(a), importance.ranks(b)).statistic)


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
    for name in _tasks(full):
        before = 100 * (
            result_tables.cost(full.results[name][removals[k]]) - result_tables.cost(full.results[name][removals[0]])
        )
        for precision in others:
            if name not in precision.results:
                continue
            of = precision.results[name]
            after = 100 * (result_tables.cost(of[removals[k]]) - result_tables.cost(of[removals[0]]))
            # Where all items agree, Student's t would call the difference exactly known.
            same = np.ptp(after - before) == 0
            low, high = (np.nan, np.nan) if same else stats.mean_interval(after - before)
            task = name.removeprefix("task/")
            found = (len(after), before.mean(), after.mean(), (after - before).mean(), low, high)
            rows.append(("measured", precision.name, task, *found))
    columns = [
        "source",
        "weights",
        "task",
        "n",
        "loss, full precision",
        "loss, quantized",
        "interaction",
        "low",
        "high",
    ]
    return pd.DataFrame(rows, columns=columns)


def claim(precisions: Sequence[Precision], removals: Mapping[int, Variant], resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT 4.5: pruning is "orthogonal to quantization methods", made into statements that can be false.

    Returns:
        statement, measured (interaction, of the sum of the two damages), threshold, holds, certainty; at the ratios at
        which measures are compared elsewhere. An interaction as such is no failure: below zero the two cost less
        together than their sum. No row where nothing can be removed, or nothing was quantized.
    """
    full, *others = _complete(precisions, removals)
    num = len(removals[0])
    counts = list(dict.fromkeys(min(num - 1, depth_curves.at_ratio(num, ratio)) for ratio in depth_curves.RATIOS))
    if num < 2 or not others:
        return pd.DataFrame(columns=stats.CLAIM)
    chosen = [removals[count] for count in (0, *counts)]
    damages = [_damages(full, other, chosen) for other in others]
    values = np.stack([np.stack(parts, axis=1) for parts in damages], axis=1)  # (N, precisions, 3, 1 + counts)

    def statements(mean: np.ndarray) -> list[Statement]:
        stated = []
        for place, other in enumerate(others):
            for i, count in enumerate(counts, start=1):
                pruning, quantization, both = mean[place, :, i]
                total = pruning + quantization
                share = (both - total) / total if total > 0 else np.nan  # no damage: nothing that could add up
                what = f"{other.name}, {count} of {num} blocks removed: the damages add up to within {ADDITIVE:.0%}"
                stated.append((what, share, ADDITIVE, bool(abs(share) < ADDITIVE)))
        return stated

    return stats.claim(statements, values, resamples, seed)
