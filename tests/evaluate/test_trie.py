from hypothesis import given
from hypothesis import strategies as st

from layer_redundancy.core import variants
from layer_redundancy.evaluate.trie import depth_first, num_block_runs, num_held, trie

variant_sets = st.lists(
    st.sets(st.integers(0, 4), min_size=1).map(lambda kept: tuple(sorted(kept))), min_size=1, max_size=12, unique=True
)


@given(variant_sets)
def test_a_block_runs_once_for_each_distinct_prefix(plan):
    runs = []

    def run_block(element, state, shared):
        runs.append((*state, element))
        return runs[-1]

    assert dict(depth_first(trie(plan), (), run_block)) == {v: v for v in plan}
    assert sorted(runs) == sorted({v[:n] for v in plan for n in range(1, len(v) + 1)})
    assert len(runs) == num_block_runs(trie(plan))


def test_counts_of_known_plans():
    count = lambda plan: num_block_runs(trie(plan))  # noqa: E731
    assert count(variants.single_removal(30)) == 464  # naive: 30 x 29 = 870
    assert count(variants.cumulative_removal(30, list(range(29, -1, -1)))) == 30  # naive: 465


def test_states_are_held_only_where_paths_branch():
    alive, peak = [0], [0]

    class State:
        def __init__(self):
            alive[0] += 1
            peak[0] = max(peak[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    heads = [variants.without_head(40, block, head) for block in range(0, 40, 4) for head in range(8)]
    for plan in (variants.single_removal(40), heads, [(0, 1, 2), (0, 2), (1, 2), (1,)]):
        peak[0] = 0
        for _ in depth_first(trie(plan), State(), lambda b, s, _: State()):
            pass
        # the caller holds the first state, the loop the one before and the one after a block
        assert peak[0] <= num_held(trie(plan)) + 3
    # Whatever the order of the variants: the dense model first would else keep a state for every block.
    for plan in (variants.single_removal(40), [variants.dense(40), *variants.single_removal(40)]):
        assert num_held(trie(plan)) == num_held(trie(plan[::-1])) == 1
