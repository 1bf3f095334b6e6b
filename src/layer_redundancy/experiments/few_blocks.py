"""What models of a few blocks, and profiles without a task, cannot tell, and the lines that say so.

At least one block always stays, so a single block cannot be removed; two orders of two blocks agree wholly or not at
all, so their rank correlation says nothing; and a tenth or a quarter of two blocks is none.
"""

import logging
from collections.abc import Iterable

from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.wording import counted
from layer_redundancy.study import Study

logger = logging.getLogger(__name__)

RANKED = 3  # the fewest blocks whose orders are compared by rank correlation


def need_removable(study: Study, what: str) -> None:
    """Raises NotApplicable where no block can be removed.

    Args:
        what: what therefore cannot be measured, for the message.
    """
    if study.num_blocks < 2:
        raise NotApplicable(f"{study.identity.name} has a single block, and at least one stays: {what}")


def need_task(study: Study) -> None:
    """Raises NotApplicable where the profile has no task, whose accuracy a notebook sets beside perplexity."""
    if not study.profile.tasks:
        raise NotApplicable(
            f"the {study.profile.name} profile has no task, whose accuracy stands beside perplexity here: give one "
            "under tasks"
        )


def say_if_single(study: Study) -> None:
    """Logs that nothing is removed, where a notebook has more to tell than that."""
    if study.num_blocks < 2:
        logger.info(f"{study.identity.name} has a single block, and at least one stays: nothing is removed from it")


def can_be_ranked(num_blocks: int) -> bool:
    """Whether the rank correlation of two orders of so many blocks says anything."""
    return num_blocks >= RANKED


def no_ranks(num_blocks: int) -> str:
    """Why a rank correlation is left out, in a line."""
    return f"rank correlations of orders of {counted(num_blocks, 'block')} are left out: they say nothing"


def is_a_block(num_blocks: int, ratio: float) -> bool:
    """Whether a share of the blocks is one block at least, when it is rounded."""
    return round(ratio * num_blocks) >= 1


def say_what_shares_are(num_blocks: int, ratios: Iterable[float]) -> None:
    """Logs which shares of the blocks are none, where one block is removed all the same."""
    none = [f"{100 * ratio:.3g} %" for ratio in sorted(set(ratios)) if ratio > 0 and not is_a_block(num_blocks, ratio)]
    if none and num_blocks > 1:
        logger.info(
            f"of {num_blocks} blocks, {' and '.join(none)} come to none: where a share is asked for, one block is "
            f"removed, which is {100 / num_blocks:.3g} %"
        )
