"""A config for the kept blocks makes transformers build just these blocks."""

import pytest
import torch

import every_architecture
from layer_redundancy.models import loading, pruned_config, surgery

KEPT = {  # (name, removed) -> what the config then says
    ("deepseek_v2", (0,)): {"first_k_dense_replace": 0, "num_hidden_layers": 5},
    ("deepseek_v3", (0,)): {"first_k_dense_replace": 1},
    ("deepseek_v3", (1, 4)): {"first_k_dense_replace": 1},
    ("glm4_moe", (0,)): {"first_k_dense_replace": 0},
    ("exaone_moe", (0, 4)): {"mlp_layer_types": ["dense"] + ["sparse"] * 3},
    ("afmoe", (1, 5)): {"num_dense_layers": 1},
    ("qwen3_moe:some_dense", (1,)): {"mlp_only_layers": [0, 2]},
    ("qwen2_moe:every_second_sparse", (1,)): {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3]},
    ("llama4_text", (1,)): {"moe_layers": [0, 1, 2, 3, 4], "no_rope_layers": [1, 1, 0, 1, 1]},
    ("llama4_text:every_second", (1,)): {"moe_layers": [2, 4]},
    ("ernie4_5_moe", (0,)): {"moe_layer_start_index": 0, "moe_layer_end_index": 4, "moe_layer_interval": 1},
    ("ernie4_5_moe:every_second_sparse", (0, 1)): {"moe_layer_start_index": 1, "moe_layer_interval": 2},
    ("jamba", (0, 1, 2)): {"attn_layer_period": 2, "attn_layer_offset": 1},
    ("bamba", (0, 3)): {"attn_layer_indices": [1, 3]},
    ("gpt_neo", (0,)): {"attention_layers": ["local", "global", "local", "global", "local"]},
    ("recurrent_gemma", (1,)): {"block_types": ["recurrent", "attention", "recurrent", "recurrent", "attention"]},
    ("whisper", (2,)): {"decoder_layers": 5},
}


@pytest.mark.parametrize(("name", "removed"), KEPT)
def test_rules_by_number_hold_for_the_kept_blocks(name, removed, tmp_path):
    model, ids = loading.prepare(every_architecture.build(name)), torch.arange(3, 40)[None]
    before = model.config.to_dict()
    with surgery.without_layers(model, removed):
        found = {key: getattr(model.config, key) for key in KEPT[name, removed]}
        wanted = model(ids, use_cache=False).logits
        written = model.config.to_dict()
        weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert found == KEPT[name, removed]
    assert model.config.to_dict() == before
    again = type(model)(type(model.config).from_dict(written)).eval()
    assert not again.load_state_dict(weights, strict=False).missing_keys
    torch.testing.assert_close(loading.prepare(again)(ids, use_cache=False).logits, wanted, atol=1e-5, rtol=1e-4)


def test_a_pattern_that_has_no_period_stays_as_it_was():
    config = every_architecture.CONFIGS["jamba"]()
    new = {name: value for _, name, _, value in pruned_config.changes(config, (1, 3, 4, 5), 6)}
    assert "attn_layer_period" in new and "expert_layer_period" not in new  # experts: yes, yes, no, yes


def test_a_scale_by_the_number_of_blocks_is_that_of_the_whole_model():
    config = every_architecture.CONFIGS["minicpm3"]()
    new = {name: value for _, name, _, value in pruned_config.changes(config, (0, 2, 5), 6)}
    assert new["scale_depth"] / 3**0.5 == pytest.approx(config.scale_depth / 6**0.5)
