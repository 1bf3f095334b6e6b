"""Models whose blocks differ in width: made, saved, loaded, cut and taken apart."""

from dataclasses import replace

import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.models.stack import decoder_stack, heads_of
from layer_redundancy.models.uneven.model import FAMILIES, Widths, fitted, narrow, widths

NAMES = ["llama", "llama_tied", "mistral", "qwen2", "qwen3"]
# Key-value heads and channels that each block keeps.
KEPT = [([0, 1], range(48)), ([1], range(5, 30)), ([0], range(48)), ([0, 1], range(10)), ([1], range(5, 30))]


def narrowed(name, kept=KEPT):
    """A tiny model, and what it gives with zeros where something is to go; then without it."""
    model, ids = loading.prepare(tiny_models.build(name)), tiny_models.tokens()
    for block, (groups, channels) in zip(model.model.layers, kept, strict=True):
        outputs = block.self_attn.o_proj.weight.data.unflatten(1, (2, -1))
        outputs[:, [group for group in (0, 1) if group not in groups]] = 0
        block.mlp.down_proj.weight.data[:, [channel for channel in range(48) if channel not in channels]] = 0
    expected = model(input_ids=ids).logits
    for block, (groups, channels) in zip(model.model.layers, kept, strict=True):
        narrow(block, torch.tensor(groups), torch.tensor(list(channels)))
    return fitted(model), ids, expected


def load(folder):
    identity = checkpoints.identify(replace(profiles.get("smoke", model=str(folder)), dtype="float32"))
    return loading.load(identity), identity


def by_hand(stack, ids):
    hidden, calls = stack.start(ids)
    for index in range(len(stack)):
        hidden = stack.run_block(index, hidden, calls)
    return stack.logits(hidden)


@pytest.mark.parametrize("name", NAMES)
def test_without_heads_and_channels_is_with_zeros_in_their_place(name):
    model, ids, expected = narrowed(name)
    assert type(model) is FAMILIES[type(tiny_models.build(name))] and not model.training
    assert [widths(block) for block in model.model.layers] == [
        Widths(4, 2, 48), Widths(2, 1, 25), Widths(2, 1, 48), Widths(4, 2, 10), Widths(2, 1, 25)
    ]  # fmt: skip
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    stack = decoder_stack(model)
    torch.testing.assert_close(by_hand(stack, ids), expected, atol=1e-5, rtol=1e-4)
    size = model.model.layers[0].self_attn.head_dim
    assert [heads_of(stack, block) for block in range(5)] == [(4, size), (2, size), (2, size), (4, size), (2, size)]
    assert fitted(model) is model


@pytest.mark.parametrize("name", NAMES)
def test_exported_and_loaded_by_this_library(name, tmp_path):
    model, ids, _ = narrowed(name)
    loaded, identity = load(surgery.export(model, None, [], tmp_path / "whole"))
    assert type(loaded) is type(model) and identity.num_hidden_layers == 5
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    with surgery.without_layers(model, [0, 2]):
        expected = model(input_ids=ids).logits
        folder = surgery.export(model, None, [], tmp_path / "inside")
    assert torch.equal(load(folder)[0](input_ids=ids).logits, expected)
    cut, _ = load(surgery.export(model, None, [0, 2], tmp_path / "cut"))
    assert torch.equal(cut(input_ids=ids).logits, expected)
    assert cut.config.layer_intermediate_sizes == [25, 10, 25] and cut.config.layer_key_value_heads == [1, 2, 1]
    with checkpoints.shapes(identity) as shapes:
        assert [p.shape for p in shapes.parameters()] == [p.shape for p in model.parameters()]
    with pytest.raises(NotApplicable, match="heads differ"):
        checkpoints.block_weights(identity)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_the_same_widths_make_a_plain_checkpoint(name, tmp_path):
    model, ids, expected = narrowed(name, [([1], range(5, 30))] * 5)
    assert type(model) is type(tiny_models.build(name))
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    reloaded = tf.AutoModelForCausalLM.from_pretrained(surgery.export(model, None, [], tmp_path / "even"))
    assert type(reloaded) is type(model) and not reloaded.config.model_type.startswith("uneven")
    torch.testing.assert_close(reloaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "plainly")
    reloaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "plainly")
    torch.testing.assert_close(reloaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_what_is_even_without_its_whole_blocks_is_written_as_a_plain_checkpoint(tmp_path):
    model, ids, _ = narrowed("qwen2", [KEPT[0], KEPT[1], KEPT[1], KEPT[1], KEPT[0]])
    surgery.cut(model, [0, 4])
    reloaded = tf.AutoModelForCausalLM.from_pretrained(surgery.export(model, None, [], tmp_path / "cut"))
    assert type(reloaded) is tf.Qwen2ForCausalLM
    torch.testing.assert_close(reloaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_a_number_of_heads_that_llamas_config_refuses_stays_a_model_of_this_library(tmp_path):
    """transformers wants a hidden size that the number of heads divides: 32 is none of 3."""
    config = tf.LlamaConfig(**tiny_models.COMMON | {"num_key_value_heads": 4})
    torch.manual_seed(0)
    model, ids = loading.prepare(tf.LlamaForCausalLM(config)), tiny_models.tokens()
    for block in model.model.layers:
        narrow(block, torch.tensor([0, 1, 3]), torch.arange(48))
    expected = model(input_ids=ids).logits
    model = fitted(model)
    assert model.config.model_type == "uneven_llama" and model.config.layer_attention_heads == [3] * 5
    loaded, _ = load(surgery.export(model, None, [], tmp_path / "odd"))
    assert torch.equal(loaded(input_ids=ids).logits, expected)


def test_biases_of_outputs_stay_and_others_go_with_their_rows():
    settings = tiny_models.COMMON | {"attention_bias": True, "mlp_bias": True}
    torch.manual_seed(0)
    model, ids = tf.LlamaForCausalLM(tf.LlamaConfig(**settings)).eval(), tiny_models.tokens()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    block = model.model.layers[2]
    block.self_attn.o_proj.weight.data[:, :16] = 0
    block.mlp.down_proj.weight.data[:, 7] = 0
    expected = model(input_ids=ids).logits
    narrow(block, torch.tensor([1]), torch.tensor([c for c in range(48) if c != 7]))
    assert block.self_attn.q_proj.bias.shape == (16,) and block.self_attn.o_proj.bias.shape == (32,)
    assert block.mlp.up_proj.bias.shape == (47,) and block.mlp.down_proj.bias.shape == (32,)
    torch.testing.assert_close(fitted(model)(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_generation_with_a_cache_is_generation_without():
    model, ids, _ = narrowed("qwen3")
    cached = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    longer = ids
    for _ in range(5):
        longer = torch.cat([longer, model(input_ids=longer).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert cached.tolist() == longer.tolist()


def test_the_way_to_attend_is_set_for_all_blocks():
    model, ids, expected = narrowed("llama")
    model.set_attn_implementation("eager")
    assert {block.self_attn.config._attn_implementation for block in model.model.layers} == {"eager"}
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_list_of_another_length_is_refused_in_a_line(tmp_path):
    model, _, _ = narrowed("llama")
    model.config.layer_intermediate_sizes = [48, 25]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=r"layer_intermediate_sizes .* has 2 entries for 5 blocks"):
        tf.AutoConfig.from_pretrained(tmp_path)


def test_a_config_without_lists_is_a_plain_model():
    config = FAMILIES[tf.LlamaForCausalLM].config_class(**tiny_models.COMMON)
    assert config.layer_key_value_heads == [2] * 5 and config.layer_intermediate_sizes == [48] * 5
