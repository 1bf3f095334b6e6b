"""What make asks of a run: `python -m layer_redundancy.config.run_folder PROFILE=smoke MODEL=... NOTEBOOKS=...`.

Standard library only: the Makefile asks before there is an environment, so that a mistake in a variable, a profile or a
parameter is told at once and not after minutes of setup.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import difflib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from layer_redundancy.config import cluster, own_files, parameters, profiles
from layer_redundancy.config.notebooks import chosen_notebooks, number
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import device_names, paths
from layer_redundancy.core.errors import StudyError

# Those of make, in the order in which its help has them.
VARIABLES = (
    "PROFILE",
    "DEVICE",
    "MODEL",
    "REVISION",
    "TRUST_REMOTE_CODE",
    "PARAMS",
    "WORKERS",
    "SCHEDULER",
    "TRUST_NETWORK",
    "NOTEBOOKS",
    "VENV",
    "PYTHON",
)
NEAR = 0.75  # how like a name must be to be taken for a slip of the pen; the highest is 1


def absolute_model(model: str) -> str:
    """A local folder or file by its absolute path, since a notebook's kernel starts elsewhere; other names as they are.

    A relative path starts at the working directory or, if nothing is there, at the project's root.
    """
    for path in (own_files.place(model), paths.ROOT / model):
        if model and own_files.is_there(path) and (path.is_dir() or path.is_file()):
            return str(path.resolve())
    return model


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


def _of_notebooks() -> set[str]:
    return {name for notebook in chosen_notebooks() for name in parameters.known(notebook)}


def answer(given: Mapping[str, str]) -> Iterator[str]:
    """What make has to know of a run, in words.

    `folder=NAME`, that of the profile with the user's model; `run=FOLDER/NOTEBOOK:DIGEST` of each notebook that is run,
    with a text that changes when something does that decides its results and that make does not see; and
    `of=FOLDER:MODEL` of each further model, with %20 for a space.

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
    if value["DEVICE"]:
        device_names.check_choice(value["DEVICE"])
    notebooks = chosen_notebooks(value["NOTEBOOKS"])
    if not notebooks:
        raise StudyError(f"no notebooks in {paths.NOTEBOOKS.name}/")
    model = absolute_model(value["MODEL"])
    if model and not Path(model).is_absolute() and (model.startswith((".", "~")) or model.count("/") > 1):
        raise StudyError(f"MODEL={model}: no such folder or file")
    if Path(model).is_absolute() and not own_files.is_there(Path(model)):
        raise StudyError(f"MODEL={model}: no such folder or file")
    chosen = profiles.get(value["PROFILE"], model=model, revision=value["REVISION"])
    taken = parameters.by_notebook(value["PARAMS"], notebooks)
    trusted = value["TRUST_REMOTE_CODE"] == "yes"
    decides = (profiles.digest(value["PROFILE"]), chosen.revision, trusted)

    def run(folder: str, notebook: Path, model: str) -> str:
        if odd := [c for c in notebook.stem if not (c.isalnum() or c in "-._")]:
            raise StudyError(f"{notebook.name}: make takes no notebook with {odd[0]!r} in its name: rename it")
        own = [
            [name, given, own_files.state(absolute_model(given)) if name in parameters.READ else None]
            for name, given in taken[notebook].items()
        ]
        digest = hashlib.sha256(repr([decides, model, own_files.state(model), own]).encode()).hexdigest()[:16]
        return f"run={folder}/{notebook.stem}:{digest}"

    folder = profiles.artifact_folder(chosen)
    yield f"folder={folder}"
    yield from (run(folder, notebook, model) for notebook in notebooks)
    for further in chosen.further if not model else ():
        own = [notebook for notebook in notebooks if number(notebook) in further.notebooks]
        beside = f"{folder}/{profiles.slug(further.model)}"
        yield from (run(beside, notebook, absolute_model(further.model)) for notebook in own)
        yield f"of={beside}:{further.model.replace('%', '%25').replace(' ', '%20')}"


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
