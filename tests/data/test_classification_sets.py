"""Data sets to classify: labels, splits that share nothing, prompts and the words of labels."""

from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import classification_sets
from layer_redundancy.data.classification_sets import SOURCES, Source, Texts
from layer_redundancy.models import smollm2

PACKAGED = [name for name, source in SOURCES.items() if source.kind]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


def plain(texts: Texts) -> set[str]:
    return {" ".join(text.lower().split()) for text in texts.texts}


@pytest.mark.parametrize("name", PACKAGED)
def test_parts_share_no_text_and_no_review(name):
    data = classification_sets.load(name)
    parts = [data.train, data.validation, data.test]
    assert all(len(part) == len(plain(part)) for part in parts)
    assert sum(map(len, parts)) == len(set.union(*map(plain, parts)))
    assert 0.15 < len(data.test) / sum(map(len, parts)) < 0.25
    rows = list(classification_sets._scored(SOURCES[name].kind))
    times = Counter(text for *_, text in rows)
    place = {text: number for number, part in enumerate(parts) for text in part.texts}
    of_review: dict[str, set[int]] = {}
    for identity, _, text in rows:
        if text in place and times[text] == 1:
            of_review.setdefault(identity.partition("_")[0], set()).add(place[text])
    assert max(map(len, of_review.values())) == 1


def test_labels_are_those_of_clear_scores():
    rows = list(classification_sets._scored("movieReviewSnippets"))
    assert len(rows) == 10605 and {type(score) for _, score, _ in rows} == {float}
    data = classification_sets.load("movie_reviews")
    scores = {text: score for _, score, text in rows}
    for part in (data.train, data.validation, data.test):
        for text, label in zip(part.texts, part.labels, strict=True):
            assert abs(scores[text]) >= classification_sets.CLEAR_SCORE and (scores[text] > 0) == label
    doubtful = sum(abs(score) < classification_sets.CLEAR_SCORE for _, score, _ in rows)
    assert data.left_out["of doubtful label"] == doubtful == 1432
    assert len(data.train) + len(data.validation) + len(data.test) + sum(data.left_out.values()) == len(rows)


def test_a_limit_of_words_moves_no_text_to_another_part():
    whole, short = classification_sets.load("amazon_reviews"), classification_sets.load("amazon_reviews", 12)
    assert max(len(text.split()) for text in short.test.texts) == 12
    for part in ("train", "validation", "test"):
        assert plain(getattr(short, part)) < plain(getattr(whole, part))


def test_unknown_data_and_a_limit_that_leaves_nothing_are_one_line():
    with pytest.raises(StudyError, match="unknown data set 'imdb': choose one of movie_reviews"):
        classification_sets.load("imdb")
    with pytest.raises(StudyError, match="has no text with the label"):
        classification_sets.load("editorials", 1)


def test_a_data_set_of_the_hub_out_of_reach_is_one_line(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StudyError) as error:
        classification_sets.load.__wrapped__("ag_news")
    assert "\n" not in str(error.value) and "ag_news" in str(error.value)


def test_shots_are_balanced_seeded_and_of_the_training_part():
    data = classification_sets.load("amazon_reviews", 16)
    one, again, other = (classification_sets.shots(data.train, 20, seed) for seed in (0, 0, 1))
    assert np.bincount(one.labels).tolist() == [20, 20] and len(set(one.texts)) == 40
    assert one.texts == again.texts and set(one.texts) != set(other.texts)
    assert set(one.texts) <= set(data.train.texts) and not set(one.texts) & set(data.test.texts)
    with pytest.raises(StudyError, match="5000 texts of each label are wanted"):
        classification_sets.shots(data.train, 5000, 0)


def test_fewer_items_are_the_first_of_more():
    data = classification_sets.load("tweets", 10)
    assert classification_sets.few(data.test, 5, 0).texts == classification_sets.few(data.test, 20, 0).texts[:5]
    assert len(classification_sets.few(data.test, None, 0)) == len(data.test)


def test_words_can_be_counted():
    train = Texts(("good fine", "good", "bad poor", "bad"), np.array([1, 1, 0, 0]))
    judged = Texts(("good day", "bad day", "poor", "good"), np.array([1, 0, 0, 1]))
    assert classification_sets.bag_of_words(train, judged).tolist() == [True] * 4


@pytest.mark.parametrize("name", SOURCES)
def test_label_words_are_single_tokens_that_follow_the_template(tokenizer, name):
    source = SOURCES[name]
    ids = classification_sets.label_tokens(source, tokenizer)
    assert len(set(ids.tolist())) == len(source.labels)
    for word, token in zip(source.words.values(), ids, strict=True):
        assert f" {word}".startswith(tokenizer.decode(token))
        prompt = source.template.format(text="Well, well.")
        whole = tokenizer(f"{prompt} {word}").input_ids
        assert whole[len(tokenizer(prompt).input_ids)] == token


def test_words_that_cannot_be_told_apart_are_one_line(tokenizer):
    same = Source("", "It: {text}\nIs:", {"one": "Good", "other": "Good"})
    with pytest.raises(StudyError, match="'one' and 'other' begin with the same token"):
        classification_sets.label_tokens(same, tokenizer)


def test_a_tokenizer_that_joins_template_and_word_is_one_line():
    letters = sorted(set("It: {text}\nIs: good bad ."))
    vocabulary = {token: number for number, token in enumerate([*letters, ": "])}
    joining = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, [(":", " ")])))
    source = Source("", "It: {text}\nIs:", {"one": "good", "other": "bad"})
    with pytest.raises(StudyError, match="joins the template's end with the word 'good'"):
        classification_sets.label_tokens(source, joining)


def test_prompts_and_demonstrations(tokenizer):
    source = SOURCES["movie_reviews"]
    shown = Texts(("Dull.", "Superb."), np.array([0, 1]))
    prefix = classification_sets.demonstrations(source, shown)
    assert prefix == "Review: Dull.\nSentiment: Negative\n\nReview: Superb.\nSentiment: Positive\n\n"
    asked = Texts(("Not bad, not bad at all.", "No."), np.array([1, 0]))
    examples = classification_sets.encode(source, asked, tokenizer, prefix)
    assert tokenizer.decode(examples[0]["input_ids"]).endswith("Review: Not bad, not bad at all.\nSentiment:")
    batch = classification_sets.collate(examples)
    assert batch["attention_mask"].sum(1).tolist() == [len(e["input_ids"]) for e in examples]
    assert batch["label"].tolist() == [1, 0]
    assert batch["input_ids"][1, len(examples[1]["input_ids"]) :].eq(0).all()


def test_fingerprint_knows_tokens_labels_and_words(tokenizer):
    source, texts = SOURCES["tweets"], Texts(("a", "b"), np.array([0, 1]))
    words = classification_sets.label_tokens(source, tokenizer)
    one = classification_sets.encode(source, texts, tokenizer)
    other = classification_sets.encode(source, Texts(texts.texts, np.array([1, 1])), tokenizer)
    prints = {
        classification_sets.fingerprint(one, words=words),
        classification_sets.fingerprint(other, words=words),
        classification_sets.fingerprint(one, words=words.flip(0)),
        classification_sets.fingerprint(one, one, words=words),
    }
    assert len(prints) == 4
    assert classification_sets.fingerprint(one, words=words) in prints


def test_the_caption_says_what_was_left_out():
    said = classification_sets.note(["movie_reviews", "amazon_reviews"], shots=2, items=8, max_words=8)
    assert "doubtful label" in said and "too long" in said and "a score within ±1" in said


def test_padding_token_is_never_read():
    """Token 0 is a word of the vocabulary for some tokenizers: the mask, not the token, says what is padding."""
    examples = [{"input_ids": torch.tensor([0, 0, 5]), "label": torch.tensor(0)}]
    assert classification_sets.collate(examples)["attention_mask"].tolist() == [[1, 1, 1]]
