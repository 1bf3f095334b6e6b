"""Models on a GPU: nothing mixes tensors of two devices, and nothing is left out for having done so."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import other_device
import tiny_models
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import generate, plain_forwards, sweep
from layer_redundancy.measures import activations
from layer_redundancy.models import checks, stack, surgery
from layer_redundancy.train import prompts as classifying
from measurements import Continuations, identity, ragged_sequences


def two_blocks(name):
    """A tiny model of two blocks; Gemma 3's are of two kinds."""
    return surgery.cut(stack.prepare(tiny_models.build(name)), [2, 3, 4])


def figures(model, store):
    """Whatever this study has a model compute."""
    taken = stack.decoder_stack(model)
    checks.check_stack(model)
    variants = [(1,), ((0, 2), 1)] if taken.architecture.keeps_keys_and_values(model) else [(1,)]  # all but one head
    sequences, prompts = ragged_sequences()[-5:], tiny_models.tokens(2, 6)
    of_two = replace(identity(), num_hidden_layers=2)
    swept = sweep.run(of_two, lambda: taken, variants, [Continuations(sequences)], store, 256, progress=False)
    written = generate.continuations(model, prompts, 2)
    sums = activations.collect(taken, prompts, torch.tensor([6, 3]))
    texts = [{"input_ids": ids, "label": torch.tensor(1)} for ids in (prompts[0], prompts[1, :4])]
    numbers = [
        *(swept["continuations"][variant].arrays["logprob"] for variant in variants),
        *(output[0] for targets in plain_forwards.score(model, sequences, 256) for output in targets),
        written,
        generate.read(model, prompts, written)[1],
        *sums.arrays().values(),
        *classifying.judge(model, texts, torch.tensor([5, 9]), 64),
    ]
    return (checks.sharing(model), checks.writes_as_whole(model, rows=2)), np.concatenate(numbers, None)


@pytest.mark.parametrize("name", ["llama", "gemma3", "rwkv5"])
def test_a_model_on_cuda_does_what_it_does_on_the_processor(name, tmp_path):
    can, numbers = figures(two_blocks(name), Store(tmp_path / "processor"))
    with other_device.there():
        found, found_numbers = figures(other_device.moved(two_blocks(name)), Store(tmp_path / "cuda"))
    assert found == can
    np.testing.assert_allclose(found_numbers, numbers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(there > 0, there, here),
        lambda here, there: here[there > 0],
        lambda here, there: here.index_select(0, there.long()),
        lambda here, there: there.index_select(0, here.long()),
        lambda here, there: there.numpy(),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix):
    with other_device.there():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (there + torch.ones(())).device.type == "cuda"  # numbers go with any tensor
        assert there[here > 0].tolist() == [1, 1, 1]  # and so do indices
        with pytest.raises((RuntimeError, TypeError)):
            mix(here, there)
