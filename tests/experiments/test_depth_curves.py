import numpy as np
import pytest

from layer_redundancy.core import variants
from layer_redundancy.experiments import depth_curves, result_tables
from layer_redundancy.measures import importance
from made_up import nll_result, sums, task_result

L = 6


def test_depths_hold_the_step_the_ratios_and_both_ends():
    assert depth_curves.depths(30) == list(range(30))
    assert depth_curves.depths(30, 10) == [0, 3, 8, 10, 15, 20, 29]  # 10, 25 and 50 % of 30
    assert [depth_curves.at_ratio(num, 0.9) for num in (1, 2, 4, 30)] == [0, 1, 3, 27], "never all"
    assert depth_curves.depths(2) == [0, 1] and depth_curves.depths(5, 100) == [0, 1, 2, 4]


def test_plans_remove_as_many_blocks_whatever_the_measure():
    counts = depth_curves.depths(L, 2)
    plans = depth_curves.removals_by_measure(sums(num_blocks=L), counts, greedy=[3, 1, 2, 0, 4, 5])
    assert set(plans) == set(importance.MEASURES) - {"angular_distance"} | {"angular_blocks", "greedy"}
    for plan in plans.values():
        assert list(plan) == counts and all(len(v) == L - k for k, v in plan.items())
    assert plans["reverse_order"][2] == (0, 1, 2, 3) and plans["sequential"][2] == (2, 3, 4, 5)
    assert plans["greedy"][2] == (0, 2, 4, 5)
    run = variants.removed_blocks(L, plans["angular_blocks"][4])
    assert run == tuple(range(run[0], run[0] + 4))
    grid = importance.angular_grid(sums(num_blocks=L))
    assert run[0] == importance.best_start(grid, 4)


def test_along_keeps_the_depth_of_variants_that_two_plans_share():
    dense = variants.dense(3)
    plan = {0: dense, 1: (0, 1), 2: (0,)}
    results = {v: nll_result([len(v), len(v)]) for v in [*plan.values(), (1, 2)]}
    table = depth_curves.along(result_tables.perplexity(results, dense)[0], plan, 3)
    assert list(table["count"]) == [0, 1, 2] and list(table["removed"]) == ["", "2", "1 2"]
    assert table["share"].to_numpy() == pytest.approx([0, 100 / 3, 200 / 3])
    assert table["perplexity"].to_numpy() == pytest.approx(np.exp([3, 2, 1]))
    assert depth_curves.values(results, plan).tolist() == [[3, 3], [2, 2], [1, 1]]


def test_accuracies_are_not_negated():
    plan = {0: (0, 1), 1: (0,)}
    results = {(0, 1): task_result([1, 1]), (0,): task_result([0, 1])}
    assert depth_curves.values(results, plan).tolist() == [[1, 1], [0, 1]]


def test_resampled_sums_are_other_texts_of_the_same_length():
    text = sums(num_sequences=30)
    again = text.resampled(2, seed=0)
    assert all(len(other.tokens) == 30 for other in again)
    assert not np.array_equal(again[0].norm, again[1].norm)
    assert {tuple(row) for row in again[0].norm} < {tuple(row) for row in text.norm}
