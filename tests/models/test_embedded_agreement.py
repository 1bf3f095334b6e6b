"""The real pretrained model, fp32: our numbers against slow or independent computations of the same."""

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import direct_importance
import measurements
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget, TextBudget
from layer_redundancy.core import variants
from layer_redundancy.core.store import Store
from layer_redundancy.data import benchmark_items, corpora
from layer_redundancy.evaluate import scoring, sweep
from layer_redundancy.measures import activations, importance
from layer_redundancy.models import loading, smollm2
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded():
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.float32)
    return loading.prepare(model), AutoTokenizer.from_pretrained(smollm2.folder())


def run(model, plan, measurement, tmp_path):
    identity = ModelIdentity("embedded", "", "", "fp32", 30)
    with Store(tmp_path / "store") as store:
        stack = decoder_stack(model)
        return sweep.run(identity, lambda: stack, plan, [measurement], store, 256, progress=False)[measurement.name]


def test_importance_agrees_with_a_direct_computation(loaded):
    model, tokenizer = loaded
    budget = TextBudget("wikipedia", block_length=24, calibration_blocks=3, evaluation_blocks=1)
    ids, lengths = corpora.token_blocks(budget, tokenizer, "calibration").input_ids, [24, 11, 24]
    sums = activations.collect(decoder_stack(model), ids, torch.tensor(lengths), batch_tokens=48)
    direct_importance.assert_agrees(sums, direct_importance.direct(model, ids, lengths))


def test_perplexity_of_variants_agrees_with_plain_forwards(loaded, tmp_path):
    model, tokenizer = loaded
    budget = TextBudget("wikipedia", block_length=48, calibration_blocks=1, evaluation_blocks=3)
    measurement = scoring.Perplexity(corpora.token_blocks(budget, tokenizer, "evaluation"))
    plan = [variants.without(30, removed) for removed in ([], [14], [0, 29], [12, 13, 14, 15])]
    results = run(model, plan, measurement, tmp_path)
    for variant, result in results.items():
        plain = measurements.plain(model, measurement.sequences, variants.removed_blocks(30, variant))
        nll = -np.array([logprob for logprob, _ in plain])
        np.testing.assert_allclose(result.arrays["nll"] / 47, nll / 47, atol=1e-5)
    assert results[variants.dense(30)].summary["perplexity"] < results[plan[2]].summary["perplexity"]


@pytest.mark.parametrize(
    "task, limit", [("copying", 5), ("last_word", 2), ("mmlu_dev", 5), ("mmlu_dev_continuation", 3)]
)
def test_choice_loglikelihoods_equal_lm_evals(loaded, task, limit, tmp_path):
    model, tokenizer = loaded
    items = benchmark_items.load(TaskBudget(task, limit=limit), tokenizer)
    measurement = scoring.ChoiceTask(items)
    result = run(model, [variants.dense(30)], measurement, tmp_path)[variants.dense(30)]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    requests = [((None, None), list(r.context_ids), list(r.continuation_ids)) for r in items.requests]
    expected = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    np.testing.assert_allclose(result.arrays["loglikelihood"], [logprob for logprob, _ in expected], atol=1e-4)
    theirs = items.metrics(expected)
    for metric in items.metric_names:
        assert result.arrays[metric].tolist() == theirs[metric].tolist()


def test_bfloat16_is_harmless_for_importance(loaded):
    """The paper profile computes in bf16: scores differ from fp32 by far less than the blocks do."""
    model, tokenizer = loaded
    budget = TextBudget("wikipedia", block_length=128, calibration_blocks=4, evaluation_blocks=1)
    ids = corpora.token_blocks(budget, tokenizer, "calibration").input_ids
    assert profiles.get("paper").dtype == "bfloat16"
    half = AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.bfloat16)
    full, low = (
        importance.scores(activations.collect(decoder_stack(m), ids), "block_influence")
        for m in (model, loading.prepare(half))
    )
    np.testing.assert_allclose(low, full, rtol=0.05)
    ranks = [importance.ranks(importance.removal_order(s, "block_influence")) for s in (low, full)]
    assert np.abs(ranks[0] - ranks[1]).max() <= 2
