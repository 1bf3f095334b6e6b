import multiprocessing
import pickle
import platform
import sqlite3
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core import cache
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import KEY as PARTS_OF_A_KEY
from layer_redundancy.core.store import Contents, Key, Producer, Result, Store, packed

KEY = Key("model", "0,1", "perplexity", "data", '{"a": 1}', 1)
RESULT = Result({"perplexity": 23.25}, {"nll": np.arange(3.0)})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "sub" / "results.sqlite") as store:
        yield store


def test_round_trip(store):
    assert store.get(KEY) is None
    store.put(KEY, "name", RESULT)
    with Store(store.path) as again:
        got = again.get(KEY)
    assert got.summary == {"perplexity": 23.25}
    np.testing.assert_array_equal(got.arrays["nll"], [0, 1, 2])


@pytest.mark.parametrize("part", PARTS_OF_A_KEY)
def test_whatever_the_number_depends_on_is_in_the_key(store, part):
    store.put(KEY, "name", RESULT)
    other = replace(KEY, **{part: 2 if part == "version" else "other"})
    assert store.get(other) is None


def test_a_cached_result_is_computed_once_and_a_failed_one_is_not_kept(store):
    def fail():
        raise StudyError("too little memory")

    with pytest.raises(StudyError, match="too little"):
        store.cached(KEY, "name", fail)
    assert store.get(KEY) is None
    assert store.cached(KEY, "name", lambda: RESULT) is RESULT
    again = store.cached(KEY, "name", fail)
    assert again.summary == RESULT.summary
    np.testing.assert_array_equal(again.arrays["nll"], [0, 1, 2])


def test_partial_outputs_are_dropped_with_the_result(store):
    other = replace(KEY, variant="0")
    store.put_partial({KEY: {0: [[-1.5, True]], 1: [[-2.5, False]]}, other: {0: [[-9, True]]}})
    store.put_partial({KEY: {4: [[-0.1, True]]}})
    assert store.partial(KEY) == {0: [[-1.5, True]], 1: [[-2.5, False]], 4: [[-0.1, True]]}
    store.put(KEY, "name", RESULT)
    assert store.partial(KEY) == {}
    assert len(store.partial(replace(KEY, variant="0"))) == 1


PRODUCER = Producer("model", "0,1")
ONE, OTHER = b"1" * 16, b"2" * 16


def test_outputs_are_known_by_sequence_and_what_made_them(store):
    outputs = {ONE: [(-1.5, True), (-0.1234567890123456, False)], OTHER: [(-2.5, False)]}
    made = [PRODUCER, *(replace(PRODUCER, **{k: v}) for k, v in (("variant", "0"), ("compiled", True), ("version", 2)))]
    store.put_outputs({PRODUCER: outputs, made[1]: {OTHER: [(-9.0, True)]}})
    store.put_outputs({PRODUCER: {ONE: outputs[ONE]}})
    with Store(store.path) as again:
        found = again.outputs(made, [OTHER, ONE, b"3" * 16, ONE])
        assert found == {made[0]: outputs, made[1]: {OTHER: [(-9.0, True)]}, made[2]: {}, made[3]: {}}
        assert again.outputs([PRODUCER], [ONE]) == {PRODUCER: {ONE: outputs[ONE]}}
        has = [
            again.has_outputs(*asked)
            for asked in (("model", False, [ONE]), ("model", False, [b"3" * 16]), ("model", True, [ONE]))
        ]
        assert has == [True, False, False] and not again.has_outputs("other", False, [ONE])


def test_a_damaged_output_is_said_and_lacking(store, caplog):
    store.put_outputs({PRODUCER: {ONE: [(-1.5, True)], OTHER: [(-2.5, False)]}})
    for damage in ("x'00'", "''", "x''", "3"):
        with sqlite3.connect(store.path) as db:
            db.execute(f"UPDATE outputs SET outputs = {damage} WHERE sequence = ?", (ONE,))
        assert store.outputs([PRODUCER], [ONE, OTHER]) == {PRODUCER: {OTHER: [(-2.5, False)]}}
        assert "the output of a sequence by variant 0,1 is damaged: it is measured again" in caplog.text
        caplog.clear()


def test_many_outputs_take_little_room(store):
    """Half a thousand variants on 800 sequences each should stay below twenty megabytes."""
    rng = np.random.default_rng(0)
    sequences = [rng.bytes(16) for _ in range(800)]
    for n in range(10):
        store.put_outputs({replace(PRODUCER, variant=",".join(map(str, range(n, 30)))): {
            sequence: [(rng.normal(), False)] for sequence in sequences
        }})  # fmt: skip
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store.path.stat().st_size < 8000 * 50


def test_csv_for_people(store, tmp_path):
    store.put(KEY, "name", RESULT)
    store.put(replace(KEY, measurement="task/x"), "name", Result({"acc": 0.5, "items": 4}))
    store.put(replace(KEY, model="other"), "other name", RESULT)
    assert store.export_csv(tmp_path / "all.csv") == 3
    assert store.export_csv(tmp_path / "one.csv", model="model") == 2
    table = pd.read_csv(tmp_path / "one.csv")
    assert table["measurement"].tolist() == ["perplexity", "task/x"]
    assert table["acc"].tolist()[1] == 0.5


def write(path, number):
    with Store(path) as store:
        for i in range(40):
            store.put_partial({replace(KEY, variant=f"{number}"): {i: [[-1.0, True]]}})
            store.put(replace(KEY, variant=f"{number},{i}"), "name", RESULT)


def test_several_processes_write_at_once(store):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write, args=(store.path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    for n in range(3):
        assert len(store.partial(replace(KEY, variant=f"{n}"))) == 40
        assert all(store.get(replace(KEY, variant=f"{n},{i}")) is not None for i in range(40))


def open_many(folder, barrier):
    for n in range(60):
        barrier.wait(timeout=20)
        Store(folder / str(n)).close()


def test_several_processes_make_a_store_at_once(tmp_path):
    """The switch of a new file to write-ahead logging does not wait for another process's: SQLite fails at once."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=open_many, args=(tmp_path, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_a_file_that_is_no_store_is_one_line_and_left_alone(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"half written" * 500)
    with pytest.raises(StudyError, match="damaged or no results store"):
        Store(path)
    assert path.read_bytes() == b"half written" * 500


def test_a_half_written_transaction_is_rolled_back(store):
    store.put(KEY, "name", RESULT)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM results")
    other.close()  # what a killed process leaves: a transaction without its commit
    assert store.get(KEY).summary == RESULT.summary


def test_a_full_disk_is_one_line_and_loses_nothing(store):
    store.put(KEY, "name", RESULT)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to run out of space
    big = Result({}, {"x": np.random.default_rng(0).normal(size=100_000)})
    with pytest.raises(StudyError, match="the disk is full") as e:
        store.put(replace(KEY, variant="big"), "name", big)
    assert "\n" not in str(e.value)
    assert store.get(KEY).summary == RESULT.summary
    store._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.put(replace(KEY, variant="big"), "name", big)
    assert store.get(replace(KEY, variant="big")) is not None


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be opened"):
        Store(tmp_path / "file" / "results.sqlite")
    with pytest.raises(StudyError, match="cannot write"):
        cache.write_whole({tmp_path / "file" / "x.csv": b""})


def test_a_claim_holds_while_its_process_lives(tmp_path, monkeypatch):
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def hold(path, conn):
        with Store(path) as store:
            assert store.claim("a")
            conn.send("claimed")
            conn.recv()

    path = tmp_path / "s"
    with Store(path) as store:
        assert not store.changed() or not store.changed()
        process = multiprocessing.get_context("fork").Process(target=hold, args=(path, theirs))
        process.start()
        assert ours.recv() == "claimed"
        assert store.changed() and not store.changed()
        assert not store.claim("a") and store.claim("b") and store.claim("b")
        store.release("a")  # not ours to release
        assert not store.claim("a")
        with monkeypatch.context() as m:
            m.setattr("layer_redundancy.core.store.CLAIM_SECONDS", 0)  # not renewed for too long
            assert store.claim("a")
        store.release("a")
        ours.send("go")
        process.join()
    with Store(path) as store:
        store._db.execute("INSERT INTO claims VALUES ('dead', ?, ?)", (f"{platform.node()} {process.pid}", time.time()))
        store._db.execute("INSERT INTO claims VALUES ('far', 'elsewhere 1', ?)", (time.time(),))
        assert store.claim("dead") and not store.claim("far")


# ------------------------------------------------------------------------------------------------ of another store


SWEEP = {
    "notebook": "02",
    "model_name": "name",
    "variants": 2,
    "block_tokens_naive": 40,
    "block_tokens_shared": 30,
    "head_tokens": 4,
    "seconds_estimated": None,
    "seconds": 1.5,
}


@pytest.fixture
def filled(tmp_path):
    """What a store holds of everything, as another process gets it."""
    with Store(tmp_path / "theirs.sqlite") as theirs:
        theirs.put(KEY, "name", RESULT)
        theirs.put(replace(KEY, variant="dense"), "name", Result({"odd": float("nan")}))
        theirs.put_outputs({PRODUCER: {ONE: [(-1.5, True)], OTHER: [(-2.5, False)]}})
        theirs.put_outputs({replace(PRODUCER, compiled=True): {ONE: [(-1.25, True)]}})
        theirs.log_sweep(**SWEEP)
        theirs.log_work("02", "name", "pass", 128)
        return pickle.loads(pickle.dumps(theirs.contents()))


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "finished"} for row in rows]


def test_what_another_store_holds_can_be_taken_over(store, filled):
    store.take_over(filled)
    with Store(store.path) as again:
        got = again.get(KEY)
        assert got.summary == RESULT.summary
        np.testing.assert_array_equal(got.arrays["nll"], RESULT.arrays["nll"])
        assert np.isnan(again.get(replace(KEY, variant="dense")).summary["odd"])
        assert again.outputs([PRODUCER, replace(PRODUCER, compiled=True)], [ONE, OTHER]) == {
            PRODUCER: {ONE: [(-1.5, True)], OTHER: [(-2.5, False)]},
            replace(PRODUCER, compiled=True): {ONE: [(-1.25, True)]},
        }
        assert without_time(again.sweeps()) == [SWEEP]
        assert without_time(again.work()) == [
            {"notebook": "02", "model_name": "name", "kind": "pass", "block_tokens": 128}
        ]


def test_an_empty_store_gives_nothing(store):
    assert store.contents() == Contents()
    store.take_over(Contents())
    assert store.contents() == Contents()


def test_what_was_there_before_stays_and_what_is_the_same_is_the_other_stores(store, filled):
    """Producers have numbers of their own in each store."""
    store.put_outputs({replace(PRODUCER, variant="before"): {ONE: [(-7.0, False)]}, PRODUCER: {OTHER: [(-9.0, True)]}})
    store.put(replace(KEY, data="before"), "name", RESULT)
    store.put(KEY, "name", Result({"perplexity": 1.0}))
    store.take_over(filled)
    assert store.get(KEY).summary == RESULT.summary and store.get(replace(KEY, data="before")) is not None
    assert store.outputs([replace(PRODUCER, variant="before"), PRODUCER], [ONE, OTHER]) == {
        replace(PRODUCER, variant="before"): {ONE: [(-7.0, False)]},
        PRODUCER: {ONE: [(-1.5, True)], OTHER: [(-2.5, False)]},
    }


def test_to_take_over_twice_is_to_take_over_once(store, filled):
    """But for what was written down of work, which was done twice."""
    store.take_over(filled)
    once = store.contents()
    store.take_over(filled)
    twice = store.contents()
    assert (twice.results, twice.outputs) == (once.results, once.outputs)
    assert (len(twice.work), len(twice.sweeps)) == (2, 2)


def test_outputs_that_are_given_beside_are_stored_as_they_are_packed(store):
    outputs = {ONE: [(-1.5, True), (-0.1234567890123456, False)]}
    store.take_over(Contents(), {PRODUCER: packed(outputs)})
    assert store.outputs([PRODUCER], [ONE]) == {PRODUCER: outputs}


def test_what_cannot_be_taken_over_whole_is_not_taken_over(store, filled):
    with pytest.raises(StudyError):
        store.take_over(replace(filled, work=[{"no such column": 1}]))
    assert store.contents() == Contents()
