"""A block that runs for the first token and not for others, against hooks on a plain forward."""

import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.store import Store
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import first_token, scoring, sweep
from layer_redundancy.evaluate.first_token import CONDITIONS, GIVEN_BACK, ONLY_FIRST, WHOLE, WITHOUT
from layer_redundancy.models import loading
from layer_redundancy.models.attributes import attributes
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, ragged_sequences

BLOCK = 2


def mixed(model, ids, of_first, of_others):
    """Logits of a plain forward in which a block is left out for some tokens."""
    block = model.model.layers[BLOCK]
    own = block.forward

    def forward(hidden, *args, **kwargs):
        out = own(hidden, *args, **kwargs)
        through = out[0] if isinstance(out, tuple) else out
        state = through.clone() if of_others else hidden.clone()
        state[:, 0] = through[:, 0] if of_first else hidden[:, 0]
        return (state, *out[1:]) if isinstance(out, tuple) else state

    with attributes((block, "forward", forward)), torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def model():
    return loading.prepare(tiny_models.build("llama"))


def test_losses_by_place_are_those_of_a_plain_forward(model):
    text = TokenBlocks(tiny_models.tokens(batch=3, length=17), "made up", "evaluation", bos=False)
    found = first_token.of_text(decoder_stack(model), text, BLOCK, batch_tokens=34)
    for place, ends in enumerate(CONDITIONS.values()):
        logprobs = mixed(model, text.input_ids[:, :-1], *ends).log_softmax(-1)
        expected = -logprobs.gather(-1, text.input_ids[:, 1:, None])[..., 0]
        np.testing.assert_allclose(found.arrays["nll"][place], expected, atol=1e-4)
    assert len({array.tobytes() for array in found.arrays["nll"]}) == 4, "the conditions differ"
    first = dict(zip(CONDITIONS, found.arrays["first_norm"], strict=True))
    np.testing.assert_array_equal(first[WHOLE], first[GIVEN_BACK])
    np.testing.assert_array_equal(first[WITHOUT], first[ONLY_FIRST])
    assert first[WITHOUT][BLOCK + 1] == first[WITHOUT][BLOCK] != first[WHOLE][BLOCK + 1]
    assert found.arrays["written"].sum() == pytest.approx(1) and -1 <= found.summary["alike"] <= 1


def test_items_under_a_condition_are_scored_as_in_a_sweep(model, tmp_path):
    stack, measurement = decoder_stack(model), Continuations(ragged_sequences())
    num = len(stack)
    kept = {WHOLE: variants.dense(num), WITHOUT: variants.without(num, [BLOCK])}
    with Store(tmp_path / "store") as store:
        swept = sweep.run(identity(), lambda: stack, list(kept.values()), [measurement], store, progress=False)
    order = sorted(range(len(measurement.sequences)), key=lambda i: -len(measurement.sequences[i].input_ids))[:7]
    found = first_token._of_sequences(stack, [measurement.sequences[i] for i in order], BLOCK, list(kept))
    starts = np.cumsum([0, *(len(sequence.targets) for sequence in measurement.sequences)])
    for of, variant in zip(found, kept.values(), strict=True):
        logprob = swept[measurement.name][variant].arrays["logprob"]
        for i, outputs in zip(order, of, strict=True):
            expected = logprob[starts[i] : starts[i + 1]]
            np.testing.assert_allclose([value for value, _ in outputs], expected, atol=1e-4)


def test_attention_to_the_first_token_is_the_models_own(model):
    stack, ids = decoder_stack(model), tiny_models.tokens(batch=2, length=9)
    found = first_token.attention_to_first(stack, ids, (BLOCK,))
    assert np.isnan(found[BLOCK]) and np.isfinite(np.delete(found, BLOCK)).all()
    assert ((np.delete(found, BLOCK) > 0) & (np.delete(found, BLOCK) < 1)).all()
    eager = tiny_models.build("llama")
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager.eval()(input_ids=ids, output_attentions=True).attentions
    whole = first_token.attention_to_first(stack, ids)
    np.testing.assert_allclose(whole, [one[:, :, 1:, 0].mean().item() for one in weights], atol=1e-5)
    assert model.config._attn_implementation != "eager", "put back"


def test_a_model_without_attention_has_none_to_tell():
    stack = decoder_stack(loading.prepare(tiny_models.build("mamba")))
    assert np.isnan(first_token.attention_to_first(stack, tiny_models.tokens(batch=1, length=5))).all()


def test_the_heads_chunks_do_not_show(model, monkeypatch):
    stack, ids = decoder_stack(model), tiny_models.tokens(batch=2, length=9)
    states = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    whole = first_token._nll(stack, states, ids)
    monkeypatch.setattr(scoring, "HEAD_ROWS", 4)
    np.testing.assert_allclose(first_token._nll(stack, states, ids), whole, atol=1e-5)
