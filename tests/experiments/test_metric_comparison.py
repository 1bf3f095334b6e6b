"""Notebook 04's tables on made-up losses, whose answers are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from layer_redundancy.core import variants
from layer_redundancy.experiments import depth_curves, metric_comparison
from layer_redundancy.experiments.metric_comparison import EQUAL, PRIMARY, Measured
from layer_redundancy.models.quantize import WeightBytes
from made_up import nll_result, sums, task_result

L, COUNTS = 8, [0, 1, 2, 3, 4]
TEXT = np.linspace(-0.2, 0.2, 6)  # how hard each block of text is


def study(num_blocks=L):
    return SimpleNamespace(
        num_blocks=num_blocks,
        dense=variants.dense(num_blocks),
        profile=SimpleNamespace(bootstrap_resamples=200, seed=0),
        weight_bytes=lambda: WeightBytes((30,) * num_blocks, 160),
    )


def loss(variant, noise=0.0):
    """A nat for each removed block, two for the first and the last, and a little that depends on the blocks."""
    gone = variants.removed_blocks(L, variant)
    blocks = sum(1 + 1.0 * (block in (0, L - 1)) + 0.01 * block for block in gone)
    return nll_result(2 + blocks + TEXT + noise * np.random.default_rng(len(gone)).normal(size=len(TEXT)))


def measured(by_order=None, again=None, items=None):
    """Losses of orders of the blocks 0..L-1; of tasks, items that are right unless the first or the last is gone."""
    text = sums(num_blocks=L)
    by_order = by_order or depth_curves.removals_by_measure(text, COUNTS, greedy=[1, 2, 3, 4, 5, 6, 0, 7])
    again = again or [depth_curves.removals_by_measure(other, COUNTS) for other in text.resampled(5, 0)]
    every = {v for one in [by_order, *again] for of in one.values() for v in of.values()} | {variants.dense(L)}
    items = items or {
        v: task_result([not set(variants.removed_blocks(L, v)) & {0, L - 1}] * 30 + [1, 0] * 5) for v in every
    }
    return Measured(
        text,
        np.array([1, 2, 3, 4, 5, 6, 0, 7]),
        None,
        COUNTS,
        by_order,
        again,
        {v: loss(v) for v in every},
        {"t": items},
    )


def order(*first):
    return {k: variants.without(L, first[:k]) for k in COUNTS}


NAMES = ("block_influence", "relative_magnitude", "hidden_norm", "sequential", "reverse_order", "angular_blocks")
BY_PLACE = {"sequential": order(0, 1, 2, 3), "reverse_order": order(7, 6, 5, 4), "hidden_norm": order(7, 6, 5, 4)}
ORDERS = BY_PLACE | {
    "block_influence": order(1, 2, 3, 5),
    "relative_magnitude": order(2, 1, 3, 4),
    "angular_blocks": order(3, 4, 5, 6),
    "greedy": order(1, 2, 3, 4),
}
ORDERS = {name: ORDERS[name] for name in (*NAMES, "greedy")}


def test_gaps_to_greedy_by_hand():
    other = ORDERS | {"block_influence": order(6, 5, 4, 3)}
    table = metric_comparison.gaps(study(), measured(ORDERS, [ORDERS, other] * 2)).set_index(["metric", "count"])
    assert set(table.index.get_level_values(0)) == {*NAMES, "greedy"} - {"hidden_norm", "reverse_order"} | {
        "hidden_norm, reverse_order"
    }
    influence = table.loc["block_influence"]
    assert influence["gap"].tolist() == pytest.approx([0, 0, 0, 0, 0.01])
    assert influence["share"].tolist() == [0, 12.5, 25, 37.5, 50] and influence["weights"][4] == 30
    assert (table.loc["greedy", ["gap", "low", "high"]] == 0).all(axis=None)
    # Text shifts all losses alike; half of the calibration texts give another order, 0.05 nats worse at one block.
    assert influence["loss_high"][1] - influence["loss_low"][1] == pytest.approx(0.05)
    # Four resamples of calibration text have three degrees of freedom.
    half = influence["high"][1] - influence["gap"][1]
    assert half == pytest.approx(3.1824 * 0.025 * np.sqrt(4 / 3 * 24 / 23), rel=1e-3)


def test_without_other_calibration_texts_intervals_are_over_text_alone():
    other = ORDERS | {"block_influence": order(6, 5, 4, 3)}
    noisy = measured(ORDERS, [ORDERS, other] * 2)
    noisy.losses.update({variant: loss(variant, noise=0.1) for variant in noisy.losses})
    alone = replace(noisy, again=[])
    table, whole = (metric_comparison.gaps(study(), found).set_index(["metric", "count"]) for found in (alone, noisy))
    assert np.isfinite(table.to_numpy(float)).all() and (table["low"] <= table["gap"]).all()
    assert (table["loss_low"] == table["loss"]).all() and (table["loss_high"] == table["loss"]).all()
    widths = [of.loc["block_influence", "high"] - of.loc["block_influence", "low"] for of in (table, whole)]
    assert 0 < widths[0][4] < widths[1][4], "the same text, and no calibration text redrawn"
    curves = alone.curves()
    gap = (curves["block_influence"] - curves["greedy"])[4]  # (N,), of a sample of six
    half = 2.5706 * gap.std(ddof=1) / np.sqrt(len(gap))
    assert widths[0][4] / 2 == pytest.approx(half, rel=0.25)
    claim = metric_comparison.claim(study(), alone)
    assert {"perplexity", "t"} == set(claim["on"])
    assert np.isfinite(claim[["measured", "low", "high"]].to_numpy(float)).all()


def test_area_by_hand():
    curve = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert metric_comparison.area(curve, [0, 1, 3]) == pytest.approx([(1 + 1) / 3, (0.5 + 2) / 3])


def test_the_best_of_measures_that_leave_different_blocks():
    table = metric_comparison.best(study(), measured(ORDERS, [ORDERS] * 3))
    found = table[table["on"] == "perplexity"].set_index("removed")
    assert list(found.index) == ["10 %", "25 %", "50 %", "0 to 33 %", "0 to 50 %"]
    assert found.loc["10 %", ["of", "best", "next"]].tolist() == [5, "Block Influence", "Relative magnitude"]
    assert found.loc["10 %", ["value", "next_value"]].tolist() == pytest.approx([3.01, 3.02])
    assert found.loc["25 %", "best"] == "Block Influence, Relative magnitude", "they leave the same blocks"
    assert found.loc["25 %", "of"] == 4
    assert found.loc["50 %", "best"] == "Relative magnitude" and found.loc["50 %", "value"] == pytest.approx(6.1)
    assert found.loc["0 to 50 %", "value"] == pytest.approx(((2 + 6.11) / 2 + 3.01 + 4.03 + 5.06) / 4)
    task = table[table["on"] == "t"].set_index("removed").loc["25 %"]
    assert task["value"] == 35 / 40 and task["next_value"] in (5 / 40, 35 / 40)


def test_capabilities_hold_each_measure_at_three_depths_and_the_dense_model():
    table = metric_comparison.capabilities(study(), measured(ORDERS, [ORDERS]))
    assert len(table) == 1 + 3 * 6  # hidden norm is reverse order
    dense = table[table["metric"] == ""].iloc[0]
    assert (dense["accuracy"], dense["n"], dense["count"]) == (35 / 40, 40, 0)
    first = table[table["metric"] == "sequential"]
    assert first["accuracy"].tolist() == [5 / 40] * 3 and first["weights"].tolist() == [7.5, 15, 30]


def test_verdicts_by_hand():
    # To a third of eight blocks, three: relative magnitude loses 1.07, 2.12 and 2.12 nats more at one, two and three.
    far = ORDERS | {"relative_magnitude": order(7, 0, 3, 4)}
    table = metric_comparison.claim(study(), measured(far, [far] * 4)).set_index(["on", "statement"])
    primary = table.loc["perplexity", PRIMARY]
    assert (primary["role"], primary["verdict"], primary["matters"]) == ("primary", "refuted", EQUAL)
    assert primary["measured"] == pytest.approx(-(1.06 + 2.04 + 2.04 / 2) / 3)
    found = {statement: row for (_, statement), row in table.iterrows()}
    over = "over depths to a third of the blocks"
    greedy = found[f"{over}, the greedy order (one search) has a mean loss within 0.25 nats of Block Influence's"]
    assert greedy.verdict == "supported"
    assert found[f"{over}, Block Influence's mean loss is below that of the first blocks first"].verdict == "supported"
    assert not any("that of the last blocks first" in statement for statement in found), "it is hidden norm's order"
    deep = found[
        "from a third to half of the blocks, the greedy order (one search) has a mean loss below Block Influence's"
    ]
    assert (deep.difference, deep.verdict) == (pytest.approx(-0.01 / 2), "supported")
    norm = found["without a quarter of the blocks, hidden norm's order leaves more items right than Block Influence's"]
    assert (norm.difference, norm.verdict) == (-30 / 40, "refuted")
    suits = (
        "without a tenth of the blocks, the greedy order (one search) leaves more items right than Block Influence's"
    )
    assert found[suits].difference == 0 and found[suits].verdict != "supported"
    assert table["matters"].notna().all(), "each statement says what would matter"


def test_equal_measures_are_equal():
    table = metric_comparison.claim(study(), measured(ORDERS, [ORDERS] * 4)).set_index("statement")
    assert table.loc[PRIMARY, "verdict"] == "supported"


def test_another_calibration_text_may_turn_the_order():
    """What resamples of the calibration text give is as uncertain as they are apart, however much text is read."""
    other = ORDERS | {"block_influence": order(0, 7, 1, 2)}
    resamples = [ORDERS] * 6, [ORDERS, other] * 3
    sure, unsure = (metric_comparison.claim(study(), measured(ORDERS, again)).iloc[0] for again in resamples)
    assert sure["high"] - sure["low"] < 0.01 < 1 < unsure["high"] - unsure["low"]
    assert unsure["verdict"] == "not testable here"


def test_a_task_at_chance_is_not_judged():
    guesses = {v: task_result([1, 0, 0, 0] * 10) for one in ORDERS.values() for v in one.values()}
    table = metric_comparison.claim(study(), measured(ORDERS, [ORDERS] * 3, guesses))
    assert set(table["on"]) == {"perplexity"}


def test_order_correlation():
    table = metric_comparison.order_correlation({"up": np.arange(5), "down": np.arange(5)[::-1]})
    tau = table.set_index(["a", "b"])["tau"]
    assert tau["up", "up"] == pytest.approx(1) and tau["up", "down"] == tau["down", "up"] == pytest.approx(-1)
