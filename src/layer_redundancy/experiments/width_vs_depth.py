"""Notebook 05, heads against blocks: what removals in width cost beside removals in depth (ShortGPT 4.2).

Three comparisons at equal weights removed: of what somebody would remove who has chosen on other text, on average, and
in the median. "Comparable", the paper's word, is a statement of equality, so each has a margin: what was chosen costs
little, and is compared in nats; what was not is compared by the ratio of the two damages, whose error is that of both.

The sets of random heads are drawn so that the difference between width and depth is known best for what it costs. Sets
differ far more from each other (standard deviation 0.33 nats on the embedded model) than one set does from text to text
(0.09 between blocks of 256 tokens), so that a forward is best spent on a set that was not there yet: every block of
text has sets of its own, and each set is measured on it alone. Resampling the blocks of text then resamples the sets
with them, one kind of unit. Single blocks of the model are measured on the whole text, as in notebook 02.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pandas as pd

from layer_redundancy.config.checks import Count, at_least
from layer_redundancy.core import stats, variants
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.store import Result
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.verdicts import Statement, judge, judged_draws, verdicts
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import few_blocks, result_tables
from layer_redundancy.inputs import first_blocks
from layer_redundancy.models import checkpoints
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

NOTEBOOK = "05_width_vs_depth"

# Its smallest detectable effect on the embedded profile: 0.04 nats a token.
PRIMARY = "chosen heads of a block's weights cost as much as the chosen block, within 0.05 nats"
ON_AVERAGE = (
    "random heads of a block's weights cost as much as a block, on average, within a factor of 1.25 (logarithm)"
)
IN_THE_MEDIAN = ON_AVERAGE.replace("on average", "in the median")
CHEAP = "most single heads raise the perplexity by less than 1 %"
BY_NUMBER = "the head's number explains less than a tenth of the differences between heads"

COMPARABLE = 1.25  # the larger damage over the smaller: below it they count as the same
SMALLEST = 0.05  # nats, a perplexity 5 % higher: no difference below it counts
MANY = 0.2  # of the heads: seven in ten are more than most


@dataclass(frozen=True)
class Budget:
    """What notebook 05 measures: every single head is by far the most variants, so less on each.

    Attributes:
        evaluation_blocks: number of first blocks of the evaluation text on which heads are removed in all blocks.
        calibration_blocks: number of first blocks of the calibration text on which single heads are removed.
        calibration_length: number of first tokens of each that are used.
        block_step: single heads are removed in every block_step-th block.
        chosen_blocks: number of blocks of evaluation text on which the chosen heads and the chosen block are removed,
            for their difference to be known better than the margin: two variants are cheap.
        random_sets: sets of heads that hold as many weights as a block, drawn at random for each block of evaluation
            text.
    """

    evaluation_blocks: Count
    calibration_blocks: Count
    calibration_length: Annotated[int, at_least(2)]
    chosen_blocks: Count
    block_step: Count = 1
    random_sets: Count = 8


@dataclass(frozen=True, eq=False)
class Damage:
    """Increase of the mean loss, nats a token, by block of text; N blocks of text, or M that the chosen are tried on.

    Attributes:
        blocks: (N, L), without each block of the model.
        random: (N, K), without each of K random sets of heads; the sets of each block of text are its own.
        chosen: (M, 2), without the chosen heads and without the chosen block.
    """

    blocks: np.ndarray
    random: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True, eq=False)
class Measured:
    """Removals of heads and of blocks.

    Attributes:
        block_size: number of weights of a block.
        head_size: number of weights that go with one query head.
        set_size: number of heads that hold as many weights as a block; the model may have fewer.
        calibration: the text on which single heads and blocks were removed to choose by.
        everywhere_on: the text on which heads were removed in all blocks.
        chosen_on: the text on which the chosen were removed.
        heads: (block, head) -> (N,) increase of the loss on the calibration text, nats a token, without that head.
        everywhere: measurement -> the dense model's result, then one without the head of each number in all blocks.
        chosen: what is removed -> the variant: the cheapest heads that hold a block's weights, and the cheapest block,
            by what each costs alone `at_most` on the calibration text; empty where the model has not so many.
        tasks: task -> variant -> result, of the dense model and the chosen.
        damage: what removals at equal weights cost on the evaluation text; None where there is nothing to compare.
    """

    block_size: int
    head_size: int
    set_size: int
    calibration: TokenBlocks
    everywhere_on: TokenBlocks
    chosen_on: TokenBlocks
    heads: Mapping[tuple[int, int], np.ndarray]
    everywhere: Mapping[str, Sequence[Result]]
    chosen: Mapping[str, Variant]
    tasks: Mapping[str, Mapping[Variant, Result]]
    damage: Damage | None


def measure(study: Study) -> Measured:
    """Removes every single head, each head number in all blocks, sets of heads of a block's weights, and every block.

    Raises:
        NotApplicable: the model has no attention heads.
    """
    num, num_heads = study.num_blocks, study.identity.num_attention_heads
    if not num_heads:
        raise NotApplicable(f"{study.identity.name} has no attention heads to remove")
    few_blocks.say_if_single(study)
    budget = study.profile.budget(Budget)
    block_size, head_size = checkpoints.block_weights(study.identity)
    size = round(block_size / head_size)
    single = variants.single_heads(num, num_heads, budget.block_step)
    blocks = variants.single_removal(num) if num > 1 else []
    calibration = first_blocks(study.calibration, budget.calibration_blocks, budget.calibration_length)
    _, alone = _losses(study, [*single.values(), *blocks], Perplexity(calibration))
    heads = {pair: alone[variant] for pair, variant in single.items()}
    chosen: dict[str, Variant] = {}
    if blocks and size < len(single):
        cheapest = sorted(heads, key=lambda pair: at_most(heads[pair]))[:size]
        chosen = {
            f"{size} chosen heads": variants.without_heads(num, cheapest),
            "the chosen block": min(blocks, key=lambda variant: at_most(alone[variant])),
        }
    else:
        logger.info(
            f"blocks and heads are not compared at equal weights: a block weighs as much as {size} heads, and "
            f"{len(single)} were removed"
        )
    everywhere = [study.dense, *variants.head_everywhere(num, num_heads)]
    everywhere_on = first_blocks(study.evaluation, budget.evaluation_blocks)
    of_number = study.sweep(everywhere, [Perplexity(everywhere_on), *study.tasks])
    tasks = study.sweep([study.dense, *chosen.values()], study.tasks) if chosen and study.tasks else {}
    text = replace(study.profile.text, evaluation_blocks=budget.chosen_blocks)
    chosen_on = study.inputs.token_blocks(text, "evaluation", 1)  # fewer blocks will do where a corpus has no more
    return Measured(
        block_size,
        head_size,
        size,
        calibration,
        everywhere_on,
        chosen_on,
        heads,
        {name: [of[v] for v in everywhere] for name, of in of_number.items()},
        chosen,
        {name.removeprefix("task/"): of for name, of in tasks.items()},
        _damage(study, blocks, list(chosen.values()), chosen_on, size) if chosen else None,
    )


def at_most(damage: np.ndarray) -> float:
    """What a removal costs at most, as far as a few blocks of text tell: the upper end of its 95 % interval.

    By their means alone, heads are chosen that help on one text by chance and harm others: on other calibration text,
    the 48 heads of the embedded model with the smallest means cost 0.74 nats together, those by the upper end 0.11.

    Args:
        damage: (N,) by block of text; its mean is taken where there is a single one.
    """
    high = stats.mean_interval(damage)[1]
    return float(damage.mean() if np.isnan(high) else high)


def _losses(
    study: Study, chosen: Sequence[Variant], perplexity: Perplexity
) -> tuple[np.ndarray, dict[Variant, np.ndarray]]:
    """The dense model's mean loss by block of text, (N,) nats a token; and variant -> (N,), how much higher it is."""
    found = study.sweep([study.dense, *chosen], [perplexity])[perplexity.name]
    dense = result_tables.cost(found[study.dense])
    return dense, {variant: result_tables.cost(found[variant]) - dense for variant in chosen}


def _damage(
    study: Study, blocks: Sequence[Variant], chosen: Sequence[Variant], chosen_on: TokenBlocks, size: int
) -> Damage:
    """What removals at equal weights cost on evaluation text."""
    text, num, num_heads = study.evaluation, study.num_blocks, study.identity.num_attention_heads
    dense, single = _losses(study, blocks, study.perplexity)
    _, by_choice = _losses(study, chosen, Perplexity(chosen_on))
    count, each = len(dense), study.profile.budget(Budget).random_sets
    sets = variants.random_heads(num, num_heads, size, count * each, study.profile.seed)
    logger.info(f"{len(sets)} random sets of {size} heads, {each} on each of {count} blocks of text")
    drawn = []
    for place in range(count):
        mine = sets[place * each : (place + 1) * each]
        on = Perplexity(replace(text, input_ids=text.input_ids[place : place + 1]))
        losses = study.sweep(mine, [on], progress=False)[on.name]
        drawn.append([result_tables.cost(losses[variant]).item() - dense[place] for variant in mine])
    return Damage(np.stack(list(single.values()), axis=1), np.array(drawn), np.stack(list(by_choice.values()), axis=1))


def weights_note(found: Measured) -> str:
    """How much heads weigh beside blocks, in a line."""
    return (
        f"a block holds {found.block_size:,} weights, a head {found.head_size:,}: {found.set_size} heads weigh as "
        "much as a block"
    )


def texts_note(found: Measured) -> str:
    """Which text says what, in a caption."""
    blocks, length = found.calibration.input_ids.shape
    return (
        f"Single heads, and the choice: {blocks} blocks of {length} tokens of the calibration split; what was chosen: "
        f"{len(found.chosen_on.input_ids)} blocks of evaluation text"
    )


def heads_note(study: Study) -> str:
    """How many heads a block has, in a caption."""
    num_heads, shared = study.identity.num_attention_heads, study.identity.num_key_value_heads
    return f"{num_heads} query heads a block" + (
        f" share {shared} keys and values, which stay" if shared < num_heads else ""
    )


# ------------------------------------------------------------------------------------------------ tables


def single_heads(heads: Mapping[tuple[int, int], np.ndarray]) -> pd.DataFrame:
    """What every single head costs: block, head, damage (nats a token), low, high (95 % t interval over text)."""
    rows = [(*pair, lost.mean(), *stats.mean_interval(lost)) for pair, lost in heads.items()]
    return pd.DataFrame(rows, columns=["block", "head", "damage", "low", "high"])


def by_number(everywhere: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """What it does to remove the heads of one number in all blocks (figure 6).

    Args:
        everywhere: measurement -> the dense model's result, then one a head number.

    Returns:
        head, measurement, value (increase of the loss in nats a token, or accuracy), low, high (95 %: Student's t over
        blocks of text, paired with the dense model; Wilson), dense (the whole model's value: 0, or accuracy), n,
        chance.
    """
    rows = []
    for name, (dense, *others) in everywhere.items():
        if result_tables.accuracy_metric(dense) is None:
            base, chance = result_tables.cost(dense), np.nan
            found = [result_tables.cost(other) - base for other in others]
            values = [(lost.mean(), *stats.mean_interval(lost)) for lost in found]
            whole, count = 0.0, len(base)
        else:
            right, chance = result_tables.right(dense), dense.summary["chance"]
            answers = [result_tables.right(other) for other in others]
            values = [(one.mean(), *stats.accuracy_interval(round(one.sum()), len(one))) for one in answers]
            whole, count = right.mean(), len(right)
        rows += [(head, name.removeprefix("task/"), *value, whole, count, chance) for head, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["head", "measurement", "value", "low", "high", "dense", "n", "chance"])


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `by_number` that are drawn: no accuracy on items too few to tell heads apart."""
    return table[table["chance"].isna() | (table["n"] >= result_tables.DRAWN)]


def equal_weights(found: Measured) -> pd.DataFrame:
    """Damage by depth and by width at equal weights removed.

    Returns:
        what (what is removed), damage (nats a token; of random heads each on its own block of text). No row where there
        is nothing to compare.
    """
    if found.damage is None:
        return pd.DataFrame(columns=["what", "damage"])
    heads, block = found.chosen
    kinds = {
        "one block": found.damage.blocks.mean(0),
        f"{found.set_size} random heads": found.damage.random.ravel(),
        heads: found.damage.chosen[:, :1].mean(0),
        block: found.damage.chosen[:, 1:].mean(0),
    }
    return pd.concat([pd.DataFrame({"what": what, "damage": d}) for what, d in kinds.items()], ignore_index=True)


def chosen_table(found: Measured, dense: Variant) -> pd.DataFrame:
    """What is lost without the chosen heads, and without the chosen block.

    Returns:
        removed, measurement, dense, changed_by, low, high (95 %, `stats.paired_interval` over blocks of text or items,
        paired with the dense model), n; nats a token, or accuracy from 0 to 1.
    """
    rows = []
    for place, (what, variant) in enumerate(found.chosen.items()):
        assert found.damage is not None
        lost = found.damage.chosen[:, place]
        rows.append((what, "loss, nats a token", np.nan, lost.mean(), *stats.mean_interval(lost), len(lost)))
        for task, results in found.tasks.items():
            whole, now = result_tables.right(results[dense]), result_tables.right(results[variant])
            changed = now - whole
            row = (what, f"accuracy, {task}", whole.mean(), changed.mean(), *stats.paired_interval(changed), len(whole))
            rows.append(row)
    return pd.DataFrame(rows, columns=["removed", "measurement", "dense", "changed_by", "low", "high", "n"])


# ------------------------------------------------------------------------------------------------ what is claimed


def claim(found: Measured, resamples: int, seed: int) -> pd.DataFrame:
    """ShortGPT 4.2: redundancy in width is high, comparable to that in depth, and without a pattern; as `verdicts`.

    Single heads are judged on calibration text, where nothing was chosen for them; what is compared at equal weights on
    evaluation text. What a model is too small for is left out.
    """
    parts = [judge(_cheap_heads, np.stack(list(found.heads.values()), axis=1), resamples, seed)]
    parts.append(_pattern_judged(found.heads, resamples, seed))
    if found.damage is not None:
        parts.append(chosen_compared(found.damage.chosen, resamples, seed))
        parts.append(random_compared(found.damage, resamples, seed))
    return verdicts(parts, PRIMARY)


def _cheap_heads(damage: np.ndarray) -> list[Statement]:
    return [Statement(CHEAP, float(np.mean(damage < np.log(1.01))), 0.5, "above", MANY)]


def chosen_compared(chosen: np.ndarray, resamples: int, seed: int) -> pd.DataFrame:
    """Whether the chosen heads cost as much as the chosen block, (M, 2) on evaluation text: a raw table."""

    def statements(mean: np.ndarray) -> list[Statement]:
        return [Statement(PRIMARY, float(mean[0] - mean[1]), SMALLEST, "within")]

    return judge(statements, chosen, resamples, seed)


def random_compared(damage: Damage, resamples: int, seed: int) -> pd.DataFrame:
    """Whether random heads cost as much as a block, on average and in the median: a raw table of logarithms of ratios.

    Blocks of text are resampled, with the sets of heads that were drawn for them.
    """

    def statements(rows: np.ndarray) -> list[Statement]:
        heads, blocks = damage.random[rows], damage.blocks[rows].mean(0)
        ratios = {
            ON_AVERAGE: _log_ratio(heads.mean(), blocks.mean()),
            IN_THE_MEDIAN: _log_ratio(np.median(heads), np.median(blocks)),
        }
        return [Statement(name, ratio, float(np.log(COMPARABLE)), "within") for name, ratio in ratios.items()]

    count = len(damage.blocks)
    draws = [statements(rows) for rows in stats.unit_rows(count, resamples, seed)]
    return judged_draws(statements(np.arange(count)), [draws], [count])


def _log_ratio(heads: np.floating, blocks: np.floating) -> float:
    """log(heads / blocks) of two damages; NaN where one of them is none, and no ratio says anything."""
    return float(np.log(heads / blocks)) if min(heads, blocks) > 0 else np.nan


def _pattern_judged(heads: Mapping[tuple[int, int], np.ndarray], resamples: int, seed: int) -> pd.DataFrame:
    """Statements about `pattern`: blocks of the model are resampled, and blocks of text."""
    blocks, numbers = sorted({block for block, _ in heads}), sorted({head for _, head in heads})
    cube = np.array([[heads[block, head] for head in numbers] for block in blocks])  # (B, H, N)
    if min(cube.shape[:2]) < 2:
        return pd.DataFrame()

    def statements(square: np.ndarray) -> list[Statement]:
        return [Statement(BY_NUMBER, pattern(square), 0.1, "below", matters=0.1)]

    of_model = [statements(cube[rows].mean(2)) for rows in stats.unit_rows(len(cube), resamples, seed)]
    of_text = [statements(cube[..., rows].mean(2)) for rows in stats.unit_rows(cube.shape[2], resamples, seed + 1)]
    return judged_draws(statements(cube.mean(2)), [of_model, of_text], [len(cube), cube.shape[2]])


def pattern(square: np.ndarray) -> float:
    """How much of the differences between heads goes with their number, beyond what chance gives.

    Args:
        square: (B, H) damage of each head, any unit: ranks are compared, since a few heads cost a thousandfold.

    Returns:
        The numbers' share of the sum of squares of the ranks (two-way without interaction), beyond what is expected
        where the heads of each block are shuffled: about 0 where there is no pattern, 1 where there is nothing else.
    """
    num, count = square.shape
    ranks = square.ravel().argsort(kind="stable").argsort().reshape(square.shape).astype(float)
    total = ((ranks - ranks.mean()) ** 2).sum()
    within_blocks = total - count * ((ranks.mean(1) - ranks.mean()) ** 2).sum()
    by_number, by_chance = num * ((ranks.mean(0) - ranks.mean()) ** 2).sum(), within_blocks / num
    return float((by_number - by_chance) / (total - by_chance))
