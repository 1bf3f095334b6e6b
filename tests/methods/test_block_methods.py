"""What all methods that remove, merge or replace whole blocks have in common."""

from dataclasses import replace

import pytest
import torch
import transformers as tf

import method_cases
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.methods import registry
from layer_redundancy.methods.laco import LaCo
from layer_redundancy.methods.magnitude_compensation import MagnitudeCompensation
from layer_redundancy.methods.method import nearest
from layer_redundancy.methods.replace_me import ReplaceMe
from layer_redundancy.methods.shortgpt import SLEB, ShortGPT
from layer_redundancy.models import surgery

TEXT = method_cases.TEXT
METHODS = {
    "shortgpt": ShortGPT(),
    "sleb": SLEB(),
    "laco": LaCo(as_printed=True),
    "laco_code": LaCo(as_printed=False),
    "replace_me": ReplaceMe(),
    "magnitude_compensation": MagnitudeCompensation(),
}
CHANGE_WEIGHTS = ["laco", "laco_code", "replace_me", "magnitude_compensation"]


def test_all_are_in_the_registry():
    assert METHODS.items() <= registry.METHODS.items()
    assert registry.find("laco") == METHODS["laco"]
    with pytest.raises(StudyError, match=r"unknown method 'lacko': choose one of .*laco"):
        registry.find("lacko")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_sizes_are_counted_from_the_shapes_alone(method, name):
    model = method_cases.build(name)
    with torch.device("meta"):
        plans = method.plans(tf.AutoModelForCausalLM.from_config(model.config))
    assert [plan.settings["blocks"] for plan in plans] == list(range(len(plans)))
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    whole = blocks + 32 + 97 * 32 * (1 if name == "llama_tied" else 2)
    for n, plan in enumerate(plans):
        assert plan.removed == pytest.approx(n / 5 * blocks / whole)
        assert plan.removed_of_blocks == pytest.approx(n / 5)
    assert nearest(plans, 2 / 5 * blocks / whole + 0.01, "it").settings["blocks"] == 2
    assert len(plans) == (4 if isinstance(method, LaCo) else 5)  # of LaCo's, block 0 and one more always stay


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "baichuan"])
def test_what_is_promised_comes_out_and_is_the_same_twice(method, name):
    model = method_cases.build(name)
    plans = method.plans(model)
    dense = method_cases.logits(model)
    torch.testing.assert_close(method_cases.logits(method.apply(model, TEXT, plans[0])), dense, atol=1e-4, rtol=0)
    of_all, size = sum(p.numel() for p in model.parameters()), len(dense)
    for plan in plans[1::2]:
        small = method.apply(method_cases.build(name), TEXT, plan)
        assert small.config.num_hidden_layers == 5 - plan.settings["blocks"]
        assert sum(p.numel() for p in small.parameters()) == pytest.approx((1 - plan.removed) * of_all)
        found = method_cases.logits(small)
        assert found.isfinite().all() and len(found) == size
    again = method.apply(method_cases.build(name), TEXT, plan)
    torch.testing.assert_close(method_cases.logits(again), found, atol=0, rtol=0)


@pytest.mark.parametrize("method", [METHODS[m] for m in CHANGE_WEIGHTS], ids=CHANGE_WEIGHTS)
@pytest.mark.parametrize("name", ["llama_tied", "mistral", "qwen2", "qwen3", "llama_biased"])
def test_a_smaller_model_is_a_plain_checkpoint(method, name, tmp_path):
    small = method.apply(method_cases.build(name), TEXT, method.plans(method_cases.build(name))[2])
    other = method_cases.reloaded(small, tmp_path)
    assert type(other) is type(small)
    torch.testing.assert_close(method_cases.logits(other), method_cases.logits(small), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", [METHODS[m] for m in CHANGE_WEIGHTS], ids=CHANGE_WEIGHTS)
@pytest.mark.parametrize("name", method_cases.OTHERS)
def test_what_cannot_be_used_says_so_in_one_line(method, name):
    with pytest.raises(NotApplicable, match=r"cannot be used on \w+: it needs blocks that add attention \(o_proj\)"):
        method.plans(method_cases.build(name))


def test_bad_input_ends_in_one_line():
    model = method_cases.build("llama")
    for method in METHODS.values():
        plan = method.plans(model)[1]
        with pytest.raises(StudyError, match="not made smaller on the evaluation text"):
            method.apply(method_cases.build("llama"), replace(TEXT, split="evaluation"), plan)
        with pytest.raises(StudyError, match="9 blocks cannot be removed: the model has 5"):
            method.apply(model, TEXT, replace(plan, settings={**plan.settings, "blocks": 9}))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_models_dtype_is_that_of_what_comes_out(method):
    plan = method.plans(method_cases.build("llama_tied"))[2]
    small = method.apply(method_cases.build("llama_tied").bfloat16(), TEXT, plan)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    wanted = method_cases.logits(method.apply(method_cases.build("llama_tied"), TEXT, plan))
    if not isinstance(method, SLEB):  # whose choice between losses that are alike depends on their last digits
        found = method_cases.logits(small).float()
        assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("method", [METHODS[m] for m in CHANGE_WEIGHTS], ids=CHANGE_WEIGHTS)
def test_the_studys_own_export_takes_it(method, tmp_path):
    small = method.apply(method_cases.build("qwen2"), TEXT, method.plans(method_cases.build("qwen2"))[2])
    folder = surgery.export(small, None, [], tmp_path / "small")
    other = tf.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(method_cases.logits(other), method_cases.logits(small), atol=1e-6, rtol=1e-6)
