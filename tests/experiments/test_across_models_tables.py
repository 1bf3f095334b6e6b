"""Notebook 14's tables and statements on made-up models whose answers can be counted."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from layer_redundancy.core import variants
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.store import Result
from layer_redundancy.core.verdicts import REFUTED, SUPPORTED
from layer_redundancy.experiments import across_models, depth_curves, prune_ratio, published
from layer_redundancy.experiments.across_models import PRIMARY, Measured, OneModel
from layer_redundancy.experiments.depth_ranks import CHEAPER, FIRST, LAST
from layer_redundancy.measures import activations
from layer_redundancy.models.quantize import WeightBytes
from layer_redundancy.study import Study

NUM, PASSAGES = 12, 8
SIZES = np.linspace(900, 1100, PASSAGES)  # bytes
NOISE = np.linspace(-0.01, 0.01, PASSAGES)  # bits a byte


def a_model(name="one", factor=1.0, rest=0, num=NUM, agrees=True):
    """Blocks that cost more bits the deeper they lie; Block Influence says so too, or the other way round."""
    costs = factor * np.linspace(0.01, 0.12, num)  # bits a byte
    order = np.arange(num) if agrees else np.arange(num)[::-1]
    study = SimpleNamespace(
        identity=SimpleNamespace(name=name, num_hidden_layers=num),
        num_blocks=num,
        dense=variants.dense(num),
        tasks=[],
        tokenizer=range(100),
        profile=SimpleNamespace(bootstrap_resamples=200, seed=0),
        weight_bytes=lambda: WeightBytes(blocks=[10] * num, rest=rest),
    )
    sums = activations.zeros(4, num)
    inner = np.arange(num)
    sums.cosine[:, inner, inner + 1] = 1 - 0.01 * (1 + np.argsort(order))
    sums.tokens[:] = 1

    def bits(variant):
        return 1.0 + NOISE + sum(costs[block] for block in variants.removed_blocks(num, variant))

    removals = {k: variants.without(num, order[:k]) for k in range(num)}
    quarter = depth_curves.at_ratio(num, 0.25)
    by_measure = {
        "block_influence": removals[quarter],
        "reverse_order": variants.without(num, range(num - quarter, num)),
    }
    chosen = [study.dense, *variants.single_removal(num), *removals.values(), *by_measure.values()]
    on_text = {v: Result({}, {"nll": bits(v) * SIZES * math.log(2), "tokens": np.ones(PASSAGES)}) for v in chosen}
    along = prune_ratio.Measured(order, removals, [], {})
    found = OneModel(study, None, sums, by_measure, removals, on_text, {}, along, 3 + costs)
    vars(found)["_sizes"] = SIZES
    return found


def measured(*models):
    return Measured(list(models), None)


def test_damage_is_in_percent_of_the_whole_models_bits_a_byte():
    table = across_models.damage(measured(a_model(), a_model("two", factor=2.0)))
    assert len(table) == 2 * 2 * 3 and (table["n"] == PASSAGES).all()
    np.testing.assert_allclose(table["dense"], 1.0)
    blocks = table[table["of"] == "blocks"].set_index(["model", "ratio"])
    assert blocks["count"].tolist() == [1, 3, 6] * 2
    np.testing.assert_allclose(blocks.loc[("one", 25.0), "rise"], 100 * (0.01 + 0.02 + 0.03))
    np.testing.assert_allclose(blocks.loc["two", "rise"], 2 * blocks.loc["one", "rise"])
    np.testing.assert_allclose(blocks["bits"], 1 + blocks["rise"] / 100)
    np.testing.assert_allclose(blocks["low"], blocks["rise"])  # the noise is that of the passage, and paired away


def test_shares_of_the_weights_count_the_embedding_and_may_be_out_of_reach():
    """Blocks of 10 with 120 beside them hold half of the weights: half of them cannot go while a block stays."""
    table = across_models.damage(measured(a_model(rest=120), a_model("all in blocks")))
    weights = table[table["of"] == "weights"].set_index(["model", "ratio"])
    assert weights.loc["one", "count"].tolist()[:2] == [2, 6]
    np.testing.assert_allclose(weights.loc["one", "weights"].tolist()[:2], [100 * 2 / 24, 25.0])
    assert weights.loc["all in blocks", "count"].tolist() == [1, 3, 6]
    few = across_models.damage(measured(a_model(rest=2000), a_model("two")))
    row = few[(few["model"] == "one") & (few["of"] == "weights")]
    assert row["rise"].isna().tolist() == [True, True, True] and row["count"].isna().all()
    said = across_models.in_words(few)
    assert said[0].startswith("one: ") and said[0].endswith(
        "10 % and 25 % and 50 % of the weights are not in its blocks."
    )
    assert "not in its blocks" not in said[1]


def test_depths_are_the_middles_of_the_removed_blocks():
    table = across_models.depths(measured(a_model(), a_model("two", num=4)))
    part = table[(table["model"] == "one") & (table["measure"] == "reverse_order")]
    assert part["block"].tolist() == [9, 10, 11]
    np.testing.assert_allclose(part["depth"], [100 * 9.5 / 12, 100 * 10.5 / 12, 100 * 11.5 / 12])
    np.testing.assert_allclose(part["rise"], 100 * (0.10 + 0.11 + 0.12))
    assert len(table[table["model"] == "two"]) == 2


def test_ranks_tell_whether_influence_foretells_cost():
    table = across_models.ranks(measured(a_model(), a_model("against", agrees=False), a_model("tiny", num=2)), 100, 0)
    assert table["model"].tolist() == ["one", "against"] and (table["on"] == "text").all()
    assert table["tau"].tolist() == pytest.approx([1.0, -1.0])


def test_verdicts_model_by_model():
    cheap, dear = a_model("cheap"), a_model("dear", factor=20.0)
    claim = across_models.claim(measured(cheap, dear), 200, 0)
    by = claim.set_index(["statement", "on"])["verdict"]
    assert claim["statement"][0] == PRIMARY and claim["role"][0] == "primary"
    assert by[PRIMARY, "text"] == REFUTED  # the dear one loses 120 % to a quarter
    one = "a quarter of the blocks costs under 25 % of the bits a byte"
    assert by[one, "cheap"] == SUPPORTED and by[one, "dear"] == REFUTED
    assert by["a quarter of the blocks costs dear a greater share of its bits a byte than cheap", "text"] == SUPPORTED
    agrees = "Block Influence orders blocks nearly as their cost on text does (tau above 0.5)"
    assert by[agrees, "cheap"] == SUPPORTED
    against = across_models.claim(measured(cheap, a_model("against", agrees=False)), 200, 0)
    assert against.set_index(["statement", "on"])["verdict"][agrees, "against"] == REFUTED
    last = "the last quarter of the blocks costs more than a quarter by Block Influence (in doublings)"
    assert by[last, "dear"] == SUPPORTED
    assert by[LAST, "dear"] == SUPPORTED and by[FIRST, "dear"] == REFUTED and by[CHEAPER, "dear"] == REFUTED


def test_removals_that_may_cost_nothing_have_verdicts_too():
    """On some resamples a removal gains: what is divided by it stays a number."""
    free = a_model("free", factor=1e-9)
    nll = {
        v: Result({}, {"nll": r.arrays["nll"] * np.linspace(0.99, 1.01, PASSAGES) ** len(v)})
        for v, r in free.on_text.items()
    }
    vague = OneModel(free.study, None, free.sums, free.by_measure, free.ratios, nll, {}, free.along, free.nats)
    vars(vague)["_sizes"] = SIZES
    claim = across_models.claim(measured(vague, a_model()), 200, 0)
    assert claim["on"].value_counts()["free"] == claim["on"].value_counts()["one"] == 6
    assert np.isfinite(claim["measured"]).all()


def test_models_stand_beside_those_that_others_measured():
    others = across_models.beside_published(measured(a_model(), a_model("two", factor=2.0, num=4)))
    removed = published.removals(others)
    mine = removed[removed["ours"]].set_index("model")["cost"]
    assert removed["model"].nunique() == 11 + 2 and len(mine["one"]) == NUM and len(mine["two"]) == 4
    np.testing.assert_allclose(mine["one"], np.linspace(0.01, 0.12, NUM) - 0.065)
    influence = published.influence(others)
    np.testing.assert_allclose(influence[influence["model"] == "two"]["relative"], np.array([1, 2, 3, 4]) / 2.5)


def test_one_model_alone_is_not_compared(monkeypatch):
    study = Study.open("smoke")
    with pytest.raises(NotApplicable, match=r"name two models, such as models = \"smollm2"):
        across_models.compared(study)
    both = across_models.compared(study, "smollm2 rwkv5-6.6m")
    assert list(both.profile.studied) == ["smollm2-135m-instruct", "rwkv5-6.6m"]
    assert both.figures.name == "smoke-smollm2-135m-instruct+rwkv5-6.6m"
    monkeypatch.setenv("LAYER_REDUNDANCY_MODELS", "smollm2 rwkv5-6.6m")
    assert across_models.compared(Study.open("smoke")).figures == both.figures
    with pytest.raises(NotApplicable, match="one model in the place of the profile's"):
        across_models.compared(Study.open("smoke", "rwkv5-6.6m"))
