"""Our part of GPTQ gives llm-compressor's numbers to the last bit."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq import GPTQModifier, gptq_quantize
from torch import nn

from layer_redundancy.models import gptq


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_get_the_same_bits(bits, symmetric):
    torch.manual_seed(0)
    weights, inputs = torch.randn(1, 24, 192), torch.randn(300, 192) * torch.rand(192)
    hessians = (inputs.T @ inputs)[None]
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=16, actorder="static")
    scale = weights.unflatten(2, (-1, 16)).abs().amax(-1) / 2 ** (bits - 1)
    zero_point = torch.randint(-3, 3, scale.shape).to(torch.int8) * (not symmetric)
    found = []
    for update in (gptq_quantize.gptq_block_update.__wrapped__, gptq._update_by_columns):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gptq_quantize, "gptq_block_update", update)
            quantized = gptq_quantize.quantize_weight(weights.clone(), hessians.clone(), scale, zero_point, None, args)
        found.append(quantized)
    (theirs, their_loss, _), (ours, our_loss, _) = found
    assert torch.equal(theirs, ours) and torch.equal(their_loss, our_loss)
    assert not torch.equal(theirs, weights)


def test_layers_of_one_input_get_the_same_bits():
    torch.manual_seed(0)
    layers = [nn.Linear(12, out) for out in (5, 7, 9)]
    batches = [(torch.randn(2, 6, 12), torch.randn(2, 6, 12)) for _ in range(3)]
    found = []
    for modifier in (GPTQModifier(), gptq.GPTQ()):
        for first, second in batches:
            for layer, x in zip(layers, (first, first, second), strict=True):
                modifier.calibrate_module(layer, (x,), layer(x))
        found.append([(modifier._hessians[layer], modifier._num_samples[layer]) for layer in layers])
    for (theirs, their_count), (ours, our_count) in zip(*found, strict=True):
        assert torch.equal(theirs, ours) and their_count == our_count == 6
