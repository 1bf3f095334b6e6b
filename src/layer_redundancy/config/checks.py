"""What a value in a profile may be, said beside its type: `Annotated[int, at_least(1)]`. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from layer_redundancy.config import own_files
from layer_redundancy.core.arguments import LARGEST_SEED


@dataclass(frozen=True)
class Check:
    """A condition on a value of the right type.

    Attributes:
        holds: whether a value fulfils it.
        wanted: what the value must be, in words that follow "must be".
        in_code: further values that a program may give, and no file.
    """

    holds: Callable[[Any], bool] = field(compare=False)  # two functions are never equal; their words are
    wanted: str
    in_code: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Found:
    """A value that may name something of the user's own on disk.

    Attributes:
        find: (value, folder that relative paths start at) -> the value with an absolute path in it, or the value as it
            is where it names nothing on disk.
    """

    find: Callable[[str, Path | None], str]


@dataclass(frozen=True)
class NotInFiles:
    """A field that no profile's file may set.

    Attributes:
        instead: what sets it, in words that follow a colon.
        setting: the setting that does, where it is one that make and commands have too.
    """

    instead: str = ""
    setting: str = ""


def at_least(least: float) -> Check:
    """Numbers from `least` on."""
    return Check(lambda value: value >= least, f"at least {least}")


def at_most(most: float) -> Check:
    """Numbers up to `most`."""
    return Check(lambda value: value <= most, f"at most {most}")


def above(least: float) -> Check:
    """Numbers greater than `least`."""
    return Check(lambda value: value > least, f"above {least}")


def between(low: float, high: float) -> Check:
    """Numbers between two that are themselves left out."""
    return Check(lambda value: low < value < high, f"above {low} and below {high}")


def one_of(*choices: Any, in_code: tuple[Any, ...] = ()) -> Check:
    """One of a few values."""
    return Check(lambda value: value in choices, f"one of {', '.join(map(str, choices))}", in_code)


def given() -> Check:
    """Anything but an empty text or list."""
    return Check(lambda value: len(value) > 0, "given, not empty")


Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
Seed = Annotated[int, at_least(0), at_most(LARGEST_SEED)]
Rate = Annotated[float, above(0)]
Share = Annotated[float, between(0, 1)]
Bits = Annotated[int, one_of(8, 4, 3)]  # those of `models.quantize`
Corpus = Annotated[str, Found(own_files.corpus), given()]
CorpusOrNone = Annotated[str, Found(own_files.corpus)]  # "" for another one that the field's description names
Task = Annotated[str, Found(own_files.task), given()]
Model = Annotated[str, Found(own_files.model), given()]
ModelOrNone = Annotated[str, Found(own_files.model)]
