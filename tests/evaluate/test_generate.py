"""Greedy continuations are the model's own for any batch, and what the models make of each other's text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.data import corpora
from layer_redundancy.evaluate import generate, plain_forwards
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.experiments import generation
from layer_redundancy.models import loading
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import DecoderStack, decoder_stack

BUDGET = PromptLengths(prompts=5, prompt_tokens=9, new_tokens=8)


KINDS = ["llama", "gpt2", "gemma3", "rwkv", "rwkv5", "mamba"]


PRUNED = (0, 2, 4)


def stack_of(name: str, seed: int = 0) -> DecoderStack:
    return decoder_stack(loading.prepare(tiny_models.build(name, seed)))


def blocks(num: int = 5, length: int = 17) -> corpora.TokenBlocks:
    return corpora.TokenBlocks(tiny_models.tokens(num, length), "random", "evaluation", bos=False)


def identity(fingerprint: str = "tiny", layers: int = 5) -> ModelIdentity:
    return ModelIdentity("tiny", "nowhere", "none", fingerprint, layers, 128)


def by_hand(model, prompts: torch.Tensor, new_tokens: int, ends: list[int]) -> np.ndarray:
    """A whole forward for every token, one prompt at a time, without a cache."""
    rows = []
    for prompt in prompts:
        ids = prompt[None]
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].clone()
            logits[ends] = -torch.inf
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
        rows.append(ids[0, len(prompt) :].tolist())
    return np.array(rows)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_continuations_are_those_of_whole_forwards_for_any_batch(name, batch_tokens):
    stack, prompts = stack_of(name), blocks().input_ids[:, :9]
    with plain_forwards.applied(stack, PRUNED) as model:
        expected = by_hand(model, prompts, 8, generate.end_tokens(model))
        got = generate.continuations(model, prompts, 8, batch_tokens)
    assert got.dtype == np.int64 and got.shape == (5, 8)
    np.testing.assert_array_equal(got, expected)


def test_tokens_that_end_a_text_and_the_checkpoints_penalties_are_set_aside():
    stack, prompts = stack_of("llama"), blocks().input_ids[:, :9]
    model = stack.model
    first = generate.continuations(model, prompts, 8)
    own = model.generation_config
    own.repetition_penalty, own.num_beams = 50.0, 3
    np.testing.assert_array_equal(generate.continuations(model, prompts, 8), first)
    assert model.generation_config is own
    likely = int(first[0, 0])
    own.eos_token_id = [2, likely]
    passed_over = generate.continuations(model, prompts, 8)
    assert passed_over.shape == (5, 8) and likely not in passed_over
    np.testing.assert_array_equal(passed_over, by_hand(model, prompts, 8, [2, likely]))
    choices, _ = generate.read(model, prompts, passed_over)
    np.testing.assert_array_equal(choices, passed_over)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_reads_its_own_text_makes_the_same_choices(name):
    stack, prompts = stack_of(name), blocks().input_ids[:, :9]
    with plain_forwards.applied(stack, PRUNED) as model:
        tokens = generate.continuations(model, prompts, 8)
        choices, nll = generate.read(model, prompts, tokens, batch_tokens=30)
        logprobs = model(input_ids=torch.cat([prompts, torch.from_numpy(tokens)], 1)).logits.log_softmax(-1)[:, 8:-1]
    np.testing.assert_array_equal(choices, tokens)
    wanted = -logprobs.gather(-1, torch.from_numpy(tokens)[..., None])[..., 0]
    np.testing.assert_allclose(nll, wanted, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    model, prompts = stack_of("llama").model, blocks().input_ids[:, :9]
    expected = generate.continuations(model, prompts, 8)
    own_generate, sizes = type(model).generate, []

    def cramped(self, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return own_generate(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "generate", cramped)
    np.testing.assert_array_equal(generate.continuations(model, prompts, 8), expected)
    assert sizes[1:] == [5, 2, 2, 1]  # the first call tries whether the cache can be trusted
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(StudyError, match="one prompt to continue does not fit"):
        generate.continuations(model, prompts, 8)


def test_logits_that_are_not_finite_are_one_line():
    model = stack_of("llama").model
    model.lm_head.weight[3] = torch.nan
    with pytest.raises(StudyError, match="NaN or infinite"):
        generate.read(model, blocks().input_ids[:, :9], blocks().input_ids[:, 9:].numpy())


def test_measure_sets_a_variant_against_the_dense_model():
    stack, text = stack_of("llama"), blocks()
    prompts = text.input_ids[:, :9]
    dense = generate.measure(stack, (0, 1, 2, 3, 4), text, BUDGET, None)
    assert dense.summary["agreement"] == dense.summary["forced_agreement"] == dense.summary["own_agreement"] == 1
    reference = dense.arrays["tokens"]
    pruned = generate.measure(stack, PRUNED, text, BUDGET, reference).arrays
    assert set(pruned) == {"tokens", "judged", "forced", "nll"}
    assert set(dense.arrays) == {*pruned, "text_nll"}
    with plain_forwards.applied(stack, PRUNED) as model:
        np.testing.assert_array_equal(pruned["forced"], generate.read(model, prompts, reference)[0])
    judged, nll = generate.read(stack.model, prompts, pruned["tokens"])
    np.testing.assert_array_equal(pruned["judged"], judged)
    np.testing.assert_allclose(pruned["nll"], nll, atol=1e-5)
    assert (pruned["judged"] != pruned["tokens"]).any(), "a pruned random model is another one"
    np.testing.assert_allclose(dense.arrays["text_nll"], generate.read(
        stack.model, prompts, text.input_ids[:, 9:].numpy())[1], atol=1e-5)  # fmt: skip
    # Up to the first difference both have read the same.
    for name in ("tokens", "forced"):
        together = np.minimum.accumulate(pruned[name] == reference, axis=1)
        np.testing.assert_array_equal(together, np.minimum.accumulate(pruned["tokens"] == reference, axis=1))


def test_another_model_is_set_against_the_dense_one_as_a_variant_is():
    """Of a pruned model as a model of its own the same comes as of the variant."""
    stack, other, text = stack_of("llama"), stack_of("llama"), blocks()
    reference = generate.measure(stack, (0, 1, 2, 3, 4), text, BUDGET, None).arrays["tokens"]
    expected = generate.measure(stack, PRUNED, text, BUDGET, reference)
    with plain_forwards.applied(other, PRUNED) as model:
        pruned = decoder_stack(model)
        found = generate.beside(lambda: stack, lambda: pruned, text, BUDGET, reference)
    assert found.summary == expected.summary
    for name, values in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], values, atol=1e-5)


def test_results_are_reused_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    store, text = Store(tmp_path / "store.sqlite"), blocks()
    plan = variants.single_removal(5)[:3]
    measured, measure = [], generate.measure

    def counted(stack, variant, *rest):
        if len(measured) == 2:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(variant)
        return measure(stack, variant, *rest)

    monkeypatch.setattr(generate, "measure", counted)
    stack = stack_of("llama")
    with pytest.raises(KeyboardInterrupt):
        generate.run(identity(), lambda: stack, plan, text, BUDGET, store, progress=False)
    first = generate.run(identity(), lambda: stack, plan, text, BUDGET, store, progress=False)
    assert measured == [(0, 1, 2, 3, 4), plan[0], "killed", plan[1], plan[2]]
    assert list(first) == [(0, 1, 2, 3, 4), *plan]
    again = generate.run(identity(), None, plan, text, BUDGET, store)
    for variant, result in first.items():
        np.testing.assert_array_equal(again[variant].arrays["tokens"], result.arrays["tokens"])
    for changed in (replace(BUDGET, new_tokens=7), replace(BUDGET, prompt_tokens=8), replace(BUDGET, prompts=4)):
        with pytest.raises(TypeError, match="not callable"):  # it wants the model: nothing of the store fits
            generate.run(identity(), None, plan, text, changed, store)
    with pytest.raises(TypeError, match="not callable"):
        generate.run(identity("other"), None, plan, text, BUDGET, store)


@pytest.mark.parametrize(
    "budget, message",
    [
        (replace(BUDGET, prompt_tokens=10), "10 tokens and 8 new ones are longer than a block of text .17 tokens."),
        (replace(BUDGET, new_tokens=3), "4 new tokens"),
        (replace(BUDGET, prompts=0), "at least 1 token"),
    ],
)
def test_prompts_that_do_not_fit_are_one_line(budget, message, tmp_path):
    with pytest.raises(StudyError, match=message) as error:
        generate.run(identity(), None, [], blocks(), budget, Store(tmp_path / "store.sqlite"))
    assert "\n" not in str(error.value)


def test_every_profiles_prompts_fit_in_its_blocks():
    for profile in map(profiles.get, profiles.shipped()):
        budget = profile.budget(generation.Budget)
        assert budget.prompt_tokens + budget.new_tokens <= profile.text.block_length, profile.name


def test_repetition_by_hand():
    tokens = np.array([[1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7], [1, 2, 1, 2, 1, 2]])
    np.testing.assert_allclose(generate.repetition(tokens, 4), [0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(generate.repetition(tokens, 2), [0, 4 / 5, 3 / 5])
    with pytest.raises(StudyError, match="generate more"):
        generate.repetition(tokens[:, :3])
