"""The benchmarks of table 1: prompts, choices and scores of every task, on hand-made rows of each data set's schema."""

import json
import zipfile

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import benchmark_items, paper_benchmarks
from layer_redundancy.evaluate import generative_tasks
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import smollm2

FEWCLUE = "https://raw.githubusercontent.com/CLUEbenchmark/FewCLUE/"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.fixture
def hub(monkeypatch):
    """hub(rows by split, path, name, **kwargs): what `datasets.load_dataset` gives when it is asked exactly that."""

    def serve(splits, path, name=None, **kwargs):
        def load_dataset(path, name=None, **kwargs):
            assert (path, name, kwargs) == asked
            return datasets.DatasetDict(splits)

        asked = (path, name, kwargs)
        splits = {
            split: rows if isinstance(rows, Dataset) else Dataset.from_list(rows) for split, rows in splits.items()
        }
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return serve


@pytest.fixture
def raw_file(monkeypatch, tmp_path):
    """raw_file(url, rows): a file of rows, a JSON object a line, at an address outside the hub."""

    def serve(url, rows):
        def file(asked):
            assert asked == url
            return target

        target = tmp_path / "rows.json"
        target.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
        monkeypatch.setattr(paper_benchmarks.hub, "file", file)

    return serve


def asked(name, tokenizer):
    """The task through lm-eval and `tasks.load`: for each item in the data's order, (context, choices, gold)."""
    items = benchmark_items.load(TaskBudget(name), tokenizer)
    texts = {}
    for request in items.requests:
        item = items.items[request.doc]
        # A whole prompt has nothing but lm-eval's prefix token before it.
        context = "" if item.scoring else tokenizer.decode(request.context_ids)
        assert not item.scoring or request.context_ids == (tokenizer.bos_token_id,)
        told = texts.setdefault(item.doc_id, (context, [], item.gold))
        assert told[0] == context
        told[1].append(tokenizer.decode(request.continuation_ids))
    assert items.metric_names == ("acc",) and items.num_fewshot == 0
    return items, [texts[i] for i in range(len(texts))]


def scored_by_hand(items):
    """Checks the metric on made-up log-likelihoods: the mean a token decides, or the sum where lm-eval's own does."""
    rng = np.random.default_rng(0)
    given = [(-float(rng.uniform(1, 100)), False) for _ in items.requests]
    frame = items.metrics(given)
    for position, item in enumerate(items.items):
        values = []
        for (loglikelihood, _), request in zip(given, items.requests, strict=True):
            if request.doc == position:
                tokens = len(request.context_ids) + len(request.continuation_ids)
                values.append(loglikelihood / tokens if item.scoring else loglikelihood)
        assert frame.loc[position, "acc"] == (np.argmax(values) == item.gold)
    return frame


def test_cmnli(hub, tokenizer):
    features = Features(
        sentence1=Value("string"), sentence2=Value("string"),
        label=ClassLabel(names=["neutral", "entailment", "contradiction"]), idx=Value("int32"),
    )  # fmt: skip
    rows = [
        {"sentence1": "他在家。", "sentence2": "他在户外。", "label": 2, "idx": 0},
        {"sentence1": "无解", "sentence2": "无解", "label": -1, "idx": 1},
        {"sentence1": "猫睡了。", "sentence2": "猫在休息。", "label": 1, "idx": 2},
        {"sentence1": "天冷。", "sentence2": "他有狗。", "label": 0, "idx": 3},
    ]
    hub({"validation": Dataset.from_list(rows, features=features)}, "clue/clue", "cmnli")
    items, told = asked("shortgpt_cmnli", tokenizer)
    prompt = "语句一：“他在家。”\n语句二：“他在户外。”\n请问这两句话是什么关系？\n"
    assert told[0] == ("", [prompt + "无关", prompt + "蕴含", prompt + "矛盾"], 2)
    assert [gold for *_, gold in told] == [2, 1, 0]  # the row without a label is gone
    scored_by_hand(items)


def test_hellaswag(hub, tokenizer):
    row = {
        "ind": 4, "activity_label": "Baking", "ctx_a": "A man stirs: batter [step] in a bowl.", "ctx_b": "the man",
        "ctx": "A man stirs: batter [step] in a bowl. the man", "source_id": "activitynet~v_x", "split": "val",
        "split_type": "indomain", "label": "3",
        "endings": ["pours it.", " [title] Sings a song.", "leaves  the room.", "eats [substeps] the spoon."],
    }  # fmt: skip
    plain = row | {"ctx_a": "She runs.", "ctx_b": "", "label": "0"}
    hub({"validation": [row, plain]}, "Rowan/hellaswag")
    items, told = asked("shortgpt_hellaswag", tokenizer)
    # Without the activity and what precedes a second ": ", which OpenCompass cuts too.
    context = "batter in a bowl. The man\n"
    assert told[0] == (
        "",
        [context + ending for ending in ("pours it.", " Sings a song.", "leaves the room.", "eats the spoon.")],
        3,
    )
    assert told[1][1][0] == "She runs.\npours it." and told[1][2] == 0
    scored_by_hand(items)


def test_piqa(hub, tokenizer):
    rows = [
        {"goal": "Cool soup", "sol1": "blow on it", "sol2": "boil it", "label": 0},
        {"goal": "Dry a cup", "sol1": "fill it", "sol2": "wipe it", "label": 1},
    ]
    hub({"validation": rows}, "baber/piqa")
    items, told = asked("shortgpt_piqa", tokenizer)
    start = "The following makes sense: \nQ: Cool soup\nA: "
    assert told[0] == ("", [start + "blow on it\n", start + "boil it\n"], 0)
    assert told[1][2] == 1
    scored_by_hand(items)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shortgpt_chid", "349d34535a6520b93829bde6fdb264d82a251f48/datasets/chid/test_public.json"),
        ("shortgpt_chid_dev", "09136670c8b21a54f6777b8cbb4494699d27c6d7/datasets/chid/dev_few_all.json"),
    ],
)
def test_chid(raw_file, tokenizer, name, file):
    idioms = ["一心一意", "三心二意", "四海为家", "五光十色", "六神无主", "七上八下", "九牛一毛"]
    row = {"id": 7, "candidates": idioms, "content": "他做事#idiom#,从不分心。", "answer": 4}
    raw_file(FEWCLUE + file, [row])
    items, told = asked(name, tokenizer)
    choices = [f"以下句子是否通顺？\n他做事{idiom},从不分心。\n这个句子是通顺的。" for idiom in idioms]
    assert told == [("", choices, 4)]
    scored_by_hand(items)


def test_wsc(raw_file, tokenizer):
    target = {"span2_index": 6, "span1_index": 0, "span1_text": "小王", "span2_text": "他"}
    rows = [
        {"target": target, "idx": 3, "label": "true", "text": "小王迟到了，他很急。"},
        {"target": target | {"span1_text": "车"}, "idx": 4, "label": "false", "text": "小王下车了，他很急。"},
    ]
    file = "349d34535a6520b93829bde6fdb264d82a251f48/datasets/cluewsc/test_public.json"
    raw_file(FEWCLUE + file, rows)
    items, told = asked("shortgpt_wsc", tokenizer)
    prompt = '小王迟到了，他很急。\nHere, is the pronoun "他" used to mean "小王"? '
    assert told[0] == ("", [prompt + "No.", prompt + "Yes."], 1)
    assert told[1][1][0].endswith('mean "车"? No.') and told[1][2] == 0
    scored_by_hand(items)


def test_wsc_superglue(hub, tokenizer):
    row = {
        "text": "Tom met Ann because he was near.", "span1_index": 0, "span2_index": 4, "span1_text": "Tom",
        "span2_text": "he", "idx": 0, "label": 1,
    }  # fmt: skip
    hub({"train": [row], "validation": [row, row | {"span1_text": "Ann", "label": 0}]}, "aps/super_glue", "wsc.fixed")
    items, told = asked("shortgpt_wsc_superglue", tokenizer)
    prompt = "Tom met Ann because he was near.\nIs 'Tom' and 'he' refers to the same entity in the above sentence?\n"
    assert told[0] == ("", [prompt + "No", prompt + "Yes"], 1)
    assert "Is 'Ann' and 'he'" in told[1][1][0] and told[1][2] == 0
    scored_by_hand(items)


def test_commonsense_qa(hub, tokenizer):
    def row(i, key):
        choices = {
            "label": ["A", "B", "C", "D", "E"],
            "text": [f"{word}{i}" for word in ("in", "up", "off", "at", "by")],
        }
        return {
            "id": f"q{i}",
            "question": f"Where is {i}?",
            "question_concept": "x",
            "choices": choices,
            "answerKey": key,
        }

    train = [row(i, "ABCDE"[i % 5]) for i in range(12)]
    hub({"train": train, "validation": [row(20, "C"), row(21, "E")]}, "tau/commonsense_qa")
    items, told = asked("shortgpt_commonsense_qa", tokenizer)
    answers = ["in0", "up1", "off2", "at3", "by4", "in5", "up6", "off7"]  # the first eight training questions
    shots = "\n\n\n".join(f"Question: Where is {i}?\nAnswer: \n{answer}" for i, answer in enumerate(answers))
    prompt = f"{shots}\n\n\n\n\nQuestion: Where is 20?\nAnswer: \n"
    assert told[0] == ("", [prompt + answer for answer in ("in20", "up20", "off20", "at20", "by20")], 2)
    assert told[1][2] == 4
    scored_by_hand(items)


def test_boolq(hub, tokenizer):
    rows = [
        {"question": "is ice cold", "passage": "Ice -- Ice is cold.", "idx": 0, "label": 1},
        {"question": "is fire cold", "passage": "Fire is hot.", "idx": 1, "label": 0},
    ]
    hub({"validation": rows}, "aps/super_glue", "boolq")
    items, told = asked("shortgpt_boolq", tokenizer)
    prompt = "Ice -- Ice is cold.\nQuestion: is ice cold?\n"
    assert told[0] == ("", [prompt + "No", prompt + "Yes"], 1)
    assert told[1][2] == 0
    scored_by_hand(items)


@pytest.mark.parametrize("level", ["high", "middle"])
def test_race(hub, tokenizer, level):
    row = {
        "example_id": f"{level}1.txt", "article": "Tim has a cat.\nIt is red.", "answer": "B",
        "question": "What does Tim have?", "options": ["A dog", "A cat", "A cow", "A pig"],
    }  # fmt: skip
    last = row | {"question": "Which colour?", "options": ["blue", "green", "grey", "red"], "answer": "D"}
    hub({"test": [row, last]}, "ehovy/race", level)
    items, told = asked(f"shortgpt_race_{level}", tokenizer)
    prompt = (
        "Read the article, and answer the question by replying A, B, C or D.\n\n"
        "Article:\nTim has a cat.\nIt is red.\n\nQ: What does Tim have?\n\nA. A dog\nB. A cat\nC. A cow\nD. A pig\nA:"
    )
    assert told[0] == (prompt, [" A", " B", " C", " D"], 1)
    assert told[1][2] == 3 and "\nD. red\nA:" in told[1][0]  # every question of an article
    assert len(ChoiceTask(items).sequences) == 2  # the letters share a forward
    scored_by_hand(items)


C3 = [
    [
        ["男：你去哪儿?", "女：去上班。"],
        [
            {"question": "女的去哪儿?", "choice": ["家", "公司", "学校"], "answer": "公司"},
            {"question": "他们是什么关系?", "choice": ["夫妻", "同学", "师生", "同事"], "answer": "同事"},
        ],
        "1-23",
    ],
    [["女：下雨了。"], [{"question": "天气怎么样?", "choice": ["雨", "晴"], "answer": "雨"}], "m2-4"],
]


def test_c3(monkeypatch, tmp_path, tokenizer):
    def download(url):
        assert url.startswith("https://raw.githubusercontent.com/nlpdata/c3/") and url.endswith("/data/c3-d-dev.json")
        (tmp_path / "c3").write_text(json.dumps(C3, ensure_ascii=False), encoding="utf-8")
        return tmp_path / "c3"

    monkeypatch.setattr(paper_benchmarks.hub, "file", download)
    items, told = asked("shortgpt_c3", tokenizer)
    prompt = "文章：男：你去哪儿? 女：去上班。\n问题：女的去哪儿?\n答案："
    assert told[0] == ("", [prompt + "家", prompt + "公司", prompt + "学校"], 1)
    assert [(len(choices), gold) for _, choices, gold in told] == [(3, 1), (4, 3), (2, 0)]
    assert items.chance == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)
    scored_by_hand(items)


def test_cmmlu(monkeypatch, tmp_path, tokenizer):
    def questions(subject, split, n):
        rows = [[i, f"{subject} {split} {i}", "甲", "NA", "丙", "丁", "ABCD"[(i + len(split)) % 4]] for i in range(n)]
        return pd.DataFrame(rows, columns=["", "Question", "A", "B", "C", "D", "Answer"]).to_csv(index=False)

    names = paper_benchmarks.cmmlu_subjects()
    with zipfile.ZipFile(tmp_path / "cmmlu.zip", "w") as file:
        for subject in names:
            file.writestr(f"dev/{subject}.csv", questions(subject, "dev", 6))
            file.writestr(f"test/{subject}.csv", questions(subject, "test", 2))

    def download(repository, filename, repo_type):
        assert (repository, filename, repo_type) == ("haonan-li/cmmlu", "cmmlu_v1_0_1.zip", "dataset")
        return str(tmp_path / "cmmlu.zip")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(names) == 67 and names["agronomy"] == "农学" and names["world_religions"] == "世界宗教"
    items, told = asked("shortgpt_cmmlu", tokenizer)
    assert len(told) == 134

    def block(subject, split, i):
        return (
            f"以下是关于{names[subject]}的单项选择题，请直接给出正确答案的选项。\n题目：{subject} {split} {i}\n"
            "A. 甲\nB. NA\nC. 丙\nD. 丁\n答案是:"
        )

    shots = "\n\n\n".join(f"{block('arts', 'dev', i)} {'DABCD'[i]}" for i in range(5))  # the first five of the subject
    position = [item.doc["subject"] for item in sorted(items.items, key=lambda item: item.doc_id)].index("arts")
    assert told[position + 1] == (shots + "\n\n\n\n\n" + block("arts", "test", 1), [" A", " B", " C", " D"], 1)
    scored_by_hand(items)


def test_xsum(hub):
    rows = [{"document": f"Text {i}.", "summary": f"Sum {i}.", "id": str(i)} for i in range(1100)]
    rows[3]["document"] = ""
    hub({"validation": rows}, "EdinburghNLP/xsum", revision="refs/convert/parquet")
    manager = TaskManager(include_path=str(paths.TASKS), include_defaults=False)
    task = manager.load(["shortgpt_xsum"])["tasks"]["shortgpt_xsum"]
    docs = task.eval_docs
    assert len(docs) == 999 and docs[3]["id"] == "4" and docs[998]["id"] == "999"  # of the first 1000, with text
    assert task.fewshot_context(docs[0], num_fewshot=0) == (
        "Document：Text 0.\nBased on the previous text, provide a brief single summary:"
    )
    assert task.doc_to_target(docs[0]) == "Sum 0."
    doc = {"summary": "The cat sat down."}
    # Words of the first line: the, cats, sat, there. Two of four in common with the, cat, sat, down.
    assert task.process_results(doc, ["\n The cats SAT there.\nThe cat sat down."]) == {"rouge1": pytest.approx(0.5)}
    assert task.process_results(doc, ["the cat"]) == {"rouge1": pytest.approx(2 / 3)}  # precision 1, recall 1/2
    assert task.process_results(doc, [""]) == task.process_results(doc, ["\n"]) == {"rouge1": 0.0}
    found = generative_tasks.load(TaskBudget("shortgpt_xsum", limit=2))
    assert found.max_new_tokens == 100 and len(found.chosen) == 2


def test_mean_and_sum_disagree_where_lengths_do(monkeypatch, tmp_path, tokenizer):
    from tokenizers.processors import TemplateProcessing

    monkeypatch.setattr(paper_benchmarks.hub, "file", lambda _url: tmp_path / "c3")
    choice = ["短", "一个长得多的答案，有许多字"]
    question = [{"question": "哪个?", "choice": choice, "answer": choice[1]}]
    (tmp_path / "c3").write_text(json.dumps([[["男：好。"], question, "1"]], ensure_ascii=False), encoding="utf-8")
    items = benchmark_items.load(TaskBudget("shortgpt_c3"), tokenizer)
    prompts = items.items[0].task.doc_to_choice(items.items[0].doc)
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert lengths[0] + 5 < lengths[1]
    # One nat more in all, but less a token: the prefix token that lm-eval puts in front is counted too.
    given = [(-float(lengths[0] + 1), False), (-float(lengths[0] + 2), False)]
    frame = items.metrics(given)
    assert frame["acc"].tolist() == [1.0] and frame["gold_logprob"].tolist() == [given[1][0]]
    assert items.items[0].task.process_results(items.items[0].doc, given)["acc"] == 0.0  # lm-eval's own, by sums
    result = ChoiceTask(items).result([[pair] for pair in given])
    assert result.summary["acc"] == 1.0 and result.arrays["gold_logprob"].tolist() == [given[1][0]]

    # The divisor, from both sides of the point where the means are equal.
    for shift, right in ((-1e-6, 1.0), (1e-6, 0.0)):
        equal = given[0][0] * (lengths[1] + 1) / (lengths[0] + 1)
        assert items.metrics([given[0], (equal - shift, False)])["acc"].tolist() == [right]

    # A tokenizer that prepends the beginning-of-sequence token itself: it is counted once, and T - 1 tokens are scored.
    with_bos = AutoTokenizer.from_pretrained(smollm2.folder())
    bos = (with_bos.bos_token, with_bos.bos_token_id)
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    again = benchmark_items.load(TaskBudget("shortgpt_c3"), with_bos)
    for request, prompt in zip(again.requests, prompts, strict=True):
        assert list(request.context_ids + request.continuation_ids) == with_bos(prompt).input_ids
        assert request.context_ids == (bos[1],)


def test_mean_and_sum_agree_where_lengths_do(hub, tokenizer):
    row = {"question": "is ice cold", "passage": "Ice is cold.", "idx": 0, "label": 1}
    hub({"validation": [row, row | {"label": 0}]}, "aps/super_glue", "boolq")
    items = benchmark_items.load(TaskBudget("shortgpt_boolq"), tokenizer)
    assert len({len(request.continuation_ids) for request in items.requests}) == 1
    rng = np.random.default_rng(1)
    for _ in range(20):
        given = [(-float(value), False) for value in rng.uniform(1, 100, 4)]
        frame = items.metrics(given)
        for i, item in enumerate(items.items):
            assert frame.loc[i, "acc"] == item.task.process_results(item.doc, given[2 * i : 2 * i + 2])["acc"]


HAND_MADE = """
task: hand_made
dataset_path: hand/made
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {metadata}
"""


def test_scoring_is_in_the_fingerprint_and_must_be_one_that_exists(hub, monkeypatch, tmp_path, tokenizer):
    hub({"test": [{"choices": ["one", "two three"], "answer": 0}]}, "hand/made")
    monkeypatch.setattr(paths, "TASKS", tmp_path)

    def load(metadata, text=""):
        (tmp_path / "hand_made.yaml").write_text(HAND_MADE.format(text=text, metadata=metadata))
        return benchmark_items.load(TaskBudget("hand_made"), tokenizer)

    plain, mean = load("{version: 1.0}"), load("{version: 1.0, scoring: mean_cross_entropy}")
    assert plain.requests == mean.requests and plain.fingerprint != mean.fingerprint
    assert plain.items[0].scoring is None and mean.items[0].scoring == benchmark_items.MEAN_CROSS_ENTROPY
    for metadata, text in (("{scoring: mean}", ""), ("{scoring: mean_cross_entropy}", "Count:")):
        with pytest.raises(StudyError, match="the only scoring its metadata may name is mean_cross_entropy") as error:
            load(metadata, text)
        assert "\n" not in str(error.value)


def test_every_column_of_table_1_has_a_task():
    columns = list(pd.read_csv(paths.PAPER / "table1.csv").columns)
    names = [benchmark.name for benchmark in paper_benchmarks.PAPER_BENCHMARKS]
    assert names == columns[columns.index("CMNLI") : columns.index("average_reported")]
    own = set(TaskManager(include_path=str(paths.TASKS), include_defaults=False).all_tasks)
    folder = paper_benchmarks.Path(paper_benchmarks.lm_eval.__file__).parent / "tasks"
    files = {  # where lm-eval defines what the table names
        "hellaswag": "hellaswag/hellaswag.yaml", "piqa": "piqa/piqa.yaml", "wsc": "super_glue/wsc/default.yaml",
        "commonsense_qa": "commonsense_qa/default.yaml", "boolq": "super_glue/boolq/default.yaml",
        "race": "race/race.yaml", "mmlu": "mmlu/default/_mmlu.yaml",
    }  # fmt: skip
    for benchmark in paper_benchmarks.PAPER_BENCHMARKS:
        for task in {benchmark.task, benchmark.default} - own - {None}:
            text = (folder / files[task]).read_text(encoding="utf-8")
            assert f"task: {task}\n" in text or f"group: {task}\n" in text
    # What the table names is all there is, but for the other half of two benchmarks.
    named = {benchmark.task for benchmark in paper_benchmarks.PAPER_BENCHMARKS} - {"mmlu"}
    others = {"shortgpt_chid_dev", "shortgpt_wsc_superglue"}
    assert {name for name in own if name.startswith("shortgpt_")} == named | others


def test_scores_of_the_paper_are_fractions_of_the_items():
    """The ShortGPT rows' scores are k / items to two decimals, but for two of the 32."""
    scores = pd.read_csv(paths.PAPER / "table1.csv").query("method == 'ShortGPT'")
    misfits = []
    for benchmark in paper_benchmarks.PAPER_BENCHMARKS:
        if benchmark.items < 4000 and benchmark.name != "XSum":  # more items fit any two decimals; ROUGE is no fraction
            for score in scores[benchmark.name]:
                k = round(score / 100 * benchmark.items)
                if abs(k / benchmark.items * 100 - score) > 0.01:  # some are cut, not rounded
                    misfits.append((benchmark.name, score))
    assert misfits == [("CoQA", 46.70), ("RACE-M", 46.76)]


@pytest.mark.parametrize("name", ["shortgpt_piqa", "shortgpt_chid", "shortgpt_c3", "shortgpt_cmmlu"])
def test_unreachable_data_is_told_in_one_line(tokenizer, monkeypatch, tmp_path, name):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("layer_redundancy.core.paths.CACHE", tmp_path)  # nor is it in a cache
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StudyError, match="is not in the local cache and the hub cannot be reached") as error:
        benchmark_items.load(TaskBudget(name), tokenizer)
    assert "\n" not in str(error.value)
