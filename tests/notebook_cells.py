"""Runs a notebook's cells in a fresh process that has its libraries already, since importing them takes longest.

A server imports them once a session of tests and forks itself for each run. It computes nothing itself, so that there
are no threads which a fork would lose.
"""

import importlib
import multiprocessing
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from layer_redundancy.core import log, paths

EXPERIMENTS = [path.stem.split("_", 1)[1] for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [f"layer_redundancy.{part}.{name}" for part in ("experiments", "figures") for name in EXPERIMENTS]
    + ["lm_eval.models.huggingface", "papermill.iorw", "papermill.parameterize"]
)


def run(name: str, root: Path, **parameters: object) -> tuple[int, str]:
    """Runs all cells of a notebook in order, in a project folder of its own.

    Args:
        name: the notebook's name.
        root: the project folder.
        parameters: values in place of those in the notebook's parameters cell.

    Returns:
        The process's exit code, 0 where no cell raised; and what it wrote to standard output and error.
    """
    output = root / f"{name}.log"
    process = _server.Process(target=_run, args=(paths.NOTEBOOKS / f"{name}.ipynb", root, output, parameters))
    process.start()
    process.join()
    return process.exitcode, output.read_text()


def _run(file: Path, root: Path, output: Path, parameters: dict[str, object]) -> None:
    with output.open("w") as written, redirect_stdout(written), redirect_stderr(written):
        try:
            os.environ["LAYER_REDUNDANCY_ROOT"] = str(root)
            importlib.reload(paths)
            log.show()  # as in a kernel
            cells = parameterize_notebook(load_notebook_node(str(file)), parameters).cells
            names = {"__name__": "__main__", "display": print}  # what a kernel has besides
            for number, cell in enumerate(cells):
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{file.name}, cell {number}", "exec"), names)
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None
