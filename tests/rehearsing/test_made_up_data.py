"""The made-up data sets: every task of the paper profile loads from a local hub; the rehearsal needs no hub later."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from layer_redundancy.config import profiles
from layer_redundancy.data import corpora
from layer_redundancy.data.classification_sets import SOURCES
from layer_redundancy.experiments import benchmarks, generation, prompt_tuning
from layer_redundancy.models import smollm2
from rehearsal import made_up_data, run
from rehearsal.local_hub import LocalHub
from rehearsing.test_local_hub import client

# Loads two items of every task and prints what they are.
TASKS = """
import sys
from dataclasses import replace
from functools import cache
import yaml
yaml.SafeLoader = yaml.CSafeLoader  # for MMLU's card, which is parsed once for each of its 57 subjects
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.data import corpora
from layer_redundancy.data import benchmark_items
from layer_redundancy.evaluate import generative_tasks
from layer_redundancy.experiments import benchmarks, generation
from transformers import AutoTokenizer

# Reading all of lm-eval's task files takes seconds: once is enough.
of_some = benchmark_items.TaskManager
of_all = cache(lambda path: benchmark_items.lm_eval.tasks.TaskManager(include_path=path))
benchmark_items.TaskManager = lambda include_path, include_defaults=True: (
    of_all(include_path) if include_defaults else of_some(include_path=include_path, include_defaults=False)
)
tokenizer, profile, seen = AutoTokenizer.from_pretrained(sys.argv[1]), profiles.get("paper"), {}
table1, written = profile.budget(benchmarks.Budget), profile.budget(generation.Budget)
for budget in (*table1.tasks, TaskBudget("shortgpt_chid_dev"), TaskBudget("shortgpt_wsc_superglue")):
    items = benchmark_items.load(replace(budget, limit=2), tokenizer)
    longest = max(len(r.context_ids) + len(r.continuation_ids) for r in items.requests)
    seen[budget.name] = [items.fingerprint, len(items.items), items.chance, longest]
for budget in (*table1.generative_tasks, *written.tasks):
    task = generative_tasks.load(replace(budget, limit=2), run_generated_code=True)
    seen[budget.name] = [task.fingerprint, len(task.chosen), 0, len(task.longest)]
for split in corpora.SPLITS:
    books = corpora.articles("pg19", split)
    seen[split] = [sum(map(len, books)), len(books), 0, min(len(book.split()) for book in books)]

import datasets, evaluate, os
os.environ["HF_ALLOW_CODE_EVAL"] = "1"
row = datasets.load_dataset("openai/openai_humaneval", split="test")[0]
check = f"{row['test']}\\ncheck({row['entry_point']})"
answers = row["canonical_solution"], "    return numbers\\n", "    while True: pass\\n", "  ("
metric = evaluate.load("code_eval")
passed = [
    metric.compute(references=[check], predictions=[[row["prompt"] + answer]], k=[1], timeout=0.5)[0]["pass@1"]
    for answer in answers
]
told([seen, passed])
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    made_up_data.write(root)
    return root


@pytest.mark.slow
def test_every_task_of_the_paper_profile(root, tmp_path):
    AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(tmp_path / "tokenizer")
    arguments = [str(tmp_path / "tokenizer")]
    with LocalHub(root) as hub:
        online, passed = client(hub, tmp_path, TASKS, arguments=arguments)
        assert hub.asked("spaces/evaluate-metric/code_eval") and len(hub.asked("GET /files/")) == 4
        assert not hub.asked("cdn/datasets/emozilla/pg19/data/train")
    assert passed == [1.0, 0.0, 0.0, 0.0], "of HumanEval's first problem the solution alone"
    profile = profiles.get("paper")
    table1, written = profile.budget(benchmarks.Budget), profile.budget(generation.Budget)
    budgets = [*profile.tasks, *table1.tasks, *table1.generative_tasks, *written.tasks]
    assert {budget.name for budget in budgets} < online.keys()
    for name, (_, items, chance, longest) in online.items():
        if name in ("calibration", "evaluation"):
            assert items == made_up_data.BOOKS and longest >= made_up_data.BOOK_WORDS
        else:
            assert items == 2 and 0 <= chance <= 0.5 and 20 < longest < 4000, name


# Reads every text to train on and every set of texts to classify, and prints what they are.
TEXTS = """
import sys
from transformers import AutoTokenizer
from layer_redundancy.config import profiles
from layer_redundancy.data import classification_sets as classification, corpora
from layer_redundancy.planning import downloads
tokenizer, seen = AutoTokenizer.from_pretrained(sys.argv[1]), {}
needed = downloads.needs(profiles.get("paper"))
downloads.check_texts(downloads.texts(needed))
for name in downloads.texts(needed):
    for split in corpora.SPLITS:
        texts = corpora.articles(name, split)
        blocks = corpora.packed_blocks(name, tokenizer, split, 32, 9)
        seen[f"{name} {split}"] = [len(texts), len(set(texts)), *blocks.input_ids.shape, blocks.fingerprint, texts[0]]
for name in downloads.datasets(needed):
    data = classification.load(name)
    parts = [data.train, data.validation, data.test]
    shots = classification.shots(data.train, 30, 0)
    seen[name] = [[len(part) for part in parts], [sorted(set(part.labels.tolist())) for part in parts], len(shots),
                  sum(data.left_out.values()), data.test.texts[0]]
told(seen)
"""


@pytest.mark.slow
def test_texts_to_train_on_and_to_classify(root, tmp_path):
    AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(tmp_path / "tokenizer")
    arguments = [str(tmp_path / "tokenizer")]
    with LocalHub(root) as hub:
        seen = client(hub, tmp_path, TEXTS, arguments=arguments)
        assert not hub.asked("prepare.py|[.]label|unsplit")  # of the repositories' other files nothing is fetched
    for split in corpora.SPLITS:
        assert seen[f"c4 {split}"][:4] == [made_up_data.PAGES, made_up_data.PAGES, 9, 32]
        assert seen[f"alpaca {split}"][:4] == [made_up_data.INSTRUCTIONS // 2] * 2 + [9, 32]
        assert seen[f"alpaca {split}"][5].startswith("Below is an instruction") and f"pg19 {split}" in seen
    assert seen["c4 calibration"][4:] != seen["c4 evaluation"][4:]
    for name in profiles.get("paper").budget(prompt_tuning.Budget).datasets:
        sizes, labels, shots, left_out, text = seen[name]
        number = len(SOURCES[name].labels)
        assert labels == [list(range(number))] * 3 and shots == 30 * number and not left_out and text
        assert sizes[0] + sizes[1] == made_up_data.TEXT_ROWS["train"] * number


def test_the_rehearsal_has_texts_enough(root):
    budget = profiles.get(run.PROFILE).budget(prompt_tuning.Budget)
    # Of each label nearly all stay that are not for validation, which a hash decides.
    assert budget.shots + budget.demonstrations <= made_up_data.TEXT_ROWS["train"] // 2
    assert budget.test_items <= 2 * made_up_data.TEXT_ROWS["test"]


def test_it_is_the_same_every_time(root, tmp_path):
    made_up_data.write(tmp_path)
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == again and sum(map(len, files.values())) < 5e6
    (tmp_path / "datasets" / "stale").write_text("")
    made_up_data.write(tmp_path)
    assert not (tmp_path / "datasets" / "stale").exists()


SCHEMAS = """
from datasets import load_dataset
seen = {}
for name in ("cais/mmlu anatomy", "cais/mmlu auxiliary_train", "Rowan/hellaswag", "baber/piqa", "aps/super_glue boolq",
             "aps/super_glue wsc.fixed", "tau/commonsense_qa", "ehovy/race middle", "ehovy/race all",
             "EleutherAI/race high", "clue/clue cmnli", "openai/gsm8k main", "openai/openai_humaneval",
             "stanfordnlp/sst2", "fancyzhx/ag_news", "dair-ai/emotion", "SetFit/TREC-QC"):
    data = load_dataset(*name.split())
    features = next(iter(data.values())).features
    labels = {key: kind.names for key, kind in features.items() if hasattr(kind, "names")}
    seen[name] = [sorted(data), sorted(features), labels, {split: len(rows) for split, rows in data.items()}]
told(seen)
"""


def test_schemas(root, tmp_path):
    with LocalHub(root) as hub:
        seen = client(hub, tmp_path, SCHEMAS)
    assert seen["cais/mmlu anatomy"][:3] == [
        ["dev", "test", "validation"],
        ["answer", "choices", "question", "subject"],
        {"answer": list("ABCD")},
    ]
    assert seen["aps/super_glue boolq"][2] == {"label": ["False", "True"]} == seen["aps/super_glue wsc.fixed"][2]
    assert seen["clue/clue cmnli"][2] == {"label": ["neutral", "entailment", "contradiction"]}
    assert seen["EleutherAI/race high"][:2] == [["test"], ["article", "problems"]]
    assert seen["ehovy/race all"][3]["test"] == 2 * seen["ehovy/race middle"][3]["test"]
    assert seen["tau/commonsense_qa"][1] == ["answerKey", "choices", "id", "question", "question_concept"]
    assert len(seen["Rowan/hellaswag"][1]) == 10 and seen["baber/piqa"][1] == [
        "goal",
        "label",
        "sol1",
        "sol2",
    ]
    assert seen["cais/mmlu auxiliary_train"][0] == ["train"]
    assert seen["stanfordnlp/sst2"][:3] == [
        ["test", "train", "validation"],
        ["idx", "label", "sentence"],
        {"label": ["negative", "positive"]},
    ]
    assert seen["fancyzhx/ag_news"][0] == seen["SetFit/TREC-QC"][0] == ["test", "train"]
    assert seen["fancyzhx/ag_news"][2] == {"label": ["World", "Sports", "Business", "Sci/Tech"]}
    assert seen["dair-ai/emotion"][2] == {"label": list(SOURCES["emotion"].labels)}
    assert seen["SetFit/TREC-QC"][1] == [
        "label", "label_coarse", "label_coarse_original", "label_coarse_text", "label_original", "label_text", "text",
    ]  # fmt: skip


def test_every_raw_file_has_its_address(root):
    found = sorted(path.relative_to(root / "files").as_posix() for path in (root / "files").rglob("*.json"))
    names = Counter(name.rsplit("/", 1)[1] for name in found)
    assert names == {"test_public.json": 2, "dev_few_all.json": 1, "c3-d-dev.json": 1}
    documents = json.loads((root / "files" / next(name for name in found if "c3" in name)).read_text())
    assert {len(question["choice"]) for _, questions, _ in documents for question in questions} == {2, 3, 4}


def test_subjects():
    assert len(made_up_data.mmlu_subjects()) == 57 and "abstract_algebra" in made_up_data.mmlu_subjects()
