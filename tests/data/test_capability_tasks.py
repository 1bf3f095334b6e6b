"""The study's own tasks: deterministic, balanced, right by rule, and no item tells its answer by a trait."""

import collections
import re

import pytest

from layer_redundancy.data import capability_tasks, corpora

TASKS = {name: getattr(capability_tasks, name) for name in ("agreement", "copying", "last_word")}


@pytest.fixture(scope="module")
def rows():
    return {name: make()["test"].to_list() for name, make in TASKS.items()}


@pytest.fixture(scope="module")
def texts():
    return [" ".join(text.split()) for text in corpora.articles("wikipedia", "evaluation")]


@pytest.mark.parametrize("name", TASKS)
def test_items_are_the_same_every_time_enough_and_of_articles_in_turn(rows, name):
    found = rows[name]
    assert found == TASKS[name]()["test"].to_list()
    assert len(found) >= 400 and len({row["context"] + str(row["choices"]) for row in found}) == len(found)
    articles = [row["article"] for row in found]
    assert len(set(articles)) > 30
    first = len(set(articles))
    assert len(set(articles[:first])) == first, "each article's first item comes before any second"
    for row in found:
        assert len(set(row["choices"])) == len(row["choices"]) == (2 if name == "agreement" else 4)


def test_agreement_is_balanced_by_verb_number_and_the_word_before(rows, texts):
    cells = collections.Counter()
    for row in rows["agreement"]:
        right, wrong = row["choices"][row["answer"]], row["choices"][1 - row["answer"]]
        assert f"{row['context']} {right} " in texts[row["article"]]
        pair, number = capability_tasks.NUMBER[right]
        assert capability_tasks.NUMBER[wrong] == (pair, 1 - number)
        before = [word.strip("\"“”‘’'(),;:.!?[]").lower() for word in row["context"].split()]
        assert not set(before) & (set(capability_tasks.NUMBER) | capability_tasks.EITHER_NUMBER)
        cells[pair, number, before[-1].endswith("s")] += 1
    for pair in {pair for pair, *_ in cells}:
        assert len({cells[pair, number, in_s] for number in (0, 1) for in_s in (False, True)}) == 1, cells
    assert abs(sum(row["answer"] for row in rows["agreement"]) / len(rows["agreement"]) - 0.5) < 0.05


def test_copying_asks_for_the_word_that_followed_and_no_trait_tells_it(rows, texts):
    places = collections.Counter()
    for row in rows["copying"]:
        words = row["context"].split()
        listed, again = words[:12], words[12:]
        assert len(again) == 3 and len(set(listed)) == 12
        at = listed.index(again[0])
        right = row["choices"][row["answer"]]
        assert listed[at : at + 4] == [*again, right]
        assert not set(row["choices"]) & set(again)
        assert all(word in texts[row["article"]] for word in listed)
        places[sorted(row["choices"], key=listed.index).index(right)] += 1
    assert max(places.values()) - min(places.values()) <= 1


def test_last_words_end_sentences_of_the_article_and_are_alike(rows, texts):
    for row in rows["last_word"]:
        text, right = texts[row["article"]], row["choices"][row["answer"]]
        assert f"{' '.join(row['context'].split())} {right}." in text
        assert len(row["context"]) < 300 + 31 * 20
        shown = {word[:4] for word in re.findall(r"\w+", row["context"].lower())}
        for word in row["choices"]:
            assert f" {word}." in text and len(word) == len(right) >= 4 and word[:4] not in shown
            assert word == right or word[:4] != right[:4], "no form of the right word is a wrong one"


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
    assert capability_tasks.sentences(paragraph) == (expected or [paragraph])
