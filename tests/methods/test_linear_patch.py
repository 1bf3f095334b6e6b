"""LinearPatch: Hadamard matrices of the widths of real models, and the map by hand."""

import pytest
import torch

import method_cases
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.methods import linear_patch
from layer_redundancy.models.stack import decoder_stack

IDS = method_cases.TEXT.input_ids


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 60, 64, 576, 896, 960, 104])
def test_hadamard_matrices_are_orthonormal_and_made_of_signs(size):
    found = linear_patch.hadamard(size)
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.abs(), torch.full_like(found, size**-0.5), rtol=0, atol=1e-12)


def test_a_width_without_one_is_refused():
    with pytest.raises(NotApplicable, match="model of width 30: no Hadamard matrix"):
        linear_patch.hadamard(30)


def test_the_patch_by_hand():
    """Two coordinates: H = ((1, 1), (1, -1)) / sqrt 2; the sum doubles, the difference triples."""
    found = linear_patch.patch(linear_patch.hadamard(2), torch.tensor([2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[2.5, -0.5], [-0.5, 2.5]], dtype=torch.float64))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_scales_are_ratios_of_mean_sizes_in_the_basis(name):
    model = method_cases.build(name)
    stack = decoder_stack(model)
    hidden, calls = stack.start(IDS)
    states = [hidden]
    for i in range(5):
        states.append(stack.run_block(i, states[-1], calls))
    basis = linear_patch.hadamard(32)
    scales = torch.zeros(32, dtype=torch.float64)
    for text in range(len(IDS)):
        for k in range(32):
            before = sum(abs(float(token.double() @ basis[:, k])) for token in states[1][text])
            after = sum(abs(float(token.double() @ basis[:, k])) for token in states[4][text])
            scales[k] += after / before / len(IDS)
    found = linear_patch.linear_patch(stack, IDS, 1, 4, batch_tokens=40)
    torch.testing.assert_close(found, basis @ torch.diag(scales) @ basis.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, found.T)


def test_it_closes_the_gap_of_each_coordinate():
    stack = decoder_stack(method_cases.build("llama"))
    of, basis = linear_patch.linear_patch(stack, IDS, 1, 4), linear_patch.hadamard(32)
    before, after = (method_cases.residuals(stack.model)[i].double() @ basis for i in (1, 4))
    patched = method_cases.residuals(stack.model)[1].double() @ of @ basis

    def gap(found):
        return (after.abs().mean(1) / found.abs().mean(1) - 1).abs().mean()

    assert gap(patched) < 0.5 * gap(before)


def test_blocks_that_are_not_there_are_refused():
    stack = decoder_stack(method_cases.build("llama"))
    for start, end in [(2, 2), (0, 6), (-1, 2)]:
        with pytest.raises(StudyError, match="can be patched: the model has blocks 0 to 4"):
            linear_patch.linear_patch(stack, IDS, start, end)
