"""Checkpoints between the driver's cache and a worker's, where they do not lie on one disk.

A folder goes in chunks by way of the scheduler, once a worker (once a machine, where workers share its cache), and is
whole under its name or not there. A worker takes chunks while it is at work on something else.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distributed import Client

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError

CHUNK = 2**24  # bytes

_receiving: dict[str, tuple[ExitStack, Path]] = {}


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


def begin(name: str) -> bool:
    """Makes room for a folder; False if it is there already, or is being received."""
    if (paths.CACHE / name).is_dir() or name in _receiving:
        return False
    stack = ExitStack()
    _receiving[name] = stack, stack.enter_context(cache.scratch_folder("received")) / name
    return True


def write(name: str, file: str, chunk: bytes) -> None:
    """Appends a chunk to a file of a folder that is received."""
    path = _receiving[name][1] / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(chunk)


def end(name: str, whole: bool) -> None:
    """The folder is whole and gets its name, or is given up."""
    stack, scratch = _receiving.pop(name)
    with stack:
        if whole:
            cache.checked(scratch)
            try:
                scratch.rename(paths.CACHE / name)
            except OSError:
                if not (paths.CACHE / name).is_dir():  # it is, where another worker of this machine was faster
                    raise


# ------------------------------------------------------------------------------------------------ the driver


def send(client: Client, worker: str, folder: str, name: str) -> int:
    """Sends a folder to a worker's cache; returns the bytes sent.

    Raises:
        StudyError: the folder is not there.
    """
    if not Path(folder).is_dir():
        raise StudyError(f"worker {worker} has no copy of {folder}, and there is none here to send")

    def there(function: Any, *arguments: Any) -> Any:
        return client.run(function, *arguments, workers=[worker])[worker]

    if not there(begin, name):
        return 0
    sent = 0
    try:
        for file, size in files_of(folder):
            for start in range(0, max(size, 1), CHUNK):
                there(write, name, file, read(folder, file, start))
            sent += size
    except BaseException:
        there(end, name, False)
        raise
    there(end, name, True)
    return sent


def fetch(client: Client, worker: str, name: str) -> int:
    """Fetches a folder from a worker's cache into this one's; returns the bytes fetched."""

    def there(function: Any, *arguments: Any) -> Any:
        return client.run(function, *arguments, workers=[worker])[worker]

    if (paths.CACHE / name).is_dir() or not (folder := there(folder_in_cache, name)) or not begin(name):
        return 0
    fetched = 0
    try:
        for file, size in there(files_of, folder):
            for start in range(0, max(size, 1), CHUNK):
                write(name, file, there(read, folder, file, start))
            fetched += size
    except BaseException:
        end(name, False)
        raise
    end(name, True)
    return fetched
