"""What is kept: a variant is the tuple of a model's blocks that run, in order; a block may lack some heads."""

from collections.abc import Iterable, Sequence

import numpy as np

from layer_redundancy.core.errors import StudyError

Element = int | tuple[int, ...]  # a block, or (block, head, ...): the block without those query heads
Variant = tuple[Element, ...]


def dense(num_blocks: int) -> Variant:
    """The whole model."""
    return tuple(range(num_blocks))


def without(num_blocks: int, removed: Iterable[int]) -> tuple[int, ...]:
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
        what = f"all {num_blocks} blocks are" if num_blocks > 1 else "the model's only block is"
        raise StudyError(f"{what} to be removed: keep at least one")
    return tuple(i for i in range(num_blocks) if i not in distinct)


def removed_blocks(num_blocks: int, variant: Variant) -> tuple[int, ...]:
    """The blocks of the dense model that a variant lacks altogether, ascending."""
    run = {element[0] if isinstance(element, tuple) else element for element in variant}
    return tuple(sorted(set(range(num_blocks)) - run))


def name(variant: Variant) -> str:
    """A variant as text, for the store: blocks separated by commas, "7-2-5" for block 7 without heads 2 and 5."""
    return ",".join("-".join(map(str, e)) if isinstance(e, tuple) else str(e) for e in variant)


def describe(num_blocks: int, variant: Variant) -> str:
    """A variant in a message: what it lacks."""
    heads = [f"head {head} of block {e[0]}" for e in variant if isinstance(e, tuple) for head in e[1:]]
    blocks = list(removed_blocks(num_blocks, variant))
    return ", ".join(([f"without blocks {blocks}"] if blocks else []) + [f"without {h}" for h in heads]) or "dense"


def without_heads(num_blocks: int, heads: Iterable[tuple[int, int]]) -> Variant:
    """The model without some query heads (ShortGPT figure 6).

    Args:
        num_blocks: blocks of the dense model.
        heads: (block, head) of each removed head.

    Raises:
        StudyError: no such block, or a head twice. Whether there is such a head, the model must say.
    """
    lacking: dict[int, list[int]] = {}
    for block, head in heads:
        if not 0 <= block < num_blocks:
            raise StudyError(f"block {block} is out of range: the model has blocks 0 to {num_blocks - 1}")
        if head in lacking.setdefault(block, []):
            raise StudyError(f"head {head} of block {block} is to be removed twice: name each head once")
        lacking[block].append(head)
    return tuple((i, *sorted(lacking[i])) if i in lacking else i for i in range(num_blocks))


def without_head(num_blocks: int, block: int, head: int) -> Variant:
    """The model without one query head of one block; errors as `without_heads`."""
    return without_heads(num_blocks, [(block, head)])


def single_heads(num_blocks: int, num_heads: int, block_step: int = 1) -> dict[tuple[int, int], Variant]:
    """(block, head) -> the model without that head, for the heads of every block_step-th block."""
    pairs = [(block, head) for block in range(0, num_blocks, block_step) for head in range(num_heads)]
    return {pair: without_head(num_blocks, *pair) for pair in pairs}


def head_everywhere(num_blocks: int, num_heads: int) -> list[Variant]:
    """One variant a head id, without the head of that id in every block (ShortGPT figure 6)."""
    return [without_heads(num_blocks, [(block, head) for block in range(num_blocks)]) for head in range(num_heads)]


def random_heads(num_blocks: int, num_heads: int, size: int, sets: int, seed: int) -> list[Variant]:
    """The model without `size` of all its query heads, drawn at random, so many times.

    Raises:
        StudyError: there are not so many heads.
    """
    if not 1 <= size <= num_blocks * num_heads:
        raise StudyError(f"{size} heads are to be removed: the model has {num_blocks * num_heads}")
    rng = np.random.default_rng(seed)
    draws = [rng.choice(num_blocks * num_heads, size, replace=False) for _ in range(sets)]
    return [without_heads(num_blocks, [divmod(int(i), num_heads) for i in sorted(draw)]) for draw in draws]


def single_removal(num_blocks: int) -> list[Variant]:
    """One variant a block, each without that block (ShortGPT figure 3)."""
    return [without(num_blocks, [i]) for i in range(num_blocks)]


def cumulative_removal(num_blocks: int, order: Sequence[int] | np.ndarray) -> list[Variant]:
    """The dense model, then without the first of `order`, the first two, ... (ShortGPT figure 2b, table 3).

    An order of all blocks stops with one block left.
    """
    steps = range(min(len(order), num_blocks - 1) + 1)
    return [without(num_blocks, order[:n]) for n in steps]


def block_removal(num_blocks: int, start: int, length: int) -> Variant:
    """The model without the contiguous blocks start, ..., start + length - 1 (Gromov et al. 2024)."""
    return without(num_blocks, range(start, start + length))
