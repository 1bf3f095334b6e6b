"""Token ids of prompts, answers and texts from tokenizers of all kinds: nothing after a text, no answer lost."""

import copy
import re

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from layer_redundancy.config.profiles import TextBudget
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import benchmark_items, classification_sets, corpora, tokens

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {"<s>": 0, "</s>": 1, "<pad>": 2} | {letter: i + 3 for i, letter in enumerate(ALPHABET)}
PAIRS = [("Answer:", " C"), ("Answer: ", "Cat"), ("Answer:\n", "C"), ("", "A whole prompt"), ("<s>Answer:", " C")]


def fast(before="", after="", merges=(("Ġ", "N"), ("Ġ", "P")), **special):
    """Bytes as tokens, with a post-processor as published tokenizers have it."""
    made = Tokenizer(BPE(VOCABULARY | {a + b: 259 + i for i, (a, b) in enumerate(merges)}, list(merges)))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    found = PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in special.items() if v})
    template = TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=[("<s>", 0), ("</s>", 1)])
    found.backend_tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), template])
    return found


class Slow(PreTrainedTokenizer):
    """Characters as tokens, with the space before them, in Python."""

    vocab_size = 256

    def get_vocab(self):
        return {self._convert_id_to_token(i): i for i in range(256)}

    def _tokenize(self, text, **_):
        return re.findall(" ?[^ ]| ", text)

    def _convert_token_to_id(self, token):
        return ord(token[-1]) + 128 * (len(token) == 2)

    def _convert_id_to_token(self, index):
        return " " * (index >= 128) + chr(index % 128)


def slow(before="", after="", **_):
    pattern = "_".join(["bos"] * bool(before) + ["eos"] * bool(after)) or "none"
    return Slow(bos_token="\x01", eos_token="\x02", special_tokens_pattern=pattern)


def requests(tokenizer, pairs=PAIRS):
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return benchmark_items._Encoder(tokenizer).loglikelihood(instances, disable_tqdm=True)


def encoded(tokenizer):
    """Everything that the study makes of texts with a tokenizer."""
    source = classification_sets.SOURCES["movie_reviews"]
    texts = classification_sets.Texts(("Good.", "Bad."), torch.tensor([1, 0]).numpy())
    prompts = classification_sets.encode(source, texts, tokenizer, "Review: So so.\nSentiment: Positive\n\n")
    blocks = corpora.token_blocks(TextBudget("wikipedia", 32, 3, 1), tokenizer, "calibration").input_ids
    return (
        requests(tokenizer),
        [prompt["input_ids"].tolist() for prompt in prompts],
        classification_sets.label_tokens(source, tokenizer).tolist(),
        blocks.tolist(),
    )


@pytest.fixture(autouse=True)
def short_corpus(monkeypatch):
    monkeypatch.setattr(corpora, "articles", lambda *_: [f"{letter} tale. " * 30 for letter in "ABCD"])


@pytest.mark.parametrize("make", [fast, slow])
@pytest.mark.parametrize("before", ["", "<s>"])
def test_a_tokenizer_that_ends_texts_gives_the_tokens_of_one_that_does_not(make, before):
    plain, ending = make(before), make(before, "</s>")
    assert ending("a").input_ids[-1] == ending.eos_token_id and plain("a").input_ids[-1] != ending.eos_token_id
    assert encoded(ending) == encoded(plain)
    assert tokens.without_end(plain) is plain
    assert ending("a").input_ids[-1] == ending.eos_token_id, "the tokenizer itself is saved with an export"
    for context, continuation in requests(ending, PAIRS[:3]):
        assert (context[0] == ending.bos_token_id) == bool(before) or len(context) == 1
        assert ending.eos_token_id not in (*context, *continuation)


def test_a_begin_that_is_the_end_too_and_tokens_that_are_neither():
    both = fast("<s>", "<s>", eos_token="<s>")
    assert encoded(both) == encoded(fast("<s>", eos_token="<s>"))
    # As of encoders: a token that is no eos_token of the tokenizer.
    assert encoded(fast("<s>", "</s>", eos_token="<pad>")) == encoded(fast("<s>", eos_token="<pad>"))


def test_the_flag_alone_changes_nothing():
    flagged = fast()
    flagged.add_bos_token, flagged.add_eos_token = True, True
    assert flagged("a").input_ids[::2] == [0, 1]
    assert encoded(flagged) == encoded(fast("<s>"))
    copied = copy.deepcopy(tokens.without_end(flagged))
    copied.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert copied("a").input_ids == [0, *flagged("a").input_ids[1:-1]]


def test_a_begin_that_the_text_spells_is_there_once(monkeypatch):
    tokenizer = fast("<s>")
    assert all(context.count(0) == 1 for context, _ in requests(tokenizer))
    tagged = {"bos": "<s>A tale. " + "x" * 40, "eos": "A tale. " + "x" * 40 + "</s>"}
    for text in tagged.values():
        monkeypatch.setattr(corpora, "articles", lambda *_, text=text: [text])
        block = corpora.token_blocks(TextBudget("wikipedia", 20, 1, 1), tokenizer, "calibration").input_ids[0]
        assert block[0] == 0 and (block[1:] != 0).all()
        for one in (tokenizer, fast()):
            packed = corpora.packed_blocks("wikipedia", one, "calibration", 20, 9).input_ids.flatten().tolist()
            assert packed.count(0) == (1 if one is tokenizer or text is tagged["bos"] else 0)


MERGES = {
    "no token of the answer is left": [("Ġ", "C"), (":", "ĠC")],
    "a part of the answer is left": [("Ġ", "C"), (":", "ĠC"), ("a", "t")],
    "the context ends otherwise": [("e", "r"), (":", "Ġ"), ("er", ":Ġ")],
}


@pytest.mark.parametrize("merges", MERGES.values(), ids=MERGES)
def test_an_answer_is_whole_where_a_token_spans_its_beginning(merges):
    spanning = fast(merges=merges)
    spanning.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for answer in (" C", " Cat", " D"):
        (context, continuation), *_ = requests(spanning, [("Answer:", answer)])
        alone = spanning("Answer:", add_special_tokens=False).input_ids
        assert context == alone and spanning.decode(context) == "Answer:"
        assert spanning.decode(continuation) == answer
    for pair in (("Answer: ", "Cat"), ("Sum\n", "er: C")):
        ((context, continuation),) = requests(spanning, [pair])
        assert context and continuation and spanning.decode(context + continuation) == "".join(pair)


def test_an_added_token_that_spans_context_and_answer():
    spanning = fast("<s>")
    spanning.add_tokens([": C"])
    plain = fast("<s>")
    assert requests(spanning) == requests(plain)


def test_answers_that_sentencepiece_would_begin_with_a_space():
    """Alone, "C" is "▁C", and " C" is "▁" and "▁C"; after a text they are "C" and "▁C"."""
    letters = ["▁", *"Answer:CDt", "\n"]
    pieces = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    merges = [("▁", "C"), (":", "▁C"), (":", "C"), ("▁", "D")]
    pieces |= {a + b: len(pieces) + i for i, (a, b) in enumerate(merges)}
    made = Tokenizer(BPE(pieces, merges))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found = [
        tokenizer.convert_ids_to_tokens(continuation)
        for _, continuation in requests(tokenizer, [("Answer:", " C"), ("Answer:", "C"), ("Answer:", " D")])
    ]
    assert found == [["▁C"], ["C"], ["▁D"]]


def test_a_tokenizer_with_neither_begin_nor_end():
    neither = fast(bos_token=None, eos_token=None, pad_token=None)
    assert requests(neither, PAIRS[:3]) == requests(fast(), PAIRS[:3])
    for pair in (("", "A whole prompt"), (" ", "C")):
        with pytest.raises(StudyError, match="neither a beginning- nor an end-of-sequence token") as error:
            requests(neither, [pair])
        assert "\n" not in str(error.value)
    assert corpora.packed_blocks("wikipedia", neither, "calibration", 20, 2).bos is False


@pytest.mark.parametrize("pair", [("Answer:", ""), ("", "")])
def test_an_answer_without_tokens_is_one_line(pair):
    with pytest.raises(StudyError, match="makes no token of the answer ''"):
        requests(fast(), [pair])
