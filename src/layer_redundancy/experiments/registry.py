"""The experiments, found by looking: every module of this folder that names its notebook is one.

An experiment module declares `NOTEBOOK` (the notebook's name without its ending, which begins with its number), what it
needs of a profile (`Budget`, if anything), `measure(study)`, which asks a study for all of its work, and functions that
make tables and statements of what was measured. A notebook calls these and draws; a plan runs `measure` dry.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from layer_redundancy import experiments
from layer_redundancy.core.errors import StudyError


@dataclass(frozen=True)
class Experiment:
    """A notebook's experiment.

    Attributes:
        notebook: the notebook's name, such as "05_width_vs_depth".
        module: the module that declares the experiment.
    """

    notebook: str
    module: ModuleType

    @property
    def number(self) -> str:
        """Two digits: the place in the order in which notebooks run."""
        return self.notebook.partition("_")[0]

    @property
    def measure(self) -> Callable[..., Any]:
        """Asks a study for all of the experiment's work."""
        return self.module.measure


@cache
def every() -> tuple[Experiment, ...]:
    """All experiments in the order of their notebooks."""
    names = [name for _, name, _ in pkgutil.iter_modules(experiments.__path__)]
    modules = [importlib.import_module(f"{experiments.__name__}.{name}") for name in names]
    found = [Experiment(module.NOTEBOOK, module) for module in modules if hasattr(module, "NOTEBOOK")]
    return tuple(sorted(found, key=lambda one: one.notebook))


def numbers() -> tuple[str, ...]:
    """Numbers of all notebooks."""
    return tuple(one.number for one in every())


def by_number(number: str) -> Experiment:
    """The experiment of a notebook, by its number ("5" and "05" are the same), name or file.

    Raises:
        StudyError: there is none.
    """
    wanted = Path(number).name.removesuffix(".ipynb")
    for one in every():
        if wanted.zfill(2) == one.number or wanted == one.notebook:
            return one
    raise StudyError(f"no notebook {number}: choose from {' '.join(numbers())}")
