"""Variants of a model as a trie: what several of them begin with runs once.

Variants are sequences of kept blocks; put into a trie, a block runs on a batch once for each distinct sequence of
blocks before it. Single removal costs about half a forward a variant, removal from the last block one forward in all.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from layer_redundancy.core.variants import Element, Variant


@dataclass
class Node:
    """A node of the trie: the blocks run so far lead here."""

    children: dict[Element, "Node"] = field(default_factory=dict)
    variant: Variant | None = None


def trie(variants: Iterable[Variant]) -> Node:
    """Puts variants that begin with the same blocks on the same path.

    Of the ways on from a node the one that needs most states comes last, when the others' are no longer held: single
    removal then holds one state, not one a block.
    """
    root = Node()
    for variant in variants:
        node = root
        for element in variant:
            node = node.children.setdefault(element, Node())
        node.variant = variant
    _largest_last(root)
    return root


def _largest_last(node: Node) -> None:
    for child in node.children.values():
        _largest_last(child)
    node.children = dict(sorted(node.children.items(), key=lambda item: num_held(item[1])))


def num_block_runs(node: Node) -> int:
    """How often a block runs for one batch."""
    return sum(1 + num_block_runs(child) for child in node.children.values())


def num_held(node: Node) -> int:
    """States kept at once while a trie runs depth-first, besides the current one."""
    held = 0
    while node.children:
        *branches, last = node.children.values()
        held = max([held, *(1 + num_held(child) for child in branches)])
        node = last
    return held


State = TypeVar("State")


def depth_first(
    root: Node, state: State, run_block: Callable[[Element, State, dict], State]
) -> Iterator[tuple[Variant, State]]:
    """Runs the trie on one batch; yields each variant with what its last block leaves.

    States are kept only where paths branch: no more than the trie is deep, however many variants there are.

    Args:
        root: root of the trie.
        state: state before the first block.
        run_block: (element, state before it, a dict that all elements after the same state share) -> state after it.
    """
    node = root
    while True:
        if node.variant is not None:
            yield node.variant, state
        if not node.children:
            return
        shared: dict = {}
        *branches, (element, last) = node.children.items()
        for branch, child in branches:
            yield from depth_first(child, run_block(branch, state, shared), run_block)
        state, node = run_block(element, state, shared), last
