"""What a language model can do, one ability a task: items made by rule from the Wikipedia extract's evaluation split.

The task files data/tasks/agreement.yaml, copying.yaml and last_word.yaml name the functions here. Each item is of one
article, and articles take turns. Wrong answers are drawn so that what can be told without reading does not help: how
frequent a word is, how long, whether and where it stands in the text before (`without_a_model` measures that).
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import datasets

from layer_redundancy.data import corpora

Row = dict[str, Any]

# A full stop after one of these, after an initial or after an inner full stop (e.g., U.S.) ends no sentence.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Za-z]|\S*\.\S+|Mr|Mrs|Ms|Dr|St|Mt|Gen|Col|Lt|Capt|Sgt|Gov|Sen|Rep|Prof|Rev|Hon|Jr|Sr|ca|cf|"
    r"vs|etc|al|No|vol|pp|fl|approx|Inc|Co|Corp|Ltd|Bros)\.$"
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Forms of one verb, singular and plural.
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
NUMBER = {verb: (pair, number) for pair, forms in enumerate(VERBS) for number, verb in enumerate(forms)}
# Among the last words before the verb: after these it has one form, whatever the subject.
AUXILIARIES = _words("to not may might can could shall should will would must did let make made makes help")
# Directly before the verb: what says nothing of number, or has forms of its own.
NO_SUBJECT = _words(
    "that which who whom what where when why how there here than as so if whether then thus while also you i we "
    "following"
)
# Anywhere before the verb: both forms are in use after these, or either may be meant, or the subject may follow.
EITHER_NUMBER = _words(
    "and & or nor either neither none any all some most half third quarter part parts much many more rest majority "
    "minority number percent plus including together along accused if though although wish lest among shown seen "
    "pictured series species means headquarters data media staff team family government police public band company "
    "committee crew army navy council congress parliament group couple pair population variety range class generation "
    "cast club party people's fish sheep deer aircraft offspring politics physics mathematics economics ethics "
    "statistics linguistics oscars states nations netherlands awards actresses xv"
)
# The subject may follow the verb where a sentence begins with one of these and no comma ends what they begin.
PREPOSITIONS = _words("of to in on at by for from with among under over near behind within between after before")
SUBJECT_WORDS = range(2, 31)

LIST_WORDS = 12
AGAIN = 3  # words of the list that are said again before the one that is asked for
ITEMS_OF_ARTICLE = 12

BEFORE = 300  # characters before the sentence whose last word is asked for
STEM = 4  # letters that the forms of a word begin with
SENTENCE_WORDS = range(8, 31)


def agreement(**_: Any) -> dict[str, datasets.Dataset]:
    """The beginning of a sentence, to its first is/are, was/were or has/have: which of the two goes on?

    As many sentences take the singular as the plural, for each of the three verbs, and of either as many have a word in
    -s before the verb as another word. Sentences in which both forms are right, or could be, are left out by lists.

    Returns:
        {"test": dataset}; columns article (position in the split), context, choices (2 verbs), answer (0 or 1).
    """
    cells: dict[tuple[int, int, bool], list[Row]] = {}
    for article, paragraph in _paragraphs():
        for sentence in sentences(paragraph):
            words = sentence.split()
            at = next((i for i, word in enumerate(words) if _plain(word) in NUMBER), 0)
            before = [_plain(word) for word in words[:at]]
            if (
                len(before) not in SUBJECT_WORDS
                or words[at] not in NUMBER
                or before[-1] in NO_SUBJECT
                or before[-1].endswith("ly")
                or AUXILIARIES & set(before[-4:])
                or EITHER_NUMBER & set(before)
                or "%" in sentence
                or sentence.count('"') % 2
                or (before[0] in PREPOSITIONS and "," not in " ".join(words[:at]))
            ):
                continue
            pair, number = NUMBER[words[at]]
            row: Row = {"article": article, "context": " ".join(words[:at]), "pair": pair, "number": number}
            cells.setdefault((pair, number, before[-1].endswith("s")), []).append(row)
    rng = random.Random(0)
    cells = {place: list({row["context"]: row for row in cell}.values()) for place, cell in cells.items()}
    rows: list[Row] = []
    for pair in range(len(VERBS)):
        kept = [cells.get((pair, number, in_s), []) for number in (0, 1) for in_s in (False, True)]
        least = min(map(len, kept))
        rows += [row for cell in kept for row in _spread(cell, rng)[:least]]
    rows = _spread(rows, rng)
    for row, turned in zip(rows, _halves(len(rows), rng), strict=True):
        row["choices"] = list(VERBS[row.pop("pair")])[:: -1 if turned else 1]
        row["answer"] = row.pop("number") ^ turned
    return {"test": datasets.Dataset.from_list(rows)}


def copying(**_: Any) -> dict[str, datasets.Dataset]:
    """Twelve words in random order, then three of them that follow each other once more: which is the next?

    The choices are the word that followed in the list, and three of the others that were not said again; the right one
    is the first, second, third or last of them in the list equally often. Words are of one article, none twice.

    Returns:
        {"test": dataset}; columns article (position in the split), context, choices (4 words), answer (0..3).
    """
    rng = random.Random(0)
    frequency = Counter(word for text in corpora.articles("wikipedia", "calibration") for word in text.lower().split())
    rows: list[Row] = []
    for article, text in enumerate(corpora.articles("wikipedia", "evaluation")):
        words = sorted({word for word in text.split() if re.fullmatch("[a-z]{4,9}", word)})
        rng.shuffle(words)
        lists = [words[i : i + LIST_WORDS] for i in range(0, len(words) - LIST_WORDS + 1, LIST_WORDS)]
        rows += [{"article": article, "words": words} for words in lists[:ITEMS_OF_ARTICLE]]
    rows = _spread(rows, rng)
    for i, row in enumerate(rows):
        words, place = row.pop("words"), i % 4  # place: how many of the other choices come before the right one
        start = rng.randrange(place, LIST_WORDS - AGAIN - 3 + place)  # leaves as many words as are needed on each side
        asked = start + AGAIN
        others = rng.sample(words[:start], place) + rng.sample(words[asked + 1 :], 3 - place)
        # The right one is the most frequent of the four, the second, third or fourth equally often.
        chosen = sorted([words[asked], *others], key=lambda word: (-frequency[word], word))
        right = chosen[i // 4 % 4]
        swapped = {right: words[asked], words[asked]: right}
        words = [swapped.get(word, word) for word in words]
        row["context"] = " ".join(words + words[start:asked])
        row["choices"] = rng.sample(chosen, 4)
        row["answer"] = row["choices"].index(right)
    return {"test": datasets.Dataset.from_list(rows)}


def last_word(**_: Any) -> dict[str, datasets.Dataset]:
    """A sentence of an article without its last word, after 300 characters of what comes before: which word ends it?

    All four choices end a sentence of the same article and have the same number of letters, four or more. No word that
    begins with the same four letters stands in the text that is shown.

    Returns:
        {"test": dataset}; columns article (position in the split), context, choices (4 words), answer (0..3).
    """
    rng = random.Random(0)
    rows: list[Row] = []
    for article, text in enumerate(corpora.articles("wikipedia", "evaluation")):
        found = [
            (sentence, match[1])
            for paragraph in text.split("\n\n")
            for sentence in sentences(paragraph)
            if len(sentence.split()) in SENTENCE_WORDS and (match := re.search(r" ([a-z]{4,})\.$", sentence))
        ]
        for sentence, word in found:
            at = text.index(sentence)
            start = text.find(" ", max(0, at - BEFORE)) + 1 if at > BEFORE else 0
            context = text[start:at] + sentence[: -len(word) - 2]
            shown = {part[:STEM] for part in re.findall(r"\w+", context.lower())}
            others = [
                other
                for _, other in rng.sample(found, len(found))
                if len(other) == len(word) and other[:STEM] not in shown and other[:STEM] != word[:STEM]
            ]
            others = list(dict.fromkeys(others))[:3]  # frequent ones come early: as frequent as right ones
            if word[:STEM] not in shown and len(others) == 3:
                rows.append({"article": article, "context": context, "choices": [word, *others]})
    rows = _spread(rows, rng)
    for row in rows:
        word = row["choices"][0]
        rng.shuffle(row["choices"])
        row["answer"] = row["choices"].index(word)
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


def _paragraphs() -> Iterator[tuple[int, str]]:
    """The evaluation articles' paragraphs, with the article's position in the split."""
    for article, text in enumerate(corpora.articles("wikipedia", "evaluation")):
        for paragraph in text.split("\n\n"):
            yield article, paragraph


def _plain(word: str) -> str:
    """A word in lower case without what surrounds it."""
    return word.strip("\"“”‘’'(),;:.!?[]").lower()


def _spread(rows: list[Row], rng: random.Random) -> list[Row]:
    """Rows in random order, each article's in turn."""
    by_article: dict[int, list[Row]] = {}
    for row in rng.sample(rows, len(rows)):
        by_article.setdefault(row["article"], []).append(row)
    return [row for turn in zip_longest(*by_article.values()) for row in turn if row is not None]


def _halves(num: int, rng: random.Random) -> list[int]:
    """As many zeros as ones, in random order."""
    return rng.sample([i % 2 for i in range(num)], num)
