"""A study on a cluster gives what it gives by itself."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from cluster import cases
from cluster.processes import Cluster
from layer_redundancy.cluster import pool as of_pool
from layer_redundancy.cluster.pool import Pool
from layer_redundancy.cluster.study import DistributedStudy
from layer_redundancy.core.store import Store
from layer_redundancy.evaluate import sweep
from layer_redundancy.evaluate.scoring import Perplexity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cases.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.close()


@pytest.fixture
def pool(cluster, tmp_path):
    with cluster.client() as client:
        found = Pool(client, tmp_path / "store", progress=False)
        yield found
        found.close()


def texts() -> list[Perplexity]:
    """Two texts of one name, and one of another that has blocks in common with the first."""
    first = cases.text(12)
    second = Perplexity(replace(first.blocks, input_ids=first.blocks.input_ids.flip(1)))
    third = Perplexity(replace(first.blocks, input_ids=first.blocks.input_ids[4:]), name="part")
    return [first, second, third]


def test_sweeps_that_are_timed_and_small_ones_give_what_a_study_gives_by_itself(folder, pool, tmp_path):
    alone = cases.study(folder, tmp_path / "alone")
    chosen = cases.every(alone.num_blocks)
    with pool.lock:
        study = DistributedStudy.on(cases.study(folder, tmp_path / "store"), pool, threads=1)
        for text in texts():
            found, expected = (one.sweep(chosen, [text])[text.name] for one in (study, alone))
            for variant in chosen:
                np.testing.assert_allclose(
                    found[variant].arrays["nll"], expected[variant].arrays["nll"], rtol=0, atol=1e-5 * cases.LENGTH
                )


def test_experiments_that_ask_for_the_same_at_once_have_it_done_once(folder, pool, tmp_path):
    chosen, failed = cases.every(5), []

    def ask(text: Perplexity) -> None:
        with pool.lock:
            try:
                study = cases.on_cluster(cases.study(folder, tmp_path / "store"), pool)
                study.sweep(chosen, [text])
            except BaseException as error:
                failed.append(error)

    whole, _, part = texts()
    threads = [threading.Thread(target=ask, args=(text,)) for text in (whole, part, whole)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    once = sum(one.block_tokens for one in pool.workers.values())
    with Store(tmp_path / "store") as store:
        rows = store._fetched("SELECT count(*) FROM outputs")[0][0]
    assert rows == 12 * len(chosen)
    with pool.lock:
        again = cases.on_cluster(cases.study(folder, tmp_path / "another"), pool)
        lacking = sweep.from_store(again.identity, chosen, [whole], again.store)[1]
        tasks = again._tasks(lacking, None)
    assert once == sum(task.block_tokens for task in tasks)


def test_workers_are_asked_of_the_scheduler_itself(folder, pool, tmp_path, remarks, monkeypatch):
    """The client keeps a copy of what is known of them, and now and then one that names none."""
    monkeypatch.setattr(pool.client, "scheduler_info", lambda **_: {"workers": {}})
    monkeypatch.setattr(of_pool, "LOOK", 0.01)
    with pool.lock:
        study = cases.on_cluster(cases.study(folder, tmp_path / "store"), pool)
        study.sweep(cases.every(study.num_blocks), [cases.text()])
    assert len(pool.workers) == 2 and "was lost" not in remarks()
