"""By which door the user came in: make, a command line, or Python. A message names a setting as it is written there.

Standard library only: the Makefile asks before there is an environment.
"""

import os

VARIABLE = "LAYER_REDUNDANCY_DOOR"  # set by the Makefile and by commands, so that the kernels they start know it too
MAKE, COMMAND = "make", "command"


def entered(door: str) -> None:
    """Remembers the door of this process and those that it starts, unless one before it has."""
    os.environ.setdefault(VARIABLE, door)


def setting(name: str, value: str | bool = "") -> str:
    """A setting as the user writes it: `MODEL=`, `--model` or `model=`; with a value, `MODEL=x`, and so on.

    Args:
        name: the argument's name in Python.
        value: what it is set to; True for a flag that is raised, "" for no matter what.
    """
    door = os.environ.get(VARIABLE)
    if door == MAKE:
        return f"{name.upper()}={'yes' if value is True else value}"
    if door == COMMAND:
        option = f"--{name.replace('_', '-')}"
        return option if value is True or value == "" else f"{option} {value}"
    return f"{name}={value!r}" if value != "" else f"{name}="
