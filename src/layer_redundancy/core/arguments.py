"""What a user hands in: whole numbers, whoever made them, as Python's own. Standard library only."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from layer_redundancy.core.errors import StudyError

LARGEST_SEED = 2**32 - 1  # that all libraries take


def plain(value: Any) -> Any:
    """A number or an array of numpy, torch or pandas as Python's own numbers and lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_whole(value: Any) -> bool:
    """Whether a value, as `plain` gives it, is a whole number: no flag, no 1.0, no text."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """Whether a number is one that a float holds."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def whole(value: Any, what: str, least: float = -math.inf, most: float = math.inf) -> int:
    """A whole number as Python's own int.

    Args:
        value: the number, numpy's or torch's too.
        what: what it is, in words that "must be" follows.
        least: the smallest that it may be.
        most: the largest that it may be.

    Raises:
        StudyError: it is none, or out of range.
    """
    number = plain(value)
    if not is_whole(number) or not least <= number <= most:
        limits = ("" if least == -math.inf else f" from {least}") + ("" if most == math.inf else f" to {most}")
        raise StudyError(f"{what} must be a whole number{limits}, not {shown(value)}")
    return int(number)


def number(value: Any, what: str) -> float:
    """A finite number; arguments and error as `whole`."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int | float) or not is_finite(found):
        raise StudyError(f"{what} must be a finite number, not {shown(value)}")
    return found


def listed(values: Any, what: str, example: str) -> list[Any]:
    """What a user lists (a list, a tuple, a range, an array, an iterator), as a list of Python's own values.

    Args:
        values: the list.
        what: what it is, in words that "must be" follows.
        example: how it is written.

    Raises:
        StudyError: it is no list: a text, a mapping, a single value.
    """
    found = plain(values)
    if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        raise StudyError(f"{what} must be a list such as {example}, not {shown(values)}")
    return [plain(value) for value in (sorted(found) if isinstance(found, set | frozenset) else found)]


def shown(value: Any) -> str:
    """A value in a message: on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
