"""MMLU's development questions as benchmarks of their own: their data is in an installed package and needs no hub.

The task files data/tasks/mmlu_dev*.yaml name the functions here.
"""

import re
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import yaml

from layer_redundancy.core.errors import StudyError

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
