"""What an export carries beside its weights, and what of the model it is made from stays as it was."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as tf
from tokenizers.processors import TemplateProcessing

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data import tokens
from layer_redundancy.models import checkpoints, loading, provenance, smollm2, surgery
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.train import healing
from layer_redundancy.train.healing import Recipe

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
TEXT = tiny_models.COMMON | {"num_hidden_layers": 3}


def identify(folder):
    return checkpoints.identify(replace(profiles.get("smoke", model=str(folder)), dtype="float32"))


def load(folder):
    return loading.load(identify(folder))


def note(folder):
    return json.loads((folder / provenance.NOTE).read_text())


@pytest.fixture
def dense(tmp_path):
    tiny_models.build("llama").save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


# ------------------------------------------------------------------------------------------------ what was removed


def test_the_note_has_all_removals_in_the_numbers_of_the_original(dense, tmp_path):
    first = surgery.export(load(dense), None, [-1, 0], tmp_path / "first")
    second = surgery.export(load(first), None, [1], tmp_path / "second")
    third = surgery.export(load(second), None, [], tmp_path / "third")
    assert note(first) == {"removed_blocks": [0, 4], "exported_from": str(dense), "steps": [[0, 4]]}
    assert note(second) == {"removed_blocks": [0, 2, 4], "exported_from": str(dense), "steps": [[0, 4], [1]]}
    assert note(third) == note(second)
    whole = surgery.export(load(dense), None, [], tmp_path / "whole")
    assert note(whole) == {"removed_blocks": [], "exported_from": str(dense), "steps": []}


def test_a_note_of_an_earlier_version_counts_as_the_first_removal(dense, tmp_path):
    first = surgery.export(load(dense), None, [4], tmp_path / "first")
    (first / provenance.NOTE).write_text(json.dumps({"removed_blocks": [-1], "exported_from": "org/dense"}))
    again = surgery.export(tf.AutoModelForCausalLM.from_pretrained(first), None, [0], tmp_path / "again")
    assert note(again) == {"removed_blocks": [0, 4], "exported_from": "org/dense", "steps": [[4], [0]]}


def test_blocks_cut_in_memory_are_noted_and_blocks_put_back_are_not(dense, tmp_path):
    model = load(dense)
    with surgery.without_layers(model, [3]):
        inside = surgery.export(model, None, [0], tmp_path / "inside")
    assert note(inside)["removed_blocks"] == [0, 3] and note(inside)["steps"] == [[3], [0]]
    assert note(surgery.export(model, None, [2], tmp_path / "after"))["steps"] == [[2]]
    surgery.cut(model, [1, -1])
    wrapped = healing.prepare(model, Recipe("lora", 1e-3))
    healed = surgery.export(wrapped.merge_and_unload(), None, [], tmp_path / "healed")
    assert note(healed)["removed_blocks"] == [1, 4] and len(decoder_stack(load(healed))) == 3


def test_a_baichuan_is_noted_through_the_llama_that_it_becomes(tmp_path):
    model = loading.prepare(tiny_models.build("baichuan_rotary"))
    surgery.cut(model, [2])
    assert note(surgery.export(model, None, [0], tmp_path / "pruned"))["steps"] == [[2], [0]]


# ------------------------------------------------------------------------------------------------ tokenizers


@pytest.mark.slow
@pytest.mark.parametrize("ends", [False, True])
def test_the_tokenizer_is_saved_as_it_was(ends, dense, tmp_path):
    source = tf.AutoTokenizer.from_pretrained(smollm2.folder())
    source.model_max_length, source.padding_side, source.chat_template = 77, "left", "{{ messages[0].content }}"
    source.add_tokens(["<new>"])
    if ends:
        single = "<|im_start|> $A <|im_end|>"
        special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
        source.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    source.save_pretrained(dense)
    ours = loading.load_tokenizer(identify(dense))
    tokens.without_end(ours)
    assert len(ours("word " * 100).input_ids) > 77, "nothing is cut"
    saved = surgery.export(load(dense), ours, [1], tmp_path / "pruned")
    before, after = (tf.AutoTokenizer.from_pretrained(folder) for folder in (dense, saved))
    for name in ("model_max_length", "padding_side", "chat_template", "special_tokens_map"):
        assert getattr(after, name) == getattr(before, name)
    assert after("a <new>").input_ids == before("a <new>").input_ids
    assert (after("a").input_ids[-1] == 2) == ends


def test_long_texts_are_tokenised_without_a_warning(dense, caplog, monkeypatch):
    source = tf.AutoTokenizer.from_pretrained(smollm2.folder())
    source.model_max_length = 5
    source.save_pretrained(dense)
    monkeypatch.setattr(tf.logging.get_logger("transformers"), "propagate", True)
    loading.load_tokenizer(identify(dense))("word " * 10)
    assert not caplog.records


# ------------------------------------------------------------------------------------------------ what is saved


SETTINGS = {
    "as Llama 2, Vicuna": (
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": True, "temperature": 0.9, "top_p": 0.6},
    ),
    "told not to sample": ({"do_sample": False, "temperature": 0.9, "top_k": 10}, {"do_sample": False}),
    "as LLaMA": ({"pad_token_id": -1}, {}),
    "beams for none": ({"length_penalty": 2.0, "early_stopping": True}, {}),
    "several answers": ({"num_return_sequences": 3}, {}),
    "no such cache": ({"cache_implementation": "none such"}, {}),
    "outputs": ({"output_scores": True}, {}),
    "nothing wrong": ({"do_sample": True, "top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
}


@pytest.mark.parametrize(("given", "saved"), SETTINGS.values(), ids=SETTINGS)
def test_settings_for_generation_are_put_right_in_the_export_alone(given, saved, dense, tmp_path):
    path = dense / "generation_config.json"
    path.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2} | (given if "temperature" in given else {})))
    model = load(dense)
    for name, value in given.items():  # with some of them in the file, transformers does not load the model
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    folder = surgery.export(model, None, [1], tmp_path / "pruned")
    assert model.generation_config.to_dict() == before
    found = json.loads((folder / "generation_config.json").read_text())
    found.pop("transformers_version")
    assert found == {"bos_token_id": 1, "eos_token_id": 2} | saved


def test_settings_for_generation_in_the_models_config(dense, tmp_path):
    model = load(dense)
    model.config.temperature = 0.5
    surgery.export(model, None, [1], tmp_path / "pruned")
    assert model.config.temperature == 0.5


def test_what_transformers_cannot_write_is_one_line_and_leaves_nothing(dense, tmp_path, monkeypatch):
    model = load(dense)

    def refuse(*_, **__):
        raise NotImplementedError("no way\nback")

    monkeypatch.setattr(type(model), "save_pretrained", refuse)
    with pytest.raises(StudyError, match=r"LlamaForCausalLM as a checkpoint \(NotImplementedError: no way back\)") as e:
        surgery.export(model, None, [1], tmp_path / "pruned")
    assert "\n" not in str(e.value) and [p.name for p in tmp_path.iterdir()] == ["dense"]
    assert len(decoder_stack(model)) == 5


@pytest.mark.parametrize("bits", [4, 8])
def test_ready_bitsandbytes_weights_are_exported(bits, tmp_path):
    torch.manual_seed(0)
    config = tf.LlamaConfig(**TEXT | {"hidden_size": 64, "intermediate_size": 64})
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    settings = tf.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    options = {"quantization_config": settings, "device_map": {"": "cpu"}, "dtype": torch.float32}
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", **options).save_pretrained(tmp_path / "ready")
    model = load(tmp_path / "ready")
    conversions = model._weight_conversions
    folder = surgery.export(model, None, [1], tmp_path / "pruned")
    ids = tiny_models.tokens()
    with surgery.without_layers(model, [1]):
        torch.testing.assert_close(load(folder)(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    assert model._weight_conversions is conversions


# ------------------------------------------------------------------------------------------------ several parts


def gemma3_vision(**text):
    text = tiny_models.GEMMA | {"num_hidden_layers": 5} | text
    vision = VISION | {"image_size": 28, "patch_size": 14}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=95,
                             boi_token_index=94, eoi_token_index=93)  # fmt: skip
    torch.manual_seed(0)
    return tf.Gemma3ForConditionalGeneration(config).eval()


def qwen3_5_vision():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    text = TEXT | {"head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8, "rope_parameters": rope}  # fmt: skip
    vision = {"depth": 8, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    special = {"image_token_id": 95, "video_token_id": 94, "vision_start_token_id": 93, "vision_end_token_id": 92}
    torch.manual_seed(0)
    return tf.Qwen3_5ForConditionalGeneration(tf.Qwen3_5Config(text_config=text, vision_config=vision, **special))


def test_processors_go_with_a_vision_tower_that_is_kept(tmp_path):
    gemma3_vision().save_pretrained(tmp_path / "dense")
    for name in ("preprocessor_config.json", "chat_template.jinja", "trainer_state.json"):
        (tmp_path / "dense" / name).write_text(name)
    folder = surgery.export(load(tmp_path / "dense"), None, [1], tmp_path / "pruned")
    assert (folder / "preprocessor_config.json").read_text() == "preprocessor_config.json"
    assert (folder / "chat_template.jinja").exists() and not (folder / "trainer_state.json").exists()
    reloaded = tf.Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert len(reloaded.model.vision_tower.encoder.layers) == 8 and len(decoder_stack(reloaded)) == 4
    assert "not_loaded" not in note(folder)


def test_what_is_not_loaded_is_said_and_noted(tmp_path, remarks):
    qwen3_5_vision().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "preprocessor_config.json").write_text("{}")
    model = load(tmp_path / "dense")
    said = remarks()
    assert "has no place for model.visual (" in said and said.count("\n") == 1
    first = surgery.export(model, None, [1], tmp_path / "first")
    assert note(first)["not_loaded"] == model.not_loaded == {"model.visual": 105}
    assert not (first / "preprocessor_config.json").exists(), "there is nothing to process"
    second = surgery.export(load(first), None, [0], tmp_path / "second")
    assert note(second)["not_loaded"] == model.not_loaded and not remarks()


def test_heads_for_further_tokens_and_buffers_inside_blocks_are_said(dense, remarks):
    from safetensors.torch import load_file, save_file

    extra = {"mtp.layers.0.proj.weight": torch.ones(2), "model.layers.1.self_attn.masked_bias": torch.tensor(-1e9)}
    save_file(load_file(dense / "model.safetensors") | extra, dense / "model.safetensors", metadata={"format": "pt"})
    assert load(dense).not_loaded == {"model.layers.1.self_attn.masked_bias": 1, "mtp": 1}
    assert "model.layers.1.self_attn.masked_bias (1 tensor), mtp (1 tensor): left out" in remarks()


def test_a_vision_tower_deeper_than_the_language_model_is_none_of_its_blocks(tmp_path, remarks):
    text = TEXT | {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8}
    vision = VISION | {"image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
                       "projector_output_dim": 16, "pixel_shuffle_ratio": 1.0}  # fmt: skip
    special = {"image_token_index": 95, "boi_token_index": 94, "eoi_token_index": 93}
    torch.manual_seed(0)
    model = tf.Llama4ForConditionalGeneration(tf.Llama4Config(text_config=text, vision_config=vision, **special))
    model.save_pretrained(tmp_path)
    assert len(decoder_stack(load(tmp_path))) == 3
    assert "multi_modal_projector (1 tensor), vision_model (" in remarks()
    config = json.loads((tmp_path / "config.json").read_text())
    two = {"num_hidden_layers": 2, "no_rope_layers": [1, 1], "moe_layers": [0, 1], "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": config["text_config"] | two}))
    with pytest.raises(StudyError, match=r"says 2 blocks, the checkpoint has others \(language_model.model.layers.2"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["LlavaConfig", "Mistral3Config", "Qwen2_5_VLConfig", "T5Config"])
def test_a_model_that_transformers_has_no_language_model_for(kind, tmp_path):
    getattr(tf, kind)().save_pretrained(tmp_path)
    identity = identify(tmp_path)
    for look in (loading.load, checkpoints.parameter_sizes):
        with pytest.raises(StudyError, match=f"no causal language model of text alone for a {kind}. If") as e:
            look(identity)
        assert "\n" not in str(e.value) and "GPT2Config" not in str(e.value)
