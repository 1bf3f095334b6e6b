import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError


def test_known_plans():
    assert variants.single_removal(3) == [(1, 2), (0, 2), (0, 1)]
    assert variants.cumulative_removal(4, [2, 1, 0, 3]) == [(0, 1, 2, 3), (0, 1, 3), (0, 3), (3,)]
    assert variants.block_removal(6, 2, 3) == (0, 1, 5)
    assert variants.without(4, [-1]) == (0, 1, 2)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n - 1))))
def test_removed_and_kept_partition_the_model(case):
    n, removed = case
    kept = variants.without(n, removed)
    assert sorted([*kept, *removed]) == list(range(n))
    assert variants.removed_blocks(n, kept) == tuple(sorted(removed))


@pytest.mark.parametrize(
    "removed, message",
    [
        ([0, 1, 2], "keep at least one"),
        ([1, 1], "block 1 is to be removed twice"),
        ([0, -3], "block 0 is to be removed twice"),
        ([3], "out of range: the model has blocks 0 to 2"),
        ([-4], "out of range"),
        (["a"], "no index"),
    ],
)
def test_impossible_removals_are_one_line(removed, message):
    with pytest.raises(StudyError, match=message):
        variants.without(3, removed)


def test_variants_with_heads_have_names_of_their_own():
    variant = variants.without_head(4, 2, 1)
    assert variant == (0, 1, (2, 1), 3)
    assert variants.name(variant) == "0,1,2-1,3" and variants.name((0, 3)) == "0,3"
    assert variants.removed_blocks(4, variant) == ()
    assert variants.describe(4, variant) == "without head 1 of block 2"
    assert variants.describe(4, (0, 3)) == "without blocks [1, 2]" and variants.describe(2, (0, 1)) == "dense"


def test_variants_with_changed_blocks_have_names_of_their_own():
    one, other = variants.Changed(2, "0123456789abcdef"), variants.Changed(2, "f123456789abcdef")
    variant = (0, one, 3)
    assert variants.name(variant) == "0,2~0123456789abcdef,3" != variants.name((0, other, 3))
    assert variants.removed_blocks(5, variant) == (1, 4)
    assert variants.describe(5, variant) == "without blocks [1, 4], block 2 changed"
    again = variants.Changed(np.int64(2), one.key)
    assert variants.plan(5, [variant, [0, again, 3], (0, 2, 3), (0, other, 3)]) == [
        variant,
        (0, 2, 3),
        (0, other, 3),
    ]
    assert variants.changes_of([variant, (0, 2), (one, (3, 1)), (other,)]) == [one, other]


@pytest.mark.parametrize(
    "variant, message",
    [
        ((0, variants.Changed(5, "0" * 16)), "block 5 is out of range in"),
        ((2, variants.Changed(2, "0" * 16)), "must ascend, each named once"),
        ((variants.Changed(2, "0" * 16), variants.Changed(2, "1" * 16)), "must ascend, each named once"),
        ((0, variants.Changed(2, "0,1")), "must be 16 hexadecimal digits"),
        ((0, variants.Changed(2, 16)), "must be 16 hexadecimal digits"),
        ((0, variants.Changed("2", "0" * 16)), "a changed block must be a whole number"),
    ],
)
def test_impossible_changes_are_one_line(variant, message):
    with pytest.raises(StudyError, match=message) as refused:
        variants.checked(5, variant)
    assert "\n" not in str(refused.value)


def test_many_heads():
    variant = variants.without_heads(4, [(2, 3), (0, 1), (2, 1)])
    assert variant == ((0, 1), 1, (2, 1, 3), 3)
    assert variants.name(variant) == "0-1,1,2-1-3,3"
    assert (
        variants.describe(4, variant)
        == "without head 1 of block 0, without head 1 of block 2, without head 3 of block 2"
    )
    assert variants.head_everywhere(2, 3)[1] == ((0, 1), (1, 1))
    singles = variants.single_heads(5, 2, block_step=2)
    assert list(singles) == [(0, 0), (0, 1), (2, 0), (2, 1), (4, 0), (4, 1)] and singles[2, 1] == (0, 1, (2, 1), 3, 4)
    sets = variants.random_heads(4, 3, 5, 10, seed=0)
    assert all(sum(len(e) - 1 for e in v if isinstance(e, tuple)) == 5 for v in sets) and len(set(sets)) == 10
    assert sets == variants.random_heads(4, 3, 5, 10, seed=0) != variants.random_heads(4, 3, 5, 10, seed=1)


def test_impossible_heads_are_one_line():
    with pytest.raises(StudyError, match="block 4 is out of range"):
        variants.without_heads(4, [(4, 0)])
    with pytest.raises(StudyError, match="head 1 of block 2 is to be removed twice"):
        variants.without_heads(4, [(2, 1), (2, 1)])
    with pytest.raises(StudyError, match="13 heads are to be removed: the model has 12"):
        variants.random_heads(4, 3, 13, 1, seed=0)
