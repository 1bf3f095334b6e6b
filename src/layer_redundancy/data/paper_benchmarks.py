"""The 13 benchmarks of ShortGPT's table 1: data, prompts and scoring as OpenCompass has them, which its numbers follow.

The tasks are data/tasks/shortgpt_*.yaml. Here is what turns rows of a data set into theirs: `process_docs` functions,
which take the rows as the hub has them, and `custom_dataset` functions, which load as well. A whole prompt is a choice
where OpenCompass scores whole prompts (see `tasks.MEAN_CROSS_ENTROPY`).

Prompts are what OpenCompass gives a base model: a model without a chat template reads the turns of a template joined by
one newline. A config is named by its file in OpenCompass' configs/datasets, e.g. CLUE_C3_ppl_e24a31.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import lm_eval
import pandas as pd

from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub

Row = Mapping[str, Any]  # row of a data set, by column

# The authors' files, which lie on no hub, each at a commit that holds it.
C3_URL = f"{hub.RAW_FILES}/nlpdata/c3/dd2d89324e961786a1a9eec73ae13f1c6b800384/data/c3-d-dev.json"
_FEWCLUE = f"{hub.RAW_FILES}/CLUEbenchmark/FewCLUE"
CHID_URL = f"{_FEWCLUE}/349d34535a6520b93829bde6fdb264d82a251f48/datasets/chid/test_public.json"
CHID_DEV_URL = f"{_FEWCLUE}/09136670c8b21a54f6777b8cbb4494699d27c6d7/datasets/chid/dev_few_all.json"
CLUEWSC_URL = f"{_FEWCLUE}/349d34535a6520b93829bde6fdb264d82a251f48/datasets/cluewsc/test_public.json"
COMMONSENSE_QA_SHOTS = 8
CMMLU_SHOTS = 5
XSUM_ROWS = 1000


@dataclass(frozen=True)
class Benchmark:
    """A column of table 1.

    Attributes:
        name: the benchmark's name in data/paper/table1.csv.
        task: the task with the paper's data, prompt and scoring.
        default: lm-eval's own task for the same data, with its own prompt and metrics; None where it has none that
            loads.
        num_fewshot: worked examples for the budget of `task`; None where the task itself decides.
        items: number of items in the paper's split.
        note: scoring and data, and where they depart from the paper's.
    """

    name: str
    task: str
    default: str | None
    num_fewshot: int | None
    items: int
    note: str


PAPER_BENCHMARKS = (
    Benchmark(
        "CMNLI", "shortgpt_cmnli", None, None, 12241,
        "mean cross-entropy of the whole prompt, 3 labels; CLUE dev",
    ),
    Benchmark(
        "HellaSwag", "shortgpt_hellaswag", "hellaswag", None, 10042,
        "mean cross-entropy of the whole prompt, 4 endings; validation",
    ),
    Benchmark(
        "PIQA", "shortgpt_piqa", "piqa", None, 1838,
        "mean cross-entropy of the whole prompt, 2 solutions; validation",
    ),
    Benchmark(
        "CHID", "shortgpt_chid", None, None, 2002,
        "mean cross-entropy of the whole prompt, 7 idioms; FewCLUE test_public, while the paper's baseline rows "
        "fit its dev of 202 (shortgpt_chid_dev)",
    ),
    Benchmark(
        "WSC", "shortgpt_wsc", "wsc", None, 976,
        "mean cross-entropy of the whole prompt, No or Yes; FewCLUE cluewsc test_public, while the paper's baseline "
        "rows and lm-eval's task are SuperGLUE's 104 (shortgpt_wsc_superglue)",
    ),
    Benchmark(
        "CoQA", "shortgpt_commonsense_qa", "commonsense_qa", None, 1221,
        "CommonsenseQA; mean cross-entropy of the whole prompt, 5 answers; the first 8 training questions as examples, "
        "where OpenCompass retrieves 8 for each question",
    ),
    Benchmark(
        "BoolQ", "shortgpt_boolq", "boolq", None, 3270,
        "mean cross-entropy of the whole prompt, No or Yes; SuperGLUE validation",
    ),
    Benchmark(
        "RACE-H", "shortgpt_race_high", "race", None, 3498,
        "letters A to D; test, every question, where lm-eval's task takes the last of each article",
    ),
    Benchmark(
        "RACE-M", "shortgpt_race_middle", None, None, 1436,
        "letters A to D; test, every question",
    ),
    Benchmark(
        "XSum", "shortgpt_xsum", None, None, 1000,
        "generation, ROUGE-1 (the paper does not say which ROUGE); the first 1000 of validation",
    ),
    Benchmark(
        "C3", "shortgpt_c3", None, None, 1825,
        "mean cross-entropy of the whole prompt, 2 to 4 answers; the dialogue half of dev",
    ),
    Benchmark(
        "MMLU", "mmlu", "mmlu", 5, 14042,
        "letters A to D, 5 examples of the subject; lm-eval's prompt, and a mean over questions, where OpenCompass "
        "averages the 57 subjects",
    ),
    Benchmark(
        "CMMLU", "shortgpt_cmmlu", None, None, 11582,
        "letters A to D, 5 examples of the subject, in the prompt already; a mean over questions, where OpenCompass "
        "averages the 67 subjects",
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Whole prompts as choices: rows -> columns choices (prompts) and answer (position of the right one)


def cmnli(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of clue/clue, cmnli: sentence1, sentence2, label (0 neutral, 1 entailment, 2 contradiction, -1 unknown).

    Rows without a label are left out. Config CLUE_cmnli_ppl_fdc6de.
    """
    prompt = "语句一：“{sentence1}”\n语句二：“{sentence2}”\n请问这两句话是什么关系？\n"
    return _dataset(
        ([prompt.format_map(row) + label for label in ("无关", "蕴含", "矛盾")], row["label"])
        for row in rows
        if row["label"] >= 0
    )


def hellaswag(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of Rowan/hellaswag: activity_label, ctx_a, ctx_b, endings (4), label (a digit as text).

    Config hellaswag_ppl_47bff9, with `hellaswagDataset`: its file holds lm-eval's preprocessed text, of which it drops
    the activity: what comes before the first ": ", and before the second if there is one.
    """

    from lm_eval.tasks.hellaswag.utils import preprocess  # removes WikiHow's markup

    def context(row: Row) -> str:
        return preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}").split(": ", 2)[-1]

    return _dataset(
        ([f"{context(row)}\n{preprocess(ending)}" for ending in row["endings"]], int(row["label"])) for row in rows
    )


def piqa(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of baber/piqa: goal, sol1, sol2, label (0 or 1). Config piqa_ppl_1cf9f0."""
    return _dataset(
        (
            [f"The following makes sense: \nQ: {row['goal']}\nA: {row[solution]}\n" for solution in ("sol1", "sol2")],
            row["label"],
        )
        for row in rows
    )


def _lines(url: str) -> list[Row]:
    """The rows of a file with a JSON object a line."""
    file = hub.file(url)
    with hub.reading(file):
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def chid_test(**_: Any) -> dict[str, datasets.Dataset]:
    """{"test": FewCLUE's chid, test_public}, which the paper's dense and ShortGPT rows fit."""
    return {"test": chid(_lines(CHID_URL))}


def chid_dev(**_: Any) -> dict[str, datasets.Dataset]:
    """{"test": FewCLUE's chid, dev_few_all}, which its baseline rows fit."""
    return {"test": chid(_lines(CHID_DEV_URL))}


def cluewsc_test(**_: Any) -> dict[str, datasets.Dataset]:
    """{"test": FewCLUE's cluewsc, test_public}."""
    return {"test": cluewsc(_lines(CLUEWSC_URL))}


def chid(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of FewCLUE chid: content (with #idiom#), candidates (7), answer (0..6). Config FewCLUE_chid_ppl_8f2872."""
    return _dataset(
        (
            [
                f"以下句子是否通顺？\n{row['content'].replace('#idiom#', idiom)}\n这个句子是通顺的。"
                for idiom in row["candidates"]
            ],
            row["answer"],
        )
        for row in rows
    )


def cluewsc(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of FewCLUE cluewsc: text, target {span1_text, span2_text, ..}, label ("true" or "false").

    Config FewCLUE_cluewsc_ppl_4284a0.
    """
    prompt = '{text}\nHere, is the pronoun "{span2_text}" used to mean "{span1_text}"? '
    return _dataset(
        (
            [prompt.format(text=row["text"], **row["target"]) + answer for answer in ("No.", "Yes.")],
            ["false", "true"].index(row["label"]),
        )
        for row in rows
    )


def wsc(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of aps/super_glue, wsc.fixed: text, span1_text, span2_text, label (0 false, 1 true).

    Config SuperGLUE_WSC_ppl_d0f531.
    """
    prompt = "{text}\nIs '{span1_text}' and '{span2_text}' refers to the same entity in the above sentence?\n"
    return _dataset(([prompt.format_map(row) + answer for answer in ("No", "Yes")], row["label"]) for row in rows)


def boolq(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of aps/super_glue, boolq: passage, question, label (0 no, 1 yes). Config SuperGLUE_BoolQ_ppl_314b96."""
    prompt = "{passage}\nQuestion: {question}?\n"
    return _dataset(([prompt.format_map(row) + answer for answer in ("No", "Yes")], row["label"]) for row in rows)


def c3(**_: Any) -> dict[str, datasets.Dataset]:
    """{"test": the dialogue half of C3's dev, as `c3_rows` has it}."""
    file = hub.file(C3_URL)
    with hub.reading(file):
        return {"test": c3_rows(json.loads(file.read_text(encoding="utf-8")))}


def c3_rows(documents: Iterable[Sequence]) -> datasets.Dataset:
    """Documents of nlpdata/c3: [lines of the dialogue, questions {question, choice (2 to 4), answer}, id].

    Config CLUE_C3_ppl_e24a31. OpenCompass fills up to 4 choices with copies of the first. A copy never wins, since of
    equal choices the first does: without the copies the score is the same.
    """
    return _dataset(
        (
            [f"文章：{' '.join(lines)}\n问题：{item['question']}\n答案：{choice}" for choice in item["choice"]],
            item["choice"].index(item["answer"]),
        )
        for lines, items, _id in documents
        for item in items
    )


def commonsense_qa(**_: Any) -> dict[str, datasets.Dataset]:
    """{"validation": CommonsenseQA's, as `commonsense_qa_rows` has it with the first training questions}."""
    data = datasets.load_dataset("tau/commonsense_qa")
    return {"validation": commonsense_qa_rows(islice(data["train"], COMMONSENSE_QA_SHOTS), data["validation"])}


def commonsense_qa_rows(examples: Iterable[Row], rows: Iterable[Row]) -> datasets.Dataset:
    """Rows of tau/commonsense_qa: question, choices {label (A to E), text}, answerKey (a letter).

    Config commonsenseqa_ppl_5545e2, but for its examples: OpenCompass takes for each question the 30 nearest training
    questions by sentence embedding (all-mpnet-base-v2) and of ten draws of 8 from them the one for which GPT-2 XL is
    surest. Here `examples` come before every question.
    """

    def block(row: Row, answer: str) -> str:
        return f"Question: {row['question']}\nAnswer: \n{answer}"

    def key(row: Row) -> int:
        return row["choices"]["label"].index(row["answerKey"])

    shots = _shots([block(row, row["choices"]["text"][key(row)]) for row in examples])
    return _dataset(([shots + block(row, answer) for answer in row["choices"]["text"]], key(row)) for row in rows)


def _dataset(items: Iterable[tuple[list[str], int]]) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"choices": choices, "answer": answer} for choices, answer in items])


def _shots(blocks: Sequence[str]) -> str:
    """Worked examples before a question, with the many newlines that OpenCompass puts in for a base model.

    Its separator and its end mark are newlines that it joins with further newlines, as if they were turns.
    """
    return "\n\n\n".join(blocks) + "\n\n\n\n\n"


# ---------------------------------------------------------------------------------------------------------------------
# Letters and generation


def cmmlu(**_: Any) -> dict[str, datasets.Dataset]:
    """The test questions of CMMLU's 67 subjects, each after the five development questions of its subject.

    The hub's haonan-li/cmmlu is one archive with dev/<subject>.csv and test/<subject>.csv.

    Returns:
        {"test": dataset}; columns as in `cmmlu_rows`.
    """
    archive = huggingface_hub.hf_hub_download("haonan-li/cmmlu", "cmmlu_v1_0_1.zip", repo_type="dataset")
    rows = []
    with zipfile.ZipFile(archive) as files:
        for subject, name in cmmlu_subjects().items():
            dev, test = (
                # "NA" and "None" are answers, not gaps.
                pd.read_csv(files.open(f"{split}/{subject}.csv"), dtype=str, keep_default_na=False).to_dict("records")
                for split in ("dev", "test")
            )
            rows += cmmlu_rows(subject, name, dev, test)
    return {"test": datasets.Dataset.from_list(rows)}


def cmmlu_rows(subject: str, name: str, dev: Sequence[Row], test: Iterable[Row]) -> list[dict]:
    """Rows of a subject's CSV files: Question, A, B, C, D, Answer (a letter). Config cmmlu_ppl_8b9c76.

    Args:
        subject: the subject's English name.
        name: the subject's Chinese name.
        dev: the first five are the worked examples.
        test: the questions.

    Returns:
        A row a question: subject, prompt (all but the letter), answer (0..3).
    """

    def block(row: Row) -> str:
        options = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD")
        return f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n题目：{row['Question']}{options}\n答案是:"

    shots = _shots([f"{block(row)} {row['Answer']}" for row in dev[:CMMLU_SHOTS]])
    return [{"subject": subject, "prompt": shots + block(row), "answer": "ABCD".index(row["Answer"])} for row in test]


@cache
def cmmlu_subjects() -> dict[str, str]:
    """English -> Chinese names of the 67 subjects, from lm-eval's own CMMLU tasks.

    Raises:
        StudyError: lm-eval's tasks no longer look as they did.
    """
    names = {}
    for file in sorted((Path(lm_eval.__file__).parent / "tasks" / "cmmlu").glob("cmmlu_*.yaml")):
        found = re.search(r"以下是关于(.+?)的单项选择题", file.read_text(encoding="utf-8"))
        if found:
            names[file.stem.removeprefix("cmmlu_")] = found[1]
    if len(names) != 67:
        raise StudyError(f"lm-eval names {len(names)} subjects of CMMLU, not 67: was lm-eval updated?")
    return names


def xsum(rows: Iterable[Row]) -> datasets.Dataset:
    """The first 1000 rows of EdinburghNLP/xsum (document, summary, id), less those with an empty text."""
    return datasets.Dataset.from_list(
        [dict(row) for row in islice(rows, XSUM_ROWS) if row["document"] and row["summary"]]
    )


def xsum_rouge(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """`process_results` of XSum: the F-measure of ROUGE-1, no stemming, of the answer's first line.

    Args:
        doc: a row of `xsum`.
        results: the generated text.

    Returns:
        rouge1, a fraction: table 1 prints it times 100, as OpenCompass does.
    """
    from rouge_score.rouge_scorer import RougeScorer  # here: it brings in nltk, which no other task needs

    answer = results[0].strip().split("\n")[0]
    return {"rouge1": RougeScorer(["rouge1"]).score(doc["summary"], answer)["rouge1"].fmeasure}
