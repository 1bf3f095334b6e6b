"""Adapters on models whose blocks hold more than linear layers: what they are on, what is left out, what is trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.data import classification_sets
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import gradients
from layer_redundancy.models import checkpoints, loading
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.train import adapters, healing, prompts, training_loop
from layer_redundancy.train.training_loop import Optimization

LORA = Recipe("lora", 1e-2, dropout=0.0)
QLORA, FULL = Recipe("qlora", 1e-2), Recipe("full", 1e-2)
EXAMPLES = [{"input_ids": row} for row in tiny_models.tokens(4, 24)]


def build(name):
    return loading.prepare(tiny_models.build(name))


def train(model, folder, **changes):
    return training_loop.fit(model, EXAMPLES, Optimization(2, 4, 1e-2, 0, "constant"), folder, **changes)


def of_blocks(names):
    """Names behind the block's number."""
    return {".".join(name.split(".layers.")[1].split(".")[1:]) for name in names}


@pytest.mark.parametrize("name", tiny_models.MIXED)
@pytest.mark.parametrize("recipe", [QLORA, FULL], ids=lambda recipe: recipe.method)
def test_a_training_step_moves_every_weight_that_is_counted(name, recipe, tmp_path, remarks):
    model = build(name)
    expected = healing.trainable_weights(model, recipe)
    with checkpoints.shapes_of(model.config) as shapes:
        assert healing.trainable_weights(shapes, recipe) == expected, "without weights"
    wrapped = healing.prepare(model, recipe)
    before = {n: p.detach().clone() for n, p in wrapped.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in before.values()) == expected
    fitted = train(wrapped, tmp_path)
    still = [n for n, p in wrapped.named_parameters() if n in before and torch.equal(p, before[n])]
    assert not still and fitted.trainable == expected
    assert "no gradient" not in remarks()


@pytest.mark.parametrize(
    "name, inside, outside, left_out",
    [
        ("mixtral", "q k v o", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "mlp.gate.weight"),
        ("gpt_oss", "q k v o", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "mlp.router.weight"),
        ("phimoe", "q k v o", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "mlp.router.weight"),
        (
            "qwen2_moe",
            "q k v o",
            [
                *(f"mlp.experts.{n}_proj" for n in ("gate_up", "down")),
                *(f"mlp.{place}{n}_proj" for place in ("", "shared_expert.") for n in ("gate", "up", "down")),
                "mlp.shared_expert_gate",
            ],
            "mlp.gate.weight",
        ),
        (
            "jamba",
            "q k v o",
            [
                *(f"feed_forward.experts.{n}_proj" for n in ("gate_up", "down")),
                *(f"feed_forward.{n}_proj" for n in ("gate", "up", "down")),
                *(f"mamba.{n}_proj" for n in ("in", "x", "out")),
                "feed_forward.router",
            ],
            "mamba.A_log, mamba.conv1d.weight, mamba.dt_proj.weight",
        ),
        (
            "falcon_mamba",
            "",
            ["mixer.in_proj"],
            "mixer.A_log, mixer.conv1d.weight, mixer.dt_proj.weight, mixer.out_proj.weight, mixer.x_proj.weight",
        ),
        ("mamba2", "", ["mixer.in_proj"], "mixer.conv1d.weight, mixer.out_proj.weight"),
        ("llama", "q k v o", [f"mlp.{n}_proj" for n in ("gate", "up", "down")], ""),
    ],
)
def test_adapters_are_on_layers_and_experts_and_what_is_left_out_is_said(name, inside, outside, left_out, remarks):
    model = build(name)
    attention = {f"self_attn.{n}_proj" for n in inside.split()}
    found, mlp = adapters.places(model), adapters.places(model, "mlp")
    assert of_blocks([*found.layers, *found.stacks]) == {*outside, *attention}
    assert of_blocks([*mlp.layers, *mlp.stacks]) == set(outside)
    with checkpoints.shapes_of(model.config) as shapes:
        assert (adapters.places(shapes), adapters.places(shapes, "mlp")) == (found, mlp), "without weights"
    assert model.state_dict().keys() == build(name).state_dict().keys() and not model.training, "as it was"
    healing.prepare(model, replace(LORA, dropout=0.05))
    said = remarks().splitlines()
    share = sum(found.left_out.values()) / found.weights
    lines = [f"adapters leave out {left_out} ({share:.1%} of the blocks' weights), which stay"] if left_out else []
    lines += ["take no dropout, so that none is used (not 0.05)"] if found.stacks else []
    assert len(said) == len(lines) and all(line in one for line, one in zip(lines, said, strict=True))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss", "llama4", "jamba"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_on_experts_are_merged_again_equal_to_what_was_trained(name, method, tmp_path, remarks):
    import peft

    model, again, recipe = build(name), build(name), replace(LORA, method=method)
    wrapped = healing.prepare(model, recipe)
    kept = "experts.down_proj" in remarks()
    assert kept == (method == "qlora"), "experts keep full precision, which is said"
    train(wrapped, tmp_path / "training")
    ids = tiny_models.tokens()
    with torch.no_grad():
        trained, untrained = wrapped(input_ids=ids).logits, again(input_ids=ids).logits
    wrapped.save_pretrained(tmp_path / "adapters")
    if method == "qlora":
        healing.round_trip_4_bits(again)
    with adapters.as_named():
        again = peft.PeftModel.from_pretrained(again, tmp_path / "adapters").merge_and_unload()
    logits = again(input_ids=ids).logits
    assert torch.allclose(logits, trained, atol=2e-3 if method == "qlora" else 1e-4)
    assert not torch.allclose(logits, untrained, atol=1e-2)


def test_settings_of_a_model_change_only_where_its_adapters_did(tmp_path):
    text = TokenBlocks(tiny_models.tokens(6, 12), "made up", "calibration", False)
    budget = profiles.TrainingBudget("", block_length=12, steps=1, batch=1)

    def rules(name, recipe):
        model = tiny_models.build(name)
        model.save_pretrained(tmp_path / name)
        identity = checkpoints.identify(profiles.get("smoke", model=str(tmp_path / name)))
        return healing.Healing(identity, "float32", "cpu", (), recipe, budget, text, 0).settings.get("adapters")

    assert [rules(name, LORA) for name in ("llama", "gpt2", "gemma3_with_images")] == [None] * 3
    assert [rules(name, LORA) for name in ("mixtral", "falcon_mamba")] == [healing.ADAPTERS_VERSION] * 2
    assert rules("mixtral", FULL) is None


def test_of_a_model_with_images_the_language_model_is_trained(tmp_path):
    model = build("gemma3_with_images")
    healing.prepare(model, FULL)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if "vision" not in n and "projector" not in n}
    use_cache = model.config.get_text_config().use_cache
    train(model, tmp_path)
    assert model.config.get_text_config().use_cache == use_cache


def test_a_weight_that_no_gradient_reaches_is_said(tmp_path, remarks):
    model = build("llama")
    decoder_stack(model).blocks[1].spare = nn.Parameter(torch.ones(3, 4))
    fitted = train(healing.prepare(model, FULL), tmp_path)
    assert "no gradient reaches model.layers.spare (12 weights): they stay as they are" in remarks()
    assert fitted.trainable == healing.trainable_weights(model, FULL) - 12


def test_a_list_of_experts_needs_no_token_for_each():
    """Experts that are modules of their own: those that the few tokens are not sent to have adapters all the same."""

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            self.never = nn.Linear(32, 32)

        def forward(self, hidden):
            return self.experts[1](hidden)

    model = build("llama")
    for block in decoder_stack(model).blocks:
        block.mlp = Sparse()
    found = adapters.places(model, "mlp")
    assert of_blocks(found.layers) == {"mlp.experts.0", "mlp.experts.1", "mlp.experts.2"}
    assert of_blocks(found.left_out) == {"mlp.never.weight"}


def test_a_model_that_fails_in_training_is_one_line(tmp_path, monkeypatch):
    model = build("llama")

    def broken(hidden):
        assert not model.training, "made for inference"
        return hidden

    monkeypatch.setattr(decoder_stack(model).blocks[0].mlp, "forward", broken)
    message = r"LlamaForCausalLM cannot be trained here: .* fails in training \(AssertionError: made for inference\)"
    for recipe in (LORA, FULL):
        with pytest.raises(NotApplicable, match=message):
            train(healing.prepare(model, recipe), tmp_path)


@pytest.mark.parametrize("name", ["mixtral", "falcon_mamba", "gemma3_with_images", "rwkv"])
def test_prompts_of_any_model_are_tuned(name, tmp_path):
    model = prompts.with_prompts(prompts.first_blocks_of(build(name), 3), torch.tensor([5, 6, 7]))
    before = model.prompt_encoder.default.embedding.weight.detach().clone()
    words, labelled = torch.tensor([7, 8]), [one | {"label": torch.tensor(i % 2)} for i, one in enumerate(EXAMPLES)]
    training_loop.fit(
        model, labelled, Optimization(2, 4, 1e-2), tmp_path,
        loss=lambda model, batch: prompts.label_loss(model, batch, words), collate=classification_sets.collate,
    )  # fmt: skip
    assert not torch.equal(model.prompt_encoder.default.embedding.weight, before)


@pytest.mark.parametrize("name", ["rwkv", "mamba", "mixtral", "gpt_oss"])
def test_gradients_in_evaluation_mode_are_those_in_training_mode(name):
    text = TokenBlocks(tiny_models.tokens(2, 12), "made up", "calibration", False)
    model = build(name)
    found = gradients.taylor(model, text)
    np.testing.assert_allclose(found, gradients.taylor(model.train(), text), rtol=1e-3)
    assert (found > 0).all()
