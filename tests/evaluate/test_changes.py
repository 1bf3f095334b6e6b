"""Sweeps of variants with changed blocks, beside plain forwards of models whose weights are other ones."""

import logging
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.core.variants import Changed
from layer_redundancy.evaluate import plain_forwards, sweep
from layer_redundancy.evaluate.scoring import RandomSequences
from layer_redundancy.models import compiled, loading
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, plain, ragged_sequences

FACTORS = {Changed(block, f"{block:x}{digit}" * 8): 3.0 + digit for block in range(5) for digit in (0, 1)}
FIRST, ONE, TWO, LAST = (list(FACTORS)[i] for i in (0, 2, 3, 9))
PLAN = [
    (0, ONE, 2, 3, 4),
    (0, TWO, 3, 4),
    (0, ONE, 3, LAST),
    (0, 1, 3, 4),
    (0, (1, 0), 3, 4),
    (ONE,),
    (FIRST, 3),
]


def multiplied(stack, changed):
    """Changes that multiply what a block's MLP puts out."""
    asked.append(list(changed))

    @contextmanager
    def apply(one):
        weight = stack.blocks[one.block].mlp.down_proj.weight
        own = weight.data
        weight.data = own * FACTORS[one]
        try:
            yield
        finally:
            weight.data = own

    return apply


asked: list[list[Changed]] = []


@pytest.fixture
def measured(tmp_path):
    """Sweeps a model, and gives the measurement's log-likelihoods by variant; asks a store for what it has."""
    asked.clear()
    with Store(tmp_path / "s") as store:

        def of(stack, plan, sequences, changes=multiplied, **options):
            one = Continuations(sequences, f"of {len(sequences)}")
            found = sweep.run(
                identity(), lambda: stack, plan, [one], store, 64, progress=False, changes=changes, **options
            )
            return {v: result.arrays["logprob"] for v, result in found[one.name].items()}

        yield of


def expected(name, variant, sequences):
    """Log-likelihoods by plain forwards, each of a model of its own whose weights are multiplied for good."""
    model = loading.prepare(tiny_models.build(name))
    for one in variants.changes_of([variant]):
        model.model.layers[one.block].mlp.down_proj.weight.mul_(FACTORS[one])
    if (1, 0) in variant:
        model.model.layers[1].self_attn.o_proj.weight[:, :8] = 0
    return [e[0] for e in plain(model, sequences, variants.removed_blocks(5, variant))]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "sequences", [ragged_sequences(), RandomSequences(97, 6, 0, 12, 2).sequences], ids=["ragged", "of one length"]
)
def test_a_sweep_equals_plain_forwards_of_changed_models(name, sequences, measured):
    stack = decoder_stack(loading.prepare(tiny_models.build(name)))
    own = {key: value.clone() for key, value in stack.model.state_dict().items()}
    found = measured(stack, PLAN, sequences)
    assert asked == [[ONE, TWO, LAST, FIRST]], "once, and each once"
    for variant, logprobs in found.items():
        np.testing.assert_allclose(logprobs, expected(name, variant, sequences), atol=2e-5)
    assert np.abs(found[0, ONE, 2, 3, 4] - measured(stack, [(0, 1, 2, 3, 4)], sequences)[0, 1, 2, 3, 4]).max() > 0.05
    for key, value in stack.model.state_dict().items():
        assert torch.equal(value, own[key])


@pytest.mark.slow
def test_compiled_blocks_take_changed_weights_without_a_graph_more(measured, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    graphs = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", graphs)
    stack = decoder_stack(loading.prepare(tiny_models.build("llama")))
    sequences = ragged_sequences()
    measured(stack, [(0, 1, 2, 3, 4)], sequences, compiled=True)
    before = graphs.frame_count
    found = measured(stack, [v for v in PLAN if (1, 0) not in v], sequences, compiled=True)
    assert before and graphs.frame_count == before
    for variant, logprobs in found.items():
        np.testing.assert_allclose(logprobs, expected("llama", variant, sequences), atol=2e-5)
    torch._dynamo.reset()


def test_only_what_the_store_lacks_is_changed(measured):
    stack, sequences = decoder_stack(loading.prepare(tiny_models.build("llama"))), ragged_sequences()[:4]
    first = measured(stack, PLAN[:2], sequences)
    measured(stack, PLAN[:3], sequences)
    measured(stack, [(0, 1)], sequences)
    assert asked == [[ONE, TWO], [ONE, LAST]]

    def refusing(*_):
        raise AssertionError("nothing is missing")

    again = measured(None, PLAN[:3], sequences, refusing)
    assert {v: list(again[v]) for v in first} == {v: list(first[v]) for v in first}
    assert measured(None, PLAN[:2], sequences, None).keys() == first.keys()


def test_without_whoever_knows_the_change_it_is_one_line(measured):
    with pytest.raises(StudyError, match="block 1 is to run with a change, and nothing says which") as refused:
        measured(None, PLAN, ragged_sequences(), None)  # told before a model is loaded
    assert "\n" not in str(refused.value)
    stack = decoder_stack(loading.prepare(tiny_models.build("llama")))
    with (
        pytest.raises(StudyError, match="block 1 is to run with a change"),
        plain_forwards.applied(stack, PLAN[0]),
    ):
        raise AssertionError("must not be reached")


def test_plain_forwards_of_the_same_model_are_changed_and_put_back():
    stack, sequences = decoder_stack(loading.prepare(tiny_models.build("llama"))), ragged_sequences()[:4]
    for variant in (PLAN[2], (0, 1, 3, 4)):
        with plain_forwards.applied(stack, variant, multiplied) as model:
            got = plain_forwards.score(model, sequences)
        flat = [output[0] for targets in got for output in targets]
        np.testing.assert_allclose(flat, expected("llama", variant, sequences), atol=2e-5)


def test_an_error_while_a_changed_block_runs_leaves_the_model_as_it_was(measured):
    stack = decoder_stack(loading.prepare(tiny_models.build("llama")))
    own = stack.blocks[4].mlp.down_proj.weight.clone()
    handle = stack.blocks[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(stack, PLAN[2:3], ragged_sequences()[:4])
    handle.remove()
    assert torch.equal(stack.blocks[4].mlp.down_proj.weight, own)
