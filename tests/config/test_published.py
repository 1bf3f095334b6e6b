"""What others measured block by block is as their sources print it, complete, and read as it is meant."""

import numpy as np
import pytest

from layer_redundancy.config import paper_tables, published

TABLES = [name for name in paper_tables.TABLES if name.startswith("published_")]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_says_whose_it_is(name):
    rows = paper_tables.table(name)
    assert rows[["source", "commit", "path", "licence", "setting"]].notna().all(axis=None)
    assert rows["commit"].str.fullmatch("[0-9a-f]{40}").all() and rows["source"].str.count("/").eq(1).all()


REMOVALS = {  # (model, block) -> value, typed from the sources
    ("Llama-2-7B", 0): 19177.8, ("Llama-2-7B", 31): 45.7, ("LLaMA-7B", 2): 718.7, ("Vicuna-13B-v1.3", 39): 35.3,
    ("Gemma-7B", 0): np.inf, ("Qwen2.5-7B", 27): 1.280441, ("Mistral-7B-v0.3", 12): 0.015709,
    ("Llama-3-8B-Instruct", 12): 0.191504,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REMOVALS.items(), ids=str)
def test_removals_are_the_printed_ones(key, value):
    assert published.removals().set_index(["model", "block"])["value"][key] == pytest.approx(value, rel=3e-3)


def test_every_model_has_all_of_its_blocks_once():
    rows = published.removals()
    sizes = rows.groupby("model")["num_layers"].first().to_dict()
    assert len(sizes) == 11 and sizes["Gemma-2B"] == 18 and sizes["Vicuna-13B-v1.3"] == 40
    for _, part in rows.groupby("model"):
        assert sorted(part["block"]) == list(range(len(part))) and part["family"].nunique() == 1
    assert rows["family"].nunique() == 6


def test_losses_are_in_nats_whatever_the_source_gives():
    rows = published.removals().set_index(["model", "block"])
    assert rows["nats"]["Llama-2-7B", 0] == pytest.approx(np.log(rows["value"]["Llama-2-7B", 0]))
    assert rows["nats"]["Qwen2.5-7B", 0] == rows["value"]["Qwen2.5-7B", 0]
    assert rows["nats"]["Llama-3-8B-Instruct", 12] == pytest.approx(np.log(19.52301597595215 + 0.191504))
    assert np.isinf(rows["nats"]["Gemma-7B", 0]) and rows["nats"].notna().all()


def test_influence_marks_sums_angles_and_the_last_block():
    rows = published.influence()
    assert set(rows["model"]) == {"Llama-2-7B", "phi-2", *(f"Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7"))}
    after = rows["states"] == "after the final norm"
    assert (rows.loc[after, "block"] == rows.loc[after, "num_layers"] - 1).all() and after.sum() == 6
    assert rows.loc[rows["over_tokens"] == "sum", "source"].unique().tolist() == ["sramshetty/ShortGPT"]
    angles = rows["measure"] == "angle"
    assert rows.loc[angles, "block"].min() == 1 and rows.loc[~angles].groupby("source")["block"].min().eq(0).all()
    assert rows.loc[angles, "score"].max() == pytest.approx(1 - np.cos(np.pi * rows.loc[angles, "value"].max()))


def test_labels_of_windows_count_from_0():
    """A window that goes on beyond the last block has the accuracy of the one that ends there."""
    rows = published.windows().set_index(["model", "first_printed", "last_printed"])["mmlu"]
    for model in ("Llama-2-7B", "Llama-3-8B", "Mistral-7B-v0.1"):
        assert rows[model, 30, 32] == rows[model, 30, 31]


def test_windows_lie_within_the_model():
    rows = published.windows()
    assert len(rows) == 87 and rows["last"].max() == 31 and rows["mmlu"].between(0.2, 0.7).all()
    assert (rows["last"] - rows["first"] + 1 == rows["length"])[rows["whole"]].all()
    assert (~rows["whole"]).sum() == 9 and (rows.loc[~rows["whole"], "last_printed"] == 32).all()
    one = rows.query("model == 'Llama-2-7B' and first == 10").iloc[0]
    assert one["depth"] == pytest.approx(100 * 12.5 / 32)


def test_orders_are_of_four_papers_and_more():
    rows = published.orders()
    assert rows.groupby("model")["paper"].nunique().to_dict() == {"Llama-2-7B": 5, "Llama-3-8B": 4}
    own = rows[rows["paper"].str.startswith("Men")].iloc[0]["removed"]
    printed = paper_tables.table("table4").set_index("model")["removed_layers"]["Llama-2-7B"]
    assert own == tuple((f"a{block}", f"m{block}") for block in printed)
    for steps in rows["removed"]:
        parts = [part for step in steps for part in step]
        assert len(parts) == len(set(parts)) and all(0 <= int(part[1:]) < 32 for part in parts)
    by_size = {row.method: sum(map(len, row.removed)) for row in rows.query("kind == 'set'").itertuples()}
    assert set(by_size.values()) == {16}
