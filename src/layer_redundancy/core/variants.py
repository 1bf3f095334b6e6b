"""What is kept: a variant is the tuple of a model's blocks that run, in order; one may lack heads, or be changed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layer_redundancy.core.arguments import is_whole, listed, plain, shown, whole
from layer_redundancy.core.errors import StudyError

KEY_DIGITS = 16


@dataclass(frozen=True)
class Changed:
    """A block that runs with a change, which `evaluate.changes` makes.

    Attributes:
        block: index of the block.
        key: 16 hexadecimal digits, a hash of all that decides what the change is; the store tells changes apart by it.
    """

    block: int
    key: str


Unchanged = int | tuple[int, ...]  # a block, or (block, head, ...): the block without those query heads
Element = Unchanged | Changed
Variant = tuple[Element, ...]


def block_of(element: Element) -> int:
    """The block that an element of a variant is."""
    if isinstance(element, Changed):
        return element.block
    return element[0] if isinstance(element, tuple) else element


def changes_of(variants: Iterable[Variant]) -> list[Changed]:
    """The changed blocks of some variants, each once."""
    return list(dict.fromkeys(e for variant in variants for e in variant if isinstance(e, Changed)))


# ------------------------------------------------------------------------------------------------ as a user names them


def indices(blocks: Iterable[int]) -> tuple[int, ...]:
    """Blocks as a user names them (a list, a range, an array, a tensor, ...), as Python's own numbers.

    Raises:
        StudyError: it is no list, or something in it is no whole number.
    """
    found = listed(blocks, "blocks", "[3, 4]")
    if odd := [index for index in found if not is_whole(index)]:
        raise StudyError(f"block {shown(odd[0])} is no index: give whole numbers, 0 for the first block")
    return tuple(map(int, found))


def checked(num_blocks: int, variant: Iterable[Any]) -> Variant:
    """A variant as a user writes it, as tuples of Python's own numbers; each block that runs is named, in order.

    Raises:
        StudyError: it is no variant of a model of so many blocks.
    """
    found = tuple(_element(element) for element in listed(variant, "a variant", "(0, 1, 3)"))
    if not found:
        raise StudyError("a variant without blocks is to be measured: keep at least one")
    blocks = list(map(block_of, found))
    for block in blocks:
        if not 0 <= block < num_blocks:
            raise StudyError(
                f"block {block} is out of range in {shown(found)}: the model has blocks {_all(num_blocks)}"
            )
    if blocks != sorted(set(blocks)):
        raise StudyError(f"blocks of the variant {shown(found)} must ascend, each named once: none can run twice")
    return found


def plan(num_blocks: int, variants: Iterable[Any]) -> list[Variant]:
    """Variants as a user lists them, each once; as `checked` gives them.

    Raises:
        StudyError: it is no list of variants of a model of so many blocks.
    """
    found = listed(variants, "variants", "[(0, 1, 3), (0, 2, 3)]")
    if any(map(is_whole, found)):
        raise StudyError(f"{shown(variants)} is one variant, where a list of them is wanted: write [(0, 1, 3)]")
    return list(dict.fromkeys(checked(num_blocks, variant) for variant in found))


def _element(element: Any) -> Element:
    """A block, a block with the heads that it lacks, or a changed one."""
    if isinstance(element, Changed):
        if not isinstance(element.key, str) or not re.fullmatch(f"[0-9a-f]{{{KEY_DIGITS}}}", element.key):
            raise StudyError(f"the key of {shown(element)} must be {KEY_DIGITS} hexadecimal digits")
        return Changed(whole(element.block, "a changed block"), element.key)
    element = plain(element)
    if is_whole(element):
        return int(element)
    parts = tuple(map(plain, element)) if isinstance(element, list | tuple) else ()
    if not parts or not all(map(is_whole, parts)):
        raise StudyError(
            f"{shown(element)} in a variant is neither a block nor (block, head, ...): give whole numbers, 0 for the "
            "first"
        )
    if min(parts[1:], default=0) < 0 or len(set(parts[1:])) < len(parts) - 1:
        raise StudyError(f"heads in {shown(parts)} must be 0 or more, each named once")
    return tuple(map(int, parts))


def _all(num_blocks: int) -> str:
    return f"0 to {num_blocks - 1}"


# ------------------------------------------------------------------------------------------------ blocks


def dense(num_blocks: int) -> Variant:
    """The whole model. Raises StudyError for a model without blocks."""
    return tuple(range(whole(num_blocks, "the number of blocks", 1)))


def without(num_blocks: int, removed: Iterable[int]) -> tuple[int, ...]:
    """The model with some blocks removed.

    Args:
        num_blocks: blocks of the dense model.
        removed: indices, 0 = first block; negative ones count from the end, as in the paper's table 3.

    Raises:
        StudyError: an index is no whole number, is out of range, is there twice, or nothing would be left.
    """
    num_blocks, gone = len(dense(num_blocks)), indices(removed)
    for index in gone:
        if not -num_blocks <= index < num_blocks:
            raise StudyError(f"block {index} is out of range: the model has blocks {_all(num_blocks)}")
    distinct = {index % num_blocks for index in gone}
    if len(distinct) != len(gone):
        twice = next(i for i in distinct if sum(r % num_blocks == i for r in gone) > 1)
        raise StudyError(f"block {twice} is to be removed twice: name each block once")
    if len(distinct) == num_blocks:
        what = f"all {num_blocks} blocks are" if num_blocks > 1 else "the model's only block is"
        raise StudyError(f"{what} to be removed: keep at least one")
    return tuple(i for i in range(num_blocks) if i not in distinct)


def removed_blocks(num_blocks: int, variant: Variant) -> tuple[int, ...]:
    """The blocks of the dense model that a variant lacks altogether, ascending."""
    return tuple(sorted(set(range(num_blocks)) - set(map(block_of, variant))))


def name(variant: Variant) -> str:
    """A variant as text, for the store: blocks separated by commas.

    "7-2-5" is block 7 without heads 2 and 5, "9~0123456789abcdef" block 9 with the change of that key.
    """
    return ",".join(map(_name, variant))


def _name(element: Element) -> str:
    if isinstance(element, Changed):
        return f"{element.block}~{element.key}"
    return "-".join(map(str, element)) if isinstance(element, tuple) else str(element)


def describe(num_blocks: int, variant: Variant) -> str:
    """A variant in a message: what it lacks, and which of its blocks are changed."""
    blocks = list(removed_blocks(num_blocks, variant))
    said = [f"without blocks {blocks}"] if blocks else []
    said += [f"without head {head} of block {e[0]}" for e in variant if isinstance(e, tuple) for head in e[1:]]
    said += [f"block {e.block} changed" for e in variant if isinstance(e, Changed)]
    return ", ".join(said) or "dense"


def without_heads(num_blocks: int, heads: Iterable[tuple[int, int]]) -> Variant:
    """The model without some query heads (ShortGPT figure 6).

    Args:
        num_blocks: blocks of the dense model.
        heads: (block, head) of each removed head.

    Raises:
        StudyError: no such block, a head twice, or no pair of whole numbers. Whether there is such a head, the model
            must say.
    """
    lacking: dict[int, list[int]] = {}
    for pair in listed(heads, "heads", "[(block, head), ...]"):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise StudyError(f"heads must be a list such as [(block, head), ...], not of {shown(pair)}")
        block = whole(pair[0], "a head's block")
        if not 0 <= block < num_blocks:
            raise StudyError(f"block {block} is out of range: the model has blocks {_all(num_blocks)}")
        head = whole(pair[1], f"a head of block {block}", 0)
        if head in lacking.setdefault(block, []):
            raise StudyError(f"head {head} of block {block} is to be removed twice: name each head once")
        lacking[block].append(head)
    return tuple((i, *sorted(lacking[i])) if i in lacking else i for i in range(num_blocks))


def without_head(num_blocks: int, block: int, head: int) -> Variant:
    """The model without one query head of one block; errors as `without_heads`."""
    return without_heads(num_blocks, [(block, head)])


def single_heads(num_blocks: int, num_heads: int, block_step: int = 1) -> dict[tuple[int, int], Variant]:
    """(block, head) -> the model without that head, for the heads of every block_step-th block."""
    step, heads = whole(block_step, "the step from block to block", 1), _num_heads(num_heads)
    pairs = [(block, head) for block in range(0, len(dense(num_blocks)), step) for head in range(heads)]
    return {pair: without_head(num_blocks, *pair) for pair in pairs}


def head_everywhere(num_blocks: int, num_heads: int) -> list[Variant]:
    """One variant a head id, without the head of that id in every block (ShortGPT figure 6)."""
    return [
        without_heads(num_blocks, [(block, head) for block in range(num_blocks)])
        for head in range(_num_heads(num_heads))
    ]


def _num_heads(num_heads: int) -> int:
    return whole(num_heads, "the number of heads", 1)


def random_heads(num_blocks: int, num_heads: int, size: int, sets: int, seed: int) -> list[Variant]:
    """The model without `size` of all its query heads, drawn at random, so many times.

    Raises:
        StudyError: there are not so many heads.
    """
    num_all = len(dense(num_blocks)) * _num_heads(num_heads)
    if not 1 <= whole(size, "the number of heads to remove") <= num_all:
        raise StudyError(f"{size} heads are to be removed: the model has {num_all}")
    rng = np.random.default_rng(whole(seed, "a seed", 0))
    draws = [rng.choice(num_all, size, replace=False) for _ in range(whole(sets, "the number of sets", 0))]
    return [without_heads(num_blocks, [divmod(int(i), num_heads) for i in sorted(draw)]) for draw in draws]


def single_removal(num_blocks: int) -> list[Variant]:
    """One variant a block, each without that block (ShortGPT figure 3)."""
    return [without(num_blocks, [i]) for i in range(num_blocks)]


def cumulative_removal(num_blocks: int, order: Sequence[int] | np.ndarray) -> list[Variant]:
    """The dense model, then without the first of `order`, the first two, ... (ShortGPT figure 2b, table 3).

    An order of all blocks stops with one block left.
    """
    order, last = indices(order), len(dense(num_blocks)) - 1
    if len(order) > last:  # the block that stays is no removal, and is checked all the same
        without(num_blocks, order[:last])
        if sorted(index % num_blocks for index in order) != list(range(num_blocks)):
            raise StudyError(f"an order of {len(order)} blocks must name each of {_all(num_blocks)} once")
    return [without(num_blocks, order[:n]) for n in range(min(len(order), last) + 1)]


def block_removal(num_blocks: int, start: int, length: int) -> Variant:
    """The model without the contiguous blocks start, ..., start + length - 1 (Gromov et al. 2024).

    Raises:
        StudyError: there is no such run, or nothing would be left.
    """
    first = whole(start, "the first block of a run", 0, num_blocks - 1)
    return without(num_blocks, range(first, first + whole(length, "the number of blocks of a run", 1)))
