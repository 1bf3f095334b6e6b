"""The cache: folders that are made once, and files that are written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError


def sha256(file: Path) -> str:
    """sha256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        StudyError: as `scratch_folder`.
    """
    target = made_folder(name, settings)
    if not target.is_dir():
        with scratch_folder(name) as scratch:
            write(scratch / target.name)
            try:
                (scratch / target.name).rename(target)
            except OSError:
                if not target.is_dir():  # it is, where another process was faster
                    raise
    return target


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder of our own in the cache (same file system, so that a rename is atomic), removed on exit.

    What a killed process left is removed a day later, when no live one can still be writing there.

    Raises:
        StudyError: the cache cannot be written, or the disk is full; whatever failed inside.
    """
    from safetensors import SafetensorError

    try:
        paths.CACHE.mkdir(parents=True, exist_ok=True)
        for stale in paths.CACHE.glob(".tmp-*"):
            if stale.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix=f".tmp-{purpose}-") as name:
            yield Path(name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(f"cannot write to {paths.CACHE} ({reason}): it needs 1 GB of free disk") from error


def write_whole(files: Mapping[Path, bytes]) -> list[Path]:
    """Writes files, all under temporary names in their folders first, then renamed.

    Returns:
        The paths, in order.

    Raises:
        StudyError: a folder cannot be made or written, or the disk is full; nothing half-written is left.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    path = None
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in files:
            temporary[path].replace(path)
    except OSError as error:
        raise StudyError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        for leftover in temporary.values():
            with suppress(OSError):  # where the folder is not there or not ours, nothing was left in it
                leftover.unlink(missing_ok=True)
    return list(files)
