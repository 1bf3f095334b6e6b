"""Sequences of many lengths in one forward, without padding.

All tokens lie one after the other in a single row, and that is what norms, projections and MLPs run on: they treat each
token by itself. Attention does not, and is the one part of a block that transformers lets others take the place of:
there the tokens go back into rows of padded sequences, each beside the keys of the prefix that it continues.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.stack import DecoderStack, SharedAttention


@dataclass(frozen=True)
class _Rows:
    """Sequences whose attention runs together, B of them with at most T tokens after prefixes of at most P.

    Attributes:
        queries: int64 (B, T), where their tokens lie among all; padding on the right repeats the last one.
        keys: int64 (B, P + T), the same of what they attend to; padding on the left repeats the prefix's first.
        real: bool (B, T), what is no padding.
        masks: what each block's attention is called with as its mask.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    masks: tuple[Tensor | None, ...]


class Ragged:
    """Prefixes and what continues them, in one forward.

    Whether a model's blocks can run like this is for `checks.runs_ragged` to say.

    Args:
        stack: the model taken apart.
        prefixes: token ids of each prefix; there may be none.
        rests: token ids of what follows them.
        owners: the prefix that each of the rests continues; empty where there are none.
        together: which of the rests attend in one go, each of them once.

    Attributes:
        start: X_0 (1, tokens, hidden size), prefixes first.
        firsts: where each of the rests begins.
    """

    def __init__(
        self,
        stack: DecoderStack,
        prefixes: Sequence[tuple[int, ...]],
        rests: Sequence[tuple[int, ...]],
        owners: Sequence[int],
        together: Sequence[Sequence[int]],
    ):
        self._stack = stack
        lengths = torch.tensor([len(ids) for ids in (*prefixes, *rests)])
        firsts = lengths.cumsum(0) - lengths
        self.firsts: list[int] = firsts[len(prefixes) :].tolist()
        before = [0] * len(prefixes) + [len(prefixes[owner]) for owner in owners or ()]
        before += [0] * (len(lengths) - len(before))
        positions = [torch.arange(n) + p for n, p in zip(lengths.tolist(), before, strict=True)]
        ids = torch.tensor([[token for sequence in (*prefixes, *rests) for token in sequence]])
        self.start, self._calls = stack.start(ids, positions=torch.cat(positions)[None])
        self._rows = []
        if prefixes:
            self._rows.append(_rows(stack, prefixes, firsts[: len(prefixes)]))
        for part in together:
            past = None
            if owners:
                owner = torch.tensor([owners[i] for i in part])
                past = firsts[owner], lengths[owner]
            own = firsts[len(prefixes) + torch.tensor(part)]
            self._rows.append(_rows(stack, [rests[i] for i in part], own, past))

    def run_block(self, index: int, hidden: Tensor) -> Tensor:
        """As `DecoderStack.run_block`, on X (1, tokens, hidden size)."""
        with self._in_rows(index):
            return self._stack.run_block(index, hidden, self._calls)

    def attend(self, index: int, hidden: Tensor) -> SharedAttention:
        """As `DecoderStack.attend`, on X (1, tokens, hidden size)."""
        with self._in_rows(index):
            return self._stack.attend(index, hidden, self._calls)

    def run_block_without_heads(
        self, index: int, heads: Sequence[int], hidden: Tensor, attention: SharedAttention
    ) -> Tensor:
        """As `DecoderStack.run_block_without_heads`, on X (1, tokens, hidden size)."""
        with self._in_rows(index):
            return self._stack.run_block_without_heads(index, heads, hidden, self._calls, attention)

    def _in_rows(self, index: int) -> AbstractContextManager:
        """Whatever attention function a block asks transformers for is called on rows while the block runs."""
        from transformers.modeling_utils import AttentionInterface

        find = AttentionInterface.get_interface

        def found(interface: AttentionInterface, name: str, default: Callable) -> Callable:
            own = find(interface, name, default)
            return lambda *args, **kwargs: self._attend(own, index, *args, **kwargs)

        return attributes((AttentionInterface, "get_interface", found))

    def _attend(
        self, own: Callable, index: int, module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """What transformers' attention functions return: (1, tokens, heads, size), and no weights.

        Args:
            own: the model's attention function.
            index: index of the block.
            module, query, key, value: its first arguments, the last three (1, heads, tokens, size); a mask that comes
                next stands for none.
            kwargs: its further arguments.
        """
        out = None
        for rows in self._rows:
            q, k, v = query[0][:, rows.queries], key[0][:, rows.keys], value[0][:, rows.keys]  # (heads, B, ..., size)
            asked = kwargs | {"attention_mask": rows.masks[index]}
            found = own(module, *(x.transpose(0, 1) for x in (q, k, v)), **asked)[0]  # (B, T, heads, size)
            if out is None:
                out = found.new_empty(query.shape[2], *found.shape[2:])
            out[rows.queries[rows.real]] = found[rows.real]
        assert out is not None, "there are sequences"
        return out[None], None


def _rows(
    stack: DecoderStack,
    sequences: Sequence[tuple[int, ...]],
    firsts: Tensor,
    past: tuple[Tensor, Tensor] | None = None,
) -> _Rows:
    """Rows of sequences.

    Args:
        stack: makes the masks.
        sequences: token ids of B sequences.
        firsts: int64 (B,), where each begins among all tokens.
        past: the same of the prefixes that they continue, and how long these are.
    """
    ids = pad_sequence([torch.tensor(sequence) for sequence in sequences], batch_first=True)  # (B, T)
    lengths, at = torch.tensor([len(sequence) for sequence in sequences])[:, None], torch.arange(ids.shape[1])
    queries = firsts[:, None] + torch.minimum(at, lengths - 1)
    if past is None:
        keys, real_past = queries, None
    else:
        (first, length), longest = past, int(past[1].max())
        place = torch.arange(longest) - (longest - length)[:, None]  # (B, P), below zero where it is padding
        keys, real_past = torch.cat([first[:, None] + place.clamp_min(0), queries], dim=1), place >= 0
    _, calls = stack.start(ids, past=real_past)
    masks = tuple(kwargs["attention_mask"] for _, kwargs in calls.calls)
    return _Rows(queries, keys, at < lengths, masks)
