"""Models with a residual stream of several widths: their definition, their files, and what the study does with them."""

import copy

import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep
from layer_redundancy.methods import slice_gpt
from layer_redundancy.models import checkpoints, checks, loading, surgery
from layer_redundancy.models.sliced.model import RootMeanSquare, SlicedLlamaConfig, SlicedLlamaForCausalLM
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, plain, ragged_sequences

FORMS = [("llama", False), ("llama_tied", True), ("llama_tied", False), ("mistral", False), ("qwen2", False),
         ("qwen3", False)]  # fmt: skip


def sliced(name, tied=False, slice_head=False):
    model = tiny_models.build(name)
    return slice_gpt.sliced(model, tiny_models.tokens(4, 20, seed=9), 24, tied=tied, slice_head=slice_head)


def test_a_norm_divides_by_the_original_width():
    # 3 and 4 of what were 10 entries: a mean square of 2.5, with 0.25 added to it the root of 2.75.
    found = RootMeanSquare(10, 0.25)(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([3.0, 4.0]) / 2.75**0.5)
    half = RootMeanSquare(10, 0.0)(torch.tensor([300.0, 400.0], dtype=torch.float16))  # its squares overflow
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), torch.tensor([3.0, 4.0]) / 2.5**0.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "tied"), FORMS)
def test_it_is_taken_apart_and_what_was_said_of_it_holds(name, tied):
    model = sliced(name, tied)
    checks.check_stack(model)
    stack, ids = decoder_stack(model), tiny_models.tokens()
    hidden, calls = stack.start(ids)
    seen = [hidden.shape[-1]]
    for i in range(len(stack)):
        hidden = stack.run_block(i, hidden, calls)
        seen.append(hidden.shape[-1])
    assert seen == [24] * 5 + [32] == model.config.residual_widths[::2]
    torch.testing.assert_close(stack.logits(hidden), model(input_ids=ids).logits, atol=2e-5, rtol=1e-4)
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert [x.shape[-1] for x in states] == seen


@pytest.mark.parametrize(("name", "tied"), FORMS)
def test_written_and_read_again_by_this_library(name, tied, tmp_path):
    model, ids = sliced(name, tied), tiny_models.tokens()
    folder = surgery.export(model, None, (), tmp_path / "sliced")
    identity = checkpoints.identify(profiles.get("embedded", model=str(folder)))
    again = loading.load(identity)
    assert type(again) is type(model) and again.config.residual_widths == model.config.residual_widths
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert sum(checkpoints.parameter_sizes(identity).values()) == sum(p.numel() for p in model.parameters())
    shared = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert shared == again.config.tie_word_embeddings == tied
    with Store(tmp_path / "s") as store:
        measurement, whole = Continuations(ragged_sequences()), variants.dense(5)
        stack = decoder_stack(again)
        got = sweep.run(identity, lambda: stack, [whole], [measurement], store, 64, progress=False)
    expected = plain(model, measurement.sequences, ())
    found = got[measurement.name][whole].arrays["logprob"]
    assert abs(found - [e[0] for e in expected]).max() < 1e-4


def test_it_writes_with_a_cache_what_it_writes_without():
    model, ids = sliced("llama_tied", tied=True), tiny_models.tokens(2, 9)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache, without = (model.generate(ids, **options, use_cache=cached) for cached in (True, False))
    assert torch.equal(with_cache, without)
    assert checks.writes_as_whole(model, 2) and checks.sharing(model).prefixes


def test_no_block_goes_by_itself():
    model = sliced("llama")
    before = copy.deepcopy(model.config)
    with (
        pytest.raises(StudyError, match="no block of a SlicedLlamaForCausalLM can be removed"),
        surgery.without_layers(model, [1]),
    ):
        pass
    assert model.config.to_dict() == before.to_dict() and len(decoder_stack(model)) == 5
    with surgery.without_layers(model, []):
        pass


def test_a_model_of_a_config_has_its_widths():
    settings = tiny_models.COMMON | {"tie_word_embeddings": True}
    model = tf.AutoModelForCausalLM.from_config(
        SlicedLlamaConfig(**settings, residual_widths=[8, 16, 24] * 3 + [8, 32])
    )
    assert type(model) is SlicedLlamaForCausalLM
    assert model.get_input_embeddings().weight.shape == (97, 8)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    checks.check_stack(loading.prepare(model))
    assert SlicedLlamaConfig(**settings).residual_widths == [32] * 11


@pytest.mark.parametrize("widths", [[24] * 10, [24] * 10 + [33], [0] + [24] * 10])
def test_widths_that_do_not_fit_are_told(widths):
    with pytest.raises(StudyError, match="residual_widths must be 11 numbers from 1 to 32 for 5 blocks"):
        SlicedLlamaConfig(**tiny_models.COMMON, residual_widths=widths)
