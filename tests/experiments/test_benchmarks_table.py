from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.config import profiles
from layer_redundancy.core.store import Result
from layer_redundancy.data import paper_benchmarks
from layer_redundancy.experiments import benchmarks as table1
from made_up import nll_result, task_result

MODELS = {
    "Dense": (0, 1, 2, 3),
    "ShortGPT, 1 of 4": (0, 1, 3),
    "ShortGPT, 2 of 4": (0, 3),
    "reverse order, 1 of 4": (0, 1, 2),
    "a single block": (0,),
}
KINDS = dict(zip(MODELS, ("Dense", "ShortGPT", "", "reverse order", "a single block"), strict=True))


def right(share, n):
    """So many items right, the others wrong, spread evenly."""
    return task_result(np.arange(n) * share % 1 >= 1 - share - 1e-9)


def task(name, choices=4):
    return SimpleNamespace(name=f"task/{name}", items=SimpleNamespace(name=name, chance=1 / choices))


def answered(n, share):
    """A task's result at chance, with the right answer's share of the probabilities."""
    noise = np.where(np.arange(n) % 2, 0.04, -0.04)
    result = right(0.25, n)
    return Result(result.summary, result.arrays | {"gold_share": np.log(share + noise)})


def measured(n=400, few=280):
    """Copying halved and agreement unharmed by a block, nothing left of either in a broken model; letters at chance."""
    shares = {"agreement": (0.9, 0.9, 0.7, 0.6, 0.5), "copying": (0.95, 0.6, 0.3, 0.3, 0.25)}
    results = {
        f"task/{name}": {v: right(share, n) for v, share in zip(MODELS.values(), of, strict=True)}
        for name, of in shares.items()
    }
    of_few = [MODELS[label] for label in MODELS if KINDS[label] in ("Dense", "ShortGPT", "reverse order")]
    results["task/mmlu_dev"] = {v: answered(few, share) for v, share in zip(of_few, (0.27, 0.26, 0.25), strict=True)}
    results["perplexity"] = {v: nll_result([3.0 + 0.5 * i, 3.2 + 0.6 * i]) for i, v in enumerate(MODELS.values())}
    weights = dict(zip(MODELS, (0.0, 20.0, 40.0, 20.0, 60.0), strict=True))
    tasks = [task("agreement", 2), task("copying"), task("mmlu_dev")]
    return table1.Measured(MODELS, KINDS, weights, 1, tasks, results, {})


@pytest.fixture(scope="module")
def found():
    return measured()


@pytest.fixture(scope="module")
def scored(found):
    return table1.table(found.scores(), found.chance())


def test_as_many_blocks_as_the_paper_removes():
    assert table1.num_removed("meta-llama/Llama-2-13b-hf", 40) == 10
    assert table1.num_removed("baichuan-inc/Baichuan2-7B-Base", 32) == 9
    assert table1.num_removed("other", 32) == 9 and table1.num_removed("other", 30) == 8
    assert table1.num_removed("other", 2) == 1


def test_table_by_hand():
    scores = {
        "a": {"Dense": np.array([1.0, 1, 1, 0]), "ShortGPT": np.array([1.0, 1, 0, 0])},
        "b": {"Dense": np.array([0.5, 0.25]), "ShortGPT": np.array([0.5, 0.25])},
    }
    table = table1.table(scores, {"a": 0.25}).set_index(["task", "model"])
    row = table.loc[("a", "ShortGPT")]
    assert (row["accuracy"], row["change"], row["n"], row["chance"]) == (0.5, -0.25, 4, 0.25)
    assert row["low"] < 0.5 < row["high"] and row["change_low"] < -0.25 < row["change_high"]
    agreed = {"a": {"Dense": np.ones(4), "ShortGPT": np.ones(4)}}
    alike = table1.table(agreed, {}).set_index("model")
    assert alike.loc["ShortGPT", "change_high"] == pytest.approx(3.182 / 4, rel=1e-3), "as if one item had differed"
    assert alike.loc["Dense", "change_high"] == 0
    # Scores that are no right or wrong get a t interval, and have no chance.
    graded = table.loc[("b", "Dense")]
    assert np.isnan(graded["chance"]) and graded["accuracy"] == 0.375
    assert graded["high"] - 0.375 == pytest.approx(12.706 * 0.125, rel=1e-3)


def test_a_benchmark_counts_if_the_whole_model_can_do_it(found, scored):
    assert table1.known_tasks(scored) == ["agreement", "copying"]
    few = measured(n=8)
    assert table1.known_tasks(table1.table(few.scores(), few.chance())) == [], "eight items are too few to say"


def test_a_row_a_model_with_intervals_first_where_items_are_few(found, scored):
    table = table1.models_table(found, scored).set_index("model")
    assert table.loc["ShortGPT, 1 of 4", ["removed", "weights removed (%)"]].tolist() == [1, 20]
    assert table.loc["Dense", "perplexity"] == pytest.approx(np.exp(3.1)) and table.loc["Dense", "nats more"] == ""
    assert table.loc["ShortGPT, 1 of 4", "nats more"].startswith("0.55 (")
    assert table.loc["Dense", "agreement, % (n=400)"].startswith("90.0 (87 to")
    few = measured(n=40)
    table = table1.models_table(few, table1.table(few.scores(), few.chance())).set_index("model")
    assert table.loc["Dense", "copying, % (n=40)"].endswith("(95.0)")


def test_what_is_left_is_counted_from_a_broken_models_score(found, scored):
    table = table1.changes(found, scored, 200, 0).set_index(["task", "model"])
    assert table.loc[("copying", "ShortGPT, 1 of 4"), "left"] == pytest.approx(50)
    assert table.loc[("agreement", "reverse order, 1 of 4"), "left"] == pytest.approx(25)
    average = table.loc[("average", "ShortGPT, 1 of 4")]
    assert average["left"] == pytest.approx(75) and average["left_low"] < 75 < average["left_high"]
    assert table.loc[("average", "a single block"), "left"] == 0
    assert "MMLU, letters" not in table.index.get_level_values("task"), "no percentage where the model guesses"


def test_answers_where_accuracy_says_nothing(found, scored):
    table = table1.answers(found, scored)
    assert table["task"].unique().tolist() == ["MMLU, letters"] and len(table) == 3
    assert table["share"].to_numpy() == pytest.approx([0.27, 0.26, 0.25])
    assert table["share_change"].to_numpy() == pytest.approx([0, -0.01, -0.02])
    assert (table["nats"].iloc[1:] < 0).all() and (table["n"] == 280).all()


def test_claim_can_fail(found):
    claim = table1.claim(found, 300, 0).set_index("statement")
    assert claim.loc[table1.PRIMARY, ["role", "verdict"]].tolist() == ["primary", "refuted"]
    assert claim.loc[table1.PRIMARY, "measured"] == pytest.approx(0.75)
    expected = {
        "ShortGPT leaves more than reverse order, averaged over tasks": "supported",
        "ShortGPT: 92 % is left of copying": "refuted",
        # 0.27 on 280 items of little spread is more than 0.25.
        "MMLU, letters: the whole model gives the right answer more than an equal share": "supported",
    }
    assert claim["verdict"][list(expected)].to_dict() == expected
    assert len(claim) == 5, "no model has fewer blocks removed than the paper's share here"


def test_nothing_is_claimed_where_no_block_can_go():
    results = {"task/agreement": {(0,): right(0.9, 8)}, "perplexity": {(0,): nll_result([3.0])}}
    single = table1.Measured(
        {"Dense": (0,)}, {"Dense": "Dense"}, {"Dense": 0.0}, 0, [task("agreement", 2)], results, {}
    )
    assert table1.claim(single, 20, 0).empty
    scored = table1.table(single.scores(), single.chance())
    assert len(table1.models_table(single, scored)) == 1 and len(table1.changes(single, scored, 20, 0)) <= 1


def test_the_papers_own_claim_on_its_own_cells():
    table = table1.reported_claim().set_index("model")
    assert table["92 % kept"].tolist() == ["no"] * 4  # 86.3, 83.7, 91.5 and 87.3 %
    assert table["best method"].tolist() == ["yes", "no", "yes", "yes"]  # LaCo keeps more of Llama-2-13B
    assert table.loc["Llama-2-7B", "kept, from the cells (%)"] == pytest.approx(86.3, abs=0.05)
    assert table["weights removed, by its shape (%)"].round(1).tolist() == [27.0, 24.4, 24.3, 22.7]
    averages = table1.reported_averages()
    assert len(averages) == 20 and averages.columns[-2:].tolist() == ["kept, printed (%)", "kept, from the cells (%)"]


def test_paper_beside_measured(found, scored):
    table = table1.by_benchmark(found, scored, "meta-llama/Llama-2-7b-hf", {"copying": "MMLU"})
    assert len(table) == 2  # dense and ShortGPT at the paper's share; the paper has no reverse order
    row = table[table["method"] == "ShortGPT"].iloc[0]
    assert (row["benchmark"], row["paper"], row["measured"]) == ("MMLU", 43.96, pytest.approx(60))
    assert len(table1.by_benchmark(found, scored, "someone/else", {"copying": "MMLU"})) == 0


def test_only_accuracies_on_enough_items_are_drawn(found, scored):
    rules = pd.DataFrame({"task": "copying", "rule": ["a", "b"], "accuracy": [0.2, 0.3], "n": 400, "chance": 0.25})
    rules = rules.assign(low=0.15, high=0.35)
    rows = table1.drawn(found, scored, rules)
    assert rows["task"].unique().tolist() == ["agreement", "copying"]
    (best,) = rows[rows["model"] == table1.NO_MODEL].to_dict("records")
    assert best["accuracy"] == 0.3
    assert np.isnan([best["low"], best["high"]]).all(), "it is picked on the items that it is judged on"
    assert "largest of 2 rules" in table1.rules_note(rules, rows)
    few = measured(n=40, few=67)
    table = table1.table(few.scores(), few.chance())
    assert table1.drawn(few, table, rules).empty, "no benchmark has enough items"
    asked = replace(few, limits={"agreement": 40, "copying": 60, "mmlu_dev": None})
    assert set(table1.drawn(asked, table, rules)["task"]) == {"agreement"}, "as many as were asked for"
    poor = measured(n=200, few=200)
    poor = replace(poor, tasks=[poor.tasks[2]])
    table = table1.table(poor.scores(), poor.chance())
    assert set(table1.drawn(poor, table, rules)["task"]) == {"MMLU, letters"}, "the whole model can do none"
    assert len(table1.reported_scores()) == 20


def test_the_paper_profile_runs_the_papers_benchmarks_and_lm_evals():
    budget = profiles.get("paper").budget(table1.Budget)
    budgets = {b.name: b.num_fewshot for b in (*budget.tasks, *budget.generative_tasks)}
    for benchmark in paper_benchmarks.PAPER_BENCHMARKS:
        assert budgets[benchmark.task] == benchmark.num_fewshot
        assert benchmark.default is None or benchmark.default in budgets
    assert set(budgets) == {n for b in paper_benchmarks.PAPER_BENCHMARKS for n in (b.task, b.default) if n}


def test_what_goes_first_is_said_where_fewer_blocks_were_removed_too(found):
    kinds = KINDS | {"ShortGPT, 1 of 4": "", "ShortGPT, 2 of 4": "ShortGPT"}
    models = MODELS | {"reverse order, 2 of 4": (0, 1)}
    results = {name: of | {(0, 1): of[(0, 1, 2)]} for name, of in found.results.items()}
    deeper = table1.Measured(
        models, kinds | {"reverse order, 2 of 4": "reverse order"}, found.weights, 2, found.tasks[:2], results, {}
    )
    claim = table1.claim(deeper, 200, 0).set_index("statement")
    row = claim.loc["with the fewest blocks removed, less is left of copying than of agreement"]
    assert row["measured"] == pytest.approx(0.5) and row["verdict"] == "supported"
