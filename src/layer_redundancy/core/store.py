"""The results store: what is there is reused.

One row a result (model, variant, measurement, data, settings, version), and one a sequence of tokens that a variant of
a model was run on: results are made of outputs of sequences, which several measurements may share.
"""

import csv
import errno
import io
import json
import logging
import os
import shutil
import sqlite3
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from layer_redundancy.core import flags, processes, waiting
from layer_redundancy.core.arguments import plain, shown
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
CREATE TABLE IF NOT EXISTS producers (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, variant TEXT NOT NULL, compiled INTEGER NOT NULL,
    version INTEGER NOT NULL, UNIQUE (model, variant, compiled, version)
);
CREATE TABLE IF NOT EXISTS outputs (
    sequence BLOB NOT NULL, producer INTEGER NOT NULL, outputs BLOB NOT NULL, PRIMARY KEY (sequence, producer)
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
IN_MEMORY = ":memory:"  # the path of a store that is no file
DAMAGE = (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error, struct.error)  # of what a row holds
KEY = ("model", "variant", "measurement", "data", "settings", "version")
COLUMNS = ("model_name", "summary", "arrays", "created")
# Tables beside the results, of what is under way and what was; those that refer to each other stand together.
NOTES = (("partial",), ("producers", "outputs"), ("sweeps",), ("work",), ("claims",))
AT_ONCE = 500  # values in a query
OF_TARGET = struct.Struct("<d?")  # how an output of a sequence is stored: 9 bytes a target
Outputs = list[tuple[float, bool]]  # of each target of a sequence: its log-probability, and whether it is greedy
_WHERE = " AND ".join(f"{k} = ?" for k in KEY)
_PRODUCER = "model, variant, compiled, version"
_IS_PRODUCER = "model = ? AND variant = ? AND compiled = ? AND version = ?"
_Name = TypeVar("_Name")
_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Producer:
    """What made the outputs of a sequence, all that they depend on beside its tokens.

    Attributes:
        model: fingerprint of weights and dtype.
        variant: what is kept of the model, as in `Key`.
        compiled: whether by compiled blocks.
        version: raised when outputs of the same tokens are others.
    """

    model: str
    variant: str
    compiled: bool = False
    version: int = 1

    def values(self) -> tuple:
        """The fields' values, in the order of the table's columns."""
        return self.model, self.variant, int(self.compiled), self.version


@dataclass(frozen=True, eq=False)
class Result:
    """A stored measurement: numbers for people (summary) and arrays behind them."""

    summary: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What `Store.contents` has of a store, as plain values that another process can be sent.

    Attributes:
        results: rows of results, packed.
        sweeps: what `log_sweep` wrote.
        work: what `log_work` wrote.
        outputs: of sequences, each with what made it.
    """

    results: list[tuple] = field(default_factory=list)
    sweeps: list[dict[str, Any]] = field(default_factory=list)
    work: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[tuple] = field(default_factory=list)


class Store:
    """An SQLite file. Every write is one transaction: a process killed at any moment leaves it readable.

    Several processes may use one store at once; one that waits for another for long says for whom, and gives up after
    a minute. A store that cannot be written (read-only, another user's, a full disk) is read into memory: all that is
    in it is there, and what is measured besides lasts as long as this process (and is not begun on a full disk).

    Args:
        path: the file, made with its folder when it is not there.

    Attributes:
        kept: whether what is put into it is still there when this process has ended.

    Raises:
        StudyError: the file is not a store, or cannot be opened; it is locked, deleted or replaced while it is in use,
            or the disk is full.
    """

    def __init__(self, path: Path):
        if not isinstance(path, str | Path) or not str(path):
            raise StudyError(f"{path!r} is no results store: give the path of a file, which is made if need be")
        self.path = path = Path(path) if str(path) == IN_MEMORY else Path(path).expanduser().absolute()
        self.kept, self._seen, self._warned = True, None, False
        self._process = os.getpid()
        self._file: tuple[int, int] | None = None
        self._cause: sqlite3.OperationalError | None = None  # why a file that may be written cannot be
        self._watched: dict[str, tuple[tuple[str, float], float]] = {}
        with self._errors():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file in it")
            is_there = str(path) != IN_MEMORY and path.is_file() and path.stat().st_size > 0
            if is_there and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                self._db = self._in_memory()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._db = self._opened()
                except sqlite3.OperationalError as e:
                    if not is_there or "lock" in str(e):
                        raise
                    self._db, self._cause = self._in_memory(), e
        self._file = None if str(path) == IN_MEMORY or not self.kept else _file(path)

    def _opened(self) -> sqlite3.Connection:
        # SQLite itself waits a little only, so that there is time for a word.
        db = sqlite3.connect(self.path, timeout=0.5, isolation_level=None)

        def prepare() -> None:
            _check_schema(db)
            db.execute("PRAGMA journal_mode=WAL")
            _lay_out(db)

        # SQLite does not wait at all where it changes the journal's mode, or where another process closes the file or
        # repairs it after a crash at this very moment: it says at once that the file is locked.
        self._patiently(prepare, pause=0.02)
        return db

    def _in_memory(self) -> sqlite3.Connection:
        """What the file holds, in memory."""
        self.kept = False
        db = sqlite3.connect(IN_MEMORY, isolation_level=None)
        # A copy of the file and its log, since SQLite opens a store with a log only where it can write beside it.
        with tempfile.TemporaryDirectory() as folder:
            for ending in ("", "-wal"):
                if (source := self.path.with_name(self.path.name + ending)).is_file():
                    shutil.copyfile(source, Path(folder) / f"store{ending}")
            with closing(sqlite3.connect(Path(folder) / "store", isolation_level=None)) as copy:
                copy.backup(db)
        _check_schema(db)
        _lay_out(db)
        return db

    def tell_what_is_not_kept(self) -> None:
        """Says once, before something is measured, that this store cannot be written.

        Raises:
            StudyError: the disk is full, or does not work.
        """
        if self._cause is not None:
            with self._errors():
                raise self._cause
        if not self.kept and not self._warned:
            self._warned = True
            logger.warning(
                f"results store {self.path} cannot be written: what it lacks is measured, and gone when this process "
                "ends; give yourself leave to write it (file and folder), or name another store, to keep it"
            )

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if os.getpid() != self._process:  # SQLite forbids it: a connection that was forked damages the file
            raise StudyError(
                f"results store {self.path} was opened in another process, of which this one is a fork: open a study "
                "of its own in each process"
            )
        try:
            yield
        except sqlite3.DatabaseError as e:
            self._check_file()
            text = str(e)
            if "full" in text:
                raise StudyError(
                    f"the disk is full: free some space and run again; what {self.path.name} holds is kept"
                ) from e
            if "lock" in text:
                raise StudyError(
                    f"results store {self.path} has been locked for {PATIENCE} s by {self._users()}: end it or wait "
                    "for it, and run again; what is stored is kept"
                ) from e
            if "not a database" in text or "malformed" in text:
                raise StudyError(
                    f"{self.path} is damaged or no results store ({text}): move it away, a new one is made (what can "
                    "be read of a damaged one: sqlite3 FILE .recover)"
                ) from e
            if "thread" in text:
                text = "it was opened in another thread: open a study of its own in each thread"
            elif "open" in text or "I/O" in text or "readonly" in text:
                text += "; name a file in a folder that can be written"
            raise StudyError(f"results store {self.path}: {text}") from e
        except OSError as e:
            raise StudyError(f"results store {self.path} cannot be opened: {e.strerror}") from e

    def _patiently(self, act: Callable[[], _Value], pause: float = 0.0) -> _Value:
        """What `act` returns, tried again while another process locks the file; says after a few seconds who does."""
        wait = waiting.Wait()
        while True:
            try:
                return act()
            except sqlite3.OperationalError as e:
                if "lock" not in str(e) or wait.seconds > PATIENCE:
                    raise
            wait.say(lambda: f"results store {self.path}: waiting for {self._users()}, up to {PATIENCE} s")
            time.sleep(pause)

    def _users(self) -> str:
        """The other processes that have the file open."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and any(
                    file.path.startswith(str(self.path)) for file in process.open_files()
                ):
                    found.append(f"process {process.pid} ({process.name()})")
        return " and ".join(found) or "another process"

    def _check_file(self) -> None:
        """Raises StudyError where the open file is not the one of this name any more, having saved what it holds."""
        if self._file is None or _file(self.path) == self._file:
            return
        rescued = self.path.with_name(f"{self.path.stem}.rescued-{os.getpid()}{self.path.suffix}")
        try:
            rescued.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(rescued, isolation_level=None)) as copy:
                self._db.backup(copy)
                copy.execute("SELECT count(*) FROM results")
            found = f"all that it held is in {rescued.name} beside it; put back what you want to go on with"
        except (sqlite3.Error, OSError) as e:
            with suppress(OSError):
                rescued.unlink(missing_ok=True)
            found = f"what it held cannot be saved ({e}); put back what there is of it"
        raise StudyError(
            f"results store {self.path} was deleted or replaced while it was in use: {found}, and run again"
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._check_file()
            self._patiently(lambda: self._db.execute("BEGIN IMMEDIATE"))
            try:
                yield self._db
                self._patiently(lambda: self._db.execute("COMMIT"))
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _fetched(self, query: str, values: tuple = ()) -> list[tuple]:
        with self._errors():
            return self._patiently(lambda: self._db.execute(query, values).fetchall())

    # ------------------------------------------------------------------------------------------------ whole results

    def get(self, key: Key) -> Result | None:
        """The stored result; None where there is none, or where it is damaged, which is said."""
        rows = self._fetched(f"SELECT CAST(summary AS BLOB), arrays FROM results WHERE {_WHERE}", key.values())
        if not rows:
            return None
        try:
            return Result(_summary(rows[0][0]), _unpack(rows[0][1]))
        except DAMAGE:
            self._tell_of_damage(f"{key.measurement} of variant {key.variant}", "it is measured again")
            return None

    def _tell_of_damage(self, what: str, then: str) -> None:
        what = what if len(what) <= 120 else f"{what[:117]}..."
        logger.warning(f"results store {self.path}: what is stored as {what} is damaged: {then}")

    def present(self, keys: Mapping[_Name, Key]) -> dict[_Name, Result]:
        """The results that are stored, under the names of their keys, in the order of these."""
        return {name: result for name, key in keys.items() if (result := self.get(key)) is not None}

    def has_begun(self, key: Key) -> bool:
        """Whether there is a result, or a part of one, that differs from this key in variant and version at most."""
        query = "SELECT 1 FROM {} WHERE model = ? AND measurement = ? AND data = ? AND settings = ? LIMIT 1"
        values = (key.model, key.measurement, key.data, key.settings)
        return any(self._fetched(query.format(table), values) for table in ("results", "partial"))

    def put(self, key: Key, model_name: str, result: Result) -> None:
        """Stores a result and drops what `put_partial` kept of it, in one transaction."""
        row = (*key.values(), model_name, _json(result.summary), _pack(result.arrays))
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
            self.tell_what_is_not_kept()
            result = compute()
            self.put(key, model_name, result)
        return result

    def contents(self) -> "Contents":
        """All results and all that was written down of work, to be taken over by another store."""
        return Contents(
            self._fetched(f"SELECT {', '.join((*KEY, *COLUMNS[:-1]))} FROM results"),
            [{k: v for k, v in row.items() if k != "finished"} for row in self.sweeps()],
            [{k: v for k, v in row.items() if k != "finished"} for row in self.work()],
            self._fetched(f"SELECT {_PRODUCER}, sequence, outputs FROM outputs JOIN producers ON producer = id"),
        )

    def take_over(
        self,
        other: "Contents",
        outputs: Mapping[Producer, Mapping[bytes, bytes]] | None = None,
        released: Iterable[str] = (),
    ) -> None:
        """Stores what another store held, and outputs as `packed` has them, and takes back claims: one transaction."""
        columns, made = (*KEY, *COLUMNS[:-1]), {one: dict(of) for one, of in (outputs or {}).items()}
        for model, variant, compiled, version, sequence, content in other.outputs:
            made.setdefault(Producer(model, variant, bool(compiled), version), {})[sequence] = content
        with self._transaction() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO results ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                other.results,
            )
            for table, rows in (("sweeps", other.sweeps), ("work", other.work)):
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
            self._insert_outputs(db, made)
            self._take_back(db, released)

    # ------------------------------------------------------------------------------------------------ unfinished ones

    def put_partial(self, outputs: Mapping[Key, Mapping[int, Any]]) -> None:
        """Keeps a batch's outputs: for each key, those of some sequences, by their place in the measurement."""
        rows = [(*key.values(), min(values), _json(values)) for key, values in outputs.items() if values]
        with self._transaction() as db:
            db.executemany(f"INSERT OR REPLACE INTO partial VALUES ({', '.join('?' * 8)})", rows)

    def partial(self, key: Key) -> dict[int, Any]:
        """Outputs kept so far, by sequence."""
        found: dict[int, Any] = {}
        for (text,) in self._fetched(f"SELECT CAST(outputs AS BLOB) FROM partial WHERE {_WHERE}", key.values()):
            try:
                found |= {int(sequence): output for sequence, output in _summary(text).items()}
            except DAMAGE:
                self._tell_of_damage(f"a part of {key.measurement} of variant {key.variant}", "it is measured again")
        return found

    # ------------------------------------------------------------------------------------------------ outputs

    def put_outputs(self, outputs: Mapping[Producer, Mapping[bytes, Outputs]]) -> None:
        """Keeps outputs of sequences, by the sequences' digests, in one transaction."""
        with self._transaction() as db:
            self._insert_outputs(db, {producer: packed(of) for producer, of in outputs.items()})

    def _insert_outputs(self, db: sqlite3.Connection, outputs: Mapping[Producer, Mapping[bytes, bytes]]) -> None:
        for producer, of_sequences in outputs.items():
            db.execute(f"INSERT OR IGNORE INTO producers ({_PRODUCER}) VALUES (?, ?, ?, ?)", producer.values())
            ((number,),) = db.execute(f"SELECT id FROM producers WHERE {_IS_PRODUCER}", producer.values())
            db.executemany(
                "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)",
                [(sequence, number, content) for sequence, content in of_sequences.items()],
            )

    def outputs(
        self, producers: Iterable[Producer], sequences: Iterable[bytes]
    ) -> dict[Producer, dict[bytes, Outputs]]:
        """The outputs that are there: producer -> digest of a sequence -> its outputs."""
        found: dict[Producer, dict[bytes, Outputs]] = {producer: {} for producer in producers}
        by_number = {number: producer for producer in found if (number := self._number(producer)) is not None}
        if not by_number:
            return found
        numbers = ", ".join(map(str, by_number))
        for some in _some(dict.fromkeys(sequences)):
            rows = self._fetched(
                f"SELECT producer, sequence, outputs FROM outputs WHERE sequence IN ({', '.join('?' * len(some))}) "
                f"AND producer IN ({numbers})",
                tuple(some),
            )
            for number, sequence, content in rows:
                try:
                    found[by_number[number]][sequence] = _unpacked(content)
                except DAMAGE:
                    variant = by_number[number].variant
                    self._tell_of_damage(f"the output of a sequence by variant {variant}", "it is measured again")
        return found

    def _number(self, producer: Producer) -> int | None:
        rows = self._fetched(f"SELECT id FROM producers WHERE {_IS_PRODUCER}", producer.values())
        return rows[0][0] if rows else None

    @flags.checked
    def has_outputs(self, model: str, compiled: bool, sequences: Iterable[bytes]) -> bool:
        """Whether some variant of a model was run on one of the sequences, by compiled blocks or by others."""
        of_model = "FROM producers WHERE model = ? AND compiled = ?"
        if not self._fetched(f"SELECT 1 {of_model} LIMIT 1", (model, int(compiled))):
            return False
        return any(
            self._fetched(
                f"SELECT 1 FROM outputs WHERE sequence IN ({', '.join('?' * len(some))}) "
                f"AND producer IN (SELECT id {of_model}) LIMIT 1",
                (*some, model, int(compiled)),
            )
            for some in _some(sequences)
        )

    # ------------------------------------------------------------------------------------------------ who does what

    def claim(self, work: str) -> bool:
        """Claims a computation for this process, or renews its claim; False if another live process holds it.

        A claim ends with `release`, with its process, or when this process has seen no renewal of it for a minute:
        clocks of two machines are not compared.
        """
        with self._transaction() as db:
            row = db.execute("SELECT owner, renewed FROM claims WHERE work = ?", (work,)).fetchone()
            if row is not None and row[0] != processes.this() and self._holds(work, row):
                return False
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (work, processes.this(), time.time()))
            self._watched.pop(work, None)
            return True

    def _holds(self, work: str, row: tuple[str, float]) -> bool:
        """Whether the process that made another's claim may still be at work."""
        seen, since = self._watched.get(work, (None, 0.0))
        if seen != row:
            since = time.monotonic()
            self._watched[work] = row, since
        return processes.may_live(row[0]) and time.monotonic() - since < CLAIM_SECONDS

    def claimant(self, work: str) -> str:
        """For whom `claim` has just been refused, and until when, in words that follow "waiting for"."""
        (owner, _), since = self._watched[work]
        return (
            f"{processes.shown(owner)}, which is at it (last heard of {time.monotonic() - since:.0f} s ago); "
            f"what it has not done after {CLAIM_SECONDS} s of silence is done here"
        )

    def release(self, work: str) -> None:
        """Takes back this process's claim."""
        with self._transaction() as db:
            self._take_back(db, [work])

    def _take_back(self, db: sqlite3.Connection, works: Iterable[str]) -> None:
        owner = processes.this()
        db.executemany("DELETE FROM claims WHERE work = ? AND owner = ?", [(work, owner) for work in works])

    def changed(self) -> bool:
        """Whether anyone else has written since the last call."""
        seen, self._seen = self._seen, self._fetched("PRAGMA data_version")[0][0]
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
        rows = self._fetched(
            f"SELECT model_name, {', '.join(KEY)}, CAST(summary AS BLOB) FROM results "
            "WHERE ?1 IS NULL OR model = ?1 ORDER BY model_name, measurement, variant, data, settings",
            (model,),
        )
        records = []
        for row in rows:
            named = dict(zip(("model_name", *KEY), row[:-1], strict=True))
            try:
                records.append(named | _summary(row[-1]))
            except DAMAGE:
                what = f"{named['measurement']} of variant {named['variant']}"
                self._tell_of_damage(what, "it is left out until it was measured again")
        columns = list(dict.fromkeys(name for record in records for name in record))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns or ["model_name", *KEY], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        write_whole({Path(path): text.getvalue().encode()})
        return len(records)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as the store's key holds them: sorted JSON, numpy's numbers as any others.

    Raises:
        StudyError: JSON has no form for one of them.
    """
    return _json(dict(settings), sort_keys=True)


def _json(value: Any, **options: Any) -> str:
    try:
        return json.dumps(value, default=plain, **options)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{shown(value)} cannot be stored: give numbers, texts, and lists of them") from error


def _check_schema(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for a database that is none of ours, before a table is made in it."""
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    if tables and "results" not in tables:
        raise sqlite3.DatabaseError(f"not a database of results: it holds {', '.join(tables)[:80]}")
    columns = {row[1] for row in db.execute("PRAGMA table_info(results)")}
    if tables and columns != {*KEY, *COLUMNS}:
        raise sqlite3.DatabaseError(f"not a database of these results: its columns are {', '.join(sorted(columns))}")


def _columns(db: sqlite3.Connection, table: str) -> set[tuple[str, bool]]:
    """A table's columns, and of each whether it must be given."""
    return {(row[1], bool(row[3])) for row in db.execute(f"PRAGMA table_info({table})")}


def _lay_out(db: sqlite3.Connection) -> None:
    """Makes the tables that are not there; notes of an earlier version, whose columns were others, are put aside."""
    with closing(sqlite3.connect(IN_MEMORY)) as ours:
        ours.executescript(SCHEMA)
        for together in NOTES:
            there = {table: _columns(db, table) for table in together}
            if any(columns != _columns(ours, table) for table, columns in there.items()):
                for table in (table for table, columns in there.items() if columns):
                    db.execute(f"ALTER TABLE {table} RENAME TO {table}_before_{time.time_ns()}")
    db.executescript(SCHEMA)


def _file(path: Path) -> tuple[int, int] | None:
    """Which file is of that name now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _summary(text: bytes) -> dict[str, Any]:
    found = json.loads(text.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} in the place of a table")
    return found


def _some(values: Iterable[_Value]) -> Iterator[list[_Value]]:
    """Values in lists of AT_ONCE at most."""
    values = iter(values)
    while some := list(islice(values, AT_ONCE)):
        yield some


def packed(outputs: Mapping[bytes, Outputs]) -> dict[bytes, bytes]:
    """Outputs by the sequences' digests, as the store holds them."""
    return {
        digest: b"".join(OF_TARGET.pack(*of_target) for of_target in of_sequence)
        for digest, of_sequence in outputs.items()
    }


def _unpacked(content: bytes) -> Outputs:
    if not isinstance(content, bytes) or not content:  # of a table that anything may be written to
        raise ValueError(f"{type(content).__name__} in the place of outputs")
    return list(OF_TARGET.iter_unpack(content))


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes | None:
    if not arrays:
        return None
    if odd := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise StudyError(f"array {odd[0]} cannot be stored: it holds something else than numbers and texts")
    buffer, named = io.BytesIO(), dict[str, Any](arrays)  # any, since an array could bear the name of an option
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def _unpack(data: bytes | None) -> dict[str, np.ndarray]:
    if data is None:
        return {}
    if not isinstance(data, bytes):
        raise ValueError(f"{type(data).__name__} in the place of arrays")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
