import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_models
from layer_redundancy.evaluate import batches, ragged_batches, scoring
from layer_redundancy.models import loading
from layer_redundancy.models.checks import Sharing, sharing
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from measurements import plain, ragged_sequences

# As their blocks are called in a forward: the models whose attention is not one of transformers' own, or none.
IN_ROWS = ("gpt2", "baichuan", "rwkv", "rwkv5")


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_shared_prefixes_run_once(name):
    model = loading.prepare(tiny_models.build(name))
    stack, runs = decoder_stack(model), []

    class Counted(DecoderStack):
        def run_block(self, index, hidden, *args):
            runs.append((index, tuple(hidden.shape[:2])))
            return super().run_block(index, hidden, *args)

    sequences = ragged_sequences()[-6:]
    arranged = batches.arrange(sequences, sharing(stack.model))
    if name == "mamba":
        assert arranged.prefixes == (0,) * 6
        return
    assert arranged.prefixes == (20, 20, 20, 11, 11, 11)
    chosen = [sequences[i] for i in arranged.order]
    expected = [e[0] for e in plain(model, chosen, [1, 2, 4])]
    made = ragged_batches.batch_of(Counted(**vars(stack)), chosen, arranged.prefixes, batch_tokens=28)
    padded = batches.Batch(Counted(**vars(stack)), chosen, arranged.prefixes, batch_tokens=28)
    assert isinstance(made, batches.Batch) == (name in IN_ROWS)
    # Prefixes of two lengths go together only where their keys must be of one.
    prefixes = [(1, 20), (1, 11)] if name in ("rwkv", "rwkv5") else [(2, 20)]
    for batch, shapes in ((padded, [*prefixes, (2, 7), (2, 4), (2, 1)]), (made, [(1, 55)])):
        assert batch.num_tokens == 20 + 11 + 2 * (1 + 4 + 7)
        runs.clear()
        states = batch.run_block(0, batch.start, {})
        if batch is padded or name not in IN_ROWS:
            assert runs == [(0, shape) for shape in shapes]
        states = batch.run_block(3, states, {})
        targets = scoring.Targets([chosen[i] for i in batch.in_order])
        (of_ran,) = scoring.score(stack, batch.select(states), targets)()
        outputs = dict(zip(batch.in_order, of_ran, strict=True))
        got = [output for i in range(len(chosen)) for output in outputs[i]]
        np.testing.assert_allclose([o[0] for o in got], expected, atol=2e-5)


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 100), st.booleans())
def test_forwards_cost_no_more_than_all_in_one_or_each_by_itself(lengths, batch_tokens, padded):
    parts = batches.forwards(lengths, batch_tokens, padded)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))

    def cost(parts):
        return sum(len(p) * max(lengths[i] for i in p) + batch_tokens * batches.FORWARD_SHARE for p in parts)

    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= batch_tokens
        assert padded or len({lengths[i] for i in part}) == 1
    assert cost(parts) <= cost([[i] for i in range(len(lengths))]) + 1e-6
    if lengths and padded and len(lengths) * max(lengths) <= batch_tokens:
        assert cost(parts) <= cost([list(range(len(lengths)))]) + 1e-6


def test_lengths_that_do_not_go_together_run_apart():
    shared = tuple(range(3, 13))
    tails = [(20,), (21,), (22, 23, 24, 25)]
    questions = [scoring.ScoredSequence(shared + tail, ((5,),)) for tail in tails]
    assert set(batches.arrange(questions, Sharing(prefixes=True)).prefixes) == {10}
    assert set(batches.arrange(questions, Sharing(prefixes=True, alike_up_to=14)).prefixes) == {10}
    apart = batches.arrange(questions, Sharing(prefixes=True, alike_up_to=13))
    assert set(apart.prefixes) == {0} and apart.batches(100) == [(0, 1), (1, 3)]  # 14 tokens; then 11 and 11
    texts = [scoring.ScoredSequence(tuple(range(3, 3 + length)), ((5,),)) for length in (9, 9, 8, 5, 4)]
    assert batches.arrange(texts, Sharing(False, alike_up_to=5)).batches(100) == [(0, 2), (2, 3), (3, 5)]
    assert batches.arrange(texts, Sharing(False)).batches(100) == [(0, 5)]
