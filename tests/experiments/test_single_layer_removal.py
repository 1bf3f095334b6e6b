"""What the removal of single blocks costs each capability: tables, sentences, statements."""

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core import stats, variants, verdicts
from layer_redundancy.experiments import capabilities, single_layer_removal
from layer_redundancy.experiments.capabilities import Capability
from made_up import nll_result, task_result

L = 9


def task(name, costs, n=200, seed=0):
    """A task that the dense model does in 0.9 of the items, and less without each block."""
    accuracies = 0.9 - np.concatenate([[0.0], costs])
    right = (np.random.default_rng(seed).random((n, len(accuracies))) < accuracies).astype(float)
    return Capability(name, 1 - right, right, 0.25)


def judged(*parts):
    table = verdicts.verdicts(parts, single_layer_removal.PRIMARY)
    return table.set_index(["on", "statement"])["verdict"]


def test_damage_is_paired_by_unit():
    dense, one, other = (0, 1), (1,), (0,)
    results = {
        "perplexity": {dense: nll_result([2, 4]), one: nll_result([3, 5]), other: nll_result([2, 5])},
        "task/t": {v: task_result(r) for v, r in ((dense, [1, 1]), (one, [0, 1]), (other, [1, 1]))},
    }
    for result in results["task/t"].values():
        result.arrays["gold_share"] = -np.array([1.0, 2.0]) * (1 + result.arrays["acc"])

    class Task:
        name = "task/t"
        items = type("Items", (), {"name": "t"})

    found = capabilities.of_results(results, [Task], [dense, one, other])
    assert [one.name for one in found] == ["text", "t"] and found[1].chance == 0.25
    table = capabilities.damage(found).set_index(["on", "unit", "place"]).sort_index()
    text = table.loc[("text", "nats")]
    assert list(text["damage"]) == [1, 0.5] and list(text["seen"]) == [True, False]
    assert text["low"][1] == text["high"][1] == 1
    assert table.loc[("t", "accuracy", 1), "damage"] == 0.5 and table.loc[("t", "nats", 1), "damage"] == -0.5
    assert ("text", "accuracy") not in table.index


def test_items_on_which_all_agree_are_not_too_sure():
    assert stats.paired_interval(np.zeros(4))[1] == pytest.approx(3.182 / 4, abs=1e-3)
    some = np.array([1.0, 0, 0, 0, 0, -1, 1, 0])
    assert stats.paired_interval(some) == stats.mean_interval(some)
    assert np.isnan(stats.paired_interval(np.zeros(1))).all()


def test_items_with_several_right_answers_have_no_nats():
    one = Capability("t", np.array([[0.1, np.nan]]), np.ones((1, 2)), 0.25)
    assert not one.in_nats and one.of(capabilities.NATS) is None and one.of(capabilities.ACCURACY) is not None


def test_the_papers_reading_can_be_supported_and_refuted():
    holds = np.array([9, 0.5, 0.6, 0.1, 0.05, 0.1, 0.1, 0.2, 5])
    rng = np.random.default_rng(0)
    good, bad = (
        judged(single_layer_removal.depth_claim(costs + 0.01 * rng.normal(size=(20, L)), 100, 0, "text"))
        for costs in (holds, holds.max() - holds)
    )
    assert len(good) == 3 and set(good) == {"supported"} and set(bad) == {"refuted"}
    unsure = single_layer_removal.depth_claim(holds + 9 * rng.normal(size=(20, L)), 100, 0, "text")
    assert "not testable here" in set(judged(unsure))


@pytest.mark.parametrize("num_blocks, statements", [(1, 0), (2, 0), (3, 2), (4, 2), (6, 3)])
def test_a_shallow_model_has_fewer_statements(num_blocks, statements):
    costs = np.random.default_rng(0).normal(size=(5, num_blocks))
    assert len(single_layer_removal.depth_claim(costs, 10, 0, "text")) == statements


def test_a_block_that_one_task_alone_needs_is_found_and_judged_on_other_items():
    same, needed = np.full(L, 0.1), np.full(L, 0.1)
    needed[5] = 0.7
    copying, agreement = task("copying", needed), task("agreement", same, seed=1)
    part = single_layer_removal.dissociation(copying, agreement, 200, 0)
    table = verdicts.verdicts([part], single_layer_removal.PRIMARY)
    assert table["role"].tolist() == ["primary"] and table["verdict"].tolist() == ["supported"]
    assert table["difference"][0] == pytest.approx(0.6, abs=0.15) and table["on"][0].endswith("block 5")


def test_noise_is_not_taken_for_such_a_block():
    """The largest of many noisy differences is no evidence: it is judged on items that did not choose it."""
    found, largest = [], []
    for seed in range(40):
        pair = [task(n, np.full(30, 0.2), 40, seed=2 * seed + i) for i, n in enumerate(("copying", "agreement"))]
        found.append(verdicts.verdicts([single_layer_removal.dissociation(*pair, 100, 0)], "")["difference"][0])
        harm, other = (one.damage(capabilities.ACCURACY).mean(0) for one in pair)
        largest.append((harm - other).max())
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert np.mean(largest) > 0.15, "on the items that chose it"


def test_orders_of_two_halves_and_of_two_capabilities():
    rising = np.arange(20) / 10
    harm = rising + 0.01 * np.random.default_rng(0).normal(size=(30, 20))
    assert single_layer_removal._halves(harm, 0) > 0.9
    noise = np.random.default_rng(1).normal(size=(30, 20))
    assert abs(single_layer_removal._halves(noise, 0)) < 0.3
    draws = np.repeat(harm.mean(0)[None], 5, axis=0)
    tau, low, high = single_layer_removal._tau(harm, -harm, draws, -draws)
    assert tau == low == high == pytest.approx(-1)


def test_of_many_blocks_that_cost_nothing_few_are_called_costly():
    """A 95 % interval excludes nothing in one of twenty blocks that cost nothing: together, in most models of 30."""
    found, alone = [], []
    for seed in range(100):
        nats = np.random.default_rng(seed).normal(size=(30, 31))
        table = capabilities.damage([Capability("text", nats)])
        found.append(table["seen"].any())
        alone.append(((table["low"] > 0) | (table["high"] < 0)).any())
    assert np.mean(found) < 0.15 and np.mean(alone) > 0.3


def test_the_last_block_is_critical_for_a_task_or_not():
    costs = np.full(L, 0.05)
    critical, other = task("t", np.append(costs[:-1], 0.5)), task("t", costs)
    parts = [
        single_layer_removal.last_claim(one.damage(capabilities.ACCURACY), 200, 0, "t") for one in (critical, other)
    ]
    assert [judged(part).tolist() for part in parts] == [["supported"], ["undecided"]]


def damage_table(costs, half=0.01, unit="nats", on="text"):
    rows = [
        {"on": on, "unit": unit, "block": b, "damage": c, "low": c - half, "high": c + half, "n": 9, "seen": c > half}
        for b, c in enumerate(costs)
    ]
    return pd.DataFrame(rows)


def test_sentences_say_what_the_table_says():
    text = damage_table([3.0, 0.05, 0.2, 0.5])
    task = pd.concat(
        [damage_table([1, 0.0, 0, 0.3], on="copying"), damage_table([0.4, 0, 0, 0.1], 0.02, "accuracy", "copying")]
    )
    first, second = single_layer_removal.in_words(pd.concat([text, task], ignore_index=True))
    assert first == (
        "Text: each of 1 of 4 blocks can go for less than 0.1 nats a token; the smallest loss measured is that of "
        "block 1 (+0.050), the largest are those of 0, 3, 2."
    )
    assert second == (
        "Copying: each of 2 of 4 blocks can go for less than 5 points of accuracy, 2 blocks cost some (0, 3); the "
        "largest losses measured are those of 0, 3, 1."
    )
    assert single_layer_removal.in_words(text.assign(damage=9.0, high=9.9))[0].startswith("Text: none of 4 blocks")


def test_values_have_a_row_a_block():
    dense = variants.dense(2)
    perplexity = pd.DataFrame({"block": [np.nan, 0, 1], "perplexity": [2.0, 9.0, 3.0]})
    table = single_layer_removal.values(perplexity, damage_table([1.5, 0.4]))
    assert table["removed block"].tolist() == list(dense) and table["perplexity"].tolist() == [9, 3]
    assert table["text, nats lost"].tolist() == [1.5, 0.4] and table["text, nats lost: low"].tolist() == [1.49, 0.39]
