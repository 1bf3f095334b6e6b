"""Token blocks: splits are disjoint, blocks are stable, the text is prose."""

import hashlib
import json
import re
import struct

import pytest
import torch
from transformers import AutoTokenizer

from layer_redundancy.config.profiles import TextBudget
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import corpora
from layer_redundancy.data.corpora import articles, token_blocks
from layer_redundancy.models import smollm2


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.fixture
def bos_tokenizer():
    """The same vocabulary, with the beginning-of-sequence token prepended as Llama's tokenizers do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder())
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


def budget(calibration=4, evaluation=3, length=64, corpus="wikipedia"):
    return TextBudget(corpus, block_length=length, calibration_blocks=calibration, evaluation_blocks=evaluation)


def test_splits_are_disjoint_and_both_large():
    calibration, evaluation = (articles("wikipedia", split) for split in corpora.SPLITS)
    assert len(calibration) >= 40 and len(evaluation) >= 40
    assert not set(calibration) & set(evaluation)
    paragraphs = [{p for text in side for p in text.split("\n\n")} for side in (calibration, evaluation)]
    assert not paragraphs[0] & paragraphs[1]


def test_text_is_prose_without_wiki_markup():
    for split in corpora.SPLITS:
        for text in articles("wikipedia", split):
            assert not re.search(r"\[\[|\]\]|\{\{|\}\}|<ref|\||'''|==|https?://|^\s*[*#:;!]", text, re.MULTILINE)
            assert len(text.split()) >= 200
            for paragraph in text.split("\n\n"):
                assert paragraph[-1] in ".!?\"'”’)" and "  " not in paragraph and "\n" not in paragraph
                assert not paragraph[0].islower()


def test_prose_keeps_sentences_and_drops_the_rest():
    sentence = (
        "'''Anarchism''' is a [[political philosophy|philosophy]] that advocates [[self-governance|self-governed]] "
        "societies based on voluntary institutions,<ref name=a>A book.</ref> and it was described in 1539 by several "
        'authors, e.g. in "Political Justice".'
    )
    kept = (
        "Anarchism is a philosophy that advocates self-governed societies based on voluntary institutions, and it was "
        'described in 1539 by several authors, e.g. in "Political Justice".'
    )
    dropped = [
        "== A heading that is long enough to look like a paragraph but is still only one heading and nothing else. ==",
        "* " + kept,
        "{| class=wikitable\n|-\n| a cell || another cell\n|}",
        kept.replace("philosophy that", "philosophy {{lang|el|ἀναρχία}} that"),
        kept.replace("Anarchism is", "Anarchism ({{IPA|x}}) is"),
        kept[:-1] + ", which reads:",
        "[[File:Flag.png|thumb|200px|A flag of the movement, which was shown in public for the first time in Paris.]]",
        "Too short.",
    ]
    assert corpora.prose("\n\n".join([sentence, *dropped, sentence])) == f"{kept}\n\n{kept}"


def test_blocks_have_the_asked_shape_and_count_their_tokens(tokenizer):
    blocks = token_blocks(budget(), tokenizer, "calibration")
    assert blocks.input_ids.shape == (4, 64)
    assert (blocks.num_tokens, blocks.bos) == (256, False)
    assert token_blocks(budget(), tokenizer, "evaluation").input_ids.shape == (3, 64)
    text = tokenizer.decode(blocks.input_ids[0])
    assert any(text in article for article in articles("wikipedia", "calibration"))


def test_fewer_blocks_are_the_first_of_more(tokenizer):
    few, many = (token_blocks(budget(n), tokenizer, "calibration").input_ids for n in (5, 200))
    assert few.equal(many[:5])
    assert len({tuple(block) for block in many.tolist()}) == 200


def test_fewer_blocks_will_do_where_there_are_no_more(tokenizer):
    every = token_blocks(budget(100_000), tokenizer, "calibration", least=5).input_ids
    assert 200 < len(every) < 100_000 and every[:5].equal(token_blocks(budget(5), tokenizer, "calibration").input_ids)
    with pytest.raises(StudyError, match=r"gives \d+ calibration blocks of 64 tokens .*, not 90000"):
        token_blocks(budget(100_000), tokenizer, "calibration", least=90_000)


def test_first_blocks_come_from_different_articles(tokenizer):
    texts = articles("wikipedia", "calibration")
    blocks = token_blocks(budget(32, length=128), tokenizer, "calibration").input_ids
    # The inside of the block's text: a character may be cut in two at its ends.
    sources = [[i for i, text in enumerate(texts) if tokenizer.decode(block)[3:-3] in text] for block in blocks]
    assert all(len(source) == 1 for source in sources)
    assert len({source[0] for source in sources}) == 32


def test_blocks_are_these(tokenizer):
    """Every published number depends on these tokens; this may change only together with RULES_VERSION or a pin."""
    blocks = token_blocks(budget(32, 8, 512), tokenizer, "calibration")
    assert blocks.fingerprint == "44b96dac8625dce8f686c85c7ffbf1bbd2f90c0d72b387a793ed839f94fe983d"
    other = token_blocks(budget(32, 8, 512), tokenizer, "evaluation")
    assert other.fingerprint == "aaefd4d2d83bdc31c584c005161509d86eeae9dd30b9644aba0da76ba96c0c1c"


def test_fingerprint_is_of_shape_and_ids(tokenizer):
    blocks = token_blocks(budget(2, length=8), tokenizer, "calibration")
    numbers = [2, 8, *blocks.input_ids.flatten().tolist()]
    assert blocks.fingerprint == hashlib.sha256(struct.pack(f"<{len(numbers)}q", *numbers)).hexdigest()
    assert blocks.fingerprint != token_blocks(budget(1, length=16), tokenizer, "calibration").fingerprint


def test_bos_starts_each_block_only_where_the_tokenizer_prepends_it(tokenizer, bos_tokenizer):
    without = token_blocks(budget(length=63), tokenizer, "calibration").input_ids
    blocks = token_blocks(budget(length=64), bos_tokenizer, "calibration")
    assert blocks.bos
    assert (blocks.input_ids[:, 0] == bos_tokenizer.bos_token_id).all()
    assert blocks.input_ids[:, 1:].equal(without)  # and nothing but the first token differs
    assert not (without == tokenizer.bos_token_id).any()


def test_cleaned_text_is_cached_and_read_back(tmp_path, monkeypatch):
    expected = articles("wikipedia", "evaluation")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    assert articles("wikipedia", "evaluation") == expected
    (cached,) = paths.CACHE.glob("*.json")
    monkeypatch.setattr(corpora, "prose", lambda _: pytest.fail("cleaned a second time"))
    assert articles("wikipedia", "evaluation") == expected
    assert f"-v{corpora.RULES_VERSION}-" in cached.name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (budget(100_000), r"gives \d+ calibration blocks of 64 tokens \(\d+ tokens in 46 articles\), not 100000"),
        (budget(length=1_000_000), r"gives 0 calibration blocks"),
        (budget(0), "calibration_blocks must be at least 1"),
        (budget(length=1), "block_length must be at least 2"),
        (budget(corpus="wikitext"), "unknown corpus 'wikitext': choose wikipedia, pg19"),
        (budget(corpus="pyproject.toml"), "unknown corpus"),
    ],
)
def test_wrong_budgets_are_told_in_one_line(tokenizer, wrong, message):
    with pytest.raises(StudyError, match=message) as error:
        token_blocks(wrong, tokenizer, "calibration")
    assert "\n" not in str(error.value)


def test_unreachable_hub_is_told_in_one_line(monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match="emozilla/pg19 is not in the local cache") as error:
        articles("pg19", "calibration")
    assert "\n" not in str(error.value)


def test_own_text_folder_and_file(tmp_path, tokenizer):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(
            f"Article {i}. " + f"The number {i} is written here. " * 50, encoding="utf-8"
        )
    sides = [articles(str(tmp_path), split) for split in corpora.SPLITS]
    assert sorted(map(len, sides)) == [2, 3]
    assert len({text for side in sides for text in side}) == 5
    assert token_blocks(budget(2, corpus=str(tmp_path)), tokenizer, "calibration").input_ids.shape == (2, 64)

    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Paragraph {i} " + "word " * 99 for i in range(100)), encoding="utf-8")
    pieces = [text for split in corpora.SPLITS for text in articles(str(book), split)]
    assert sorted(len(text.split()) for text in pieces) == sorted([2020] * 4 + [10100 - 4 * 2020])
    assert sum(text.count("Paragraph") for text in pieces) == 100


def rows(*texts: str, field: str = "text") -> str:
    return "".join(json.dumps({field: text}) + "\n" for text in texts)


def test_own_lines_are_articles_of_the_named_field(tmp_path):
    texts = [f"Line {i} of a file, with 2 \u2028 breaks." for i in range(5)]
    (tmp_path / "own.jsonl").write_text("\ufeff" + rows(*texts, texts[0], " ") + "\n", encoding="utf-8")
    (tmp_path / "other.jsonl").write_text(rows(*texts, field="body"), encoding="utf-8")
    sides = {split: articles(f"{tmp_path}/own.jsonl", split) for split in corpora.SPLITS}
    assert sorted(sides["calibration"] + sides["evaluation"]) == texts, "each once, and blanks not at all"
    assert {split: articles(f"{tmp_path}/other.jsonl#body", split) for split in corpora.SPLITS} == sides


def test_own_text_is_called_as_its_file_wherever_that_lies(tmp_path, tokenizer):
    made = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        own = tmp_path / folder / "own.jsonl"
        own.write_text(rows(*(f"The number {i} is written here. " * 9 for i in range(4))))
        made.append(token_blocks(budget(2, length=16, corpus=str(own)), tokenizer, "calibration"))
        made.append(corpora.packed_blocks(str(own), tokenizer, "calibration", 16, 2))
    assert {blocks.corpus for blocks in made} == {"own.jsonl"}
    assert made[0].fingerprint == made[2].fingerprint and made[1].fingerprint == made[3].fingerprint
    own.write_text(own.read_text().replace("written", "printed"))  # nothing of an own text is kept
    again = corpora.packed_blocks(str(own), tokenizer, "calibration", 16, 2)
    assert again.fingerprint != made[3].fingerprint


def test_own_text_that_is_sorted_is_split_as_it_is(tmp_path):
    (tmp_path / "calibration").mkdir()
    for i in range(3):
        (tmp_path / "calibration" / f"{i}.txt").write_text(f"Calibration {i}.")
    (tmp_path / "evaluation.jsonl").write_text(rows("Evaluation.", field="body"))
    corpus = f"{tmp_path}#body"
    assert articles(corpus, "calibration") == [f"Calibration {i}." for i in range(3)]
    assert articles(corpus, "evaluation") == ["Evaluation."]
    (tmp_path / "evaluation.jsonl").write_text(rows("Evaluation.", "Calibration 1.", field="body"))
    with pytest.raises(StudyError, match=r"1\.txt and evaluation\.jsonl, line 2 hold the same text"):
        articles(corpus, "evaluation")


@pytest.mark.parametrize(
    ("files", "named", "message"),
    [
        ({}, "", "has no .txt files in it"),
        ({"a.txt": b"", "b.txt": b" \n"}, "", "has 0 articles: calibration and evaluation need one each"),
        ({"a.txt": b"One paragraph only."}, "a.txt", "corpus 'a.txt' has 1 articles"),
        ({"a.txt": "Größe".encode("latin-1")}, "a.txt", "must be a readable UTF-8 text file"),
        ({"a.jsonl": b""}, "a.jsonl", "has 0 articles"),
        ({"a.jsonl": b'{"text": "a"}\n\n{"text": \n'}, "a.jsonl", r"a\.jsonl, line 3: no JSON"),
        ({"a.jsonl": b'{"body": "a"}'}, "a.jsonl", r"line 1: no field 'text' \(it has body\).*a\.jsonl#body"),
        ({"a.jsonl": b"[1]"}, "a.jsonl", "line 1: no field 'text'"),
        ({"a.jsonl": b"{}"}, "a.jsonl", "line 1: no field 'text'"),
        ({"a.jsonl": b'{"text": 1}'}, "a.jsonl", "line 1: field 'text' must be a text, not 1"),
        ({"calibration.txt": b"One."}, "", "has calibration.txt, but no evaluation beside it"),
        ({"calibration.txt": b"1", "calibration.jsonl": b""}, "", "both calibration.txt and calibration.jsonl"),
        ({"calibration.txt": b"One.", "evaluation.txt": b" "}, "", "evaluation.txt has no text in it"),
        ({"a.csv": b"One."}, "a.csv", "unknown corpus .*a.csv': choose wikipedia"),
    ],
)
def test_own_text_that_cannot_be_used_is_told_in_one_line(tmp_path, files, named, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError, match=message) as error:
        articles(str(tmp_path / named), "calibration")
    assert "\n" not in str(error.value)


def test_own_text_shorter_than_a_block_is_one_line(tmp_path, tokenizer):
    (tmp_path / "own.jsonl").write_text(rows("Short.", "As short."))
    with pytest.raises(StudyError, match=r"corpus 'own\.jsonl' gives 0 calibration blocks of 64 tokens"):
        token_blocks(budget(corpus=f"{tmp_path}/own.jsonl"), tokenizer, "calibration")
    with pytest.raises(StudyError, match=r"corpus 'own\.jsonl' has \d calibration tokens: no block of 64"):
        corpora.packed_blocks(f"{tmp_path}/own.jsonl", tokenizer, "calibration", 64, 1)
    with pytest.raises(StudyError, match="nothing is left to train on"):
        corpora.training_text(f"{tmp_path}/own.jsonl", tokenizer, 64)


def articles_of(blocks, texts, tokenizer):
    """The articles that blocks of tokens were cut from."""
    inside = [tokenizer.decode(row)[5:-5] for row in blocks.tolist()]
    return [next(k for k, text in enumerate(texts) if part in text) for part in inside]


def test_training_text_is_dealt_over_articles_and_held_out_articles_are_whole(tokenizer):
    texts = corpora.articles("wikipedia", "calibration")
    text = corpora.training_text("wikipedia", tokenizer, 64, held_out=9)
    first, second = text.of_seed(60, 0), text.of_seed(60, 1)
    trained, held_out = first.input_ids[:60], first.input_ids[60:]
    assert first.split == "calibration" and len(held_out) == 9
    assert len(set(articles_of(trained, texts, tokenizer))) > 35, "dealt over all articles"
    assert len(set(articles_of(held_out, texts, tokenizer))) >= 5
    assert not set(articles_of(text.blocks[::7], texts, tokenizer)) & set(articles_of(held_out, texts, tokenizer))
    rows = [{tuple(row) for row in one.tolist()} for one in (trained, second.input_ids[:60])]
    assert not rows[0] & rows[1], "each seed has text of its own"
    assert torch.equal(second.input_ids[60:], held_out), "and the same is held out"
    assert torch.equal(text.of_seed(10**6, 0).input_ids[:-9], text.blocks), "as many as there are"
    more = corpora.training_text("wikipedia", tokenizer, 64, held_out=20)
    assert torch.equal(more.held_out[:9], held_out)


def test_a_single_article_is_split_into_what_is_trained_on_and_held_out(tmp_path, tokenizer):
    words = [" ".join(f"word{k}x{n}" for n in range(100)) for k in range(2)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    blocks = corpora.training_text(f"{tmp_path}/own.jsonl", tokenizer, 16, held_out=2).of_seed(1000, 0).input_ids
    assert len({tuple(row) for row in blocks.tolist()}) == len(blocks) > 10
