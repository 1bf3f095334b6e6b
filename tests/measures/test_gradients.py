"""Taylor scores, against plain computations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import gradients
from layer_redundancy.models.stack import decoder_stack

TEXT = TokenBlocks(tiny_models.tokens(6, 12), "made up", "calibration", False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "rwkv5", "mamba"])
def test_taylor_is_the_gradient_of_the_whole_texts_loss_whatever_the_batch(name):
    model = tiny_models.build(name)
    found = gradients.taylor(model, TEXT, batch_tokens=24)
    np.testing.assert_allclose(found, gradients.taylor(model, TEXT, batch_tokens=1000), rtol=2e-3)
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
        gradients.taylor(tiny_models.build("llama"), replace(TEXT, split="evaluation"))
