"""What the driver sends a worker, and what comes back.

Standard library, cloudpickle and the store's types: what is sent is opened only where the code is known to be the same.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from layer_redundancy.cluster import code
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Contents, Key, Result
from layer_redundancy.data.corpora import Split


class Lacks(Exception):
    """A worker has no copy of a folder that it needs.

    Args:
        folder: the driver's folder.
        name: what it is called in a worker's cache.
    """

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self.folder, self.name = folder, name


class OtherModel(Exception):
    """A worker finds another model under the same name; says which."""


TOKENS = "tokens.npy"  # int32 (blocks, block length)


@dataclass(frozen=True)
class Order:
    """A piece of work.

    Attributes:
        act: does it; studies in it are the worker's own when it gets there, which keep what they measure in memory.
        given: results that it needs beside, with the name of the model.
        notebook: the notebook that asks for it.
        threads: threads of the processor to compute on; None for as many as the worker has.
    """

    act: Callable[[], Any]
    given: Sequence[tuple[Key, str, Result]] = ()
    notebook: str = ""
    threads: int | None = None

    def packed(self) -> bytes:
        """As it is sent: what the code is, in the clear, and the rest."""
        return pickle.dumps((code.here(), cloudpickle.dumps(self)))


@dataclass(frozen=True)
class Answer:
    """What a worker says to an order.

    Attributes:
        worker: its address.
        value: what `act` returned.
        stored: what was stored meanwhile.
        error: what it raised, if that was a user's mistake or a condition of the machine.
        lacks: a folder that it needs to be sent; nothing else was done then.
        refused: why it does not take the order: its code or its model is another one, both named.
        made: folders of the cache that were made or opened there.
        remarks: warnings.
        seconds: how long it took.
    """

    worker: str
    value: Any = None
    stored: Contents = field(default_factory=Contents)
    error: StudyError | None = None
    lacks: Lacks | None = None
    refused: str = ""
    made: Sequence[str] = ()
    remarks: Sequence[str] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a model's weights are, for a worker to find its own copy.

    Attributes:
        model: the name by which any machine finds it (a hub id, a model of a package); "" for a folder.
        revision: commit on the hub.
        folder: the driver's folder.
        name: that folder's name in a worker's cache.
    """

    model: str = ""
    revision: str | None = None
    folder: str = ""
    name: str = ""

    def candidates(self, cache: Path) -> list[str]:
        """Folders where a worker may have it: a shared path, or its cache."""
        return [one for one in (self.folder, str(cache / self.name)) if one and Path(one).is_dir()]


@dataclass(frozen=True)
class TextPlace:
    """A long text that goes to each machine once, and not with every order.

    Attributes:
        fingerprint, corpus, split, bos: as in `TokenBlocks`.
        place: the folder that holds its tokens, as a file `TOKENS`.
    """

    fingerprint: str
    corpus: str
    split: Split
    bos: bool
    place: Place
