"""A place for runs from an empty store, with what was downloaded at hand."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layer_redundancy.core import paths

MADE = ("healed-", "pruned-", "quantized-", "trained-", "training-")  # what notebooks put into the cache


@contextmanager
def work_folder() -> Iterator[tuple[Path, dict[str, str]]]:
    """A new folder and the environment in which notebooks work there; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "data" / "cache"
        cache.mkdir(parents=True)
        for entry in paths.CACHE.iterdir() if paths.CACHE.is_dir() else ():
            if not entry.name.startswith(MADE):
                (cache / entry.name).symlink_to(entry)
        yield Path(name), os.environ | {"LAYER_REDUNDANCY_WORK": name}
