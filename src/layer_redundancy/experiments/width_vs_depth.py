"""Notebook 05, heads against blocks: what removals in width cost beside removals in depth (ShortGPT 4.2)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import Count, at_least
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.inputs import first_blocks
from layer_redundancy.models import checkpoints
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

SingleHeads = Mapping[tuple[int, int], tuple[Result, Result]]  # (block, head) -> without it, and the dense model


NOTEBOOK = "05_width_vs_depth"


@dataclass(frozen=True)
class Budget:
    """What notebook 05 measures: every single head is by far the most variants, so less on each.

    Attributes:
        evaluation_blocks: number of first blocks of the profile's evaluation text that are used.
        block_length: number of first tokens of each that are used.
        items: items of each of the profile's tasks that a head is tried on: the heads of one block on the first so
            many, those of the next on the next, and so on in turn.
        block_step: heads are removed in every block_step-th block.
        random_sets: number of sets of heads, drawn at random, that hold as many weights as a block.
    """

    evaluation_blocks: Count
    block_length: Annotated[int, at_least(2)]
    items: Count
    block_step: Count = 1
    random_sets: Count = 30


@dataclass(frozen=True, eq=False)
class Measured:
    """Removals of heads and of blocks.

    Attributes:
        perplexity: what the loss is measured on.
        block_size: number of weights of a block.
        head_size: number of weights that go with one query head.
        set_size: number of heads that hold as many weights as a block; the model may have fewer.
        heads: (block, head) -> variant, single removals.
        everywhere: variants without the head of one id in all blocks, by head id.
        sets: random sets of heads that hold a block's weights; none where the model has not so many heads.
        blocks: single removals of blocks; none of a model with a single block.
        nll: perplexity result of each variant.
        tasks: task -> variant -> result, of the dense model and `everywhere`.
        single: "perplexity" or a task's name -> (block, head) -> results without it and of the dense model.
    """

    perplexity: Perplexity
    block_size: int
    head_size: int
    set_size: int
    heads: Mapping[tuple[int, int], Variant]
    everywhere: Sequence[Variant]
    sets: Sequence[Variant]
    blocks: Sequence[Variant]
    nll: Mapping[Variant, Result]
    tasks: Mapping[str, Mapping[Variant, Result]]
    single: Mapping[str, SingleHeads]


def measure(study: Study) -> Measured:
    """Removes every single head, each head id in all blocks, random sets of heads, and every block.

    Raises:
        NotApplicable: the model has no attention heads.
    """
    num, num_heads = study.num_blocks, study.identity.num_attention_heads
    if not num_heads:
        raise NotApplicable(f"{study.identity.name} has no attention heads to remove")
    budget = study.profile.budget(Budget)
    block_size, head_size = checkpoints.block_weights(study.identity)
    size = round(block_size / head_size)
    enough = size < num * num_heads
    if not enough:
        logger.info(
            f"blocks and heads are not compared at equal weights: a block weighs as much as {size} heads, and the "
            f"model has {num * num_heads}"
        )
    few_blocks.say_if_single(study)
    heads = variants.single_heads(num, num_heads, budget.block_step)
    everywhere = variants.head_everywhere(num, num_heads)
    sets = variants.random_heads(num, num_heads, size, budget.random_sets, study.profile.seed) if enough else []
    blocks = variants.single_removal(num) if num > 1 else []
    perplexity = Perplexity(first_blocks(study.evaluation, budget.evaluation_blocks, budget.block_length))
    nll = study.sweep([study.dense, *heads.values(), *everywhere, *sets, *blocks], [perplexity])[perplexity.name]
    tasks = study.sweep([study.dense, *everywhere], study.tasks)
    single: dict[str, SingleHeads] = {"perplexity": {pair: (nll[v], nll[study.dense]) for pair, v in heads.items()}}
    single |= single_heads(study, heads, budget.items)
    return Measured(perplexity, block_size, head_size, size, heads, everywhere, sets, blocks, nll, tasks, single)


def single_heads(study: Study, heads: Mapping[tuple[int, int], Variant], items: int) -> dict[str, SingleHeads]:
    """The profile's tasks on single heads: task -> (block, head) -> (result, the dense model's on the same items).

    Heads of one block are tried on a few items, those of the next block on the next few, in turn: a mean over
    blocks is then over all items, and costs no more than a few.
    """
    found: dict[str, SingleHeads] = {}
    blocks = sorted({block for block, _ in heads})
    for task in study.tasks:
        parts = [ChoiceTask(part) for part in task.items.parts(items)]
        of_task: dict[tuple[int, int], tuple[Result, Result]] = {}
        for turn, part in enumerate(parts[: len(blocks)]):
            mine = {pair: heads[pair] for pair in heads if blocks.index(pair[0]) % len(parts) == turn}
            logger.info(f"{task.items.name}, part {turn + 1} of {min(len(parts), len(blocks))}")
            results = study.sweep([study.dense, *mine.values()], [part])[part.name]
            of_task |= {pair: (results[variant], results[study.dense]) for pair, variant in mine.items()}
        found[task.items.name] = of_task
    return found


def weights_note(found: Measured) -> str:
    """How much heads weigh beside blocks, in a line."""
    return (
        f"a block holds {found.block_size:,} weights, a head {found.head_size:,}: {found.set_size} heads weigh as "
        "much as a block"
    )


def heads_note(study: Study) -> str:
    """How many heads a block has, in a caption."""
    num_heads, shared = study.identity.num_attention_heads, study.identity.num_key_value_heads
    return f"{num_heads} query heads a block" + (
        f" share {shared} keys and values, which stay" if shared < num_heads else ""
    )


def claim(study: Study, found: Measured, pattern: pd.DataFrame) -> pd.DataFrame:
    """`width_claim`, and whether there is a pattern by head id; pattern from `variance_shares`."""
    table = width_claim(found, study.dense, study.profile.bootstrap_resamples, study.profile.seed)
    if pattern.empty:
        return table
    row = pattern.set_index("factor").loc["head id"]
    table.loc[len(table)] = (
        "no pattern by head id: p of its share of the differences",
        row.p,
        0.05,
        row.p > 0.05,
        np.nan,
    )
    return table


def changes(single: Mapping[str, SingleHeads]) -> pd.DataFrame:
    """What the removal of each single head changes.

    Args:
        single: "perplexity" or a task's name -> results.

    Returns:
        block, head, measurement, change (mean log-increase in nats a token, or change of the accuracy), n (blocks of
        text or items).
    """
    rows = []
    for name, of_head in single.items():
        sign = 1 if name == "perplexity" else -1
        for (block, head), (without, dense) in of_head.items():
            change = sign * (result_tables.cost(without) - result_tables.cost(dense))
            rows.append((block, head, name, change.mean(), len(change)))
    return pd.DataFrame(rows, columns=["block", "head", "measurement", "change", "n"])


def by_id(
    results: Mapping[str, Mapping[Variant, Result]], everywhere: Sequence[Variant], dense: Variant
) -> pd.DataFrame:
    """Perplexity and accuracy with the head of one id removed in all blocks (figure 6).

    Returns:
        head, measurement, value, low, high (95 %; of perplexity paired with the dense model by block of text, so that
        the text's difficulty cancels), dense (the whole model's value), n (items; NaN for perplexity), chance.
    """
    parts = []
    for name, of_variant in results.items():
        task = name.removeprefix("task/")
        chosen = {variant: of_variant[variant] for variant in [dense, *everywhere]}
        if name == "perplexity":
            table, whole = result_tables.perplexity(chosen, dense)
            low, high = (whole["perplexity"] * np.exp(table[f"log_increase_{end}"]) for end in ("low", "high"))
            table = table.assign(low=low, high=high).rename(columns={"perplexity": "value"})
        else:
            table = result_tables.accuracy(chosen, dense, task).rename(columns={"accuracy": "value"})
        table = table.reindex(columns=["value", "low", "high", "n", "chance"])
        dense_value = table["value"].iloc[0]
        parts.append(table.iloc[1:].assign(head=range(len(everywhere)), measurement=task, dense=dense_value))
    out = pd.concat(parts, ignore_index=True)
    return out[["head", "measurement", "value", "low", "high", "dense", "n", "chance"]]


def equal_weights(
    results: Mapping[Variant, Result],
    blocks: Sequence[Variant],
    sets: Sequence[Variant],
    heads: Sequence[Variant],
    dense: Variant,
    size: int,
) -> pd.DataFrame:
    """Damage by depth and by width at equal weights removed.

    Args:
        results: perplexity results of all variants.
        blocks: variants without one block.
        sets: variants without `size` random heads, which hold as many weights as a block.
        heads: variants without one head.
        size: number of heads that hold as many weights as a block.

    Returns:
        what (what is removed), damage (log-increase in nats a token); for single heads `size` times the damage, which
        is what a block's weights in heads would cost if heads' damages added up. No row where no block or no set of
        heads was removed, since nothing is left to compare.
    """
    if not (blocks and sets):
        return pd.DataFrame(columns=["what", "damage"])
    base = result_tables.cost(results[dense]).mean()

    def damage(chosen: Sequence[Variant]) -> np.ndarray:
        return np.array([result_tables.cost(results[variant]).mean() - base for variant in chosen])

    kinds = {
        f"one block (n={len(blocks)})": damage(blocks),
        f"{size} heads at random, as many weights (n={len(sets)})": damage(sets),
        f"one head, times {size} (n={len(heads)})": size * damage(heads),
    }
    return pd.concat([pd.DataFrame({"what": what, "damage": d}) for what, d in kinds.items()], ignore_index=True)


def variance_shares(single: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """How much of the differences between heads' damages goes with the block and how much with the head's id.

    Args:
        single: block, head, change; one measurement, every head of some blocks.
        resamples: random relabellings of the heads within each block.

    Returns:
        factor ("block", "head id"), share (of the sum of squares of the ranks of damage, two-way without interaction),
        by_chance (mean share where ids are shuffled within each block; for blocks, where heads are shuffled over all),
        p (share of the relabellings with at least as large a share: small where there is a pattern). No row where
        heads of one block alone were removed, or blocks have a single head: no pattern could show.
    """
    if single["block"].nunique() < 2 or single["head"].nunique() < 2:
        return pd.DataFrame(columns=["factor", "share", "by_chance", "p"])
    square = single.pivot(index="block", columns="head", values="change").to_numpy()  # noqa: PD010 - each cell once
    # Ranks are compared: a few heads cost a thousandfold.
    found = zip(("block", "head id"), stats.variance_shares(square, resamples, seed), strict=True)
    rows = [{"factor": factor, "share": share, "by_chance": chance, "p": p} for factor, (share, chance, p) in found]
    return pd.DataFrame(rows)


def width_claim(found: Measured, whole: Variant, resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT 4.2: redundancy in width is high, and comparable to that in depth; columns of `stats.claim`.

    Statements that compare the two are left out where no block or no set of heads was removed.
    """
    blocks, sets, dense = found.blocks, found.sets, found.nll[whole]
    chosen = [*blocks, *sets, *found.heads.values()]
    values = np.stack([result_tables.cost(found.nll[v]) - result_tables.cost(dense) for v in chosen], axis=1)

    def statements(mean: np.ndarray) -> list[Statement]:
        block, drawn, head = np.split(mean, np.cumsum([len(blocks), len(sets)]))
        few = float(np.mean(head < np.log(1.01)))
        stated = [("share of single heads that raise perplexity by less than 1 %", few, 0.5, few > 0.5)]
        if not (blocks and sets):
            return stated
        a, b = float(np.median(drawn)), float(np.median(block))
        stated.append(("median damage of random heads of a block's weights, at most a block's", a, b, a <= b))
        a, b = float(block.min()), float(drawn.min())
        stated.append(("the cheapest block costs less than the cheapest set of heads", a, b, a < b))
        return stated

    return stats.claim(statements, values, resamples, seed)
