"""Which variants lack which sequences: those that the same variants lack run together.

Sequences are bits of a number, so that thousands of variants of tens of thousands of sequences take no memory.
"""

from collections.abc import Iterable, Mapping

from layer_redundancy.core.variants import Variant


def bits(flags: Iterable[bool]) -> int:
    """A number whose n-th bit is the n-th flag."""
    return int("".join("01"[flag] for flag in flags)[::-1] or "0", 2)


def of_places(chosen: Iterable[int]) -> int:
    """The number whose bits are set at some places."""
    chosen = set(chosen)
    return bits(place in chosen for place in range(max(chosen, default=-1) + 1))


def places(number: int) -> list[int]:
    """Which bits of a number are set, ascending."""
    return [place for place, digit in enumerate(bin(number)[:1:-1]) if digit == "1"]


def parts(wanted: int, known: Mapping[Variant, int]) -> list[tuple[int, tuple[Variant, ...]]]:
    """What is left to run.

    Args:
        wanted: the sequences, as bits.
        known: variant -> the sequences that it was run on, as bits.

    Returns:
        (sequences, the variants that lack them): each sequence is in one part at most, those that come first first.
    """
    lacks = {variant: wanted & ~there for variant, there in known.items()}
    cut = [wanted]
    for lack in dict.fromkeys(lacks.values()):
        cut = [piece for part in cut for piece in (part & lack, part & ~lack) if piece]
    cut.sort(key=lambda part: part & -part)
    of_parts = [(part, tuple(variant for variant, lack in lacks.items() if part & lack)) for part in cut]
    return [(part, variants) for part, variants in of_parts if variants]
