"""Statistics: known values, and literal ones of every stream of draws, which the committed numbers come from.

Streams that are alike must not be made one: each would draw otherwise. The literals were computed before the functions
stood together, when each lay with its only caller.
"""

import numpy as np
import pytest
import scipy.stats

from direct_importance import made_up, made_up_sums
from layer_redundancy.core import stats
from layer_redundancy.measures import importance

close = pytest.approx
exactly = np.testing.assert_array_equal


def same(found, expected) -> None:
    """Equal up to the order in which a product or a mean may be summed on another machine."""
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ known values


def test_accuracy_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    known = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in known.items():
        assert stats.accuracy_interval(successes, n) == close(interval, abs=5e-5)
    assert stats.accuracy_interval(20, 20)[1] == close(1.0)
    same(stats.accuracy_interval(81, 263), (0.2552885198782742, 0.36620957698280004))


def test_the_interval_of_a_mean_is_students():
    values = np.array([1.0, 2.0, 3.0])  # t(0.975, 2 degrees of freedom) = 4.3027, standard error 1 / sqrt(3)
    assert stats.mean_interval(values) == close((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert np.isnan(stats.mean_interval(values[:1])).all()
    same(stats.mean_interval(made_up(6)), (0.005242186562124329, 0.6911274504015721))


def test_bootstrap_resamples_rows_together():
    values = np.array([[0.0, 10.0], [1.0, 11.0], [4.0, 14.0]])
    draws = stats.bootstrap_means(values, 400, seed=3)
    assert draws.shape == (400, 2)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 10)
    assert draws[:, 0].min() == 0 and draws[:, 0].max() == 4
    assert abs(draws[:, 0].mean() - 5 / 3) < 0.2
    exactly(draws, stats.bootstrap_means(values, 400, seed=3))
    assert (draws != stats.bootstrap_means(values, 400, seed=4)).any()


# --------------------------------------------------------------------------------------------- streams of draws


def test_counts_and_rows_of_one_seed_are_different_draws():
    exactly(stats.unit_counts(5, 3, seed=1), [[1, 3, 0, 1, 0], [0, 1, 2, 1, 1], [1, 0, 2, 1, 1]])
    exactly(stats.unit_rows(5, 3, seed=1), [[2, 2, 3, 4, 0], [0, 4, 4, 1, 1], [4, 2, 1, 4, 1]])


def test_draws_of_means():
    draws = stats.bootstrap_means(made_up(7, 3), 5, seed=11)
    exactly(draws[0], [0.2998585572842999, 0.562942008486563, 0.5403111739745403])
    assert stats.bootstrap_means(made_up(6, 3, 3), 4, seed=2).shape == (4, 3, 3)


# ---------------------------------------------------------------------------------- and of those who draw from them


def test_draws_of_scores():
    first = {
        "block_influence": [0.9516728624535316, 0.9585767392458843, 0.9654806160382369, 0.9723844928305895],
        "relative_magnitude": [0.030801911842804033, 0.056470171711807404, 0.06425916091343602, 0.036289608780315105],
        "hidden_norm": [0.055231014338821036, 0.09877854487519915, 0.03505045140732874, 0.07859798194370686],
        "angular_distance": [0.45049504950495045, 0.3861386138613861, 0.3217821782178218, 0.25742574257425743],
    }
    for measure, expected in first.items():
        exactly(importance.bootstrap_scores(made_up_sums(), measure, 5, seed=3)[0], expected)


def test_draws_of_calibration_texts():
    (again,) = made_up_sums().resampled(1, seed=4)
    same(again.tokens - 9, np.array([63, 3, 3, 22, 3, 3]) / 101)


def test_kendalls_tau_of_many_rankings_is_scipys():
    rng = np.random.default_rng(0)
    first, others = rng.permutation(30), rng.integers(0, 12, (200, 30)).astype(float)
    others[0], others[1], others[2] = first, -first, 5.0
    expected = [scipy.stats.kendalltau(first, other).statistic for other in others]
    np.testing.assert_allclose(stats.kendall_taus(first, others), expected, rtol=0, atol=1e-14)
    assert np.isnan(expected[2])
    tied = rng.integers(0, 5, 30)
    expected = [scipy.stats.kendalltau(tied, other).statistic for other in others]
    np.testing.assert_allclose(stats.kendall_taus(tied, others), expected, rtol=0, atol=1e-14)
