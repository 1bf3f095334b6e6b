import numpy as np
import pytest

import tiny_models
from layer_redundancy.evaluate import batches, scoring
from layer_redundancy.models import loading
from layer_redundancy.models.checks import Sharing, sharing
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from measurements import plain, ragged_sequences


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
    if name in ("rwkv", "rwkv5", "mamba"):
        assert arranged.prefixes == (0,) * 6
        return
    assert arranged.prefixes == (20, 20, 20, 11, 11, 11)
    chosen = [sequences[i] for i in arranged.order]
    batch = batches.Batch(Counted(**vars(stack)), chosen, arranged.prefixes, batch_tokens=28)
    assert batch.num_tokens == 20 + 11 + 2 * (1 + 4 + 7)
    states = batch.run_block(0, batch.start, {})
    # Two prefixes, then the six sequences in forwards of 28 tokens at most, those of similar length together.
    assert runs == [(0, (2, 20)), (0, (4, 7)), (0, (2, 1))]
    states = batch.run_block(3, states, {})
    expected = plain(model, chosen, [1, 2, 4])
    targets = scoring.Targets([chosen[i] for i in batch.in_order])
    (of_ran,) = scoring.score(stack, batch.select(states), targets)()
    outputs = dict(zip(batch.in_order, of_ran, strict=True))
    got = [output for i in range(len(chosen)) for output in outputs[i]]
    np.testing.assert_allclose([o[0] for o in got], [e[0] for e in expected], atol=2e-5)


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
