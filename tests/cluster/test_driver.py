"""Experiments as they are, on workers; afterwards the store alone has all that they ask for."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from cluster import cases
from cluster.processes import Cluster, wait_until
from layer_redundancy.cluster import ahead, driver, workers
from layer_redundancy.cluster.driver import Asked, Opener
from layer_redundancy.cluster.pool import Pool
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.experiments import registry
from made_up import checkpoint

pytestmark = pytest.mark.slow

NOTEBOOKS = ["01_layer_importance", "02_single_layer_removal", "11_healing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """A store that two workers have filled, the pool, and which tasks were begun before they were asked for."""
    place = tmp_path_factory.mktemp("measured")
    cluster, begun = Cluster(place), []
    try:
        with cluster.client() as client:
            pool = Pool(client, place / "store", progress=False)
            start = pool.start
            pool.start = lambda tasks: (begun.extend(tasks), start(tasks))[1]
            try:
                asked = [Asked(name) for name in NOTEBOOKS]
                opener = Opener("smoke", "", trust_remote_code=False, store=place / "store")
                opener = lambda model, opener=opener: opener(str(folder))  # noqa: E731
                failed = driver.measure(asked, opener, pool, threads=1)
            finally:
                pool.close()
    finally:
        cluster.close()
    return place / "store", failed, pool


def test_experiments_are_measured_and_read_from_the_store_alone(measured, folder):
    store, failed, pool = measured
    assert failed == dict.fromkeys(NOTEBOOKS)
    assert {one.orders > 0 for one in pool.workers.values()} == {True} and len(pool.workers) == 2
    study = Opener("smoke", "", trust_remote_code=False, store=store)(str(folder))
    reading = replace(study, measures=False)
    for name in NOTEBOOKS:
        registry.by_number(name).measure(reading)
    with pytest.raises(StudyError, match=r"is not in the results store .*WORKERS= or SCHEDULER="):
        registry.by_number("03").measure(reading)


def test_nothing_is_left_that_could_be_begun_ahead(measured, folder):
    store, _, pool = measured
    study = Opener("smoke", "", trust_remote_code=False, store=store)(str(folder))
    for name in NOTEBOOKS:
        assert ahead.tasks(registry.by_number(name), study, pool) == []
        assert not ahead.foreseen(registry.by_number(name), study, pool).ledger.work


def test_what_does_not_depend_on_results_is_foreseen(folder, tmp_path):
    study = Opener("smoke", "", trust_remote_code=False, store=tmp_path / "store")(str(folder))

    class Nowhere:
        """As much of a pool as it takes to make tasks."""

        def __init__(self):
            self.kinds = {}

        def rank(self, model):
            return 0

    healing = registry.by_number("11")
    before = ahead.tasks(healing, study, Nowhere())
    kinds = [task.what.split(" of ")[0] for task in before]
    assert "activations" in kinds
    passes = [set(ahead.foreseen(healing, study, Nowhere(), seed=seed).asked) for seed in range(6)]
    assert set.union(*passes) - set.intersection(*passes), "nothing depends on the order of removal"


def test_workers_of_this_machine_start_anew_when_they_are_killed(folder, tmp_path):
    with workers.local(2) as client:
        workers.wait_for_one(client)
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        client.wait_for_workers(2, timeout=60)
        pids = set(client.run(os.getpid).values())
        os.kill(min(pids), signal.SIGKILL)
        wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
        pool = cases.sweep(client, folder, tmp_path / "store")
        wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)
        assert set(client.run(os.getpid).values()) != pids
    assert cases.table(tmp_path / "store") and pool.workers


DRIVE = """
import sys, time
from layer_redundancy.cluster import workers
if __name__ == "__main__":
    with workers.local(2) as client:
        client.wait_for_workers(2)
        print(*client.run(__import__("os").getpid).values(), flush=True)
        time.sleep(600)
"""


def test_workers_of_this_machine_end_with_a_driver_that_is_killed(tmp_path):
    script = tmp_path / "drive.py"
    script.write_text(DRIVE)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    process.kill()
    process.wait()
    wait_until(lambda: not any(_alive(pid) for pid in pids), seconds=30)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "given, line",
    [
        ([], "give workers or a scheduler"),
        (["--workers", "0"], "give the number of processes, from 1"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler answers at tcp://127.0.0.1:9"),
        (["--scheduler", "tcp://192.0.2.1:8786"], "whoever reaches a scheduler without TLS can run code"),
        (["--scheduler", "127.0.0.1:8786"], "is no address: write tcp://HOST:PORT"),
    ],
)
def test_bad_input_is_one_line(given, line, monkeypatch, capsys):
    arguments = ["driver", "--profile", "smoke", *given, "notebooks/01_layer_importance.ipynb:x"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(workers, "WAIT", 6.0)
    assert driver.main() == 1
    found = capsys.readouterr()
    assert found.out == "" and line in found.err and len(found.err.strip().splitlines()) == 1


def test_a_scheduler_without_workers_is_one_line(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path, workers=0)
    try:
        with workers.connected(cluster.address) as client:
            start = time.monotonic()
            with pytest.raises(StudyError, match=r"^the scheduler tcp://.* has no workers: start some"):
                workers.wait_for_one(client, seconds=1)
            assert time.monotonic() - start < 20
    finally:
        cluster.close()


def test_a_model_that_is_offloaded_runs_as_one_that_is_not(folder, tmp_path):
    """As device_map leaves a model that is larger than a GPU: weights come only while a module runs."""
    cluster = Cluster(tmp_path, workers=0)
    cluster.add(1, offload)
    try:
        with cluster.client() as client:
            cases.sweep(client, folder, tmp_path / "store", blocks=4)
    finally:
        cluster.close()
    alone = cases.study(folder, tmp_path / "alone")
    expected = alone.sweep(cases.every(alone.num_blocks), [cases.text(4)])["perplexity"]
    with Store(tmp_path / "store") as store:
        found = replace(alone, store=store, measures=False).sweep(list(expected), [cases.text(4)])["perplexity"]
    for variant, result in expected.items():
        assert found[variant].summary["nll"] == pytest.approx(result.summary["nll"], abs=1e-5)


def offload() -> None:
    """Makes this process a worker whose models are offloaded."""
    import accelerate
    import torch

    from layer_redundancy.models import loading

    load = loading.load
    loading.load = lambda *given: accelerate.cpu_offload(load(*given), execution_device=torch.device("cpu"))
