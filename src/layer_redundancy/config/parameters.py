"""Parameters of notebooks: what their parameters cells have, and values for them from a command line.

Standard library only: the Makefile asks, before there is an environment, which notebooks know a parameter.
"""

import ast
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layer_redundancy.core import doors
from layer_redundancy.core.errors import StudyError

# Parameters that every notebook has, and that are given by settings of their own.
VARIABLES = ("profile", "model", "models", "revision", "trust_remote_code")
# Parameters that may name a folder or file: what is read, and what is written.
READ, WRITTEN = ("beside", "ready", "pair"), ("export_to",)


def known(notebook: Path) -> dict[str, str]:
    """Names in the notebook's parameters cell, each with the source text of its default.

    Raises:
        StudyError: the notebook cannot be read, or is none.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        lines = [line for source in sources for line in ast.parse(source).body]
    except OSError as error:
        raise StudyError(f"cannot read {notebook}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(f"{notebook} is no notebook that can be run: {reason}") from error
    found = {}
    for line in lines:
        if isinstance(line, ast.Assign):
            found[ast.unparse(line.targets[0])] = ast.unparse(line.value)
        elif isinstance(line, ast.AnnAssign) and line.value is not None:
            found[ast.unparse(line.target)] = ast.unparse(line.value)
    return found


def typed(name: str, text: str, default: str) -> Any:
    """The value of `name=text` on the command line, in the type of the default in the notebook's parameters cell.

    Args:
        name: the parameter.
        text: its value as written on the command line.
        default: source text of the default, such as `"''"` or `"0.25"`.

    Raises:
        StudyError: `text` is no value of that type.
    """
    try:
        wanted = type(ast.literal_eval(default))
    except (ValueError, SyntaxError):
        raise StudyError(f"parameter {name} has no value of its own in the notebook, but {default}") from None
    if wanted is str:
        return text
    try:
        value = ast.literal_eval(text)
        value = float(value) if wanted is float and type(value) is int else value
    except (ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
        value = None
    if type(value) is float and not math.isfinite(value):
        raise StudyError(f"parameter {name}={text} must be a finite number")
    if type(value) is not wanted and wanted is not type(None):
        raise StudyError(f"parameter {name}={text} must be of type {wanted.__name__}, as its default {default} is")
    return value


def given(text: str) -> dict[str, str]:
    """The parameters in a text such as `limit=20 export_to='a folder'`, quoted as for a shell: name -> value as text.

    Raises:
        StudyError: a part that is no name=value, a quote that is not closed, a parameter that is given twice or that
            has a setting of its own.
    """
    try:
        parts = [part.partition("=") for part in shlex.split(text)]
    except ValueError as error:
        raise StudyError(f"parameters {text!r}: {error}") from None
    for name, equals, value in parts:
        if not (equals and name):
            raise StudyError(f"parameter {name + value!r} must be written name=value, with quotes around spaces")
        if name in VARIABLES:
            raise StudyError(f"parameter {name} is set by {doors.setting(name)}")
    found = {name: value for name, _, value in parts}
    if len(found) < len(parts):
        twice = next(name for name in found if [part[0] for part in parts].count(name) > 1)
        raise StudyError(f"parameter {twice} is given twice")
    return found


def by_notebook(text: str, notebooks: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """What of the parameters in a text each notebook takes: those that it knows, in the types of its defaults.

    Raises:
        StudyError: as `given`, and `known`; a value of a wrong type, or a parameter that none of the notebooks knows.
    """
    wanted = given(text)
    if not wanted:
        return {notebook: {} for notebook in notebooks}
    of_notebook = {notebook: known(notebook) for notebook in notebooks}
    every = dict.fromkeys(name for names in of_notebook.values() for name in names if name not in VARIABLES)
    if unknown := [name for name in wanted if name not in every]:
        known_ones = f"which know {', '.join(every)}" if every else "which have no parameters of their own"
        raise StudyError(f"no parameter {', '.join(unknown)} in the chosen notebooks, {known_ones}")
    return {notebook: taken(wanted, names) for notebook, names in of_notebook.items()}


def taken(wanted: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Any]:
    """Those of the wanted values that a notebook has parameters for, in the types of its defaults."""
    return {name: typed(name, value, names[name]) for name, value in wanted.items() if name in names}
