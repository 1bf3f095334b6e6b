"""Which keys the experiments' budgets have, read from their source: importing an experiment needs torch, and seconds.

So a misspelt key is told before there is an environment, and whichever notebook is run. Standard library only.
"""

import ast
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Any

from layer_redundancy.core import paths


def declared(names: Mapping[str, Any]) -> dict[str, type]:
    """Experiment's name -> a dataclass with the fields of its class Budget; whether a field has a default is kept.

    Args:
        names: name -> type, of all that the fields' types are written with.
    """
    found = {}
    for file in sorted((paths.PACKAGE / "experiments").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == "Budget":
                found[file.stem] = make_dataclass("Budget", [_field(one, names) for one in _annotated(node)])
    return found


def _annotated(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [one for one in node.body if isinstance(one, ast.AnnAssign)]


def _field(one: ast.AnnAssign, names: Mapping[str, Any]) -> tuple[str, Any, Any]:
    kind = eval(ast.unparse(one.annotation), dict(names))
    return ast.unparse(one.target), kind, field() if one.value is None else field(default=None)
