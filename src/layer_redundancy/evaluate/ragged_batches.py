"""Batches whose sequences are not padded, where a model's blocks can run like that."""

from collections.abc import Sequence

from torch import Tensor, tensor

from layer_redundancy.core.variants import Unchanged
from layer_redundancy.evaluate.batches import Batch, forwards
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.models import checks
from layer_redundancy.models.compiled import CompiledStack
from layer_redundancy.models.ragged import Ragged
from layer_redundancy.models.stack import DecoderStack


class RaggedBatch:
    """Sequences that run together, prefixes and what follows them in one forward of as many tokens as there are.

    Args and attributes: as `batches.Batch`; states before and after blocks are one tensor (1, tokens, hidden size).
    """

    def __init__(
        self, stack: DecoderStack, sequences: Sequence[ScoredSequence], prefixes: Sequence[int], batch_tokens: int
    ):
        self.sequences = sequences
        heads = [s.input_ids[:n] for s, n in zip(sequences, prefixes, strict=True)]
        tails = [s.input_ids[n:] for s, n in zip(sequences, prefixes, strict=True)]
        row = {head: n for n, head in enumerate(dict.fromkeys(heads))} if any(prefixes) else {}
        self.num_tokens = sum(map(len, row)) + sum(map(len, tails))
        together = forwards(list(map(len, tails)), batch_tokens)
        self._ragged = Ragged(stack, list(row), tails, [row[head] for head in heads] if row else [], together)
        ends = [first + len(tail) for first, tail in zip(self._ragged.firsts, tails, strict=True)]
        places = [range(end - s.num_scored, end) for s, end in zip(sequences, ends, strict=True)]
        self._scored = tensor([place for scored in places for place in scored])
        self.start = (self._ragged.start,)
        self.in_order = list(range(len(sequences)))

    def run_block(self, element: Unchanged, states: tuple[Tensor, ...], shared: dict) -> tuple[Tensor, ...]:
        """As `Batch.run_block`."""
        block, *heads = element if isinstance(element, tuple) else (element,)
        (hidden,) = states
        if not heads:
            return (self._ragged.run_block(block, hidden),)
        if block not in shared:
            shared[block] = self._ragged.attend(block, hidden)
        return (self._ragged.run_block_without_heads(block, heads, hidden, shared[block]),)

    def select(self, states: tuple[Tensor, ...]) -> Tensor:
        """As `Batch.select`."""
        return states[0][0].index_select(0, self._scored)


def may_be_ragged(stack: DecoderStack) -> bool:
    """Whether batches of several lengths run without padding.

    On a GPU, forwards of few shapes are compiled, and padding is how there are few. Compiled blocks are traced with the
    model's own attention.
    """
    return stack.device.type == "cpu" and not isinstance(stack, CompiledStack) and checks.runs_ragged(stack.model)


def batch_of(
    stack: DecoderStack, sequences: Sequence[ScoredSequence], prefixes: Sequence[int], batch_tokens: int
) -> Batch | RaggedBatch:
    """A batch without padding, where there would be any and the model can do without; else a padded one.

    Args: as `batches.Batch`.
    """
    lengths = {len(s.input_ids) - n for s, n in zip(sequences, prefixes, strict=True)}
    kind = RaggedBatch if (any(prefixes) or len(lengths) > 1) and may_be_ragged(stack) else Batch
    return kind(stack, sequences, prefixes, batch_tokens)
