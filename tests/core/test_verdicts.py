"""Verdicts: known values, and by simulation how often intervals hold the truth and verdicts err."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from layer_redundancy.core import stats, verdicts
from layer_redundancy.core.verdicts import Statement, judge, judged_draws

close = pytest.approx
SIMULATED = 400  # 95 % of so many is within 0.028 of it, 99 times in 100


def above_zero(mean: np.ndarray) -> list[Statement]:
    return [Statement("above zero", mean[0], 0.0, matters=1.0)]


def about_zero(mean: np.ndarray) -> list[Statement]:
    return [Statement("about zero", mean[0], 0.5, "within")]


def one(statements, values: np.ndarray, resamples: int = 200) -> pd.Series:
    return verdicts.verdicts([judge(statements, values, resamples, seed=0)], "none").iloc[0]


# ------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize("num", [4, 8, 24])
def test_intervals_hold_the_mean_of_few_values_as_often_as_they_say(num):
    rng = np.random.default_rng(num)
    held, by_percentiles = 0, 0
    for _ in range(SIMULATED):
        values = rng.normal(size=(num, 1))
        draws = stats.bootstrap_means(values, 200, seed=0)[:, 0]
        low, high = stats.interval(values.mean(), draws, num)
        held += low <= 0 <= high
        low, high = np.percentile(draws, [2.5, 97.5])
        by_percentiles += low <= 0 <= high
    assert 0.92 <= held / SIMULATED <= 0.98
    assert num > 8 or by_percentiles / SIMULATED < 0.92  # what it replaces


def test_intervals_over_seeds_and_text_hold_the_mean_where_either_varies():
    rng = np.random.default_rng(1)
    for of_seeds, of_text in ((1.0, 0.1), (0.1, 1.0), (1.0, 1.0)):
        held = 0
        for _ in range(SIMULATED):
            values = of_seeds * rng.normal(size=(5, 1)) + of_text * rng.normal(size=(1, 16))
            low, high = stats.crossed_interval(values + 0.1 * rng.normal(size=(5, 16)))
            held += low <= 0 <= high
        assert held / SIMULATED >= 0.92


def test_the_interval_of_a_mean_is_students_however_it_is_found():
    values = np.random.default_rng(2).normal(size=(12, 1))
    draws = stats.bootstrap_means(values, 20_000, seed=0)[:, 0]
    assert stats.interval(values.mean(), draws, 12) == close(stats.mean_interval(values[:, 0]), abs=0.01)
    assert np.isnan(stats.interval(1.0, np.ones(5), 1)).all()


def test_standard_errors_of_several_kinds_of_unit_add_up():
    error, degrees = stats.combined([3.0, 4.0], [5, 9])
    assert error == 5.0 and degrees == close(25**2 / (9**2 / 4 + 16**2 / 8))
    assert stats.combined([1.0, 0.0], [5, 100]) == (1.0, close(4.0))
    assert np.isnan(stats.combined([1.0, np.nan], [5, 1])[0])


# ------------------------------------------------------------------------------------------------ verdicts


def test_a_verdict_errs_as_often_as_its_level_says():
    rng = np.random.default_rng(3)
    found = [one(above_zero, rng.normal(size=(8, 1))).verdict for _ in range(SIMULATED)]
    assert np.mean([v in (verdicts.SUPPORTED, verdicts.REFUTED) for v in found]) == close(0.05, abs=0.03)


def test_power_is_how_often_a_difference_that_matters_is_found():
    rng = np.random.default_rng(4)
    rows = [one(above_zero, 1.0 + 1.2 * rng.normal(size=(12, 1))) for _ in range(SIMULATED)]
    assert np.mean([row.verdict == verdicts.SUPPORTED for row in rows]) == close(
        np.mean([row.power for row in rows]), abs=0.08
    )


def test_no_difference_is_believed_where_none_could_have_been_seen():
    rng = np.random.default_rng(5)
    few, many = one(about_zero, rng.normal(size=(6, 1))), one(about_zero, rng.normal(size=(400, 1)))
    assert few.verdict == verdicts.NOT_TESTABLE and few.power < 0.8
    assert many.verdict == verdicts.SUPPORTED and many.power > 0.99
    far = one(about_zero, 3 + rng.normal(size=(6, 1)))
    assert far.verdict == verdicts.REFUTED
    # One that could have been seen and was not found is undecided.
    noisy = np.array([[0.2], [-0.19], [0.21], [-0.2], [0.18], [-0.2]] * 4)
    assert one(above_zero, noisy).verdict == verdicts.UNDECIDED


def test_equality_is_tested_on_both_sides():
    row = one(about_zero, np.array([[0.3], [0.5], [0.4], [0.6], [0.2]]), resamples=20_000)
    error = scipy.stats.sem([0.3, 0.5, 0.4, 0.6, 0.2])
    assert row.p == close(2 * scipy.stats.t.sf(0.1 / error, 4), rel=0.05)
    assert (row.low, row.high) == close(stats.mean_interval(np.array([0.3, 0.5, 0.4, 0.6, 0.2])), abs=0.01)


def test_p_is_the_paired_t_tests_and_the_interval_goes_with_it():
    values = np.random.default_rng(6).normal(0.4, 1, (20, 2))

    def first_below_second(mean):
        return [Statement("first below second", mean[0], mean[1], "below", matters=0.5)]

    row = one(first_below_second, values, resamples=20_000)
    assert row.p == close(scipy.stats.ttest_rel(values[:, 0], values[:, 1]).pvalue, rel=0.05)
    assert (row.low > 0 or row.high < 0) == (row.p < 0.05)


def test_several_statements_are_corrected_for_their_number():
    # Holm's own steps: 4 x 0.01, 3 x 0.02 (no less than before), ...
    assert verdicts.holm(np.array([0.02, 0.01, 0.5, np.nan, 0.04])) == close(
        [0.06, 0.04, 0.5, np.nan, 0.08], nan_ok=True
    )
    part = judge(above_zero, np.array([[0.1], [0.9], [0.4], [0.8]]), 2000, seed=0)
    alone = verdicts.verdicts([part], "above zero").iloc[0]
    others = [part.assign(statement=f"another {i}") for i in range(9)]
    together = verdicts.verdicts([part, *others], "above zero").iloc[0]
    assert together.p == close(min(1, 10 * alone.p)) and together.detectable > alone.detectable
    assert together.power < alone.power and together.role == "primary"


def test_a_single_unit_tests_nothing():
    assert one(above_zero, np.array([[5.0]])).verdict == verdicts.NOT_TESTABLE


def test_items_that_are_all_right_are_not_all_there_are():
    row = one(above_zero, np.ones((200, 1)))
    assert row.verdict == verdicts.SUPPORTED and row.low == close(1 - 1.972 / 200, abs=1e-4)


def test_seeds_and_text_both_make_a_statement_uncertain():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(4, 1, 1)) + np.zeros((4, 300, 1)) + 0.01 * rng.normal(size=(4, 300, 1))
    crossed, pooled = one(above_zero, values), one(above_zero, values.reshape(-1, 1))
    assert crossed.high - crossed.low > 5 * (pooled.high - pooled.low)


def test_statements_on_resamples_of_ones_own():
    values = np.random.default_rng(8).normal(1, 1, 40)
    draws = [above_zero(np.array([np.median(values[rows])])) for rows in stats.unit_rows(40, 2000, seed=0)]
    part = judged_draws(above_zero(np.array([np.median(values)])), [draws], [40])
    row = verdicts.verdicts([part], "above zero").iloc[0]
    assert row.verdict == verdicts.SUPPORTED and row.low < np.median(values) < row.high


def test_a_figure_that_moves_in_steps_is_not_sure_because_it_never_moved():
    always = above_zero(np.array([0.25]))
    row = verdicts.verdicts([judged_draws(always, [[always] * 50], [64], least=0.125 / 64)], "above zero").iloc[0]
    assert row.verdict == verdicts.SUPPORTED and row.high - row.low == close(2 * 2.0096 * 0.125 / 64, rel=1e-4)


def test_resamples_without_a_number_or_fewer_than_two_test_nothing():
    draws = [above_zero(np.array([value])) for value in (1.0, np.nan, 1.2)]
    for drawn in (draws, draws[:1]):
        row = verdicts.verdicts([judged_draws(draws[0], [drawn], [40])], "above zero").iloc[0]
        assert row.verdict == verdicts.NOT_TESTABLE and np.isnan(row.p) and np.isnan(row.power)


def test_an_interval_knows_no_more_than_its_resamples():
    values = np.random.default_rng(9).normal(size=64)
    draws = stats.bootstrap_means(values, 5, seed=0)
    low, high = stats.interval(values.mean(), draws, 64)
    assert (high - low) / 2 == close(2.7764 * draws.std(ddof=1) * np.sqrt(64 / 63), rel=1e-4)
    assert np.isnan(stats.interval(values.mean(), draws[:1], 64)).all()


def test_the_interval_over_kinds_is_that_of_the_root_of_the_sum_of_squares():
    rng = np.random.default_rng(10)
    draws = [stats.bootstrap_means(rng.normal(size=num), 2000, seed=0) for num in (5, 30)]
    low, high = stats.interval_over_kinds(1.0, draws, [5, 30])
    error, degrees = stats.combined([stats.standard_error(d, n) for d, n in zip(draws, (5, 30), strict=True)], [5, 30])
    assert (high - low) / 2 == close(scipy.stats.t.ppf(0.975, degrees) * error) and (low + high) / 2 == close(1.0)
    held = 0
    for _ in range(SIMULATED):
        of_seeds, of_text = rng.normal(size=5), rng.normal(size=30)
        again = [stats.bootstrap_means(one, 100, seed=0) for one in (of_seeds, of_text)]
        low, high = stats.interval_over_kinds(of_seeds.mean() + of_text.mean(), again, [5, 30])
        held += low <= 0 <= high
    assert 0.92 <= held / SIMULATED <= 0.99


def test_a_statement_without_a_number_is_not_made_and_each_says_what_matters():
    def statements(mean):
        return [Statement("of nothing", np.nan, 1.0), Statement("of something", mean[0], 0.0)]

    part = judge(statements, np.ones((4, 1)), 10, seed=0)
    assert part["statement"].tolist() == ["of something"]
    assert verdicts.verdicts([], "any").empty and list(verdicts.verdicts([], "any")) == verdicts.COLUMNS
    with pytest.raises(ValueError, match="'of something' must say what difference matters"):
        verdicts.verdicts([part], "any")
    with pytest.raises(ValueError, match="must be one statement"):
        verdicts.verdicts([part.assign(matters=1.0)] * 2, "of something")


def test_what_people_read():
    table = verdicts.verdicts([judge(above_zero, np.array([[0.5], [0.9], [0.4], [0.8]]), 500, seed=0)], "above zero")
    row = verdicts.shown(table).iloc[0]
    assert row["statement"] == "above zero (primary)" and row["verdict"] == "supported" and row["holds if"] == "> 0"
    assert verdicts.summary(table).startswith("'above zero' (perplexity) is supported (difference 0.65, 95 %")
    assert verdicts.shown(table.iloc[:0]).empty and verdicts.summary(table.iloc[:0]).startswith("no statement")
