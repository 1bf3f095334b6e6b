"""The cache: folders that are made once and looked over when they are opened; files written whole or not at all."""

import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"  # sha256 of a folder's files, as `sha256sum -c` reads them; a file's is in <name>.sha256 beside it
LARGE = 2**26  # bytes; a smaller file is hashed in less time than anybody notices
SETTLED_NS = 2 * 10**9  # a file that changed later than so long ago may change again without another time
DAY = 86400


# ------------------------------------------------------------------------------------------------ hashes


def sha256(file: Path) -> str:
    """sha256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(file: Path) -> str:
    """sha256 (hex) of a file; that of a large one comes from the cache as long as nothing of the file has changed.

    What is remembered holds for one path, size, inode and time of last change, and is told from a damaged one by a
    hash of its own.
    """
    file = file.resolve()
    state = _state(file)
    if state[0] < LARGE:
        return sha256(file)
    note = paths.CACHE / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:24]}.json"
    if (known := _known(note, state)) is not None:
        return known
    started = time.time_ns()
    digest = sha256(file)
    # As git does: within the grain of the clock, a file changes without a trace.
    if _state(file) == state and max(state[2:]) < started - SETTLED_NS:
        with suppress(StudyError):  # a cache that cannot be written to costs time alone
            write_whole({note: json.dumps([digest, _seal(digest, state)]).encode()})
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


# ------------------------------------------------------------------------------------------------ made once


class NotMade(Exception):
    """Something of the cache is not there, and is not to be made here.

    Attributes:
        target: the folder or file.
    """

    def __init__(self, target: Path) -> None:
        super().__init__(f"{target.name} is not there")
        self.target = target


_makes: ContextVar[bool] = ContextVar("makes", default=True)
made_here: list[Path] = []  # what this process has made so far, or found already made, the last one last


@contextmanager
def only_read() -> Iterator[None]:
    """Inside, what is not in the cache is not made: NotMade is raised."""
    token = _makes.set(False)
    try:
        yield
    finally:
        _makes.reset(token)


def made_folder(name: str, settings: Mapping[str, Any]) -> Path:
    """Where `made_once` puts the folder of some settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return paths.CACHE / f"{name}-{digest[:12]}"


def made_once(name: str, settings: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
    """A folder in the cache for each settings, whole or not there at all.

    Args:
        name: beginning of the folder's name.
        settings: everything that decides the folder's content; JSON.
        write: makes the folder at the path it is given; called if it is not there.

    Raises:
        StudyError: as `scratch_folder` and `checked`.
        NotMade: it is not there, inside of `only_read`.
    """
    return made_at(made_folder(name, settings), name, write)


def made_at(target: Path, purpose: str, write: Callable[[Path], object]) -> Path:
    """A folder or file in the cache under a name that says all its content depends on; else as `made_once`.

    Args:
        target: the folder or file.
        purpose: word for the folder in which it is made.
        write: makes it at the path it is given; called if it is not there.
    """
    if target.exists():
        made_here.append(target)
        return checked(target)
    if not _makes.get():
        raise NotMade(target)
    with scratch_folder(purpose) as scratch:
        made = scratch / target.name
        write(made)
        _sign(made)
        try:
            if made.is_file():
                _sums(made).rename(_sums(target))
            made.rename(target)
        except OSError:
            if not target.is_dir():  # it is, where another process was faster
                raise
    made_here.append(target)
    return target


def checked(made: Path) -> Path:
    """A folder or file of the cache whose files are as they were made.

    One that was made before sums were kept is taken as it is, and gets them now.

    Raises:
        StudyError: a file is missing or another one; the line says what to delete.
    """
    try:
        lines = _sums(made).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        with suppress(OSError, StudyError):  # a cache that cannot be written to can be read
            _sign(made)
        return made
    except (OSError, ValueError) as error:
        raise damaged(made, f"{_sums(made).name} cannot be read") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        file = made / name if made.is_dir() else made
        try:
            if known_sha256(file) != digest:
                raise damaged(made, f"{file.name} is not as it was made")
        except FileNotFoundError:
            raise damaged(made, f"{name} is missing") from None
        except (OSError, RuntimeError) as error:  # the latter of a link to itself
            raise damaged(made, f"{name}: {getattr(error, 'strerror', None) or error}") from error
    return made


def has_sums(made: Path) -> bool:
    """Whether it is known of a folder or file of the cache what it held when it was made."""
    return _sums(made).is_file()


def damaged(made: Path, reason: str) -> StudyError:
    """What is said of something in the cache that is not as it was made."""
    return StudyError(f"{made} is damaged ({reason}): delete it, and it is made anew")


@contextmanager
def reading(made: Path, told: Callable[[Path, str], StudyError] = damaged) -> Iterator[None]:
    """Turns what is raised while a file that was made or downloaded is read into the line that says what to delete.

    Args:
        made: the file, or its folder.
        told: gives the line, of the file and the reason.
    """
    try:
        yield
    except (StudyError, RuntimeError, MemoryError):  # the last two where there is no memory for it
        raise
    except Exception as error:  # a damaged file raises almost anything in the library that reads it
        raise told(made, " ".join(str(error).split())[:160] or type(error).__name__) from error


def _sums(made: Path) -> Path:
    return made / SUMS if made.is_dir() else made.with_name(f"{made.name}.sha256")


def _sign(made: Path) -> None:
    files = sorted(file for file in made.rglob("*") if file.is_file()) if made.is_dir() else [made]
    names = [file.relative_to(made).as_posix() if made.is_dir() else file.name for file in files]
    lines = [f"{known_sha256(file)}  {name}\n" for file, name in zip(files, names, strict=True) if name != SUMS]
    write_whole({_sums(made): "".join(lines).encode()})


# ------------------------------------------------------------------------------------------------ scratch folders


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder of our own in the cache (same file system, so that a rename is atomic), removed on exit.

    What killed processes left there is removed.

    Raises:
        StudyError: the cache cannot be written, or the disk is full; whatever failed inside.
    """
    line = f"cannot write to {paths.CACHE} ({{reason}}): it needs 1 GB of free disk"
    with _told(line), _scratch(paths.CACHE, purpose) as folder:
        yield folder


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A folder of our own beside something that is to be written, removed on exit; as `scratch_folder`.

    Raises:
        StudyError: nothing can be written there, or the disk is full.
    """
    with _told(f"cannot write {shown(target)}: {{reason}}"), _scratch(target.parent, "export") as folder:
        yield folder


@contextmanager
def _told(line: str) -> Iterator[None]:
    """Turns what the disk has against a write into one line, with its words in the place of {reason}."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        if (reason := of_the_disk(error)) is None:
            raise
        raise StudyError(line.replace("{reason}", reason)) from error


def of_the_disk(error: Exception) -> str | None:
    """What the system says of a file that could not be written, in its own words; None for any other error.

    Libraries in Rust have errors of their own for that.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(found[1])) if found else None


@contextmanager
def _scratch(base: Path, purpose: str) -> Iterator[Path]:
    """A new folder in `base`, held by this process: the system lets go of it when the process ends, however it does."""
    base.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=base, prefix=f".tmp-{purpose}@{platform.node()}."))
        with suppress(OSError):  # before it was held, another process took it for a leftover
            held, _ = _hold(folder)
            if folder.is_dir():
                break
            os.close(held)
    try:
        _remove_leftovers(base, folder.stat().st_mtime)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _hold(folder: Path) -> tuple[int, bool]:
    """Holds a folder; the descriptor to close, and whether its file system knows of holding at all (few disks on a
    network do not).

    Raises:
        OSError: another process holds it, or it is no folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        return descriptor, False
    return descriptor, True


_SCRATCH = re.compile(r"\.tmp-.*@(?P<host>.*)\.[a-z0-9_]{8}")


def _remove_leftovers(base: Path, now: float) -> None:
    """Removes what killed processes of this machine left, whatever the clock says, and of others after a day.

    Args:
        base: the folder in which scratch folders lie.
        now: the file system's time.
    """
    for leftover in base.glob(".tmp-*"):
        name = _SCRATCH.fullmatch(leftover.name)
        if name is None and base != paths.CACHE:  # only there did earlier versions leave folders of such names
            continue
        with suppress(OSError):  # it is held, or gone meanwhile
            held, certain = _hold(leftover)
            try:
                ours = certain and name is not None and name["host"] == platform.node()
                if ours or leftover.stat().st_mtime < now - DAY:
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(held)


# ------------------------------------------------------------------------------------------------ what is written


def shown(path: Path) -> str:
    """A path in a message of one line that can be read."""
    text = str(path) if str(path).isprintable() else repr(str(path))
    return text if len(text) <= 400 else f"{text[:200]}…{text[-100:]}"


def new_path(target: str | os.PathLike[str]) -> Path:
    """The path of something that is to be written, where nothing lies; asked before hours are spent on it.

    Raises:
        StudyError: something lies there, also a link that leads nowhere, or nothing can be written there.
    """
    if not isinstance(target, str | os.PathLike) or not str(target):
        raise StudyError(f"cannot write to {target!r}: give a folder")
    path = Path(target)
    try:
        path = path.expanduser()
        path.lstat()
        raise StudyError(f"{shown(path)} exists: choose another folder or delete it")
    except FileNotFoundError:
        reason = _hindrance(path.absolute())
    except NotADirectoryError:
        reason = "it would lie in a file"
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null character, ~ of an unknown user
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise StudyError(f"cannot write {shown(path)}: {reason}")
    return path


def _hindrance(path: Path) -> str:
    """Why nothing can be written at a path where nothing lies; "" if it can."""
    there = next(parent for parent in path.parents if os.path.lexists(parent))
    if not there.is_dir():
        return f"{shown(there)} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{shown(there)} cannot be written to"
    longest = os.pathconf(there, "PC_NAME_MAX")
    return "the name is too long" if any(len(os.fsencode(part)) > longest for part in path.parts) else ""


def write_whole(files: Mapping[Path, bytes]) -> list[Path]:
    """Writes files, all in scratch folders beside them first, then renamed.

    Returns:
        The paths, in order.

    Raises:
        StudyError: a folder cannot be made or written, or the disk is full; nothing half-written is left.
    """
    path, scratch = None, {}
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                if path.parent not in scratch:
                    scratch[path.parent] = stack.enter_context(_scratch(path.parent, "write"))
                (scratch[path.parent] / path.name).write_bytes(content)
            for path in files:
                (scratch[path.parent] / path.name).replace(path)
                _remove_halves(path)
    except OSError as error:
        raise StudyError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    return list(files)


def _remove_halves(path: Path) -> None:
    """Removes what earlier versions, when they were killed, left of a file that was just written: .NAME.PID.tmp."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if half.suffixes[-2][1:].isdigit() and half.lstat().st_mtime < path.stat().st_mtime - DAY:
                half.unlink()
