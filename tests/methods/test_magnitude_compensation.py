"""Magnitude compensation: factors by hand, and that folding them is multiplying the residual stream."""

import numpy as np
import pytest
import torch

import method_cases
import tiny_models
from layer_redundancy.measures import activations
from layer_redundancy.methods import magnitude_compensation as compensation
from layer_redundancy.methods.magnitude_compensation import MagnitudeCompensation
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack

IDS = method_cases.TEXT.input_ids
FAMILIES = [*method_cases.PRE_NORM, "gemma"]


def build(name):
    """With an epsilon so small that an RMSNorm does not see the size of what it gets; Gemma's scales its embedding."""
    if name == "gemma":
        torch.manual_seed(0)
        config = tiny_models.tf.GemmaConfig(**tiny_models.COMMON, head_dim=8)
        model = tiny_models.tf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    else:
        model = method_cases.build(name)
    for module in model.modules():
        for attribute in ("variance_epsilon", "eps"):
            if hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_a_factor_is_multiplying_the_residual_stream(name):
    model, other = build(name), build(name)
    compensation.scale(model, 3, 1.7)
    states, dense = method_cases.residuals(model), method_cases.residuals(other)
    for i in range(4):
        torch.testing.assert_close(states[i], 1.7 * dense[i], rtol=1e-3, atol=1e-3)
    handle = other.model.layers[3].register_forward_pre_hook(
        lambda _, args, kwargs: (
            ((1.7 * args[0], *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": 1.7 * kwargs["hidden_states"]})
        ),
        with_kwargs=True,
    )
    torch.testing.assert_close(method_cases.logits(model), method_cases.logits(other), rtol=1e-3, atol=1e-3)
    handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("block", [0, 5])
def test_before_the_final_norm_a_factor_is_of_no_account(name, block):
    """Nor is one of the embedding alone in a model whose blocks add nothing."""
    model = build(name)
    if block == 0:
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in projection.parameters():
                    parameter.zero_()
    dense = method_cases.logits(model)
    compensation.scale(model, block, 0.3)
    torch.testing.assert_close(method_cases.logits(model), dense, rtol=1e-3, atol=1e-3)


def test_a_tied_head_stays_tied():
    model = build("llama_tied")
    head = model.get_output_embeddings().weight
    compensation.scale(model, 2, 3.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight is head


def test_factors_by_hand():
    model = method_cases.build("llama")
    sums = activations.collect(decoder_stack(model), IDS)
    norms = [state.double().norm(dim=-1) for state in method_cases.residuals(model)]
    for start, end in [(0, 1), (2, 4), (1, 5)]:
        wanted = (norms[end][:, 1:].mean() / norms[start][:, 1:].mean()).item()
        assert compensation.factor(sums, start, end) == pytest.approx(wanted, rel=1e-5)
        wanted = (norms[end].mean() / norms[start].mean()).item()
        assert compensation.factor(sums, start, end, first_token=True) == pytest.approx(wanted, rel=1e-5)
    assert compensation.factor(activations.zeros(2, 5), 1, 3, first_token=True) == 1.0


def test_neighbours_that_go_are_one_gap():
    assert compensation.runs([7, 2, 3, 9, 8, 0]) == [(0, 1), (2, 4), (7, 10)]
    assert compensation.runs([]) == []


def of_a_loud_end():
    """A model whose last block adds so much that another one goes first: the last would leave no gap."""
    model = build("llama")
    model.model.layers[4].mlp.down_proj.weight.mul_(30)
    return model


def test_after_all_at_once_every_gap_is_closed():
    """Blocks after each gap get what has the mean norm that it had in the whole model, by the first gap exactly."""
    method = MagnitudeCompensation(iterative=False, first_token=True)
    model = of_a_loud_end()
    sums = activations.collect(decoder_stack(model), IDS)
    removed = compensation._lowest(sums, 3)
    small = method.apply(model, method_cases.TEXT, method.plans(model)[3])
    other = of_a_loud_end()
    for start, end in compensation.runs(removed):
        if end < 5:
            compensation.scale(other, start, compensation.factor(sums, start, end, True))
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(surgery.cut(other, removed)))
    start, end = compensation.runs(removed)[0]
    assert end < 5
    norms = [state.norm(dim=-1).mean().item() for state in method_cases.residuals(small)]
    dense = [state.norm(dim=-1).mean().item() for state in method_cases.residuals(of_a_loud_end())]
    assert norms[start] == pytest.approx(dense[end], rel=1e-3)


@pytest.mark.parametrize("iterative", [True, False])
def test_the_gap_that_a_block_leaves_is_closed(iterative):
    method = MagnitudeCompensation(iterative=iterative, first_token=True)
    model = of_a_loud_end()
    (gone,) = compensation._lowest(activations.collect(decoder_stack(model), IDS), 1)
    assert gone < 4
    dense = [state.norm(dim=-1).mean().item() for state in method_cases.residuals(model)]
    bare = method_cases.residuals(surgery.cut(of_a_loud_end(), [gone]))[gone].norm(dim=-1).mean().item()
    small = method.apply(model, method_cases.TEXT, method.plans(model)[1])
    closed = method_cases.residuals(small)[gone].norm(dim=-1).mean().item()
    assert abs(closed / dense[gone + 1] - 1) < 1e-3 < 0.05 < abs(bare / dense[gone + 1] - 1)


def test_step_by_step_is_one_block_after_the_other():
    method, one = MagnitudeCompensation(), MagnitudeCompensation()
    whole = method.apply(build("llama_tied"), method_cases.TEXT, method.plans(build("llama_tied"))[3])
    steps = build("llama_tied")
    for _ in range(3):
        steps = one.apply(steps, method_cases.TEXT, one.plans(steps)[1])
    torch.testing.assert_close(method_cases.logits(whole), method_cases.logits(steps), rtol=0, atol=0)
    assert np.isfinite(method_cases.logits(whole).numpy()).all()
