"""Where things lie. Nothing else in the project computes a path from the caller's working directory.

What decides a number ships inside the package (task definitions, reported numbers, the small RWKV-5, pinned archives),
so that it is there wherever the package is installed. Notebooks, figures and all that is made belong to a study's root.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DATA = PACKAGE / "data"
PAPER = DATA / "paper"  # reported numbers, typed from the papers
TASKS = DATA / "tasks"  # lm-eval task definitions
MODELS = DATA / "models"  # models that were trained for the study
PROFILES = DATA / "profiles"  # what a run uses, and how much of it

# The package is installed in place (pip install -e .), so the root is two folders above it; a copy installed
# elsewhere says where its study lies.
ROOT = Path(os.environ.get("LAYER_REDUNDANCY_ROOT") or PACKAGE.parents[1])
# Everything that is made goes below this folder; a rehearsal has one of its own.
WORK = Path(os.environ.get("LAYER_REDUNDANCY_WORK") or ROOT)

NOTEBOOKS = ROOT / "notebooks"
CACHE = WORK / "data" / "cache"  # downloads and conversions; safe to delete
RESULTS = WORK / "data" / "results"  # the results store and its CSV exports
RUNS = WORK / "data" / "runs"  # executed notebooks
FIGURES = WORK / "figures"
