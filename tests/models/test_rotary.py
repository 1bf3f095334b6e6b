"""Rotary angles that depend on the length."""

import torch

import every_architecture
from layer_redundancy.config import profiles
from layer_redundancy.core import variants
from layer_redundancy.evaluate import sweep
from layer_redundancy.evaluate.scoring import RandomSequences
from layer_redundancy.models import checkpoints, loading, rotary


def test_lengths_beyond_which_angles_change():
    found = {name: rotary.scaled_from(every_architecture.CONFIGS[name]()) for name in every_architecture.CONFIGS}
    assert {name: length for name, length in found.items() if length} == {"llama:dynamic_rope": 12, "phi3:longrope": 12}


def test_what_ran_before_decides_nothing():
    model, ids = every_architecture.build("llama:dynamic_rope"), torch.arange(3, 43)[None]
    fresh = model(ids[:, :20], use_cache=False).logits
    model(ids, use_cache=False)
    assert not torch.equal(model(ids[:, :20], use_cache=False).logits, fresh), "transformers has put it right itself"
    loading.prepare(loading.prepare(model))
    for length in (40, 20, 8, 20):
        found = model(ids[:, :length], use_cache=False).logits
        if length == 20:
            torch.testing.assert_close(found, fresh)


def keys(name: str, length: int, variant) -> int:
    profile = profiles.get("smoke", model=name)
    identity = checkpoints.identity_of(every_architecture.CONFIGS[name](), profile, "", "", "")
    return sweep.key(identity, variant, RandomSequences(97, 2, 0, length, 1)).version


def test_only_values_that_were_wrong_have_a_new_version():
    dense, without_head = variants.dense(6), variants.without_head(6, 2, 1)
    assert keys("llama", 30, dense) == keys("llama", 30, without_head) == 1
    assert keys("llama:dynamic_rope", 10, dense) == 1
    assert keys("llama:dynamic_rope", 30, dense) == keys("phi3:longrope", 30, dense) == 2
    assert (keys("gpt_bigcode", 30, dense), keys("gpt_bigcode", 30, without_head), keys("gpt2", 30, without_head)) == (
        1,
        2,
        1,
    )
