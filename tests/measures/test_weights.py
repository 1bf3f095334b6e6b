"""Norms of weights, against plain computations."""

import numpy as np

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.measures import selections, weights
from layer_redundancy.models import checkpoints


def test_magnitudes_are_norms():
    blocks = tiny_models.build("llama").model.layers
    matrices = [[p for p in block.parameters() if p.ndim == 2] for block in blocks]
    by_hand = [sum(p.abs().sum().item() for p in of) for of in matrices]
    np.testing.assert_allclose(weights.magnitude(blocks, 1), by_hand, rtol=1e-6)
    by_hand = [sum(p.square().sum().sqrt().item() for p in of) for of in matrices]
    np.testing.assert_allclose(weights.magnitude(blocks, 2), by_hand, rtol=1e-6)


def test_experts_in_one_tensor_are_a_matrix_each_and_their_biases_none():
    blocks = tiny_models.build("gpt_oss").model.layers
    for norm, size in ((1, lambda w: w.abs().sum()), (2, lambda w: w.square().sum().sqrt())):
        by_hand = []
        for block in blocks:
            plain = [p for name, p in block.named_parameters() if p.ndim == 2 and "experts" not in name]
            experts = [w for p in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj) for w in p]
            by_hand.append(sum(size(w).item() for w in [*plain, *experts]))
        assert len(experts) == 8
        np.testing.assert_allclose(weights.magnitude(blocks, norm), by_hand, rtol=1e-6)


def test_what_was_counted_otherwise_is_not_used_again(tmp_path):
    def changed(name):
        tiny_models.build(name).save_pretrained(tmp_path / name)
        identity = checkpoints.identify(profiles.get("smoke", model=str(tmp_path / name)))
        return [m for m in ("taylor", "magnitude_l1", "magnitude_l2") if selections.rules_of_scores(identity, m)]

    assert [changed(name) for name in ("llama", "mamba")] == [[], []]
    assert changed("mixtral") == ["magnitude_l1", "magnitude_l2"]
    assert changed("gpt_oss") == ["taylor", "magnitude_l1", "magnitude_l2"], "biases were matrices"
