"""What others measured of pruning methods is as its sources print it, and what contradicts what is found."""

import itertools

import pytest

from layer_redundancy.config import paper_tables
from layer_redundancy.methods import registry

LINEAR_PATCH, BLOCK_PRUNER, TRSP = "chenxinrui-tsinghua/LinearPatch", "MrGGLS/BlockPruner", "fmk345/TRSP"
WOLFSKONIGS, SLEB, REPLACE_ME = "Wolfskonigs/CAP6614_ShortGPT", "jiwonsong-dev/SLEB", "mts-ai/ReplaceMe"
COLLECTION = "Zephyr271828/llm-pruning-collection-fork"
WIKITEXT, C4 = "wikitext2_perplexity", "c4_perplexity"

# (method, metric, who measured, removed) -> values and their dense ones, typed from the sources.
PRINTED = {
    ("shortgpt", WIKITEXT, BLOCK_PRUNER, "21.02 %"): [(18.45, 5.47)],
    ("shortgpt", WIKITEXT, LINEAR_PATCH, "7 of 32"): [(18.45, 5.47)],
    ("shortgpt", WIKITEXT, TRSP, "25 %"): [(8.89, 5.47)],
    ("shortgpt", WIKITEXT, WOLFSKONIGS, "8 of 32"): [(25.268679, 5.338167), (37.56, 7.53)],
    ("shortgpt", C4, LINEAR_PATCH, "7 of 32"): [(20.99, 6.97)],
    ("shortgpt", "zero_shot", BLOCK_PRUNER, "21.02 %"): [(58.18, 68.96)],
    ("shortgpt", "zero_shot", LINEAR_PATCH, "21.02 %"): [(60.59, 69.98)],
    ("shortgpt", "zero_shot", TRSP, "25 %"): [(57.10, 69.00)],
    ("sleb", WIKITEXT, LINEAR_PATCH, "7 of 32"): [(9.14, 5.47)],
    ("sleb", WIKITEXT, COLLECTION, "7 of 32"): [(9.14, None)],
    ("sleb", WIKITEXT, COLLECTION, "8 of 32"): [(10.39, None)],
    ("sleb", WIKITEXT, TRSP, "25 %"): [(9.63, 5.47)],
    ("sleb", C4, SLEB, "20 %"): [(12.32, 7.26)],
    ("sleb", C4, COLLECTION, "7 of 32"): [(12.32, None)],
    ("sleb", C4, LINEAR_PATCH, "7 of 32"): [(11.21, 6.97)],
    ("llm_pruner", C4, SLEB, "20 %"): [(12.25, 7.26)],
    ("llm_pruner", "mmlu", REPLACE_ME, "25 %"): [(25.3, 49.2)],
    ("slice_gpt", WIKITEXT, COLLECTION, "0.25"): [(7.56, 5.47)],
    ("slice_gpt", WIKITEXT, "SliceGPT paper", "0.25"): [(7.24, 5.47)],
    ("slice_gpt", WIKITEXT, BLOCK_PRUNER, "21.45 %"): [(30.74, 5.47)],
    ("slice_gpt", C4, SLEB, "25 %"): [(32.74, 7.26)],
    ("slice_gpt", "mmlu", REPLACE_ME, "25 %"): [(28.8, 49.2)],
    ("laco", WIKITEXT, BLOCK_PRUNER, "21.02 %"): [(50.39, 5.47)],
    ("laco", "mmlu", REPLACE_ME, "25 %"): [(26.5, 49.2)],
    ("replace_me", "mmlu", REPLACE_ME, "25 %"): [(45.1, 49.2)],
    ("replace_me_cosine", "mmlu", REPLACE_ME, "25 %"): [(45.3, 49.2)],
    ("shortgpt_linear_patch", WIKITEXT, LINEAR_PATCH, "7 of 32"): [(13.22, 5.47)],
    ("shortgpt_linear_patch", C4, LINEAR_PATCH, "7 of 32"): [(14.58, 6.97)],
    ("sleb_linear_patch", WIKITEXT, LINEAR_PATCH, "7 of 32"): [(8.77, 5.47)],
    ("sleb_linear_patch", C4, LINEAR_PATCH, "7 of 32"): [(10.66, 6.97)],
}


def rivals(model="Llama-2-7B"):
    rows = paper_tables.table("rivals").query("model == @model")
    return rows.assign(by=rows["copied_from"].fillna(rows["source"]))


@pytest.mark.parametrize("key", PRINTED, ids=" ".join)
def test_numbers_are_the_printed_ones(key):
    rows = rivals().set_index(["method", "metric", "by", "removed"]).sort_index().loc[[key], ["value", "dense"]]
    found = rows.astype(object).where(rows.notna(), None)
    assert sorted(found.itertuples(index=False, name=None)) == PRINTED[key]


def test_rows_are_distinct_and_of_known_kinds():
    rows = rivals()
    assert len(rows) == 68
    assert not rows.duplicated(["method", "metric", "share", "by", "setting"]).any()
    assert all(rows[column].dtype.kind == "f" for column in ("share", "value", "dense"))
    assert set(rows["metric"]) == {WIKITEXT, C4, "mmlu", "zero_shot"}
    assert set(rows["of"]) == {"blocks", "weights", "width", "not stated"}
    assert set(rows["trained"]) == {"yes", "no", "not stated"}
    pruned = rows["method"] != "dense"
    assert rows.loc[pruned, "share"].between(20, 30).all() and (rows.loc[~pruned, "share"] == 0).all()
    accuracies = rows["metric"].isin(["mmlu", "zero_shot"])
    assert rows.loc[accuracies, "value"].between(20, 70).all() and rows.loc[~accuracies, "value"].min() > 5
    paper = rows["source"].str.startswith("arXiv:")
    assert rows.loc[paper, "commit"].isna().all() and rows.loc[~paper, "commit"].str.fullmatch("[0-9a-f]{40}").all()
    assert rows[["printed", "removed", "place", "setting"]].notna().all(axis=None)


def test_methods_bear_this_studys_names():
    others = {"dense", "replace_me_cosine", "shortgpt_linear_patch", "sleb_linear_patch"}
    names = set(rivals()["method"])
    assert others < names and names - others < set(registry.METHODS)


def test_shares_follow_from_what_was_removed():
    for row in rivals().query("method != 'dense'").itertuples():
        number = row.removed.removesuffix(" %")
        if row.of == "blocks":
            removed, blocks = map(int, number.split(" of "))
            expected = 100 * removed / blocks
        else:
            expected = float(number) * (1 if row.removed.endswith("%") else 100)
        assert row.share == pytest.approx(expected), row


def test_a_share_of_21_percent_is_seven_blocks():
    whole, left = (paper_tables.weights_left("Llama-2-7B", count)[0] for count in (0, 7))
    share = round(100 * (1 - left / whole), 2)
    rows = rivals()
    found = rows[(rows["of"] == "weights") & (rows["share"] == share)]
    assert set(found["method"]) == {"shortgpt", "sleb", "laco"} and set(found["source"]) == {BLOCK_PRUNER, LINEAR_PATCH}


def test_a_dense_value_is_the_same_sources():
    rows = rivals()
    dense = rows[rows["method"] == "dense"]
    assert (dense["value"] == dense["dense"]).all()
    pairs = set(dense[["source", "metric", "value"]].itertuples(index=False, name=None))
    given = rows.dropna(subset="dense")[["source", "metric", "dense"]]
    assert set(given.itertuples(index=False, name=None)) <= pairs
    assert rows.loc[rows["dense"].isna(), "place"].unique().tolist() == ["pruning/SLEB/README.md"]


def test_the_papers_own_rows_are_those_of_its_table_1():
    table1 = paper_tables.table("table1").query("model == 'Llama-2-7B'").set_index("method")
    own = rivals().query("source == 'arXiv:2403.03853v1'").set_index("printed")
    assert set(own.index) == set(table1.index) and (own["metric"] == "mmlu").all()
    assert own["value"].to_dict() == table1["MMLU"].to_dict()
    assert own["share"].to_dict() == table1["ratio_percent"].to_dict()
    assert own["copied_from"].dropna().to_dict() == dict.fromkeys(("LLM-Pruner", "SliceGPT", "LaCo"), "LaCo paper")


# ------------------------------------------------------------------------------------------ side by side


def side_by_side(**arguments):
    return paper_tables.sources_of_methods(**arguments).set_index(["method", "metric"])


def test_the_greatest_contradictions_come_first():
    found = side_by_side()
    assert found.index[:2].tolist() == [("slice_gpt", WIKITEXT), ("shortgpt", WIKITEXT)]
    assert found["ratio"].dropna().is_monotonic_decreasing and found.index.is_unique
    assert set(found.index) == set(rivals().set_index(["method", "metric"]).index)
    assert found["ratio"].isna().eq(found["sources"] == 1).all()


def test_shortgpt_is_measured_by_four_and_one_of_them_cannot_stand_beside_the_others():
    row = side_by_side().loc[("shortgpt", WIKITEXT)]
    assert (row["sources"], row["least"], row["most"]) == (4, 8.89, 37.56)
    assert row["ratio"] == pytest.approx((37.56 / 7.53) / (8.89 / 5.47))
    assert row["impossible"] == "8.89 at 25 % is below 18.45 at 22 %"
    assert len(row["values"].split(" | ")) == 5
    for words in ("18.45 (MrGGLS/BlockPruner, 21.02 % of weights: ", f"18.45 ({LINEAR_PATCH}, 7 of 32: "):
        assert words in row["values"]
    assert f"8.89 ({TRSP}, 25 %: text not named" in row["values"]


def test_it_is_the_only_one_by_every_pair_of_numbers():
    pairs = set()
    for one, other in itertools.permutations(rivals().itertuples(), 2):
        same = (one.method, one.metric, one.of == "width") == (other.method, other.metric, other.of == "width")
        if same and one.metric in (WIKITEXT, C4) and one.share > other.share + 2 and one.value < other.value:
            pairs.add((one.method, one.by, one.value, other.by, other.value))
    trsp = ("shortgpt", TRSP, 8.89)
    assert pairs == {(*trsp, BLOCK_PRUNER, 18.45), (*trsp, LINEAR_PATCH, 18.45)}
    assert side_by_side()["impossible"].ne("").sum() == 1


def test_contradictions_of_the_other_methods():
    found = side_by_side()
    slices = found.loc[("slice_gpt", WIKITEXT)]
    assert (slices["sources"], slices["least"], slices["most"]) == (3, 6.64, 30.74)
    assert slices["ratio"] == pytest.approx(30.74 / 6.64)
    c4 = found.loc[("sleb", C4)]
    assert (c4["sources"], c4["least"], c4["most"]) == (3, 11.21, 12.32)
    assert c4["ratio"] == pytest.approx((12.32 / 7.26) / (11.21 / 6.97))
    assert found.loc[("sleb", WIKITEXT), ["least", "most"]].tolist() == [9.14, 9.63]
    assert found.loc[("shortgpt", "zero_shot"), ["least", "most"]].tolist() == [57.10, 60.59]
    assert found.loc[("sleb", "zero_shot"), ["least", "most"]].tolist() == [54.79, 59.26]
    laco = rivals().query("method == 'laco' and metric == 'mmlu'").set_index("source")
    assert abs(laco["value"].diff().iloc[-1]) == pytest.approx(0.05)  # one number, rounded
    assert laco["trained"].to_dict() == {REPLACE_ME: "yes", "arXiv:2403.03853v1": "not stated"}


def test_the_dense_model_says_what_settings_alone_do():
    dense = side_by_side().loc["dense"]
    assert dense.loc[WIKITEXT, ["least", "most"]].tolist() == pytest.approx([5.338167, 13.287389])
    assert dense.loc["mmlu", ["least", "most"]].tolist() == [45.39, 49.2]
    assert (dense["ratio"] == 1).all()


@pytest.mark.parametrize(("share", "values"), [(10, {6.86, 6.64}), (25, {7.56, 7.24}), (33, {8.63, 8.12})])
def test_another_share_takes_the_numbers_nearest_to_it(share, values):
    words = side_by_side(share=share)["values"][("slice_gpt", WIKITEXT)].split(" | ")
    assert {float(part.split(" ")[0]) for part in words} == {*values, 30.74}


# ------------------------------------------------------------------------------------------ other models

# (model, method, metric, who measured) -> values, typed from the sources.
OTHERS = {
    ("Llama-2-13B", "shortgpt", WIKITEXT, BLOCK_PRUNER): [20.06],
    ("Llama-2-13B", "shortgpt", WIKITEXT, TRSP): [6.79],
    ("Llama-2-13B", "sleb", C4, SLEB): [9.42],
    ("Llama-2-13B", "slice_gpt", C4, SLEB): [22.90, 29.86, 38.43],
    ("Llama-3-8B", "shortgpt", WIKITEXT, LINEAR_PATCH): [57.76],
    ("Llama-3-8B", "shortgpt", WIKITEXT, "nyunAI/PruneGPT"): [83.23],
    ("Llama-3-8B", "sleb", WIKITEXT, LINEAR_PATCH): [13.12],
    ("Llama-3-8B", "dense", WIKITEXT, TRSP): [5.76],
}


@pytest.mark.parametrize("key", OTHERS, ids=" ".join)
def test_numbers_of_other_models_are_the_printed_ones(key):
    rows = rivals(key[0]).set_index(["method", "metric", "by"]).sort_index()
    assert sorted(rows.loc[[key[1:]], "value"]) == OTHERS[key]


def test_rows_of_other_models_are_complete():
    rows = paper_tables.table("rivals")
    assert set(rows["model"]) == {"Llama-2-7B", "Llama-2-13B", "Llama-3-8B"}
    assert not rows.duplicated(["model", "method", "metric", "share", "source", "copied_from", "setting"]).any()
    assert rows["commit"].dropna().str.fullmatch("[0-9a-f]{40}").all()
    others = rows[rows["model"] != "Llama-2-7B"]
    assert others["share"].isin([0, 20, 21.52, 21.875, 24.37, 25, 30]).all()


def test_each_value_that_has_others_beside_it_says_what_sets_it_apart():
    rows = paper_tables.table("rivals")
    of_three = rows["method"].isin(["dense", "shortgpt", "sleb", "slice_gpt"]) & rows["metric"].isin([WIKITEXT, C4])
    assert rows.loc[~of_three, "apart"].isna().all()
    kinds = rows["apart"].dropna().str.partition(":")[0]
    assert set(kinds) == {"the others' value", "explained", "unexplained"}
    for key, part in rows[of_three].groupby(["model", "method", "metric"]):
        if len(part) > 1:
            assert part["apart"].notna().all() and (part["apart"] == "the others' value").any(), key
        else:
            assert part["apart"].isna().all(), key


def test_a_source_that_cannot_stand_beside_others_is_found_in_every_model():
    for model in ("Llama-2-7B", "Llama-3-8B"):
        found = side_by_side(model=model).loc[("shortgpt", WIKITEXT)]
        assert found["impossible"] != ""
