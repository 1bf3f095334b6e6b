"""The benchmark of a cluster runs in small, and counts what it says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import cluster, cluster_workers
from layer_redundancy.config import profiles
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate.amounts import Sweep
from made_up import checkpoint

LOAD = cluster.Load(order=500, variants=3, sequences=2, size=40)


def test_idle_seconds_are_those_in_which_workers_do_not_sleep():
    # Two workers; one waits for 0.1 s before each task, the other never, and there is nothing for it after 2 s.
    spans = [(0.1, 1.0), (1.1, 2.0), (2.1, 3.0), (0.0, 1.0), (1.0, 2.0)]
    steady, whole = cluster.idle([(10 + begun, 10 + end) for begun, end in spans], [10.0, 10.0])
    assert steady == pytest.approx(0.2 / 3)  # of the three that ended while the other two were left
    assert whole == pytest.approx(1.3 / 5)


def test_lengths_are_spread_as_pieces_are_and_fill_the_time():
    sweep = Sweep("text", Amount(32, 32, 8160, 8160, 8160), tuple(cluster.chosen(30)))
    for number in (1, 16):
        found = cluster.lengths([sweep], number, 30.0)
        assert sum(found) == pytest.approx(30.0 * number, rel=0.1)
        assert min(found) >= cluster.SHORTEST and max(found) <= cluster.LONGEST
    assert len(cluster.lengths([sweep], 4, 0.1)) == 12, "three for each worker at least"


def test_a_task_that_sleeps_is_as_large_as_a_piece():
    (task,) = cluster.sleeping([0.0], LOAD)
    assert 500 < len(task.order) < 3000 and len(task.producers) == 3
    found, error = cluster_workers.sleep(0.01, ["a", "b"], [b"1", b"2"], 40, b"")
    assert error is None and list(found) == ["a", "b"] and list(found["b"]) == [b"1", b"2"]
    began, ended = cluster_workers.TIMES.unpack_from(found["a"][b"2"])
    assert 0.01 <= ended - began < 1 and len(found["a"][b"2"]) == 40


def test_rows_say_whether_a_target_was_met():
    what = "their time over one process's"
    table = cluster.table([("two workers", what, 1.2, ""), ("overhead", "a task, 4 workers", 0.01, "s")])
    assert table["met"].tolist() == ["no", "yes"] and table["target"].tolist() == ["<= 1.1", "<= 0.02"]
    assert table["machine"].str.contains("threads").all() and table["versions"].str.contains("distributed 2").all()


def test_a_mistake_is_one_line(monkeypatch):
    def broken(*_):
        raise StudyError("no worker is there")

    monkeypatch.setattr(cluster, "measure", broken)
    with pytest.raises(SystemExit, match="no worker is there"):
        cluster.main(rounds=1)


@pytest.mark.slow
def test_it_measures_and_writes_in_small(tmp_path, monkeypatch):
    profile = replace(profiles.get("smoke", model=str(checkpoint(tmp_path / "model"))), further=())
    monkeypatch.setattr(cluster, "profiles", SimpleNamespace(get=lambda _: profile))
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    small = {"WORKERS": (3,), "SECONDS": 0.5, "BLOCKS": 4, "MEGABYTES": 1, "SHORTEST": 0.01, "MEAN": 0.05}
    for name, value in small.items():
        monkeypatch.setattr(cluster, name, value)
    cluster.main(rounds=1)
    rows = pd.read_csv(tmp_path / "figures" / "bench" / "cluster.csv")
    assert list(rows.columns) == ["step", "what", "value", "unit", "target", "met", "machine", "versions"]
    value = rows.set_index(["step", "what"])["value"]
    assert np.isfinite(value).all() and set(rows["step"]) == {"two workers", "overhead", "sending"}
    assert value["two workers", "results apart at most"] < 1e-5
    assert value["two workers", "pieces"] >= 1 and value["two workers", "their time over one process's"] > 0
    assert value["overhead", "tasks, 3 workers"] >= 9 and value["overhead", "a task, 3 workers"] > 0
    assert value["overhead", "order of a task"] == value["two workers", "order of a piece, most"]
    assert value["sending", "sent each time"] == 1 and value["sending", "to a worker of this machine"] > 1e5
