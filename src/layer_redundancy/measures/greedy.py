"""The greedy order of removal: remove the block that hurts least, then of what is left the next, and so on.

No measure that looks at one block at a time can know what removals do together; this order does, step by step, so it is
the reference that measures should approach.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from layer_redundancy.core import flags, variants
from layer_redundancy.core.arguments import number
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.variants import Variant


@flags.checked
def removal_order(
    num_blocks: int,
    cost: Callable[[Sequence[Variant]], Sequence[float]],
    shortlist: float = 1.0,
    progress: bool = False,
    steps: int | None = None,
) -> np.ndarray:
    """The order in which blocks are removed, each time the one that leaves the smallest cost.

    Args:
        num_blocks: L, the number of blocks.
        cost: variants -> the cost of each, such as its mean negative log-likelihood on text that is not the one
            the order is judged on.
        shortlist: share of the remaining blocks that are tried at a step, at least two of them: those that hurt least
            when they were last tried. 1 tries all; 0.5 takes half the time and rarely gives another order.
        progress: draw a progress bar, in blocks run.
        steps: how many removals are asked for; all if not given.

    Returns:
        (L,) int64 block indices, first removed first; after `steps` of them the rest, ascending, of all the one that is
        never removed. Ties go to the deeper block.

    Raises:
        StudyError: shortlist is not in (0, 1].
    """
    if not 0 < number(shortlist, "greedy shortlist") <= 1:
        raise StudyError(f"greedy shortlist {shortlist} is out of range: choose a share above 0, at most 1")
    order: list[int] = []
    known = np.zeros(num_blocks)  # what each removal added to the cost when last tried
    tries = [num_blocks, *(_num_tried(left, shortlist) for left in range(num_blocks - 1, 1, -1))][: num_blocks - 1]
    tries = tries[:steps]
    # A variant of n blocks runs about half of them anew, if its neighbours are tried too.
    work = [tried * (num_blocks - step) for step, tried in enumerate(tries)]
    with tqdm(total=sum(work), desc="greedy order", unit="block", disable=not progress, mininterval=1.0) as bar:
        (base,) = cost([variants.dense(num_blocks)])
        for step, tried in enumerate(tries):
            # The deeper first among equals.
            left = sorted(set(range(num_blocks)) - set(order), key=lambda block: (known[block], -block))
            candidates = sorted(left[:tried])
            plan = [variants.without(num_blocks, [*order, block]) for block in candidates]
            known[candidates] = np.array(cost(plan)) - base
            order.append(min(candidates, key=lambda block: (known[block], -block)))
            base += known[order[-1]]
            bar.update(work[step])
    order += sorted(set(range(num_blocks)) - set(order))
    return np.array(order, dtype=np.int64)


def _num_tried(left: int, shortlist: float) -> int:
    return min(left, max(2, math.ceil(shortlist * left)))
