"""How far rules get on a multiple-choice task that read nothing: what an accuracy must be compared with.

A task on which one of them beats guessing measures that, and not what its name says.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from layer_redundancy.core import stats
from layer_redundancy.data import corpora
from layer_redundancy.evaluate.scoring import ChoiceTask

CORPUS = "wikipedia"  # whose calibration split tells how frequent words are
WORD = re.compile(r"\w+")
PARTS = (3, 4, 5)  # letters of a part of a word
Units = Callable[[str], list[str]]  # a text -> its words, or parts of words
Rule = Callable[[str, list[str]], np.ndarray]  # text before, choices -> a score of each choice; the highest is taken


def table(tasks: Sequence[ChoiceTask]) -> pd.DataFrame:
    """Accuracy of every rule on every task, on all items that the task has here.

    Where a rule is of two minds it gets its share of the item: 0.5 where it cannot choose between two of which one is
    right.

    Args:
        tasks: multiple-choice tasks; items that have nothing to choose, or several right answers, are left out.

    Returns:
        task, rule, accuracy (0 to 1), low, high (95 % t interval; NaN for MOST_OFTEN, which is picked by the right
        answers), n (items), chance. A rule that can never choose is left out, unless it is one of `ALWAYS`.
    """
    rows = []
    for task in tasks:
        items = [
            (*_read(item), item.gold) for item in task.items.items if item.num_choices > 1 and item.gold is not None
        ]
        if not items:
            continue
        chance = float(np.mean([1 / len(choices) for _, choices, _ in items]))
        rules = RULES | OF_ONE_TASK.get(task.items.name, {})
        found = {
            name: [_credit(rule(text, choices), gold) for text, choices, gold in items] for name, rule in rules.items()
        }
        if len({len(choices) for _, choices, _ in items}) == 1:
            places = Counter(gold for _, _, gold in items)
            found[MOST_OFTEN] = [float(gold == places.most_common(1)[0][0]) for *_, gold in items]
        for name, credits in found.items():
            values = np.array(credits)
            if name in ALWAYS or (values != [1 / len(choices) for _, choices, _ in items]).any():
                low, high = (np.nan, np.nan) if name == MOST_OFTEN else stats.mean_interval(values)
                row = {"task": task.items.name, "rule": name, "accuracy": values.mean(), "low": low, "high": high}
                rows.append(row | {"n": len(values), "chance": chance})
    return pd.DataFrame(rows, columns=["task", "rule", "accuracy", "low", "high", "n", "chance"])


def largest(rules: pd.DataFrame) -> pd.DataFrame:
    """The most that any rule gets of each task.

    Args:
        rules: from `table`.

    Returns:
        task, rule, accuracy, low, high (NaN: it is picked on the items that it is judged on), n, chance, and rules (how
        many it is the largest of); in the order of the tasks.
    """
    found = rules.sort_values("accuracy", kind="stable").drop_duplicates("task", keep="last").sort_index()
    counts = rules.groupby("task").size()
    return found.assign(low=np.nan, high=np.nan, rules=found["task"].map(counts)).reset_index(drop=True)


def _read(item: Any) -> tuple[str, list[str]]:
    """The text before an item's choices, and these."""
    text, choices = item.task.doc_to_text(item.doc), item.task.doc_to_choice(item.doc)
    return text if isinstance(text, str) else "", list(choices)


def _credit(scores: np.ndarray, gold: int) -> float:
    """1 where the right choice alone has the highest score, 0 where it has not, a share where several have it."""
    best = np.abs(scores - scores.max()) < 1e-9
    return float(best[gold] / best.sum())


# ---------------------------------------------------------------------------------------------------- rules


def _alike(units: Units) -> Rule:
    """Cosine of TF-IDF vectors with the text before."""

    def scores(text: str, choices: list[str]) -> np.ndarray:
        before, *vectors = (_vector(part, units) for part in (text, *choices))
        return np.array([sum(value * before.get(unit, 0.0) for unit, value in vector.items()) for vector in vectors])

    return scores


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _parts(text: str) -> list[str]:
    """Runs of three to five letters in a text's words, whose beginnings and ends are marked by a space."""
    words = [f" {word} " for word in _words(text)]
    return [word[i : i + size] for word in words for size in PARTS for i in range(len(word) - size + 1)]


def _frequency(_text: str, choices: list[str]) -> np.ndarray:
    """Mean logarithm of a word's probability, by counts plus one."""
    counts, total = _counts()
    means = []
    for choice in choices:
        words = _words(choice) or [choice]
        means.append(np.mean([np.log((counts[word] + 1) / total) for word in words]))
    return np.array(means)


def _length(_text: str, choices: list[str]) -> np.ndarray:
    return np.array([len(choice) for choice in choices])


def _times(text: str, choices: list[str]) -> np.ndarray:
    return np.array([len(_places(text, choice)) for choice in choices])


def _latest(text: str, choices: list[str]) -> np.ndarray:
    return np.array([max(_places(text, choice), default=-1) for choice in choices])


def _earliest(text: str, choices: list[str]) -> np.ndarray:
    return -np.array([min(_places(text, choice), default=len(text)) for choice in choices])


def _places(text: str, choice: str) -> list[int]:
    """Where a choice stands in a text, as whole words."""
    return [match.start() for match in re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text)]


def _plural_after_s(text: str, choices: list[str]) -> np.ndarray:
    plural = _words(text)[-1].endswith("s")
    return np.array([(choice in ("are", "were", "have", "do")) == plural for choice in choices], dtype=float)


def _opposite(rule: Rule) -> Rule:
    return lambda text, choices: -rule(text, choices)


RULES: dict[str, Rule] = {
    "most like the text before (TF-IDF)": _alike(_words),
    "least like the text before (TF-IDF)": _opposite(_alike(_words)),
    "most like the text before in parts of words (TF-IDF)": _alike(_parts),
    "most frequent words": _frequency,
    "rarest words": _opposite(_frequency),
    "longest": _length,
    "shortest": _opposite(_length),
    "stands most often in the text before": _times,
    "stands last in the text before": _latest,
    "stands first in the text before": _earliest,
}
MOST_OFTEN = "the place that is right most often"
ALWAYS = ("most like the text before (TF-IDF)", "most frequent words", "longest", "shortest")
OF_ONE_TASK: dict[str, dict[str, Rule]] = {"agreement": {"plural after a word in -s": _plural_after_s}}


@cache
def _counts() -> tuple[Counter[str], int]:
    """How often each word stands in the calibration text, and the sum of counts plus one."""
    counts = Counter(word for text in corpora.articles(CORPUS, "calibration") for word in _words(text))
    return counts, counts.total() + len(counts) + 1


@cache
def _idf(units: Units) -> tuple[dict[str, float], float]:
    """Inverse document frequencies, smoothed as scikit-learn's are, of the calibration text's paragraphs; of others."""
    paragraphs = [part for text in corpora.articles(CORPUS, "calibration") for part in text.split("\n\n")]
    found = Counter(unit for part in paragraphs for unit in set(units(part)))
    most = np.log(1 + len(paragraphs)) + 1
    return {unit: float(most - np.log(1 + count)) for unit, count in found.items()}, float(most)


def _vector(text: str, units: Units) -> dict[str, float]:
    """A text's words, or parts of words, and their TF-IDF; of length 1."""
    idf, unknown = _idf(units)
    vector = {unit: count * idf.get(unit, unknown) for unit, count in Counter(units(text)).items()}
    length = sum(value**2 for value in vector.values()) ** 0.5
    return {unit: value / length for unit, value in vector.items()}
