"""Which blocks go: by a measure, as many as asked for, as a share, or as many as a loss allows."""

from collections.abc import Sequence

from layer_redundancy.core import variants
from layer_redundancy.core.arguments import listed, whole
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.experiments import depth_curves, few_blocks, result_tables
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance
from layer_redundancy.pruning.how_many import HowMany
from layer_redundancy.study import Study

_SINGLE = "{} has a single block, and at least one stays: there is nothing to remove"
STEPS = 4  # numbers of removed blocks that are tried at a time while a loss is looked for


def removals(study: Study, by: str, counts: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """What a measure removes at each number of blocks: count -> blocks, first removed first.

    The rule of angular_distance removes one contiguous run, of each length the one with the smallest distance (Gromov
    et al. 2024); every other measure's removals are the beginnings of one order.

    Raises:
        StudyError: unknown measure; a number that is negative, or that leaves no block.
    """
    num, counts = study.num_blocks, listed(counts, "numbers of blocks", "[1, 2, 4]")
    if num == 1 and any(counts):
        raise StudyError(_SINGLE.format(study.identity.name))
    for count in counts:
        if not 0 <= whole(count, "the number of blocks to remove") < num:
            raise StudyError(f"{count} blocks cannot be removed: the model has {num}, so give 0 to {num - 1}")
    if by == "angular_distance":
        grid = importance.angular_grid(study.activation_sums())
        starts = {n: importance.best_start(grid, n) for n in counts if n}
        return {n: tuple(range(starts[n], starts[n] + n)) if n else () for n in counts}
    order = [int(block) for block in study.order(by)]
    return {n: tuple(order[:n]) for n in counts}


def chosen(study: Study, by: str, how_many: HowMany) -> tuple[int, ...]:
    """The blocks to remove, first removed first.

    Raises:
        StudyError: as `removals`; no block at all can go, or none at so small a loss.
    """
    num = study.num_blocks
    if num == 1:
        raise StudyError(_SINGLE.format(study.identity.name))
    if how_many.max_loss is not None:
        return _within(study, by, how_many.max_loss)
    count = how_many.remove
    if how_many.ratio is not None:
        few_blocks.say_what_shares_are(num, [how_many.ratio])
        count = depth_curves.at_ratio(num, how_many.ratio)
    assert count is not None, "HowMany lets one of the three be given"
    if count == 0:
        raise StudyError(f"no block is to be removed: give 1 to {num - 1}")
    return removals(study, by, [count])[count]


def _within(study: Study, by: str, max_loss: float) -> tuple[int, ...]:
    """The longest removal whose cost on calibration text, and that of all shorter ones, is at most `max_loss`.

    On calibration text, since what is chosen on evaluation text would be judged on the text that chose it.
    """
    perplexity = Perplexity(first_blocks(study.calibration, study.profile.text.evaluation_blocks))
    removed = removals(study, by, range(1, study.num_blocks))
    found: tuple[int, ...] = ()
    for start in range(1, study.num_blocks, STEPS):
        counts = range(start, min(start + STEPS, study.num_blocks))
        left = {count: variants.without(study.num_blocks, removed[count]) for count in counts}
        results = study.sweep([study.dense, *left.values()], [perplexity])[perplexity.name]
        dense = result_tables.cost(results[study.dense]).mean()
        for count, variant in left.items():
            loss = result_tables.cost(results[variant]).mean() - dense
            if loss > max_loss:
                if not found:
                    raise StudyError(
                        f"the first block that {by} removes costs {loss:.3g} nats a token already, more than "
                        f"{max_loss:g}: allow more (--max-loss), or remove by another measure (--by)"
                    )
                return found
            found = removed[count]
    return found
