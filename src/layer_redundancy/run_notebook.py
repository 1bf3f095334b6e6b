"""Executes one notebook, so that a copy under its finished name is a run that finished.

`python -m layer_redundancy.run_notebook NOTEBOOK --profile smoke --output data/runs/smoke/NAME.ipynb`

papermill does the work. Three of its habits would mislead here and are put right: it turns the parameter `12e5678`
into infinity, it only warns of a parameter that the notebook does not have, and it writes the copy of a failed run
under the same name as that of a good one.

The kernel is this very Python, whatever kernels the user has installed, and starts in the notebook's own folder, as it
does in JupyterLab: the caller's working directory decides nothing.
"""
# ruff: noqa: E402

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

# jsonschema, which nbformat imports, would spend most of a second on a grammar of addresses that no notebook holds; it
# does without where that package is missing.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # how Python is told that a module is missing
import nbformat
import papermill
import typer
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color

from layer_redundancy import run_summary
from layer_redundancy.config import parameters, profiles
from layer_redundancy.config.run_folder import absolute_model, placed
from layer_redundancy.core import cache, doors, flags
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError

LOG_INTERVAL = 30.0  # seconds between two states of a progress bar in a log
TRACEBACK_LINES = 15

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Unfinished(Exception):
    """A run that did not finish: why, in a line or more, and where the copy of it lies."""


class ThisPython(AsyncKernelManager):
    """Starts the kernel of the Python that runs this.

    A kernelspec of the user's own (~/.local/share/jupyter, JUPYTER_PATH) may be called python3 too and point to another
    environment. With no folder to search, jupyter_client falls back on the running interpreter.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **settings)


class Echo:
    """Passes on what the cells print, progress bars included.

    A progress bar is a line that is rewritten after a carriage return. A terminal shows each of its states, cut to the
    terminal's width; a log gets one every LOG_INTERVAL seconds and the last.

    Args:
        stream: where it goes.
        prefix: stands before each line, of which others may be among them: none is rewritten then, as in a log.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self._stream = stream
        self._prefix = prefix
        self._terminal = stream.isatty() and not prefix
        self._line = ""  # what stands since the last line end
        self._shown = time.monotonic()  # when a log last got a state

    def write(self, text: str) -> None:
        for part in re.split(r"([\r\n])", text):
            if part == "\n":
                self._emit(f"{self._line}\n")
                self._line = ""
            elif part == "\r":
                self._line = ""
            else:
                self._line += part
        if self._line:
            self._transient(self._line)

    def status(self, text: str) -> None:
        """Show a line that the next output replaces."""
        self._transient(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """End a line that was left open, so that what follows starts on its own."""
        self._emit(f"{self._line}\n" if self._line else "")
        self._line = ""

    def _transient(self, text: str) -> None:
        if self._terminal:
            self._emit(text[: shutil.get_terminal_size().columns - 1])
        elif time.monotonic() - self._shown >= LOG_INTERVAL:
            self._emit(f"{text}\n")

    def _emit(self, text: str) -> None:
        before = "\r\x1b[K" if self._terminal else self._prefix if text else ""
        self._stream.write(before + (text if self._terminal else strip_color(text)))
        self._stream.flush()
        self._shown = time.monotonic()


def known_parameters(notebook: Path) -> dict[str, str]:
    """Names in the notebook's parameters cell, each with the source text of its default.

    Raises:
        StudyError: the notebook cannot be read, or is none.
    """
    found = parameters.known(notebook)
    try:
        nbformat.validate(nbformat.read(notebook, as_version=4))
    except (ValueError, KeyError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(f"{notebook} is no notebook that can be run: {reason}") from error
    return found


def collect(known: dict[str, str], given: dict[str, Any], extra: list[str], shared: str = "") -> dict[str, Any]:
    """Parameters to hand to the notebook.

    Args:
        known: the notebook's parameters, from `known_parameters`.
        given: profile, model and the like; one that is empty or False is left out where the notebook has none such.
        extra: further ones as `name=value`.
        shared: parameters for several notebooks in one text; those that this one does not know are left out.

    Raises:
        StudyError: a name that the notebook does not know, or a value of another type than its default.
    """
    found = {name: value for name, value in given.items() if value or name in known}
    found |= parameters.taken(parameters.given(shared), known)
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals:
            raise StudyError(f"parameter {item!r} must be written name=value")
        found[name] = parameters.typed(name, text, known[name]) if name in known else text
    if unknown := [name for name in found if name not in known]:
        names = ", ".join(known) or "none (it has no parameters cell)"
        raise StudyError(f"unknown parameter {', '.join(unknown)}: the notebook knows {names}")
    return found


def check_output(notebook: Path, output: Path) -> None:
    """Raises StudyError where the executed copy, or that of a failed run, would overwrite what cannot be made anew."""
    for path in (output, _failed(output)):
        if path.is_dir():
            raise StudyError(f"{_shown(path)} is a folder: --output is the file that the executed copy goes to")
        if not os.path.lexists(path):
            continue
        if path.exists() and notebook.exists() and path.samefile(notebook):
            raise StudyError(f"{_shown(path)} is the notebook itself and would be overwritten: choose another --output")
        if not _is_executed(path):
            raise StudyError(f"{_shown(path)} is no executed copy and would be overwritten: choose another --output")


def _is_executed(path: Path) -> bool:
    """Whether a file is an executed copy of a notebook, or holds nothing."""
    try:
        return path.stat().st_size == 0 or "papermill" in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _failed(output: Path) -> Path:
    return output.with_suffix(".failed.ipynb")


def execute(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    echo: Echo,
    kernel: type[AsyncKernelManager] = ThisPython,
) -> None:
    """Run the notebook in a kernel of its own.

    `output` is there afterwards if and only if every cell succeeded, or the notebook found that it has nothing to
    measure on this model.

    A run that did not finish is left beside it as `<name>.failed.ipynb`.

    Raises:
        Unfinished: a cell failed, the kernel died, the disk is full or cannot be written; one line, but for an
            exception that is no StudyError, which brings its last lines.
        KeyboardInterrupt: the user stopped the run.
    """
    failed = _failed(output)
    started = time.time()
    cells = 0

    def count(cell_index: int, **_: Any) -> None:
        nonlocal cells
        cells = cell_index + 1
        echo.status(f"{notebook.stem}: cell {cells}")

    interrupts.interrupt()
    # Of a killed run nothing stays, and two runs of one notebook at once do not write into each other's copy.
    with cache.scratch_beside(output) as scratch:
        running = scratch / output.name
        try:
            output.unlink(missing_ok=True)
            failed.unlink(missing_ok=True)
            papermill.execute_notebook(
                _unformatted(notebook),
                _unformatted(running),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=echo,
                stderr_file=echo,
                cwd=notebook.parent,
                kernel_manager_class=kernel,
                # The kernel's own log says nothing of the notebook, and a page of it when a run is interrupted.
                extra_arguments=["--log-level=CRITICAL"],
                on_cell_start=count,
            )
            # The copy is as old as the start of the run: what was edited meanwhile is newer, and make runs it again.
            os.utime(running, (started, started))
            running.replace(output)
        except PapermillExecutionError as error:
            if error.ename == NotApplicable.__name__:
                echo.write(f"{notebook.stem}: left out: {error.evalue}\n")
                os.utime(running, (started, started))
                running.replace(output)
                return
            raise Unfinished(_reason(error) + _kept(running, failed)) from error
        except DeadKernelError as error:
            reason = f"the kernel died in cell {cells} (out of memory?)"
            raise Unfinished(reason + _kept(running, failed)) from error
        except OSError as error:
            raise Unfinished(_unwritten(output, error) + _kept(running, failed)) from error
        except KeyboardInterrupt:
            interrupts.hush()
            echo.close()
            typer.echo(f"{notebook.stem}: interrupted in cell {cells}" + _kept(running, failed), err=True)
            raise


def _unwritten(output: Path, error: OSError) -> str:
    return f"cannot write {_shown(output)}: {error.strerror or error}"


def _reason(error: PapermillExecutionError) -> str:
    """What went wrong in a cell: the message of a StudyError, else the last lines of the exception."""
    if error.ename in (StudyError.__name__, DoesNotFit.__name__):
        return error.evalue
    traceback = strip_color("\n".join(error.traceback)).splitlines()[-TRACEBACK_LINES:]
    place = f"cell {error.cell_index + 1} (In [{error.exec_count}]) failed"
    return "\n".join([f"{place} with {error.ename}", *(f"    {line}" for line in traceback)])


def _kept(running: Path, failed: Path) -> str:
    """Keep the partly executed copy under a name that cannot be taken for a finished one; says where it lies."""
    with suppress(OSError):
        running.replace(failed)
        return f"\n  partly executed copy: {_shown(failed)}"
    return ""


def _shown(path: Path) -> str:
    """The path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _unformatted(path: Path) -> str:
    """The path for papermill, which takes braces in it for format fields."""
    return str(path).replace("{", "{{").replace("}", "}}")


@app.command()
def main(
    notebook: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    output: Annotated[Path, typer.Option(help="Where its executed copy goes; made anew.")],
    profile: Annotated[str, typer.Option(help="smoke, embedded, paper, or a file ending in .toml.")] = "embedded",
    model: Annotated[str, typer.Option(help="Hub id or local folder; the profile's own if empty.")] = "",
    revision: Annotated[str, typer.Option(help="Hub revision of the model.")] = "",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value for the notebook's parameters cell.")
    ] = None,
    parameters_text: Annotated[
        str, typer.Option("--parameters", help="Several name=value; those that this notebook lacks are left out.")
    ] = "",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Exit with 0 also if it fails: run_summary says so, after the others.")
    ] = False,
) -> None:
    """Execute a notebook with parameters; exits with 1 and says why when it does not finish."""
    quieten()
    given = {"profile": profile, "model": model, "revision": revision, "trust_remote_code": trust_remote_code}
    if not run(notebook, output, given, Echo(sys.stderr), parameter or [], parameters_text, keep_going):
        raise typer.Exit(1)


def quieten() -> None:
    """In this process and its kernels: tqdm, imported by libraries, asks in every notebook for widgets that an executed
    copy could not show."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")


@flags.checked
def run(
    notebook: Path,
    output: Path,
    given: dict[str, Any],
    echo: Echo,
    parameter: Sequence[str] = (),
    parameters_text: str = "",
    keep_going: bool = False,
    kernel: type[AsyncKernelManager] = ThisPython,
) -> bool:
    """Execute a notebook; says when it starts and ends, or why it does not finish.

    Args:
        given: profile, model, revision and trust_remote_code.
        echo: where it says so, and what the cells print.
        parameter, parameters_text: as the command has them.
        keep_going: a failure is written down for `run_summary`.
        kernel: manages its kernel.

    Returns:
        Whether it finished, or failed and that was written down.
    """
    os.environ["LAYER_REDUNDANCY_NOTEBOOK"] = notebook.stem  # the store's log of sweeps names it
    # Resolved before anything runs: papermill changes the working directory.
    notebook, output = notebook.absolute(), output.absolute()
    reason = run_summary.reason_file(output)
    try:
        check_output(notebook, output)
        model = absolute_model(given["model"])
        profile = profiles.absolute_profile(given["profile"])
        profiles.get(profile, model=model, revision=given["revision"])
        resolved = given | {"profile": profile, "model": model}
        chosen = collect(known_parameters(notebook), resolved, list(parameter), parameters_text)
        chosen = placed(chosen, model)
        started = time.monotonic()
        echo.write(f"{notebook.stem}: started ({', '.join(f'{k}={v}' for k, v in chosen.items() if v)})\n")
        execute(notebook, output, chosen, echo, kernel)
    except (StudyError, Unfinished) as error:
        echo.close()
        typer.echo(f"{notebook.stem}: {error}", err=True)
        return keep_going and run_summary.note(reason, str(error))
    reason.unlink(missing_ok=True)
    echo.write(f"{notebook.stem}: finished in {time.monotonic() - started:.0f} s\n")
    return True


if __name__ == "__main__":
    doors.entered(doors.COMMAND)
    app()
