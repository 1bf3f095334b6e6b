import numpy as np
import pytest

from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures import greedy


def test_each_step_removes_what_hurts_least_now():
    """Blocks 0 and 1 do the same: either can go at no cost, both cannot. A measure of single blocks would take both."""
    weight = {2: 3.0, 3: 5.0}

    def cost(plan):
        gone = [set(variants.removed_blocks(4, variant)) for variant in plan]
        return [sum(weight.get(b, 0) for b in removed) + 9 * ({0, 1} <= removed) for removed in gone]

    assert greedy.removal_order(4, cost).tolist() == [1, 2, 3, 0]  # the deeper of equals first


def test_the_whole_search_takes_the_best_of_all_at_each_step():
    rng = np.random.default_rng(0)
    costs = {}

    def cost(plan):
        return [costs.setdefault(variant, rng.random()) for variant in plan]

    order = greedy.removal_order(6, cost).tolist()
    assert sorted(order) == list(range(6))
    for step in range(5):
        tried = [v for v in costs if len(v) == 5 - step]
        assert len(tried) == 6 - step
        assert costs[variants.without(6, order[: step + 1])] == min(costs[v] for v in tried)


def test_a_shortlist_tries_those_that_hurt_least_before():
    asked = []

    def cost(plan):
        asked.append(plan)
        return [float(sum(variants.removed_blocks(8, variant))) for variant in plan]

    assert greedy.removal_order(8, cost, shortlist=0.25).tolist() == list(range(8))
    assert [len(step) for step in asked] == [1, 8, 2, 2, 2, 2, 2, 2]


def test_two_blocks_and_bad_shares():
    assert greedy.removal_order(2, lambda plan: [len(v) and float(v[0]) for v in plan]).tolist() == [1, 0]
    assert greedy.removal_order(1, lambda plan: [0.0]).tolist() == [0]
    for share in (0, -1, 1.5):
        with pytest.raises(StudyError, match="shortlist"):
            greedy.removal_order(3, lambda plan: [0.0] * len(plan), shortlist=share)
