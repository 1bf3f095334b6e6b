import pytest
import torch
import transformers as tf

import every_architecture
import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import loading, surgery
from layer_redundancy.models.stack import decoder_stack

REMOVALS = [(1,), (0,), (4,), (0, 2, 3), (1, 2, 3, 4)]


def by_hand(model, ids, kept):
    stack = decoder_stack(model)
    hidden, calls = stack.start(ids)
    for i in kept:
        hidden = stack.run_block(i, hidden, calls)
    return stack.logits(hidden)


def settings(model):
    """Everything surgery may change, as plain values."""
    stack = decoder_stack(model)
    numbers = [(n, m.__dict__[a]) for n, m in model.named_modules() for a in ("layer_idx", "layer_id") if a in vars(m)]
    return model.config.to_dict(), numbers, [id(b) for b in stack.blocks], sorted(model.state_dict())


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
@pytest.mark.parametrize("removed", REMOVALS)
def test_plain_forward_is_cached_generation_is_hand_run_blocks(name, removed):
    # transformers' RWKV-4 mixes up the sequences of a batch when it takes one token at a time, dense or not.
    batch = 1 if name == "rwkv" else 2
    model, ids = loading.prepare(tiny_models.build(name)), tiny_models.tokens(batch, 12)
    before = settings(model)
    dense = model(input_ids=ids, use_cache=False).logits
    reference = by_hand(model, ids, variants.without(5, removed))
    with surgery.without_layers(model, removed):
        plain = model(input_ids=ids, use_cache=False).logits.float()
        torch.testing.assert_close(plain, reference, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(by_hand(model, ids, range(5 - len(removed))), reference, atol=2e-5, rtol=1e-4)
        cached = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        longer = ids
        for _ in range(6):  # greedy, each step from scratch
            step = model(input_ids=longer, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            longer = torch.cat([longer, step], dim=1)
        assert cached.tolist() == longer.tolist()
        assert model.config.num_hidden_layers == 5 - len(removed)
    assert settings(model) == before
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, dense, atol=0, rtol=0)


def test_restores_on_error():
    model = tiny_models.build("gemma2")
    before = settings(model)
    with pytest.raises(RuntimeError, match="inside"), surgery.without_layers(model, [0, 3]):
        assert model.config.layer_types == [tiny_models.SLIDING[i] for i in (1, 2, 4)]
        raise RuntimeError("inside")
    assert settings(model) == before


def test_bad_removal_leaves_the_model_alone():
    model = tiny_models.build("llama")
    before = settings(model)
    for removed in ([7], [1, 1], range(5)):
        with pytest.raises(StudyError), surgery.without_layers(model, removed):
            raise AssertionError("must not be reached")
    assert settings(model) == before


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_exported_checkpoint_reloads_with_equal_logits(name, tmp_path):
    model, ids, removed = loading.prepare(tiny_models.build(name)), tiny_models.tokens(), [0, 3]
    before = settings(model)
    with surgery.without_layers(model, removed):
        expected = model(input_ids=ids, use_cache=False).logits
    folder = surgery.export(model, None, removed, tmp_path / "pruned")
    assert settings(model) == before
    reloaded, info = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(reloaded.eval()(input_ids=ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-4)
    assert reloaded.config.num_hidden_layers == 3
    if getattr(model.config, "layer_types", None):
        assert reloaded.config.layer_types == [model.config.layer_types[i] for i in (1, 2, 4)]
    assert reloaded.config.tie_word_embeddings == model.config.tie_word_embeddings


def test_export_refuses_what_it_cannot_write_or_reload(tmp_path):
    model = tiny_models.build("llama")
    (tmp_path / "there").mkdir()
    with pytest.raises(StudyError, match="exists"):
        surgery.export(model, None, [1], tmp_path / "there")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write"):
        surgery.export(model, None, [1], tmp_path / "file" / "folder")
    # GPT-2's inverse-layer scaling depends on the block's number: the reloaded checkpoint would be another model.
    torch.manual_seed(0)
    scaled = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=5, n_head=4, scale_attn_by_inverse_layer_idx=True)
    ).eval()
    for p in scaled.parameters():
        p.data.mul_(5)
    with pytest.raises(StudyError, match="gives other logits"):
        surgery.export(scaled, None, [0, 1], tmp_path / "scaled")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]


@pytest.mark.parametrize("name", tiny_models.ATTENTION)
def test_without_head_equals_zeroing_the_heads_weights(name):
    model, ids = tiny_models.build(name), tiny_models.tokens()
    dense = model(input_ids=ids).logits
    stack = decoder_stack(model)
    names = ("o_proj", "out_proj", "c_proj", "dense")
    projection = next(m for n, m in stack.blocks[2].named_modules() if n.split(".")[0] != "mlp" and n.endswith(names))
    size = min(projection.weight.shape) // 4 if name != "qwen3" else 16
    with surgery.without_head(model, 2, 1):
        got = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, dense, atol=0, rtol=0)
    weight = projection.weight if name == "gpt2" else projection.weight.T  # (heads * size, hidden size)
    weight[size : 2 * size] = 0
    torch.testing.assert_close(got, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert (got - dense).abs().max() > 1e-3


def test_without_head_bad_input():
    model = tiny_models.build("llama")
    for layer, head, message in ((5, 0, "block 5 is out of range"), (0, 4, "head 4 is out of range")):
        with pytest.raises(StudyError, match=message), surgery.without_head(model, layer, head):
            raise AssertionError("must not be reached")
    with pytest.raises(StudyError, match="no attention heads"), surgery.without_head(tiny_models.build("mamba"), 0, 0):
        raise AssertionError("must not be reached")


@pytest.mark.parametrize(
    ("name", "removed", "reason"),
    [
        ("diffllama", [1], "block 1 of those kept, self_attn: when it is read again, lambda_init is"),
        ("jamba", [1], "when it is read again, JambaMLP is JambaSparseMoeBlock"),
        ("gemma4_text", [2, 5], "when it is read again, layer_types is"),
    ],
)
def test_what_an_export_cannot_say_is_said(name, removed, reason, tmp_path):
    with pytest.raises(StudyError, match="its config cannot say it") as e:
        surgery.export(loading.prepare(every_architecture.build(name)), None, removed, tmp_path / "pruned")
    assert reason in str(e.value) and not list(tmp_path.iterdir())


def test_attention_scaled_by_the_blocks_number_can_be_exported(tmp_path):
    model, ids = every_architecture.build("gpt2:scaled_by_inverse_block_number"), tiny_models.tokens()
    own = model(ids).logits
    torch.testing.assert_close(loading.prepare(model)(ids).logits, own, atol=1e-5, rtol=1e-4)
    with surgery.without_layers(model, [0, 3]):
        expected = model(ids).logits
    surgery.export(model, None, [0, 3], tmp_path / "pruned")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=1e-4)
