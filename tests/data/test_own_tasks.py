"""The study's own benchmarks: deterministic data, known defects, one question in several forms."""

import collections
import re

import pytest
from transformers import AutoTokenizer

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.data import benchmark_items, corpora, own_tasks
from layer_redundancy.models import smollm2

EMBEDDED = ["mmlu_dev", "mmlu_dev_continuation", "mmlu_dev_fewshot", "passage_continuation"]


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


def test_passages_are_of_the_evaluation_split_and_candidates_of_other_articles():
    rows = own_tasks.passage_continuation()["test"].to_list()
    assert rows == own_tasks.passage_continuation()["test"].to_list()
    evaluation = corpora.articles("wikipedia", "evaluation")
    calibration = "\n".join(corpora.articles("wikipedia", "calibration"))
    assert len(rows) > 500
    for row in rows:
        gold = row["choices"][row["answer"]]
        own = evaluation[row["article"]]
        assert f"{row['context']} {gold}" in own
        assert row["context"] not in calibration
        wrong = [choice for choice in row["choices"] if choice != gold]
        assert len(wrong) == 3
        sources = [{i for i, text in enumerate(evaluation) if choice in text} for choice in wrong]
        assert all(source and row["article"] not in source for source in sources)
        assert len(set.union(*sources)) == 3
        assert all(8 <= len(choice.split()) <= 30 for choice in row["choices"])
        assert len(row["context"].split()) <= 60
    positions = collections.Counter(row["answer"] for row in rows)
    assert max(positions.values()) - min(positions.values()) <= 1


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("It ended. It began again! Did it? Yes.", ["It ended.", "It began again!", "Did it?", "Yes."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("The U.S. Constitution of J. Smith, e.g. This one, by Dr. Who.", None),
        ("In 1.5 years it grew. 20 came.", ["In 1.5 years it grew.", "20 came."]),
    ],
)
def test_sentences(paragraph, expected):
    assert own_tasks.sentences(paragraph) == (expected or [paragraph])


def test_few_shot_questions_share_five_worked_examples(tokenizer):
    items = benchmark_items.load(TaskBudget("mmlu_dev_fewshot", limit=50), tokenizer)
    assert items.num_items == 50 and items.num_fewshot == 5
    prompts = {item.task.fewshot_context(item.doc, num_fewshot=5) for item in items.items}
    (shared,) = {prompt.rsplit("\n\n", 1)[0] for prompt in prompts}
    assert len(prompts) == 50 and shared.count("Answer: ") == 5 and "axles does a standard automobile" in shared
    assert all(item.doc["subject"] != "miscellaneous" for item in items.items)
