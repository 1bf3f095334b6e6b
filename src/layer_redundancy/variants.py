"""What is kept: a variant is the tuple of a model's blocks that run, in order; a block may lack a head."""

from collections.abc import Iterable, Sequence

from layer_redundancy.errors import StudyError

Element = int | tuple[int, int]  # a block, or (block, head): the block without that query head
Variant = tuple[Element, ...]


def dense(num_blocks: int) -> Variant:
    """The whole model."""
    return tuple(range(num_blocks))


def without(num_blocks: int, removed: Iterable[int]) -> Variant:
    """The model with some blocks removed.

    Args:
        num_blocks: blocks of the dense model.
        removed: indices, 0 = first block; negative ones count from the end, as in the paper's table 3.

    Raises:
        StudyError: an index is out of range, is there twice, or nothing would be left.
    """
    removed = list(removed)
    for index in removed:
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise StudyError(f"block {index!r} is no index: give whole numbers from 0 to {num_blocks - 1}")
        if not -num_blocks <= index < num_blocks:
            raise StudyError(f"block {index} is out of range: the model has blocks 0 to {num_blocks - 1}")
    distinct = {int(index) % num_blocks for index in removed}
    if len(distinct) != len(removed):
        twice = next(i for i in distinct if sum(r % num_blocks == i for r in removed) > 1)
        raise StudyError(f"block {twice} is to be removed twice: name each block once")
    if len(distinct) == num_blocks:
        raise StudyError(f"all {num_blocks} blocks are to be removed: keep at least one")
    return tuple(i for i in range(num_blocks) if i not in distinct)


def removed_blocks(num_blocks: int, variant: Variant) -> tuple[int, ...]:
    """The blocks of the dense model that a variant lacks altogether, ascending."""
    run = {element[0] if isinstance(element, tuple) else element for element in variant}
    return tuple(sorted(set(range(num_blocks)) - run))


def name(variant: Variant) -> str:
    """A variant as text, for the store: blocks separated by commas, "7-2" for block 7 without head 2."""
    return ",".join("-".join(map(str, e)) if isinstance(e, tuple) else str(e) for e in variant)


def describe(num_blocks: int, variant: Variant) -> str:
    """A variant in a message: what it lacks."""
    heads = [f"head {e[1]} of block {e[0]}" for e in variant if isinstance(e, tuple)]
    blocks = list(removed_blocks(num_blocks, variant))
    return ", ".join(([f"without blocks {blocks}"] if blocks else []) + [f"without {h}" for h in heads]) or "dense"


def without_head(num_blocks: int, block: int, head: int) -> Variant:
    """The model without one query head of one block (ShortGPT figure 6).

    Raises:
        StudyError: no such block. Whether there is such a head, the model must say.
    """
    if not 0 <= block < num_blocks:
        raise StudyError(f"block {block} is out of range: the model has blocks 0 to {num_blocks - 1}")
    return tuple((i, head) if i == block else i for i in range(num_blocks))


def single_removal(num_blocks: int) -> list[Variant]:
    """One variant a block, each without that block (ShortGPT figure 3)."""
    return [without(num_blocks, [i]) for i in range(num_blocks)]


def cumulative_removal(num_blocks: int, order: Sequence[int]) -> list[Variant]:
    """The dense model, then without the first of `order`, the first two, ... (ShortGPT figure 2b, table 3).

    An order of all blocks stops with one block left.
    """
    steps = range(min(len(order), num_blocks - 1) + 1)
    return [without(num_blocks, order[:n]) for n in steps]


def block_removal(num_blocks: int, start: int, length: int) -> Variant:
    """Without the contiguous blocks start, ..., start + length - 1 (Gromov et al. 2024)."""
    return without(num_blocks, range(start, start + length))
