"""Texts, tasks and models of the user's own, named by their paths. Standard library only.

A relative path starts at the folder of the profile that names it or, if nothing is there, at the study's root.
"""

import os
from pathlib import Path

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError

CORPORA = ("wikipedia", "pg19", "c4", "alpaca")  # those that `data.corpora` knows by name
DEFAULT_FIELD = "text"  # of each line of a .jsonl file
TEXT_ENDINGS = (".txt", ".jsonl")
TASK_ENDINGS = (".yaml", ".yml")


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _found(name: str, folder: Path | None) -> Path | None:
    """The file or folder of that name, absolute; None where there is none."""
    for base in (folder, paths.ROOT):
        if name and base is not None and (path := _existing(base, name)) is not None:
            return path.resolve()
    return None


def _existing(base: Path, name: str) -> Path | None:
    """The path of that name, from a folder on, if something lies there."""
    try:
        path = base / Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name too long, a folder that may not be looked into, ~ of an unknown user
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
    path = _existing(folder, name) if name and folder is not None else None
    return name if path is None else str(path.resolve())


def state(value: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times (ns) of the files behind a value with an absolute path; nothing for any other value."""
    path = _existing(Path(), value) or _existing(Path(), value.rpartition("#")[0] or value)
    if path is None or not path.is_absolute():
        return []
    # What a task's file reads lies beside it.
    files = path.parent.iterdir() if is_own_task(value) else path.rglob("*") if path.is_dir() else [path]
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
