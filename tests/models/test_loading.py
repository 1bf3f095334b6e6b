"""Checkpoints that cannot be studied as they are, are refused in one line."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import checkpoints, loading


@pytest.fixture
def profile():
    return lambda model, **kw: profiles.get("smoke", model=str(model), **kw)


def test_local_folder_round_trip(tmp_path, profile):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "m")
    chosen = replace(profile(tmp_path / "m"), dtype="float32")
    identity = checkpoints.identify(chosen)
    assert identity.num_hidden_layers == 5
    loaded = loading.load(identity, "float32")
    torch.testing.assert_close(loaded(tiny_models.tokens()).logits, model(tiny_models.tokens()).logits)
    assert checkpoints.identify(replace(chosen, dtype="bfloat16")).fingerprint != identity.fingerprint
    model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "m")
    assert checkpoints.identify(chosen).fingerprint != identity.fingerprint


def test_folder_without_config_or_with_broken_weights(tmp_path, profile):
    with pytest.raises(StudyError, match=r"no config\.json"):
        checkpoints.identify(profile(tmp_path))
    tiny_models.build("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StudyError, match=r"model\.safetensors is cut off") as e:
        loading.load(checkpoints.identify(profile(tmp_path)))
    assert "\n" not in str(e.value)


def test_checkpoint_with_fewer_blocks_than_its_config_says_is_refused(tmp_path, profile):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 6
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=r"lacks .* weights \(first: model.layers.5"):
        loading.load(checkpoints.identify(profile(tmp_path)))


def test_config_with_fewer_blocks_than_the_checkpoint_is_refused(tmp_path, profile):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path)
    model.config.num_hidden_layers = 3
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=r"config says 3 blocks, the checkpoint has others \(model.layers"):
        loading.load(checkpoints.identify(profile(tmp_path)))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("lm_head.weight", "lacks lm_head.weight, the output head, .* or set tie_word_embeddings"),
        ("model.embed_tokens.weight", "lacks model.embed_tokens.weight, the token embedding, "),
        ("model.norm.weight", "lacks model.norm.weight, outside the blocks, "),
        ("model.layers.2.mlp.up_proj.weight", "lacks model.layers.2.mlp.up_proj.weight, of block 2, "),
        ("model.layers.4.", r"lacks 9 weights \(first: model.layers.4.input.*other blocks than it holds"),
    ],
)
def test_what_a_checkpoint_lacks_is_named(tmp_path, profile, lost, message):
    tiny_models.build("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match=message) as e:
        loading.load(checkpoints.identify(profile(tmp_path)))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("change", [{"num_hidden_layers": "two"}, {"num_attention_heads": 0}, []])
def test_config_that_makes_no_sense_is_one_line(tmp_path, profile, change):
    tiny_models.build("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change if change else change))
    with pytest.raises(StudyError) as e:
        loading.load(checkpoints.identify(profile(tmp_path)))
    assert "\n" not in str(e.value)


def test_encoder_is_refused(tmp_path, profile):
    import transformers as tf

    config = tf.BertConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16, vocab_size=50
    )
    tf.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="BertLMHeadModel is not causal"):
        loading.load(checkpoints.identify(profile(tmp_path)))


def test_cuda_without_cuda_is_one_line(tmp_path, profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_models.build("llama").save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="sees no CUDA device"):
        loading.load(checkpoints.identify(profile(tmp_path)), device="cuda")


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path, profile):
    tiny_models.build("mamba").save_pretrained(tmp_path)
    with pytest.raises(StudyError, match="has no tokenizer: put its"):
        loading.load_tokenizer(checkpoints.identify(profile(tmp_path)))


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please"),
        ("torchao", "Skipping import of cpp extensions due to incompatible torch version %s"),
    ],
)
def test_one_alarming_line_of_a_library_is_kept_back_and_no_other(library, words, caplog):
    theirs = logging.getLogger(library)
    theirs.warning(words, "2.13.0")
    theirs.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
