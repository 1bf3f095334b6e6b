"""Texts, tasks and models of the user's own, named by their paths. Standard library only.

A relative path starts at the folder of the profile that names it or, if nothing is there, at the study's root.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from layer_redundancy.core import cache, paths
from layer_redundancy.core.errors import StudyError

CORPORA = ("wikipedia", "pg19", "c4", "alpaca")  # those that `data.corpora` knows by name
DEFAULT_FIELD = "text"  # of each line of a .jsonl file
TEXT_ENDINGS = (".txt", ".jsonl")
TASK_ENDINGS = (".yaml", ".yml")


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def place(name: str) -> Path:
    """A path as the user writes it, with ~ for a home folder.

    Raises:
        StudyError: ~ and the name of nobody.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise StudyError(f"{name!r}: there is no home folder of {name.split('/')[0]}") from None


def is_there(path: Path) -> bool:
    """Whether a file or folder is there, whatever the text that is asked for: also one that can be no path."""
    try:
        path.stat()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        return False
    return True


def absolute_model(model: str) -> str:
    """A local folder or file by its absolute path, since a notebook's kernel starts elsewhere; other names as they are.

    A relative path starts at the working directory or, if nothing is there, at the project's root.
    """
    for path in (place(model), paths.ROOT / model):
        if model and is_there(path) and (path.is_dir() or path.is_file()):
            return str(path.resolve())
    return model


def _found(name: str, folder: Path | None) -> Path | None:
    """The file or folder of that name, absolute; None where there is none."""
    for base in (folder, paths.ROOT):
        if name and base is not None and is_there(path := base / place(name)):
            return path.resolve()
    return None


def find_text(name: str, folder: Path | None = None) -> tuple[Path, str]:
    """The file or folder of a text of the user's own, and the field of its lines that holds the text.

    Args:
        name: a path; `#` and a field's name may follow that of a .jsonl file, or of a folder of them.
        folder: where a relative path starts, before the study's root.

    Raises:
        StudyError: there is none.
    """
    if not isinstance(name, str):
        raise StudyError(f"a corpus is named by a text, not by {name!r}: give a name or a path")
    file, _, field = name.rpartition("#")
    for path, key in ((_found(name, folder), DEFAULT_FIELD), (_found(file, folder), field)):
        if path is not None and key and (path.is_dir() or path.suffix in TEXT_ENDINGS):
            return path, key
    raise StudyError(
        f"unknown corpus {name!r}: choose {', '.join(CORPORA)}, or the path of a .txt file, a .jsonl file or a folder "
        f"(looked for in {' and '.join(str(base) for base in (folder, paths.ROOT) if base is not None)})"
    )


def corpus(name: str, folder: Path | None = None) -> str:
    """A corpus with an absolute path, if it is the user's own; raises StudyError as `find_text`."""
    if not name or name in CORPORA:
        return name
    path, field = find_text(name, folder)
    return str(path) if field == DEFAULT_FIELD else f"{path}#{field}"


def corpus_name(name: str) -> str:
    """A corpus as captions name it: by the file's or folder's name, wherever that lies."""
    if not name or name in CORPORA:
        return name
    return find_text(name)[0].name


def is_own_task(name: str) -> bool:
    """Whether a task is named by the path of its file."""
    return name.endswith(TASK_ENDINGS)


def task(name: str, folder: Path | None = None) -> str:
    """A task with the absolute path of its file, if it is the user's own; raises StudyError if there is none."""
    if not is_own_task(name):
        return name
    if (path := _found(name, folder)) is None or not path.is_file():
        raise StudyError(f"task {name!r}: no such file" + (f" in {folder}" if folder else ""))
    return str(path)


def model(name: str, folder: Path | None = None) -> str:
    """A folder or file beside the profile by its absolute path; a hub id, or any other name, as it is."""
    path = folder / place(name) if name and folder is not None else None
    return name if path is None or not is_there(path) else str(path.resolve())


def new_folder(name: str | Path, source: str = "") -> Path:
    """Where a checkpoint is to be written, absolute; a relative path starts at the working directory.

    Args:
        name: the folder; it must not exist.
        source: the model that it is made from, "" where that is not known.

    Raises:
        StudyError: something lies there, or nothing can be written there; told before hours are spent on it.
    """
    path = cache.new_path(name).absolute()
    if source and is_there(Path(source)) and path.resolve().is_relative_to(Path(source).resolve()):
        raise StudyError(f"cannot write {shown(path)}: it lies in the model's own folder, choose another")
    return path


def state(value: str) -> list[tuple[str, int, int, int]]:
    """Names, sizes, times (ns) and inodes of the files behind an absolute path; nothing for any other value.

    Of a folder these are all files in it; of a task's file those beside it, and those that it names.
    """
    path = Path(value if is_there(Path(value)) else value.rpartition("#")[0])
    if not path.is_absolute() or not is_there(path):
        return []
    if is_own_task(value):
        files = set(_beside(path))
    elif path.is_dir():
        files = {Path(folder) / name for folder, _, names in os.walk(path) for name in names}
    else:
        files = {path}
    found = []
    for file in sorted(files):
        try:
            known = file.stat()
        except OSError:  # a link to nothing: the run will tell
            continue
        if stat.S_ISREG(known.st_mode):
            found.append((str(file), known.st_size, known.st_mtime_ns, known.st_ino))
    return found


def _beside(task: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """What a task may read: the files in its folder, those that it names, and what these name if they are tasks too."""
    try:
        yield from list(task.parent.iterdir())
        text = task.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # told when the task is read
        return
    for quotes in re.findall(r"""\"([^"\n]+)\"|'([^'\n]+)'|([^\s'",\[\]{}]+)""", text):
        file = task.parent / "".join(quotes)
        if not is_there(file):
            continue
        if is_own_task(str(file)) and file not in seen and file.is_file():
            yield from _beside(file, seen | {task, file})
        elif file.is_dir() and task.parent in file.parents:
            yield from file.rglob("*")
        yield file
