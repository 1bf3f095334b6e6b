"""Sets attributes of modules for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attributes(*settings: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes and puts them back, also on error; what only the class had is deleted from the instance again.

    Args:
        settings: (object, name of the attribute, value) of each.
    """
    missing = object()
    saved = [(obj, name, vars(obj).get(name, missing)) for obj, name, _ in settings]
    try:
        for obj, name, value in settings:
            setattr(obj, name, value)
        yield
    finally:
        for obj, name, value in reversed(saved):
            if value is missing:
                delattr(obj, name)
            else:
                setattr(obj, name, value)
