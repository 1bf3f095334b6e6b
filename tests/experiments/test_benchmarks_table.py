import numpy as np
import pytest

from layer_redundancy.config import paper_tables, profiles
from layer_redundancy.data import paper_benchmarks
from layer_redundancy.experiments import benchmarks as table1
from made_up import task_result


def scores():
    return {
        "a": {"Dense": np.array([1.0, 1, 1, 0]), "ShortGPT": np.array([1.0, 1, 0, 0]), "reverse order": np.zeros(4)},
        "b": {"Dense": np.array([0.5, 0.25]), "ShortGPT": np.array([0.5, 0.25]), "reverse order": np.array([0.1, 0])},
    }


def test_as_many_blocks_as_the_paper_removes():
    assert table1.num_removed("meta-llama/Llama-2-13b-hf", 40) == 10
    assert table1.num_removed("baichuan-inc/Baichuan2-7B-Base", 32) == 9
    assert table1.num_removed("other", 32) == 9 and table1.num_removed("other", 30) == 8
    assert table1.num_removed("other", 2) == 1


def test_scores_item_by_item():
    results = {"task/t": {(0, 1): task_result([1, 0]), (0,): task_result([0, 0])}}
    found = table1.scores(results, {"Dense": (0, 1), "ShortGPT": (0,)})
    assert found["t"]["Dense"].tolist() == [1, 0] and found["t"]["ShortGPT"].tolist() == [0, 0]


def test_table_by_hand():
    table = table1.table(scores(), {"a": 0.25}).set_index(["task", "method"])
    row = table.loc[("a", "ShortGPT")]
    assert (row["accuracy"], row["change"], row["n"], row["chance"]) == (0.5, -0.25, 4, 0.25)
    assert row["kept"] == pytest.approx(100 * 2 / 3) and row["low"] < 0.5 < row["high"]
    assert row["change_low"] < -0.25 < row["change_high"]
    # Scores that are no right or wrong get a t interval, and have no chance.
    graded = table.loc[("b", "Dense")]
    assert np.isnan(graded["chance"]) and graded["accuracy"] == 0.375
    assert graded["high"] - 0.375 == pytest.approx(12.706 * 0.125, rel=1e-3)
    wide = table1.wide(table.reset_index())
    assert list(wide.columns) == ["method", "a (n=4)", "b (n=2)"] and wide["a (n=4)"][0].startswith("75.0 (")


def test_averages_weigh_benchmarks_alike():
    table = table1.averages(scores(), 400, seed=0).set_index("method")
    assert table.loc["Dense", "average"] == pytest.approx(100 * (0.75 + 0.375) / 2)
    assert table.loc["ShortGPT", "kept"] == pytest.approx(100 * 0.875 / 1.125)
    assert table.loc["Dense", ["kept", "kept_low", "kept_high"]].tolist() == [100] * 3
    assert (table["low"] < table["average"]).all() and (table["average"] < table["high"]).all()


def test_claim_can_fail():
    claim = table1.claim(scores(), "ShortGPT", "reverse order", 400, seed=0)
    assert claim["holds"].tolist() == [False, True] and claim["certainty"][1] > 0.95 > 0.5 > claim["certainty"][0]
    same = {"a": dict.fromkeys(("Dense", "ShortGPT", "reverse order"), np.array([1.0, 0, 1]))}
    assert table1.claim(same, "ShortGPT", "reverse order", 50, seed=0)["holds"].tolist() == [True, False]


def test_the_papers_own_claim_on_its_own_cells():
    table = table1.reported_claim().set_index("model")
    assert table["92 % kept"].tolist() == ["no"] * 4  # 86.3, 83.7, 91.5 and 87.3 %
    assert table["best method"].tolist() == ["yes", "no", "yes", "yes"]  # LaCo keeps more of Llama-2-13B
    assert table.loc["Llama-2-7B", "ShortGPT kept, computed"] == pytest.approx(86.3, abs=0.05)


def test_paper_beside_measured():
    measured = table1.table(scores(), {"a": 0.25})
    table = table1.by_benchmark(measured, "meta-llama/Llama-2-7b-hf", {"a": "MMLU"})
    assert len(table) == 2  # dense and ShortGPT; the paper has no reverse order
    row = table[table["method"] == "ShortGPT"].iloc[0]
    assert (row["benchmark"], row["paper"], row["measured"]) == ("MMLU", 43.96, 50)
    assert len(table1.by_benchmark(measured, "someone/else", {"a": "MMLU"})) == 0
    averages = table1.averages(scores(), 20, seed=0)
    both = table1.beside_paper(averages, "mine")
    assert len(both) == len(paper_tables.table("table1")) + 3 and both["model"].iloc[-1] == "mine, measured here"
    hollow = table1.markers(["Dense", "ShortGPT", "reverse order"])
    assert set(hollow["method"]) == {"Dense", "LLM-Pruner", "SliceGPT", "LaCo", "ShortGPT"} and len(hollow) == 20


def test_the_paper_profile_runs_the_papers_benchmarks_and_lm_evals():
    budget = profiles.get("paper").budget(table1.Budget)
    budgets = {b.name: b.num_fewshot for b in (*budget.tasks, *budget.generative_tasks)}
    for benchmark in paper_benchmarks.PAPER_BENCHMARKS:
        assert budgets[benchmark.task] == benchmark.num_fewshot
        assert benchmark.default is None or benchmark.default in budgets
    assert set(budgets) == {n for b in paper_benchmarks.PAPER_BENCHMARKS for n in (b.task, b.default) if n}
