"""Costs in bits per byte and what notebook 06 says of them; and the notebook's path on RWKV-4 and Mamba."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from layer_redundancy.config import paper_tables, profiles
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.verdicts import REFUTED, SUPPORTED, UNDECIDED
from layer_redundancy.experiments import depth_curves, few_blocks
from layer_redundancy.experiments import rwkv_redundancy as recurrent
from layer_redundancy.study import Study
from made_up import checkpoint, sums, task_result

L, N = 6, 4
COUNTS = depth_curves.depths(L)


def units(damage, quarter=0.3):
    """`summary` of a model of one bit a byte: block i costs damage[i], removal along BI 0.1, `quarter`, 2 bits."""
    dense = np.ones(N) + np.array([-0.01, 0.01, -0.02, 0.02])
    by_influence = np.stack([dense] * len(COUNTS))
    for ratio, cost in zip(depth_curves.RATIOS, (0.1, quarter, 2.0), strict=True):
        by_influence[COUNTS.index(depth_curves.at_ratio(L, ratio))] += cost
    return recurrent.summary(np.stack([dense + d for d in damage]), dense, by_influence, COUNTS)


WHAT = ("the cheapest block", "a quarter of the blocks", "half of the blocks")
DAMAGE = (3.0, 0.01, 0.02, 0.03, 0.04, 0.6)


def test_summary_and_redundancy_by_hand():
    values = units(DAMAGE)
    assert values.shape == (N, 1 + L + len(depth_curves.RATIOS))
    assert values.mean(0)[1:] == pytest.approx([*DAMAGE, 0.1, 0.3, 2.0])
    table = recurrent.redundancy({"m": values}, 100, 0).set_index("quantity")["m"]
    assert table["dense bits per byte"] == pytest.approx(1)
    assert table["cheapest block, %"] == pytest.approx(1) and table["dearest block, %"] == pytest.approx(300)
    assert table["median block, %"] == pytest.approx(3.5)
    assert table["25% removed, %"] == pytest.approx(30)
    both = recurrent.redundancy({"m": values, "other": 2 * values}, 100, 0)
    assert list(both)[1:] == ["m", "m low", "m high", "other", "other low", "other high"]
    assert (both["m low"] <= both["m"] + 1e-9).all() and (both["m"] <= both["m high"] + 1e-9).all()


def test_claims_are_supported_and_refuted():
    held = recurrent.claim(units(DAMAGE, 0.2), units(DAMAGE, 0.3), 100, 0)
    assert held["statement"][0] == recurrent.PRIMARY and held["role"][0] == "primary"
    assert held["difference"][0] == pytest.approx(10) and held["low"][0] > 9
    assert dict(zip(held["statement"], held["verdict"], strict=True)) == {
        recurrent.PRIMARY: SUPPORTED,
        recurrent.PRIMARY.replace("a quarter", "half"): UNDECIDED,  # the same, of which a difference would be seen
        "the median block costs the model without attention under 5 %": SUPPORTED,
        "the median block costs the transformer under 5 %": SUPPORTED,
        "a quarter of the blocks costs the model without attention under 25 %": SUPPORTED,
        "a quarter of the blocks costs the transformer under 25 %": REFUTED,
    }
    failed = recurrent.claim(units([0.2] * L, 0.4), units([0.2] * L, 0.3), 100, 0)
    assert failed["verdict"].tolist() == [REFUTED, UNDECIDED, REFUTED, REFUTED, REFUTED, REFUTED]


def test_claims_about_the_twin_are_paired_with_the_recurrent_model():
    cheap, dear = units((0.01, *[0.1] * (L - 1)), 0.2), units((0.06, *[0.1] * (L - 1)), 0.5)
    plain = recurrent.claim(cheap, dear, 100, 0)
    for twin, verdict in ((dear, SUPPORTED), (cheap, UNDECIDED)):
        found = recurrent.claim(cheap, dear, 100, 0, twin)
        assert found["statement"].tolist()[: len(plain)] == plain["statement"].tolist()
        new = found.iloc[len(plain) :].set_index("statement")
        quarter = (
            "at equal everything, {} costs the transformer twin a greater share than the model without attention"
        ).format
        assert list(new.index) == [quarter(what) for what in WHAT]
        assert new.loc[quarter(WHAT[0]), "verdict"] == new.loc[quarter(WHAT[1]), "verdict"] == verdict
        assert new.loc[quarter(WHAT[1]), "difference"] == pytest.approx(30 if verdict == SUPPORTED else 0)


def one_model(name, right):
    """A model of 12 blocks: the dense model's answers and those without a quarter."""
    dense, quarter = variants.dense(12), variants.without(12, [4, 5, 6])
    study = SimpleNamespace(num_blocks=12, dense=dense, identity=SimpleNamespace(name=name))
    tasks = {"t": {dense: task_result(right[0]), quarter: task_result(right[1])}}
    return recurrent.OneModel(study, None, None, [], {0: dense, 3: quarter}, {}, tasks)


def test_what_is_kept_stands_beside_what_the_paper_prints():
    guesses = [1] * 50 + [0] * 150
    found = recurrent.Measured(
        one_model("guesses", (guesses, guesses)),
        one_model("knows", ([1] * 150 + [0] * 50, [1] * 100 + [0] * 100)),
        [],
        0,
    )
    kept = recurrent.kept(found, paper_tables.table("rwkv"))
    printed, measured = kept[kept["source"] != "measured"], kept[kept["source"] == "measured"].set_index("model")
    assert list(printed["score"]) == [50.37, 36.85] and printed["above_chance"].isna().all()
    assert list(measured.loc["knows", "above_chance"]) == pytest.approx([100, 50])
    assert list(measured.loc["knows", "score"]) == [75, 50] and list(measured["removed"]) == [0, 25, 0, 25]
    assert measured.loc["guesses", "above_chance"].isna().all(), "nothing is kept of chance"
    assert (measured["low"] < measured["score"]).all() and (measured["n"] == 200).all()
    assert recurrent.at_chance(kept).startswith("No share kept is given of guesses on t:")


def test_agreement_of_the_true_order_is_one():
    damage = np.ones((L, N)) * np.array([5.0, 1, 3, 2, 4, 6])[:, None]
    summary = np.column_stack([np.ones(N), damage.T, np.zeros((N, 3))])
    table = recurrent.agreement(sums(num_blocks=L), summary, 50, 0).set_index("measure")
    assert table["tau"].between(-1, 1).all() and (table["low"] <= table["high"]).all()
    # Sequential removes block 0 first: it ranks the pairs of (5, 1, 3, 2, 4, 6) as they are in 10 of 15 cases.
    assert table.loc["sequential"].tolist() == pytest.approx([(10 - 5) / 15] * 3)


def test_agreement_names_measures_in_words():
    damage = np.ones((L, N)) * np.array([5.0, 1, 3, 2, 4, 6])[:, None]
    values, text = np.column_stack([np.ones(N), damage.T, np.zeros((N, 3))]), sums(num_blocks=L)
    one, other = (SimpleNamespace(name=name, sums=text, summary=values) for name in ("r", "t"))
    table = recurrent.agreement_table(SimpleNamespace(models=[one, other]), 20, 0)
    joined = "Block Influence, Reverse order, Angular distance, last token"  # the made-up text gives them one order
    assert table["measure"].iloc[0] == joined and len(table) == 4
    assert list(table)[1:] == [f"{model} {column}" for model in ("r", "t") for column in ("tau", "low", "high")]


def test_both_models_read_the_same_passages():
    study = Study.open("smoke")
    mine, other = recurrent.pair(study)
    text = mine.inputs.same_text(other.inputs)
    assert len(text.pieces) == len(other.evaluation.input_ids)
    for piece, ids in zip(text.pieces, other.evaluation.input_ids.tolist(), strict=True):
        assert mine.tokenizer.decode(list(piece)) == other.tokenizer.decode(ids)
    assert len({len(piece) for piece in text.pieces}) > 1, "in other numbers of tokens"


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
        count = len(measured.transformer.study.evaluation.input_ids)
        assert found.costs["single"].shape == (study.num_blocks, count)
        # Random weights: about log2 of the vocabulary a token.
        bits = found.results[study.dense].arrays["nll"] / np.log(2) / found.results[study.dense].arrays["tokens"]
        assert bits == pytest.approx(np.log2(49152), rel=0.1)
        a_block = [few_blocks.is_a_block(study.num_blocks, ratio) for ratio in depth_curves.RATIOS]
        assert not all(a_block), "a tenth of four blocks is none"
        assert (np.isfinite(found.summary).sum(1) == found.summary.shape[1] - a_block.count(False)).all()
        assert study.deviation([study.dense, (0, 2, 3)]) < 1e-5


@pytest.fixture
def with_a_twin(tmp_path, own_results, monkeypatch):
    """The smoke profile with a tiny Llama as the twin of a tiny Mamba, and their pair without dropout."""
    recurrent_model, twin = checkpoint(tmp_path / "mamba", "mamba"), checkpoint(tmp_path / "twin", "llama")
    for folder in (recurrent_model, twin):
        shutil.copytree(folder, tmp_path / "pair" / (folder.name + recurrent.WITHOUT_DROPOUT))
    profile = tmp_path / "own.toml"
    budget = f"recurrent_model = {json.dumps(str(recurrent_model))}\ntwin = {json.dumps(str(twin))}"
    profile.write_text(f'extends = "smoke"\n[budgets.rwkv_redundancy]\n{budget}\n')
    return profile, checkpoint(tmp_path / "llama", "llama"), twin


@pytest.mark.slow
def test_a_twin_is_measured_beside_both(tmp_path, with_a_twin):
    profile, transformer, twin = with_a_twin
    found = recurrent.measure(Study.open(str(profile), str(transformer)))
    names = [one.name for one in found.models]
    assert names == [found.recurrent.name, str(transformer), str(twin)] == list(found.summaries)
    assert found.twin.summary.shape[0] == found.transformer.summary.shape[0], "on the same passages"
    assert list(recurrent.removals(found)["model"].unique()) == names
    claim = recurrent.claim(*(one.summary for one in (found.recurrent, found.transformer)), 20, 0, found.twin.summary)
    assert sum("at equal everything" in name for name in claim["statement"]) == 3
    assert len(recurrent.agreement_table(found, 20, 0).columns) % 3 == 1
    with pytest.raises(StudyError, match=r"has no .*-dropout-0: make twin-train DROPOUT=0"):
        recurrent.without_dropout(found, str(tmp_path / "nothing"), 20, 0)
    bare = recurrent.without_dropout(found, str(tmp_path / "pair"), 20, 0)
    assert len(bare.summaries) == 4 and bare.claim["statement"].str.startswith("trained without dropout").all()
    assert bare.claim["difference"].tolist() == pytest.approx([0] * len(bare.claim), abs=1e-6), "the same weights"


@pytest.mark.slow
def test_a_model_of_ones_own_has_no_twin(tmp_path, with_a_twin):
    profile, transformer, _ = with_a_twin
    other = checkpoint(tmp_path / "other", "mamba")
    found = recurrent.measure(Study.open(str(profile), str(other)), beside=str(transformer))
    assert found.twin is None and len(found.models) == 2
    with pytest.raises(StudyError, match="leave out MODEL= and beside="):
        recurrent.without_dropout(found, str(tmp_path / "pair"), 20, 0)
