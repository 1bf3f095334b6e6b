"""Which sequences share the beginning: few-shot examples of a subject, the question before its answers.

Tokens that sequences have in common run once, as a prefix whose keys and values serve them all.
"""

from collections.abc import Sequence
from itertools import groupby

MIN_PREFIX = 8  # tokens: a shorter prefix saves less than its separate forward costs


def shared_prefixes(inputs: Sequence[tuple[int, ...]], num_scored: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Groups sequences by a common prefix, one level deep, so that the fewest tokens run.

    Args:
        inputs: token ids of each sequence.
        num_scored: how many last positions of each are scored; they stay out of the prefix, and so does at least the
            last token.

    Returns:
        (length of the prefix, members) of each group, every sequence in exactly one; length 0 where nothing is shared.
        Members are indices into `inputs`, sorted by their tokens.
    """
    limits = [min(len(ids) - 1, len(ids) - n) for ids, n in zip(inputs, num_scored, strict=True)]
    order = sorted(range(len(inputs)), key=lambda i: inputs[i])

    def common(members: list[int]) -> int:
        """Length of what all members begin with: what the first and the last in order have in common."""
        pairs = zip(inputs[members[0]], inputs[members[-1]], strict=False)
        differ = (k for k, (a, b) in enumerate(pairs) if a != b)
        return next(differ, min(len(inputs[members[0]]), len(inputs[members[-1]])))

    def best(members: list[int]) -> tuple[int, list[tuple[int, list[int]]]]:
        """(tokens saved, groups) for members that are neighbours in order."""
        if len(members) == 1:
            return 0, [(0, members)]
        depth = common(members)
        length = min(depth, *(limits[i] for i in members))
        whole = (len(members) - 1) * length if length >= MIN_PREFIX else 0
        if all(len(inputs[i]) == depth for i in members):
            parts = [(0, [(0, [i]) for i in members])]  # all equal: nothing to branch on
        else:
            branches = groupby(members, key=lambda i: inputs[i][depth : depth + 1])
            parts = [best(list(branch)) for _, branch in branches]
        apart = sum(saved for saved, _ in parts)
        if whole >= apart and whole > 0:
            return whole, [(length, members)]
        return apart, [group for _, groups in parts for group in groups]

    return best(order)[1] if order else []
