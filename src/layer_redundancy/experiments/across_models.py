"""Notebook 14: does what is said of one model's layers hold of others?

All models read the same passages, each in its own tokens, and are compared in bits a byte of them, and by share of
their blocks or weights. What a model does on tasks is measured on items that are the same texts for all. Measurements
are those of notebooks 01 to 04, and the passages once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from layer_redundancy.config import profiles
from layer_redundancy.core import paths, stats, variants, verdicts
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.scoring import Passages, Perplexity
from layer_redundancy.experiments import capabilities, depth_curves, few_blocks, prune_ratio, published
from layer_redundancy.experiments.bits_per_byte import bits_per_byte, text_bytes
from layer_redundancy.experiments.capabilities import ACCURACY, AGREEMENT, COPYING, NATS, TEXT
from layer_redundancy.experiments.depth_ranks import CHEAPER, FIRST, LAST, OFTEN, dearer, wins
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums
from layer_redundancy.models import embedded
from layer_redundancy.study import Study

NOTEBOOK = "14_across_models"
# Its smallest detectable effect on SmolLM2 and Gemma-3-270m: 6.9 percent of the whole model's bits a byte.
PRIMARY = "a quarter of the blocks costs the model that loses most under 25 % of its bits a byte"
USEFUL, A_QUARTER = 25, 10  # percent of the dense model's bits a byte: of use; and what matters of them
AGREES, TAU_MATTERS = 0.5, 0.2  # Kendall's tau: Block Influence finds the order of cost, more or less
POINTS = 0.2  # of accuracy
DOUBLINGS = 0.5  # of a cost: 1.4 times as much
NOTHING = 0.1  # percent of the bits a byte: what costs less, or gains, counts as so much where costs are divided
QUARTER = 0.25


@dataclass(frozen=True, eq=False)
class OneModel:
    """What is measured of one model.

    Attributes:
        study: the study of the model.
        text: the passages in its tokens.
        sums: activation sums of its calibration text.
        by_measure: measure -> what its order leaves without a quarter of the blocks.
        ratios: what Block Influence removes at a few shares of the blocks and of the weights.
        on_text: variant -> result on the passages: the whole model, single removals, and the two above.
        singles: measurement -> variant -> result of the profile's tasks, without each block.
        along: notebook 03's removals by Block Influence, with tasks.
        nats: (L,) loss of its own evaluation text without each block, nats a token.
    """

    study: Study
    text: Perplexity | Passages
    sums: ActivationSums
    by_measure: Mapping[str, Variant]
    ratios: Mapping[int, Variant]
    on_text: Mapping[Variant, Result]
    singles: Mapping[str, Mapping[Variant, Result]]
    along: prune_ratio.Measured
    nats: np.ndarray

    @property
    def name(self) -> str:
        """The model's name."""
        return self.study.identity.name

    @cached_property
    def dense(self) -> np.ndarray:
        """(N,) bits that a byte of each passage costs the whole model."""
        return self.bits([self.study.dense])[0]

    def bits(self, chosen: Sequence[Variant]) -> np.ndarray:
        """(K, N) bits that a byte of each passage costs variants."""
        return bits_per_byte(self.on_text, chosen, self._sizes)

    def rises(self, chosen: Sequence[Variant]) -> np.ndarray:
        """(K, N) bits a byte above the whole model's, in percent of its mean."""
        return 100 * (self.bits(chosen) - self.dense) / self.dense.mean()

    @cached_property
    def _sizes(self) -> np.ndarray:
        return text_bytes(self.text, self.study.tokenizer)

    @cached_property
    def costs(self) -> np.ndarray:
        """(N, L) bits a byte of each passage that each block's removal costs."""
        return (self.bits(variants.single_removal(self.study.num_blocks)) - self.dense).T

    @cached_property
    def quarter(self) -> np.ndarray:
        """(N,) what a quarter of the blocks by Block Influence costs each passage, percent of the mean bits a byte."""
        return self.rises([self.ratios[depth_curves.at_ratio(self.study.num_blocks, QUARTER)]])[0]

    @cached_property
    def tasks(self) -> list[capabilities.Capability]:
        """The profile's tasks by the dense model, then without each block."""
        chosen = [self.study.dense, *variants.single_removal(self.study.num_blocks)]
        return capabilities.of_results(self.singles, self.study.tasks, chosen)


@dataclass(frozen=True, eq=False)
class Measured:
    """The models that are compared, in the order in which they were named.

    Attributes:
        models: what is measured of each.
        read: the passages, in the tokens of the first.
    """

    models: list[OneModel]
    read: TokenBlocks

    @property
    def passages(self) -> int:
        """N, the passages that all of them read."""
        return len(self.models[0].dense)


def compared(study: Study, models: str = "") -> Study:
    """A study whose profile names the models that are compared, and whose figures lie where theirs do.

    Args:
        study: the study of a profile's own model.
        models: names with spaces between them; "" for those that the profile studies.

    Raises:
        NotApplicable: there is one alone.
        StudyError: as `profiles.named_models`.
    """
    profile = study.profile
    if not profile.is_own_model:
        raise NotApplicable(f"{profile.model} is one model in the place of the profile's: name several instead")
    if named := profiles.named_models(models):
        study = study.with_profile(models=named)
    if len(study.profile.studied) < 2:
        raise NotApplicable(
            f'the {profile.name} profile studies {profile.model} alone: name two models, such as models = "smollm2 '
            'gemma3-270m" in the notebook, or MODELS="smollm2 gemma3-270m" of make'
        )
    return replace(study, figures=paths.FIGURES / profiles.across_folder(study.profile))


def measure(study: Study) -> Measured:
    """Measures the models that the profile studies, each as notebooks 01 to 04 do, and all on the same passages.

    Raises:
        NotApplicable: there is one alone, or one of them has a single block.
    """
    study = compared(study)
    names = list(study.profile.studied)
    studies = [study if name == study.profile.model else study.of_model(name) for name in names]
    for one in studies:
        few_blocks.need_removable(one, "its removals cannot be compared with those from other models")
        few_blocks.say_what_shares_are(one.num_blocks, depth_curves.RATIOS)
    first, found = studies[0], []
    for one in studies:
        text = first.perplexity if one is first else one.inputs.same_text(first.inputs)
        found.append(_one_model(one, text))
        one.unload()  # so that the next one has its memory
    return Measured(found, first.evaluation)


def _one_model(study: Study, text: Perplexity | Passages) -> OneModel:
    num, sums = study.num_blocks, study.activation_sums()
    quarter = depth_curves.at_ratio(num, QUARTER)
    by_measure = {
        name: removals[quarter]
        for name, removals in depth_curves.removals_by_measure(sums, [quarter], study.greedy_order()).items()
    }
    along = prune_ratio.measure(study)
    counts = {depth_curves.at_ratio(num, ratio) for ratio in depth_curves.RATIOS} | set(
        _of_weights(study, along).values()
    )
    ratios = {k: along.removals[k] for k in sorted(counts)}
    singles = variants.single_removal(num)
    chosen = [study.dense, *singles, *ratios.values(), *by_measure.values()]
    on_text = study.sweep(chosen, [text])[text.name]
    tasks = study.sweep([study.dense, *singles], study.tasks) if study.tasks else {}
    return OneModel(study, text, sums, by_measure, ratios, on_text, tasks, along, published.losses(study))


def _of_weights(study: Study, along: prune_ratio.Measured) -> dict[float, int]:
    """Share of all weights -> the number of blocks in the order of Block Influence that comes closest.

    A share that is more than half a block from what removals reach is left out.
    """
    shares = prune_ratio.weights_removed(study)[along.order]
    gone = np.concatenate([[0], np.cumsum(shares)])[: study.num_blocks]  # one block stays
    found = {}
    for ratio in depth_curves.RATIOS:
        count = int(np.abs(gone - ratio).argmin())
        if count and abs(gone[count] - ratio) <= shares.max() / 2:
            found[ratio] = count
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def described(found: Measured) -> list[str]:
    """What the models differ in besides depth, a line each."""
    lines = []
    for one in found.models:
        identity, known = one.study.identity, embedded.MODELS.get(one.name)
        form = f"{known.form}; " if known and known.form else ""
        share = 100 * prune_ratio.weights_removed(one.study).sum()
        lines.append(
            f"{one.name}: {form}{identity.num_hidden_layers} blocks, which hold {share:.0f} % of its weights; "
            f"{len(one.study.tokenizer):,} tokens"
        )
    return lines


def named(study: Study, found: Measured) -> Study:
    """The study with captions that name all models."""
    return replace(study, beside=tuple(one.study.identity for one in found.models))


def beside_published(found: Measured) -> published.Measured:
    """The models as notebook 15 sets them beside those that others measured."""
    models = found.models
    return published.Measured({one.name: one.sums for one in models}, {one.name: one.nats for one in models})


def each(found: Measured, note: Callable[[Study], str]) -> list[str]:
    """What a note on its text, such as `Study.evaluation_note`, says of each model."""
    return [f"{one.name}: {note(one.study)}" for one in found.models]


def damage(found: Measured) -> pd.DataFrame:
    """What Block Influence's removals cost at a few shares of the blocks, and of the weights.

    Returns:
        model, of ("blocks" or "weights"), ratio (asked for, percent), count (blocks removed), share and weights
        (percent of the blocks, and of all weights, that they are), bits (a byte), dense (bits a byte of the whole
        model), rise with its 95 % interval low, high (percent of dense; Student's t over passages, paired), n. A share
        of the weights that removals do not reach has no count.
    """
    rows = []
    for one in found.models:
        num, weights = one.study.num_blocks, prune_ratio.weights_removed(one.study)[one.along.order]
        of = {"blocks": {r: depth_curves.at_ratio(num, r) for r in depth_curves.RATIOS}}
        of["weights"] = _of_weights(one.study, one.along)
        for kind, counts in of.items():
            for ratio in depth_curves.RATIOS:
                row = {
                    "model": one.name,
                    "of": kind,
                    "ratio": 100 * ratio,
                    "dense": one.dense.mean(),
                    "n": found.passages,
                }
                if ratio in counts:
                    k = counts[ratio]
                    rise, bits = one.rises([one.ratios[k]])[0], one.bits([one.ratios[k]])[0]
                    row |= {"count": k, "share": 100 * k / num, "weights": 100 * weights[:k].sum()}
                    row |= {"bits": bits.mean(), "rise": rise.mean()}
                    row["low"], row["high"] = stats.mean_interval(rise)
                rows.append(row)
    columns = ["model", "of", "ratio", "count", "share", "weights", "bits", "dense", "rise", "low", "high", "n"]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"count": "Int64"})


def depths(found: Measured) -> pd.DataFrame:
    """Where the quarter of the blocks lies that each measure removes, and what its removal costs.

    Returns:
        A row a (model, measure, block): model, measure, block, depth (of the block's middle, percent of the model's),
        rise with its 95 % interval low, high (of the whole quarter, percent of the dense model's bits a byte).
    """
    rows = []
    for one in found.models:
        num = one.study.num_blocks
        for measure, variant in one.by_measure.items():
            rise = one.rises([variant])[0]
            cost = (rise.mean(), *stats.mean_interval(rise))
            for block in variants.removed_blocks(num, variant):
                rows.append((one.name, measure, block, 100 * (block + 0.5) / num, *cost))
    return pd.DataFrame(rows, columns=["model", "measure", "block", "depth", "rise", "low", "high"])


def ranks(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """Rank correlation of Block Influence with what each block's removal costs, on text and by capability.

    Returns:
        model, on ("text", or a task), tau (Kendall's) with its 95 % interval low, high over passages or items, n. None
        of a model with too few blocks, or of a task that no removal costs anything.
    """
    rows = []
    for one in found.models:
        if not few_blocks.can_be_ranked(one.study.num_blocks):
            continue
        for on, harm in _harms(one).items():
            tau = _tau(one)(harm.mean(0))
            again = stats.kendall_taus(_influence(one), stats.bootstrap_means(harm, resamples, seed))
            rows.append((one.name, on, tau, *stats.interval(tau, again, len(harm)), len(harm)))
    return pd.DataFrame(rows, columns=["model", "on", "tau", "low", "high", "n"]).dropna(subset="tau")


def _harms(one: OneModel) -> dict[str, np.ndarray]:
    """What each block's removal costs, (N, L): bits a byte of text, nats of tasks."""
    return {TEXT: one.costs} | {task.name: task.damage(NATS) for task in one.tasks if task.in_nats}


def _influence(one: OneModel) -> np.ndarray:
    order = importance.removal_order(importance.scores(one.sums, "block_influence"), "block_influence")
    return importance.ranks(order)


def _tau(one: OneModel) -> Callable[[np.ndarray], float]:
    known = _influence(one)
    return lambda costs: float(stats.kendall_taus(known, costs[None])[0])


def left(found: Measured) -> pd.DataFrame:
    """`prune_ratio.left` of every model, with its name: what is left of each capability at a few shares."""
    parts = [prune_ratio.left(one.study, one.along).assign(model=one.name) for one in found.models]
    return pd.concat(parts, ignore_index=True)


def of_all(lefts: pd.DataFrame) -> pd.DataFrame:
    """The rows of `left` on tasks of which something is known of every model."""
    known, models = lefts.dropna(subset="left"), lefts["model"].nunique()
    return known[known.groupby("on")["model"].transform("nunique") == models]


def in_words(damages: pd.DataFrame) -> list[str]:
    """What a share of the blocks and of the weights is to each model, a sentence each; argument from `damage`."""
    sentences = []
    for model, part in damages.groupby("model", sort=False):
        missing = [f"{ratio:.0f} %" for ratio in part.loc[part["count"].isna(), "ratio"]]
        known = part[(part["of"] == "blocks") & part["count"].notna()]
        costs = "; ".join(
            f"{row.share:.0f} % of the blocks ({row.weights:.0f} % of the weights) cost {row.rise:.0f} % more bits a "
            "byte"
            for row in known.itertuples()
        )
        text = f"{model}: {costs}"
        sentences.append(
            text + (f"; {' and '.join(missing)} of the weights are not in its blocks" if missing else "") + "."
        )
    return sentences


# --------------------------------------------------------------------------------------------------------- statements


def claim(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """What the papers say of "language models", model by model; a table of `verdicts.verdicts`.

    Args:
        found: what was measured.
        resamples: bootstrap resamples of the passages and items.
        seed: seed of the resampling.
    """
    parts = [_together(found, resamples, seed)]
    for one in found.models:
        # The ranks of some blocks are the same in all resamples, whose smallest step is one inner block.
        step = 1 / (max(1, one.study.num_blocks - 2) * found.passages)
        parts.append(verdicts.judge(_by_depth, one.costs, resamples, seed, one.name, least=step))
        parts.append(verdicts.judge(_orders(one), _with_quarters(one), resamples, seed, one.name))
        parts.append(_dissociation(one, resamples, seed))
    return verdicts.verdicts(parts, PRIMARY)


def _together(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """Statements on all models at once; they read the same passages, which are redrawn for all of them."""
    first, *others = [one.name for one in found.models]

    def statements(rises: np.ndarray) -> list[Statement]:
        out = [Statement(PRIMARY, float(rises.max()), USEFUL, "below", A_QUARTER)]
        for name, rise in zip(others, rises[1:], strict=True):
            words = f"a quarter of the blocks costs {name} a greater share of its bits a byte than {first}"
            out.append(Statement(words, float(rise), float(rises[0]), "above", A_QUARTER))
        return out

    return verdicts.judge(statements, np.column_stack([one.quarter for one in found.models]), resamples, seed, TEXT)


def _by_depth(costs: np.ndarray) -> list[Statement]:
    """ShortGPT's reading of figure 3 by ranks; none of a model without early and middle-to-late blocks."""
    won = wins(costs)
    if not won.size:
        return []
    shares = dearer(costs[0], costs[1:-1]), dearer(costs[-1], costs[1:-1]), float(won.mean())
    names = (FIRST, LAST, CHEAPER)
    return [Statement(name, round(share, 12), 0.5, "above", OFTEN) for name, share in zip(names, shares, strict=True)]


def _with_quarters(one: OneModel) -> np.ndarray:
    """(N, L + 2): costs of single removals, then of a quarter by Block Influence and of the last blocks (percent)."""
    return np.column_stack([one.costs, one.quarter, one.rises([one.by_measure["reverse_order"]])[0]])


def _orders(one: OneModel) -> Callable[[np.ndarray], list[Statement]]:
    """Statements on Block Influence in one model, of the means of `_with_quarters`."""
    tau = _tau(one)

    def statements(means: np.ndarray) -> list[Statement]:
        costs, by_influence, last = means[:-2], float(means[-2]), float(means[-1])
        out = [
            Statement(
                "a quarter of the blocks costs under 25 % of the bits a byte", by_influence, USEFUL, "below", A_QUARTER
            )
        ]
        if few_blocks.can_be_ranked(len(costs)):
            name = "Block Influence orders blocks nearly as their cost on text does (tau above 0.5)"
            out.append(Statement(name, tau(costs), AGREES, "above", TAU_MATTERS))
        name = "the last quarter of the blocks costs more than a quarter by Block Influence (in doublings)"
        some = [max(cost, NOTHING) for cost in (last, by_influence)]
        out.append(Statement(name, float(np.log2(some[0] / some[1])), 0.0, "above", DOUBLINGS))
        return out

    return statements


def _dissociation(one: OneModel, resamples: int, seed: int) -> pd.DataFrame:
    """Whether a quarter of the blocks costs copying more than agreement, of a model that can do both."""
    quarter = one.ratios[depth_curves.at_ratio(one.study.num_blocks, QUARTER)]
    known = capabilities.of_results(one.along.results, one.along.tasks, [one.study.dense, quarter])
    tasks = {task.name: task for task in known if capabilities.solved(task)}
    if not {AGREEMENT, COPYING} <= set(tasks):
        return pd.DataFrame()
    harms = [tasks[name].damage(ACCURACY) for name in (COPYING, AGREEMENT)]
    means = [float(harm.mean()) for harm in harms]

    def statement(copying: float, agreement: float) -> list[Statement]:
        return [
            Statement("a quarter of the blocks costs copying more than agreement", copying, agreement, "above", POINTS)
        ]

    draws = [
        [statement(float(a), means[1]) for (a,) in stats.bootstrap_means(harms[0], resamples, seed)],
        [statement(means[0], float(b)) for (b,) in stats.bootstrap_means(harms[1], resamples, seed + 1)],
    ]
    return verdicts.judged_draws(statement(*means), draws, [len(harm) for harm in harms], one.name)
