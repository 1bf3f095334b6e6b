import numpy as np
import pytest

from layer_redundancy.config import paper_tables
from layer_redundancy.core import stats, variants
from layer_redundancy.core.store import Result
from layer_redundancy.experiments import layer_importance, result_tables
from layer_redundancy.measures import importance
from made_up import sums


def test_importance_scores_have_every_measure_with_and_without_the_first_token():
    table = layer_importance.importance_scores(sums(), resamples=50, seed=0)
    assert len(table) == 2 * len(importance.MEASURES) * 6
    assert (table["low"] <= table["score"] + 1e-9).all() and (table["score"] <= table["high"] + 1e-9).all()
    for (_, _), part in table.groupby(["metric", "first_token"]):
        assert sorted(part["rank"]) == list(range(1, 7))
    bi = table[(table["metric"] == "block_influence") & (table["first_token"] == "included")]
    assert bi.loc[bi["rank"] == 1, "score"].item() == bi["score"].min()


def test_order_stability():
    inclusion, ranks = layer_importance.order_stability(sums(), "block_influence", 200, seed=0)
    assert inclusion.groupby("k")["probability"].sum().to_numpy() == pytest.approx(np.arange(1, 7))
    assert sorted(ranks["rank"]) == list(range(1, 7))
    assert (ranks["low"] <= ranks["high"]).all()


def test_an_order_by_position_is_the_same_on_any_text_and_one_by_noise_is_not():
    assert layer_importance.alike_by_text(sums(), "sequential", 2).tolist() == [1.0] * 24
    assert 0 < layer_importance.alike_by_text(sums(), "block_influence", 2).mean() < 1


def test_what_is_claimed_of_the_order():
    claim = layer_importance.claim(sums(num_sequences=12), 60, 0)
    assert len(claim) == 8 and claim["statement"][0] == layer_importance.PRIMARY and claim["role"][0] == "primary"
    rows = claim.set_index("statement")
    alike = layer_importance.alike_by_text(sums(num_sequences=12), "block_influence", layer_importance.quarter(6))
    assert rows.loc[layer_importance.PRIMARY, "measured"] == alike.mean()
    # Scores of the made-up sums fall with the depth: the last blocks go first, as in the paper's models.
    assert rows.loc["the quarter that goes first lies in the second half of the depth", "measured"] > 0.5
    assert rows.loc["inner blocks have less Block Influence the deeper they lie (Kendall's tau)", "measured"] < 0
    assert len(layer_importance.claim(sums(num_blocks=3), 20, 0)) == 5  # one inner block has no rank
    assert layer_importance.claim(sums(num_blocks=1), 20, 0).empty
    assert len(layer_importance.claim(sums(num_sequences=1), 20, 0)) == 7  # of a single text nothing is set apart


def test_plain_forwards_agree_exactly_or_within_a_number_of_nats():
    checked = [(0, 1), (0,)]
    note = result_tables.plain_forwards_note(checked, 2.3e-7)
    assert note == "Plain forwards of 2 of the variants: same log-likelihood within 2e-07 nats a token"
    note = result_tables.plain_forwards_note(checked, 0.0)
    assert note == "Plain forwards of 2 of the variants: exactly the same log-likelihood"


def perplexities():
    dense = variants.dense(3)
    arrays = {dense: [1.0, 3.0], (1, 2): [2.0, 4.0], (0, 2): [1.0, 3.5], (0, 1): [1.0, 3.0]}
    return dense, {
        v: Result({"perplexity": float(np.exp(sum(a) / 4))}, {"nll": np.array(a), "tokens": np.array([2, 2])})
        for v, a in arrays.items()
    }


def test_perplexity_increase_is_paired_by_block():
    dense, results = perplexities()
    table, reference = result_tables.perplexity(results, dense)
    assert reference["removed"] == () and reference["log_increase"] == 0
    by_removed = table.set_index("removed")
    # Without block 0 both blocks of text lose one nat in two tokens: half a nat a token, and no doubt about it.
    row = by_removed.loc[[(0,)]].iloc[0]
    assert row["log_increase"] == row["log_increase_low"] == row["log_increase_high"] == pytest.approx(0.5)
    assert row["low"] < row["perplexity"] < row["high"]
    row = by_removed.loc[[(1,)]].iloc[0]
    # Differences of 0 and 0.25 nats a token: mean 0.125, standard error 0.125, t quantile of one degree of freedom.
    assert row["log_increase"] == pytest.approx(0.125)
    assert row["log_increase_high"] == pytest.approx(0.125 + 12.706 * 0.125, rel=1e-4)


def test_accuracy_takes_the_normalised_metric_and_its_interval():
    result = Result(
        {"acc": 0.25, "acc_norm": 0.5, "items": 4, "chance": 0.25},
        {
            "acc": np.array([1.0, 0, 0, 0]),
            "acc_norm": np.array([1.0, 1, 0, 0]),
            "gold_logprob": np.array([-1.0, -3, 0, 0]),
        },
    )
    table = result_tables.accuracy({(0, 1): result, (0,): result}, (0, 1), "x")
    row = table.iloc[1]
    assert (row["metric"], row["accuracy"], row["n"], row["chance"]) == ("acc_norm", 0.5, 4, 0.25)
    assert row["low"] == pytest.approx(0.15, abs=0.01) and row["high"] == pytest.approx(0.85, abs=0.01)
    assert row["gold_logprob"] == -1 and row["removed"] == (1,)
    assert result_tables.primary_metric(["acc"]) == "acc"
    by_block = result_tables.by_block(table)
    assert np.isnan(by_block["block"][0]) and by_block["block"][1] == 1


def test_removed_layers_by_relative_depth_and_by_place():
    table4 = paper_tables.table("table4")
    llama = list(table4.set_index("model").loc["Llama-2-7B", "removed_layers"])
    order = llama + [b for b in range(32) if b not in llama]
    table = layer_importance.removed_layers(order, table4)
    row = table[table["paper's model"] == "Llama-2-7B"].iloc[0]
    assert (
        row["difference"] == 0
        and row["removed, paper"] == row["removed, measured"] == "27, 26, 25, 28, 24, 29, 23, 21, 22"
    )
    assert len(table) == 4
    same = layer_importance.removed_layers_by_place(order, "meta-llama/Llama-2-7b-hf", table4)
    assert same["difference"].tolist() == [0] * 9
    assert layer_importance.removed_layers_by_place(order, "somebody/else", table4).empty


def test_strategies_list_what_goes_first():
    table = layer_importance.strategies(layer_importance.importance_scores(sums(), 10, 0), 6, 0.34)
    by_name = table.set_index("strategy")["goes first"]
    assert by_name["Sequential"] == "0, 1" and by_name["Reverse order"] == "5, 4"


def test_intervals_hold_for_seeds_and_text_where_there_are_several_seeds():
    values = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 3.0]])
    assert result_tables.over_seeds(values) == stats.crossed_interval(values)
    assert result_tables.over_seeds(values[:1]) == stats.mean_interval(values[0])
    assert "seeds" in result_tables.over_seeds_note(2) and "seeds" not in result_tables.over_seeds_note(1)
