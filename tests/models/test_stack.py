"""A model's blocks run one by one are the model."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import loading
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import decoder_stack


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_blocks_run_by_hand_give_the_models_own_logits(name):
    model, ids = tiny_models.build(name), tiny_models.tokens()
    own = model(input_ids=ids, use_cache=False).logits  # before prepare: RWKV-4 with its rescaling on
    loading.prepare(model)
    stack = decoder_stack(model)
    assert len(stack) == 5
    hidden, calls = stack.start(ids)
    trace = [hidden]
    for i in range(len(stack)):
        trace.append(stack.run_block(i, trace[-1], calls))
    torch.testing.assert_close(stack.logits(trace[-1]), own.float(), atol=2e-5, rtol=1e-4)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(trace)), "a block does nothing"
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits.float(), own.float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_right_padding_does_not_reach_real_tokens(name):
    stack = decoder_stack(loading.prepare(tiny_models.build(name)))
    ids = tiny_models.tokens(2, 15)
    padded = torch.cat([ids, tiny_models.tokens(2, 6, seed=5)], dim=1)

    def run(x):
        hidden, calls = stack.start(x)
        for i in range(len(stack)):
            hidden = stack.run_block(i, hidden, calls)
        return hidden

    torch.testing.assert_close(run(padded)[:, :15], run(ids), atol=2e-5, rtol=1e-4)


def test_first_residual_is_after_the_embeddings_scale_and_norm():
    gemma = tiny_models.build("gemma3")
    hidden, _ = decoder_stack(gemma).start(tiny_models.tokens())
    torch.testing.assert_close(hidden, gemma.model.embed_tokens.weight[tiny_models.tokens()] * 32**0.5)
    rwkv = loading.prepare(tiny_models.build("rwkv"))
    hidden, _ = decoder_stack(rwkv).start(tiny_models.tokens())
    torch.testing.assert_close(hidden, rwkv.rwkv.blocks[0].pre_ln(rwkv.rwkv.embeddings(tiny_models.tokens())))


class Reads(TorchDispatchMode):
    """Counts what a program waits for: numbers and shapes that a device has yet to find."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += function in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "baichuan", "rwkv5", "mamba"])
def test_neither_blocks_nor_the_head_wait_for_the_device(name):
    stack = decoder_stack(loading.prepare(tiny_models.build(name)))
    hidden, calls = stack.start(tiny_models.tokens())
    before = stack.logits(hidden)
    sharing(stack.model)
    with Reads() as reads:
        after = stack.logits(stack.run_block(1, hidden, calls))
    assert reads.count == 0 and after.shape == before.shape
    torch.testing.assert_close(stack.logits(hidden), before, atol=0, rtol=0)


def test_start_leaves_no_trace_in_the_model():
    model = tiny_models.build("llama")
    before = model(tiny_models.tokens()).logits
    decoder_stack(model).start(tiny_models.tokens())
    assert all("forward" not in vars(block) for block in model.model.layers)
    torch.testing.assert_close(model(tiny_models.tokens()).logits, before, atol=0, rtol=0)


def test_unknown_layout_is_one_line():
    class Odd(nn.Module):
        pass

    with pytest.raises(StudyError, match="cannot take Odd apart") as e:
        decoder_stack(Odd())
    assert "\n" not in str(e.value)
