"""The seven selections, against plain computations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import selections
from layer_redundancy.models.stack import decoder_stack

TEXT = TokenBlocks(tiny_models.tokens(6, 12), "made up", "calibration", False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "rwkv5", "mamba"])
def test_taylor_is_the_gradient_of_the_whole_texts_loss_whatever_the_batch(name):
    model = tiny_models.build(name)
    found = selections.taylor(model, TEXT, batch_tokens=24)
    np.testing.assert_allclose(found, selections.taylor(model, TEXT, batch_tokens=1000), rtol=2e-3)
    assert not any(p.requires_grad for p in model.parameters())
    ids = TEXT.input_ids
    model.requires_grad_(True)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for block, score in zip(decoder_stack(model).blocks, found, strict=True):
        by_hand = sum((p * p.grad).abs().sum().item() for p in block.parameters() if p.ndim >= 2)
        assert score == pytest.approx(by_hand, rel=2e-3)


def test_blocks_are_not_selected_on_the_text_they_are_judged_on():
    with pytest.raises(StudyError, match="not selected on the evaluation text"):
        selections.taylor(tiny_models.build("llama"), replace(TEXT, split="evaluation"))


def test_magnitudes_are_norms():
    blocks = tiny_models.build("llama").model.layers
    matrices = [[p for p in block.parameters() if p.ndim == 2] for block in blocks]
    by_hand = [sum(p.abs().sum().item() for p in of) for of in matrices]
    np.testing.assert_allclose(selections.magnitude(blocks, 1), by_hand, rtol=1e-6)
    by_hand = [sum(p.square().sum().sqrt().item() for p in of) for of in matrices]
    np.testing.assert_allclose(selections.magnitude(blocks, 2), by_hand, rtol=1e-6)


def test_orders():
    scores = {"taylor": np.array([3.0, 1, 2, 1])}
    assert selections.order("taylor", scores, 4).tolist() == [3, 1, 2, 0]  # ties toward the deeper block
    assert selections.order("reverse_order", {}, 4).tolist() == [3, 2, 1, 0]
    draws = [tuple(selections.order("random", {}, 8, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and sorted(draws[0]) == list(range(8))
    with pytest.raises(StudyError, match="unknown selection 'tailor': choose one of random, perplexity, taylor"):
        selections.order("tailor", {}, 4)
