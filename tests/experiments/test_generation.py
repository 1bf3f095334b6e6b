"""Statistics of continuations and answers checked by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core.store import Result
from layer_redundancy.evaluate import generate
from layer_redundancy.experiments import generation
from layer_redundancy.experiments.generation import EIGHT_BITS, PRIMARY, WHOLE, Measured
from layer_redundancy.study import Study

FEW, MOST = "2 blocks removed", "8 blocks removed"


def test_agreement_by_hand():
    agrees = generation.agreement(np.array([[5, 6, 7, 8], [1, 6, 7, 8]]), np.array([[5, 6, 0, 8], [5, 6, 7, 8]]))
    np.testing.assert_array_equal(agrees, [[1, 1, 0, 1], [0, 1, 1, 1]])


def test_fresh_tokens_by_hand():
    tokens = np.array([[1, 2, 1, 2, 1, 3], [7, 7, 7, 7, 7, 8]])
    expected = [[1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]]  # the bigrams that come again: 12, 21; 77
    np.testing.assert_array_equal(generation.fresh(tokens, 2), np.array(expected, bool))
    np.testing.assert_allclose(1 - generation.fresh(tokens, 2)[:, 1:].mean(1), generate.repetition(tokens, 2))


def found(
    own: float | tuple[float, float] = 0.2, forced: tuple[float, float] = (0.2, 0.2), num: int = 300, length: int = 20
) -> Measured:
    """A dense model, the 8-bit one with 2 % of errors, and pruned ones with these shares of errors.

    Args:
        own: errors on the pruned models' own text, in either half.
        forced: errors on the dense model's text, in either half.
    """
    rng = np.random.default_rng(0)
    reference = rng.integers(10, 10**6, (num, length))

    def errs(early: float, late: float) -> np.ndarray:
        return rng.random((num, length)) < np.repeat([early, late], length // 2)

    def model(forced: tuple[float, float], own: tuple[float, float]) -> Result:
        tokens = rng.integers(10, 10**6, (num, length))
        arrays = {"tokens": tokens, "forced": np.where(errs(*forced), 1, reference)}
        arrays |= {"judged": np.where(errs(*own), 1, tokens), "nll": np.full((num, length), 2, np.float32)}
        return Result({}, arrays)

    own = (own, own) if isinstance(own, float) else own
    dense = {"tokens": reference, "forced": reference, "judged": reference, "nll": np.ones((num, length), np.float32)}
    texts = {WHOLE: Result({}, dense | {"text_nll": np.full((num, length), 3, np.float32)})}
    texts |= {EIGHT_BITS: model((0.02, 0.02), (0.02, 0.02)), FEW: model(forced, own), MOST: model(forced, own)}
    return Measured({FEW: 2, MOST: 8}, {FEW: 0.07, MOST: 0.25}, texts, {}, {}, {}, {})


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.open("smoke")


def verdicts(study: Study, found: Measured) -> pd.Series:
    table = generation.claim(study, found)
    assert table.loc[table["role"] == "primary", "statement"].tolist() == [PRIMARY]
    return table.set_index("statement")["verdict"]


def test_errors_that_feed_on_each_other_are_told_from_those_that_do_not(study):
    assert verdicts(study, found(own=0.4))[PRIMARY] == "supported"
    assert verdicts(study, found(own=(0.2, 0.4)))[PRIMARY] == "supported", "late in the text is what counts"
    assert verdicts(study, found())[PRIMARY] == "refuted"
    assert verdicts(study, found(own=0.1))[PRIMARY] == "refuted"


def test_errors_that_grow_along_a_text_are_told_from_those_that_do_not(study):
    even = "without 25 % of the blocks, it errs as often late in a text as early"
    assert verdicts(study, found(num=1000))[even] == "supported"
    assert verdicts(study, found(forced=(0.2, 0.4)))[even] == "refuted"
    assert verdicts(study, found(num=30))[even] == "not testable here", "thirty prompts show no equality"


def test_loops_that_both_models_follow_hide_no_errors(study):
    looping = found(own=0.4)
    for model in (FEW, MOST):
        arrays = looping.texts[model].arrays
        arrays["tokens"][:, 10:] = arrays["judged"][:, 10:] = 5  # agreement is whole from here on
        arrays["judged"][:, 10:13] = 6  # but for the first tokens of the loop
    assert generation.agreements(looping, FEW)["own text"][:, 10:].mean() == 0.7
    assert verdicts(study, looping)[PRIMARY] == "supported"


def test_by_position_takes_windows_together_and_leaves_repeats_out():
    one = found()
    table = generation.by_position(one, 50, 0, window=6)
    assert set(table["model"]) == {EIGHT_BITS, FEW, MOST} and set(table["n"]) == {300}
    part = table[(table["model"] == FEW) & (table["reading"] == "teacher-forced")]
    assert part["position"].tolist() == [3.5, 9.5, 15.5, 19.5]  # the last window has two positions
    agrees = generation.agreements(one, FEW)["teacher-forced"]
    np.testing.assert_allclose(part["agreement"].iloc[[0, -1]], [agrees[:, :6].mean(), agrees[:, 18:].mean()])
    assert (table["low"] < table["agreement"]).all() and (table["agreement"] < table["high"]).all()
    one.texts[FEW].arrays["tokens"][:, 12:] = one.texts[FEW].arrays["judged"][:, 12:] = 5
    one.texts[FEW].arrays["judged"][:, 12:15] = 6  # the only new tokens of the last windows are errors
    last = generation.by_position(one, 50, 0, window=10).query("model == @FEW and reading == 'own text'").iloc[-1]
    assert last["agreement"] < 0.6


def test_text_quality_has_every_measure_and_the_real_text():
    table = generation.text_quality(found(), np.full((300, 20), 9)).set_index(["model", "measure"])["value"]
    assert table[WHOLE, "same tokens"] == 1 and table[FEW, "same tokens"] < 0.01
    assert table[FEW, "perplexity"] == pytest.approx(np.exp(2))
    assert table["real text", "perplexity"] == pytest.approx(np.exp(3))
    assert table["real text", "repeated 4-grams"] == pytest.approx(16 / 17)


def answering(chosen: dict[str, float], written: dict[str, float], items: int = 200) -> Measured:
    """Models that get these shares of a task's items right, easy ones first."""
    one = found()

    def right(shares: dict[str, float]) -> dict[str, np.ndarray]:
        return {model: (np.arange(items) < share * items).astype(float) for model, share in shares.items()}

    return replace(
        one, chosen={"copying": right(chosen)}, written={"copying": right(written)}, chance={"copying": 0.25}
    )


def test_writing_that_suffers_before_choosing_is_told_from_writing_that_does_not(study):
    name = "without 25 % of the blocks, less is kept of writing the answer than of choosing it"
    chosen = {WHOLE: 0.95, FEW: 0.9, MOST: 0.6}  # half of what is above chance
    assert verdicts(study, answering(chosen, {WHOLE: 0.9, FEW: 0.8, MOST: 0.05}))[name] == "supported"
    assert verdicts(study, answering(chosen, {WHOLE: 0.9, FEW: 0.85, MOST: 0.8}))[name] == "refuted"
    unable = verdicts(study, answering(chosen, {WHOLE: 0.2, FEW: 0.2, MOST: 0.1}))
    assert name not in unable, "the whole model does not write the answers either"


def test_answers_and_what_is_kept_of_them():
    one = answering({WHOLE: 1.0, FEW: 0.9, MOST: 0.625}, {WHOLE: 0.9, FEW: 0.6, MOST: 0.45})
    table = generation.answers(one).set_index(["how", "model"])
    assert table.loc[("chosen", MOST), "accuracy"] == 0.625 and table.loc[("chosen", MOST), "chance"] == 0.25
    assert table.loc[("written", MOST), "chance"] == 0 and (table["n"] == 200).all()
    kept = generation.compared(one, "mine", 30).query("model == 'mine'").set_index("how")["kept"]
    assert kept["chosen"] == pytest.approx(0.5) and kept["written"] == pytest.approx(0.5)
    at_chance = answering({WHOLE: 0.26, FEW: 0.26, MOST: 0.26}, {WHOLE: 0.9, FEW: 0.6, MOST: 0.45})
    assert generation.compared(at_chance, "mine", 30).query("model == 'mine'")["how"].tolist() == ["written"]


def test_scores_near_zero(study):
    one = found()
    scores = {WHOLE: 0.5, FEW: 0.3, MOST: 0.0}
    generated = {"gsm8k": {model: (np.arange(400) < 400 * share).astype(float) for model, share in scores.items()}}
    name = "less than a tenth of the score is kept"
    table = generation.claim(study, replace(one, generated=generated)).set_index("statement")
    without, fewest = (
        table.loc[f"{what}, {name}"] for what in ("without 25 % of the blocks", "with the fewest blocks removed")
    )
    assert (without["verdict"], fewest["verdict"]) == ("supported", "refuted")
    assert (without["measured"], fewest["measured"]) == (0, pytest.approx(0.6)), "of what the whole model has"
    assert without["threshold"] == fewest["threshold"] == 0.1


def test_scores_between_right_and_wrong_are_above_chance_by_their_own_spread():
    near = np.tile([0.28, 0.32], 50)
    assert generation._above(near, 0.25), "as right or wrong, 30 of 100 would be 0.22 to 0.40"
    assert not generation._above(np.tile([0.0, 0.6], 10), 0.25)
    assert not generation._above(np.ones(4), 0.6), "four right ones of four are 0.51 at least"
