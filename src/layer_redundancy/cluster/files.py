"""Checkpoints between the driver's cache and a worker's, where they do not lie on one disk.

A folder goes in chunks by way of the scheduler, once a worker (once a machine, where workers share its cache), and is
whole under its name or not there. A worker takes chunks while it is at work on something else.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client

from layer_redundancy.core import cache, flags, paths
from layer_redundancy.core.errors import StudyError

CHUNK = 2**24  # bytes

FORSAKEN = 30.0  # seconds without a chunk after which whoever sends a folder is taken for dead
PAUSE = 0.2  # seconds between two looks at whether somebody else's folder is whole


@dataclass
class _Receiving:
    """A folder that is received.

    Attributes:
        scratch: removes what there is of it.
        path: where it is until it is whole.
        last: when a chunk came last, by this process's clock.
    """

    scratch: ExitStack
    path: Path
    last: float


_receiving: dict[str, _Receiving] = {}


# ------------------------------------------------------------------------------------------------ on the one side


def files_of(folder: str) -> list[tuple[str, int]]:
    """Names and sizes of a folder's files."""
    root = Path(folder)
    return [(f.relative_to(root).as_posix(), f.stat().st_size) for f in sorted(root.rglob("*")) if f.is_file()]


def read(folder: str, name: str, start: int) -> bytes:
    """A chunk of a file."""
    with (Path(folder) / name).open("rb") as file:
        file.seek(start)
        return file.read(CHUNK)


def folder_in_cache(name: str) -> str:
    """Where a folder of the cache is; "" if it is not there."""
    folder = paths.CACHE / name
    return str(folder) if folder.is_dir() else ""


# ------------------------------------------------------------------------------------------------ on the other


def begin(name: str) -> str:
    """Makes room for a folder: "begun"; or says that it is "there" already, or that somebody "else" is sending it."""
    if (paths.CACHE / name).is_dir():
        return "there"
    if (known := _receiving.get(name)) is not None:
        if time.monotonic() - known.last < FORSAKEN:
            return "else"
        end(name, whole=False)
    scratch = ExitStack()
    path = scratch.enter_context(cache.scratch_folder("received")) / name
    _receiving[name] = _Receiving(scratch, path, time.monotonic())
    return "begun"


def write(name: str, file: str, chunk: bytes) -> None:
    """Appends a chunk to a file of a folder that is received."""
    known = _receiving[name]
    path = known.path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(chunk)
    known.last = time.monotonic()


@flags.checked
def end(name: str, whole: bool) -> None:
    """The folder is whole and gets its name, or is given up."""
    known = _receiving.pop(name)
    with known.scratch:
        if whole:
            cache.checked(known.path)
            try:
                known.path.rename(paths.CACHE / name)
            except OSError:
                if not (paths.CACHE / name).is_dir():  # it is, where another worker of this machine was faster
                    raise


# ------------------------------------------------------------------------------------------------ the driver


def send(client: Client, worker: str, folder: str, name: str) -> int:
    """Sends a folder to a worker's cache, or waits until somebody else has; returns the bytes sent.

    Raises:
        StudyError: the folder is not there.
    """
    if not Path(folder).is_dir():
        raise StudyError(f"worker {worker} has no copy of {folder}, and there is none here to send")
    there = partial(_there, client, worker)
    return _copied(
        name, partial(there, begin), partial(there, write), partial(there, end), files_of(folder), partial(read, folder)
    )


def fetch(client: Client, worker: str, name: str) -> int:
    """Fetches a folder from a worker's cache into this one's, or waits until somebody else has; returns the bytes.

    Raises:
        StudyError: the worker has none.
    """
    there = partial(_there, client, worker)
    if (paths.CACHE / name).is_dir():
        return 0
    if not (folder := there(folder_in_cache, name)):
        raise StudyError(f"worker {worker} has lost {name}, which it has made")
    return _copied(name, begin, write, end, there(files_of, folder), partial(there, read, folder))


def _there(client: Client, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns on a worker, whatever that is at."""
    return client.run(function, *arguments, workers=[worker])[worker]


def _copied(
    name: str,
    begin: Callable[[str], str],
    write: Callable[[str, str, bytes], None],
    end: Callable[[str, bool], None],
    files: Sequence[tuple[str, int]],
    read: Callable[[str, int], bytes],
) -> int:
    """Copies files from the one side to the other, whichever is where; returns the bytes."""
    while (state := begin(name)) == "else":
        time.sleep(PAUSE)
    if state == "there":
        return 0
    try:
        for file, size in files:
            for start in range(0, max(size, 1), CHUNK):
                write(name, file, read(file, start))
    except BaseException:
        end(name, False)
        raise
    end(name, True)
    return sum(size for _, size in files)
