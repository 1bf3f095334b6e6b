"""Notebook 02: every block removed in turn (ShortGPT 2.1, figure 3), and what each is redundant for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement
from layer_redundancy.core.wording import counted
from layer_redundancy.experiments import capabilities, few_blocks, first_token, result_tables
from layer_redundancy.experiments.capabilities import ACCURACY, AGREEMENT, COPYING, NATS, TEXT, Capability
from layer_redundancy.experiments.first_token import FirstToken
from layer_redundancy.measures import importance, registry
from layer_redundancy.study import Study

NOTEBOOK = "02_single_layer_removal"
# On the embedded profile (200 items of each task) a difference of 12 points of accuracy is found with a power of 0.8.
PRIMARY = "a middle-to-late block costs copying more than agreement"
POINTS = 0.15  # of accuracy, that matter between two blocks or tasks; fewer are not seen on 200 items
CRITICAL = 0.5  # nats a token of text above the median block, by which perplexity is 1.6 times as large
MATTERS = 0.1  # nats a token of text, that matter between blocks in the midst of others
HARMLESS = 0.05  # of accuracy: what is less counts as no harm


@dataclass(frozen=True, eq=False)
class Measured:
    """The dense model and every single removal.

    Attributes:
        results: measurement -> variant -> result.
        checked: variants that were also run by plain forwards.
        deviation: largest difference between these plain forwards and the sweep, nats a token.
        ranks: importance measure, or measures of one order -> when it removes each block, (L,), 1 first; none for a
            model of few blocks.
        first_token: the block that makes the first token large; None where none does.
    """

    results: Mapping[str, Mapping[Variant, Result]]
    checked: tuple[Variant, ...]
    deviation: float
    ranks: Mapping[str, np.ndarray]
    first_token: FirstToken | None


def measure(study: Study) -> Measured:
    """Measures the dense model and every single removal on perplexity and the profile's tasks.

    Raises:
        NotApplicable: the model has a single block, or the profile no task.
    """
    few_blocks.need_removable(study, "nothing to remove in turn")
    few_blocks.need_task(study)
    chosen = [study.dense, *variants.single_removal(study.num_blocks)]
    results = study.sweep(chosen)
    checked = tuple(chosen[:: max(1, len(chosen) // 3)])
    deviation = study.deviation(checked)
    ranks = {}
    if few_blocks.can_be_ranked(study.num_blocks):
        cheap = [
            name for name, one in registry.REGISTRY.items() if isinstance(one.kind, CHEAP) and name != "sequential"
        ]
        ranks = _merged({name: importance.ranks(study.order(name)) for name in cheap})
    return Measured(results, checked, deviation, ranks, first_token.measure(study))


def _merged(ranks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Measures of one order under one name, such as "hidden_norm = reverse_order"."""
    return {" = ".join(same): ranks[same[0]] for same in importance.equal_together(ranks)}


# Measures that cost no more than one pass over the text: no gradients, and no loss without each block. "sequential" is
# reverse order the other way round.
CHEAP = (registry.Activations, registry.Position, registry.Weights)


def losses(study: Study, found: Measured) -> list[Capability]:
    """Text and tasks of the dense model, then without each block."""
    chosen = [study.dense, *variants.single_removal(study.num_blocks)]
    return capabilities.of_results(found.results, study.tasks, chosen)


# ------------------------------------------------------------------------------------------------------------- tables


def perplexity(study: Study, found: Measured) -> pd.DataFrame:
    """Columns of `result_tables.perplexity`, `removed` as `block` (NaN for the dense model)."""
    return result_tables.by_block(result_tables.perplexity(found.results["perplexity"], study.dense)[0])


def accuracy(study: Study, found: Measured) -> pd.DataFrame:
    """Columns of `result_tables.accuracy` for all tasks, `removed` as `block` (NaN for the dense model)."""
    parts = [result_tables.accuracy(found.results[t.name], study.dense, t.items.name) for t in study.tasks]
    return result_tables.by_block(pd.concat(parts))


def damage(study: Study, found: Measured) -> pd.DataFrame:
    """What the removal of each block costs, by capability; columns of `capabilities.damage`, `place` as `block`."""
    table = capabilities.damage(losses(study, found))
    return table.assign(block=table.pop("place") - 1)


def orders(study: Study, found: Measured) -> pd.DataFrame:
    """The order in which a capability would remove blocks, by damage in nats, against other orders.

    Returns:
        A row a (capability, other order): on, other (a measure, or another capability), kind ("measure", "capability"
        or "itself"), tau (Kendall's; 1: the same order) with its 95 % interval low, high over blocks of text or items.
        With "itself", the mean tau of orders by two halves of the units, each of half of them and so less certain than
        the order by all; it has no interval. None where the model has too few blocks.
    """
    resamples = study.profile.bootstrap_resamples
    rows = []
    if found.ranks:
        known = [one for one in losses(study, found) if one.in_nats]
        harms = {one.name: one.damage(NATS) for one in known}
        drawn = {
            name: stats.bootstrap_means(harm, resamples, study.profile.seed + place)
            for place, (name, harm) in enumerate(harms.items())
        }
        for name, harm in harms.items():
            for other, ranks in found.ranks.items():
                tau = stats.kendall_taus(ranks, harm.mean(0)[None])[0]
                low, high = stats.interval(tau, stats.kendall_taus(ranks, drawn[name]), len(harm))
                rows.append((name, other, "measure", tau, low, high))
            for other in harms:
                if other != name:
                    rows.append((name, other, "capability", *_tau(harm, harms[other], drawn[name], drawn[other])))
            rows.append((name, name, "itself", _halves(harm, study.profile.seed), np.nan, np.nan))
    table = pd.DataFrame(rows, columns=["on", "other", "kind", "tau", "low", "high"])
    return table.dropna(subset="tau").reset_index(drop=True)  # where no block costs anything, there is no order


def _tau(one: np.ndarray, other: np.ndarray, drawn: np.ndarray, also: np.ndarray) -> tuple[float, float, float]:
    """Tau of the orders by two capabilities' damages (N, L), with its interval over the units of both."""
    tau = stats.kendall_taus(one.mean(0), other.mean(0)[None])[0]
    draws = [stats.kendall_taus(other.mean(0), drawn), stats.kendall_taus(one.mean(0), also)]
    return tau, *stats.interval_over_kinds(tau, draws, [len(one), len(other)])


def _halves(harm: np.ndarray, seed: int, times: int = 100) -> float:
    """Mean tau of the orders by damage (N, L) on two random halves of the units; NaN for a single unit."""
    if len(harm) < 2:
        return np.nan
    rng = stats.generator(seed)
    taus = []
    for _ in range(times):
        places = rng.permutation(len(harm))
        first, second = places[: len(harm) // 2], places[len(harm) // 2 :]
        taus.append(stats.kendall_taus(harm[first].mean(0), harm[second].mean(0)[None])[0])
    return float(np.mean(taus))


def values(perplexity: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """Figure 3's values, a row a removed block.

    Args:
        perplexity: perplexities by block, from `perplexity`.
        damage: from `damage`.

    Returns:
        removed block, perplexity, and for each capability and unit what is lost with its 95 % interval.
    """
    table = perplexity.dropna(subset="block").set_index("block")
    out = pd.DataFrame({"perplexity": table["perplexity"]})
    for (on, unit), part in damage.groupby(["on", "unit"], sort=False):
        part = part.set_index("block")
        name = f"{on}, {unit} lost"
        out[name] = part["damage"]
        out[f"{name}: low"], out[f"{name}: high"] = part["low"], part["high"]
    return out.sort_index().reset_index(names="removed block").astype({"removed block": int})


def in_words(damage: pd.DataFrame) -> list[str]:
    """What the table of damage says to somebody who would remove a block, a sentence a capability.

    Of how many blocks something is true is told at a level of `verdicts.LEVEL` for all blocks together (Holm).
    """
    sentences = []
    for on in damage["on"].unique():
        in_nats, every = (damage[(damage["on"] == on) & (damage["unit"] == unit)] for unit in (NATS, ACCURACY))
        dearest = ", ".join(map(str, (every if in_nats.empty else in_nats).nlargest(3, "damage")["block"]))
        if every.empty:
            cheapest = in_nats.loc[in_nats["damage"].idxmin()]
            less = int(capabilities.below(in_nats, MATTERS).sum())
            sentences.append(
                f"{on.capitalize()}: {_of(less, len(in_nats))} can go for less than {MATTERS:g} nats a token; the "
                f"smallest loss measured is that of block {cheapest['block']} ({cheapest['damage']:+.3f}), the largest "
                f"are those of {dearest}."
            )
            continue
        harmless, harmful = int(capabilities.below(every, HARMLESS).sum()), every[capabilities.above(every)]
        sentences.append(
            f"{on.capitalize()}: {_of(harmless, len(every))} can go for less than {100 * HARMLESS:.0f} points of "
            f"accuracy, {counted(len(harmful), 'block')} {'costs' if len(harmful) == 1 else 'cost'} some"
            + (f" ({', '.join(map(str, harmful['block']))})" if len(harmful) else "")
            + f"; the largest losses measured are those of {dearest}."
        )
    return sentences


def _of(number: int, total: int) -> str:
    return f"each of {number} of {total} blocks" if number else f"none of {total} blocks"


# --------------------------------------------------------------------------------------------------------- statements


def claim(study: Study, found: Measured) -> pd.DataFrame:
    """ShortGPT's reading of figure 3 as statements: on text in nats, on tasks that the dense model can do in accuracy.

    Returns:
        A table of `verdicts.verdicts`.
    """
    seed, resamples = study.profile.seed, study.profile.bootstrap_resamples
    known = {one.name: one for one in losses(study, found)}
    tasks = {name: one for name, one in known.items() if capabilities.solved(one)}
    parts = [depth_claim(known[TEXT].damage(NATS), resamples, seed, TEXT)] if TEXT in known else []
    parts += [last_claim(one.damage(ACCURACY), resamples, seed, name) for name, one in tasks.items()]
    if {AGREEMENT, COPYING} <= set(tasks):
        pair = tasks[COPYING], tasks[AGREEMENT]
        parts += [dissociation(*ordered, resamples, seed) for ordered in (pair, pair[::-1])]
    if found.first_token is not None:
        parts.append(found.first_token.claim(resamples, seed))
    return verdicts.verdicts(parts, PRIMARY)


def depth_claim(costs: np.ndarray, resamples: int, seed: int, on: str) -> pd.DataFrame:
    """Does ShortGPT's reading of figure 3 hold: middle-to-late blocks redundant, the first and the last critical?

    Args:
        costs: (N, L) costs of each removal on N blocks of text, nats a token.
        resamples: bootstrap resamples of the N.
        seed: seed of the resampling.
        on: the measurement.

    Returns:
        Statements for `verdicts.verdicts`. "Middle to late" are the blocks from a third of the depth on, without the
        last; "early" those before, without the first. Statements about blocks that a shallow model does not have are
        left out.
    """

    def statements(cost: np.ndarray) -> list[Statement]:
        middle, early = middle_to_late(len(cost)), early_blocks(len(cost))
        out = [*_critical("first", cost, CRITICAL), *_critical("last", cost, CRITICAL)]
        if len(middle) and len(early):
            name = "the median middle-to-late block costs less than the median early one"
            ends = float(np.median(cost[middle])), float(np.median(cost[early]))
            out.append(Statement(name, *ends, "below", MATTERS))
        return out

    return verdicts.judge(statements, costs, resamples, seed, on)


def last_claim(costs: np.ndarray, resamples: int, seed: int, on: str) -> pd.DataFrame:
    """Whether the last block is critical for a task; costs (N, L) in accuracy. Other arguments as of `depth_claim`.

    Nobody would remove the first, and between others there is little accuracy to tell them apart by.
    """
    return verdicts.judge(lambda cost: _critical("last", cost, POINTS), costs, resamples, seed, on)


def _critical(which: Literal["first", "last"], cost: np.ndarray, matters: float) -> list[Statement]:
    """That an outer block costs more than the median of the inner ones; none of a model without these."""
    if len(cost) < 3:
        return []
    name = f"the {which} block costs more than the median inner one"
    return [Statement(name, cost[0 if which == "first" else -1], float(np.median(cost[1:-1])), "above", matters)]


def middle_to_late(num_blocks: int) -> list[int]:
    """Blocks from a third of the depth on, without the last."""
    return list(range(max(1, num_blocks // 3), num_blocks - 1))


def early_blocks(num_blocks: int) -> list[int]:
    """Blocks before a third of the depth, without the first."""
    return list(range(1, max(1, num_blocks // 3)))


def dissociation(one: Capability, other: Capability, resamples: int, seed: int) -> pd.DataFrame:
    """Whether a middle-to-late block costs one task more than another.

    The block is the one whose difference stands out most on one half of the items, in standard errors; it is judged on
    the other half, and the other way round, so that nothing speaks for it but the block itself.

    Args:
        one, other: the dense model, then without each block.

    Returns:
        Statements for `verdicts.verdicts`, in accuracy; none for a model without such blocks.
    """
    harms = [capability.damage(ACCURACY) for capability in (one, other)]
    middle = middle_to_late(harms[0].shape[1])
    if not middle or min(map(len, harms)) < 4:
        return pd.DataFrame()
    halves = [middle[_standing_out(*(harm[start::2][:, middle] for harm in harms))] for start in (0, 1)]
    judged = []
    for harm in harms:  # the items of one half, without the block that the other half chose
        found = harm[:, halves[0]].copy()
        found[::2] = harm[::2, halves[1]]
        judged.append(found)
    name = f"a middle-to-late block costs {one.name} more than {other.name}"

    def statement(a: float, b: float) -> list[Statement]:
        return [Statement(name, a, b, "above", POINTS)]

    mean_a, mean_b = judged[0].mean(), judged[1].mean()
    draws = [
        [statement(a, mean_b) for a in stats.bootstrap_means(judged[0], resamples, seed)],
        [statement(mean_a, b) for b in stats.bootstrap_means(judged[1], resamples, seed + 1)],
    ]
    on = f"{one.name} against {other.name}, block {' or '.join(map(str, sorted(set(halves))))}"
    return verdicts.judged_draws(statement(mean_a, mean_b), draws, [len(of) for of in judged], on)


def _standing_out(one: np.ndarray, other: np.ndarray) -> int:
    """Where the means of (N, K) and (M, K) values differ most, the first above the second, in standard errors."""
    error = np.sqrt(sum(of.var(0, ddof=1) / len(of) for of in (one, other)))
    difference = one.mean(0) - other.mean(0)
    return int(np.argmax(difference / np.maximum(error, 1e-12)))
