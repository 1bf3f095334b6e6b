"""Greedy continuations are the model's own for any batch; statistics checked by hand; lm-eval's tasks on variants."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import GenerationBudget
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result, Store
from layer_redundancy.data import corpora
from layer_redundancy.evaluate import generation, plain_forwards
from layer_redundancy.experiments import result_tables
from layer_redundancy.models import decoder
from layer_redundancy.models.decoder import ModelIdentity

BUDGET = GenerationBudget(prompts=5, prompt_tokens=9, new_tokens=8, max_removed=3)
KINDS = ["llama", "gpt2", "gemma3", "rwkv", "rwkv5", "mamba"]
PRUNED = (0, 2, 4)


def stack_of(name: str, seed: int = 0) -> decoder.DecoderStack:
    return decoder.decoder_stack(decoder.prepare(tiny_models.build(name, seed)))


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


# ---------------------------------------------------------------------------------------------------------------------
# Generating


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_continuations_are_those_of_whole_forwards_for_any_batch(name, batch_tokens):
    stack, prompts = stack_of(name), blocks().input_ids[:, :9]
    with plain_forwards.applied(stack, PRUNED) as model:
        expected = by_hand(model, prompts, 8, generation.end_tokens(model))
        got = generation.continuations(model, prompts, 8, batch_tokens)
    assert got.dtype == np.int64 and got.shape == (5, 8)
    np.testing.assert_array_equal(got, expected)


def test_tokens_that_end_a_text_and_the_checkpoints_penalties_are_set_aside():
    stack, prompts = stack_of("llama"), blocks().input_ids[:, :9]
    model = stack.model
    first = generation.continuations(model, prompts, 8)
    own = model.generation_config
    own.repetition_penalty, own.num_beams = 50.0, 3
    np.testing.assert_array_equal(generation.continuations(model, prompts, 8), first)
    assert model.generation_config is own
    likely = int(first[0, 0])
    own.eos_token_id = [2, likely]
    passed_over = generation.continuations(model, prompts, 8)
    assert passed_over.shape == (5, 8) and likely not in passed_over
    np.testing.assert_array_equal(passed_over, by_hand(model, prompts, 8, [2, likely]))
    choices, _ = generation.read(model, prompts, passed_over)
    np.testing.assert_array_equal(choices, passed_over)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_reads_its_own_text_makes_the_same_choices(name):
    stack, prompts = stack_of(name), blocks().input_ids[:, :9]
    with plain_forwards.applied(stack, PRUNED) as model:
        tokens = generation.continuations(model, prompts, 8)
        choices, nll = generation.read(model, prompts, tokens, batch_tokens=30)
        logprobs = model(input_ids=torch.cat([prompts, torch.from_numpy(tokens)], 1)).logits.log_softmax(-1)[:, 8:-1]
    np.testing.assert_array_equal(choices, tokens)
    wanted = -logprobs.gather(-1, torch.from_numpy(tokens)[..., None])[..., 0]
    np.testing.assert_allclose(nll, wanted, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    model, prompts = stack_of("llama").model, blocks().input_ids[:, :9]
    expected = generation.continuations(model, prompts, 8)
    generate, sizes = type(model).generate, []

    def cramped(self, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "generate", cramped)
    np.testing.assert_array_equal(generation.continuations(model, prompts, 8), expected)
    assert sizes == [5, 2, 2, 1]
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(StudyError, match="one prompt to continue does not fit"):
        generation.continuations(model, prompts, 8)


def test_logits_that_are_not_finite_are_one_line():
    model = stack_of("llama").model
    model.lm_head.weight[3] = torch.nan
    with pytest.raises(StudyError, match="NaN or infinite"):
        generation.read(model, blocks().input_ids[:, :9], blocks().input_ids[:, 9:].numpy())


def test_measure_sets_a_variant_against_the_dense_model():
    stack, text = stack_of("llama"), blocks()
    prompts = text.input_ids[:, :9]
    dense = generation.measure(stack, (0, 1, 2, 3, 4), text, BUDGET, None)
    assert dense.summary["agreement"] == dense.summary["forced_agreement"] == dense.summary["own_agreement"] == 1
    reference = dense.arrays["tokens"]
    pruned = generation.measure(stack, PRUNED, text, BUDGET, reference).arrays
    assert set(pruned) == {"tokens", "judged", "forced", "nll"}
    assert set(dense.arrays) == {*pruned, "text_nll"}
    with plain_forwards.applied(stack, PRUNED) as model:
        np.testing.assert_array_equal(pruned["forced"], generation.read(model, prompts, reference)[0])
    judged, nll = generation.read(stack.model, prompts, pruned["tokens"])
    np.testing.assert_array_equal(pruned["judged"], judged)
    np.testing.assert_allclose(pruned["nll"], nll, atol=1e-5)
    assert (pruned["judged"] != pruned["tokens"]).any(), "a pruned random model is another one"
    np.testing.assert_allclose(dense.arrays["text_nll"], generation.read(
        stack.model, prompts, text.input_ids[:, 9:].numpy())[1], atol=1e-5)  # fmt: skip
    # Up to the first difference both have read the same.
    for name in ("tokens", "forced"):
        parted = generation.undiverged(generation.agreement(pruned[name], reference))
        np.testing.assert_array_equal(parted, generation.undiverged(generation.agreement(pruned["tokens"], reference)))


def test_results_are_reused_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    store, text = Store(tmp_path / "store.sqlite"), blocks()
    plan = variants.single_removal(5)[:3]
    measured, measure = [], generation.measure

    def counted(stack, variant, *rest):
        if len(measured) == 2:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(variant)
        return measure(stack, variant, *rest)

    monkeypatch.setattr(generation, "measure", counted)
    stack = stack_of("llama")
    with pytest.raises(KeyboardInterrupt):
        generation.run(identity(), lambda: stack, plan, text, BUDGET, store, progress=False)
    first = generation.run(identity(), lambda: stack, plan, text, BUDGET, store, progress=False)
    assert measured == [(0, 1, 2, 3, 4), plan[0], "killed", plan[1], plan[2]]
    assert list(first) == [(0, 1, 2, 3, 4), *plan]
    again = generation.run(identity(), None, plan, text, BUDGET, store)
    for variant, result in first.items():
        np.testing.assert_array_equal(again[variant].arrays["tokens"], result.arrays["tokens"])
    for changed in (replace(BUDGET, new_tokens=7), replace(BUDGET, prompt_tokens=8), replace(BUDGET, prompts=4)):
        with pytest.raises(TypeError, match="not callable"):  # it wants the model: nothing of the store fits
            generation.run(identity(), None, plan, text, changed, store)
    with pytest.raises(TypeError, match="not callable"):
        generation.run(identity("other"), None, plan, text, BUDGET, store)


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
        generation.run(identity(), None, [], blocks(), budget, Store(tmp_path / "store.sqlite"))
    assert "\n" not in str(error.value)


def test_every_profiles_prompts_fit_in_its_blocks():
    for profile in profiles.PROFILES.values():
        budget = profile.generation
        assert budget.prompt_tokens + budget.new_tokens <= profile.text.block_length, profile.name


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_agreement_and_divergence_by_hand():
    agrees = generation.agreement(np.array([[5, 6, 7, 8], [1, 6, 7, 8]]), np.array([[5, 6, 0, 8], [5, 6, 7, 8]]))
    np.testing.assert_array_equal(agrees, [[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(generation.undiverged(agrees), [[1, 1, 0, 0], [0, 0, 0, 0]])


def test_independent_errors_are_powers_of_the_rate():
    forced = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(generation.independent_errors(forced), [0.75, 0.75**2, 0.75**3, 0.75**4])
    np.testing.assert_allclose(generation.independent_errors(np.stack([forced, forced * 0]))[1], 0)


def test_chance_agreement_is_over_pairs_of_different_prompts():
    tokens = np.array([[1, 2], [1, 3], [4, 3]])  # pairs: 01 at position 0; 12 at position 1; of 3 pairs x 2 positions
    assert generation.chance_agreement(tokens) == pytest.approx(2 / 6)
    assert np.isnan(generation.chance_agreement(tokens[:1]))


def test_repetition_by_hand():
    tokens = np.array([[1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7], [1, 2, 1, 2, 1, 2]])
    np.testing.assert_allclose(generation.repetition(tokens, 4), [0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(generation.repetition(tokens, 2), [0, 4 / 5, 3 / 5])
    with pytest.raises(StudyError, match="generate more"):
        generation.repetition(tokens[:, :3])


def test_fresh_tokens_by_hand():
    tokens = np.array([[1, 2, 1, 2, 1, 3], [7, 7, 7, 7, 7, 8]])
    expected = [[1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]]  # the bigrams that come again: 12, 21; 77
    np.testing.assert_array_equal(generation.fresh(tokens, 2), np.array(expected, bool))
    np.testing.assert_allclose(1 - generation.fresh(tokens, 2)[:, 1:].mean(1), generation.repetition(tokens, 2))


def test_loops_that_both_models_follow_hide_no_errors():
    found = results(feed=True)
    arrays = found[0, 2].arrays
    arrays["tokens"][:, 8:] = 5  # a loop, which the dense model follows but for its first tokens
    arrays["judged"] = np.where(generation.fresh(arrays["tokens"]), arrays["judged"], 5)
    arrays["judged"][:, 8:11] = 6
    table = generation.accumulation(found, DENSE, (0, 2), 50, 0)
    own = generation.agreements(found, DENSE, (0, 2))["own text"]
    raw = statement(table, "on its own text, agreement is lower")
    assert raw["measured"] < own[:, 8:].mean() and raw["holds"]


def test_bootstrap_resamples_rows_together():
    values = np.array([[0.0, 10.0], [1.0, 11.0], [4.0, 14.0]])
    draws = result_tables.bootstrap_means(values, 400, seed=3)
    assert draws.shape == (400, 2)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 10)
    assert draws[:, 0].min() == 0 and draws[:, 0].max() == 4
    assert abs(draws[:, 0].mean() - 5 / 3) < 0.2
    np.testing.assert_array_equal(draws, result_tables.bootstrap_means(values, 400, seed=3))
    assert (draws != result_tables.bootstrap_means(values, 400, seed=4)).any()


DENSE = (0, 1, 2)


def results(num: int = 40, length: int = 16, feed: bool = False) -> dict:
    """A dense model and a pruned one; if `feed`, the pruned one's errors come faster on its own text."""
    rng = np.random.default_rng(0)
    reference = rng.integers(10, 1000, (num, length))
    right = rng.random((num, length)) < 0.8
    forced = np.where(right, reference, 1)
    free = np.where(np.minimum.accumulate(right, axis=1), reference, 2)
    slope = np.linspace(0.9, 0.1, length) if feed else 0.8
    judged = np.where(rng.random((num, length)) < slope, free, 3)
    ones = np.ones((num, length), np.float32)
    dense = {"tokens": reference, "forced": reference, "judged": reference, "nll": ones}
    pruned = {"tokens": free, "forced": forced, "judged": judged, "nll": 2 * ones}
    return {DENSE: Result({}, dense | {"text_nll": 4 * ones}), (0, 2): Result({}, pruned)}


def test_by_position_averages_windows_and_leaves_survival_alone():
    found = results()
    table = generation.by_position(found, DENSE, 50, 0, window=5)
    assert set(table["removed"]) == {1} and set(table["n"]) == {40}
    agrees = generation.agreements(found, DENSE, (0, 2))
    part = table[table["reading"] == "teacher-forced"]
    assert part["position"].tolist() == [3, 8, 13, 16]  # the last window has one position
    np.testing.assert_allclose(part["agreement"].iloc[0], agrees["teacher-forced"][:, :5].mean())
    np.testing.assert_allclose(part["agreement"].iloc[-1], agrees["teacher-forced"][:, 15].mean())
    survival = table[table["reading"] == "not yet diverged"]
    assert survival["position"].tolist() == list(range(1, 17))
    np.testing.assert_allclose(survival["agreement"], generation.undiverged(agrees["free-running"]).mean(0))
    expected = table[table["reading"] == "independent errors"]
    np.testing.assert_allclose(expected["agreement"].iloc[1], agrees["teacher-forced"].mean() ** 2)
    assert (table["low"] <= table["agreement"] + 1e-12).all() and (table["agreement"] <= table["high"] + 1e-12).all()


def test_by_depth_has_every_measure_and_the_real_text():
    found = results()
    text = np.full((40, 16), 9)
    table = generation.by_depth(found, DENSE, text, 50, 0)
    value = table.set_index(["removed", "measure"])["value"]
    assert value[0, "free-running"] == value[0, "own text"] == 1
    assert value[1, "perplexity"] == pytest.approx(np.exp(2))
    real = table[table["removed"].isna()].set_index("measure")["value"]
    assert real["perplexity"] == pytest.approx(np.exp(4)) and real["repetition"] == pytest.approx(12 / 13)


def statement(table: pd.DataFrame, words: str) -> pd.Series:
    (row,) = [row for _, row in table.iterrows() if words in row["statement"]]
    return row


def test_errors_that_feed_on_each_other_are_told_from_those_that_do_not():
    kept, fed = (generation.accumulation(results(feed=f), DENSE, (0, 2), 100, 0) for f in (False, True))
    for words in ("on its own text, agreement is lower", "lower on its own text than teacher-forced"):
        assert statement(fed, words)["holds"] and statement(fed, words)["certainty"] == 1, words
        assert statement(kept, words)["certainty"] < 0.95, words
    for table in (kept, fed):
        assert statement(table, "free-running agreement falls")["holds"]
        assert not statement(table, "first error comes sooner")["certainty"] >= 0.95, "they are independent"
        likely = statement(table, "less likely")
        assert (likely["measured"], likely["threshold"], likely["holds"]) == (2, 1, True)
        assert list(table.columns) == ["removed", "statement", "measured", "threshold", "holds", "certainty"]
        assert set(table["removed"]) == {1}


def test_kept_is_above_chance_and_paired():
    scores = {DENSE: np.array([1.0, 1, 1, 0]), (0, 2): np.array([1.0, 1, 0, 0])}
    table = generation.kept("a task", "multiple choice", scores, DENSE, 0.25, 200, 0).set_index("removed")
    assert table["kept"].tolist() == [1, pytest.approx(0.5)]
    assert table.loc[0, "low"] == table.loc[0, "high"] == 1, "paired with itself"
    with pytest.raises(StudyError, match="at chance on a task"):
        generation.kept("a task", "multiple choice", scores, DENSE, 0.75, 200, 0)


def test_first_to_suffer_compares_what_is_kept():
    ones = np.ones(30)
    poor, good = {DENSE: ones, (0, 2): 0.05 * ones}, {DENSE: ones, (0, 2): 0.9 * ones}
    table = generation.first_to_suffer(poor, good, (0.0, 0.25), ("a", "b"), DENSE, (0, 2), 50, 0)
    assert table["holds"].tolist() == [True, True] and table["certainty"].tolist() == [1, 1]
    assert table["threshold"].tolist() == pytest.approx([0.65 / 0.75, 0.1])
    back = generation.first_to_suffer(good, poor, (0.25, 0.0), ("b", "a"), DENSE, (0, 2), 50, 0)
    assert back["holds"].tolist() == [False, False] and back["certainty"].tolist() == [0, 0]


def test_the_papers_quarter():
    assert generation.quarter(30) == 8 and generation.quarter(2) == 1
