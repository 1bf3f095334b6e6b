"""Text classification as a language model does it: data sets, templates, words that stand for labels, splits.

A text is put into a template that ends where its label's word would follow, and the label whose word is the likeliest
next token wins. The sentiment sets come inside a package and need no hub; the others are those of the paper (Why Lift
so Heavy?, arXiv 2402.11700), but for EmoC, in whose place stands another set of emotions.

The paper's templates and words are not known to us. Those used here are the ones in the public code of its first
author's study of the same month on the same data sets (GNNavi, arXiv 2402.11709), and like ones where that has none.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from layer_redundancy.config import sources
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data import review_archive
from layer_redundancy.data.benchmark_items import data_errors
from layer_redundancy.data.tokens import without_end

# The sentiment sets' scores go from -4 (very negative) to 4: texts nearer to zero than this are left out as doubtful.
CLEAR_SCORE = 1.0
PARTS = 5  # the sentiment sets' parts, by a hash: one is the test part, one the validation part, the others train
VALIDATION = 10  # one text in so many of the hub's training splits, by a hash, is for validation


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it is asked.

    Attributes:
        what: kind of the texts, for a caption.
        template: prompt with {text} in it; the label's word follows after a space.
        words: label -> its word, in the order of the labels' numbers.
        kind: kind of the archive's snippets; "" for a data set on the hub.
        repository: repository on the hub.
        config: configuration of the repository; None for its only one.
        text, label: names of the columns.
        test: split that is tested on; "train" is the other.
        names: the label column's values -> labels, where the values are no numbers.
    """

    what: str
    template: str
    words: Mapping[str, str]
    kind: str = ""
    repository: str = ""
    config: str | None = None
    text: str = "text"
    label: str = "label"
    test: str = "test"
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of their numbers."""
        return tuple(self.words)


_SENTIMENT = {"negative": "Negative", "positive": "Positive"}


def _snippets(kind: str, what: str) -> Source:
    return Source(what, "Review: {text}\nSentiment:", _SENTIMENT, kind)


SOURCES: dict[str, Source] = {
    # Hutto and Gilbert, 2014: sentences with the mean of 20 people's scores.
    "movie_reviews": _snippets("movieReviewSnippets", "sentences of film reviews"),
    "amazon_reviews": _snippets("amazonReviewSnippets", "sentences of product reviews"),
    "editorials": Source(
        "sentences of newspaper editorials", "Article: {text}\nSentiment:", _SENTIMENT, "nytEditorialSnippets"
    ),
    "tweets": Source("tweets", "Tweet: {text}\nSentiment:", _SENTIMENT, "tweets"),
    "sst2": Source(
        "sentences of film reviews",
        "Review: {text}\nSentiment:",
        _SENTIMENT,
        repository="stanfordnlp/sst2",
        text="sentence",
        test="validation",  # the test split has no labels
    ),
    "ag_news": Source(
        "news in brief",
        "Article: {text}\nAnswer:",
        {"world": "World", "sports": "Sports", "business": "Business", "technology": "Technology"},
        repository="fancyzhx/ag_news",
    ),
    "trec": Source(
        "questions by the kind of answer",
        "Question: {text}\nAnswer Type:",
        {
            "abbreviation": "Abbreviation",
            "entity": "Entity",
            "description": "Description",
            "person": "Person",
            "location": "Location",
            "number": "Number",
        },
        repository="SetFit/TREC-QC",
        label="label_coarse_original",
        names={
            "ABBR": "abbreviation",
            "ENTY": "entity",
            "DESC": "description",
            "HUM": "person",
            "LOC": "location",
            "NUM": "number",
        },
    ),
    # The paper's EmoC is EmoContext: dialogues that are happy, sad, angry or something else.
    "emotion": Source(
        "tweets by emotion",
        "Dialogue: {text}\nEmotion:",
        {
            "sadness": "Sad",
            "joy": "Happy",
            "love": "Love",
            "anger": "Angry",
            "fear": "Fear",
            "surprise": "Surprise",
        },
        repository="dair-ai/emotion",
        config="split",
    ),
}


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts with their labels' numbers; int64 (texts,)."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, places: Sequence[int] | np.ndarray) -> "Texts":
        """The texts at these places, in this order, with their labels."""
        return Texts(tuple(self.texts[i] for i in places), self.labels[np.asarray(places, int)])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split. No text is in two parts.

    Attributes:
        name: a key of `SOURCES`.
        train: texts from which shots are drawn.
        validation: texts on which a method may be tuned.
        test: texts on which it is judged.
        left_out: number of texts that are in no part, by reason.
    """

    name: str
    train: Texts
    validation: Texts
    test: Texts
    left_out: Mapping[str, int]

    @property
    def source(self) -> Source:
        return SOURCES[self.name]


@cache
def load(name: str, max_words: int | None = None) -> DataSet:
    """A data set, split by a hash of its texts, so that the parts are the same everywhere and whatever is left out.

    Args:
        name: a key of `SOURCES`.
        max_words: longer texts are left out; None for none.

    Raises:
        StudyError: unknown data set, or it cannot be downloaded.
    """
    if name not in SOURCES:
        raise StudyError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    rows = list(_rows_of_package(source) if source.kind else _rows_of_hub(name))
    left_out = dict.fromkeys(("of doubtful label", "too long", "repeated"), 0)
    seen: set[str] = set()
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    # The test part first, so that of a text that is there twice, the training part's goes.
    for part, text, label in sorted(rows, key=lambda row: row[0] != "test"):
        plain = " ".join(text.lower().split())
        if label is None:
            left_out["of doubtful label"] += 1
        elif max_words is not None and len(text.split()) > max_words:
            left_out["too long"] += 1
        elif plain in seen:
            left_out["repeated"] += 1
        else:
            seen.add(plain)
            parts[part].append((text, label))
    for part, found in parts.items():
        if missing := set(range(len(source.labels))) - {label for _, label in found}:
            raise StudyError(
                f"the {part} part of {name} has no text with the label {source.labels[min(missing)]!r}: raise max_words"
            )
    train, validation, test = (Texts(*_columns(found)) for found in parts.values())
    return DataSet(name, train, validation, test, left_out)


def _columns(rows: list[tuple[str, int]]) -> tuple[tuple[str, ...], np.ndarray]:
    texts, labels = zip(*rows, strict=True)
    return texts, np.array(labels, np.int64)


def _rows_of_package(source: Source) -> Iterator[tuple[str, str, int | None]]:
    """Rows (part, text, label); sentences 3_1, 3_2, ... come from one review and are all in the same part."""
    for identity, score, text in _scored(source.kind):
        part = {0: "test", 1: "validation"}.get(_hash(f"{source.kind} {identity.partition('_')[0]}") % PARTS, "train")
        yield part, text, None if abs(score) < CLEAR_SCORE else int(score > 0)


def _scored(kind: str) -> Iterator[tuple[str, float, str]]:
    """Rows (identity, mean score, text) of the archive's file of a kind, which is tab-separated."""
    for line in review_archive.snippets(kind):
        if line.count("\t") >= 2:
            identity, score, text = line.split("\t", 2)
            yield identity, float(score), " ".join(text.replace("''", '"').split())


def _rows_of_hub(name: str) -> Iterator[tuple[str, str, int | None]]:
    """Rows (part, text, label) of the repository's training split, some for validation, and of its test split."""
    import datasets

    source = SOURCES[name]
    numbers = {label: i for i, label in enumerate(source.labels)}
    with data_errors(name):
        splits = {
            split: datasets.load_dataset(
                source.repository, source.config, split=split, revision=sources.DATA[name].revision
            )
            for split in ("train", source.test)
        }
        columns = {split: (list(rows[source.text]), list(rows[source.label])) for split, rows in splits.items()}
    for split, (texts, labels) in columns.items():
        for text, label in zip(texts, labels, strict=True):
            text = " ".join(text.split())
            held_out = _hash(f"{name} {text.lower()}") % VALIDATION == 0
            part = "test" if split != "train" else "validation" if held_out else "train"
            yield part, text, numbers[source.names[label]] if source.names else int(label)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def fetch(name: str) -> None:
    """Downloads a data set; errors as `load`."""
    load(name)


# ------------------------------------------------------------------------------------------------ items of a run


def shots(texts: Texts, per_class: int, seed: int) -> Texts:
    """`per_class` texts of each label, drawn at random, in random order.

    Raises:
        StudyError: a label has fewer.
    """
    rng = np.random.default_rng(seed)
    places: list[int] = []
    for label in np.unique(texts.labels):
        of_label = np.flatnonzero(texts.labels == label)
        if len(of_label) < per_class:
            raise StudyError(f"{per_class} texts of each label are wanted, label {label} has {len(of_label)}")
        places += rng.choice(of_label, per_class, replace=False).tolist()
    rng.shuffle(places)
    return texts.chosen(places)


def few(texts: Texts, limit: int | None, seed: int) -> Texts:
    """The first texts after a seeded shuffle; those of a smaller limit are the first of a larger one's."""
    return texts.chosen(np.random.default_rng(seed).permutation(len(texts))[:limit])


def bag_of_words(train: Texts, judged: Texts) -> np.ndarray:
    """Which texts a logistic regression on word counts gets right that has seen `train`; bool (judged,).

    What can be had without a language model: scikit-learn's, with its own penalty.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(binary=True)
    model = LogisticRegression(max_iter=1000).fit(words.fit_transform(train.texts), train.labels)
    return model.predict(words.transform(judged.texts)) == judged.labels


def demonstrations(source: Source, examples: Texts) -> str:
    """Worked examples to put before every prompt: their templates with the labels' words, a blank line after each."""
    words = list(source.words.values())
    asked = zip(examples.texts, examples.labels, strict=True)
    return "".join(f"{source.template.format(text=text)} {words[label]}\n\n" for text, label in asked)


def label_tokens(source: Source, tokenizer: Any) -> torch.Tensor:
    """The token by which each label's word begins after the template; int64 (labels,).

    Raises:
        NotApplicable: two labels share one, or the tokenizer joins the template's end with the word.
    """
    prompt = source.template.format(text="It is.")
    tokenizer = without_end(tokenizer)
    before = tokenizer(prompt).input_ids
    tokens: dict[int, str] = {}
    for label, word in source.words.items():
        whole = tokenizer(f"{prompt} {word}").input_ids
        if whole[: len(before)] != before or len(whole) == len(before):
            raise NotApplicable(
                f"the tokenizer joins the template's end with the word {word!r}: choose another template"
            )
        if (other := tokens.setdefault(whole[len(before)], label)) != label:
            raise NotApplicable(
                f"the words of the labels {other!r} and {label!r} begin with the same token for this tokenizer: give "
                "the classification source other words"
            )
    return torch.tensor(list(tokens))


def encode(source: Source, texts: Texts, tokenizer: Any, prefix: str = "") -> list[dict[str, torch.Tensor]]:
    """Prompts as a model reads them.

    Args:
        source: the data set's source, which gives the template.
        texts: texts to classify.
        tokenizer: the model's tokenizer; it decides whether a prompt begins with a beginning-of-sequence token.
        prefix: worked examples from `demonstrations`.

    Returns:
        For each text `input_ids`, int64 (tokens,), and `label`, int64 ().
    """
    prompts = [prefix + source.template.format(text=text) for text in texts.texts]
    ids = without_end(tokenizer)(prompts, verbose=False).input_ids
    return [
        {"input_ids": torch.tensor(found), "label": torch.tensor(int(label))}
        for found, label in zip(ids, texts.labels, strict=True)
    ]


def collate(examples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of `encode`'s examples, padded on the right.

    Returns:
        input_ids and attention_mask, int64 (batch, longest); label, int64 (batch,). Padding is token 0, which the mask
        hides.
    """
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "label": torch.stack([example["label"] for example in examples]),
    }


def fingerprint(*parts: Iterable[Mapping[str, torch.Tensor]], words: torch.Tensor) -> str:
    """sha256 (hex) of all tokens and labels of some lists of examples, and of the labels' words."""
    content = [[(e["input_ids"].tolist(), int(e["label"])) for e in part] for part in parts]
    return hashlib.sha256(repr([content, words.tolist()]).encode()).hexdigest()


def note(datasets: Sequence[str], shots: int, items: int | None, max_words: int | None) -> str:
    """The data sets in a caption: texts of each part, and what was left out."""
    described = []
    for name in datasets:
        data = load(name, max_words)
        gone = ", ".join(f"{count} {reason}" for reason, count in data.left_out.items() if count)
        described.append(
            f"{name} ({data.source.what}): {shots} shots a class of {len(data.train)} texts, "
            f"{min(len(data.test), items or len(data.test))} test items of {len(data.test)}"
            + (f"; left out: {gone}" if gone else "")
        )
    packaged = any(SOURCES[name].kind for name in datasets)
    limits = [f"of a score within ±{CLEAR_SCORE:g}" * packaged]
    limits += [f"of more than {max_words} words" * (max_words is not None)]
    reasons = " or ".join(filter(None, limits))
    return ". ".join(described) + (f". Left out are texts {reasons}" if reasons else "")


@dataclass(frozen=True)
class PromptChoice:
    """Which texts of a data set a model reads, and how they are asked.

    Attributes:
        dataset: a key of `SOURCES`.
        part: "test", or "validation" to choose a learning rate.
        seed: seed of the draw of the shots.
        shots: training texts of each label.
        demonstrations: worked examples of each label before every prompt; drawn with the shots and no part of them.
        items: texts that are judged; None for all.
        max_words: longer texts are left out; None for none.
        virtual_tokens: tokens that are put before a prompt, at most.
    """

    dataset: str
    part: str
    seed: int
    shots: int
    demonstrations: int
    items: int | None
    max_words: int | None
    virtual_tokens: int


@dataclass(frozen=True, eq=False)
class LabelledPrompts:
    """Prompts to tune on and to judge on, as `encode` has them.

    Attributes:
        train: the shots.
        judged: the texts that are judged.
        words: the token of each label's word; int64 (labels,).
        fingerprint: sha256 (hex) of all examples and of the labels' words.
    """

    train: Sequence[Mapping[str, torch.Tensor]]
    judged: Sequence[Mapping[str, torch.Tensor]]
    words: torch.Tensor
    fingerprint: str

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(example["input_ids"]) for part in (self.train, self.judged) for example in part)

    @property
    def train_tokens(self) -> int:
        """Tokens of all shots."""
        return sum(len(example["input_ids"]) for example in self.train)

    @property
    def judged_tokens(self) -> int:
        """Tokens of all texts that are judged."""
        return sum(len(example["input_ids"]) for example in self.judged)


def drawn(choice: PromptChoice) -> tuple[Texts, Texts]:
    """The shots of a choice, and its demonstrations' texts; errors as `load` and `shots`."""
    data = load(choice.dataset, choice.max_words)
    both = shots(data.train, choice.shots + choice.demonstrations, choice.seed)
    # The demonstrations' texts are shots too many, drawn with the others: the first of each label.
    shown = [
        place
        for label in range(len(data.source.labels))
        for place in np.flatnonzero(both.labels == label)[: choice.demonstrations]
    ]
    return both.chosen([place for place in range(len(both)) if place not in shown]), both.chosen(sorted(shown))


def labelled_prompts(choice: PromptChoice, tokenizer: Any, seed: int) -> LabelledPrompts:
    """The prompts of a choice for one tokenizer.

    Args:
        choice: the texts and how they are asked.
        tokenizer: the model's tokenizer.
        seed: seed of the choice of the judged texts, the same for all shots.

    Raises:
        StudyError: as `load`, `shots` and `label_tokens`.
    """
    data = load(choice.dataset, choice.max_words)
    train, shown = drawn(choice)
    prefix = demonstrations(data.source, shown)
    judged = few(getattr(data, choice.part), choice.items, seed)
    to_tune, to_judge = (encode(data.source, texts, tokenizer, prefix) for texts in (train, judged))
    words = label_tokens(data.source, tokenizer)
    return LabelledPrompts(to_tune, to_judge, words, fingerprint(to_tune, to_judge, words=words))
