"""Compiled blocks are the blocks; graphs are few, and what cannot be compiled runs as it is.

What is traced is handed to torch's own operations here: counting graphs needs no compiler.
"""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep
from layer_redundancy.evaluate.batches import Batch, arrange
from layer_redundancy.evaluate.scoring import RandomSequences
from layer_redundancy.models import compiled, loading
from layer_redundancy.models.checks import sharing
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from measurements import Continuations, identity, ragged_sequences


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are made."""
    torch._dynamo.reset()
    # Its records of every step of a trace are for a file that nobody asked for here; pytest would format them all.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    counted = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", counted)
    yield counted
    torch._dynamo.reset()


def stack_of(name):
    return decoder_stack(loading.prepare(tiny_models.build(name)))


def states(stack, sequences, elements):
    """Hidden states of sequences after some blocks, or blocks without heads."""
    arranged = arrange(sequences, sharing(stack.model))
    batch = Batch(stack, [sequences[i] for i in arranged.order], arranged.prefixes, batch_tokens=200)
    found = batch.start
    for element in elements:
        found = batch.run_block(element, found, {})
    return found


@pytest.mark.parametrize("name, prefixed, most", [("llama", True, 3), ("gemma3", False, 2)])
def test_graphs_are_as_many_as_kinds_of_blocks_and_calls(graphs, name, prefixed, most):
    """Kinds of blocks: one, or one with a window and one without. Calls: whole texts, prefixes, what continues them."""
    stack = stack_of(name)
    fast = compiled.compiled(stack)
    found = [RandomSequences(97, count, 0, length, 1).sequences for count, length in ((4, 20), (3, 33))]
    for prefix in (20, 13) if prefixed else ():
        two = [RandomSequences(97, 3, length, prefix // 2, 3).sequences for length in (prefix, prefix - 4)]
        found.append(two[0] + two[1])
    for sequences in found:
        for one, other in zip(states(stack, sequences, range(5)), states(fast, sequences, range(5)), strict=True):
            torch.testing.assert_close(other, one)
    assert graphs.frame_count == most
    assert all("forward" not in vars(module) for module in stack.model.modules())


def test_what_is_listened_to_or_replaced_runs_as_it_is(graphs):
    stack, sequences = stack_of("llama"), ragged_sequences()[:3]
    fast, seen = compiled.compiled(stack), []
    expected = states(stack, sequences, [(0, 1, 2)])
    torch.testing.assert_close(states(fast, sequences, [(0, 1, 2)]), expected)
    hook = stack.blocks[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    states(fast, sequences, [0])
    hook.remove()
    assert seen and not graphs.frame_count
    states(fast, sequences, [0])
    assert graphs.frame_count


def test_recurrences_are_not_unrolled(graphs):
    stack = stack_of("mamba")
    sequences = ragged_sequences()[:3]
    torch.testing.assert_close(states(compiled.compiled(stack), sequences, [0, 1]), states(stack, sequences, [0, 1]))
    assert not graphs.frame_count and not compiled.pays(stack, 10**12)


class Undecided(nn.Module):
    """Does what no graph can: decides by a number that it computed."""

    def forward(self, hidden):
        return hidden if hidden.sum() > 0 else hidden + 1


def test_a_kind_that_does_not_compile_runs_as_it_is_and_says_so_once(graphs, caplog):
    stack, sequences = stack_of("llama"), ragged_sequences()[:3]
    stack.blocks[1].mlp.act_fn = stack.blocks[3].mlp.act_fn = Undecided().eval()
    with caplog.at_level(logging.INFO):
        got = states(compiled.compiled(stack), sequences, [1, 3])
    torch.testing.assert_close(got, states(stack, sequences, [1, 3]))
    (line,) = [record.message for record in caplog.records if "not compiled" in record.message]
    assert line.startswith("LlamaDecoderLayer is not compiled and runs as it is (")


def test_too_many_graphs_are_an_error_and_no_slow_run(graphs, monkeypatch):
    monkeypatch.setattr(compiled, "GRAPHS", 1)
    fast = compiled.compiled(stack_of("gemma3"))
    with pytest.raises(StudyError, match="1 graphs do not suffice for the blocks of Gemma3ForCausalLM"):
        states(fast, ragged_sequences()[:3], range(5))


def test_lack_of_memory_is_passed_on(graphs, monkeypatch):
    def scarce(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled, "BACKEND", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        states(compiled.compiled(stack_of("llama")), ragged_sequences()[:3], [0])


def test_compiled_and_other_results_never_mix(graphs, tmp_path):
    stack, dense, singles = stack_of("llama"), variants.dense(5), variants.single_removal(5)
    one, other = Continuations(ragged_sequences()[:4], "one"), Continuations(ragged_sequences()[4:8], "other")

    def measure(chosen, measured, compiled=None):
        sweep.run(identity(), lambda: stack, chosen, [measured], store, progress=False, compiled=compiled)
        count = graphs.frame_count
        graphs.frame_count = 0
        return count

    def has(measured, chosen, compiled):
        return len(store.present({v: sweep.key(identity(), v, measured, compiled) for v in chosen}))

    with Store(tmp_path / "s") as store:
        # On a processor as they are, and so go on.
        assert not measure([dense], one) and sweep.is_compiled(identity(), one, store) is False
        assert sweep.is_compiled(identity(), other, store) is None
        assert measure([dense], other, compiled=True) == 1  # a graph for all of them
        assert sweep.is_compiled(identity(), other, store)
        assert (has(other, [dense], True), has(other, [dense], False)) == (1, 0)
        assert not measure([dense], other)  # it is there
        # What was begun compiled is not gone on with as it is.
        with pytest.raises(StudyError, match="measured with compiled blocks on a GPU, and some of it is missing"):
            measure(singles, other)
        measure(singles, other, compiled=True)
        assert (has(other, singles, True), has(other, singles, False), has(one, singles, True)) == (5, 0, 0)
        assert not measure([dense], other, compiled=False) and has(other, [dense], False) == 1  # all anew, if asked to


def test_measurements_that_are_large_enough_are_compiled_on_a_gpu(monkeypatch):
    stack = stack_of("llama")
    assert not compiled.pays(stack, 10**12)  # a processor
    monkeypatch.setattr(compiled.devices, "is_gpu", lambda _: True)
    weights = sum(p.numel() for p in stack.blocks[0].parameters())
    enough = round(compiled.WORTH / 2 / weights)
    assert compiled.pays(stack, 2 * enough) and not compiled.pays(stack, enough // 2)


def test_a_stack_that_is_compiled_is_the_same_model():
    stack = stack_of("llama")
    fast = compiled.compiled(stack)
    assert isinstance(fast, DecoderStack) and fast.model is stack.model and fast.blocks is stack.blocks
