"""The study's own benchmarks, whose data is built from installed packages and needs no hub.

The task files data/tasks/mmlu_dev*.yaml and passage_continuation.yaml name the functions here.
"""

import random
import re
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import yaml

from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora

# What is wrong with the development questions inside lm-eval, and what is done about each: (subject, index) ->
# (kept, reason). "The answer" is that of the worked example, which is all the package has.
MMLU_DEFECTS = {
    ("college_chemistry", 3): (False, "five options, the answer is the fifth"),
    ("college_physics", 3): (False, "repeats question 0 of the same subject"),
    ("abstract_algebra", 1): (True, "a line of the previous question's worked answer leaked in front: cut off"),
    ("high_school_computer_science", 4): (True, "MMLU's own key says D, which never ends; the answer B is right"),
    ("high_school_biology", 0): (True, "options A and C are equal; both are wrong, so the answer D is unharmed"),
}

SHORT_QUESTION = 160  # characters; about 45 tokens with the letters
# Sentences of passage_continuation; short enough to be cheap, long enough to say something.
SENTENCE_WORDS = range(8, 31)
# A full stop after one of these, after an initial or after an inner full stop (e.g., U.S.) ends no sentence.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Za-z]|\S*\.\S+|Mr|Mrs|Ms|Dr|St|Mt|Gen|Col|Lt|Capt|Sgt|Gov|Sen|Rep|Prof|Rev|Hon|Jr|Sr|ca|cf|"
    r"vs|etc|al|No|vol|pp|fl|approx|Inc|Co|Corp|Ltd|Bros)\.$"
)


def mmlu_dev(**_: Any) -> dict[str, datasets.Dataset]:
    """The usable MMLU development questions inside the lm-eval package (Hendrycks et al. 2021; MIT).

    They are the worked examples of its flan_cot_fewshot prompts: the question, then on a new line `(A) .. (B) .. (C) ..
    (D) ..`, and a reasoned answer that ends in `The answer is (X).` What `MMLU_DEFECTS` says is applied.

    Returns:
        {"test": dataset}; columns subject, index (within the subject), question, choices (4 texts), answer (0..3).
    """
    folder = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "flan_cot_fewshot"
    rows = []
    for file in sorted(folder.glob("mmlu_*.yaml")):
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        subject = config["dataset_name"]
        for index, sample in enumerate(config["fewshot_config"]["samples"]):
            kept, _reason = MMLU_DEFECTS.get((subject, index), (True, ""))
            if not kept:
                continue
            question, *choices = re.split(r"\s+\([ABCD]\) ", sample["question"].strip())
            (letter,) = re.findall(r"The answer is \(([ABCD])\)", sample["target"])
            if (subject, index) == ("abstract_algebra", 1):
                question = question.splitlines()[-1]
            if len(choices) != 4:
                raise StudyError(
                    f"{file.name} of lm-eval, question {index}, has {len(choices)} options: was lm-eval updated?"
                )
            rows.append(
                {
                    "subject": subject,
                    "index": index,
                    "question": question,
                    "choices": [choice.strip() for choice in choices],
                    "answer": "ABCD".index(letter),
                }
            )
    return {"test": datasets.Dataset.from_list(rows)}


def mmlu_dev_fewshot(**_: Any) -> dict[str, datasets.Dataset]:
    """`mmlu_dev` with the five questions of one subject as worked examples for the short ones of all others.

    Returns:
        {"train": the five of the subject miscellaneous, "test": the others of at most SHORT_QUESTION characters, with
        their options}; columns as in `mmlu_dev`.
    """
    whole = mmlu_dev()["test"]
    return {
        "train": whole.filter(lambda doc: doc["subject"] == "miscellaneous"),
        "test": whole.filter(
            lambda doc: (
                doc["subject"] != "miscellaneous" and len(doc["question"] + "".join(doc["choices"])) <= SHORT_QUESTION
            )
        ),
    }


def passage_continuation(**_: Any) -> dict[str, datasets.Dataset]:
    """Passages of the Wikipedia extract's evaluation split, each with four candidates for the next sentence.

    A passage is the first two sentences of a paragraph, the right candidate its third, and each wrong one the third
    sentence of a paragraph of another article, three different articles. All sentences have 8 to 30 words. The right
    candidate is at each of the four positions equally often.

    Returns:
        {"test": dataset}; columns article (position in the split), context, choices (4 texts), answer (0..3).
    """
    passages = []
    for article, text in enumerate(corpora.articles("wikipedia", "evaluation")):
        for paragraph in text.split("\n\n"):
            first = sentences(paragraph)[:3]
            if len(first) == 3 and all(len(sentence.split()) in SENTENCE_WORDS for sentence in first):
                passages.append((article, " ".join(first[:2]), first[2]))
    rng = random.Random(0)
    rng.shuffle(passages)
    by_article: dict[int, list[str]] = {}
    for article, _context, third in passages:
        by_article.setdefault(article, []).append(third)
    rows = []
    for i, (article, context, third) in enumerate(passages):
        others = rng.sample(sorted(by_article.keys() - {article}), 3)
        choices = [rng.choice(by_article[other]) for other in others]
        choices.insert(i % 4, third)
        rows.append({"article": article, "context": context, "choices": choices, "answer": i % 4})
    return {"test": datasets.Dataset.from_list(rows)}


def sentences(paragraph: str) -> list[str]:
    """Splits a paragraph of English prose at sentence ends, by rule: a closing mark, a space and a capital after it."""
    pieces = re.split(r"""(?<=[.!?])\s+(?=["“(]?[A-Z0-9])|(?<=[.!?]["”’)])\s+(?=["“(]?[A-Z0-9])""", paragraph)
    whole: list[str] = []
    for piece in pieces:
        if whole and ABBREVIATION.search(whole[-1]):
            whole[-1] += " " + piece
        else:
            whole.append(piece)
    return whole
