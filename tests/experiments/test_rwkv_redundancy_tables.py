"""Costs in bits per byte and what notebook 06 says of them; and the notebook's path on RWKV-4 and Mamba."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf

from layer_redundancy.config import paper_tables, profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.experiments import depth_curves, few_blocks
from layer_redundancy.experiments import rwkv_redundancy as recurrent
from layer_redundancy.models import smollm2
from layer_redundancy.study import Study
from made_up import checkpoint, nll_result, sums

L, N = 6, 4
COUNTS = depth_curves.depths(L)


def test_bytes_are_those_of_the_scored_tokens():
    tokenizer = tf.AutoTokenizer.from_pretrained(smollm2.folder())
    text = "Ein Käfer – and a 漢字 in one sentence, to the end."
    ids = torch.tensor([tokenizer(text).input_ids])
    first = len(tokenizer.decode(ids[0, :1].tolist()).encode())
    (size,) = recurrent.block_bytes(TokenBlocks(ids, "t", "evaluation", False), tokenizer)
    assert size == len(text.encode()) - first


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut():
    """A model that gives every byte the probability 1/4 costs two bits a byte, in tokens of any length."""
    sizes = np.array([10.0, 40.0])
    results = {(0,): nll_result(np.log(4) * sizes), (1,): nll_result(2 * np.log(4) * sizes)}
    assert recurrent.bits_per_byte(results, [(1,), (0,)], sizes) == pytest.approx(np.array([[4, 4], [2, 2]]))


def test_curves_have_the_share_and_the_interval_of_each_depth():
    costs = {"block_influence": np.array([[1.0, 1.2], [2.0, 2.0]])}
    table = recurrent.measure_curves(costs, [0, 3], 12, "m")
    assert list(table["share"]) == [0, 25] and list(table["bits_per_byte"]) == [1.1, 2.0]
    assert table["low"][0] == pytest.approx(1.1 - 12.706 * 0.1, abs=1e-3) and table["high"][1] == 2.0


def units(damage, quarter=0.3):
    """`summary` of a model of one bit a byte: block i costs damage[i], removal along BI 0.1, `quarter`, 2 bits."""
    dense = np.ones(N) + np.array([-0.01, 0.01, -0.02, 0.02])
    by_influence = np.stack([dense] * len(COUNTS))
    for ratio, cost in zip(depth_curves.RATIOS, (0.1, quarter, 2.0), strict=True):
        by_influence[COUNTS.index(depth_curves.at_ratio(L, ratio))] += cost
    return recurrent.summary(np.stack([dense + d for d in damage]), dense, by_influence, COUNTS)


DAMAGE = (3.0, 0.01, 0.02, 0.03, 0.04, 0.6)


def test_summary_and_redundancy_by_hand():
    values = units(DAMAGE)
    assert values.shape == (N, 1 + L + len(depth_curves.RATIOS))
    assert values.mean(0)[1:] == pytest.approx([*DAMAGE, 0.1, 0.3, 2.0])
    table = recurrent.redundancy({"m": values}, 100, 0).set_index("quantity")["m"]
    assert table["dense bits per byte"] == pytest.approx(1)
    assert table["cheapest block, %"] == pytest.approx(1) and table["dearest block, %"] == pytest.approx(300)
    assert table["median block, %"] == pytest.approx(3.5) and table["blocks under 5%"] == pytest.approx(4 / 6)
    assert table["25% removed, %"] == pytest.approx(30)
    both = recurrent.redundancy({"m": values, "other": 2 * values}, 100, 0)
    assert list(both)[1:] == ["m", "m low", "m high", "other", "other low", "other high"]
    assert (both["m low"] <= both["m"] + 1e-9).all() and (both["m"] <= both["m high"] + 1e-9).all()


def test_claim_can_hold_and_fail():
    held = recurrent.claim(units(DAMAGE, 0.2), units(DAMAGE, 0.3), 100, 0)
    assert list(held["holds"]) == [True, True, True, False, True, True, True]
    assert held["certainty"][:4].tolist() == [1, 1, 1, 0]
    failed = recurrent.claim(units([0.2] * L, 0.4), units([0.2] * L, 0.3), 100, 0)
    assert list(failed["holds"]) == [False, False, False, False, True, False, True]
    assert failed["measured"][2] == pytest.approx(40) and failed["threshold"][2] == 25


def test_kept_stands_beside_what_the_paper_prints():
    rows = [
        ("a", "block_influence", "t", k, 100 * k / 12, accuracy, accuracy - 0.1, accuracy + 0.1, 40, 0.25)
        for k, accuracy in ((0, 0.75), (1, 0.7), (3, 0.5), (11, 0.2))
    ] + [("b", "block_influence", "t", k, 25 * k, 0.3, 0.2, 0.4, 40, 0.25) for k in (0, 1)]
    columns = ["model", "metric", "task", "count", "share", "accuracy", "low", "high", "n", "chance"]
    table = pd.DataFrame(rows, columns=columns)
    kept = recurrent.kept(pd.concat([table, table.assign(metric="greedy", accuracy=0.0)]), paper_tables.table("rwkv"))
    printed, measured = kept[kept["source"] != "measured"], kept[kept["source"] == "measured"].set_index("model")
    assert list(printed["accuracy"]) == [50.37, 36.85] and printed["kept"].iloc[1] == pytest.approx(73.16, abs=0.01)
    assert list(measured.loc["a", "kept"]) == pytest.approx([100, 100 * 2 / 3])
    assert list(measured.loc["a", "above_chance"]) == pytest.approx([100, 50])
    assert list(measured.loc["a", "low"]) == pytest.approx([65, 40]) and list(measured["n"]) == [40] * 4
    assert measured.loc["b", "above_chance"].isna().all() and list(measured.loc["b", "kept"]) == [100, 100]


def test_agreement_of_the_true_order_is_one():
    dense, single = np.ones(N), np.ones((L, N)) + np.array([5.0, 1, 3, 2, 4, 6])[:, None]
    table = recurrent.agreement(sums(num_blocks=L), single, dense, [1, 3, 2, 4, 0, 5], 50, 0).set_index("measure")
    assert table.loc["greedy"].tolist() == pytest.approx([1, 1, 1])
    assert table["tau"].between(-1, 1).all() and (table["low"] <= table["high"]).all()
    # Sequential removes block 0 first: it ranks the pairs of (5, 1, 3, 2, 4, 6) as they are in 10 of 15 cases.
    assert table.loc["sequential", "tau"] == pytest.approx((10 - 5) / 15)


# ------------------------------------------------------------------------------------------------ which two models


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")


def test_a_model_of_ones_own_takes_the_place_of_its_kind(tmp_path, own_results):
    default = recurrent.pair(Study.open("smoke"))
    assert [study.identity.name for study in default] == [profiles.EMBEDDED_RWKV, profiles.EMBEDDED_MODEL]
    for kind, place in (("mamba", 0), ("llama", 1)):
        path = checkpoint(tmp_path / kind, kind)
        both = recurrent.pair(Study.open("smoke", str(path)))
        assert both[place].identity.name == str(path)
        assert both[1 - place].identity.name == default[1 - place].identity.name
        assert {study.figures.name for study in both} == {
            profiles.artifact_folder(profiles.get("smoke", model=str(path)))
        }
    with pytest.raises(StudyError, match="no such folder"):
        recurrent.pair(Study.open("smoke"), beside=str(tmp_path / "nothing"))
    paper = profiles.get("paper")
    assert (paper.budget(recurrent.Budget).recurrent_model, paper.model) == (
        "RWKV/v5-Eagle-7B-HF",
        "meta-llama/Llama-2-7b-hf",
    )


def test_two_models_of_one_kind_are_refused(tmp_path, own_results):
    mamba = checkpoint(tmp_path / "mamba", "mamba")
    with pytest.raises(StudyError, match="both without attention"):
        recurrent.pair(Study.open("smoke", str(mamba)), beside=profiles.EMBEDDED_RWKV)
    llama = checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(StudyError, match="both transformers"):
        recurrent.pair(Study.open("smoke", str(llama)), beside=profiles.EMBEDDED_MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rwkv", "mamba"])
def test_transformers_own_recurrent_models_are_measured_as_rwkv5_is(tmp_path, own_results, kind):
    path, beside = checkpoint(tmp_path / kind, kind), checkpoint(tmp_path / "llama", "llama")
    measured = recurrent.measure(Study.open("smoke", str(path)), beside=str(beside))
    for found in (measured.recurrent, measured.transformer):
        study = found.study
        assert found.costs["single"].shape == (study.num_blocks, len(study.evaluation.input_ids))
        # Random weights: about log2 of the vocabulary a token.
        per_token = np.log2(49152) * (study.evaluation.input_ids.shape[1] - 1)
        bits = found.costs["dense"][0] * recurrent.block_bytes(study.evaluation, study.tokenizer)
        assert bits == pytest.approx(per_token, rel=0.1)
        assert sorted(found.greedy) == list(range(study.num_blocks))
        assert set(found.curves["metric"]) == set(found.accuracy["metric"])
        a_block = [few_blocks.is_a_block(study.num_blocks, ratio) for ratio in depth_curves.RATIOS]
        assert not all(a_block), "a tenth of four blocks is none"
        assert (np.isfinite(found.summary).sum(1) == found.summary.shape[1] - a_block.count(False)).all()
        assert study.deviation([study.dense, (0, 2, 3)]) < 1e-5
