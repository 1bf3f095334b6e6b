import multiprocessing
import signal
import time
from dataclasses import replace
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from layer_redundancy.core import devices, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep, sweep_estimate
from layer_redundancy.evaluate.scoring import ScoredSequence
from layer_redundancy.evaluate.trie import num_block_runs, trie
from layer_redundancy.models import loading
from layer_redundancy.models.checks import check_stack
from layer_redundancy.models.stack import DecoderStack, decoder_stack
from measurements import FIXED, Continuations, identity, plain, ragged_sequences, silenced, sweep_slowly


def pytest_generate_tests(metafunc):
    if "way" in metafunc.fixturenames:
        names, ways = list(tiny_models.CONFIGS), [(name, "float32") for name in tiny_models.CONFIGS]
        if devices.is_gpu(metafunc.config.getoption("--device")):
            ways += [(name, "bfloat16") for name in names]
            ways += [(name, f"{dtype} compiled") for name in ("llama", "gemma2") for dtype in ("float32", "bfloat16")]
        metafunc.parametrize(("name", "way"), ways)


def test_sweep_equals_one_plain_forward_a_variant(name, way, tmp_path, request, record_property):
    device, (dtype, *compiled) = request.config.getoption("--device"), way.split()
    model = loading.prepare(tiny_models.build(name).to(device, getattr(torch, dtype)))
    measurement = Continuations(ragged_sequences())
    plan = [*variants.single_removal(5), *variants.cumulative_removal(5, [3, 1, 4, 0, 2]), (1, 3)]
    with Store(tmp_path / "s") as store:
        got = sweep.run(
            identity(),
            lambda: decoder_stack(model),
            plan,
            [measurement],
            store,
            batch_tokens=64,
            progress=False,
            compiled=bool(compiled),
        )[measurement.name]
    assert set(got) == set(plan)
    tokens = np.array([len(t) for s in measurement.sequences for t in s.targets])
    expected = {v: plain(model, measurement.sequences, variants.removed_blocks(5, v), device) for v in got}
    apart = {v: got[v].arrays["logprob"] / tokens - np.array([e[0] for e in expected[v]]) / tokens for v in got}
    record_property(way, float(max(np.abs(values).max() for values in apart.values())))
    for variant, result in got.items():
        if dtype == "float32":
            np.testing.assert_allclose(apart[variant], 0, atol=1e-5)
            assert result.arrays["greedy"].tolist() == [e[1] for e in expected[variant]]
        else:
            np.testing.assert_allclose(apart[variant], 0, atol=FORMATS[dtype][1])


def quantized(folder, **settings):
    """A tiny Llama whose linear layers bitsandbytes has quantized; as wide as its blocks of 64 weights, which its
    kernels for processors with bf16 units ask for."""
    config = tf.LlamaConfig(**tiny_models.COMMON | {"hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(2.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    config = tf.BitsAndBytesConfig(**settings)
    return tf.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )


def offloaded(_):
    """Weights of each module come only while it runs, as accelerate does where a device_map leaves no room."""
    return accelerate.cpu_offload(tiny_models.build("llama"), execution_device=torch.device("cpu"))


# what -> (builder, largest difference in NLL a token from plain forwards of the same format)
FORMATS = {
    "bfloat16": (lambda _: tiny_models.build("llama").to(torch.bfloat16), 0.05),
    "float16": (lambda _: tiny_models.build("llama").to(torch.float16), 0.01),
    "nf4": (lambda d: quantized(d, load_in_4bit=True, bnb_4bit_quant_type="nf4"), 1e-5),
    # Computed in float16, whatever the model's dtype, and activations are rounded to 8 bits a row.
    "int8": (lambda d: quantized(d, load_in_8bit=True), 0.05),
    "offloaded": (offloaded, 1e-5),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_dtypes_quantized_weights_and_weights_elsewhere(name, tmp_path):
    build, tolerance = FORMATS[name]
    model, sequences = loading.prepare(build(tmp_path / "model")), ragged_sequences()
    stack, measurement = decoder_stack(model), Continuations(sequences)
    check_stack(model)
    heads = [variants.without_heads(5, lacking) for lacking in ([(1, 0)], [(3, 2)], [(3, 0), (3, 2), (4, 1)])]
    plan = [variants.dense(5), *variants.single_removal(5), *heads]
    assert sweep_estimate.estimate(stack, plan, [measurement]).peak_bytes > 0
    with Store(tmp_path / "s") as store:
        got = sweep.run(identity(), lambda: stack, plan, [measurement], store, 64, progress=False)[measurement.name]
    tokens = np.array([len(t) for s in sequences for t in s.targets])
    for variant, result in got.items():
        with silenced(model, variant):
            expected = plain(model, sequences, variants.removed_blocks(5, variant))
        difference = (result.arrays["logprob"] - [e[0] for e in expected]) / tokens
        assert np.abs(difference).max() < tolerance
        if variant != plan[0]:
            assert np.abs(result.arrays["logprob"] - got[plan[0]].arrays["logprob"]).max() > 2 * tolerance


variant_sets = st.lists(
    st.sets(st.integers(0, 4), min_size=1).map(lambda kept: tuple(sorted(kept))), min_size=1, max_size=12, unique=True
)


@settings(max_examples=25, deadline=None)
@given(variant_sets, st.integers(1, 200))
def test_any_set_of_variants_and_any_batch_size(plan, batch_tokens):
    model = loading.prepare(tiny_models.build("llama"))
    measurement = Continuations(ragged_sequences()[:7])
    with Store(Path(":memory:")) as store:
        got = sweep.run(
            identity(), lambda: decoder_stack(model), plan, [measurement], store, batch_tokens, progress=False
        )[measurement.name]
    for variant in plan:
        expected = plain(model, measurement.sequences, variants.removed_blocks(5, variant))
        np.testing.assert_allclose(got[variant].arrays["logprob"], [e[0] for e in expected], atol=1e-4)


def test_what_the_store_has_is_not_computed_and_no_model_is_loaded(tmp_path):
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations(ragged_sequences()[:3])
    loads = []

    def load():
        loads.append(1)
        return decoder_stack(model)

    with Store(tmp_path / "s") as store:

        def run(plan, m=measurement, fingerprint="f"):
            return sweep.run(identity(fingerprint=fingerprint), load, plan, [m], store, progress=False)[m.name]

        first = run(variants.single_removal(5))
        again = run(variants.single_removal(5))
        assert len(loads) == 1
        for v in first:
            np.testing.assert_array_equal(first[v].arrays["logprob"], again[v].arrays["logprob"])
        run([*variants.single_removal(5), (0, 1)])  # one more variant
        assert len(loads) == 2
        store._db.execute("DELETE FROM outputs")  # as earlier versions left a store
        run(variants.single_removal(5))
        assert len(loads) == 2
        run(variants.single_removal(5), Continuations(ragged_sequences(1)[:3]))  # other tokens
        assert len(loads) == 3
        run(variants.single_removal(5), fingerprint="g")  # other weights
        assert len(loads) == 4


def outputs_of(store, variant, measurement):
    """What the store has of a variant's outputs of a measurement's sequences."""
    producer = sweep.producer(sweep.key(identity(), variant, measurement), compiled=False)
    return store.outputs([producer], [s.digest for s in measurement.sequences])[producer]


class Recording(DecoderStack):
    """Writes down how many tokens each block runs on."""

    def run_block(self, index, hidden, *arguments):
        self.tokens.append(hidden.shape[0] * hidden.shape[1])
        return super().run_block(index, hidden, *arguments)


def recording(model):
    stack = Recording(**vars(decoder_stack(model)))
    stack.tokens = []
    return stack


LONG = [ScoredSequence(tuple(range(k, k + 9)), (tuple(range(k + 1, k + 10)),)) for k in range(20, 60, 5)]


def test_a_smaller_budget_is_free_after_a_larger_one_and_a_larger_one_runs_what_is_new(tmp_path):
    model, plan = loading.prepare(tiny_models.build("llama")), variants.single_removal(5)
    few, some, all_of_them = (Continuations(LONG[:n], "text") for n in (2, 3, 8))

    def never():
        pytest.fail("all of it is in the store, and the model is loaded")

    def run(store, measurement, load, chosen=plan):
        found = sweep.run(identity(), load, chosen, [measurement], store, progress=False)[measurement.name]
        return {v: result.arrays["logprob"] for v, result in found.items()}

    stack = recording(model)
    with Store(tmp_path / "s") as store:
        expected = run(store, all_of_them, lambda: decoder_stack(model))
        for part, name in ((few, "text"), (few, "another measurement of them")):
            part.name = name
            found = run(store, part, never)
            assert all((found[v] == expected[v][:2]).all() for v in plan)
        assert run(store, Continuations(LONG[6:1:-2], "backwards"), never)[plan[0]].tolist() == [
            *expected[plan[0]][[6, 4, 2]]
        ]
    with Store(tmp_path / "t") as store:
        run(store, few, lambda: decoder_stack(model))
        run(store, some, lambda: decoder_stack(model), plan[:1])
        found = run(store, all_of_them, lambda: stack)
        # Sequence 2 is lacked by four variants, which share blocks, and sequences 3 to 7 by all five.
        assert sum(stack.tokens) == 9 * (num_block_runs(trie(plan[1:])) + 5 * num_block_runs(trie(plan)))
        for v in plan:
            np.testing.assert_allclose(found[v], expected[v], atol=1e-5)
        assert [row["block_tokens_shared"] for row in store.sweeps()][-1] == sum(stack.tokens)


def test_a_measurement_that_is_part_of_another_in_one_sweep_runs_once(tmp_path):
    stack = recording(loading.prepare(tiny_models.build("llama")))
    both = [Continuations(LONG[:6], "more"), Continuations(LONG[2:8], "others")]
    with Store(tmp_path / "s") as store:
        sweep.run(identity(), lambda: stack, [(0, 1), (0, 2)], both, store, progress=False)
        assert sum(stack.tokens) == 3 * 9 * 8 == store.sweeps()[0]["block_tokens_shared"]


@pytest.mark.parametrize("changed", ["model", "version", "compiled"])
def test_outputs_of_another_model_or_version_or_of_compiled_blocks_are_not_shared(changed, tmp_path):
    model, loads = loading.prepare(tiny_models.build("llama")), []
    more, part = Continuations(LONG[:3], "more"), Continuations(LONG[:2], "part")
    ours = sweep.producer(sweep.key(identity(), (0, 1), more), compiled=False)

    def load():
        loads.append(1)
        return decoder_stack(model)

    other = {"model": replace(ours, model="g"), "version": replace(ours, version=2)}
    with Store(tmp_path / "s") as store:
        store.put_outputs({other.get(changed, replace(ours, compiled=True)): {s.digest: [(-1.0, True)] for s in LONG}})
        sweep.run(identity(), load, [(0, 1)], [more], store, progress=False, compiled=False)
        sweep.run(identity(), load, [(0, 1)], [part], store, progress=False)
        assert len(loads) == 1 and outputs_of(store, (0, 1), part)[LONG[0].digest] != [(-1.0, True)]


def test_a_measurement_goes_on_as_its_sequences_were_run(tmp_path):
    """All variants of a model are to be measured alike, compiled or not."""
    new = Continuations(LONG[1:5], "new")
    ours = sweep.producer(sweep.key(identity(), (0, 1), new), compiled=False)
    with Store(tmp_path / "s") as store:
        assert sweep.is_compiled(identity(), new, store) is None
        store.put_outputs({replace(ours, compiled=True): {LONG[3].digest: [(-1.0, True)]}})
        assert sweep.is_compiled(identity(), new, store) is True
        assert sweep.is_compiled(identity(), Continuations(LONG[:3], "others"), store) is None
        assert sweep.is_compiled(identity(fingerprint="g"), new, store) is None


def test_nan_logits_are_one_line_and_what_was_finished_stays(tmp_path):
    model = loading.prepare(tiny_models.build("llama"))
    good, bad = Continuations(ragged_sequences()[:3], "good"), Continuations(ragged_sequences()[3:6], "bad")
    with Store(tmp_path / "s") as store:
        stack = lambda: decoder_stack(model)  # noqa: E731
        sweep.run(identity(), stack, [(0, 1)], [good], store, progress=False)
        model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
        with pytest.raises(StudyError, match=r"bad, without blocks \[0, 1, 2\]: logits are NaN") as e:
            sweep.run(identity(), stack, [(0, 1), (3, 4)], [bad], store, progress=False)
        assert "\n" not in str(e.value)
        assert store.get(sweep.key(identity(), (0, 1), good)) is not None


@pytest.mark.parametrize("name", tiny_models.ATTENTION)
def test_heads_share_everything_before_their_block_and_its_attention(name, tmp_path):
    model, sequences = loading.prepare(tiny_models.build(name)), ragged_sequences()
    plan = [variants.dense(5)] + [variants.without_head(5, block, head) for block in (0, 2, 4) for head in range(4)]
    plan += [variants.without_heads(5, [(2, 3), (2, 0)]), variants.without_heads(5, [(b, 1) for b in range(5)])]
    measurement, stack = Continuations(sequences), decoder_stack(model)
    with Store(tmp_path / "s") as store:
        got = sweep.run(identity(), lambda: stack, plan, [measurement], store, 64, progress=False)[measurement.name]
    for variant in plan[1:]:
        with silenced(model, variant):
            expected = np.array([e[0] for e in plain(model, sequences, [])])
        tokens = np.array([len(t) for s in sequences for t in s.targets])
        np.testing.assert_allclose(got[variant].arrays["logprob"] / tokens, expected / tokens, atol=1e-5)
        assert np.abs(got[variant].arrays["logprob"] - got[plan[0]].arrays["logprob"]).max() > 1e-3
    assert all("forward" not in vars(module) for module in model.modules())


def test_heads_that_are_not_there_are_one_line(tmp_path):
    measurement = Continuations(ragged_sequences()[:2])
    for kind, head, message in (("llama", 4, "head 4 is out of range"), ("mamba", 0, "no attention heads to remove")):
        stack = decoder_stack(loading.prepare(tiny_models.build(kind)))
        with Store(tmp_path / kind) as store, pytest.raises(StudyError, match=message):
            plan = [variants.without_head(5, 1, head)]
            sweep.run(identity(), lambda: stack, plan, [measurement], store, progress=False)  # noqa: B023
    with pytest.raises(StudyError, match="block 5 is out of range"):
        variants.without_head(5, 5, 0)


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path):
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations(ragged_sequences())
    stack = decoder_stack(model)
    sizes = []

    class Limited(DecoderStack):
        def run_block(self, index, hidden, *args):
            sizes.append(hidden.shape[0] * hidden.shape[1])
            if sizes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().run_block(index, hidden, *args)

    def run(store):
        limited = Limited(**vars(stack))
        return sweep.run(identity(), lambda: limited, [(0, 1, 4), (0, 2)], [measurement], store, 500, progress=False)

    limit = 1000
    with Store(tmp_path / "a") as store:
        whole = run(store)[measurement.name]
    limit = 30
    with Store(tmp_path / "b") as store:
        halved = run(store)[measurement.name]
    assert max(sizes) > 30
    for v in whole:
        np.testing.assert_allclose(whole[v].arrays["logprob"], halved[v].arrays["logprob"], atol=1e-4)
    limit = 0
    with (
        Store(tmp_path / "c") as store,
        pytest.raises(StudyError, match="memory: continuations: one sequence of 27"),
    ):
        run(store)


def num_outputs(path):
    with Store(path) as store:
        return store._db.execute("SELECT count(*) FROM outputs").fetchone()[0]


@pytest.mark.slow
def test_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "killed"
    model = loading.prepare(tiny_models.build("llama"))  # before the forks: they share what it imports
    kept = [0]
    for attempt in range(6):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=sweep_slowly, args=(decoder_stack(model), path, theirs)
        )
        process.start()
        assert ours.recv() == "ready"
        if attempt < 5:
            while process.is_alive() and num_outputs(path) <= kept[-1]:  # at least a batch further than the last time
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if attempt < 5 else 0)
        kept.append(num_outputs(path))
    assert kept == sorted(kept) and kept[-1] == 5 * len(FIXED.sequences)
    with Store(tmp_path / "calm") as calm, Store(path) as store:
        stack = decoder_stack(model)
        expected = sweep.run(identity(), lambda: stack, variants.single_removal(5), [FIXED], calm, 8, progress=False)
        for v, result in expected[FIXED.name].items():
            got = store.get(sweep.key(identity(), v, FIXED))
            np.testing.assert_array_equal(got.arrays["logprob"], result.arrays["logprob"])


def run_counted(model, path, runs, barrier):
    """A sweep in a process of its own that counts the blocks it runs."""

    class Counted(DecoderStack):
        def run_block(self, *args):
            with runs.get_lock():
                runs.value += 1
            time.sleep(0.002)
            return super().run_block(*args)

    stack = Counted(**vars(decoder_stack(model)))
    barrier.wait()
    with Store(path) as store:
        sweep.run(identity(), lambda: stack, variants.single_removal(5), [FIXED], store, 8, progress=False)


def test_two_processes_share_a_sweep(tmp_path):
    context = multiprocessing.get_context("fork")
    model = loading.prepare(tiny_models.build("llama"))
    counts = []
    for number in (1, 2):
        runs, barrier = context.Value("i", 0), context.Barrier(number)
        arguments = (model, tmp_path / str(number), runs, barrier)
        processes = [context.Process(target=run_counted, args=arguments) for _ in range(number)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        counts.append(runs.value - 3 * 4 * number)  # each times a block of the longest batch, which has three forwards
    assert abs(counts[1] - counts[0]) <= 12, counts
    with Store(tmp_path / "1") as one, Store(tmp_path / "2") as two:
        for v in variants.single_removal(5):
            a, b = (store.get(sweep.key(identity(), v, FIXED)).arrays["logprob"] for store in (one, two))
            np.testing.assert_array_equal(a, b)


def test_a_batch_is_kept_variant_by_variant(tmp_path, monkeypatch):
    """Thousands of variants may take hours on one batch: what is done of it survives."""
    monkeypatch.setattr(sweep, "KEEP_SECONDS", 0)
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations(ragged_sequences()[:3])
    stack, runs = decoder_stack(model), []

    class Stopped(DecoderStack):
        def run_block(self, index, *args):
            runs.append(index)
            if len(runs) == 12:
                raise KeyboardInterrupt
            return super().run_block(index, *args)

    plan = variants.single_removal(5)
    with Store(tmp_path / "s") as store:
        monkeypatch.setattr(sweep_estimate, "_rates", lambda *_: (1.0, 1.0))
        with pytest.raises(KeyboardInterrupt):
            sweep.run(identity(), lambda: Stopped(**vars(stack)), plan, [measurement], store, 500, progress=False)
        kept = [v for v in plan if outputs_of(store, v, measurement)]
        assert kept == plan[:3], kept
        runs[:] = [None] * 12
        got = sweep.run(identity(), lambda: Stopped(**vars(stack)), plan, [measurement], store, 500, progress=False)
        assert len(runs) - 12 == num_block_runs(trie([v for v in plan if v not in kept]))
    with Store(tmp_path / "calm") as store:
        calm = sweep.run(identity(), lambda: stack, plan, [measurement], store, 500, progress=False)
    for v in plan:
        np.testing.assert_array_equal(
            got[measurement.name][v].arrays["logprob"], calm[measurement.name][v].arrays["logprob"]
        )


def test_batches_are_smaller_where_memory_is_short(tmp_path, monkeypatch):
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations(ragged_sequences())
    stack, most = decoder_stack(model), []

    class Watched(DecoderStack):
        def run_block(self, index, hidden, *args):
            most[-1] = max(most[-1], hidden.shape[0] * hidden.shape[1])
            return super().run_block(index, hidden, *args)

    results = []
    for free in (10**9, 150_000):
        most.append(0)
        monkeypatch.setattr(devices, "available", lambda _, free=free: free)
        with Store(tmp_path / str(free)) as store:
            plan = variants.single_removal(5)
            got = sweep.run(identity(), lambda: Watched(**vars(stack)), plan, [measurement], store, 500, progress=False)
            results.append(np.concatenate([got[measurement.name][v].arrays["logprob"] for v in plan]))
    assert most[1] <= 60 < 120 < most[0], most
    np.testing.assert_allclose(*results, atol=1e-4)


def test_a_token_beyond_the_embeddings_is_one_line(tmp_path):
    model, measurement = loading.prepare(tiny_models.build("llama")), Continuations([ScoredSequence((5, 97), ((6,),))])
    with (
        Store(tmp_path / "s") as store,
        pytest.raises(StudyError, match="token 97 is beyond the model's 97 embeddings"),
    ):
        sweep.run(identity(), lambda: decoder_stack(model), [(0,)], [measurement], store, progress=False)
