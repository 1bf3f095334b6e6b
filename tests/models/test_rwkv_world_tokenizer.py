"""The World tokenizer against the package it takes its vocabulary from."""

import pytest
import torch

from layer_redundancy.config import profiles
from layer_redundancy.data import benchmark_items, corpora
from layer_redundancy.data.corpora import articles
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.models.rwkv5 import model as rwkv5
from layer_redundancy.models.rwkv5.tokenizer import END, RwkvWorldTokenizer

TEXTS = [
    "",
    " ",
    "The Eagle has landed.\n\nWhere?  There:\t`f(x) = x**2`",
    "Ünïcødé, 漢字 🦜\r\n\n\ttabs  and spaces \x00\x7f",
    "Question: 12345 + 67890 = 80235\nAnswer: A",
    "e\u0301 is not é; \u200b and \ufeff stay",
]


@pytest.fixture(scope="module")
def tokenizer():
    return RwkvWorldTokenizer()


@pytest.fixture(scope="module")
def authors():
    from rwkv.utils import PIPELINE

    return PIPELINE(None, "rwkv_vocab_v20230424").tokenizer


@pytest.mark.parametrize("text", [*TEXTS, articles("wikipedia", "calibration")[0][:20000]], ids=range(len(TEXTS) + 1))
def test_tokens_are_the_authors_and_come_back_as_the_text(tokenizer, authors, text):
    ids = tokenizer(text).input_ids
    assert ids == authors.encode(text)
    assert tokenizer.decode(ids) == text == authors.decode(ids)


def test_token_0_ends_and_is_not_spelt(tokenizer):
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 0, 65530)
    assert tokenizer.decode([0, *tokenizer("a b").input_ids, 0], skip_special_tokens=True) == "a b"
    assert tokenizer(f"a{END}b").input_ids == [tokenizer("a").input_ids[0], 0, tokenizer("b").input_ids[0]]
    # A token that is part of a letter's bytes is no letter by itself, and is one with the rest of them.
    ids = tokenizer("𒀀").input_ids
    assert len(ids) > 1 and tokenizer.decode(ids[:1]) == "\ufffd" and tokenizer.decode(ids) == "𒀀"


def test_padding_is_by_the_tokenizer(tokenizer):
    tokenizer.padding_side = "left"
    batch = tokenizer(["one two three", "one"], padding=True, return_tensors="pt")
    assert batch.input_ids[1, 0] == 0 and batch.attention_mask[1].tolist()[0] == 0 and batch.input_ids.ndim == 2


def world_model(folder):
    torch.manual_seed(0)
    config = rwkv5.Rwkv5Config(vocab_size=65536, hidden_size=16, num_hidden_layers=3, head_size=8)
    rwkv5.Rwkv5ForCausalLM(config).save_pretrained(folder)
    return checkpoints.identify(profiles.get("smoke", model=str(folder)))


def test_a_world_model_gets_it_and_is_measured_with_it(tmp_path, tokenizer):
    identity = world_model(tmp_path / "world")
    loaded = loading.load_tokenizer(identity)
    assert loaded(TEXTS[2]).input_ids == tokenizer(TEXTS[2]).input_ids
    smoke = profiles.get("smoke")
    blocks = corpora.token_blocks(smoke.text, loaded, "evaluation")
    assert blocks.input_ids.shape == (smoke.text.evaluation_blocks, smoke.text.block_length)
    assert "\ufffd" not in loaded.decode(blocks.input_ids[0][1:-1].tolist())
    for budget in smoke.tasks:
        sequences = ChoiceTask(benchmark_items.load(budget, loaded, 0, identity.max_length)).sequences
        assert sequences and all(target for s in sequences for target in s.targets)


def test_an_exported_world_model_reloads_with_it(tmp_path, tokenizer):
    identity = world_model(tmp_path / "world")
    model = loading.load(identity)
    surgery.export(model, loading.load_tokenizer(identity), removed=[1], folder=tmp_path / "pruned")
    again = checkpoints.identify(profiles.get("smoke", model=str(tmp_path / "pruned")))
    assert again.num_hidden_layers == 2
    assert loading.load_tokenizer(again)(TEXTS[3]).input_ids == tokenizer(TEXTS[3]).input_ids
