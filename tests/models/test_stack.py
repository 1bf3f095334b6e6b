"""A model's blocks run one by one are the model."""

import itertools

import pytest
import torch
from torch import nn

import every_architecture
import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import loading
from layer_redundancy.models.checks import check_stack
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


def test_a_model_that_does_something_between_blocks_is_refused():
    model = tiny_models.build("llama")
    first = model.model.layers[0].forward
    calls = []

    def forward(hidden_states, *args, **kwargs):
        calls.append(1)  # what it returns depends on the number of calls: the model is not its blocks
        return first(hidden_states, *args, **kwargs) * len(calls)

    model.model.layers[0].forward = forward
    with pytest.raises(StudyError, match="run one by one give other logits"):
        check_stack(model)


def test_nan_weights_are_refused():
    model = tiny_models.build("llama")
    model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(StudyError, match="NaN or infinite logits"):
        check_stack(model)


def test_blocks_that_do_not_run_by_hand_are_one_line():
    """Gemma-3n's residual stream has four dimensions."""
    model = loading.prepare(every_architecture.build("gemma3n_text"))
    with pytest.raises(StudyError, match="cannot take Gemma3nForCausalLM apart: its blocks do not run") as e:
        check_stack(model)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["gemma3_text:bidirectional", "bert:encoder", "doge"])
def test_a_model_that_is_not_causal_is_refused(name):
    with pytest.raises(StudyError, match="is not causal"):
        check_stack(loading.prepare(every_architecture.build(name)))


def test_a_model_whose_answers_depend_on_their_neighbours_is_refused():
    model = tiny_models.build("llama")
    own = model.model.layers[1].forward
    model.model.layers[1].forward = lambda hidden, **kwargs: own(hidden - hidden.mean(0), **kwargs)
    with pytest.raises(StudyError, match="other logits beside other sequences of its batch"):
        check_stack(model)


def test_blocks_that_take_keys_of_other_blocks_are_refused():
    """Gemma-4 E2B: a variant had the values of whichever variant ran before it."""
    with pytest.raises(StudyError, match="does not run without some of its blocks"):
        check_stack(loading.prepare(every_architecture.build("gemma4_text:shared_keys")))


def test_a_model_that_wants_text_in_another_form_is_one_line():
    model = tiny_models.build("llama")
    own = model.model.forward
    model.model.forward = lambda input_ids, use_cache=None, pixels=None, **kwargs: own(pixels, **kwargs)
    with pytest.raises(StudyError, match="its own forward does not run on token ids alone"):
        check_stack(model)
