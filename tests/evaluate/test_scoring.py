import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import scoring, sweep
from layer_redundancy.models import loading
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, ragged_sequences


def test_targets_may_lie_across_the_heads_chunks(tmp_path, monkeypatch):
    model, measurement = loading.prepare(tiny_models.build("gemma2")), Continuations(ragged_sequences())
    results = []
    for rows in (512, 7):
        monkeypatch.setattr(scoring, "HEAD_ROWS", rows)
        with Store(tmp_path / str(rows)) as store:
            stack = decoder_stack(model)
            results.append(sweep.run(identity(), lambda: stack, [(0, 3)], [measurement], store, 200, progress=False))  # noqa: B023
    whole, chunks = (r[measurement.name][0, 3].arrays for r in results)
    np.testing.assert_allclose(whole["logprob"], chunks["logprob"], atol=1e-5)
    assert whole["greedy"].tolist() == chunks["greedy"].tolist()


def test_perplexity_by_hand():
    blocks = type("Blocks", (), {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), "fingerprint": "x"})
    measurement = scoring.Perplexity(blocks)
    assert [s.input_ids for s in measurement.sequences] == [(5, 6), (8, 9)]
    assert [s.targets for s in measurement.sequences] == [((6, 7),), ((9, 10),)]
    result = measurement.result([[(-1.0, True)], [(-3.0, False)]])
    assert result.summary == {"perplexity": pytest.approx(np.e), "nll": 1.0, "tokens": 4}
    assert result.arrays["nll"].tolist() == [1.0, 3.0]
