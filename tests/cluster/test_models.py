"""How models reach workers that share no disk with the driver, and how what was made there comes back."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import tiny_models
from cluster import cases
from cluster.processes import Cluster, Process, wait_until
from layer_redundancy.cluster import files
from layer_redundancy.cluster import study as of_study
from layer_redundancy.cluster.pool import Pool
from layer_redundancy.cluster.study import DistributedStudy
from layer_redundancy.cluster.tasks import Place
from layer_redundancy.config.profiles import EMBEDDED_RWKV, Recipe, TrainingBudget
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Result, Store
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.models import checkpoints
from made_up import checkpoint

pytestmark = pytest.mark.slow


def elsewhere(cache) -> None:
    """Makes this process one of a machine that sees none of the driver's folders."""
    cache.mkdir(parents=True, exist_ok=True)
    paths.CACHE = cache
    Place.candidates = lambda self, cache: [str(cache / self.name)] if (cache / self.name).is_dir() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model with a tokenizer, which is of the usual cache."""
    return checkpoint(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """Two workers on machines of their own, and a driver whose cache is another one as well."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "driver")
    paths.CACHE.mkdir()
    found = Cluster(tmp_path, workers=0)
    for name in ("first", "second"):
        found.add(1, partial(elsewhere, tmp_path / name))
    yield found
    found.close()


def test_a_folder_is_sent_once_to_each_worker_that_lacks_it(apart, tmp_path, remarks):
    folder = cases.model(tmp_path / "model")
    with apart.client() as client:
        pool = cases.sweep(client, folder, tmp_path / "store")
    names = {file.name for file in (tmp_path / "first").iterdir()} | {f.name for f in (tmp_path / "second").iterdir()}
    (name,) = [one for one in names if one.startswith("received-")]
    sent = [line for line in remarks().splitlines() if line.startswith(f"{name} sent to worker")]
    assert 1 <= len(sent) == len(pool.workers) <= 2
    size = sum(size for _, size in files.files_of(str(folder)))
    assert pool.bytes_sent == len(sent) * size
    alone = cases.study(folder, tmp_path / "alone")
    expected = alone.sweep(cases.every(alone.num_blocks), [cases.text()])["perplexity"]
    with Store(tmp_path / "store") as store:
        study = replace(alone, store=store, measures=False)
        found = study.sweep(list(expected), [cases.text()])["perplexity"]
    for variant, result in expected.items():
        assert found[variant].summary["nll"] == pytest.approx(result.summary["nll"], abs=1e-5)


def test_a_checkpoint_that_a_worker_made_comes_to_the_driver_and_goes_to_the_others(whole, apart, tmp_path):
    folder = whole
    with apart.client() as client:
        pool = Pool(client, tmp_path / "store", progress=False)
        try:
            with pool.lock:
                study = cases.on_cluster(cases.study(folder, tmp_path / "store"), pool)
                smaller = study.pruned([1, 3])
                assert smaller.num_blocks == 3 and isinstance(smaller, DistributedStudy)
                made = list((tmp_path / "driver").glob("pruned-*"))
                assert len(made) == 1 and (made[0] / "model.safetensors").is_file()
                found = smaller.sweep([smaller.dense], [cases.text()])["perplexity"][smaller.dense]
                same = study.sweep([variants.without(5, [1, 3])], [cases.text()])["perplexity"]
        finally:
            pool.close()
    (of_whole,) = same.values()
    np.testing.assert_allclose(found.arrays["nll"], of_whole.arrays["nll"], atol=1e-4)
    assert {path.name for path in tmp_path.glob("*/pruned-*")} == {made[0].name}


def test_a_long_text_goes_to_each_machine_once_and_what_was_trained_on_it_comes_back(
    whole, apart, tmp_path, monkeypatch
):
    monkeypatch.setattr(of_study, "LONG_TEXT", 50)
    recipe, budget = Recipe("lora", 1e-3, rank=2), TrainingBudget("", 16, steps=2, batch=2, held_out=2)
    ids = torch.as_tensor(tiny_models.tokens(6, 16))
    text = TokenBlocks(ids, "random", "calibration", bos=False)
    with apart.client() as client:
        pool = Pool(client, tmp_path / "store", progress=False)
        try:
            with pool.lock:
                study = cases.on_cluster(cases.study(whole, tmp_path / "store"), pool)
                study.inputs.__dict__["training_text"] = lambda budget, seed: text
                healed = study.healed([3], recipe, budget)
                losses = healed.training().arrays["held_out"]
                assert len(losses) > 1 and np.isfinite(losses).all()
                found = healed.sweep([healed.dense], [cases.text(8)])["perplexity"][healed.dense]
        finally:
            pool.close()
    assert np.isfinite(found.arrays["nll"]).all()
    names = {path.name.partition("-")[0] for path in (tmp_path / "driver").iterdir() if not path.name.startswith(".")}
    assert {"text", "healed"} <= names
    assert len({path.name for path in tmp_path.glob("*/healed-*")}) == 1


def test_a_model_that_no_worker_can_get_is_one_line(apart, tmp_path):
    folder = cases.model(tmp_path / "model")
    with apart.client() as client:
        pool = Pool(client, tmp_path / "store", progress=False)
        try:
            with pool.lock:
                study = cases.on_cluster(cases.study(folder, tmp_path / "store"), pool)
                of_hub = replace(study.identity, source="nobody/nothing", revision="0" * 40)
                lost = replace(study, identity=of_hub)
                with pytest.raises(StudyError, match=r"^worker tcp://.*nobody/nothing") as raised:
                    lost.sweep([lost.dense], [cases.text()])
                assert "\n" not in str(raised.value)
        finally:
            pool.close()


def test_a_worker_with_another_model_of_that_name_is_left_out(apart, tmp_path, remarks):
    profile = replace(cases.study(cases.model(tmp_path / "model"), tmp_path / "store").profile, model=EMBEDDED_RWKV)
    identity = replace(checkpoints.identify(profile), fingerprint="f" * 64)
    with apart.client() as client:
        pool = Pool(client, tmp_path / "store", progress=False)
        try:
            with pool.lock:
                study = cases.on_cluster(cases.study(tmp_path / "model", tmp_path / "store"), pool)
                other = replace(study, profile=profile, identity=identity)
                with pytest.raises(StudyError, match=r"no worker can be used: .*rwkv.* there and .* here"):
                    other.sweep([other.dense], [cases.text()])
        finally:
            pool.close()
    assert "is left out: model rwkv" in remarks()


def drive_with(address, folder, store, count):
    """A driver that has a number of slow results computed."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        pool = Pool(client, store, progress=False)
        try:
            results(pool, folder, store, count)
        finally:
            pool.close()
        store.with_name("orders").write_text(str(orders(pool)))


def orders(pool) -> int:
    return sum(one.orders for one in pool.workers.values())


def results(pool, folder, store, count) -> list[Result]:
    with pool.lock:
        study = cases.on_cluster(cases.study(folder, store), pool)
        return [
            study.cached(study.key(f"slow/{place}", 1), partial(cases.slow_result, place), lambda: Result({}))
            for place in range(count)
        ]


def test_two_drivers_on_one_store_share_the_work(tmp_path):
    folder, store = cases.model(tmp_path / "model"), tmp_path / "store"
    cluster = Cluster(tmp_path)
    try:
        other = Process(drive_with, cluster.address, folder, store, 8)
        wait_until(store.exists)
        with cluster.client() as client:
            pool = Pool(client, store, progress=False)
            try:
                found = results(pool, folder, store, 8)
            finally:
                pool.close()
        other.process.join(60)
    finally:
        cluster.close()
    assert [one.summary["place"] for one in found] == list(range(8))
    theirs = int(store.with_name("orders").read_text())
    assert orders(pool) + theirs == 8, "what one driver did the other did again"
