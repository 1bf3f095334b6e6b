"""ShortGPT's and SLEB's removals, against plain forwards."""

import itertools

import pytest
import torch

import method_cases
from layer_redundancy.methods import shortgpt
from layer_redundancy.methods.shortgpt import SLEB, ShortGPT
from layer_redundancy.models import surgery
from layer_redundancy.models.stack import decoder_stack

TEXT = method_cases.TEXT


def loss(model):
    logprobs = method_cases.logits(model)[:, :-1].double().log_softmax(-1)
    return -logprobs.gather(-1, TEXT.input_ids[:, 1:, None]).mean().item()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_shortgpt_removes_the_blocks_of_lowest_influence(name):
    model = method_cases.build(name)
    states = [s.double() for s in method_cases.residuals(model)]
    pairs = itertools.pairwise(states)
    influence = [1 - torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs]
    gone = sorted(range(5), key=influence.__getitem__)[:3]
    small = ShortGPT().apply(method_cases.build(name), TEXT, ShortGPT().plans(model)[3])
    wanted = surgery.cut(model, gone)
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(wanted), rtol=0, atol=0)


def test_losses_are_those_of_plain_forwards_whatever_the_batch():
    model = method_cases.build("qwen2")
    tried = [(0, 1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 2), (4,), (0, 2, 4)]
    found = shortgpt.losses(decoder_stack(model), TEXT, tried)
    few = shortgpt.losses(decoder_stack(model), TEXT, tried, batch_tokens=40)
    for variant, one, other in zip(tried, found, few, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
        with surgery.without_layers(model, set(range(5)) - set(variant)):
            assert one == pytest.approx(loss(model), rel=1e-5)


@pytest.mark.parametrize("keep_ends", [False, True])
def test_sleb_removes_step_by_step_what_costs_least(keep_ends):
    method, model = SLEB(keep_ends=keep_ends), method_cases.build("llama")
    left = list(range(5))
    for _ in range(2):
        costs = {}
        for block in left[1:-1] if keep_ends else left:
            gone = sorted(set(range(5)) - set(left) | {block})
            with surgery.without_layers(model, gone):
                costs[block] = loss(model)
        left.remove(min(costs, key=costs.get))
    small = method.apply(method_cases.build("llama"), TEXT, method.plans(model)[2])
    wanted = surgery.cut(model, sorted(set(range(5)) - set(left)))
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(wanted), rtol=0, atol=0)


def test_sleb_may_keep_the_ends():
    plans = SLEB(keep_ends=True).plans(method_cases.build("llama"))
    assert [plan.settings["blocks"] for plan in plans] == [0, 1, 2, 3]
    small = SLEB(keep_ends=True).apply(method_cases.build("llama"), TEXT, plans[3])
    wanted = surgery.cut(method_cases.build("llama"), [1, 2, 3])
    torch.testing.assert_close(method_cases.logits(small), method_cases.logits(wanted), rtol=0, atol=0)
