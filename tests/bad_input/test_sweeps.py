"""Variants and measurements that cannot be, told before a model is loaded; and waits for others, told after a while."""

import hashlib
import json
import multiprocessing
import platform
import time

import numpy as np
import pytest
import torch

import tiny_models
from layer_redundancy.core import store as stores
from layer_redundancy.core import variants, waiting
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep
from layer_redundancy.models import loading
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.train import training_loop
from measurements import FIXED, Continuations, identity, ragged_sequences, sweep_slowly
from one_line import refusal

MEASUREMENT = Continuations(ragged_sequences()[:3])


@pytest.fixture(scope="module")
def stack():
    return decoder_stack(loading.prepare(tiny_models.build("llama")))


@pytest.fixture
def run(stack, tmp_path):
    """Sweeps the tiny model; gives the results and whether it was needed."""
    with Store(tmp_path / "s.sqlite") as store:

        def measured(plan, measurements=(MEASUREMENT,), load=lambda: stack):
            return sweep.run(identity(), load, plan, measurements, store, 64, progress=False)

        measured.store = store
        yield measured


def unneeded():
    pytest.fail("the model was loaded before the mistake was told")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        pytest.param([tuple(range(30))], "block 5 is out of range in (0, 1, 2", id="deeper than the model"),
        pytest.param([(0, 1, -1)], "block -1 is out of range in (0, 1, -1): the model has", id="negative"),
        pytest.param([(0, 0, 1)], "blocks of the variant (0, 0, 1) must ascend, each named once", id="a block twice"),
        pytest.param([(3, 2, 1, 0)], "blocks of the variant (3, 2, 1, 0) must ascend", id="backwards"),
        pytest.param([((1, 0), 0)], "must ascend", id="a block without a head before the one above it"),
        pytest.param([(1, (1, 0))], "must ascend", id="a block with and without a head"),
        pytest.param([()], "a variant without blocks is to be measured: keep at least one", id="no block"),
        pytest.param((0, 1, 2), "(0, 1, 2) is one variant, where a list of them is wanted", id="one variant"),
        pytest.param([3], "[3] is one variant, where a list of them is wanted", id="a block"),
        pytest.param(3, "variants must be a list such as [(0, 1, 3), (0, 2, 3)], not 3", id="a number"),
        pytest.param(None, "variants must be a list", id="nothing"),
        pytest.param("012", "variants must be a list", id="a text"),
        pytest.param(["012"], "a variant must be a list such as (0, 1, 3), not '012'", id="a list of texts"),
        pytest.param({(0, 1): "a"}, "variants must be a list", id="a mapping"),
        pytest.param([("0", "1")], "'0' in a variant is neither a block nor (block, head, ...)", id="texts for blocks"),
        pytest.param([(0.0, 1.0)], "0.0 in a variant is neither a block", id="floats for blocks"),
        pytest.param([(True,)], "True in a variant is neither a block", id="a flag for a block"),
        pytest.param([(0, None)], "None in a variant is neither a block", id="nothing for a block"),
        pytest.param([(0, (1, -1))], "heads in (1, -1) must be 0 or more", id="a negative head"),
        pytest.param([(0, (1, 2, 2))], "heads in (1, 2, 2) must be 0 or more, each named once", id="a head twice"),
        pytest.param([(0, (1, "0"))], "(1, '0') in a variant is neither", id="a text for a head"),
        pytest.param([(0, (1, 0.0))], "(1, 0.0) in a variant is neither", id="a float for a head"),
        pytest.param([(0, ())], "() in a variant is neither", id="a block of no name"),
    ],
)
def test_a_plan_that_cannot_be_is_told_before_the_model_is_loaded(run, plan, words):
    assert words in refusal(lambda: run(plan, load=unneeded))


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param([[0, 1, 2]], id="lists"),
        pytest.param([np.arange(3)], id="arrays"),
        pytest.param(np.array([[0, 1, 2]]), id="the rows of an array"),
        pytest.param([tuple(np.arange(3))], id="numpy integers"),
        pytest.param([torch.arange(3)], id="tensors"),
        pytest.param([range(3)], id="ranges"),
        pytest.param(iter([(0, 1, 2)]), id="an iterator"),
        pytest.param([(0, 1, 2), [0, 1, 2]], id="the same twice"),
    ],
)
def test_variants_may_be_whatever_holds_whole_numbers(run, plan):
    run([(0, 1, 2)])
    found = run(plan, load=unneeded)[MEASUREMENT.name]  # it has the same key
    assert list(found) == [(0, 1, 2)] and all(type(block) is int for variant in found for block in variant)


def test_heads_may_be_numpys_and_a_list(run):
    run([(0, (1, 0, 2))])
    (variant,) = run([(np.int64(0), [np.int64(1), 0, 2])], load=unneeded)[MEASUREMENT.name]
    assert variant == (0, (1, 0, 2))


def test_nothing_to_measure_is_nothing_measured(run):
    assert run([], load=unneeded) == {MEASUREMENT.name: {}}
    assert run([(0,)], (), load=unneeded) == {}


@pytest.mark.parametrize(
    ("measurements", "words"),
    [
        pytest.param(["perplexity"], "'perplexity' cannot be measured: give a list such as", id="names"),
        pytest.param("perplexity", "measurements must be a list such as [study.perplexity", id="a name"),
        pytest.param(MEASUREMENT, "measurements must be a list such as [study.perplexity", id="one measurement"),
        pytest.param([None], "None cannot be measured", id="nothing"),
        pytest.param({"a": MEASUREMENT}, "measurements must be a list", id="a mapping"),
    ],
)
def test_measurements_that_are_none(run, measurements, words):
    assert words in refusal(lambda: run([(0,)], measurements, load=unneeded))


def test_two_measurements_of_one_name_would_lose_one(run):
    other = Continuations(ragged_sequences()[3:6])
    line = refusal(lambda: run([(0,)], [MEASUREMENT, other], load=unneeded))
    assert "two measurements are called 'continuations'" in line and "give one another name" in line
    same = Continuations(ragged_sequences()[:3])
    assert list(run([(0,)], [MEASUREMENT, MEASUREMENT, same])) == ["continuations"], "the same one counts once"


def claim_all(run, chosen, owner, renewed):
    """Claims of somebody else on every batch that a sweep of these variants wants, for the same ones."""
    key = sweep.key(identity(), chosen[0], MEASUREMENT)
    names = hashlib.sha256(" ".join(sorted(map(variants.name, chosen))).encode()).hexdigest()[:16]
    for first in MEASUREMENT.sequences:
        batch = [key.model, False, key.version, first.digest.hex()]
        for work in (json.dumps(batch), json.dumps([*batch, names])):
            run.store._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (work, owner, renewed))


@pytest.mark.parametrize(
    ("owner", "whom"),
    [
        pytest.param("elsewhere 4711", "process 4711 on elsewhere", id="a machine whose clock is ahead"),
        pytest.param(f"{platform.node()} 1", "process 1 on this machine", id="a process that is not at it"),
        pytest.param("nonsense", "an unknown process ('nonsense')", id="nobody"),
    ],
)
def test_a_sweep_waits_for_no_claim_for_ever_and_says_whose_it_is(run, remarks, monkeypatch, owner, whom):
    claim_all(run, variants.single_removal(5), owner, time.time() + 3600)
    monkeypatch.setattr(stores, "CLAIM_SECONDS", 0.3)
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.05)
    found = run(variants.single_removal(5))
    assert len(found[MEASUREMENT.name]) == 5
    said = [line for line in remarks().splitlines() if "waiting for" in line]
    assert len(said) == 1 and said[0].startswith(f"continuations: waiting for {whom}, which is at it"), said


def test_a_sweep_waits_for_nobody_who_measures_other_variants(run, monkeypatch):
    claim_all(run, [(0, 1)], "elsewhere 4711", time.time())
    monkeypatch.setattr(sweep, "POLL_SECONDS", None)  # a wait would fail
    assert len(run([(0, 2)])[MEASUREMENT.name]) == 1


@pytest.mark.slow
def test_killed_processes_leave_their_part_to_another_at_once_and_the_same_rows(stack, tmp_path):
    context, path, begun = multiprocessing.get_context("fork"), tmp_path / "shared", []
    for _ in range(3):
        ours, theirs = context.Pipe()
        begun.append(context.Process(target=sweep_slowly, args=(stack, path, theirs)))
        begun[-1].start()
        assert ours.recv() == "ready"
    with Store(path) as shared, Store(tmp_path / "calm") as calm:
        while not shared._db.execute("SELECT count(*) FROM outputs").fetchone()[0]:
            time.sleep(0.01)
        for process in begun[:2]:
            process.kill()  # not collected: they stay in the list of processes
        killed = time.monotonic()
        begun[2].join()
        assert begun[2].exitcode == 0 and time.monotonic() - killed < stores.CLAIM_SECONDS / 2
        sweep.run(identity(), lambda: stack, variants.single_removal(5), [FIXED], calm, 8, progress=False)
        rows = [one._db.execute("SELECT variant, summary, arrays FROM results").fetchall() for one in (shared, calm)]
        assert rows[0] == rows[1] and len(rows[0]) == 5
        assert [shared._db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("partial", "claims")] == [0, 0]
        assert len({one._db.execute("SELECT count(*) FROM outputs").fetchone() for one in (shared, calm)}) == 1
    for process in begun[:2]:
        process.join()


def test_a_store_that_cannot_be_written_is_said_before_the_model_is_loaded(run, stack, monkeypatch, remarks):
    run([(0, 1)])
    monkeypatch.setattr(stores.os, "access", lambda path, mode: False)
    with Store(run.store.path) as read_only:

        def load():
            assert "cannot be written: what it lacks is measured, and gone" in remarks()
            return stack

        def again(plan, load):
            return sweep.run(identity(), load, plan, [MEASUREMENT], read_only, 64, progress=False)

        assert again([(0, 1)], unneeded) and not remarks(), "all is there"
        assert again([(0, 1), (1, 2)], load)
        assert again([(0, 1), (1, 2)], unneeded), "as long as this process lasts"
    assert run.store.get(sweep.key(identity(), (1, 2), MEASUREMENT)) is None


def test_a_training_that_another_process_is_at_says_who_that_is(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop.paths, "CACHE", tmp_path)
    with training_loop.workplace({"a": 1}) as folder:
        told = training_loop._trainer(folder)
    assert told.startswith("process ") and told.endswith("on this machine")
    assert training_loop._trainer(tmp_path / "none") == "another process" and not list(tmp_path.iterdir())
