"""How many workers share the work, as a user says it. Standard library only."""

import re

from layer_redundancy.core import doors
from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError

MOST = 65536  # more is a slip of the pen


def number_of(text: str) -> int | None:
    """A number of workers; None where nothing is said.

    Raises:
        StudyError: it is no whole number from 1 on, or too large to be meant.
    """
    if not text.strip():
        return None
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or not 1 <= int(text) <= MOST:
        raise StudyError(f"{doors.setting('workers')} must be a whole number from 1 to {MOST}, not {shown(text)}")
    return int(text)
