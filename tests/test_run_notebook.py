"""The notebook runner, on tiny notebooks with real kernels."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from layer_redundancy import run_notebook
from layer_redundancy.config import parameters
from layer_redundancy.config.run_folder import absolute_model
from layer_redundancy.core.errors import StudyError

PARAMETERS = """\
profile = "embedded"
model = ""
revision = ""  # of the model
trust_remote_code = False
share = 0.5
"""
EARLIER = '{"cells": [], "metadata": {"papermill": {}}}'  # what an earlier run left under the finished name
MODULE = [sys.executable, "-m", "layer_redundancy.run_notebook"]


def write_notebook(folder: Path, *cells: str, parameters: str = PARAMETERS, kernel: str = "python3") -> Path:
    """A notebook with a parameters cell and these code cells, as JupyterLab would save it."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    spec = {"name": kernel, "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[tagged, *map(new_code_cell, cells)], metadata={"kernelspec": spec})
    path = folder / "study.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture(autouse=True)
def own_warnings(monkeypatch):
    """The command sets this for its kernels, and `run` calls it in the process of the tests."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")


def run(notebook: Path, *options: str):
    """Run the command in this process; its output goes to `<folder>/out/study.ipynb`."""
    arguments = [str(notebook), "--output", str(output_of(notebook)), *options]
    return CliRunner().invoke(run_notebook.app, arguments)


def output_of(notebook: Path) -> Path:
    return notebook.parent / "out" / "study.ipynb"


def failed_copy(notebook: Path) -> Path:
    return notebook.parent / "out" / "study.failed.ipynb"


def printed(path: Path) -> str:
    """What the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


def test_a_good_notebook_ends_under_its_finished_name(tmp_path):
    notebook = write_notebook(tmp_path, "print(profile, repr(model), repr(revision), trust_remote_code, share)")
    options = ["--profile", "smoke", "--model", "org/name", "--revision", "12e5678", "--trust-remote-code"]
    result = run(notebook, *options, "-p", "share=1")
    assert result.exit_code == 0, result.output
    # A revision that looks like a number stays the text it is; a number takes the type of its default.
    assert printed(output_of(notebook)) == "smoke 'org/name' '12e5678' True 1.0\n"
    assert [path.name for path in output_of(notebook).parent.iterdir()] == ["study.ipynb"]


def test_a_notebook_with_nothing_to_say_is_done(tmp_path):
    notebook = write_notebook(
        tmp_path,
        "from layer_redundancy.core.errors import NotApplicable\nraise NotApplicable('no heads')",
        "print('never')",
    )
    result = run(notebook)
    assert result.exit_code == 0 and "left out: no heads" in result.output
    assert output_of(notebook).exists() and not failed_copy(notebook).exists()
    assert "never" not in printed(output_of(notebook))


def test_the_kernel_is_this_python_and_the_callers_folder_decides_nothing(tmp_path):
    notebook = write_notebook(tmp_path, "import os, sys; print(sys.executable, os.getcwd())")
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["no-such-python"], "display_name": "x", "language": "python"}')
    caller = tmp_path / "elsewhere"
    caller.mkdir()
    environment = os.environ | {"JUPYTER_PATH": str(tmp_path / "jupyter"), "PATH": os.defpath}
    command = [*MODULE, "../study.ipynb", "--output", "../out/study.ipynb", "--profile", "smoke"]
    done = subprocess.run(command, cwd=caller, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed(output_of(notebook)) == f"{sys.executable} {tmp_path}\n"
    assert f"{sys.executable} {tmp_path}" in done.stderr, "what a cell prints is passed on"


def test_a_finished_copy_is_as_old_as_the_start_of_the_run(tmp_path):
    """What is edited while a notebook runs must be newer than its executed copy, or make would not run it again."""
    edited = "import pathlib; pathlib.Path('edited').touch()"
    notebook = write_notebook(tmp_path, edited)
    assert run(notebook).exit_code == 0
    assert output_of(notebook).stat().st_mtime < (tmp_path / "edited").stat().st_mtime


def test_a_failing_cell_leaves_no_finished_copy(tmp_path):
    notebook = write_notebook(tmp_path, "print('before')", "1 / 0", "print('after')")
    output_of(notebook).parent.mkdir()
    output_of(notebook).write_text(EARLIER)
    result = run(notebook)
    assert result.exit_code == 1
    assert not output_of(notebook).exists()
    assert printed(failed_copy(notebook)) == "before\n"
    # The second cell after the parameters; papermill puts a cell of its own between them.
    assert "cell 4 (In [4]) failed with ZeroDivisionError" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "partly executed copy: " in result.stderr and "study.failed.ipynb" in result.stderr


def test_a_users_mistake_in_a_notebook_is_told_without_a_traceback(tmp_path):
    cell = "from layer_redundancy.core.errors import StudyError\nraise StudyError('no such model: name another')"
    notebook = write_notebook(tmp_path, cell)
    result = run(notebook)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("study: started")
    assert lines[1] == "study: no such model: name another"
    assert lines[2].strip().startswith("partly executed copy: ")
    assert len(lines) == 3
    assert failed_copy(notebook).exists() and not output_of(notebook).exists()


def test_a_kernel_that_dies_is_reported(tmp_path):
    notebook = write_notebook(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    result = run(notebook)
    assert result.exit_code == 1
    assert "study: the kernel died in cell 3 (out of memory?)" in result.stderr
    assert "Traceback" not in result.stderr
    assert failed_copy(notebook).exists() and not output_of(notebook).exists()


def test_a_stopped_run_leaves_no_finished_copy(tmp_path):
    notebook = write_notebook(tmp_path, "import time; print('here', flush=True); time.sleep(600)")
    command = [*MODULE, str(notebook), "--output", str(output_of(notebook))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "here" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "study: interrupted in cell 3" in rest
    assert [path.name for path in output_of(notebook).parent.iterdir()] == ["study.failed.ipynb"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--profile", "huge"],
            "unknown profile 'huge': choose one of smoke, embedded, paper, or a file ending in .toml",
        ),
        (["--revision", "main"], "revision 'main' was given without a model: give model= too"),
        (
            ["-p", "shares=1"],
            "unknown parameter shares: the notebook knows profile, model, revision, trust_remote_code, share",
        ),
        (["-p", "share=much"], "parameter share=much must be of type float, as its default 0.5 is"),
        (["-p", "share"], "parameter 'share' must be written name=value"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_harms_nothing(tmp_path, options, message):
    notebook = write_notebook(tmp_path)
    output_of(notebook).parent.mkdir()
    output_of(notebook).write_text(EARLIER)
    result = run(notebook, *options)
    assert result.exit_code == 1
    assert result.stderr == f"study: {message}\n"
    assert output_of(notebook).read_text() == EARLIER


def test_a_notebook_without_the_parameter_refuses_a_value_for_it(tmp_path):
    notebook = write_notebook(tmp_path, parameters="profile = 'smoke'")
    result = run(notebook, "--model", "org/name")
    assert result.stderr == "study: unknown parameter model: the notebook knows profile\n"


def test_what_is_no_notebook_is_one_line(tmp_path):
    missing = run(tmp_path / "study.ipynb")
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    assert "cannot read" in missing.stderr
    (tmp_path / "study.ipynb").write_text("no JSON")
    broken = run(tmp_path / "study.ipynb")
    assert (broken.exit_code, broken.stderr.count("\n")) == (1, 1)
    assert "is no notebook that can be run" in broken.stderr


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    notebook = write_notebook(tmp_path)
    (tmp_path / "out").write_text("a file where the folder should be")
    result = run(notebook)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [f"study: cannot write {output_of(notebook)}: File exists"]


def test_a_full_disk_is_one_line(tmp_path):
    notebook = write_notebook(tmp_path, "print('x' * 1_000_000)")
    limit = "ulimit -f 100; exec "  # no file may grow beyond 100 blocks, which is as good as no room
    command = [*MODULE, str(notebook), "--output", str(output_of(notebook))]
    done = subprocess.run(["bash", "-c", limit + '"$@"', "bash", *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"study: cannot write {output_of(notebook)}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not output_of(notebook).exists()


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [("1e3", "'text'", "1e3"), ("3", "1", 3), ("3", "1.0", 3.0), ("True", "False", True), ("None", "None", None)],
)
def test_a_parameter_takes_the_type_of_its_default(text, default, value):
    result = parameters.typed("name", text, default)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(("text", "default"), [("1", "False"), ("yes", "False"), ("1.5", "1"), ("True", "1")])
def test_a_parameter_of_another_type_is_refused(text, default):
    with pytest.raises(StudyError, match=f"name={text} must be of type"):
        parameters.typed("name", text, default)


def test_a_local_model_is_told_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_model("mine") == str(tmp_path / "mine")
    assert absolute_model("org/name") == "org/name"
    assert absolute_model("") == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(echo: run_notebook.Echo, steps: int) -> None:
    for step in range(steps):
        echo.write(f"\r{step}/{steps - 1}")
    echo.write("\n")


def test_a_log_gets_few_states_of_a_progress_bar(monkeypatch):
    clock = iter(range(10_000))  # a second passes at each look
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    log = io.StringIO()
    echo = run_notebook.Echo(log)
    echo.write("start\n")
    progress(echo, 100)
    echo.write("end\n")
    lines = log.getvalue().splitlines()
    assert (lines[0], lines[-2:]) == ("start", ["99/99", "end"])
    assert 4 <= len(lines) <= 7


def test_a_terminal_sees_every_state_within_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "10")
    terminal = Terminal()
    echo = run_notebook.Echo(terminal)
    echo.write("\r" + "x" * 50)
    progress(echo, 3)
    states = terminal.getvalue().split("\r\x1b[K")[1:]
    assert states == ["x" * 19, "0/2", "1/2", "2/2", "2/2\n"]


def test_a_line_that_was_left_open_is_ended():
    log = io.StringIO()
    echo = run_notebook.Echo(log)
    echo.write("half")
    echo.close()
    assert log.getvalue() == "half\n"
