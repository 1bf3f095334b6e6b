"""A model without attention beside a transformer (notebook 06): costs in bits per byte, which any two models share.

Perplexity a token cannot be compared between models that cut text into other tokens, and the loss of one block cannot
between models of other depths; bits a byte of the same text, at a share of the blocks, can. Both models read the same
passages, each in its own tokens, so that the two are paired passage by passage.

Two such models differ in more than attention. Where the profile has a twin of its recurrent model, a transformer of the
same size, tokens, texts and training, it is measured on the same passages too, and set against the recurrent model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import Model, ModelOrNone
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement, judge, verdicts
from layer_redundancy.evaluate.scoring import Passages, Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.experiments.bits_per_byte import bits_per_byte, text_bytes
from layer_redundancy.figures.style import title_of, words
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

NOTEBOOK = "06_rwkv_redundancy"

# Its smallest detectable effect on the embedded profile: 7.6 percent of the dense model's bits per byte.
PRIMARY = "a quarter of the blocks costs the transformer a greater share of its bits per byte than the other model"
CHEAP, USEFUL = 5, 25  # percent of the dense model's bits per byte: "hardly costs anything" and "is of use"
A_BLOCK, A_QUARTER, HALF = 2, 10, 20  # percent of them that matter when so much is removed
WITHOUT_DROPOUT = "-dropout-0"  # behind the names of the models of `make twin-train DROPOUT=0`
PRIMARY_DROPOUT = "trained without dropout, a quarter of the blocks costs the model without attention a greater share"
UNDECIDED_DROPOUT = (
    "What dropout does to depth redundancy is left undecided: it takes both small models trained without it "
    '(make twin-train DROPOUT=0), and their folder as PARAMS="pair=data/cache/small-models"'
)


@dataclass(frozen=True)
class Budget:
    """What notebook 06 measures.

    Attributes:
        recurrent_model: the model without attention that is set beside the profile's own: the embedded name, a hub id,
            or a local folder.
        twin: a transformer that differs from it in nothing but attention; "" where there is none.
    """

    recurrent_model: Model
    twin: ModelOrNone = ""


@dataclass(frozen=True, eq=False)
class OneModel:
    """What is measured of one of the models.

    Attributes:
        study: the study of the model.
        text: the passages in the model's tokens.
        sums: activation sums of its calibration text.
        singles: every single removal.
        along: numbers of removed blocks -> what Block Influence leaves.
        results: variant -> result on the passages.
        tasks: task -> variant -> result, for the whole model and the shares `depth_curves.RATIOS` removed.
    """

    study: Study
    text: Perplexity | Passages
    sums: ActivationSums
    singles: list[Variant]
    along: Mapping[int, Variant]
    results: Mapping[Variant, Result]
    tasks: Mapping[str, Mapping[Variant, Result]]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.study.identity.name

    @cached_property
    def costs(self) -> dict[str, np.ndarray]:
        """Bits per byte by passage: "dense" (N,), "single" (L, N), and "along" (K, N) the order of Block Influence."""
        sizes = text_bytes(self.text, self.study.tokenizer)
        chosen = {"dense": [self.study.dense], "single": self.singles, "along": list(self.along.values())}
        found = {name: bits_per_byte(self.results, of, sizes) for name, of in chosen.items()}
        return found | {"dense": found["dense"][0]}

    @cached_property
    def summary(self) -> np.ndarray:
        """`summary` of the model."""
        return summary(self.costs["single"], self.costs["dense"], self.costs["along"], list(self.along))


@dataclass(frozen=True, eq=False)
class Measured:
    """The models that are compared.

    Attributes:
        recurrent: the model without attention.
        transformer: the transformer.
        twin: the recurrent model's twin; None where the profile has none, or the model is another than the profile's.
        checked: the recurrent model's variants that were also run by plain forwards.
        deviation: largest difference between these plain forwards and the sweep, nats a token.
    """

    recurrent: OneModel
    transformer: OneModel
    checked: list[Variant]
    deviation: float
    twin: OneModel | None = None

    @property
    def models(self) -> list[OneModel]:
        """All that was measured: the model without attention, the transformer, and the twin if there is one."""
        return [self.recurrent, self.transformer, *([self.twin] if self.twin else [])]

    @property
    def summaries(self) -> dict[str, np.ndarray]:
        """Each model's `summary`, by its name."""
        return {one.name: one.summary for one in self.models}


def measure(study: Study, beside: str = "") -> Measured:
    """Measures a model without attention, a transformer, and a twin alike, on the transformer's evaluation text.

    Args:
        study: the study of a model of either kind.
        beside: the model of the other kind; "" for the profile's.

    Raises:
        NotApplicable: one of the two has a single block.
        StudyError: as `Study.of_model`; two models of the same kind.
    """
    recurrent, transformer = pair(study, beside)
    for one in (recurrent, transformer):
        few_blocks.need_removable(one, "removals from it cannot be compared with those from another model")
        few_blocks.say_what_shares_are(one.num_blocks, depth_curves.RATIOS)
        if not few_blocks.can_be_ranked(one.num_blocks):
            logger.info(f"{one.identity.name}: {few_blocks.no_ranks(one.num_blocks)}")
    mine = _one_model(recurrent, recurrent.inputs.same_text(transformer.inputs))
    other = _one_model(transformer, transformer.perplexity)
    checked = _at_ratios(mine.study, mine.along)
    budget = study.profile.budget(Budget)
    twin = None
    if budget.twin and recurrent.identity.name == budget.recurrent_model:
        twin = beside_them(transformer, budget.twin)
    return Measured(mine, other, checked, recurrent.deviation(checked), twin)


def beside_them(transformer: Study, model: str) -> OneModel:
    """A further model, measured as the other two are, on the passages of the transformer."""
    study = transformer.of_model(model)
    return _one_model(study, study.inputs.same_text(transformer.inputs))


def pair(study: Study, beside: str = "") -> tuple[Study, Study]:
    """The study of the model without attention, and that of the transformer; arguments and errors as `measure`."""
    is_transformer = study.identity.num_attention_heads > 0
    usual = study.profile.budget(Budget).recurrent_model if is_transformer else study.profile.own_model
    other = study.of_model(beside or usual)
    if is_transformer == (other.identity.num_attention_heads > 0):
        kind = "transformers" if is_transformer else "without attention"
        raise StudyError(f"{study.identity.name} and {other.identity.name} are both {kind}: compare one of each kind")
    return (other, study) if is_transformer else (study, other)


def _one_model(study: Study, text: Perplexity | Passages) -> OneModel:
    """Single removals and removals by Block Influence; of the tasks those of a few shares of the blocks."""
    num, step, sums = study.num_blocks, study.profile.depth_step, study.activation_sums()
    order = importance.removal_order(importance.scores(sums, "block_influence"), "block_influence")
    along = {k: variants.without(num, order[:k]) for k in depth_curves.depths(num, step if num > 16 else 1)}
    singles = variants.single_removal(num)
    results = study.sweep([study.dense, *singles, *along.values()], [text])[text.name]
    tasks = study.sweep(_at_ratios(study, along), study.tasks) if study.tasks else {}
    return OneModel(
        study, text, sums, singles, along, results, {name.removeprefix("task/"): of for name, of in tasks.items()}
    )


def _at_ratios(study: Study, along: Mapping[int, Variant]) -> list[Variant]:
    """The whole model, and what is left without a few shares of its blocks."""
    num = study.num_blocks
    counts = {depth_curves.at_ratio(num, ratio) for ratio in depth_curves.RATIOS}
    return [study.dense, *(along[k] for k in sorted(counts))]


# ------------------------------------------------------------------------------------------------ tables


def removals(found: Measured) -> pd.DataFrame:
    """What removals cost each model, in percent of the dense model's bits per byte.

    Returns:
        model, removed ("one block" or "by Block Influence"), block (of single ones; else NaN), count, place (percent
        of the depth: of a single block its middle; else the share of the blocks removed), bits_per_byte, rise, low,
        high (percent; 95 % t interval over passages, paired with the dense model).
    """
    rows = []
    for one in found.models:
        num, dense = one.study.num_blocks, one.costs["dense"]
        singles = [(("one block", i, 1, 100 * (i + 0.5) / num), cost) for i, cost in enumerate(one.costs["single"])]
        orders = [
            (("by Block Influence", np.nan, k, 100 * k / num), cost)
            for k, cost in zip(one.along, one.costs["along"], strict=True)
        ]
        for what, cost in [*singles, *orders]:
            rise = 100 * (cost - dense) / dense.mean()
            rows.append((one.name, *what, cost.mean(), rise.mean(), *stats.mean_interval(rise)))
    columns = ["model", "removed", "block", "count", "place", "bits_per_byte", "rise", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def summary(single: np.ndarray, dense: np.ndarray, by_influence: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """What the claims are about, by passage: (N, 1 + L + ratios).

    Args:
        single: (L, N) bits per byte without each block.
        dense: (N,) bits per byte of the dense model.
        by_influence: (K, N) along the order of Block Influence.
        counts: numbers of removed blocks at the K depths.

    Returns:
        For each passage: the dense model's bits per byte; then, in the same unit above the dense model's, each of the L
        single removals and the removals nearest to `depth_curves.RATIOS` (NaN for a ratio that is no block).
    """
    num = len(single)
    at = [list(counts).index(depth_curves.at_ratio(num, ratio)) for ratio in depth_curves.RATIOS]
    ratios = by_influence[at] - dense
    ratios[[not few_blocks.is_a_block(num, ratio) for ratio in depth_curves.RATIOS]] = np.nan
    return np.column_stack([dense, (single - dense).T, ratios.T])


def _figures(mean: np.ndarray) -> dict[str, float]:
    """Numbers of a row of the table from the means of `summary`."""
    dense, single, ratios = mean[0], mean[1 : -len(depth_curves.RATIOS)], mean[-len(depth_curves.RATIOS) :]
    return {
        "dense bits per byte": dense,
        "cheapest block, %": 100 * single.min() / dense,
        "median block, %": 100 * np.median(single) / dense,
        "dearest block, %": 100 * single.max() / dense,
    } | {f"{r:.0%} removed, %": 100 * x / dense for r, x in zip(depth_curves.RATIOS, ratios, strict=True)}


def redundancy(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> pd.DataFrame:
    """How redundant the models' blocks are.

    Args:
        values: model -> its `summary`.
        resamples: bootstrap resamples of the passages.
        seed: seed of the resampling.

    Returns:
        quantity, and for each model its value, low, high (95 % interval). Percentages are of the dense model's bits per
        byte.
    """
    parts = []
    for model, units in values.items():
        whole = pd.Series(_figures(units.mean(0)))
        again = pd.DataFrame(map(_figures, stats.bootstrap_means(units, resamples, seed)))
        ends = [stats.interval(whole[name], again[name].to_numpy(), len(units)) for name in whole.index]
        low, high = (pd.Series(end, index=whole.index) for end in zip(*ends, strict=True))
        parts.append(pd.DataFrame({model: whole, f"{model} low": low, f"{model} high": high}))
    return pd.concat(parts, axis=1).rename_axis("quantity").reset_index()


def claim(
    recurrent: np.ndarray, transformer: np.ndarray, resamples: int, seed: int, twin: np.ndarray | None = None
) -> pd.DataFrame:
    """ShortGPT 4.3 on RWKV: "also exhibits a high level of redundancy", so redundancy "is universal"; as `verdicts`.

    Args:
        recurrent, transformer: each model's `summary` on the same passages, which are resampled for all at once.
        resamples: bootstrap resamples of the passages.
        seed: seed of the resampling.
        twin: the `summary` of the recurrent model's twin, for further statements; None where there is none.
    """
    units = [recurrent, transformer, *([] if twin is None else [twin])]
    ends = np.cumsum([one.shape[1] for one in units])[:-1]

    def statements(means: np.ndarray) -> list[Statement]:
        mine, other, *twins = map(_figures, np.split(means, ends))
        return [*_statements(mine, other), *(one for of in twins for one in _at_equal_everything(mine, of))]

    return verdicts([judge(statements, np.hstack(units), resamples, seed, "bits per byte")], PRIMARY)


def _at_equal_everything(recurrent: Mapping[str, float], twin: Mapping[str, float]) -> list[Statement]:
    """With attention against without, of two models that differ in nothing else; units as `_statements`."""
    quarter, half = (f"{ratio:.0%} removed, %" for ratio in depth_curves.RATIOS[1:])
    compared = (("the cheapest block", "cheapest block, %", A_BLOCK), ("a quarter of the blocks", quarter, A_QUARTER))
    return [
        Statement(
            f"at equal everything, {what} costs the transformer twin a greater share than the model without attention",
            twin[row],
            recurrent[row],
            "above",
            matters,
        )
        for what, row, matters in (*compared, ("half of the blocks", half, HALF))
    ]


@dataclass(frozen=True, eq=False)
class WithoutDropout:
    """What dropout does to depth redundancy: the small models beside the same two trained without it.

    Attributes:
        summaries: model -> `summary`, with dropout and then without it.
        claim: as `verdicts`.
    """

    summaries: Mapping[str, np.ndarray]
    claim: pd.DataFrame


def without_dropout(found: Measured, pair: str, resamples: int, seed: int) -> WithoutDropout:
    """Measures the pair that was trained without dropout on the same passages.

    Args:
        found: what was measured, a twin with it.
        pair: the folder in which the two are, under the names of the others with `WITHOUT_DROPOUT` behind.
        resamples: bootstrap resamples of the passages.
        seed: seed of the resampling.

    Raises:
        StudyError: one of the two is not there; or there is no twin, so that nothing can be said of the pair.
    """
    if found.twin is None:
        raise StudyError("pair= is about the profile's small RWKV and its twin: leave out MODEL= and beside=")
    names = [Path(one.name).name + WITHOUT_DROPOUT for one in (found.recurrent, found.twin)]
    if missing := [name for name in names if not (Path(pair) / name).is_dir()]:
        raise StudyError(f"{pair} has no {missing[0]}: make twin-train DROPOUT=0")
    without = {name: beside_them(found.transformer.study, str(Path(pair) / name)).summary for name in names}
    with_it = {one.name: one.summary for one in (found.recurrent, found.twin)}
    units = [*with_it.values(), *without.values()]
    ends = np.cumsum([one.shape[1] for one in units])[:-1]

    def statements(means: np.ndarray) -> list[Statement]:
        recurrent, twin, *bare = map(_figures, np.split(means, ends))
        kinds = ("the model without attention", "the transformer twin")
        quarter, half = (f"{ratio:.0%} removed, %" for ratio in depth_curves.RATIOS[1:])
        return [
            Statement(
                f"trained without dropout, {what} costs {kind} a greater share", none[row], of[row], "above", size
            )
            for what, row, size in (("a quarter of the blocks", quarter, A_QUARTER), ("half of the blocks", half, HALF))
            for kind, of, none in zip(kinds, (recurrent, twin), bare, strict=True)
        ]

    return WithoutDropout(
        with_it | without,
        verdicts([judge(statements, np.hstack(units), resamples, seed, "bits per byte")], PRIMARY_DROPOUT),
    )


def _statements(recurrent: Mapping[str, float], transformer: Mapping[str, float]) -> list[Statement]:
    """All in percent of the dense model's bits per byte; NaN for a ratio that is no block of a model."""
    quarter, half = (f"{ratio:.0%} removed, %" for ratio in depth_curves.RATIOS[1:])
    kinds = (("the model without attention", recurrent), ("the transformer", transformer))
    return [
        Statement(PRIMARY, transformer[quarter], recurrent[quarter], "above", A_QUARTER),
        Statement(PRIMARY.replace("a quarter", "half"), transformer[half], recurrent[half], "above", HALF),
        *(
            Statement(f"the median block costs {name} under {CHEAP} %", of["median block, %"], CHEAP, "below", A_BLOCK)
            for name, of in kinds
        ),
        *(
            Statement(f"a quarter of the blocks costs {name} under {USEFUL} %", of[quarter], USEFUL, "below", A_QUARTER)
            for name, of in kinds
        ),
    ]


def kept(found: Measured, printed: pd.DataFrame) -> pd.DataFrame:
    """What a quarter of the blocks, removed by Block Influence, leaves of the accuracy: printed and measured.

    Args:
        found: what was measured.
        printed: the paper's numbers, `paper_tables.table("rwkv")`.

    Returns:
        source (paper or measured), model, task, removed (percent of the blocks), low, high (95 %, Wilson), score
        (accuracy; all in percent), chance, n, above_chance (percent of what the dense model has beyond chance; none
        where chance lies in its interval, nor for the paper, whose chance we do not know).
    """
    rows: list[tuple] = []
    for row in printed.itertuples():
        unknown = (np.nan, np.nan, row.average, np.nan, np.nan, np.nan)
        rows.append(("paper, later version", row.model, "average", row.ratio_percent, *unknown))
    for one in found.models:
        num = one.study.num_blocks
        quarter = one.along[depth_curves.at_ratio(num, depth_curves.RATIOS[1])]
        for task, results in one.tasks.items():
            table = result_tables.accuracy({v: results[v] for v in (one.study.dense, quarter)}, one.study.dense, task)
            whole = table.iloc[0]
            for now in table.itertuples():
                percent = [100 * value for value in (now.low, now.high, now.accuracy, now.chance)]
                above = 100 * (now.accuracy - now.chance) / (whole.accuracy - whole.chance) if _knows(whole) else np.nan
                rows.append(("measured", one.name, task, 100 * len(now.removed) / num, *percent, now.n, above))
    columns = ["source", "model", "task", "removed", "low", "high", "score", "chance", "n", "above_chance"]
    return pd.DataFrame(rows, columns=columns)


def _knows(dense: Any) -> bool:
    """Whether a model's accuracy is above chance for certain."""
    return bool(dense.low > dense.chance)


def at_chance(kept: pd.DataFrame) -> str:
    """What the table `kept` leaves out, in words; "" where nothing is."""
    dense = kept[(kept["source"] == "measured") & (kept["removed"] == 0) & kept["above_chance"].isna()]
    lines = [f"{row.model} on {words(row.task)}" for row in dense.itertuples()]
    if not lines:
        return ""
    return f"No share kept is given of {', '.join(lines)}: chance lies in the interval of the whole model's accuracy"


def agreement(sums: ActivationSums, summary: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    """How well each measure predicts what a block's removal costs.

    Args:
        sums: activation sums of the calibration text.
        summary: `summary` of the model, on evaluation text.
        resamples: bootstrap resamples of the passages.
        seed: seed of the resampling.

    Returns:
        measure, tau (Kendall's, between the measure's order and that of the costs; 1: the same), low, high (95 %). No
        row for fewer blocks than `few_blocks.RANKED`.
    """
    if not few_blocks.can_be_ranked(sums.num_blocks):
        return pd.DataFrame(columns=["measure", "tau", "low", "high"])
    damage = summary[:, 1 : 1 + sums.num_blocks]
    again = stats.bootstrap_means(damage, resamples, seed)
    rows = []
    for name in importance.MEASURES:
        ranks = importance.ranks(importance.removal_order(importance.scores(sums, name), name))
        (tau,) = stats.kendall_taus(ranks, damage.mean(0)[None])
        rows.append((name, tau, *stats.interval(tau, stats.kendall_taus(ranks, again), len(damage))))
    return pd.DataFrame(rows, columns=["measure", "tau", "low", "high"])


def agreement_table(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """`agreement` of the models side by side: measure, and tau, low, high of each that has enough blocks.

    Measures are named in words; those that give the same order of every model stand together.
    """
    parts: list[pd.DataFrame] = []
    orders: dict[str, list[int]] = {name: [] for name in importance.MEASURES}
    for one in found.models:
        table = agreement(one.sums, one.summary, resamples, seed).set_index("measure")
        if len(table):
            parts.append(table.add_prefix(f"{one.name} "))
            for name, order in orders.items():
                order += importance.removal_order(importance.scores(one.sums, name), name).tolist()
    if not parts:
        return pd.DataFrame()
    groups = importance.equal_together(orders)
    together = pd.concat(parts, axis=1).loc[[group[0] for group in groups]]
    titles = [", ".join(map(title_of, group)) for group in groups]
    return together.set_axis(titles).rename_axis("measure").reset_index()
