"""What make asks of a run: `python -m layer_redundancy.config.run_folder PROFILE=smoke MODEL=... NOTEBOOKS=...`.

Standard library only: the Makefile asks before there is an environment, so that a mistake in a variable, a profile or a
parameter is told at once and not after minutes of setup.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import difflib
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from layer_redundancy.config import cluster, own_files, parameters, profiles
from layer_redundancy.config.notebooks import chosen_notebooks, number
from layer_redundancy.config.own_files import absolute_model
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import device_names, paths
from layer_redundancy.core.errors import StudyError

# Those of make, in the order in which its help has them.
VARIABLES = (
    "PROFILE",
    "DEVICE",
    "MODEL",
    "MODELS",
    "REVISION",
    "TRUST_REMOTE_CODE",
    "PARAMS",
    "WORKERS",
    "SCHEDULER",
    "TRUST_NETWORK",
    "NOTEBOOKS",
    "DROPOUT",
    "VENV",
    "PYTHON",
)
MOST_DROPOUT = 0.9  # above it little is left to learn from
NEAR = 0.75  # how like a name must be to be taken for a slip of the pen; the highest is 1


def placed(values: Mapping[str, Any], model: str = "") -> dict[str, Any]:
    """Parameters of a notebook with absolute paths, since its kernel starts elsewhere than the user stands.

    Raises:
        StudyError: a folder that is to be written is there already, or cannot be written; see `own_files.new_folder`.
    """
    found = dict(values)
    for name in parameters.READ:
        if found.get(name):
            found[name] = absolute_model(found[name])
    for name in parameters.WRITTEN:
        if found.get(name):
            found[name] = str(own_files.new_folder(found[name], model))
    return found


def check_names(names: Mapping[str, str]) -> None:
    """Raises StudyError for a variable on make's command line that looks like one of its own, and is none.

    Others go into the environment, where libraries look for theirs.
    """
    for name in names:
        if name in VARIABLES:
            continue
        upper = name.upper()
        near = [one for one in VARIABLES if len(name) > 2 and one.startswith(upper)]
        # PYTHONPATH and its like are Python's.
        near += [] if name.startswith("PYTHON") else difflib.get_close_matches(upper, VARIABLES, n=1, cutoff=NEAR)
        if near:
            raise StudyError(f"unknown variable {name}=: did you mean {near[0]}=?")
        if upper.lower() in _of_notebooks():
            raise StudyError(
                f'unknown variable {name}=: a notebook\'s parameter is given as PARAMS="{name.lower()}=..."'
            )
        if upper.lower() in {one.name for one in fields(Profile)}:
            raise StudyError(
                f"unknown variable {name}=: {name.lower()} is set in a profile of your own (docs/how-to.md)"
            )
        if name != upper and not name.endswith("_proxy"):
            raise StudyError(f"unknown variable {name}=: choose from {', '.join(VARIABLES)}")


def _number(text: str) -> float:
    """The number that a text is; NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _of_notebooks() -> set[str]:
    return {name for notebook in chosen_notebooks() for name in parameters.known(notebook)}


def answer(given: Mapping[str, str]) -> Iterator[str]:
    """What make has to know of a run, in words.

    `folder=NAME`, that of the profile with the user's model; `run=FOLDER/NOTEBOOK:DIGEST` of each notebook that is run,
    with a text that changes when something does that decides its results and that make does not see; and
    `of=FOLDER:MODEL` of each further model, with %20 for a space. The notebook that compares models comes last, and
    only where there are two at least.

    Args:
        given: make's variables; those that are missing are empty.

    Raises:
        StudyError: a value that makes no sense.
    """
    check_names(given)
    value = {name: given.get(name, "") for name in VARIABLES}
    for name in ("TRUST_REMOTE_CODE", "TRUST_NETWORK"):
        if value[name] not in ("", "yes", "no"):
            raise StudyError(f"{name}={value[name]} is not understood: write yes, no or nothing")
    cluster.check_given(value["WORKERS"], value["SCHEDULER"], trust_network=value["TRUST_NETWORK"] == "yes")
    if (value["WORKERS"] or value["SCHEDULER"]) and value["PARAMS"]:
        raise StudyError(
            "PARAMS= is for notebooks that measure for themselves: with WORKERS= or SCHEDULER=, set what it says in a "
            "profile of your own (docs/how-to.md)"
        )
    if value["DROPOUT"] and not 0 <= _number(value["DROPOUT"]) <= MOST_DROPOUT:
        raise StudyError(f"DROPOUT={value['DROPOUT']} is not understood: write a number from 0 to {MOST_DROPOUT}")
    if value["DEVICE"]:
        device_names.check_choice(value["DEVICE"])
    notebooks = chosen_notebooks(value["NOTEBOOKS"])
    if not notebooks:
        raise StudyError(f"no notebooks in {paths.NOTEBOOKS.name}/")
    model = absolute_model(value["MODEL"])
    _check_there("MODEL", model)
    models = profiles.named_models(value["MODELS"])
    for one in models:
        _check_there("MODELS", one)
    if model and models:
        raise StudyError("MODEL= is one model in the profile's place, MODELS= are several: give one of the two")
    chosen = profiles.get(value["PROFILE"], model=model, revision=value["REVISION"], models=models)
    taken = parameters.by_notebook(value["PARAMS"], notebooks)
    trusted = value["TRUST_REMOTE_CODE"] == "yes"
    decides = (profiles.digest(value["PROFILE"]), chosen.revision, trusted)
    studied = {} if model else chosen.studied
    across = [notebook for notebook in notebooks if number(notebook) == profiles.ACROSS]
    if len(studied) < 2 and across == notebooks:
        raise StudyError(f'{across[0].stem} compares models: name two or more of them, MODELS="smollm2 gemma3-270m"')
    notebooks = [notebook for notebook in notebooks if notebook not in across]

    def run(folder: str, notebook: Path, *models: str) -> str:
        if odd := [c for c in notebook.stem if not (c.isalnum() or c in "-._")]:
            raise StudyError(f"{notebook.name}: make takes no notebook with {odd[0]!r} in its name: rename it")
        own = [
            [name, given, own_files.state(absolute_model(given)) if name in parameters.READ else None]
            for name, given in taken[notebook].items()
        ]
        digest = hashlib.sha256(
            repr([decides, models, [own_files.state(one) for one in models], own]).encode()
        ).hexdigest()[:16]
        return f"run={folder}/{notebook.stem}:{digest}"

    folder = profiles.artifact_folder(chosen)
    yield f"folder={folder}"
    if model or chosen.own_model in studied:
        yield from (run(folder, notebook, model) for notebook in notebooks)
    for other, its in studied.items():
        if other == chosen.own_model:
            continue
        own = [notebook for notebook in notebooks if its is None or number(notebook) in its]
        beside = profiles.artifact_folder(replace(chosen, model=absolute_model(other)))
        yield from (run(beside, notebook, absolute_model(other)) for notebook in own)
        yield f"of={beside}:{other.replace('%', '%25').replace(' ', '%20')}"
    if len(studied) > 1:
        whole = profiles.across_folder(chosen)
        yield from (run(whole, notebook, *map(absolute_model, studied)) for notebook in across)


def _check_there(variable: str, model: str) -> None:
    """Raises StudyError for a path of a model where nothing is."""
    is_path = model.startswith((".", "~")) or model.count("/") > 1
    if model and ((Path(model).is_absolute() and not own_files.is_there(Path(model))) or (is_path and model[0] != "/")):
        raise StudyError(f"{variable}={model}: no such folder or file")


def main(*words: str) -> None:
    """Prints "ok" and what make has to know of a run, or one line on why there is none.

    The first word tells make an answer from an error: the exit status of $(shell) is out of its reach before make 4.2.

    Args:
        words: make's variables and those on its command line, each as NAME=value.
    """
    given: dict[str, Any] = {name: value for name, _, value in (word.partition("=") for word in words)}
    try:
        print("ok", *list(answer(given)), sep="\n")
    except StudyError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
