"""The results store: one row a (model, variant, measurement, data, settings, version); what is there is reused."""

import csv
import io
import json
import os
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from layer_redundancy.core.cache import write_whole
from layer_redundancy.core.errors import StudyError

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    model TEXT NOT NULL, variant TEXT NOT NULL, measurement TEXT NOT NULL, data TEXT NOT NULL,
    settings TEXT NOT NULL, version INTEGER NOT NULL,
    model_name TEXT NOT NULL, summary TEXT NOT NULL, arrays BLOB, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (model, variant, measurement, data, settings, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partial (
    model TEXT NOT NULL, variant TEXT NOT NULL, measurement TEXT NOT NULL, data TEXT NOT NULL,
    settings TEXT NOT NULL, version INTEGER NOT NULL,
    first INTEGER NOT NULL, outputs TEXT NOT NULL,
    PRIMARY KEY (model, variant, measurement, data, settings, version, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sweeps (
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, notebook TEXT NOT NULL, model_name TEXT NOT NULL,
    variants INTEGER NOT NULL, block_tokens_naive INTEGER NOT NULL, block_tokens_shared INTEGER NOT NULL,
    head_tokens INTEGER NOT NULL, seconds_estimated REAL, seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS work (
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, notebook TEXT NOT NULL, model_name TEXT NOT NULL,
    kind TEXT NOT NULL, block_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (work TEXT PRIMARY KEY, owner TEXT NOT NULL, renewed REAL NOT NULL) WITHOUT ROWID;
"""
CLAIM_SECONDS = 60  # a claim that is not renewed for so long is void
PATIENCE = 60  # seconds a process waits for another to finish writing
KEY = ("model", "variant", "measurement", "data", "settings", "version")
_WHERE = " AND ".join(f"{k} = ?" for k in KEY)
_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Key:
    """What a number depends on. Two results are the same measurement exactly if their keys are equal.

    Attributes:
        model: fingerprint of weights and dtype.
        variant: what is kept of the model, e.g. "0,1,2" or "dense".
        measurement: e.g. "perplexity" or "task/mmlu_dev".
        data: fingerprint of the tokens measured on.
        settings: whatever else changes the number, as sorted JSON.
        version: raised when the measurement's meaning changes.
    """

    model: str
    variant: str
    measurement: str
    data: str
    settings: str = "{}"
    version: int = 1

    def values(self) -> tuple:
        """The fields' values, in the order of the table's key columns."""
        return tuple(getattr(self, k) for k in KEY)


@dataclass(frozen=True, eq=False)
class Result:
    """A stored measurement: numbers for people (summary) and arrays behind them."""

    summary: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Store:
    """An SQLite file. Every write is one transaction: a process killed at any moment leaves it readable.

    Several processes may use one store at once; a writer waits for another for up to a minute.

    Args:
        path: the file, made with its folder when it is not there.

    Raises:
        StudyError: the file is not a store, or cannot be opened or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._seen = None
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            # SQLite does not wait where it changes the journal's mode, or where another process closes the file or
            # repairs it after a crash at this very moment: it says at once that the file is locked.
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    self._db.execute("PRAGMA journal_mode=WAL")
                    self._db.executescript(SCHEMA)
                    break
                except sqlite3.OperationalError as e:
                    if "locked" not in str(e) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as e:
            text = str(e)
            if "full" in text:
                raise StudyError(
                    f"the disk is full: free some space and run again; what {self.path.name} holds is kept"
                ) from e
            if "not a database" in text or "malformed" in text or "no such column" in text:
                raise StudyError(
                    f"{self.path} is damaged or no results store ({text}): move it away, a new one is made"
                ) from e
            raise StudyError(f"results store {self.path}: {text}") from e
        except OSError as e:
            raise StudyError(f"results store {self.path} cannot be opened: {e.strerror}") from e

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------------------------------------------ whole results

    def get(self, key: Key) -> Result | None:
        """The stored result, or None."""
        with self._errors():
            row = self._db.execute(f"SELECT summary, arrays FROM results WHERE {_WHERE}", key.values()).fetchone()
        return None if row is None else Result(json.loads(row[0]), _unpack(row[1]))

    def present(self, keys: Mapping[_Name, Key]) -> dict[_Name, Result]:
        """The results that are stored, under the names of their keys, in the order of these."""
        return {name: result for name, key in keys.items() if (result := self.get(key)) is not None}

    def put(self, key: Key, model_name: str, result: Result) -> None:
        """Stores a result and drops what `put_partial` kept of it, in one transaction."""
        row = (*key.values(), model_name, json.dumps(result.summary), _pack(result.arrays))
        with self._transaction() as db:
            db.execute(
                f"INSERT OR REPLACE INTO results ({', '.join(KEY)}, model_name, summary, arrays) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            db.execute(f"DELETE FROM partial WHERE {_WHERE}", key.values())

    def cached(self, key: Key, model_name: str, compute: Callable[[], Result]) -> Result:
        """The stored result, or what `compute` returns, which is then stored.

        Args:
            key: what the result depends on.
            model_name: the model's name for people, in the table's column of that name.
            compute: called only when the store has no such result; what it raises goes on and nothing is stored.
        """
        result = self.get(key)
        if result is None:
            result = compute()
            self.put(key, model_name, result)
        return result

    # ------------------------------------------------------------------------------------------------ unfinished ones

    def put_partial(self, outputs: Mapping[Key, Mapping[int, Any]]) -> None:
        """Keeps a batch's outputs: for each key, those of some sequences, by their place in the measurement."""
        rows = [(*key.values(), min(values), json.dumps(values)) for key, values in outputs.items() if values]
        with self._transaction() as db:
            db.executemany(f"INSERT OR REPLACE INTO partial VALUES ({', '.join('?' * 8)})", rows)

    def partial(self, key: Key) -> dict[int, Any]:
        """Outputs kept so far, by sequence."""
        with self._errors():
            rows = self._db.execute(f"SELECT outputs FROM partial WHERE {_WHERE}", key.values()).fetchall()
        return {int(sequence): output for (text,) in rows for sequence, output in json.loads(text).items()}

    # ------------------------------------------------------------------------------------------------ who does what

    def claim(self, work: str) -> bool:
        """Claims a computation for this process, or renews its claim; False if another live process holds it.

        A claim ends with `release`, with its process, or when it has not been renewed for a minute.
        """
        with self._transaction() as db:
            row = db.execute("SELECT owner, renewed FROM claims WHERE work = ?", (work,)).fetchone()
            if row is not None and row[0] != _owner() and _alive(*row):
                return False
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (work, _owner(), time.time()))
            return True

    def release(self, work: str) -> None:
        """Takes back this process's claim."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE work = ? AND owner = ?", (work, _owner()))

    def changed(self) -> bool:
        """Whether anyone else has written since the last call."""
        with self._errors():
            seen, self._seen = self._seen, self._db.execute("PRAGMA data_version").fetchone()[0]
        return seen != self._seen

    # ------------------------------------------------------------------------------------------------ how long it took

    def log_sweep(self, **values: Any) -> None:
        """Writes down what a sweep ran and how long it took, to set against what was planned; columns of `sweeps`."""
        with self._transaction() as db:
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO sweeps ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def sweeps(self) -> list[dict[str, Any]]:
        """What `log_sweep` wrote, oldest first."""
        return self._rows("sweeps")

    def log_work(self, notebook: str, model_name: str, kind: str, block_tokens: int) -> None:
        """Writes down a piece of work other than a sweep that was done, to set against what was planned."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO work (notebook, model_name, kind, block_tokens) VALUES (?, ?, ?, ?)",
                (notebook, model_name, kind, block_tokens),
            )

    def work(self) -> list[dict[str, Any]]:
        """What `log_work` wrote, oldest first."""
        return self._rows("work")

    def _rows(self, table: str) -> list[dict[str, Any]]:
        with self._errors():
            found = self._db.execute(f"SELECT * FROM {table} ORDER BY rowid")
            columns = [column[0] for column in found.description]
            return [dict(zip(columns, row, strict=True)) for row in found]

    # ------------------------------------------------------------------------------------------------ for people

    def export_csv(self, path: Path, model: str | None = None) -> int:
        """Writes every result's key and summary as CSV, one row a result; returns the number of rows.

        Args:
            path: the CSV; written to a temporary name and renamed.
            model: a fingerprint, to export one model's results only.
        """
        with self._errors():
            rows = self._db.execute(
                f"SELECT model_name, {', '.join(KEY)}, summary FROM results "
                "WHERE ?1 IS NULL OR model = ?1 ORDER BY model_name, measurement, variant, data, settings",
                (model,),
            ).fetchall()
        records = [dict(zip(("model_name", *KEY), r[:-1], strict=True)) | json.loads(r[-1]) for r in rows]
        columns = list(dict.fromkeys(name for record in records for name in record))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns or ["model_name", *KEY], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        write_whole({Path(path): text.getvalue().encode()})
        return len(records)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as the store's key holds them: sorted JSON."""
    return json.dumps(dict(settings), sort_keys=True)


def _owner() -> str:
    return f"{platform.node()} {os.getpid()}"


def _alive(owner: str, renewed: float) -> bool:
    """Whether the process that made a claim may still be at work."""
    node, _, pid = owner.rpartition(" ")
    return time.time() - renewed < CLAIM_SECONDS and (node != platform.node() or psutil.pid_exists(int(pid)))


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes | None:
    if not arrays:
        return None
    buffer, named = io.BytesIO(), dict[str, Any](arrays)  # any, since an array could bear the name of an option
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def _unpack(data: bytes | None) -> dict[str, np.ndarray]:
    if data is None:
        return {}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
