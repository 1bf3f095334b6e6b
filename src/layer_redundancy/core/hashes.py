"""Hashes of files; those of large files are remembered, since reading gigabytes anew at each start takes seconds."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError

LARGE = 2**26  # bytes; a smaller file is hashed in less time than anybody notices
SETTLED_NS = 2 * 10**9  # a file that changed later than so long ago may change again without another time


def remembered_sha256(file: Path) -> str:
    """sha256 (hex) of a file; that of a large one comes from the cache as long as nothing of the file has changed.

    What is remembered holds for one path, size, inode and time of last change, and is told from a damaged one by a
    hash of its own.

    Raises:
        StudyError: the file cannot be read.
    """
    try:
        return _remembered_sha256(file.resolve())
    except OSError as error:
        raise StudyError(f"{file} cannot be read: {error.strerror or error}") from error


def _remembered_sha256(file: Path) -> str:
    state = _state(file)
    if state[0] < LARGE:
        return cache.sha256(file)
    note = paths.CACHE / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:24]}.json"
    if (known := _known(note, state)) is not None:
        return known
    started = time.time_ns()
    digest = cache.sha256(file)
    # As git does: within the grain of the clock, a file changes without a trace.
    if _state(file) == state and max(state[2:]) < started - SETTLED_NS:
        with suppress(StudyError):  # a cache that cannot be written to costs time alone
            cache.write_whole({note: json.dumps([digest, _seal(digest, state)]).encode()})
    return digest


def _state(file: Path) -> list[int]:
    """Size, inode, and times (ns) of the last change of the content and of anything else."""
    stat = file.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _seal(digest: str, state: list[int]) -> str:
    return hashlib.sha256(json.dumps([digest, state]).encode()).hexdigest()


def _known(note: Path, state: list[int]) -> str | None:
    """The hash in a note; None where there is none, it is damaged, or it is of another state of the file."""
    try:
        digest, seal = json.loads(note.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return digest if isinstance(digest, str) and seal == _seal(digest, state) else None
