import numpy as np
import pytest
import torch

import measurements
import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate import plain_forwards
from layer_redundancy.models import loading
from layer_redundancy.models.stack import decoder_stack


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_scores_are_those_of_each_sequence_by_itself(batch_tokens):
    model, sequences = loading.prepare(tiny_models.build("gemma2")), measurements.ragged_sequences()
    with plain_forwards.applied(decoder_stack(model), (0, 2, 3)) as pruned:
        got = plain_forwards.score(pruned, sequences, batch_tokens)
    expected = measurements.plain(model, sequences, [1, 4])
    flat = [output for targets in got for output in targets]
    np.testing.assert_allclose([o[0] for o in flat], [e[0] for e in expected], atol=1e-4)
    assert [o[1] for o in flat] == [e[1] for e in expected]


def test_heads_and_blocks_are_put_back():
    model, ids = loading.prepare(tiny_models.build("llama")), tiny_models.tokens()
    stack, dense = decoder_stack(model), model(input_ids=ids).logits
    with plain_forwards.applied(stack, (0, (2, 1), 3)):
        damaged = model(input_ids=ids).logits
        assert len(model.model.layers) == 3
    with plain_forwards.applied(stack, (0, 2, 3)):
        assert not torch.allclose(model(input_ids=ids).logits, damaged)
    torch.testing.assert_close(model(input_ids=ids).logits, dense, atol=0, rtol=0)
    with (
        pytest.raises(StudyError, match="head 4 is out of range"),
        plain_forwards.applied(stack, variants.without_head(5, 0, 4)),
    ):
        raise AssertionError("must not be reached")
    torch.testing.assert_close(model(input_ids=ids).logits, dense, atol=0, rtol=0)
