"""A model that is not what the study takes models to be is refused, or runs without the sharing in question."""

import pytest
import torch
import transformers as tf

import every_architecture
import tiny_models
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models import checks, loading
from layer_redundancy.models.checks import Sharing, check_stack


def test_a_model_that_does_something_between_blocks_is_refused():
    model = tiny_models.build("llama")
    first = model.model.layers[0].forward
    calls = []

    def forward(hidden_states, *args, **kwargs):
        calls.append(1)  # what it returns depends on the number of calls: the model is not its blocks
        return first(hidden_states, *args, **kwargs) * len(calls)

    model.model.layers[0].forward = forward
    with pytest.raises(StudyError, match="run one by one give other logits"):
        check_stack(model)


def test_nan_weights_are_refused():
    model = tiny_models.build("llama")
    model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(StudyError, match="NaN or infinite logits"):
        check_stack(model)


def test_blocks_that_do_not_run_by_hand_are_one_line():
    """Gemma-3n's residual stream has four dimensions."""
    model = loading.prepare(every_architecture.build("gemma3n_text"))
    with pytest.raises(StudyError, match="cannot take Gemma3nForCausalLM apart: its blocks do not run") as e:
        check_stack(model)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["gemma3_text:bidirectional", "bert:encoder", "doge"])
def test_a_model_that_is_not_causal_is_refused(name):
    with pytest.raises(StudyError, match="is not causal"):
        check_stack(loading.prepare(every_architecture.build(name)))


def test_a_model_whose_answers_depend_on_their_neighbours_is_refused():
    model = tiny_models.build("llama")
    own = model.model.layers[1].forward
    model.model.layers[1].forward = lambda hidden, **kwargs: own(hidden - hidden.mean(0), **kwargs)
    with pytest.raises(StudyError, match="other logits beside other sequences of its batch"):
        check_stack(model)


def test_blocks_that_take_keys_of_other_blocks_are_refused():
    """Gemma-4 E2B: a variant had the values of whichever variant ran before it."""
    with pytest.raises(StudyError, match="does not run without some of its blocks"):
        check_stack(loading.prepare(every_architecture.build("gemma4_text:shared_keys")))


def test_a_model_that_wants_text_in_another_form_is_one_line():
    model = tiny_models.build("llama")
    own = model.model.forward
    model.model.forward = lambda input_ids, use_cache=None, pixels=None, **kwargs: own(pixels, **kwargs)
    with pytest.raises(StudyError, match="its own forward does not run on token ids alone"):
        check_stack(model)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("llama", Sharing(prefixes=True)),
        ("bloom", Sharing(prefixes=True)),
        ("mamba", Sharing(prefixes=False)),  # its scan starts from nothing
        ("mamba2", Sharing(prefixes=True)),
        ("rwkv", Sharing(prefixes=True)),
        ("lfm2", Sharing(prefixes=False)),  # its convolutions' state would be lost
        ("minimax", Sharing(prefixes=False)),  # wants a cache of its own
        ("roberta", Sharing(prefixes=False)),  # numbers positions in its own way
        ("llama:dynamic_rope", Sharing(prefixes=True, alike_up_to=12)),
        ("phi3:longrope", Sharing(prefixes=True, alike_up_to=12)),
    ],
)
def test_what_sequences_may_share_is_found_by_trying(name, shared, remarks):
    model = loading.prepare(every_architecture.build(name))
    assert checks.sharing(model) == shared
    said = remarks()
    assert ("no prefix is shared" in said) == (not shared.prefixes and name != "mamba")
    assert ("12 tokens" in said) == (shared.alike_up_to is not None)
    assert checks.sharing(model) == shared
    assert not remarks()  # said once


def test_whatever_depends_on_the_length_runs_in_batches_of_one_length():
    model = tiny_models.build("llama")
    own = model.model.layers[1].forward
    model.model.layers[1].forward = lambda hidden, **kwargs: own(hidden * hidden.shape[1] ** 0.5, **kwargs)
    assert checks.sharing(model) == Sharing(prefixes=False, alike_up_to=0)


def test_rounding_is_no_difference():
    for name in ("llama", "mixtral"):
        model = loading.prepare(every_architecture.build(name).to(torch.bfloat16))
        check_stack(model)
        assert checks.sharing(model) == Sharing(prefixes=True)


@pytest.mark.parametrize(("name", "rows", "whole"), [("llama", 2, True), ("rwkv", 2, False), ("rwkv", 1, True)])
def test_a_cache_is_trusted_where_it_writes_what_whole_forwards_choose(name, rows, whole):
    assert checks.writes_as_whole(loading.prepare(every_architecture.build(name)), rows) is whole


def test_a_model_that_takes_few_tokens_is_tried_on_few():
    config = tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=10)
    model = loading.prepare(tf.AutoModelForCausalLM.from_config(config))
    check_stack(model)
    assert checks.sharing(model) == Sharing(prefixes=True)


@pytest.mark.parametrize("error", [AssertionError("no\nway"), ImportError("no way"), OSError("no way")])
def test_whatever_a_model_raises_is_one_line(error):
    model = tiny_models.build("llama")

    def forward(*_, **__):
        raise error

    model.model.forward = forward
    with pytest.raises(StudyError, match="its own forward does not run on token ids alone") as e:
        check_stack(model)
    assert "\n" not in str(e.value) and type(error).__name__ in str(e.value)
    model.model.forward = lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        check_stack(model)
