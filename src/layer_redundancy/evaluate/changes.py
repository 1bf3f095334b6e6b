"""Blocks that run with a change: what a sweep asks of whoever knows the change."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from layer_redundancy.core import variants as named
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.variants import Changed, Element, Unchanged, Variant
from layer_redundancy.evaluate.amounts import Pass
from layer_redundancy.models.stack import DecoderStack

# Changes a block of the model while it runs, and puts it back, also on error.
Apply = Callable[[Changed], AbstractContextManager[None]]
# Makes ready what some changes need; what that takes is held by the function that is returned, and by nothing else.
Prepare = Callable[[DecoderStack, Sequence[Changed]], Apply]


class Changes(Protocol):
    """Changes of one kind: linear maps in the place of blocks, or factors (`methods.in_sweeps`)."""

    def __call__(self, stack: DecoderStack, changed: Sequence[Changed]) -> Apply:
        """As `Prepare`. A sweep calls it once, with the changes of what it lacks, and not at all if it lacks nothing.

        Raises:
            StudyError: a change that it knows nothing of.
        """

    def work(self, changed: Sequence[Changed]) -> Sequence[Pass]:
        """What it takes to make them ready."""


def needed(variants: Iterable[Variant], prepare: Prepare | None) -> list[Changed]:
    """The changed blocks of variants that are to run, each once.

    Raises:
        StudyError: there are some, and nothing that knows what they are.
    """
    found = named.changes_of(variants)
    if found and prepare is None:
        raise StudyError(
            f"block {found[0].block} is to run with a change, and nothing says which: give `changes` what the variant "
            "is from, such as study.run_maps()"
        )
    return found


@contextmanager
def running(element: Element, apply: Apply | None) -> Iterator[Unchanged]:
    """What is to run of the model for an element of a variant, with its change made meanwhile."""
    if not isinstance(element, Changed):
        yield element
        return
    assert apply is not None, "`needed` has refused it"
    with apply(element):
        yield element.block
