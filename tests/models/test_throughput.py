import pytest
import torch

import tiny_models
from layer_redundancy.core import variants
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep, sweep_estimate
from layer_redundancy.models import throughput
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from measurements import Continuations, identity, ragged_sequences


@pytest.fixture
def stack():
    return decoder_stack(tiny_models.build("llama"))


def test_rates_double_and_end(stack):
    rates = throughput.rates(stack, most=4096)
    assert list(rates) == [1024, 2048, 4096][: len(rates)] and all(rate > 0 for rate in rates.values())


def test_the_smallest_batch_that_is_fast_enough_is_taken(stack, monkeypatch):
    monkeypatch.setattr(throughput, "rates", lambda _: {1024: 50.0, 2048: 98.0, 4096: 100.0})
    assert throughput.batch_tokens(stack) == 2048
    monkeypatch.setattr(throughput, "rates", lambda _: pytest.fail("measured twice"))
    assert throughput.batch_tokens(stack) == 2048
    assert throughput.batch_tokens(stack, asked=7) == 7


def test_memory_that_runs_out_ends_the_search(stack, monkeypatch):
    run = DecoderStack.run_block

    def scarce(self, index, hidden, *arguments):
        if hidden.shape[0] * hidden.shape[1] > 1024:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, index, hidden, *arguments)

    monkeypatch.setattr(DecoderStack, "run_block", scarce)
    assert list(throughput.rates(stack)) == [1024]
    assert throughput.batch_tokens(stack) == 1024


def test_a_sweep_with_a_measured_batch_gives_the_same_numbers(stack, tmp_path):
    measurement, plan = Continuations(ragged_sequences()), [variants.dense(5), *variants.single_removal(5)]
    found = []
    for name, batch in (("a", None), ("b", 64)):
        with Store(tmp_path / name) as store:
            found.append(sweep.run(identity(), lambda: stack, plan, [measurement], store, batch, progress=False))
    for variant in plan:
        one, other = (of["continuations"][variant].arrays["logprob"] for of in found)
        assert abs(one - other).max() < 1e-4


def test_what_a_sweep_ran_is_written_down(stack, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYER_REDUNDANCY_NOTEBOOK", "02_some")
    measurement, plan = Continuations(ragged_sequences()), variants.single_removal(5)
    with Store(tmp_path / "s") as store:
        for _ in range(2):  # the second finds everything in the store
            sweep.run(identity(), lambda: stack, plan, [measurement], store)
        (row,) = store.sweeps()
    expected = sweep_estimate.estimate(stack, plan, [measurement])
    assert (row["notebook"], row["variants"]) == ("02_some", 5)
    assert row["block_tokens_shared"] == expected.block_tokens_shared < row["block_tokens_naive"]
    assert row["seconds"] > 0


def test_tokens_a_second_are_those_that_are_read_and_written(monkeypatch):
    """Timed by a clock that counts the tokens which go into the model, as if each took a second."""
    models, ran = [tiny_models.build("llama"), tiny_models.build("gpt2")], [0, 0]
    for place, model in enumerate(models):
        model.register_forward_pre_hook(
            lambda _, args, kwargs, place=place: ran.__setitem__(place, ran[place] + kwargs["input_ids"].numel()),
            with_kwargs=True,
        )

    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(sum(ran)))
    found = throughput.tokens_a_second(models, tiny_models.tokens(3, 20), new_tokens=4, rounds=2)
    assert ran == [3 * 3 * (20 + 10 + 3)] * 2, "three times; of four tokens that are written three are read again"
    assert [one.reading for one in found] == [1.0, 1.0]
    assert [one.writing for one in found] == pytest.approx([3 * 4 / (3 * 13)] * 2)
    monkeypatch.undo()
    (real,) = throughput.tokens_a_second(models[:1], tiny_models.tokens(2, 1), new_tokens=1)
    assert real.reading > 0 and real.writing > 0
