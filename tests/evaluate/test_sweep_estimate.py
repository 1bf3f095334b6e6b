import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.store import Store
from layer_redundancy.core.wording import duration
from layer_redundancy.evaluate import batches, sweep, sweep_estimate
from layer_redundancy.models import loading
from layer_redundancy.models.checks import Sharing
from layer_redundancy.models.stack import decoder_stack
from measurements import Continuations, identity, ragged_sequences


def test_an_estimate_tells_what_will_run(tmp_path, remarks):
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations(ragged_sequences())
    stack, plan = decoder_stack(model), variants.single_removal(5)
    expected = sweep_estimate.estimate(stack, plan, [measurement], batch_tokens=64)
    tokens = sum(len(s.input_ids) for s in measurement.sequences)
    assert expected.variants == 5 and expected.block_tokens_naive == 20 * tokens
    assert (
        expected.head_tokens
        == 5 * sum(s.num_scored for s in measurement.sequences)
        < expected.head_tokens_naive
        == 5 * tokens
    )
    arranged = batches.arrange(measurement.sequences, Sharing(prefixes=True))
    assert expected.block_tokens_shared == 14 * arranged.num_tokens() < 14 * tokens
    assert 0 < expected.seconds < 60
    assert expected.peak_bytes > sum(p.numel() * 4 for p in model.parameters())
    assert "5 variants" in str(expected) and "\n" not in str(expected) and "prompt" not in str(expected)
    assert f"about {duration(expected.seconds)}, " in str(expected)
    mamba = decoder_stack(loading.prepare(tiny_models.build("mamba")))
    assert "every item runs its whole prompt" in str(sweep_estimate.estimate(mamba, plan, [measurement]))
    with Store(tmp_path / "s") as store:
        sweep.run(identity(), lambda: stack, plan, [measurement], store)
        assert "5 variants" in remarks()
        sweep.run(identity(), lambda: stack, plan, [measurement], store)
        assert remarks() == ""
