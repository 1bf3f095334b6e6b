"""Cuts a sweep into pieces that run apart from each other: some batches of sequences, on some of the variants.

Sequences are cut first, between the batches of the uncut sweep: nothing runs twice then, and every number stays as it
is. Variants are cut where that does not suffice: a group of them that are neighbours in the trie's depth-first order
runs the blocks before its first variant once more. A cut between two neighbours costs as many blocks as the two begin
with in common, whatever other cuts there are.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from layer_redundancy.core.variants import Variant
from layer_redundancy.evaluate.amounts import Sweep
from layer_redundancy.evaluate.batches import PREFIX_BATCHES
from layer_redundancy.evaluate.sweep_estimate import Missing
from layer_redundancy.evaluate.trie import depth_first, num_block_runs, trie

PIECES_A_WORKER = 2  # at least so many, so that workers end at about the same time
LEAST_SHARE = 0.1  # of a piece's seconds: below it more pieces for more workers do not pay
_STEPS = 20  # of the search for even groups: a millionth of the whole
_SLACK = 1 + 1e-9  # sums of times are rounded


@dataclass(frozen=True)
class Piece:
    """A part of a sweep that one worker runs.

    Attributes:
        places: places in the arrangement, ascending: those of whole batches that lack the same variants.
        variants: the variants that run on them, in depth-first order of the trie.
        block_tokens: tokens times the blocks that run on them.
        seconds: estimated time.
    """

    places: tuple[int, ...]
    variants: tuple[Variant, ...]
    block_tokens: int
    seconds: float


def cut(
    missing: Missing,
    rates: tuple[float, float],
    batch_tokens: int,
    seconds: float = 60.0,
    workers: int = 1,
    most_lost: float = 0.1,
) -> list[Piece]:
    """Pieces that together run what is missing, each sequence and variant in one of them; largest first.

    Args:
        missing: what the sweep has to run.
        rates: block-tokens and head-tokens a second.
        batch_tokens: tokens a forward may hold, as in the uncut sweep.
        seconds: what a piece takes at most, if sharing allows; a batch with one variant may take longer.
        workers: how many there are: where batches are fewer than they need, variants are cut for them too.
        most_lost: block-tokens that may run once more because variants were cut, as a share of the uncut sweep's.
    """
    ends = missing.arranged.batches(batch_tokens)
    parts = [_Part.of(missing, *part, ends) for part in missing.parts]
    wanted = _Wanted.of([part.work for part in parts], rates, seconds, workers, most_lost)
    pieces = [
        Piece(places, chosen, cut.runs * missing.arranged.num_tokens(places), cut.seconds)
        for part in parts
        for cut in wanted.cuts(part.work)
        for places, chosen in [(part.places(cut.batches), part.work.line.order[slice(*cut.variants)])]
    ]
    return sorted(pieces, key=lambda piece: -piece.seconds)


def lost(pieces: Sequence[Piece], missing: Missing) -> float:
    """Block-tokens that run once more because variants were cut, as a share of those of the uncut sweep.

    Args:
        pieces: all pieces of the sweep, from `cut`.
        missing: what was cut.
    """
    together: dict[tuple[int, ...], list[Variant]] = {}
    for piece in pieces:
        together.setdefault(piece.places, []).extend(piece.variants)
    runs = {of: num_block_runs(trie(of)) for of in set(map(tuple, together.values()))}
    uncut = sum(runs[tuple(of)] * missing.arranged.num_tokens(places) for places, of in together.items())
    return sum(piece.block_tokens for piece in pieces) / uncut - 1 if uncut else 0.0


def pieces_of(
    sweep: Sweep,
    rates: tuple[float, float],
    batch_tokens: int,
    seconds: float = 60.0,
    workers: int = 1,
    most_lost: float = 0.1,
) -> tuple[list[float], float]:
    """Seconds of the pieces that a sweep would be cut into, largest first, and the share of block-tokens lost.

    Of the sequences the amount alone is known, so all batches are taken to be alike; arguments as `cut`.
    """
    amount = sweep.amount
    if not sweep.variants or not amount.sequences:
        return [], 0.0
    tokens = max(1, amount.shared if sweep.keeps_prefixes else amount.tokens)
    room = batch_tokens * (PREFIX_BATCHES if tokens < amount.tokens else 1)
    batches = max(1, min(amount.sequences, -(-tokens // room)))
    work = _Work([(tokens / batches, amount.scored / batches)] * batches, _Line.of(sweep.variants))
    wanted = _Wanted.of([work], rates, seconds, workers, most_lost)
    cuts = list(wanted.cuts(work))
    ran = sum(one.runs * (one.batches[1] - one.batches[0]) for one in cuts)
    return sorted((one.seconds for one in cuts), reverse=True), ran / (batches * work.line.runs) - 1


@dataclass(frozen=True, eq=False)
class _Line:
    """Variants in depth-first order.

    Attributes:
        order: the variants.
        more: block-runs of each, given the one before it.
        again: block-runs that each has in common with the one before it.
    """

    order: tuple[Variant, ...]
    more: tuple[int, ...]
    again: tuple[int, ...]

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, variants: tuple[Variant, ...]) -> "_Line":
        """Of some variants; a plan asks for those of the same ones with many numbers of workers."""
        order = tuple(variant for variant, _ in depth_first(trie(variants), None, lambda *_: None))
        again = (0, *(_common(*pair) for pair in pairwise(order)))
        return cls(order, tuple(len(v) - n for v, n in zip(order, again, strict=True)), again)

    @property
    def runs(self) -> int:
        """Block-runs of all of them."""
        return sum(self.more)


def _common(one: Variant, other: Variant) -> int:
    """Number of elements that two variants begin with in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, eq=False)
class _Work:
    """Batches that lack the same variants.

    Attributes:
        batches: of each the tokens that run and those that are scored.
        line: the variants.
    """

    batches: Sequence[tuple[float, float]]
    line: _Line

    def seconds(self, rates: tuple[float, float]) -> list[float]:
        """Seconds of each batch with all variants."""
        runs, heads = self.line.runs / rates[0], len(self.line.order) / rates[1]
        return [runs * tokens + heads * scored for tokens, scored in self.batches]


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of what is missing: its places, batch by batch, and the work that they are."""

    batches: Sequence[tuple[int, ...]]
    work: _Work

    @classmethod
    def of(
        cls, missing: Missing, places: Sequence[int], variants: Sequence[Variant], ends: Sequence[tuple[int, int]]
    ) -> "_Part":
        """Only what the part has of each batch (first place, place after the last) runs."""
        arranged, wanted = missing.arranged, set(places)
        chosen = [tuple(k for k in range(*batch) if k in wanted) for batch in ends]
        batches = [batch for batch in chosen if batch]
        sizes = [
            (arranged.num_tokens(batch), sum(arranged.sequences[arranged.order[k]].num_scored for k in batch))
            for batch in batches
        ]
        return cls(batches, _Work(sizes, _Line.of(tuple(variants))))

    def places(self, batches: tuple[int, int]) -> tuple[int, ...]:
        """Places of some neighbouring batches (first, the one after the last)."""
        return tuple(k for batch in self.batches[slice(*batches)] for k in batch)


@dataclass(frozen=True)
class _Cut:
    """A piece: neighbouring batches and variants (first, the one after the last), block-runs a batch, and seconds."""

    batches: tuple[int, int]
    variants: tuple[int, int]
    runs: int
    seconds: float


@dataclass(frozen=True)
class _Wanted:
    """How large pieces should be.

    Attributes:
        rates: block-tokens and head-tokens a second.
        seconds: what several batches in one piece take at most.
        alone: what a single batch may take before its variants are cut.
        most_lost: block-tokens that may run once more, as a share.
    """

    rates: tuple[float, float]
    seconds: float
    alone: float
    most_lost: float

    @classmethod
    def of(
        cls, works: Sequence[_Work], rates: tuple[float, float], seconds: float, workers: int, most_lost: float
    ) -> "_Wanted":
        """For workers that have nothing else to do than these."""
        pieces = PIECES_A_WORKER * workers if workers > 1 else 1
        total = sum(sum(work.seconds(rates)) for work in works)
        most = max(LEAST_SHARE * seconds, min(seconds, total / pieces))
        enough = sum(len(work.batches) for work in works) >= pieces
        return cls(rates, most, seconds if enough else most, most_lost)

    def cuts(self, work: _Work) -> Iterator[_Cut]:
        """The pieces of some batches that lack the same variants, in order."""
        line, times = work.line, work.seconds(self.rates)
        groups = self._groups_of_variants(work, times)
        for low, high in _groups(times, [0] * len(times), self.seconds, 0.0):
            if high - low > 1:
                yield _Cut((low, high), (0, len(line.order)), line.runs, sum(times[low:high]))
                continue
            tokens, scored = work.batches[low]
            for first, end, runs in groups[self._needed(times[low])]:
                took = runs * tokens / self.rates[0] + (end - first) * scored / self.rates[1]
                yield _Cut((low, high), (first, end), runs, took)

    def _needed(self, took: float) -> int:
        """In how many pieces a batch of so many seconds should run, at least."""
        return max(1, math.ceil(took / self.alone / _SLACK))

    def _groups_of_variants(self, work: _Work, times: Sequence[float]) -> dict[int, list[tuple[int, int, int]]]:
        """Groups of variants (first, the one after the last, block-runs), by how many a batch needs at least.

        Batches that need as many are cut alike, for the longest of them: to look for the cuts takes a while.
        """
        line = work.line
        tokens, scored = (sum(sizes) for sizes in zip(*work.batches, strict=True))
        head = scored / self.rates[1] * self.rates[0] / tokens  # seconds of a variant, in block-runs
        costs = [runs + head for runs in line.more]
        longest: dict[int, float] = {}
        for took in times:
            needed = self._needed(took)
            longest[needed] = max(longest.get(needed, 0.0), took)
        sums = list(accumulate(line.more, initial=0))
        return {
            needed: [
                (first, end, line.again[first] + sums[end] - sums[first])
                for first, end in _groups(
                    costs, line.again, sum(costs) * min(1.0, self.alone / took), self.most_lost * line.runs
                )
            ]
            for needed, took in longest.items()
        }


def _groups(costs: Sequence[float], again: Sequence[float], most: float, most_again: float) -> list[tuple[int, int]]:
    """Groups of neighbours (first, the one after the last) that each cost no more than `most`, as even as may be.

    Where that would cost more than `most_again`, groups are as small as they may be.

    Args:
        costs: cost of each, given the one before it.
        again: what each costs more where a group begins with it; never more than what ends before it.
        most: what a group may cost; a single one may cost more.
        most_again: what all groups together may cost more than one.
    """
    total = sum(costs)

    def search(low: float, high: float, fits: int | None) -> list[int]:
        """Starts of the groups for about the least cost that is allowed, between one that is not and one that is."""
        best = _starts(costs, again, high)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            starts = _starts(costs, again, middle)
            if sum(again[i] for i in starts) <= most_again and (fits is None or len(starts) <= fits):
                best, high = starts, middle
            else:
                low = middle
        return best

    starts = _starts(costs, again, most)
    if sum(again[i] for i in starts) > most_again:
        starts = search(most, total, None)
    elif total / len(starts) < most:  # else some cost more than they may, each by itself
        starts = search(total / len(starts), most, len(starts))
    return list(pairwise([*starts, len(costs)]))


def _starts(costs: Sequence[float], again: Sequence[float], most: float) -> list[int]:
    """Where groups of neighbours begin so that no more than needed is spent again, and in as few groups as that takes.

    Arguments as `_groups`.
    """
    sums = list(accumulate(costs, initial=0))
    # Of the first n: what is spent again and the number of groups, at least; and where the last group begins.
    best: list[tuple[float, int]] = [(0, 0)]
    begins = [0]
    low, window = 0, deque[tuple[tuple[float, int], int]]()  # what may begin the last group, the best first
    for n in range(1, len(sums)):
        one = ((best[-1][0] + again[n - 1], best[-1][1] + 1), n - 1)
        while window and window[-1][0] > one[0]:
            window.pop()
        window.append(one)
        while low < n - 1 and again[low] + sums[n] - sums[low] > most * _SLACK:
            low += 1
        while window[0][1] < low:
            window.popleft()
        best.append(window[0][0])
        begins.append(window[0][1])
    starts, n = [], len(costs)
    while n:
        n = begins[n]
        starts.append(n)
    return starts[::-1]
