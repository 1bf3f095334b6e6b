"""Statistics of continuations checked by hand."""

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core import stats
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.evaluate import generate
from layer_redundancy.experiments import generation


def test_agreement_and_divergence_by_hand():
    agrees = generation.agreement(np.array([[5, 6, 7, 8], [1, 6, 7, 8]]), np.array([[5, 6, 0, 8], [5, 6, 7, 8]]))
    np.testing.assert_array_equal(agrees, [[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(generation.undiverged(agrees), [[1, 1, 0, 0], [0, 0, 0, 0]])


def test_independent_errors_are_powers_of_the_rate():
    forced = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(generation.independent_errors(forced), [0.75, 0.75**2, 0.75**3, 0.75**4])
    np.testing.assert_allclose(generation.independent_errors(np.stack([forced, forced * 0]))[1], 0)


def test_chance_agreement_is_over_pairs_of_different_prompts():
    tokens = np.array([[1, 2], [1, 3], [4, 3]])  # pairs: 01 at position 0; 12 at position 1; of 3 pairs x 2 positions
    assert generation.chance_agreement(tokens) == pytest.approx(2 / 6)
    assert np.isnan(generation.chance_agreement(tokens[:1]))


def test_fresh_tokens_by_hand():
    tokens = np.array([[1, 2, 1, 2, 1, 3], [7, 7, 7, 7, 7, 8]])
    expected = [[1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]]  # the bigrams that come again: 12, 21; 77
    np.testing.assert_array_equal(generation.fresh(tokens, 2), np.array(expected, bool))
    np.testing.assert_allclose(1 - generation.fresh(tokens, 2)[:, 1:].mean(1), generate.repetition(tokens, 2))


def test_loops_that_both_models_follow_hide_no_errors():
    found = results(feed=True)
    arrays = found[0, 2].arrays
    arrays["tokens"][:, 8:] = 5  # a loop, which the dense model follows but for its first tokens
    arrays["judged"] = np.where(generation.fresh(arrays["tokens"]), arrays["judged"], 5)
    arrays["judged"][:, 8:11] = 6
    table = generation.accumulation(found, DENSE, (0, 2), 50, 0)
    own = generation.agreements(found, DENSE, (0, 2))["own text"]
    raw = statement(table, "on its own text, agreement is lower")
    assert raw["measured"] < own[:, 8:].mean() and raw["holds"]


def test_bootstrap_resamples_rows_together():
    values = np.array([[0.0, 10.0], [1.0, 11.0], [4.0, 14.0]])
    draws = stats.bootstrap_means(values, 400, seed=3)
    assert draws.shape == (400, 2)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 10)
    assert draws[:, 0].min() == 0 and draws[:, 0].max() == 4
    assert abs(draws[:, 0].mean() - 5 / 3) < 0.2
    np.testing.assert_array_equal(draws, stats.bootstrap_means(values, 400, seed=3))
    assert (draws != stats.bootstrap_means(values, 400, seed=4)).any()


DENSE = (0, 1, 2)


def results(num: int = 40, length: int = 16, feed: bool = False) -> dict:
    """A dense model and a pruned one; if `feed`, the pruned one's errors come faster on its own text."""
    rng = np.random.default_rng(0)
    reference = rng.integers(10, 1000, (num, length))
    right = rng.random((num, length)) < 0.8
    forced = np.where(right, reference, 1)
    free = np.where(np.minimum.accumulate(right, axis=1), reference, 2)
    slope = np.linspace(0.9, 0.1, length) if feed else 0.8
    judged = np.where(rng.random((num, length)) < slope, free, 3)
    ones = np.ones((num, length), np.float32)
    dense = {"tokens": reference, "forced": reference, "judged": reference, "nll": ones}
    pruned = {"tokens": free, "forced": forced, "judged": judged, "nll": 2 * ones}
    return {DENSE: Result({}, dense | {"text_nll": 4 * ones}), (0, 2): Result({}, pruned)}


def test_by_position_averages_windows_and_leaves_survival_alone():
    found = results()
    table = generation.by_position(found, DENSE, 50, 0, window=5)
    assert set(table["removed"]) == {1} and set(table["n"]) == {40}
    agrees = generation.agreements(found, DENSE, (0, 2))
    part = table[table["reading"] == "teacher-forced"]
    assert part["position"].tolist() == [3, 8, 13, 16]  # the last window has one position
    np.testing.assert_allclose(part["agreement"].iloc[0], agrees["teacher-forced"][:, :5].mean())
    np.testing.assert_allclose(part["agreement"].iloc[-1], agrees["teacher-forced"][:, 15].mean())
    survival = table[table["reading"] == "not yet diverged"]
    assert survival["position"].tolist() == list(range(1, 17))
    np.testing.assert_allclose(survival["agreement"], generation.undiverged(agrees["free-running"]).mean(0))
    expected = table[table["reading"] == "independent errors"]
    np.testing.assert_allclose(expected["agreement"].iloc[1], agrees["teacher-forced"].mean() ** 2)
    assert (table["low"] <= table["agreement"] + 1e-12).all() and (table["agreement"] <= table["high"] + 1e-12).all()


def test_by_depth_has_every_measure_and_the_real_text():
    found = results()
    text = np.full((40, 16), 9)
    table = generation.by_depth(found, DENSE, text, 50, 0)
    value = table.set_index(["removed", "measure"])["value"]
    assert value[0, "free-running"] == value[0, "own text"] == 1
    assert value[1, "perplexity"] == pytest.approx(np.exp(2))
    real = table[table["removed"].isna()].set_index("measure")["value"]
    assert real["perplexity"] == pytest.approx(np.exp(4)) and real["repetition"] == pytest.approx(12 / 13)


def statement(table: pd.DataFrame, words: str) -> pd.Series:
    (row,) = [row for _, row in table.iterrows() if words in row["statement"]]
    return row


def test_errors_that_feed_on_each_other_are_told_from_those_that_do_not():
    kept, fed = (generation.accumulation(results(feed=f), DENSE, (0, 2), 100, 0) for f in (False, True))
    for words in ("on its own text, agreement is lower", "lower on its own text than teacher-forced"):
        assert statement(fed, words)["holds"] and statement(fed, words)["certainty"] == 1, words
        assert statement(kept, words)["certainty"] < 0.95, words
    for table in (kept, fed):
        assert statement(table, "free-running agreement falls")["holds"]
        assert not statement(table, "first error comes sooner")["certainty"] >= 0.95, "they are independent"
        likely = statement(table, "less likely")
        assert (likely["measured"], likely["threshold"], likely["holds"]) == (2, 1, True)
        assert list(table.columns) == ["removed", "statement", "measured", "threshold", "holds", "certainty"]
        assert set(table["removed"]) == {1}


def test_kept_is_above_chance_and_paired():
    scores = {DENSE: np.array([1.0, 1, 1, 0]), (0, 2): np.array([1.0, 1, 0, 0])}
    table = generation.kept("a task", "multiple choice", scores, DENSE, 0.25, 200, 0).set_index("removed")
    assert table["kept"].tolist() == [1, pytest.approx(0.5)]
    assert table.loc[0, "low"] == table.loc[0, "high"] == 1, "paired with itself"
    with pytest.raises(StudyError, match="at chance on a task"):
        generation.kept("a task", "multiple choice", scores, DENSE, 0.75, 200, 0)


def test_first_to_suffer_compares_what_is_kept():
    ones = np.ones(30)
    poor, good = {DENSE: ones, (0, 2): 0.05 * ones}, {DENSE: ones, (0, 2): 0.9 * ones}
    table = generation.first_to_suffer(poor, good, (0.0, 0.25), ("a", "b"), DENSE, (0, 2), 50, 0)
    assert table["holds"].tolist() == [True, True] and table["certainty"].tolist() == [1, 1]
    assert table["threshold"].tolist() == pytest.approx([0.65 / 0.75, 0.1])
    back = generation.first_to_suffer(good, poor, (0.25, 0.0), ("b", "a"), DENSE, (0, 2), 50, 0)
    assert back["holds"].tolist() == [False, False] and back["certainty"].tolist() == [0, 0]


def test_the_papers_quarter():
    assert generation.quarter(30) == 8 and generation.quarter(2) == 1
