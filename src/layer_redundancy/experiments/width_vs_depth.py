"""Heads against blocks: what removals in width cost, and what they cost beside removals in depth (ShortGPT 4.2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from layer_redundancy.core import stats
from layer_redundancy.core.stats import Statement
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.experiments import result_tables

Tried = Mapping[tuple[int, int], tuple[Result, Result]]  # (block, head) -> without it, and the dense model


def changes(tried: Mapping[str, Tried]) -> pd.DataFrame:
    """What the removal of each single head changes.

    Args:
        tried: "perplexity" or a task's name -> results.

    Returns:
        block, head, measurement, change (mean log-increase in nats a token, or change of the accuracy), n (blocks of
        text or items).
    """
    rows = []
    for name, of_head in tried.items():
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
        results: perplexity of all variants.
        blocks: without one block.
        sets: without `size` random heads, which hold as many weights as a block.
        heads: without one head.
        size: heads that hold as many weights as a block.

    Returns:
        what (what is removed), damage (log-increase in nats a token); for single heads `size` times the damage, which
        is what a block's weights in heads would cost if heads' damages added up.
    """
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
        p (share of the relabellings with at least as large a share: small where there is a pattern).
    """
    square = single.pivot(index="block", columns="head", values="change").to_numpy()  # noqa: PD010 - each cell once
    # Ranks, since a few heads cost a thousandfold.
    of_blocks, of_ids = stats.variance_shares(square, resamples, seed)
    rows = [("block", *of_blocks), ("head id", *of_ids)]
    return pd.DataFrame(rows, columns=["factor", "share", "by_chance", "p"])


def width_claim(
    results: Mapping[Variant, Result],
    blocks: Sequence[Variant],
    sets: Sequence[Variant],
    heads: Sequence[Variant],
    dense: Variant,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """ShortGPT 4.2: redundancy in width is high, and comparable to that in depth. See `stats.claim`.

    Args:
        results: perplexity of all variants; the others as in `equal_weights`.
    """
    chosen = [*blocks, *sets, *heads]
    values = np.stack([result_tables.cost(results[v]) - result_tables.cost(results[dense]) for v in chosen], axis=1)

    def statements(mean: np.ndarray) -> list[Statement]:
        block, drawn, head = np.split(mean, np.cumsum([len(blocks), len(sets)]))
        few = float(np.mean(head < np.log(1.01)))
        a, b = float(np.median(drawn)), float(np.median(block))
        said = [
            ("share of single heads that raise perplexity by less than 1 %", few, 0.5, few > 0.5),
            ("median damage of random heads of a block's weights, at most a block's", a, b, a <= b),
        ]
        a, b = float(block.min()), float(drawn.min())
        said.append(("the cheapest block costs less than the cheapest set of heads", a, b, a < b))
        return said

    return stats.claim(statements, values, resamples, seed)
