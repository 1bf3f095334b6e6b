"""MMLU's development questions: deterministic data, known defects, one question in several forms."""

import collections
import re

import pytest
from transformers import AutoTokenizer

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.data import benchmark_items, own_tasks
from layer_redundancy.models import smollm2

EMBEDDED = ["mmlu_dev", "mmlu_dev_continuation", "mmlu_dev_fewshot"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


def test_both_forms_of_mmlu_dev_ask_the_same_questions(tokenizer):
    letters, texts = (benchmark_items.load(TaskBudget(name, limit=5), tokenizer) for name in EMBEDDED[:2])
    assert [item.doc for item in letters.items] == [item.doc for item in texts.items]
    first, item = letters.requests[0], letters.items[0].doc
    prompt = (
        item["question"] + "".join(f"\n{x}. {c}" for x, c in zip("ABCD", item["choices"], strict=True)) + "\nAnswer:"
    )
    assert tokenizer.decode(first.context_ids) == prompt
    assert [tokenizer.decode(r.continuation_ids) for r in letters.requests[:4]] == [" A", " B", " C", " D"]
    assert [tokenizer.decode(r.continuation_ids) for r in texts.requests[:4]] == [f" {c}" for c in item["choices"]]


def test_mmlu_dev_holds_the_usable_questions():
    rows = own_tasks.mmlu_dev()["test"].to_list()
    assert len(rows) == 280 and len({row["subject"] for row in rows}) == 57
    assert collections.Counter("ABCD"[row["answer"]] for row in rows) == {"A": 65, "B": 70, "C": 68, "D": 77}
    assert len({(row["question"], *row["choices"]) for row in rows}) == 280
    for row in rows:
        assert row["question"] and len(row["choices"]) == 4 and all(row["choices"])
        assert not re.search(r"\([A-E]\) ", " ".join(row["choices"]))
        assert "step by step" not in row["question"]


def test_each_known_defect_of_mmlu_dev_is_handled():
    rows = {(row["subject"], row["index"]): row for row in own_tasks.mmlu_dev()["test"].to_list()}
    assert len(own_tasks.MMLU_DEFECTS) == 5
    for place, (kept, reason) in own_tasks.MMLU_DEFECTS.items():
        assert (place in rows) == kept and reason
    assert rows["abstract_algebra", 1]["question"] == "Find the characteristic of the ring 2Z."
    assert rows["high_school_computer_science", 4]["answer"] == 1
    biology = rows["high_school_biology", 0]
    assert biology["choices"][0] == biology["choices"][2] and biology["answer"] == 3
    repeated = rows["college_physics", 0]
    assert [row["index"] for row in rows.values() if row["question"] == repeated["question"]] == [0]


def test_few_shot_questions_share_five_worked_examples(tokenizer):
    items = benchmark_items.load(TaskBudget("mmlu_dev_fewshot", limit=50), tokenizer)
    assert items.num_items == 50 and items.num_fewshot == 5
    prompts = {item.task.fewshot_context(item.doc, num_fewshot=5) for item in items.items}
    (shared,) = {prompt.rsplit("\n\n", 1)[0] for prompt in prompts}
    assert len(prompts) == 50 and shared.count("Answer: ") == 5 and "axles does a standard automobile" in shared
    assert all(item.doc["subject"] != "miscellaneous" for item in items.items)
