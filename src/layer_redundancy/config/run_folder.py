"""Names the folder of a run: `python -m layer_redundancy.config.run_folder PROFILE MODEL REVISION PARAMS NOTEBOOKS`.

Standard library only: the Makefile asks before there is an environment, so that a mistake in a profile or a parameter
is told at once and not after minutes of setup.
"""

import sys
from pathlib import Path

from layer_redundancy.config import parameters, profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError


def absolute_model(model: str) -> str:
    """A local folder or file by its absolute path, since a notebook's kernel starts elsewhere; other names as they are.

    A relative path starts at the working directory or, if nothing is there, at the project's root.
    """
    for path in (Path(model).expanduser(), paths.ROOT / model):
        if model and (path.is_dir() or path.is_file()):
            return str(path.resolve())
    return model


def main(profile: str, model: str = "", revision: str = "", given: str = "", *notebooks: str) -> None:
    """Print what make has to know of a run; or why there is none.

    `folder=NAME`; `digest=TEXT`, another one when something that the profile names has changed; `takes=NOTEBOOK` of
    each notebook that has one of the parameters given; and `further=MODEL:01,03` of each further model of the profile.
    The prefix tells make an answer from an error: the exit status of $(shell) is out of its reach before make 4.2.
    """
    try:
        chosen = profiles.get(profile, model=absolute_model(model), revision=revision)
        digest = profiles.digest(profile)
        takes = parameters.by_notebook(given, [paths.NOTEBOOKS / f"{name}.ipynb" for name in notebooks])
    except StudyError as error:
        print(error)
    else:
        print(f"folder={profiles.artifact_folder(chosen)}", f"digest={digest}", sep="\n")
        for notebook in filter(takes.get, takes):
            print(f"takes={notebook.stem}")
        if not model:
            for further in chosen.further:
                print(f"further={further.model}:{','.join(further.notebooks)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
