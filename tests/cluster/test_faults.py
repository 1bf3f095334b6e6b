"""Workers, schedulers and drivers that die at work: real processes, killed while tasks are in flight."""

import random
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cluster import cases
from cluster.processes import Cluster, Process, wait_until
from layer_redundancy.cluster import pool as of_pool
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep as local_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cases.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def cluster(tmp_path):
    found = Cluster(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The sweep's table where nothing went wrong, by one worker."""
    place = tmp_path_factory.mktemp("undisturbed")
    one = Cluster(place, workers=1)
    try:
        with one.client() as client:
            cases.sweep(client, folder, place / "store")
    finally:
        one.close()
    return cases.table(place / "store")


def outputs(store: Path) -> int:
    """Outputs that a store has so far."""
    if not store.exists():
        return 0
    with Store(store) as opened:
        return opened._fetched("SELECT count(*) FROM outputs")[0][0]


def beside(act) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_two_workers_give_the_same_as_one_to_the_last_bit_and_as_an_uncut_run(folder, undisturbed, cluster, tmp_path):
    with cluster.client() as client:
        pool = cases.sweep(client, folder, tmp_path / "store")
    assert cases.table(tmp_path / "store") == undisturbed
    assert len([one for one in pool.workers.values() if one.orders]) == 2
    assert sum(one.orders for one in pool.workers.values()) > 4
    whole = cases.study(folder, tmp_path / "uncut")
    chosen, text = cases.every(whole.num_blocks), cases.text()
    uncut = whole.sweep(chosen, [text])["perplexity"]
    cut = local_sweep.run(
        whole.identity, lambda: pytest.fail("something is not stored"), chosen, [text], Store(tmp_path / "store")
    )["perplexity"]
    for variant in chosen:
        nll = [result.arrays["nll"] / result.arrays["tokens"] for result in (uncut[variant], cut[variant])]
        np.testing.assert_allclose(nll[1], nll[0], rtol=0, atol=1e-5)


def test_a_worker_is_killed_and_the_other_does_its_work(folder, undisturbed, cluster, tmp_path):
    store = tmp_path / "store"

    def kill():
        wait_until(lambda: outputs(store) > 0)
        cluster.workers[0].kill()

    thread = beside(kill)
    with cluster.client() as client:
        cases.sweep(client, folder, store)
    thread.join()
    assert cases.table(store) == undisturbed


def test_all_workers_are_killed_and_new_ones_go_on(folder, undisturbed, cluster, tmp_path):
    store, had = tmp_path / "store", []

    def kill():
        wait_until(lambda: outputs(store) > 0)
        for one in cluster.workers:
            one.kill()
        had.append(outputs(store))
        time.sleep(1.0)
        had.append(outputs(store))
        cluster.add(1)

    thread = beside(kill)
    with cluster.client() as client:
        cases.sweep(client, folder, store)
    thread.join()
    assert had[1] - had[0] <= len(cases.every(5)) * 8 < len(undisturbed), "somebody went on without workers"
    assert cases.table(store) == undisturbed


def drive(address: str, folder: Path, store: Path) -> None:
    """A driver, as a process of its own."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        cases.sweep(client, folder, store)


def test_the_driver_is_killed_and_the_next_goes_on_from_the_store(folder, undisturbed, cluster, tmp_path):
    store = tmp_path / "store"
    driver = Process(drive, cluster.address, folder, store)
    wait_until(lambda: outputs(store) > 0)
    driver.kill()
    had = outputs(store)
    assert 0 < had < len(undisturbed)
    with cluster.client() as client:
        pool = cases.sweep(client, folder, store)
    assert cases.table(store) == undisturbed
    again = sum(one.block_tokens for one in pool.workers.values())
    with cluster.client() as client:
        whole = cases.sweep(client, folder, tmp_path / "another")
    assert again < sum(one.block_tokens for one in whole.workers.values())


def test_the_scheduler_is_killed_which_is_one_line_and_loses_nothing(folder, undisturbed, cluster, tmp_path):
    store = tmp_path / "store"

    def kill():
        wait_until(lambda: outputs(store) > 0)
        cluster.scheduler.kill()

    thread = beside(kill)
    with cluster.client() as client:
        start = time.monotonic()
        with pytest.raises(StudyError, match=r"scheduler .* does not answer any more: what was finished is stored"):
            cases.sweep(client, folder, store)
        assert time.monotonic() - start < 60
        thread.join()
        kept = cases.table(store)
        assert kept and set(kept) <= set(undisturbed)
    for one in cluster.workers:
        one.kill()
    cluster.workers.clear()
    cluster.start_scheduler()
    cluster.add(1)
    with cluster.client() as client:
        cases.sweep(client, folder, store)
    assert cases.table(store) == undisturbed


def test_twenty_random_kills_end_with_the_same_table(folder, undisturbed, tmp_path):
    store, chance, kills, done = tmp_path / "store", random.Random(0), [], threading.Event()
    cluster, slowly = Cluster(tmp_path, workers=0), partial(cases.slow, 0.8)
    cluster.add(3, slowly)

    def kill():
        while len(kills) < 20 and not done.is_set():
            time.sleep(chance.uniform(0.05, 0.4))
            victim = chance.choice([one for one in cluster.workers if one.alive])
            victim.kill()
            cluster.workers.remove(victim)
            kills.append(outputs(store))
            cluster.add(1, slowly)

    try:
        with cluster.client() as client:
            thread = beside(kill)
            cases.sweep(client, folder, store)
            done.set()
            thread.join()
    finally:
        cluster.close()
    assert len(kills) == 20, f"the sweep was over after {len(kills)} kills"
    assert cases.table(store) == undisturbed


def other_code() -> None:
    from layer_redundancy.cluster import code

    code._digest = lambda: "01234567"


def test_a_worker_of_another_code_is_left_out_and_both_are_named(folder, undisturbed, cluster, tmp_path, remarks):
    cluster.add(1, other_code)
    with cluster.client() as client:
        pool = cases.sweep(client, folder, tmp_path / "store")
    assert cases.table(tmp_path / "store") == undisturbed
    (line,) = [line for line in remarks().splitlines() if "left out" in line]
    assert "01234567 there and" in line and "here" in line
    assert len(pool.workers) == 2


def test_no_worker_of_the_same_code_is_one_line(folder, tmp_path):
    cluster = Cluster(tmp_path, workers=0)
    cluster.add(1, other_code)
    try:
        with cluster.client() as client, pytest.raises(StudyError, match=r"no worker can be used: .* 01234567 there"):
            cases.sweep(client, folder, tmp_path / "store")
    finally:
        cluster.close()


def short_of_memory() -> None:
    """Makes this process one whose forwards hold one sequence."""
    from layer_redundancy.evaluate import batches

    build = batches.Batch.__init__

    def only_one(self, stack, sequences, *more):
        if len(sequences) > 1:
            raise MemoryError("a test says so")
        build(self, stack, sequences, *more)

    batches.Batch.__init__ = only_one


def test_a_worker_without_memory_halves_its_batches(folder, undisturbed, tmp_path):
    cluster = Cluster(tmp_path, workers=0)
    cluster.add(1, short_of_memory)
    try:
        with cluster.client() as client:
            cases.sweep(client, folder, tmp_path / "store")
    finally:
        cluster.close()
    found = cases.table(tmp_path / "store")
    assert found.keys() == undisturbed.keys()


def test_what_a_slow_worker_is_at_another_does_as_well(folder, undisturbed, tmp_path, remarks, monkeypatch):
    monkeypatch.setattr(of_pool, "LEAST_SLOW", 0.5)
    cluster = Cluster(tmp_path, workers=1)
    cluster.add(1, partial(cases.slow, 30.0))
    try:
        with cluster.client() as client:
            start = time.monotonic()
            pool = cases.sweep(client, folder, tmp_path / "store")
            assert time.monotonic() - start < 30
    finally:
        cluster.close()
    assert "another one tries as well" in remarks()
    assert len([one for one in pool.workers.values() if one.block_tokens]) == 1, "the slow one has finished a piece"
    assert cases.table(tmp_path / "store") == undisturbed
