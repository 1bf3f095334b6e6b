"""The block that makes the first token large: found, told and judged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core import verdicts
from layer_redundancy.core.store import Result
from layer_redundancy.evaluate.first_token import CONDITIONS, GIVEN_BACK, ONLY_FIRST, WHOLE, WITHOUT
from layer_redundancy.experiments import first_token
from layer_redundancy.experiments.first_token import FirstToken
from made_up import sums, task_result

TEXTS, PLACES = 6, 20


def with_norms(first):
    """Sums whose first tokens have these norms, other tokens 1; ten tokens a sequence."""
    found = sums(num_sequences=4, num_blocks=len(first) - 1)
    norms = np.tile(np.asarray(first, float), (4, 1))
    return replace(found, first_norm=norms, norm=norms + 9)


@pytest.mark.parametrize(
    "first, block",
    [
        pytest.param([1, 1, 2, 900, 900, 300], 2, id="one jump"),
        pytest.param([1, 40, 45, 900, 900, 900], 0, id="the one that grew more times"),
        pytest.param([0.1, 4, 4, 40, 400, 400], 2, id="of those after which it is outsized"),
        pytest.param([1, 1.5, 2, 2, 2, 2], None, id="none"),
        pytest.param([0, 0, 0, 0, 0, 0], None, id="no norm at all"),
    ],
)
def test_the_block_is_where_the_norm_has_grown_most(first, block):
    assert first_token.block_of(with_norms(first)) == block


def made(given_back=0.1):
    """Losses: 1 whole, 3 without, and nearly the whole model's with the state given back."""
    rng = np.random.default_rng(0)
    levels = {WHOLE: 1.0, WITHOUT: 3.0, GIVEN_BACK: 1 + 2 * given_back, ONLY_FIRST: 2.5}
    nll = np.stack([levels[name] + 0.01 * rng.normal(size=(TEXTS, PLACES)) for name in CONDITIONS])
    norms = np.ones((4, 6))
    norms[0, 3:] = 170
    written = np.array([0.02, 0.95, 0.03])
    text = Result(
        {"alike": 1.0},
        {
            "nll": nll,
            "first_norm": norms,
            "other_norm": np.ones((4, 6)),
            "written": written,
            "attention": np.ones((2, 5)),
        },
    )
    items = {}
    for name, right in zip(CONDITIONS, ([1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]), strict=True):
        result = task_result(right)
        result.arrays["gold_share"] = np.array(right, float) - 1.5
        items[name] = result
    return FirstToken(2, text, {"copying": items})


@pytest.mark.parametrize("given_back, verdict", [(0.1, "supported"), (0.9, "refuted")])
def test_whether_the_state_undoes_the_damage_is_judged(given_back, verdict):
    table = verdicts.verdicts([made(given_back).claim(100, 0)], "")
    assert table["measured"][0] == pytest.approx(1 - given_back, abs=0.02) and table["verdict"][0] == verdict


def test_tables_of_what_breaks():
    table = first_token.breaks(made()).set_index(["on", "unit", "condition"])["damage"]
    assert table["text", "nats", WITHOUT] == pytest.approx(2, abs=0.02)
    assert table["copying", "accuracy", WITHOUT] == 0.75 and table["copying", "nats", GIVEN_BACK] == 0.25
    places = first_token.by_position(made())
    one = places[places["condition"] == WITHOUT]
    assert list(zip(one["first"], one["last"], strict=True)) == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 20)]
    assert one["damage"].to_numpy() == pytest.approx([2] * 5, abs=0.05)


def test_what_it_writes_is_told():
    found = made()
    assert first_token.channels(found) == (1, 1, pytest.approx(0.95))
    states = first_token.writes(found)
    assert len(states) == 6 and states["whole"][3] == 170 and np.isnan(states["attention_whole"][5])
    undone = pd.DataFrame(
        [("text", 0.9, 0.85, 0.95), ("copying", 1.02, 0.7, 1.34)], columns=["on", "share", "low", "high"]
    )
    said = first_token.in_words(found, undone)
    assert "170 times as large" in said and "95% of it in channel 1 (one channel holds 90 %)" in said
    assert said.endswith(
        "undoes 90 % (85 to 95) of what text loses and 102 % (70 to 134) of what copying loses without the block."
    )
    assert "undoes" not in first_token.in_words(found, undone.iloc[:0])


def test_what_is_undone_may_be_more_than_all_and_has_an_interval():
    more = first_token.undone(made(given_back=-0.1), 200, 0).set_index("on")
    assert list(more.index) == ["text"], "of copying, nothing is seen to be lost on four items"
    assert more["share"]["text"] == pytest.approx(1.1, abs=0.02)
    assert 1 < more["low"]["text"] < more["share"]["text"] < more["high"]["text"]
