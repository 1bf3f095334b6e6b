"""Notebook 15's tables and statements: on reported numbers whose answers can be counted, and on made-up ones."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.config import published as reported
from layer_redundancy.core.verdicts import NOT_TESTABLE, REFUTED, SUPPORTED, UNDECIDED
from layer_redundancy.experiments import published
from layer_redundancy.experiments.depth_ranks import CHEAPER, LAST
from layer_redundancy.experiments.published import OURS, PLACE, PRIMARY, Measured
from layer_redundancy.measures import importance

A_STUDY = SimpleNamespace(profile=SimpleNamespace(bootstrap_resamples=200, seed=0))


def measured(nats=None, **further):
    """What is measured of a model, nats a token without each block, and of further ones; of none, nothing."""
    every = {"a model": nats, **further} if nats is not None else {}
    return Measured({}, {name: np.asarray(one, float) for name, one in every.items()})


def bowl(num=30):
    """Losses without each block: the first far above all, the last above the inner ones, early above late."""
    nats = np.linspace(3.4, 3.2, num)
    nats[0], nats[-1] = 9.0, 4.4
    return nats


def ours(table):
    return table[table["ours"]].reset_index(drop=True)


def test_costs_are_above_the_median_inner_block_whatever_a_source_gives():
    table = published.removals(measured(bowl()))
    assert table.groupby("model", sort=False)["ours"].first().tolist() == [False] * 11 + [True]
    rows = reported.removals().set_index(["model", "block"])
    cost = table.set_index(["model", "block"])["cost"]
    for model, values in (
        ("Llama-2-7B", np.log(rows["value"]["Llama-2-7B"])),
        ("Qwen2.5-7B", rows["value"]["Qwen2.5-7B"]),
    ):
        np.testing.assert_allclose(cost[model], values - np.median(values.iloc[1:-1]))
    mine = ours(table)
    np.testing.assert_allclose(mine["cost"], bowl() - np.median(bowl()[1:-1]))
    assert mine["depth"].tolist() == pytest.approx([100 * (i + 0.5) / 30 for i in range(30)])
    assert (mine["source"] == OURS).all() and table["cost"].notna().all()
    two = ours(published.removals(measured(bowl(), another=1 + bowl(12))))
    assert two["model"].value_counts().to_dict() == {"a model": 30, "another": 12}
    np.testing.assert_allclose(two["cost"][30:], bowl(12) - np.median(bowl(12)[1:-1]))


@pytest.mark.parametrize("num", [1, 2, 3])
def test_small_models_stand_beside_the_others(num):
    found = measured(None if num == 1 else bowl(num))
    table = published.removals(found)
    assert len(ours(table)) == (0 if num == 1 else num)
    claim = published.claim(A_STUDY, table, published.windows())
    assert "a model" not in set(claim["on"]) and claim["statement"][0] == PRIMARY
    ends = published.ends(table)
    assert len(published.ends_shown(ends, claim)) == len(ends) == (11 if num == 1 else 12)


def test_scores_are_over_their_own_median(monkeypatch):
    scores = np.linspace(0.5, 0.1, 31)
    monkeypatch.setattr(importance, "scores", lambda sums, measure: scores[sums:])
    table = published.influence(Measured({"a model": 0, "a shorter one": 20}, {}))
    assert ours(table)["model"].tolist() == ["a model"] * 31 + ["a shorter one"] * 11
    both = [scores / np.median(scores), scores[20:] / np.median(scores[20:])]
    np.testing.assert_allclose(ours(table)["relative"], np.concatenate(both))
    assert ours(table)["depth"].max() == pytest.approx(100 * 30.5 / 31)
    assert table.groupby(["model", "source"])["relative"].median().tolist() == pytest.approx([1.0] * 9)
    sums = table[table["source"] == "sramshetty/ShortGPT"]["relative"].to_numpy()
    means = table[(table["source"] == "Wolfskonigs/CAP6614_ShortGPT") & (table["model"] == "Llama-2-7B")]["relative"]
    np.testing.assert_allclose(sums[:-1], means.to_numpy()[:-1], rtol=0.25)  # one model, whatever the source sums


def test_first_and_last_have_places_and_no_verdict():
    ends = published.ends(published.removals(measured(bowl()))).set_index("model")
    assert (ends["first_place"] == 1).all() and ends["last_place"].max() == 4
    assert ends.loc["Llama-2-7B", "first_chance"] == 1 / 32 and ends.loc["Llama-2-7B", "last_chance"] == 3 / 32
    assert ends.loc["a model", "cheaper"] == 1 and ends.loc["a model", "p"] < 1e-6
    assert np.isinf(ends.loc["Gemma-7B", "first"])
    shown = published.ends_shown(ends.reset_index(), pd.DataFrame()).set_index("model")
    assert shown.loc["a model (here)", "last block"] == "+1.10 nats, 2 of 30"
    assert (shown["verdict"] == "").all()


def test_windows_have_intervals_of_mmlus_items():
    rows = published.windows()
    assert ((rows["low"] < rows["mmlu"]) & (rows["mmlu"] < rows["high"])).all()
    assert (rows["high"] - rows["low"]).max() < 0.017


def test_what_two_papers_both_remove_is_counted_in_halves_of_blocks():
    table = published.overlap("Llama-2-7B", 8)
    assert table.shape == (6, 6) and (np.diag(table) == 8).all() and np.array_equal(table, table.T)
    names = {name.partition(" ")[0] + name.rpartition(" ")[2]: name for name in table}
    assert table.loc[names["MenInfluence"], names["KimTaylor+"]] == 8  # 21 and 23 to 29, in either order
    assert table.loc[names["MenInfluence"], names["Gromovdistance"]] == 7
    evolved = {
        "a10",
        "a12",
        "a13",
        "a14",
        "a23",
        "a24",
        "a25",
        "a27",
        *(f"m{i}" for i in (9, 10, 11, 12, 13, 22, 23, 25)),
    }
    shortgpt = {f"{part}{i}" for part in "am" for i in (27, 26, 25, 28, 24, 29, 23, 21)}
    assert table.loc[names["MenInfluence"], names["Sieberlingsearch"]] == len(evolved & shortgpt) / 2


def test_sets_of_another_size_and_shorter_orders_are_left_out():
    names = [name.rpartition(": ")[2] for name in published.overlap("Llama-2-7B", 10)]
    assert names == ["perplexity, PPL+", "Taylor+", "greedy perplexity"]
    pairs = published.overlap_pairs({"Llama-3-8B": published.overlap("Llama-3-8B", 8)}, 8)
    assert len(pairs) == 10 and (pairs["jaccard"] == pairs["shared"] / (16 - pairs["shared"])).all()


def test_sources_say_what_sets_values_apart_and_where_there_is_none():
    table = published.sources()
    assert set(table["apart"]) == {"the others' value", "explained", "unexplained", "alone", "no source found"}
    assert ((table["why"] != "") == table["apart"].isin(["explained", "unexplained"])).all()
    none = table[table["apart"] == "no source found"]
    assert none["value"].isna().all() and {("Llama-3-8B", "SliceGPT")} <= set(
        zip(none["model"], none["method"], strict=True)
    )
    row = table.query("model == 'Llama-3-8B' and method == 'ShortGPT' and source == 'nyunAI/PruneGPT'").iloc[0]
    assert (row["value"], row["why"]) == (83.23, "count of blocks, 8 for 7")
    assert row["times_dense"] == pytest.approx(83.23 / 6.14)
    by = published.unexplained(table)["source"]
    assert (by == "fmk345/TRSP").sum() == 6 and len(published.sources_shown(table)) < len(table)


# ------------------------------------------------------------------------------------------------ statements


def claim_of(nats=None, mmlu=None):
    table = published.removals(measured(bowl() if nats is None else nats))
    return published.claim(A_STUDY, table, published.windows() if mmlu is None else mmlu)


def test_statements_of_what_is_reported():
    claim = claim_of()
    verdict = claim.set_index(["statement", "on"])["verdict"]
    assert claim["statement"][0] == PRIMARY and claim["role"].tolist() == ["primary", *[""] * (len(claim) - 1)]
    families = "6 families of models"
    assert verdict[PRIMARY, families] == SUPPORTED and verdict[LAST, families] == SUPPORTED
    assert (verdict[PLACE] == SUPPORTED).all() and len(verdict[PLACE]) == 9
    assert len(verdict[CHEAPER]) == 1 + 12 and verdict[CHEAPER, "a model"] == SUPPORTED
    assert claim[["p", "power"]].notna().all(axis=None)


def test_a_model_whose_early_blocks_are_the_cheap_ones_refutes_it():
    nats = bowl()
    nats[1:-1] = nats[1:-1][::-1]
    assert claim_of(nats).set_index(["statement", "on"])["verdict"][CHEAPER, "a model"] == REFUTED


def test_blocks_in_no_order_say_nothing():
    nats = np.random.default_rng(3).normal(3, 0.1, 30)
    row = claim_of(nats).set_index(["statement", "on"]).loc[(CHEAPER, "a model")]
    assert row["verdict"] in (NOT_TESTABLE, UNDECIDED) and row["p"] > 0.05


def test_places_that_differ_by_noise_alone_are_not_told_apart():
    rng = np.random.default_rng(0)
    windows = published.windows()
    same = windows.assign(mmlu=rng.binomial(published.ITEMS, 0.45, len(windows)) / published.ITEMS)
    verdict = claim_of(mmlu=same).set_index("statement")["verdict"]
    assert SUPPORTED not in set(verdict[PLACE])
