"""Where things lie. Nothing else in the project computes a path from the caller's working directory.

What decides a number ships inside the package (task definitions, reported numbers, the small RWKV-5, pinned archives),
so that it is there wherever the package is installed. Notebooks and figures belong to a clone of the study; a package
that is installed elsewhere keeps what it makes where the platform keeps such things.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / "data"
PAPER = DATA / "paper"  # reported numbers, typed from the papers
TASKS = DATA / "tasks"  # lm-eval task definitions
MODELS = DATA / "models"  # models that were trained for the study
PROFILES = DATA / "profiles"  # what a run uses, and how much of it

_CLONE = PACKAGE.parents[1]  # where the package is installed in place (pip install -e .)


def _user(kind: str) -> Path:
    """The platform's folder for this user's data or cache, of an installed package."""
    import platformdirs  # not there before the environment is, when the Makefile asks from a clone

    return getattr(platformdirs, f"user_{kind}_path")("layer-redundancy", appauthor=False)


_given = os.environ.get("LAYER_REDUNDANCY_ROOT")
IN_CLONE = bool(_given) or (_CLONE / "notebooks").is_dir()
ROOT = Path(_given) if _given else _CLONE if IN_CLONE else _user("data")
# Everything that is made goes below this folder; a rehearsal has one of its own.
_work = os.environ.get("LAYER_REDUNDANCY_WORK")
WORK = Path(_work or ROOT)
_OWN_FOLDERS = bool(_work) or IN_CLONE

NOTEBOOKS = ROOT / "notebooks"
CACHE = WORK / "data" / "cache" if _OWN_FOLDERS else _user("cache")  # downloads and conversions; safe to delete
RESULTS = WORK / "data" / "results" if _OWN_FOLDERS else WORK / "results"  # the results store and its CSV exports
RUNS = WORK / "data" / "runs"  # executed notebooks
FIGURES = WORK / "figures"
EXPECTED = ROOT / "data" / "expected"  # tables that a run should give
