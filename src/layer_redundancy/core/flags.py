"""Yes and no as a user gives them: True and False alone, since the text "no" counts as true in Python."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from layer_redundancy.core.errors import StudyError

P = ParamSpec("P")
R = TypeVar("R")


def check(name: str, value: Any) -> None:
    """Raises StudyError for a flag that is neither True nor False."""
    if value is not True and value is not False:
        raise StudyError(f"{name} must be True or False, not {value!r}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that raises StudyError where an argument declared as bool is neither True nor False."""
    signature = inspect.signature(function)
    flags = [name for name, parameter in signature.parameters.items() if parameter.annotation is bool]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind_partial(*args, **kwargs).arguments
        for name in flags:
            if name in given:
                check(name, given[name])
        return function(*args, **kwargs)

    return call


def check_fields(one: Any) -> None:
    """Raises StudyError where a dataclass's field declared as bool is neither True nor False."""
    for field in fields(one):
        if field.type is bool:
            check(field.name, getattr(one, field.name))
