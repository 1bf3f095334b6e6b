"""Rotary angles that depend on the length."""

import torch

import every_architecture
from layer_redundancy.models import loading, rotary


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


def test_values_of_longer_texts_were_wrong_and_no_others():
    scaled, plain = (every_architecture.CONFIGS[name]() for name in ("llama:dynamic_rope", "llama"))
    assert [rotary.corrected(scaled, length) for length in (12, 13)] == [0, 1]
    assert rotary.corrected(plain, 1000) == rotary.corrected(None, 1000) == 0
