"""The reported numbers are what the paper prints, and comparing loses no row."""

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.config import paper_tables
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError


def test_tables_hold_the_printed_numbers():
    first = paper_tables.table("table1")
    assert len(first) == 20
    assert (first.groupby("model").size() == 5).all()
    assert first.loc[:, "CMNLI":"CMMLU"].apply(lambda column: column.between(0, 100)).all(axis=None)
    row = first.set_index(["model", "method"]).loc[("Llama-2-7B", "ShortGPT")]
    assert (row["HellaSwag"], row["XSum"], row["MMLU"], row["CMMLU"]) == (53.02, 0.67, 43.96, 32.25)
    second = paper_tables.table("table2").set_index("layers")
    assert second.loc[23, ["perplexity", "mmlu"]].tolist() == [42.6951, 36.69]
    assert paper_tables.table("table3")["metric"].tolist() == [
        "sequential",
        "reverse_order",
        "relative_magnitude",
        "block_influence",
    ]


def test_table4_orders_are_distinct_blocks_of_the_model():
    orders = paper_tables.table("table4").set_index("model")
    assert orders.loc["Llama-2-7B", "removed_layers"] == (27, 26, 25, 28, 24, 29, 23, 21, 22)
    assert [len(order) for order in orders["removed_layers"]] == [9, 10, 9, 10]
    for layers, order in zip(orders["num_layers"], orders["removed_layers"], strict=True):
        assert len(set(order)) == len(order)
        assert set(order) <= set(range(layers))


def test_one_spelling_joins_the_tables():
    assert set(paper_tables.table("table1")["model"]) == set(paper_tables.table("table4")["model"])


def test_mmlu_by_share_of_blocks():
    rows = paper_tables.mmlu_by_ratio().set_index(["model", "removed"])
    assert len(rows) == 9 and rows["share"].max() == 55
    assert rows.loc[("Llama-2-13B", 22), "accuracy"] == pytest.approx(0.4719)
    assert rows.loc[("Llama-2-13B", 10), "accuracy"] == pytest.approx(0.5242)  # table 1's, not the introduction's 52.22
    assert rows.loc[("Llama-2-7B", 9), "share"] == pytest.approx(28.125)
    assert (rows.xs(0, level="removed")["share"] == 0).all()


@pytest.mark.parametrize("name", ["table9", "../table1", ""])
def test_an_unknown_table_names_the_known_ones(name):
    with pytest.raises(StudyError, match="table1, table2, table3, table4") as error:
        paper_tables.table(name)
    assert "\n" not in str(error.value)


def test_a_missing_table_file_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_tables, "PAPER", tmp_path)
    with pytest.raises(StudyError, match="cannot read the reported numbers") as error:
        paper_tables.table("table1")
    assert "\n" not in str(error.value)


def test_where_the_papers_own_arithmetic_does_not_add_up():
    rows = paper_tables.table1_averages().set_index(["model", "method"])
    # (computed average, printed average, computed percentage, printed percentage)
    for key, expected in {
        ("Llama-2-7B", "Dense"): (47.79, 44.52, 100.0, 100.0),
        ("Llama-2-7B", "ShortGPT"): (41.24, 42.60, 86.3, 95.69),
        ("Llama-2-13B", "Dense"): (55.14, 51.91, 100.0, 100.0),
        ("Llama-2-13B", "ShortGPT"): (46.16, 48.10, 83.7, 92.95),
        ("Llama-2-13B", "LaCo"): (48.47, 48.30, 87.9, 93.05),
        ("Baichuan-2-7B", "SliceGPT"): (26.23, 26.23, 48.9, 56.38),
        ("Baichuan-2-13B", "SliceGPT"): (25.23, 25.03, 40.5, 40.17),
    }.items():
        row = rows.loc[key]
        found = row[["average", "average_reported", "percentage", "percentage_reported"]].tolist()
        assert found == pytest.approx(expected, abs=0.06), key
    printed = rows[["average_reported", "percentage_reported"]]
    assert printed.loc[("Llama-2-7B", "LLM-Pruner")].equals(printed.loc[("Llama-2-7B", "SliceGPT")])
    others = rows.drop(index=["Llama-2-7B", "Llama-2-13B"], level=0).drop(index="SliceGPT", level=1)
    assert len(others) == 8
    assert others[["average_difference", "percentage_difference"]].abs().max(axis=None) < 0.03


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7B"),
        ("NousResearch/Llama-2-7b-hf", "Llama-2-7B"),
        ("NousResearch/Llama-2-13b-hf", "Llama-2-13B"),
        ("baichuan-inc/Baichuan2-7B-Base", "Baichuan-2-7B"),
        ("baichuan-inc/Baichuan2-13B-Base", "Baichuan-2-13B"),
        ("TheBloke/Llama-2-7B-GPTQ", "Llama-2-7B-GPTQ"),
        ("meta-llama/Llama-2-7b-chat-hf", None),
        ("baichuan-inc/Baichuan2-7B-Chat", None),
        ("smollm2-135m-instruct", None),
        ("", None),
    ],
)
def test_known_models_are_base_models_of_the_paper(model_id, name):
    assert paper_tables.known_model(model_id) == name
    if name:
        assert any(name in set(paper_tables.table(t)["model"]) for t in ("table1", "table2"))


def test_compare_keeps_rows_of_either_side():
    measured = pd.DataFrame({"model": ["b", "a"], "k": [1, 1], "mmlu": [41.0, 30.0], "ignored": ["x", "y"]})
    reported = pd.DataFrame({"model": ["a", "c"], "k": [1, 1], "mmlu": [28.5, 50]})
    found = paper_tables.compare(measured, reported, on=["model", "k"], value="mmlu")
    expected = pd.DataFrame(
        {
            "model": ["b", "a", "c"],
            "k": [1, 1, 1],
            "paper": [np.nan, 28.5, 50.0],
            "measured": [41.0, 30.0, np.nan],
            "difference": [np.nan, 1.5, np.nan],
        }
    )
    pd.testing.assert_frame_equal(found, expected)


def test_the_papers_share_is_nine_of_its_thirty_two_blocks():
    assert paper_tables.share_removed() == pytest.approx(9 / 32)


def test_compare_several_values_and_empty_sides():
    reported = paper_tables.table("table2")
    measured = pd.DataFrame({"layers": [23], "perplexity": [40.0], "mmlu": [36.0]})
    found = paper_tables.compare(measured, reported, on=["layers"], value=["perplexity", "mmlu"])
    assert found.columns.tolist() == ["layers", "quantity", "paper", "measured", "difference"]
    assert len(found) == 4
    row = found.set_index(["layers", "quantity"]).loc[(23, "perplexity")]
    assert row["difference"] == pytest.approx(40.0 - 42.6951)
    nothing = paper_tables.compare(measured.iloc[:0], reported, on=["layers"], value="mmlu")
    assert nothing["paper"].tolist() == [37.99, 36.69]
    assert nothing["measured"].isna().all()
    assert len(paper_tables.compare(measured, reported.iloc[:0], on=["layers"], value="mmlu")) == 1


def test_compare_refuses_what_has_no_single_answer():
    good = pd.DataFrame({"model": ["a"], "mmlu": [1.0]})
    with pytest.raises(StudyError, match="the measured numbers hold model=a more than once"):
        paper_tables.compare(pd.concat([good, good]), good, on=["model"], value="mmlu")
    with pytest.raises(StudyError, match="the paper numbers hold model=a more than once"):
        paper_tables.compare(good, pd.concat([good, good]), on=["model"], value="mmlu")
    with pytest.raises(StudyError, match=r"lack the column\(s\) mmlu"):
        paper_tables.compare(good.drop(columns="mmlu"), good, on=["model"], value="mmlu")
    with pytest.raises(StudyError, match="not all numbers"):
        paper_tables.compare(good.assign(mmlu="n/a"), good, on=["model"], value="mmlu")
    with pytest.raises(StudyError, match="cannot compare on model"):
        paper_tables.compare(good.assign(model=1), good, on=["model"], value="mmlu")


def test_removed_blocks_are_of_the_very_model():
    assert paper_tables.removed_blocks("meta-llama/Llama-2-7b-hf", 32) == (27, 26, 25, 28, 24, 29, 23, 21, 22)
    assert len(paper_tables.removed_blocks("baichuan-inc/Baichuan2-13B-Base", 40)) == 10
    assert paper_tables.removed_blocks("meta-llama/Llama-2-7b-hf", 4) == ()  # the rehearsal's, which bears the name
    assert paper_tables.removed_blocks("org/other", 32) == ()


# ---------------------------------------------------------------------------------------- what the papers say in words


def test_claims_have_their_place_and_what_this_study_says_to_them():
    claims = paper_tables.table("claims")
    assert claims["claim"].is_unique and claims[["paper", "place", "says"]].notna().all(axis=None)
    assert set(claims["paper"]) == {"ShortGPT", "Gromov et al.", "Lu et al.", "Yuan et al."}
    assert (claims["value"].isna() == claims["unit"].isna()).all()
    assert (claims["why"].notna() | claims["against"].isna()).all(), "what contradicts a claim is said"
    notebooks = {path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")}
    assert set(claims["notebook"].dropna()) <= notebooks
    assert claims["notebook"].isna().sum() == 1  # a number of weights is not measured


def said(claim):
    return paper_tables.table("claims").set_index("claim").loc[claim]


def test_the_ten_blocks_that_go_are_not_the_last_ten():
    assert said("last_10")["against"] == "table 4"
    removed = paper_tables.removed_blocks("meta-llama/Llama-2-13b-hf", 40)
    assert sorted(removed) == list(range(26, 36)) != list(range(30, 40))


def test_the_score_without_ten_blocks_is_printed_twice_and_differs():
    text = paper_tables.table("text").set_index("removed")["mmlu"]
    table1 = paper_tables.table("table1").set_index(["model", "method"])["MMLU"]
    assert text[10] == said("13B_without_10")["value"] != table1["Llama-2-13B", "ShortGPT"] == 52.42
    assert round(100 * text[10] / text[0]) == 95  # the retention follows from the numbers beside it


def test_the_large_model_without_22_blocks_beats_the_small_one_but_is_larger_than_printed():
    text = paper_tables.table("text").set_index("removed")["mmlu"]
    small = paper_tables.table("table1").set_index(["model", "method"])["MMLU"]["Llama-2-7B", "Dense"]
    assert text[22] == said("13B_without_22")["value"] > small == 45.39
    left, multiplied = paper_tables.weights_left("Llama-2-13B", 22)
    outside = paper_tables.weights_left("Llama-2-13B", 40)[0]
    assert (round(left / 1e9, 2), round((left - outside) / 1e9, 2)) == (6.04, 5.71)
    assert said("5.6_billion")["value"] < (left - outside) / 1e9 - 0.1 and multiplied < left
    assert paper_tables.weights_left("Llama-2-7B", 0)[0] == 6_738_415_616  # as its own files have it
    with pytest.raises(StudyError, match="no model 'GPT-2'"):
        paper_tables.weights_left("GPT-2", 1)
    with pytest.raises(StudyError, match="choose 0 to 40"):
        paper_tables.weights_left("Llama-2-13B", 41)


def test_92_percent_is_the_mean_of_printed_percentages_and_not_of_the_cells():
    rows = paper_tables.table1_averages().query("method == 'ShortGPT'")
    assert round(rows["percentage_reported"].mean()) == said("92_percent")["value"] == 92
    assert rows["percentage"].mean() == pytest.approx(87.2, abs=0.05)
    assert rows["percentage"].max() < 92
    assert round(rows["percentage_reported"].max(), -1) > said("up_to_95")["value"] > rows["percentage"].max()


def test_a_quarter_of_the_parameters_is_less_of_the_largest_model():
    rows = paper_tables.weights_removed().set_index("model")
    expected = {"Llama-2-7B": 27.0, "Llama-2-13B": 24.4, "Baichuan-2-7B": 24.3, "Baichuan-2-13B": 22.7}
    assert rows["weights"].round(1).to_dict() == expected
    assert (rows["printed"] - rows["weights"]).abs().round(1).to_dict() == {
        "Llama-2-7B": 0.1, "Llama-2-13B": 0.2, "Baichuan-2-7B": 0.1, "Baichuan-2-13B": 2.0,
    }  # fmt: skip
    assert (rows["multiplications"] > rows["weights"]).all() and rows["multiplications"].between(23, 28).all()


def test_the_best_method_is_not_best_everywhere_as_printed():
    printed = paper_tables.table("table1").set_index(["model", "method"])["percentage_reported"]
    assert said("best_method")["against"] == "table 1"
    assert printed["Llama-2-13B", "LaCo"] == 93.05 > printed["Llama-2-13B", "ShortGPT"] == 92.95


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("depth_over_width_3.2", "comparable_width", ("more redundancy in-depth than in width", "comparable")),
        ("depth_over_width_7", "comparable_width", ("depth-based rather than width-based", "comparable")),
        ("magnitude_2.2", "magnitude_4.4", ("a larger magnitude implies more", "measuring importance by hidden")),
    ],
)
def test_sections_that_contradict_each_other_say_so_of_each_other(first, second, words):
    one, other = said(first), said(second)
    assert words[0] in one["says"] and words[1] in other["says"]
    assert one["against"] == other["place"] and one["place"].removeprefix("section ") in other["against"]


def test_sequential_removal_begins_where_the_text_says_importance_does():
    removed_first = paper_tables.table("table3").set_index("metric")["removed_first"]
    assert said("sequential")["against"] == "table 3" and removed_first["sequential"] == "block 0"
    assert "shallower layers being more important" in said("sequential")["says"]


def test_the_conclusion_names_another_metric_than_the_paper_defines():
    claims = paper_tables.table("claims")
    assert said("attention_entropy")["against"] == "section 2.2"
    assert claims["says"].str.contains("entropy").sum() == 1


def test_few_blocks_of_classifiers_are_fewer_than_the_summary_says_and_weigh_what_it_saves():
    quoted = paper_tables.table("why_lift_accuracy").set_index("kept")
    assert 100 * 2 / 48 < said("quarter_to_half")["value"] == 25 and quoted["accuracy"][2] > quoted["accuracy"][48]
    saved = []
    for _, part in paper_tables.table("why_lift_size").groupby("model"):
        whole, one = part["parameters_millions"]
        block = (whole - one) / (part["blocks"].iloc[0] - 1)
        saved += [(whole - one - (share * part["blocks"].iloc[0] - 1) * block) / whole for share in (0.25, 0.5)]
    assert min(saved) == pytest.approx(0.46, abs=0.01) and max(saved) == pytest.approx(0.72, abs=0.01)
    assert 0.4 == said("less_memory")["value"] / 100 < min(saved)
