"""Running text as token blocks: calibration and evaluation come from different articles, always the same ones."""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from layer_redundancy.config import own_files, profiles, sources
from layer_redundancy.config.profiles import TextBudget
from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import hub
from layer_redundancy.data.tokens import prepends_bos

Split = Literal["calibration", "evaluation"]
SPLITS: tuple[Split, Split] = ("calibration", "evaluation")

RULES_VERSION = 1  # part of the cached file's name: raise it when a cleaning rule changes
MIN_PARAGRAPH_WORDS = 20  # table cells, captions and list entries are shorter
MIN_ARTICLE_WORDS = 200  # redirects, disambiguation pages and lists leave less prose than that
TEXT_FILE_ARTICLE_WORDS = 2000  # a single .txt is cut after the paragraph that reaches this

# The books of PG-19 by split: its validation and its test split.
PG19_FILES: dict[Split, str] = {"calibration": "data/validation-*.parquet", "evaluation": "data/test-*.parquet"}

C4_FILES: dict[Split, str] = {
    "calibration": "en/c4-train.00000-of-01024.json.gz",
    "evaluation": "en/c4-validation.00000-of-00008.json.gz",
}
PACKED = ("c4", "alpaca")  # corpora of short documents, which are trained on one after the other
PACK_DOCUMENTS = 2000  # documents that are tokenised at a time

# A paragraph of prose starts like a sentence (list entries, headings, table rows and templates do not) and ends like
# one (captions and lines that lead into a list or a formula do not).
SENTENCE_START = re.compile(r"""["“'(]?[^\W_a-z]""")
SENTENCE_END = re.compile(r"""[.!?]["'”’)]*$""")
MARKUP = re.compile(r"[\[\]{}<>|\\=]|https?:|\b\d+px\b|^\w+:\S")  # what the wikitext filter did not resolve
# A removed template or formula leaves its surroundings: "an algorithm ( ) is", "an area of  and", "the Greek , i.e.".
HOLE = re.compile(r"""\(\s*[,;:)]|\(\s|\s[,;:.)?](?!\d)|[^.!?:;,)"”’%]\s{2,}\S""")


@dataclass(frozen=True, eq=False)
class TokenBlocks:
    """Token blocks of one split of a corpus.

    Attributes:
        input_ids: int64 tensor of shape (num_blocks, block_length); no padding.
        corpus: the corpus as captions name it.
        split: "calibration" or "evaluation".
        bos: each block starts with the beginning-of-sequence token.
    """

    input_ids: torch.Tensor
    corpus: str
    split: Split
    bos: bool

    @property
    def num_tokens(self) -> int:
        """Tokens in all blocks, beginning-of-sequence tokens included."""
        return self.input_ids.numel()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the shape and then the ids, both as little-endian int64."""
        ids = self.input_ids.numpy()
        return hashlib.sha256(np.array(ids.shape, "<i8").tobytes() + ids.astype("<i8").tobytes()).hexdigest()


def token_blocks(budget: TextBudget, tokenizer: Any, split: Split, least: int | None = None) -> TokenBlocks:
    """Cuts a split of the budget's corpus into blocks and takes as many as the budget says.

    Every article is tokenised by itself and cut into whole blocks, so that no block spans two articles; the rest of an
    article is left out. Then blocks are dealt round-robin over the articles: the first n blocks come from as many
    articles as there are, and are the same whatever number is asked. Which article comes first, and which of its
    blocks, is decided by a hash, so that blocks do not all come from the openings of articles.

    Args:
        budget: corpus, block length and number of blocks.
        tokenizer: a transformers tokenizer. Blocks start with its beginning-of-sequence token exactly if it prepends
            that token by default, as its models were trained: Llama-2 and Gemma need it, SmolLM2 and GPT-2 have none.
        split: "calibration" or "evaluation".
        least: blocks that will do where the corpus has fewer than the budget asks for; as many as it asks if not given.

    Raises:
        StudyError: unknown corpus, or less text than the budget asks for.
    """
    budget = profiles.valid(TextBudget, budget)
    name = own_files.corpus_name(budget.corpus)
    asked = budget.calibration_blocks if split == "calibration" else budget.evaluation_blocks
    cut, tokens = _cut(articles(budget.corpus, split), tokenizer, budget.block_length)
    blocks = _dealt(cut)
    needed = asked if least is None else least
    if len(blocks) < needed:
        raise StudyError(
            f"corpus {name!r} gives {len(blocks)} {split} blocks of {budget.block_length} tokens "
            f"({tokens} tokens in {len(cut)} articles), not {needed}: "
            "ask for fewer or shorter blocks, or give a corpus with more text"
        )
    return TokenBlocks(torch.tensor(blocks[:asked], dtype=torch.long), name, split, prepends_bos(tokenizer))


def _cut(texts: Iterable[str], tokenizer: Any, block_length: int) -> tuple[list[list[list[int]]], int]:
    """Whole blocks of each article, articles and their blocks in the order of a hash; and how many tokens all have."""
    prefix = [tokenizer.bos_token_id] if prepends_bos(tokenizer) else []
    length = block_length - len(prefix)
    texts = sorted(texts, key=_digest)
    # verbose=False: an article longer than the model's context is no reason to warn, it is cut below.
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    cut = []
    for text, tokens in zip(texts, ids, strict=True):
        tokens = _between(prefix, tokens, [])[len(prefix) :]
        digests = [_digest(f"{k} {text}") for k in range(len(tokens) // length)]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        cut.append([prefix + tokens[k * length : (k + 1) * length] for k in order])
    return cut, sum(map(len, ids))


def _dealt(cut: Iterable[list[list[int]]]) -> list[list[int]]:
    """A block of each article in turn."""
    return [block for turn in zip_longest(*cut) for block in turn if block is not None]


def token_counts(corpus: str, tokenizer: Any) -> np.ndarray:
    """How often each token is in a corpus's calibration articles; (V,) int64."""
    ids = tokenizer(articles(corpus, "calibration"), add_special_tokens=False, verbose=False).input_ids
    return np.bincount(np.concatenate([np.array(one, dtype=np.int64) for one in ids]), minlength=len(tokenizer))


HELD_OUT_ARTICLES = 8  # one article of so many is held out from training, at least


@dataclass(frozen=True, eq=False)
class TrainingText:
    """All blocks of a corpus that may be trained on, and held-out ones.

    Attributes:
        blocks: int64 (num_blocks, block_length), dealt over the articles that are not held out.
        held_out: int64 (num_held_out, block_length), of other articles, unless there is a single one.
        corpus: the corpus as captions name it.
        bos: each block starts with the beginning-of-sequence token.
    """

    blocks: torch.Tensor
    held_out: torch.Tensor
    corpus: str
    bos: bool

    def of_seed(self, count: int, seed: int) -> TokenBlocks:
        """So many blocks to train on, fewer where there are not as many, then the held-out ones.

        Each seed has blocks of its own as long as there are enough; the held-out ones are the same for all.
        """
        num = len(self.blocks)
        chosen = [(seed * count + k) % num for k in range(min(count, num))]
        return TokenBlocks(torch.cat([self.blocks[chosen], self.held_out]), self.corpus, "calibration", self.bos)


def training_text(corpus: str, tokenizer: Any, length: int, held_out: int = 0) -> TrainingText:
    """Text to train on, dealt over the corpus's calibration articles as `token_blocks` deals, and held-out text.

    No article is both trained on and held out, unless there is a single one.

    Args:
        corpus: a corpus that `articles` knows.
        tokenizer: a transformers tokenizer; blocks begin as those of `token_blocks`.
        length: tokens a block.
        held_out: number of blocks to hold out; they are the first of more.

    Raises:
        StudyError: unknown corpus, or less text than that.
    """
    _check_size(1, "calibration", length)
    rest = [blocks for blocks in _cut(articles(corpus, "calibration"), tokenizer, length)[0] if blocks]
    number, held = len(rest), []
    if number == 1:
        held, rest = [rest[0][:held_out]], [rest[0][held_out:]]
    while held_out and len(rest) > 1 and (len(held) < number // HELD_OUT_ARTICLES or sum(map(len, held)) < held_out):
        held.append(rest.pop())
    trained, apart, name = _dealt(rest), _dealt(held)[:held_out], own_files.corpus_name(corpus)
    if not trained or len(apart) < held_out:
        raise StudyError(
            f"corpus {name!r} has {len(trained) + sum(map(len, held))} calibration blocks of {length} tokens in "
            f"{number} articles, {held_out} of them to be held out with their articles: nothing is left to train on"
        )
    blocks, held_out_blocks = (torch.tensor(some, dtype=torch.long).reshape(-1, length) for some in (trained, apart))
    return TrainingText(blocks, held_out_blocks, name, prepends_bos(tokenizer))


def _check_size(blocks: int, split: str, length: int) -> None:
    whole = all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in (blocks, length))
    if not (whole and blocks >= 1 and length >= 2):
        raise StudyError(
            f"{blocks!r} {split} blocks of {length!r} tokens: give whole numbers, at least 1 block of 2 tokens"
        )


def packed_blocks(corpus: str, tokenizer: Any, split: Split, length: int, count: int) -> TokenBlocks:
    """Text to train on: articles one after the other, in the order of a hash, cut into blocks whatever ends in them.

    Articles begin with the beginning-of-sequence token where the tokenizer prepends it, and otherwise end with the
    end-of-sequence token where there is one.

    Args:
        corpus: a corpus that `articles` knows.
        tokenizer: a transformers tokenizer.
        split: "calibration" or "evaluation".
        length: tokens a block.
        count: number of blocks; fewer where the corpus has less text.

    Raises:
        StudyError: unknown corpus, or less text than one block.
    """
    _check_size(count, split, length)
    key = {
        "corpus": corpus,
        "split": split,
        "length": length,
        "count": count,
        "tokenizer": _tokenizer_digest(tokenizer),
    }
    if corpus not in PACKED:
        return _packed(corpus, tokenizer, split, length, count)
    key |= {"revision": sources.DATA[corpus].revision, "rules": RULES_VERSION}

    rules = _tokenizer_rules(tokenizer)

    def write(folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "tokens.npy", _packed(corpus, tokenizer, split, length, count).input_ids.numpy())
        (folder / "rules.txt").write_text(rules)

    folder = cache.made_once("tokens", key, write)
    # Tokenizers of one vocabulary that cut texts in other ways.
    if (folder / "rules.txt").is_file() and (folder / "rules.txt").read_text() != rules:
        folder = cache.made_once("tokens", key | {"tokenizer_rules": rules}, write)
    with cache.reading(folder):
        blocks = torch.from_numpy(np.load(folder / "tokens.npy"))
    return TokenBlocks(blocks, corpus, split, prepends_bos(tokenizer))


def _packed(corpus: str, tokenizer: Any, split: Split, length: int, count: int) -> TokenBlocks:
    bos = prepends_bos(tokenizer)
    first = [tokenizer.bos_token_id] if bos else []
    last = [] if bos or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = sorted(articles(corpus, split), key=_digest)
    pieces, num = [], 0
    for start in range(0, len(texts), PACK_DOCUMENTS):
        found = tokenizer(texts[start : start + PACK_DOCUMENTS], add_special_tokens=False, verbose=False).input_ids
        pieces += [np.array(_between(first, ids, last), dtype=np.int64) for ids in found]
        num = sum(map(len, pieces))
        if num >= length * count:
            break
    if num < length:
        name = own_files.corpus_name(corpus)
        raise StudyError(f"corpus {name!r} has {num} {split} tokens: no block of {length} can be cut from it")
    blocks = np.concatenate(pieces)[: num // length * length].reshape(-1, length)[:count]
    return TokenBlocks(torch.from_numpy(blocks), own_files.corpus_name(corpus), split, bos)


def _tokenizer_digest(tokenizer: Any) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return _digest(f"{type(tokenizer).__name__} {vocabulary}")


def _tokenizer_rules(tokenizer: Any) -> str:
    """Hash of what else than its vocabulary decides a tokenizer's tokens: its merges, what it puts around them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    around = [prepends_bos(tokenizer), tokenizer.bos_token_id, getattr(tokenizer, "eos_token_id", None)]
    return _digest(f"{around} {'' if backend is None else backend.to_str()}")


def _between(first: list[int], ids: list[int], last: list[int]) -> list[int]:
    """A text's tokens with one token before or after them, or none, also where the text itself spells it."""
    ids = ids[1:] if first and ids[:1] == first else ids
    ids = ids[:-1] if last and ids[-1:] == last else ids
    return [*first, *ids, *last]


def articles(corpus: str, split: Split) -> list[str]:
    """The articles of one split, cleaned, in the corpus's order; paragraphs are separated by an empty line.

    The two splits share no article: articles are ranked by a hash of their title (of their text where there is no
    title) and go to the splits in turn.

    Args:
        corpus: one of
            - "wikipedia": the extract of the English Wikipedia that gensim ships for its tests, as prose; 46 articles
              with 237 k SmolLM2 tokens for calibration and 45 with 223 k for evaluation;
            - "pg19": Gutenberg books from the hub (emozilla/pg19), its 50 validation books for calibration and its 100
              test books for evaluation;
            - "c4": web pages from the hub (allenai/c4, English), the first of 1024 files of its training split for
              calibration and the first of 8 of its validation split for evaluation;
            - "alpaca": instructions and answers from the hub (yahma/alpaca-cleaned), each in Alpaca's template;
            - the path of a text of the user's own (UTF-8): a .txt file, cut into articles of about 2000 words at empty
              lines; a .jsonl file, each line an article in its field "text", or in the one that is named after a # as
              in "reviews.jsonl#body"; a folder of .txt files, each an article. A folder that holds one of these for
              either split, named after it (calibration.jsonl and evaluation.jsonl, calibration/ and evaluation/), is
              split by these, and no text may be in both. A relative path starts at the project's root.
        split: "calibration" or "evaluation".

    Raises:
        StudyError: unknown corpus, a file that cannot be read or split, or unreachable hub.
    """
    if split not in SPLITS:
        raise StudyError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if corpus == "pg19":
        return _pg19(split)
    if corpus == "c4":
        return _c4(split)
    found = _in_turn(TITLED[corpus]()) if corpus in TITLED else own_articles(corpus)
    return found[split]


def _in_turn(titled: Mapping[str, str]) -> dict[Split, list[str]]:
    """Articles by split: ranked by a hash of their title, they go to the splits in turn."""
    ranked = sorted(titled, key=_digest)
    mine = {split: set(ranked[place::2]) for place, split in enumerate(SPLITS)}
    return {split: [text for title, text in titled.items() if title in mine[split]] for split in SPLITS}


def prose(wikitext: str) -> str:
    """The prose of a page, whose markup gensim resolves: whole paragraphs, case and punctuation kept.

    A paragraph is dropped unless it has at least 20 words, starts and ends like a sentence, and holds neither markup
    nor the gap that a removed template or formula leaves; so headings, lists, tables, captions and references go.
    """
    from gensim.corpora.wikicorpus import filter_wiki

    kept = []
    for line in filter_wiki(wikitext).split("\n"):
        paragraph = re.sub(r"'{2,}", "", line).strip()  # bold and italics
        if (
            len(paragraph.split()) >= MIN_PARAGRAPH_WORDS
            and SENTENCE_START.match(paragraph)
            and SENTENCE_END.search(paragraph)
            and not MARKUP.search(paragraph)
            and not HOLE.search(paragraph)
        ):
            kept.append(" ".join(paragraph.split()))
    return "\n\n".join(kept)


def _wikipedia() -> dict[str, str]:
    """Title -> prose; cleaned once, then read from a file whose name holds all it depends on."""
    import bz2

    import gensim
    from gensim.corpora.wikicorpus import extract_pages
    from gensim.test.utils import datapath

    dump = Path(datapath("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"))
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    cached = paths.CACHE / f"wikipedia-{digest[:12]}-v{RULES_VERSION}-gensim-{gensim.__version__}.json"

    def write(file: Path) -> None:
        with bz2.open(dump) as pages:
            cleaned = {title: prose(text) for title, text, _ in extract_pages(pages, filter_namespaces=("0",))}
        cleaned = {title: text for title, text in cleaned.items() if len(text.split()) >= MIN_ARTICLE_WORDS}
        file.write_text(json.dumps(cleaned, ensure_ascii=False, indent=0), encoding="utf-8")

    cache.made_at(cached, "wikipedia", write)
    with cache.reading(cached):
        return {str(title): str(text) for title, text in json.loads(cached.read_text(encoding="utf-8")).items()}


def pg19_files() -> Path:
    """The folder of PG-19's validation and test splits, downloaded once; its training split of 11 GB stays where it is.

    Raises:
        StudyError: they are not in the hub's cache, and the hub cannot be reached or does not hand them out.
    """
    source = sources.DATA["pg19"]
    return hub.snapshot(source.repository, source.revision, list(PG19_FILES.values()), "dataset")


def _pg19(split: Split) -> list[str]:
    """The books of one of PG-19's own splits."""
    import pandas as pd

    files = sorted(pg19_files().glob(PG19_FILES[split]))
    if not files:
        raise StudyError(f"corpus 'pg19' has no file {PG19_FILES[split]} on the hub any more: name another corpus")
    texts: list[str] = []
    for file in files:
        with hub.reading(file):
            texts.extend(pd.read_parquet(file, columns=["text"])["text"])
    return texts


def c4_files() -> Path:
    """The folder of a file of C4's training and one of its validation split, downloaded once; as `pg19_files`."""
    source = sources.DATA["c4"]
    return hub.snapshot(source.repository, source.revision, list(C4_FILES.values()), "dataset")


def _c4(split: Split) -> list[str]:
    file = c4_files() / C4_FILES[split]
    with hub.reading(file), gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
        if not texts:
            raise ValueError("it is empty")
        return texts


ALPACA_FILE = "alpaca_data_cleaned.json"
# Taori et al. 2023, with an input and without.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}",
)


def alpaca_files() -> Path:
    """The folder of the cleaned Alpaca instructions, downloaded once; errors as `pg19_files`."""
    source = sources.DATA["alpaca"]
    return hub.snapshot(source.repository, source.revision, [ALPACA_FILE], "dataset")


def _alpaca() -> dict[str, str]:
    file = alpaca_files() / ALPACA_FILE
    with hub.reading(file):
        rows = json.loads(file.read_text(encoding="utf-8"))
        texts = [ALPACA[not row["input"].strip()].format_map(row) for row in rows]
    return {text: text for text in texts}


def own_articles(corpus: str) -> dict[Split, list[str]]:
    """The articles of a text of the user's own by split; see `articles`.

    Raises:
        StudyError: nothing is there, or it cannot be read or split.
    """
    path, field = own_files.find_text(corpus)
    if path.is_dir() and (places := _places(path)):
        found = {split: _own_texts(place, field) for split, place in places.items()}
        for split, texts in found.items():
            if not texts:
                raise StudyError(f"{own_files.shown(places[split])} has no text in it")
        if both := found["calibration"].keys() & found["evaluation"].keys():
            first = min(both)
            raise StudyError(
                f"corpus {path.name!r}: {found['calibration'][first]} and {found['evaluation'][first]} hold the same "
                "text, and nothing may be judged on text that blocks were chosen by: take it out of one of them"
            )
        return {split: list(texts) for split, texts in found.items()}
    texts = _own_texts(path, field)
    if len(texts) < len(SPLITS):
        raise StudyError(
            f"corpus {path.name!r} has {len(texts)} articles: calibration and evaluation need one each at least (a "
            f".txt file is cut into articles of {TEXT_FILE_ARTICLE_WORDS} words at empty lines, a folder has one a "
            ".txt file, a .jsonl file one a line)"
        )
    # A folder's articles are ranked by their files' names, others by their text.
    return _in_turn({name if path.is_dir() else text: text for text, name in texts.items()})


def _places(folder: Path) -> dict[Split, Path]:
    """Where a folder keeps each split, as a folder or a file named after it; {} if it does not sort its texts so."""
    found: dict[Split, Path] = {}
    for split in SPLITS:
        named = [folder / f"{split}{ending}" for ending in ("", *own_files.TEXT_ENDINGS)]
        here = [path for path in named if os.path.lexists(path)]
        if len(here) > 1:
            raise StudyError(f"corpus {folder.name!r} has both {here[0].name} and {here[1].name}: keep one of them")
        if here:
            found[split] = here[0]
    if len(found) == 1:
        (split,) = found
        other = next(one for one in SPLITS if one != split)
        raise StudyError(f"corpus {folder.name!r} has {found[split].name}, but no {other} beside it")
    return found


def _own_texts(path: Path, field: str) -> dict[str, str]:
    """Text -> the file that it is in, and its line there; equal texts count once, those of blanks not at all."""
    if path.is_dir():
        found = [(_read(file).strip(), file.name) for file in sorted(path.glob("*.txt"))]
        if not found:
            raise StudyError(
                f"{own_files.shown(path)} has no .txt files in it, nor calibration and evaluation as folders or files"
            )
    elif path.suffix == ".jsonl":
        found = [(text.strip(), f"{path.name}, line {number}") for number, text in _lines(path, field)]
    else:
        found = [(text, path.name) for text in _pieces(re.split(r"\n\s*\n", _read(path)))]
    texts: dict[str, str] = {}
    for text, name in found:
        if text:
            texts.setdefault(text, name)
    return texts


def _lines(file: Path, field: str) -> Iterator[tuple[int, str]]:
    """Line numbers of a .jsonl file, from 1 on, and the text in each; empty lines are passed over."""
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        at = f"{own_files.shown(file)}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{at}: no JSON ({error})") from None
        if not isinstance(row, dict) or field not in row:
            keys = ", ".join(row) if isinstance(row, dict) else "none"
            raise StudyError(
                f"{at}: no field {field!r} (it has {keys}): name the field of the text, as in "
                f'corpus = "{file.name}#{next(iter(row), "text") if isinstance(row, dict) else "text"}"'
            )
        if not isinstance(row[field], str):
            raise StudyError(f"{at}: field {field!r} must be a text, not {row[field]!r:.60}")
        if re.search("[\ud800-\udfff]", row[field]):
            raise StudyError(
                f"{at}: field {field!r} holds half a character (a lone surrogate), which no tokenizer reads"
            )
        yield number, row[field]


def _read(file: Path) -> str:
    try:
        if not file.is_file():  # a pipe would be waited for, for ever
            raise FileNotFoundError(file)
        return file.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read {cache.shown(file)}: it must be a readable UTF-8 text file") from error


def _pieces(paragraphs: Iterable[str]) -> Iterable[str]:
    """Joins paragraphs to pieces of at least TEXT_FILE_ARTICLE_WORDS words; the last may be shorter."""
    piece, words = [], 0
    for paragraph in filter(None, map(str.strip, paragraphs)):
        piece.append(paragraph)
        words += len(paragraph.split())
        if words >= TEXT_FILE_ARTICLE_WORDS:
            yield "\n\n".join(piece)
            piece, words = [], 0
    if piece:
        yield "\n\n".join(piece)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()  # a file's name may be no UTF-8


# Corpora whose articles have titles, by which they go to the splits.
TITLED = {"wikipedia": _wikipedia, "alpaca": _alpaca}
