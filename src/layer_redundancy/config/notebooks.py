"""Which notebooks are meant. Standard library only: the Makefile asks before there is an environment."""

from pathlib import Path

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError


def chosen_notebooks(chosen: str = "") -> list[Path]:
    """The study's notebooks, or those chosen by number or name with spaces between them, each once.

    Raises:
        StudyError: there is none of that name.
    """
    every = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    found: dict[Path, None] = {}
    for word in chosen.split():
        name = Path(word).name.removesuffix(".ipynb")
        fitting = [path for path in every if path.stem == name or path.stem.startswith((f"{name}_", f"0{name}_"))]
        if not (name and fitting):
            raise StudyError(f'no notebook "{word}": choose from {" ".join(path.stem for path in every)}')
        found |= dict.fromkeys(fitting)
    return list(found) or every


def number(notebook: Path) -> str:
    """A notebook's number, as its name begins."""
    return notebook.stem.partition("_")[0]
