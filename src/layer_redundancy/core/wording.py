"""Numbers as text."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number of things: "1 variant", "3 variants"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def span(numbers: Iterable[int]) -> str:
    """Numbers from the least to the most: "8 to 10", or "8" where they are all the same."""
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def duration(seconds: float) -> str:
    """A time as text, in seconds, minutes, hours or days."""
    if seconds < 1:
        return f"{seconds:.1g} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
