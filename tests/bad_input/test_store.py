"""A results store that is none, damaged, locked, read-only or gone: one line, and nothing that was stored is lost."""

import logging
import multiprocessing
import os
import platform
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layer_redundancy.core import processes, store, waiting
from layer_redundancy.core.store import Key, Result, Store
from one_line import refusal

KEY = Key("model", "0,1", "perplexity", "data")
OTHER = replace(KEY, variant="0")
RESULT = Result({"perplexity": 23.25}, {"nll": np.arange(3.0)})
SWEEPS_BEFORE = (
    "finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, notebook TEXT NOT NULL, model_name TEXT NOT NULL, variants "
    "INTEGER NOT NULL, block_tokens_naive INTEGER NOT NULL, block_tokens_shared INTEGER NOT NULL, head_tokens INTEGER "
    "NOT NULL, seconds_estimated REAL NOT NULL, seconds REAL NOT NULL"
)


@pytest.fixture
def path(tmp_path):
    """A store with two results."""
    with Store(tmp_path / "results.sqlite") as made:
        made.put(KEY, "name", RESULT)
        made.put(OTHER, "name", RESULT)
    return tmp_path / "results.sqlite"


def tables(path, sql):
    with sqlite3.connect(path) as db:
        db.executescript(sql)


# ------------------------------------------------------------------------------------------------ no store

NO_STORE = {
    "a folder": (lambda path: path.mkdir(), "cannot be opened: it is a folder: name a file in it"),
    "a text": (lambda path: path.write_text("a long text " * 500), "is damaged or no results store"),
    "another program's database": (lambda path: tables(path, "CREATE TABLE people (name)"), "it holds people"),
    "one of another version": (
        lambda path: tables(path, "CREATE TABLE results (model, variant, summary)"),
        "its columns are model, summary, variant",
    ),
}


@pytest.mark.parametrize("what", NO_STORE)
def test_what_is_no_store_is_left_as_it_is(tmp_path, what):
    path = tmp_path / "results.sqlite"
    make, words = NO_STORE[what]
    make(path)
    before = path.read_bytes() if path.is_file() else sorted(path.iterdir())
    assert words in refusal(lambda: Store(path))
    assert before == (path.read_bytes() if path.is_file() else sorted(path.iterdir()))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        pytest.param("", "'' is no results store: give the path of a file", id="an empty name"),
        pytest.param(5, "5 is no results store", id="a number"),
        pytest.param(b"x", "b'x' is no results store", id="bytes"),
        pytest.param("/proc/none.sqlite", "name a file in a folder that can be written", id="where no file can be"),
        pytest.param("n" * 300, "cannot be opened: File name too long", id="a name that is too long"),
        pytest.param(os.devnull, "name a file in a folder that can be written", id="a device"),
    ],
)
def test_names_of_no_file(tmp_path, monkeypatch, named, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(lambda: Store(named))
    assert not list(tmp_path.iterdir())


def test_an_empty_file_is_a_new_store_and_a_name_may_be_a_text(tmp_path, monkeypatch):
    (tmp_path / "empty").write_bytes(b"")
    with Store(str(tmp_path / "empty")) as made:
        assert made.get(KEY) is None and made.kept
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store("~/here.sqlite") as made:
        assert made.path == tmp_path / "here.sqlite" and made.path.is_file()


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("summary = '{'", id="a summary that breaks off"),
        pytest.param("summary = ''", id="an empty summary"),
        pytest.param("summary = '[]'", id="a summary that is a list"),
        pytest.param("summary = 'null'", id="a summary of nothing"),
        pytest.param("summary = x'ff'", id="a summary that is no text"),
        pytest.param("arrays = substr(arrays, 1, 100)", id="arrays cut short"),
        pytest.param("arrays = substr(arrays, 1, length(arrays) - 30)", id="arrays without their end"),
        pytest.param("arrays = x'00'", id="arrays of one byte"),
        pytest.param("arrays = 'text'", id="arrays that are a text"),
        pytest.param("arrays = 3", id="arrays that are a number"),
    ],
)
def test_a_damaged_row_is_said_and_measured_again(path, change, remarks, tmp_path):
    tables(path, f"UPDATE results SET {change} WHERE variant = '0,1'")
    with Store(path) as damaged:
        assert damaged.get(KEY) is None
        assert "what is stored as perplexity of variant 0,1 is damaged: it is measured again" in remarks()
        assert damaged.get(OTHER).summary == RESULT.summary and not remarks(), "the others are as they were"
        if "summary" in change:
            assert damaged.export_csv(tmp_path / "all.csv") == 1
            assert "perplexity of variant 0,1 is damaged: it is left out" in remarks()
        again = damaged.cached(KEY, "name", lambda: RESULT)
        assert again is RESULT and damaged.present({"a": KEY})["a"].arrays["nll"].tolist() == [0, 1, 2]


def test_damage_within_arrays_is_noticed(path):
    with sqlite3.connect(path) as db:
        (content,) = db.execute("SELECT arrays FROM results WHERE variant = '0,1'").fetchone()
        middle = len(content) // 3
        changed = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        db.execute("UPDATE results SET arrays = ? WHERE variant = '0,1'", (changed,))
    with Store(path) as damaged:
        found = damaged.get(KEY)
        assert found is None or found.arrays["nll"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("outputs", ["{", "[1]", '{"a": 1}', ""])
def test_a_damaged_part_is_said_and_measured_again(path, outputs, remarks):
    with Store(path) as one:
        one.put_partial({KEY: {0: [[-1.0, True]], 1: [[-2.0, True]]}})
        one.put_partial({KEY: {2: [[-3.0, True]]}})
    tables(path, f"UPDATE partial SET outputs = '{outputs}' WHERE first = 0")
    with Store(path) as damaged:
        assert damaged.partial(KEY) == {2: [[-3.0, True]]}
        assert "a part of perplexity of variant 0,1 is damaged: it is measured again" in remarks()


@pytest.mark.parametrize("left", [100, 5000, 9000])
def test_a_store_that_was_cut_short_is_one_line(path, left):
    content = path.read_bytes()
    path.write_bytes(content[:left])

    def read():
        with Store(path) as damaged:
            damaged.put(KEY, "name", RESULT)

    line = refusal(read)
    assert "is damaged or no results store" in line and "move it away" in line and ".recover" in line
    assert path.stat().st_size == left


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(Result({"a": Path("x")}), id="a path"),
        pytest.param(Result({}, {"a": np.array([{}])}), id="an array of tables"),
    ],
)
def test_what_could_not_be_read_again_is_not_stored(path, result):
    with Store(path) as one:
        assert "cannot be stored" in refusal(lambda: one.put(KEY, "model", result))
        assert one.get(KEY) is not None, "what was stored before is lost"


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        pytest.param("sweeps", SWEEPS_BEFORE, id="an estimate that must be given"),
        pytest.param("sweeps", "a INTEGER", id="sweeps"),
        pytest.param("claims", "work TEXT PRIMARY KEY, owner TEXT", id="claims"),
        pytest.param("partial", "model TEXT, outputs TEXT", id="parts"),
        pytest.param("work", "notebook TEXT", id="work"),
        pytest.param("producers", "id INTEGER PRIMARY KEY, model TEXT", id="producers"),
        pytest.param("outputs", "sequence BLOB, producer INTEGER", id="outputs"),
    ],
)
def test_notes_of_an_earlier_version_are_put_aside_and_its_results_are_read(path, table, columns):
    with Store(path) as one:
        one.put_outputs({store.Producer("model", "another"): {b"s": [(-2.0, True)]}})
    tables(path, f"DROP TABLE {table}; CREATE TABLE {table} ({columns})")
    with Store(path) as one:
        assert one.get(KEY) is not None and one.claim("w")
        one.put_partial({KEY: {0: [1.0]}})
        producer = store.Producer("model", "0,1")
        one.put_outputs({producer: {b"s": [(-1.0, True)]}})
        assert one.outputs([producer], [b"s"]) == {producer: {b"s": [(-1.0, True)]}}
        one.log_work("", "m", "pass", 1)
        one.log_sweep(
            notebook="", model_name="m", variants=1, block_tokens_naive=1, block_tokens_shared=1, head_tokens=1,
            seconds_estimated=None, seconds=1.0,
        )  # fmt: skip
        assert len(one.sweeps()) == len(one.work()) == 1
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
    assert sum(name.startswith(f"{table}_before_") for name in names) == 1
    with Store(path):
        pass  # and only once


def _refused(one, connection):
    connection.send([refusal(lambda: one.get(KEY)), refusal(lambda: one.put(KEY, "m", Result({})))])


def test_a_store_is_used_by_the_process_and_the_thread_that_opened_it(path):
    here, there = multiprocessing.Pipe()
    with Store(path) as one, ThreadPoolExecutor(1) as thread:
        line = thread.submit(refusal, lambda: one.get(KEY)).result()
        assert "it was opened in another thread: open a study of its own in each thread" in line
        fork = multiprocessing.get_context("fork").Process(target=_refused, args=(one, there))
        fork.start()
        assert here.poll(20)
        assert all("was opened in another process, of which this one is a fork" in line for line in here.recv())
        fork.join()
        assert one.get(KEY) is not None


def test_numbers_of_numpy_are_stored_as_numbers(path):
    with Store(path) as one:
        one.put(KEY, "name", Result({"a": np.float32(0.5), "n": np.int64(3)}))
        one.put_partial({OTHER: {0: [[np.float64(-1.0), True]]}})
        assert one.get(KEY).summary == {"a": 0.5, "n": 3} and one.partial(OTHER) == {0: [[-1.0, True]]}


# ------------------------------------------------------------------------------------------------ read-only, gone


def forbidden(monkeypatch):
    """No leave to write, for root too."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **k: mode != os.W_OK and access(path, mode, **k))


def test_a_store_without_leave_to_write_is_read_and_says_what_is_not_kept(path, monkeypatch, remarks):
    forbidden(monkeypatch)
    before = path.read_bytes()
    with Store(path) as one:
        assert one.cached(KEY, "name", lambda: pytest.fail("it is there")).summary == RESULT.summary
        assert not one.kept and not remarks(), "nothing to say while all is there"
        third, said = replace(KEY, variant="1"), []
        one.cached(third, "name", lambda: said.append(remarks()) or RESULT)
        assert "cannot be written: what it lacks is measured, and gone when this process ends" in said[0]
        assert one.get(third).summary == RESULT.summary, "as long as this process lasts"
        one.cached(replace(KEY, variant="2"), "name", lambda: RESULT)
        assert one.claim("a") and not remarks(), "said once"
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_a_killed_process_left_beside_the_file_is_read_too(path, monkeypatch):
    writer = sqlite3.connect(path, isolation_level=None)  # not closed: its rows lie in the log beside the file
    writer.execute("UPDATE results SET summary = '{\"perplexity\": 5}'")
    assert path.with_name("results.sqlite-wal").stat().st_size
    forbidden(monkeypatch)
    with Store(path) as one:
        assert one.get(KEY).summary == {"perplexity": 5}
    writer.close()


def test_a_disk_that_is_full_when_a_store_opens_is_read_and_nothing_is_begun(path, monkeypatch):
    def full(self):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "_opened", full)
    with Store(path) as one:
        assert one.get(KEY).summary == RESULT.summary
        line = refusal(lambda: one.cached(replace(KEY, variant="1"), "name", lambda: pytest.fail("hours of work")))
        assert line.startswith("the disk is full: free some space and run again")


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: [file.unlink() for file in list(path.parent.iterdir())], id="deleted with its log"),
        pytest.param(lambda path: path.rename(path.with_name("elsewhere.sqlite")), id="moved"),
        pytest.param(lambda path: os.replace(_other(path), path), id="replaced"),  # noqa: PTH105
    ],
)
def test_a_store_that_goes_away_meanwhile_is_saved_beside_and_said(path, act):
    with Store(path) as one:
        one.put(replace(KEY, variant="1"), "name", RESULT)
        act(path)
        for _ in range(2):
            line = refusal(lambda: one.put(replace(KEY, variant="2"), "name", RESULT))
            rescued = f"results.rescued-{os.getpid()}.sqlite"
            assert "was deleted or replaced while it was in use" in line and rescued in line
        with Store(path.with_name(rescued)) as saved:
            assert [saved.get(replace(KEY, variant=v)) is not None for v in ("0", "0,1", "1", "2")] == [1, 1, 1, 0]


def _other(path):
    other = path.parent / "other.sqlite"
    Store(other).close()
    return other


# ------------------------------------------------------------------------------------------------ waiting


def hold(path, connection, seconds):
    """Locks a store for a while, in a process of its own."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    connection.send("locked")
    time.sleep(seconds)
    db.execute("ROLLBACK")


@pytest.fixture
def locked(path):
    started = []

    def lock(seconds):
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        started.append(context.Process(target=hold, args=(path, theirs, seconds)))
        started[0].start()
        assert ours.recv() == "locked"
        return started[0].pid

    yield lock
    for process in started:
        process.kill()
        process.join()


def test_a_locked_store_says_who_locks_it_and_is_waited_for(path, locked, remarks, monkeypatch):
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.1)
    pid = locked(1.0)
    with Store(path) as one:
        one.put(KEY, "name", RESULT)
    said = remarks()
    assert said.count("waiting for") == 1 and f"process {pid} (" in said and "up to 60 s" in said


def test_a_store_that_stays_locked_is_one_line(path, locked, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.2)
    pid = locked(60)
    with Store(path) as one:
        assert one.get(KEY).summary == RESULT.summary, "what is there can be read"
        line = refusal(lambda: one.put(KEY, "name", RESULT))
    assert f"has been locked for 0.2 s by process {pid}" in line and "what is stored is kept" in line


def claimed(one, owner, renewed):
    one._db.execute("INSERT OR REPLACE INTO claims VALUES ('work', ?, ?)", (owner, renewed))
    return one.claim("work")


HERE = platform.node()
AHEAD = 10**10  # an hour, or centuries


@pytest.mark.parametrize(
    ("owner", "whom"),
    [
        pytest.param("elsewhere 4711", "process 4711 on elsewhere", id="another machine's"),
        pytest.param("elsewhere 5.0 4711", "process 4711 on elsewhere", id="another machine's, with its start"),
        pytest.param(f"{HERE} {os.getppid()}", f"process {os.getppid()} on this machine", id="of an older version"),
        pytest.param("nonsense", "an unknown process ('nonsense')", id="nobody's"),
        pytest.param(f"{HERE} abc", "an unknown process", id="of no number"),
        pytest.param("", "an unknown process ('')", id="of an empty name"),
    ],
)
@pytest.mark.parametrize("renewed", [0.0, AHEAD], ids=["clock behind", "clock ahead"])
def test_a_claim_holds_until_it_was_silent_for_long_whatever_its_clock_says(path, monkeypatch, owner, whom, renewed):
    with Store(path) as one:
        assert not claimed(one, owner, renewed)
        assert one.claimant("work").startswith(whom) and "after 60 s of silence" in one.claimant("work")
        monkeypatch.setattr(store, "CLAIM_SECONDS", 0.05)
        time.sleep(0.06)
        assert not claimed(one, owner, renewed + 1), "it was renewed meanwhile"
        time.sleep(0.06)
        assert one.claim("work") and one.claim("work")


@pytest.mark.parametrize(
    "owner",
    [
        pytest.param(f"{HERE} {2**22 + 1}", id="of a number that no process has"),
        pytest.param(f"{HERE} 5.0 {os.getppid()}", id="of a number that was given again"),
        pytest.param(f"{HERE} 5.0 -1", id="of a negative number"),
        pytest.param(f"{HERE} 5.0 {10**30}", id="of a number that is too large"),
    ],
)
def test_the_claim_of_a_process_that_has_ended_is_void_at_once(path, owner):
    with Store(path) as one:
        assert claimed(one, owner, AHEAD)


def test_the_claim_of_a_killed_process_is_void_before_its_parent_collects_it(path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: (theirs.send(processes.this()), time.sleep(60)))
    process.start()
    owner = ours.recv()
    with Store(path) as one:
        assert not claimed(one, owner, 0.0)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still in the list
        assert one.claim("work")
    process.join()


def test_a_process_is_named_by_its_start_too():
    assert processes.this() == processes.this() and processes.may_live(processes.this())
    machine, start, pid = processes.this().split(" ")
    assert (machine, pid) == (HERE, str(os.getpid())) and abs(float(start) - time.time()) < 10**6
    assert not processes.may_live(f"{machine} {float(start) - 60:.2f} {pid}")


def test_a_wait_is_silent_at_first_and_then_says_once_for_whom(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="layer_redundancy")
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    wait = waiting.Wait()
    for now[0] in (0.0, 4.9, 5.0, 5.5, 300.0, 604.0, 605.0):
        wait.say(lambda: f"waiting for somebody since {wait.seconds:.0f} s")
    assert [record.getMessage()[-4:] for record in caplog.records] == [" 5 s", "05 s"]
