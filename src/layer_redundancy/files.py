"""Writing files so that each appears whole or not at all."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from layer_redundancy.errors import StudyError


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
