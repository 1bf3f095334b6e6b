"""Linear layers by oneDNN are torch's own: the same numbers, gradients, names and weights."""

import copy

import pytest
import torch
from torch import nn

from layer_redundancy.models import linear
from tests.tiny_models import build

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layers(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    """Torch's layer in float64, and the same weights by oneDNN."""
    exact = nn.Linear(48, 80, bias=bias, dtype=torch.float64)
    ours = copy.deepcopy(exact).float()
    ours.__class__ = linear.Linear
    return exact, ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", ["everything", "the weight", "what comes before"])
def test_products_and_gradients_are_those_of_float64(bias: bool, trained: str):
    exact, ours = layers(bias)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 48, generator=generator, dtype=torch.float64)
    towards = torch.randn(3, 5, 80, generator=generator, dtype=torch.float64)
    found = []
    for layer, dtype in ((exact, torch.float64), (ours, torch.float32)):
        layer.requires_grad_(trained != "what comes before")
        given = x.to(dtype, copy=True).requires_grad_(trained != "the weight")
        out = layer(given)
        (out * towards.to(dtype)).sum().backward()
        found.append([out, given.grad, *(p.grad for p in layer.parameters())])
    for wanted, got in zip(*found, strict=True):
        assert (wanted is None) == (got is None)
        if wanted is not None:
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_kept_for_gradients_is_what_torch_keeps():
    _, ours = layers(bias=False)
    kept = {}
    for kind in (nn.Linear, linear.Linear):
        ours.__class__ = kind
        ours.weight.requires_grad_(False)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()), lambda t: t):
            ours(torch.randn(7, 48, requires_grad=True))
        kept[kind] = saved
    assert kept[linear.Linear] == kept[nn.Linear] == [48 * 80]


def test_half_precision_and_nothing_at_all_are_torchs_own():
    _, ours = layers(bias=True)
    with torch.no_grad():
        assert ours(torch.zeros(0, 48)).shape == (0, 80)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ours(torch.randn(2, 48)).dtype == torch.bfloat16
        assert ours.bfloat16()(torch.randn(2, 48).bfloat16()).dtype == torch.bfloat16


def test_a_model_keeps_its_names_and_weights_and_can_be_copied():
    model = build("llama")
    own = nn.Linear(4, 4)
    own.forward = lambda x: x
    model.add_module("of_another_library", own)
    plain = {name: tensor.clone() for name, tensor in linear.by_torch(model).state_dict().items()}
    before = [type(m) for m in model.modules()]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = model(ids).logits
        linear._retype(model, nn.Linear, linear.Linear)  # also where it would not be faster
        copied = copy.deepcopy(model)
        for changed in (model, copied):
            kinds = [type(m) for m in changed.modules()]
            assert linear.Linear in kinds
            assert type(changed.of_another_library) is nn.Linear
            assert changed.state_dict().keys() == plain.keys()
            assert all(torch.equal(tensor, plain[name]) for name, tensor in changed.state_dict().items())
            torch.testing.assert_close(changed(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        copied.model.layers[0].mlp.down_proj.weight.zero_()  # the copy computes with its own weights
        assert not torch.allclose(copied(ids).logits, wanted)
        assert [type(m) for m in linear.by_torch(model).modules()] == before
