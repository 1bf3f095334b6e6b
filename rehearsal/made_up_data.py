"""Small made-up data sets in the files and schemas of the real ones, to rehearse the paper profile with.

Repositories, configurations, file names, columns and their types are those of the hub's; English text is drawn from
gensim's Wikipedia extract, Chinese text from a few words. Right answers are drawn too: scores mean nothing.
"""

import gzip
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Features

from layer_redundancy.data import capability_tasks, corpora, paper_benchmarks
from rehearsal.local_hub import place

Row = dict[str, Any]
Splits = Mapping[str, Sequence[Row]]
Columns = Mapping[str, Row]  # kind by name

BOOKS = 8  # PG-19's books in each split that is read
BOOK_WORDS = 3000
MMLU_ROWS = {"test": 2, "validation": 1, "dev": 5}  # rows of each of the 57 subjects
CMMLU_ROWS = {"dev": 5, "test": 2}  # rows of each of the 67 subjects
ROWS = {"train": 10, "validation": 6, "test": 6}  # rows of every other data set; eight of train are worked examples
PAGES = 60  # C4's pages in each file
INSTRUCTIONS = 60  # Alpaca's instructions; one in three has an input
# Texts of each label to classify. Some of train's are set apart by their hash, and each label must be there.
TEXT_ROWS = {"train": 60, "validation": 8, "test": 8}
TEXT, TEXTS, WHOLE = {"dtype": "string"}, {"sequence": "string"}, {"dtype": "int32"}  # kinds of columns


def write(root: Path) -> None:
    """Writes all data sets below `root`, for `local_hub.LocalHub`; always the same ones.

    Args:
        root: folder of the hub; repositories of the same names are replaced.
    """
    for kind in ("datasets", "spaces", "files"):
        shutil.rmtree(root / kind, ignore_errors=True)
    for make in (_pg19, _mmlu, _hellaswag, _piqa, _super_glue, _commonsense_qa, _race, _cmnli, _xsum, _cmmlu):
        make(root)
    for make in (_gsm8k, _humaneval, _code_eval, _chid, _cluewsc, _c3):
        make(root)
    for make in (_c4, _alpaca, _sst2, _ag_news, _trec, _emotion):
        make(root)


# ------------------------------------------------------------------------------------------------------ repositories


def _labels(*names: str) -> Row:
    return {"dtype": {"class_label": {"names": {str(i): name for i, name in enumerate(names)}}}}


def _features(columns: Columns) -> list[Row]:
    """Columns in the form that a data set's card lists them in."""
    return [{"name": name, **kind} for name, kind in columns.items()]


def _write_parquet(file: Path, columns: Columns, rows: Sequence[Row]) -> int:
    """Writes rows with the columns' types, which `datasets` finds in the file too; returns their bytes."""
    schema = Features._from_yaml_list(_features(columns)).arrow_schema
    table = pa.Table.from_pylist(list(rows), schema=schema)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return table.nbytes


def _publish(root: Path, name: str, configs: Mapping[str, tuple[Columns, Splits]], default: str = "") -> None:
    """Writes a data set as parquet files with a card (README.md) that describes them.

    Args:
        root: folder of the hub.
        name: owner/name.
        configs: columns, and rows by split, of each configuration; "default" stands for the only one there is.
        default: configuration that is loaded where none is named.
    """
    folder = place(root, "datasets", name)
    information, listed = [], []
    for config, (columns, splits) in configs.items():
        where, about = "data" if config == "default" else config, []
        for split, rows in splits.items():
            size = _write_parquet(folder / where / f"{split}-00000-of-00001.parquet", columns, rows)
            about.append({"name": split, "num_bytes": size, "num_examples": len(rows)})
        total = sum(split["num_bytes"] for split in about)
        entry = {"features": _features(columns), "splits": about, "download_size": total, "dataset_size": total}
        information.append(entry if config == "default" else {"config_name": config} | entry)
        files = [{"split": split, "path": f"{where}/{split}-*"} for split in splits]
        listed.append({"config_name": config, "data_files": files} | ({"default": True} if config == default else {}))
    card = {"dataset_info": information if len(information) > 1 else information[0], "configs": listed}
    _write_card(folder, card)


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    dumped = yaml.dump(dict(card), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{dumped}---\n\n# Made up, for rehearsals\n", encoding="utf-8")


class _Plain(yaml.SafeDumper):
    """Writes YAML without references to what was written before."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_file(root: Path, url: str, text: str) -> None:
    """Writes a file that lies on no hub, at its address less the host."""
    file = root / "files" / urlsplit(url).path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _lines(rows: Iterable[Row]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _splits(make: Callable[[random.Random, int, str], Row], seed: str, rows: Mapping[str, int] = ROWS) -> Splits:
    """Rows of each split, each from make(random numbers, number of the row, split)."""
    rng = random.Random(seed)
    return {split: [make(rng, i, split) for i in range(count)] for split, count in rows.items()}


# --------------------------------------------------------------------------------------------------------------- text


@cache
def _paragraphs(split: corpora.Split = "evaluation") -> tuple[str, ...]:
    texts = corpora.articles("wikipedia", split)
    return tuple(paragraph for text in texts for paragraph in text.split("\n\n"))


@cache
def _sentences() -> tuple[str, ...]:
    """English sentences of ordinary length."""
    found = [s for paragraph in _paragraphs()[:600] for s in capability_tasks.sentences(paragraph)]
    return tuple(s for s in found if len(s.split()) in capability_tasks.SENTENCE_WORDS)


def _cloze(rng: random.Random, options: int = 4) -> tuple[str, list[str], int]:
    """A sentence without its last words, those words among others', and where they are."""
    chosen = rng.sample(_sentences(), options)
    answer = rng.randrange(options)
    endings = [" ".join(s.rstrip(".").split()[-3:]) for s in chosen]
    return " ".join(chosen[answer].split()[:-3]), endings, answer


_PEOPLE = ("小王", "老师", "学生", "医生", "司机", "经理", "邻居", "小李")
_DEEDS = ("去公园散步", "在家看书", "买了一张电影票", "给朋友写信", "准备晚饭", "学习数学", "打扫房间", "等公共汽车")
_IDIOMS = ("一心一意", "三心二意", "四海为家", "五光十色", "六神无主", "七上八下", "九牛一毛")


def _chinese(rng: random.Random) -> str:
    return f"{rng.choice(('昨天', '今天', '周末', '早上'))}{rng.choice(_PEOPLE)}{rng.choice(_DEEDS)}。"


# -------------------------------------------------------------------------------------------------------- running text


def _pg19(root: Path) -> None:
    """emozilla/pg19, whose card describes no more of its files than what is in them."""
    folder, name = place(root, "datasets", "emozilla/pg19"), "{}-00000-of-00001-29a571947c0b5ccc.parquet"
    columns = {"short_book_title": TEXT, "publication_date": WHOLE, "url": TEXT, "text": TEXT}
    splits = []
    for split, count in (("train", 2), ("validation", BOOKS), ("test", BOOKS)):
        rng = random.Random(split)
        # Each split has paragraphs of its own, as each has books of its own.
        paragraphs = _paragraphs("calibration" if split == "validation" else "evaluation")
        rows = []
        for i in range(count):
            row = {"short_book_title": f"Book {i} of {split}", "publication_date": 1850 + i}
            row |= {"url": f"http://www.gutenberg.org/ebooks/{10000 + i}", "text": _book(rng, paragraphs)}
            rows.append(row)
        size = _write_parquet(folder / "data" / name.format(split), columns, rows)
        splits.append({"name": split, "num_bytes": size, "num_examples": count})
    total = sum(split["num_bytes"] for split in splits)
    card = {"features": _features(columns), "splits": splits, "download_size": total, "dataset_size": total}
    _write_card(folder, {"dataset_info": card})


def _book(rng: random.Random, paragraphs: Sequence[str]) -> str:
    chosen, words = [], 0
    while words < BOOK_WORDS:
        chosen.append(rng.choice(paragraphs))
        words += len(chosen[-1].split())
    return "\n\n".join(chosen)


def _c4(root: Path) -> None:
    """allenai/c4: two of its files, lines of JSON in a gzip, among folders of other kinds that are not read."""
    folder = place(root, "datasets", "allenai/c4")
    for split in corpora.SPLITS:
        rng, paragraphs, rows = random.Random(f"c4 {split}"), _paragraphs(split), []
        for i in range(PAGES):
            row = {"text": "\n".join(rng.sample(paragraphs, 2)), "timestamp": f"2019-04-25T12:{i:02}:54Z"}
            rows.append(row | {"url": f"https://example.org/{split}/{i}"})
        file = folder / corpora.C4_FILES[split]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(_lines(rows).encode(), mtime=0))  # without a date, always the same
    _write_card(folder, {"license": ["odc-by"], "pretty_name": "C4", "source_datasets": ["original"]})


def _alpaca(root: Path) -> None:
    """yahma/alpaca-cleaned: one list of JSON."""
    rng, rows = random.Random("alpaca"), []
    for i in range(INSTRUCTIONS):
        question, answer = rng.sample(_sentences(), 2)
        row = {"instruction": f"Rewrite what follows, number {i}.", "input": question, "output": answer}
        if i % 3:
            row |= {"instruction": f"What comes after this? {question}", "input": ""}
        rows.append(row)
    folder = place(root, "datasets", "yahma/alpaca-cleaned")
    (folder / corpora.ALPACA_FILE).write_text(json.dumps(rows, indent=4), encoding="utf-8")
    _write_card(folder, {"license": "cc-by-4.0", "language": ["en"], "pretty_name": "Alpaca-Cleaned"})


# -------------------------------------------------------------------------------------------------------- benchmarks


def mmlu_subjects() -> list[str]:
    """MMLU's 57 subjects, from lm-eval's tasks."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    return sorted(file.stem.removeprefix("mmlu_") for file in folder.glob("mmlu_*.yaml"))


def _mmlu(root: Path) -> None:
    columns = {"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": _labels(*"ABCD")}

    def rows_of(subject: str, counts: Mapping[str, int]) -> Splits:
        def row(rng: random.Random, _i: int, _split: str) -> Row:
            question, choices, answer = _cloze(rng)
            return {"question": f"{question} ...", "subject": subject, "choices": choices, "answer": answer}

        return _splits(row, subject, counts)

    configs = {subject: rows_of(subject, MMLU_ROWS) for subject in mmlu_subjects()}
    merged = {split: [row for splits in configs.values() for row in splits[split]] for split in MMLU_ROWS}
    other = rows_of("", {"train": 4})
    configs |= {"all": merged | {"auxiliary_train": other["train"]}, "auxiliary_train": other}
    _publish(root, "cais/mmlu", {config: (columns, splits) for config, splits in configs.items()})


def _hellaswag(root: Path) -> None:
    columns = {"ind": WHOLE, "activity_label": TEXT, "ctx_a": TEXT, "ctx_b": TEXT, "ctx": TEXT}
    columns |= {"endings": TEXTS, "source_id": TEXT, "split": TEXT, "split_type": TEXT, "label": TEXT}

    def row(rng: random.Random, i: int, split: str) -> Row:
        begin, endings, answer = _cloze(rng)
        first, second = f"{rng.choice(_sentences())} [step]", begin[:1].lower() + begin[1:]
        row = {"ind": i, "activity_label": "Reading", "ctx_a": first, "ctx_b": second, "ctx": f"{first} {second}"}
        row |= {"endings": endings, "source_id": f"wikipedia~{i}", "split": split, "split_type": "indomain"}
        return row | {"label": "" if split == "test" else str(answer)}

    _publish(root, "Rowan/hellaswag", {"default": (columns, _splits(row, "hellaswag"))})


def _piqa(root: Path) -> None:
    """baber/piqa, three files without a card."""

    def row(rng: random.Random, _i: int, split: str) -> Row:
        goal, choices, answer = _cloze(rng, 2)
        return {"goal": goal, "sol1": choices[0], "sol2": choices[1], "label": -1 if split == "test" else answer}

    folder = place(root, "datasets", "baber/piqa")
    for split, rows in _splits(row, "piqa").items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"piqa_{split}.parquet")


def _super_glue(root: Path) -> None:
    """aps/super_glue: boolq and wsc.fixed, whose columns differ, in one card."""

    def boolq(rng: random.Random, i: int, split: str) -> Row:
        question, passage = rng.sample(_sentences(), 2)
        row = {"question": question.rstrip(".").lower(), "passage": f"{passage} {rng.choice(_sentences())}", "idx": i}
        return row | {"label": -1 if split == "test" else rng.randrange(2)}

    def wsc(rng: random.Random, i: int, split: str) -> Row:
        words = rng.choice(_sentences()).split()
        row = {"text": f"{' '.join(words)} It is known.", "span1_index": 0, "span2_index": len(words)}
        row |= {"span1_text": words[0], "span2_text": "It", "idx": i}
        return row | {"label": -1 if split == "test" else rng.randrange(2)}

    label = _labels("False", "True")
    of_boolq = {"question": TEXT, "passage": TEXT, "idx": WHOLE, "label": label}
    of_wsc = {"text": TEXT, "span1_index": WHOLE, "span2_index": WHOLE, "span1_text": TEXT, "span2_text": TEXT}
    of_wsc |= {"idx": WHOLE, "label": label}
    parts = {"boolq": (of_boolq, _splits(boolq, "boolq")), "wsc.fixed": (of_wsc, _splits(wsc, "wsc"))}
    _publish(root, "aps/super_glue", parts)


def _commonsense_qa(root: Path) -> None:
    options = {"sequence": _features({"label": TEXT, "text": TEXT})}
    columns = {"id": TEXT, "question": TEXT, "question_concept": TEXT, "choices": options, "answerKey": TEXT}

    def row(rng: random.Random, i: int, split: str) -> Row:
        question, choices, answer = _cloze(rng, 5)
        row = {"id": f"{split}{i}", "question": f"{question} what?", "question_concept": question.split()[0]}
        row |= {"choices": {"label": list("ABCDE"), "text": choices}}
        return row | {"answerKey": "" if split == "test" else "ABCDE"[answer]}

    _publish(root, "tau/commonsense_qa", {"default": (columns, _splits(row, "commonsense_qa"))})


def _race(root: Path) -> None:
    """ehovy/race, a row a question; and EleutherAI/race, which lm-eval's task reads, a row an article."""

    def row(rng: random.Random, i: int, split: str) -> Row:
        question, options, answer = _cloze(rng)
        row = {"example_id": f"{split}{i // 2}.txt", "article": "\n".join(_paragraphs()[i // 2 : i // 2 + 2])}
        return row | {"answer": "ABCD"[answer], "question": f"{question}  _  .", "options": options}

    columns = {"example_id": TEXT, "article": TEXT, "answer": TEXT, "question": TEXT, "options": TEXTS}
    configs = {level: _splits(row, level) for level in ("high", "middle")}
    merged = {split: [*configs["high"][split], *configs["middle"][split]] for split in ROWS}
    together = {"all": merged} | configs
    _publish(root, "ehovy/race", {config: (columns, splits) for config, splits in together.items()})

    articles: dict[str, list[Row]] = {}
    for question in configs["high"]["test"]:
        articles.setdefault(question["article"], []).append({k: question[k] for k in ("question", "answer", "options")})
    rows = [{"article": article, "problems": str(problems)} for article, problems in articles.items()]
    _publish(root, "EleutherAI/race", {"high": ({"article": TEXT, "problems": TEXT}, {"test": rows})})


def _cmnli(root: Path) -> None:
    columns = {"sentence1": TEXT, "sentence2": TEXT, "label": _labels("neutral", "entailment", "contradiction")}
    columns["idx"] = WHOLE

    def row(rng: random.Random, i: int, split: str) -> Row:
        label = -1 if split == "test" or i == 5 else rng.randrange(3)  # a few of the real ones have none
        return {"sentence1": _chinese(rng), "sentence2": _chinese(rng), "label": label, "idx": i}

    _publish(root, "clue/clue", {"cmnli": (columns, _splits(row, "cmnli"))})


def _xsum(root: Path) -> None:
    """EdinburghNLP/xsum as the hub itself converted it (refs/convert/parquet): no card, a folder a split."""

    def row(rng: random.Random, i: int, _split: str) -> Row:
        document = "\n".join(rng.choice(_paragraphs()) for _ in range(3))
        return {"document": document, "summary": rng.choice(_sentences()), "id": str(30000000 + i)}

    folder = place(root, "datasets", "EdinburghNLP/xsum") / "default"
    for split, rows in _splits(row, "xsum").items():
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / split / "0000.parquet")


def _cmmlu(root: Path) -> None:
    """haonan-li/cmmlu: an archive of CSV files, each with a column of numbers that has no name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for subject in paper_benchmarks.cmmlu_subjects():
            rng = random.Random(subject)
            for split, count in CMMLU_ROWS.items():
                lines = [",Question,A,B,C,D,Answer"]
                for i in range(count):
                    options = rng.sample(_DEEDS, 4)
                    lines.append(",".join([str(i), _chinese(rng), *options, rng.choice("ABCD")]))
                # Files in an archive have a date: a fixed one, so that it is the same at every writing.
                entry = zipfile.ZipInfo(f"{split}/{subject}.csv", (2024, 1, 1, 0, 0, 0))
                files.writestr(entry, "\n".join(lines) + "\n")
    folder = place(root, "datasets", "haonan-li/cmmlu")
    (folder / "cmmlu_v1_0_1.zip").write_bytes(archive.getvalue())
    _write_card(folder, {"license": "cc-by-nc-4.0"})


# ------------------------------------------------------------------------------------------------- texts to classify


def _to_classify(seed: str, labels: int, make: Callable[[str, int, int], Row], splits: Iterable[str]) -> Splits:
    """Rows of each split, as many of each label, from make(sentence, label, number of the row); no sentence twice."""
    rng, rows = random.Random(seed), {split: TEXT_ROWS[split] * labels for split in splits}
    drawn = iter(rng.sample(_sentences(), sum(rows.values())))
    found = {split: [make(next(drawn), i % labels, i) for i in range(count)] for split, count in rows.items()}
    for of_split in found.values():
        rng.shuffle(of_split)
    return found


def _sst2(root: Path) -> None:
    """stanfordnlp/sst2, whose test split has no labels."""
    columns = {"idx": WHOLE, "sentence": TEXT, "label": _labels("negative", "positive")}

    def row(text: str, label: int, i: int) -> Row:
        return {"idx": i, "sentence": f"{text.lower()} ", "label": label}

    splits = dict(_to_classify("sst2", 2, row, ("train", "validation", "test")))
    splits["test"] = [row | {"label": -1} for row in splits["test"]]
    _publish(root, "stanfordnlp/sst2", {"default": (columns, splits)})


def _ag_news(root: Path) -> None:
    columns = {"text": TEXT, "label": _labels("World", "Sports", "Business", "Sci/Tech")}

    def row(text: str, label: int, _i: int) -> Row:
        return {"text": f"{' '.join(text.split()[:4])} (AP) AP - {text}", "label": label}

    splits = _to_classify("ag_news", 4, row, ("train", "test"))
    _publish(root, "fancyzhx/ag_news", {"default": (columns, splits)})


def _trec(root: Path) -> None:
    """SetFit/TREC-QC: lines of JSON without a description, beside the files that they were made of."""
    kinds = {
        "DESC": "description and abstract concepts", "ENTY": "entities", "ABBR": "abbreviation",
        "HUM": "human beings", "NUM": "numeric values", "LOC": "locations",
    }  # fmt: skip

    def row(text: str, label: int, _i: int) -> Row:
        kind = list(kinds)[label]
        row = {"text": f"What {text[0].lower()}{text[1:-1]} ?", "label": label, "label_text": f"one of {kinds[kind]}"}
        row |= {"label_original": f"{kind}:other", "label_coarse": label}
        return row | {"label_coarse_text": kinds[kind], "label_coarse_original": kind}

    folder = place(root, "datasets", "SetFit/TREC-QC")
    splits = _to_classify("trec", len(kinds), row, ("train", "test"))
    for split, old in (("train", "train_5500.label"), ("test", "TREC_10.label")):
        (folder / f"{split}.jsonl").write_text(_lines(splits[split]), encoding="utf-8")
        lines = [f"{row['label_original']} {row['text']}\n" for row in splits[split]]
        (folder / old).write_text("".join(lines), encoding="utf-8")
    (folder / "question_types.txt").write_text("".join(f"{kind}\t{what}\n" for kind, what in kinds.items()))
    (folder / "prepare.py").write_text('raise RuntimeError("nothing from the hub is run")\n')
    (folder / "README.md").write_text("# Made up, for rehearsals\n")


def _emotion(root: Path) -> None:
    """dair-ai/emotion: split, which is read, and unsplit."""
    columns = {"text": TEXT, "label": _labels("sadness", "joy", "love", "anger", "fear", "surprise")}

    def row(text: str, label: int, _i: int) -> Row:
        return {"text": f"i feel that {text.rstrip('.').lower()}", "label": label}

    splits = _to_classify("emotion", 6, row, ("train", "validation", "test"))
    parts = {"split": (columns, splits), "unsplit": (columns, {"train": [*splits["train"], *splits["test"]]})}
    _publish(root, "dair-ai/emotion", parts, default="split")


# -------------------------------------------------------------------------------------------------------- generation


def _gsm8k(root: Path) -> None:
    def row(rng: random.Random, _i: int, _split: str) -> Row:
        who, what = rng.choice(("Anna", "Ben", "Carla")), rng.choice(("apples", "books", "coins"))
        a, b, c = (rng.randrange(2, 30) for _ in range(3))
        question = f"{who} has {a} {what} and buys {b} more, then gets {c} as a gift. How many {what} are there now?"
        steps = f"{who} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {what} first."
        return {"question": question, "answer": f"{steps}\nWith the gift it is {a + b + c}.\n#### {a + b + c}"}

    columns, counts = {"question": TEXT, "answer": TEXT}, {"train": ROWS["train"], "test": ROWS["test"]}
    _publish(root, "openai/gsm8k", {name: (columns, _splits(row, name, counts)) for name in ("main", "socratic")})


def _humaneval(root: Path) -> None:
    def row(_rng: random.Random, i: int, _split: str) -> Row:
        name, add = f"add_{i + 2}", i + 2
        prompt = (
            f"from typing import List\n\n\ndef {name}(numbers: List[int]) -> List[int]:\n"
            f'    """ Return the numbers, each with {add} added to it.\n'
            f'    >>> {name}([1, 5])\n    [{1 + add}, {5 + add}]\n    """\n'
        )
        test = (
            f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate([1, 5]) == [{1 + add}, {5 + add}]\n"
        )
        solution = f"    return [number + {add} for number in numbers]\n"
        row = {"task_id": f"HumanEval/{i}", "prompt": prompt, "canonical_solution": solution}
        return row | {"test": test, "entry_point": name}

    columns = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), TEXT)
    name = "openai_humaneval"
    _publish(root, f"openai/{name}", {name: (columns, _splits(row, name, {"test": 4}))}, default=name)


_METRIC = '''"""A stand-in for the hub's metric of this name: pass@1."""

import os

import datasets
import evaluate

from .execute import check_correctness


class CodeEval(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Sequence(text), "references": text}),
        )

    def _compute(self, predictions, references, k=(1,), num_workers=1, timeout=3.0):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError("set HF_ALLOW_CODE_EVAL=1 to run what a model wrote")
        passed = [
            [check_correctness(candidate + "\\n" + reference, timeout) for candidate in candidates]
            for candidates, reference in zip(predictions, references)
        ]
        return {"pass@1": sum(sum(each) / len(each) for each in passed) / len(passed)}, passed
'''
_EXECUTE = '''"""Runs a program in a process of its own."""

import subprocess
import sys


def check_correctness(program, timeout):
    try:
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=timeout)
    except (subprocess.TimeoutExpired, ValueError):
        return False
    return done.returncode == 0
'''


def _code_eval(root: Path) -> None:
    """The metric that lm-eval's HumanEval loads from the hub: a program of two files in a space."""
    folder = place(root, "spaces", "evaluate-metric/code_eval")
    (folder / "code_eval.py").write_text(_METRIC, encoding="utf-8")
    (folder / "execute.py").write_text(_EXECUTE, encoding="utf-8")


# --------------------------------------------------------------------------------------- files that lie on no hub


def _chid(root: Path) -> None:
    for url in (paper_benchmarks.CHID_URL, paper_benchmarks.CHID_DEV_URL):
        rng = random.Random(url)
        rows = [
            {
                "id": i, "candidates": rng.sample(_IDIOMS, 7), "content": f"{_chinese(rng)}他#idiom#，{_chinese(rng)}",
                "answer": rng.randrange(7),
            }
            for i in range(ROWS["test"])
        ]  # fmt: skip
        _write_file(root, url, _lines(rows))


def _cluewsc(root: Path) -> None:
    rng, rows = random.Random("cluewsc"), []
    for i in range(ROWS["test"]):
        who, deed = rng.choice(_PEOPLE), rng.choice(_DEEDS)
        target = {"span2_index": len(who + deed) + 1, "span1_index": 0, "span1_text": who, "span2_text": "他"}
        rows.append(
            {"target": target, "idx": i, "label": rng.choice(("true", "false")), "text": f"{who}{deed}，他很急。"}
        )
    _write_file(root, paper_benchmarks.CLUEWSC_URL, _lines(rows))


def _c3(root: Path) -> None:
    rng, documents = random.Random("c3"), []
    for i, options in enumerate(islice((2, 3, 4) * ROWS["test"], ROWS["test"])):
        lines = [f"男：{_chinese(rng)}", f"女：{_chinese(rng)}"]
        choice = rng.sample(_DEEDS, options)
        question = {"question": f"{rng.choice(_PEOPLE)}做什么？", "choice": choice, "answer": rng.choice(choice)}
        documents.append([lines, [question], f"1-{i}"])
    _write_file(root, paper_benchmarks.C3_URL, json.dumps(documents, ensure_ascii=False))
