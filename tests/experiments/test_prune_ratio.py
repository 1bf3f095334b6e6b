"""What is left along an order of removal: tables, sentences, statements."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.config import paper_tables
from layer_redundancy.core import verdicts
from layer_redundancy.experiments import prune_ratio
from layer_redundancy.experiments.capabilities import Capability

K = 9  # depths
DEPTHS = np.arange(K)


def task(name, accuracies, n=200, seed=0, chance=0.25):
    """A task of these accuracies by depth."""
    right = (np.random.default_rng(seed).random((n, len(accuracies))) < accuracies).astype(float)
    return Capability(name, 1 - right, right, chance)


SLOPE = np.linspace(0.95, 0.25, K)
CLIFF = np.where(DEPTHS < 4, 0.95, 0.25)


def verdict(*parts):
    return verdicts.verdicts(parts, prune_ratio.PRIMARY).set_index("statement")


def test_the_cliff_is_where_the_level_changes():
    curve = np.ones((8, 20))
    curve[5:, :16] = 0
    found = prune_ratio.cliff(curve, 200, seed=0)
    assert (found["count"], found["low"], found["high"]) == (5, 5, 5)
    assert (found["before"], found["after"]) == (1, pytest.approx(0.2))
    noise = np.random.default_rng(0).integers(0, 2, size=(8, 20)).astype(float)
    uncertain = prune_ratio.cliff(noise, 200, seed=0)
    assert 1 <= uncertain["low"] < uncertain["high"] <= 7


def test_the_place_of_a_cliff_has_percentiles_of_places():
    """Where a fall in two steps is the one or the other in resamples, the interval holds both and nothing beyond."""
    curve = np.ones((8, 20))
    curve[3:, :9], curve[6:, 9:19] = 0, 0
    found = prune_ratio.cliff(curve, 400, seed=0)
    assert (found["low"], found["high"]) == (3, 6)


@pytest.mark.parametrize("levels, expected", [(SLOPE, "refuted"), (CLIFF, "supported")], ids=["slope", "cliff"])
def test_a_cliff_is_told_from_a_slope(levels, expected):
    one = prune_ratio.step([task("copying", levels), task("agreement", levels, seed=1)], 200, 0)
    assert verdict(one)["verdict"].tolist() == [expected]
    assert one["on"].tolist() == ["mean of copying and agreement"]


def test_the_largest_of_many_noisy_steps_is_no_large_step():
    """It is chosen on some items and judged on others; on those that chose it, it would look ten times as large."""
    judged, chosen = [], []
    for seed in range(30):
        right = (np.random.default_rng(seed).random((100, 40)) < np.linspace(0.9, 0.3, 40)).astype(float)
        steps = -np.diff(right.mean(0))
        chosen.append(steps.max() / -np.diff(right.mean(0)[[0, -1]])[0])
        judged.append(prune_ratio.step([Capability("t", -right, right, 0.25)], 50, 0)["measured"][0])
    assert np.mean(chosen) > 0.2
    assert abs(np.mean(judged)) < 0.1


def test_what_loses_faster_is_supported_and_the_reverse_refuted():
    fast, slow = task("copying", np.where(DEPTHS, 0.3, 0.95)), task("agreement", np.where(DEPTHS < 5, 0.9, 0.5), seed=1)
    there, back = (prune_ratio.faster(*pair, 2, 200, 0) for pair in ((fast, slow), (slow, fast)))
    assert verdict(there).loc[prune_ratio.PRIMARY, ["role", "verdict"]].tolist() == ["primary", "supported"]
    assert verdict(back)["verdict"].tolist() == ["refuted"]


def test_a_quarter_that_costs_a_twentieth_and_one_that_costs_more():
    kept, lost = (prune_ratio.quarter(task("t", [0.95, after]), 100, 0) for after in (0.95, 0.6))
    assert verdict(lost)["verdict"].tolist() == ["refuted"]
    assert kept["measured"][0] < 0.05 < lost["measured"][0]


def test_a_steady_decline_is_supported():
    text = Capability("text", np.linspace(3, 9, K) + 0.1 * np.random.default_rng(0).normal(size=(32, K)))
    assert verdict(prune_ratio.declines(text, 200, 0))["verdict"].tolist() == ["supported"]


def left_row(count, on, accuracy, dense, floor=0.3, half=0.04):
    lost, has = dense - accuracy, dense - floor
    return {
        "count": count, "share": 100 * count / 30, "weights": 2.6 * count, "on": on, "accuracy": accuracy,
        "dense": dense, "floor": floor, "lost": lost, "lost_low": lost - half, "lost_high": lost + half,
        "left": 100 * (1 - lost / has), "left_low": 100 * (1 - (lost + half) / has),
        "left_high": 100 * (1 - (lost - half) / has), "nats": 1.0, "n": 200,
    }  # fmt: skip


def test_sentences_say_what_is_left():
    rows = [
        left_row(6, "text", np.nan, np.nan) | {"nats": np.log(2)},
        left_row(6, "agreement", 0.93, 0.93),
        left_row(6, "copying", 0.65, 0.98),
        left_row(6, "spelling", 0.65, 0.98, half=0.2),
        left_row(6, "naming", 0.85, 0.95),
        left_row(6, "counting", 0.92, 0.95),
        left_row(6, "ending", 0.31, 0.95),
        left_row(6, "rhyming", 0.35, 0.95, half=0.1),
        left_row(6, "chess", 0.26, 0.27) | {"left": np.nan},
    ]
    (said,) = prune_ratio.in_words(pd.DataFrame(rows), 30)
    assert said == (
        "6 blocks of 30 gone (20 %, 16 % of the weights): text costs 0.69 nats a token more (perplexity times 2); "
        "agreement kept (0.93 instead of 0.93); copying halved (51 %, 46 to 57; 0.65 instead of 0.98); spelling down "
        "to 51 %, 22 to 81 (0.65 instead of 0.98); naming down to 85 %, 78 to 91 (0.85 instead of 0.95); counting not "
        "seen to fall (0.92 instead of 0.95; by 7 points at most); ending gone (0.31 instead of 0.95); rhyming not "
        "told from a broken model's (8 %, -8 to 23; 0.35 instead of 0.95); chess not seen in the whole model (0.26 "
        "instead of 0.27)."
    )


def test_no_percentage_is_left_of_what_was_not_there():
    guess = prune_ratio._accuracy_left(task("t", [0.27, 0.25, 0.25]), 1, 50, 0)
    assert "left" not in guess
    known = prune_ratio._accuracy_left(task("t", [0.95, 0.6, 0.25]), 1, 200, 0)
    assert known["left_low"] < known["left"] < known["left_high"]
    right = known["dense"] - known["floor"]
    assert known["left"] == pytest.approx(100 * (known["accuracy"] - known["floor"]) / right)


def test_a_quarter_of_the_papers_model_is_a_quarter_of_its_weights():
    assert prune_ratio.paper_weights(9) == pytest.approx(100 * 9 * 202_383_360 / 6_738_415_616)


def test_depths_of_the_further_tasks():
    assert prune_ratio.depths(30) == [0, 3, 8, 15, 29] and prune_ratio.at_ratios(30) == [3, 8, 15]
    assert prune_ratio.depths(2) == [0, 1] and prune_ratio.depths(3) == [0, 1, 2]


def test_kept_beside_the_paper_by_hand():
    accuracy = pd.DataFrame(
        {"task": "t", "count": range(4), "accuracy": [0.8, 0.7, 0.5, 0.3], "low": 0.6, "chance": 0.25}
    )
    left = pd.DataFrame([left_row(1, "t", 0.7, 0.8, floor=0.3)])
    reported = paper_tables.mmlu_by_ratio()
    row = prune_ratio.kept(left, accuracy, reported, 4).set_index("paper's model").loc["Llama-2-13B"].iloc[0]
    assert row["removed, paper"] == "10 of 40" and row["removed, here"] == "1 of 4"
    assert row["MMLU kept, paper (%)"] == pytest.approx(100 * 52.42 / 55.0)
    assert row["t, above the broken model (%)"] == pytest.approx(100 * 0.4 / 0.5)
    guessing = prune_ratio.kept(left, accuracy.assign(low=0.2), reported, 4)
    assert guessing["t, above the broken model (%)"].isna().all()


def test_the_largest_of_the_rules_is_counted_and_has_no_interval(monkeypatch):
    known = pd.DataFrame(
        [
            ("a", "longest", 0.3),
            ("a", "rarest words", 0.4),
            ("b", "longest", 0.2),
            ("b", "other", 0.1),
            ("b", "x", 0.0),
        ],
        columns=["task", "rule", "accuracy"],
    ).assign(low=0.0, high=0.5, n=200, chance=0.25)
    monkeypatch.setattr(prune_ratio.without_a_model, "table", lambda _tasks: known)
    table = prune_ratio.rules(SimpleNamespace(tasks=[])).set_index(["task", "rule"])
    assert list(table.index) == [(t, r) for r in ("longest", "largest of 2 to 3") for t in "ab"]
    assert table["accuracy"].tolist() == [0.3, 0.2, 0.4, 0.2]
    assert table["low"].isna().tolist() == [False, False, True, True]


@pytest.mark.parametrize("order", [("agreement", "copying"), ("copying", "agreement")], ids=" ".join)
def test_the_primary_statement_is_of_these_tasks_whatever_their_place(monkeypatch, order):
    levels = {"copying": np.where(DEPTHS, 0.3, 0.95), "agreement": SLOPE}
    found = [task(name, levels[name], seed=place) for place, name in enumerate(order)]
    monkeypatch.setattr(prune_ratio, "curves", lambda _found: found)
    monkeypatch.setattr(prune_ratio.capabilities, "of_results", lambda *_: [])
    profile = SimpleNamespace(seed=0, bootstrap_resamples=50)
    measured = SimpleNamespace(results={}, tasks=[], removals=dict.fromkeys(range(K)))
    table = prune_ratio.claim(SimpleNamespace(num_blocks=K, profile=profile, dense=None), measured)
    assert table[["role", "statement", "verdict"]].iloc[0].tolist() == ["primary", prune_ratio.PRIMARY, "supported"]
