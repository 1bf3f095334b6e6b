"""Which sequences run together, and what they share: batches of sequences with common prefixes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from torch import Tensor, cat, tensor
from torch.nn.utils.rnn import pad_sequence

from layer_redundancy.core import devices, flags
from layer_redundancy.core.variants import Unchanged
from layer_redundancy.evaluate import scoring
from layer_redundancy.evaluate.prefixes import shared_prefixes
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.models.checks import Sharing
from layer_redundancy.models.stack import BlockCalls, DecoderStack, PrefixKeys
from layer_redundancy.models.states import PrefixStates

PREFIX_BATCHES = 4  # forwards that one run of a prefix may serve
# What a forward costs besides its tokens, as a share of the tokens that one may hold: 50 to 60 of 2048 on two cores.
FORWARD_SHARE = 1 / 36

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class ArrangedSequences:
    """A measurement's sequences in the order in which they run, with the prefixes they share.

    Attributes:
        sequences: the measurement's sequences, in its own order.
        order: indices of sequences; neighbours share a prefix or are of similar length.
        prefixes: tokens of each sequence, by place in the order, that run once for its group.
        groups: the number of each sequence's group, by place in the order.
        alike_up_to: see `checks.Sharing`.
    """

    sequences: Sequence[ScoredSequence]
    order: tuple[int, ...]
    prefixes: tuple[int, ...]
    groups: tuple[int, ...]
    alike_up_to: int | None = None

    def tail(self, place: int) -> int:
        """Tokens that the sequence at that place has for itself."""
        return len(self.sequences[self.order[place]].input_ids) - self.prefixes[place]

    def num_tokens(self, places: Sequence[int] | None = None) -> int:
        """Tokens that run for some places, or for all of them; a shared prefix is counted once."""
        places = range(len(self.order)) if places is None else places
        return sum(map(self.tail, places)) + sum({self.groups[k]: self.prefixes[k] for k in places}.values())

    def batches(self, batch_tokens: int) -> list[tuple[int, int]]:
        """All places cut into batches (first place, place after the last)."""
        ends = [0]
        while ends[-1] < len(self.order):
            ends.append(self.batch_end(ends[-1], batch_tokens))
        return list(pairwise(ends))

    def batch_end(self, low: int, batch_tokens: int) -> int:
        """Where the batch that begins at place `low` ends: at the tokens it may hold, or after one sequence.

        With prefixes it may hold PREFIX_BATCHES forwards, so that a prefix is not run again for a few sequences more
        and sequences of similar length find each other. Sequences with a prefix and sequences without do not mix, nor
        do lengths beyond `alike_up_to`.
        """
        apart = self.alike_up_to is not None and self.tail(low) > self.alike_up_to
        prefix, room, groups, high = self.prefixes[low], batch_tokens, set(), low
        if prefix:
            room *= PREFIX_BATCHES
        while high < len(self.order) and (self.prefixes[high] > 0) == (prefix > 0):
            if apart and self.tail(high) != self.tail(low):
                break
            room -= self.tail(high) + (0 if self.groups[high] in groups else prefix)
            groups.add(self.groups[high])
            if room < 0 and high > low:
                break
            high += 1
        return high


def arrange(sequences: Sequence[ScoredSequence], sharing: Sharing) -> ArrangedSequences:
    """Groups sequences by shared prefix; longest first, so that a lack of memory shows at once.

    Args:
        sequences: the sequences of one measurement.
        sharing: what sequences of the model may share.
    """
    groups = [(0, [i]) for i in range(len(sequences))]
    if sharing.prefixes:
        shared = shared_prefixes([s.input_ids for s in sequences], [s.num_scored for s in sequences])
        # What continues a prefix is padded, so that positions run to the longest prefix and the longest rest.
        rest = max(len(sequences[i].input_ids) - prefix for prefix, members in shared for i in members)
        if sharing.alike_up_to is None or max(prefix for prefix, _ in shared) + rest <= sharing.alike_up_to:
            groups = shared

    def length(sequence: int) -> int:
        return len(sequences[sequence].input_ids)

    groups = [(prefix, sorted(members, key=length, reverse=True)) for prefix, members in groups]
    groups.sort(key=lambda g: (-g[0], -length(g[1][0])))
    return ArrangedSequences(
        sequences=sequences,
        order=tuple(i for _, members in groups for i in members),
        prefixes=tuple(prefix for prefix, members in groups for _ in members),
        groups=tuple(n for n, (_, members) in enumerate(groups) for _ in members),
        alike_up_to=sharing.alike_up_to,
    )


@flags.checked
def forwards(lengths: Sequence[int], batch_tokens: int, padded: bool = True) -> list[list[int]]:
    """Which sequences share a forward, so that padding and the number of forwards cost least together.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: tokens a forward may hold, padding included; it holds at least one sequence.
        padded: whether a forward may hold sequences of several lengths.

    Returns:
        Indices of the sequences of each forward, longest first.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = np.arange(1, len(order) + 1)
    # What all sequences from the k-th on cost, and how many of them the first forward takes.
    costs, taken = np.zeros(len(order) + 1), np.zeros(len(order), dtype=int)
    for k in reversed(range(len(order))):
        longest = lengths[order[k]]
        most = min(max(1, batch_tokens // longest), len(order) - k)
        if not padded:
            most = min(most, sum(lengths[i] == longest for i in order[k : k + most]))
        of_each = longest * rows[:most] + batch_tokens * FORWARD_SHARE + costs[k + 1 : k + most + 1]
        taken[k] = rows[of_each.argmin()]
        costs[k] = of_each.min()
    parts, k = [], 0
    while k < len(order):
        parts.append(order[k : k + taken[k]])
        k += taken[k]
    return parts


class Batch:
    """Sequences that run together.

    A prefix runs once a node of the trie; its keys and values, or its state, serve every sequence that continues it and
    are dropped with the block. So what is held between blocks is hidden states only: those of the prefixes and of what
    follows.

    Args:
        stack: the model taken apart.
        sequences: what to score.
        prefixes: number of first tokens of each sequence that are a prefix; positive for all of them or for none.
        batch_tokens: tokens a forward may hold.

    Attributes:
        num_tokens: tokens that run, padding not counted.
        start: hidden states before the first block, a tensor a forward.
    """

    def __init__(
        self, stack: DecoderStack, sequences: Sequence[ScoredSequence], prefixes: Sequence[int], batch_tokens: int
    ):
        self.stack, self.sequences, self.prefixes = stack, sequences, prefixes
        self._keeps_states = any(prefixes) and stack.architecture.carries_state
        heads = [s.input_ids[:n] for s, n in zip(sequences, prefixes, strict=True)]
        tails = [s.input_ids[n:] for s, n in zip(sequences, prefixes, strict=True)]
        distinct = list(dict.fromkeys(heads)) if any(prefixes) else []
        self.num_tokens = sum(map(len, distinct)) + sum(map(len, tails))
        # Each forward: its tokens' calls, the rows of the prefixes they continue, and which sequences they are.
        self.forwards: list[tuple[BlockCalls, Tensor | None, tuple[int, ...]]] = []
        states, real = [], None
        row: dict[tuple[int, ...], int] = {}  # of each prefix, among the rows of all forwards of prefixes
        for part in self._of_prefixes(list(map(len, distinct)), batch_tokens):
            row |= {distinct[i]: len(row) + n for n, i in enumerate(part)}
            ids, real = _padded_left([distinct[i] for i in part])
            hidden, calls = stack.start(ids, real=real)
            states.append(hidden)
            self.forwards.append((calls, None, ()))
        for part in forwards(list(map(len, tails)), batch_tokens):
            owners = tensor([row[heads[i]] for i in part]) if row else None  # rows of the prefixes
            ids = pad_sequence([tensor(tails[i]) for i in part], batch_first=True)  # (B, T), padded on the right
            past = None if real is None or self._keeps_states else real[owners]
            hidden, calls = stack.start(ids, past=past)
            states.append(hidden)
            owners = None if owners is None else owners.to(hidden.device)  # once, not in every block
            self.forwards.append((calls, owners, tuple(part)))
        self.start = tuple(states)
        # Of each forward, the scored positions among its states; where it is on the device, no block waits for it.
        self._scored = [
            devices.sent(
                hidden.device,
                scoring.scored_rows([sequences[i] for i in part], hidden.shape[1], [prefixes[i] for i in part]),
            )[0]
            for (_, _, part), hidden in zip(self.forwards, states, strict=True)
        ]

    def _of_prefixes(self, lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
        """Which prefixes share a forward: all, whose keys are then of one length, or those whose states may."""
        if not self._keeps_states:
            return [list(range(len(lengths)))] if lengths else []
        return forwards(lengths, batch_tokens, self.stack.architecture.masks_padding)

    def run_block(self, element: Unchanged, states: tuple[Tensor, ...], shared: dict) -> tuple[Tensor, ...]:
        """A block, or a block without some of its heads, on the prefixes and on what follows them.

        Args:
            element: an element of a variant: a block, or a block and the heads it lacks.
            states: hidden states before the block, a tensor a forward.
            shared: kept between calls with the same `states`: what heads of one block have in common.
        """
        block, *heads = element if isinstance(element, tuple) else (element,)
        if not heads:
            return tuple(self._each(self.stack.run_block, block, states))
        if block not in shared:
            shared[block] = self._each(self.stack.attend, block, states)
        return tuple(
            self.stack.run_block_without_heads(block, heads, hidden, calls, attention)
            for (calls, _, _), hidden, attention in zip(self.forwards, states, shared[block], strict=True)
        )

    def _each(self, run: Callable[..., _Made], block: int, states: tuple[Tensor, ...]) -> list[_Made]:
        """What a method of the stack makes of a block in each forward, those of prefixes first."""
        keys = PrefixStates() if self._keeps_states else PrefixKeys()
        made = []
        for (calls, owners, _), hidden in zip(self.forwards, states, strict=True):
            keys.rows = owners
            made.append(run(block, hidden, calls, keys))
        return made

    def select(self, states: tuple[Tensor, ...]) -> Tensor:
        """What the head needs of the states after the last block: (N, hidden size), for `in_order`'s sequences."""
        parts: list[Tensor] = []
        for (_, _, part), rows, hidden in zip(self.forwards, self._scored, states, strict=True):
            if part:
                parts.append(hidden.flatten(0, 1).index_select(0, rows.to(hidden.device)))
        return cat(parts)

    @property
    def in_order(self) -> list[int]:
        """Places of the sequences in the order in which they run."""
        return [i for _, _, part in self.forwards for i in part]


def _padded_left(rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Token ids (G, P) and which of them are real (G, P)."""
    width = max(map(len, rows))
    ids = tensor([[0] * (width - len(row)) + list(row) for row in rows])
    real = tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, real
