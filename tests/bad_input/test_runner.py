"""The runner of notebooks: what it may overwrite, and what it says of a notebook that failed."""

import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

import one_line
from layer_redundancy import run_notebook, run_summary
from layer_redundancy.core import doors
from layer_redundancy.core.errors import StudyError
from test_run_notebook import EARLIER, printed, write_notebook


@pytest.fixture(autouse=True)
def by_the_command(monkeypatch):
    monkeypatch.setenv(doors.VARIABLE, doors.COMMAND)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")


def run(notebook: Path, output: Path | str, *options: str):
    return CliRunner().invoke(
        run_notebook.app, [str(notebook), "--output", str(output), "--profile", "smoke", *options]
    )


@pytest.fixture
def notebook(tmp_path) -> Path:
    """A notebook with links to it, and what else may lie beside it."""
    book = write_notebook(tmp_path, "print('here')")
    (tmp_path / "link.ipynb").symlink_to(book)
    (tmp_path / "hard.ipynb").hardlink_to(book)
    (tmp_path / "linked").symlink_to(tmp_path)
    (tmp_path / "folder.ipynb").mkdir()
    (tmp_path / "dangling.ipynb").symlink_to("nowhere")
    for name, text in {
        "other.ipynb": '{"cells": [], "metadata": {}}',
        "notes.txt": "mine",
        "list.ipynb": "[1]",
        "none.ipynb": '{"metadata": 3}',
        "bytes.ipynb": "\udcff",
        "a.failed.ipynb": "mine",
        "executed.ipynb": EARLIER,
        "empty.ipynb": "",
        "b.failed.ipynb": EARLIER,
    }.items():
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    return book


REFUSED = {
    "the notebook itself": ("study.ipynb", "study.ipynb is the notebook itself and would be overwritten"),
    "itself by a link": ("link.ipynb", "link.ipynb is the notebook itself"),
    "itself by a second name": ("hard.ipynb", "hard.ipynb is the notebook itself"),
    "itself by a detour": ("folder.ipynb/../study.ipynb", "is the notebook itself"),
    "itself by a linked folder": ("linked/study.ipynb", "is the notebook itself"),
    "a folder": ("folder.ipynb", "is a folder: --output is the file that the executed copy goes to"),
    "another notebook": ("other.ipynb", "other.ipynb is no executed copy and would be overwritten"),
    "a text": ("notes.txt", "notes.txt is no executed copy"),
    "JSON of something else": ("list.ipynb", "is no executed copy"),
    "JSON that is almost a notebook": ("none.ipynb", "is no executed copy"),
    "bytes that are no text": ("bytes.ipynb", "is no executed copy"),
    "a link to nothing": ("dangling.ipynb", "is no executed copy"),
    "beside a text of the name of a failed copy": ("a.ipynb", "a.failed.ipynb is no executed copy"),
}


@pytest.mark.parametrize(("output", "words"), REFUSED.values(), ids=REFUSED)
def test_nothing_of_the_users_is_overwritten(notebook, output, words):
    before = {path: path.read_bytes() for path in notebook.parent.iterdir() if path.is_file()}
    assert words in one_line.refusal(lambda: run_notebook.check_output(notebook, notebook.parent / output))
    result = run(notebook, notebook.parent / output)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and words in result.stderr
    assert {path: path.read_bytes() for path in notebook.parent.iterdir() if path.is_file()} == before


def test_a_failed_copy_is_not_run_into_its_own_place(notebook):
    failed = notebook.rename(notebook.with_name("study.failed.ipynb"))
    line = one_line.refusal(lambda: run_notebook.check_output(failed, failed.with_name("study.ipynb")))
    assert "study.failed.ipynb is the notebook itself" in line


@pytest.mark.parametrize("output", ["new.ipynb", "new/below/new.ipynb", "executed.ipynb", "empty.ipynb", "b.ipynb"])
def test_what_was_executed_is_made_anew(notebook, output):
    run_notebook.check_output(notebook, notebook.parent / output)


@pytest.mark.parametrize("output", ["notes.txt/study.ipynb", "x" * 300 + ".ipynb"])
def test_a_place_that_cannot_be_written_is_one_line(notebook, output):
    with pytest.raises((StudyError, run_notebook.Unfinished)) as caught:
        run_notebook.execute(notebook, notebook.parent / output, {}, run_notebook.Echo(io.StringIO()))
    assert str(caught.value).startswith("cannot write ") and "\n" not in str(caught.value)


MISTAKES = {
    "a model that is not given": (["--revision", "v1"], "give --model too"),
    "a parameter twice": (["--parameters", "share=.1 share=.2"], "parameter share is given twice"),
    "a parameter that is an option": (["--parameters", "model=org/name"], "parameter model is set by --model"),
    "an endless number": (["-p", "share=1e999"], "parameter share=1e999 must be a finite number"),
    "a profile in nobody's home": (["--profile", "~nobody-here/x.toml"], "no home folder of ~nobody-here"),
    "an export to what is there": (["-p", "export_to=out"], "out exists: choose another folder"),
    "an export below a file": (["-p", "export_to=study.ipynb/x"], "it would lie in a file"),
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    notebook = write_notebook(
        tmp_path, parameters='profile = ""\nmodel = ""\nrevision = ""\nshare = 0.5\nexport_to: str = ""'
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.ipynb").write_text(EARLIER)
    result = run(notebook, "out/study.ipynb", *options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and words in result.stderr
    assert (tmp_path / "out" / "study.ipynb").read_text() == EARLIER


def test_a_default_that_is_computed_takes_no_value(tmp_path):
    notebook = write_notebook(tmp_path, parameters='profile = ""\nlimit = 2 * x')
    assert "parameter limit has no value of its own" in run(notebook, tmp_path / "o.ipynb", "-p", "limit=3").stderr


@pytest.mark.slow
def test_a_notebook_that_fails_is_noted_for_the_summary(tmp_path):
    notebook, output = write_notebook(tmp_path, "1 / 0"), tmp_path / "data" / "runs" / "smoke" / "study.ipynb"
    assert run(notebook, output, "--keep-going").exit_code == 0
    lines, good = run_summary.summary([output])
    why = "cell 3 (In [3]) failed with ZeroDivisionError: division by zero"
    assert (lines[-1], good) == (f"0 of 1 notebooks finished; failed: study ({why})", False)
    write_notebook(tmp_path, "print('now')")
    assert run(notebook, output, "--keep-going").exit_code == 0
    assert run_summary.summary([output])[0][-1] == "1 of 1 notebooks finished"
    # What is there of an earlier run is no finished one.
    assert run(notebook, output, "--keep-going", "--revision", "v1").exit_code == 0
    assert "study (revision 'v1' was given without a model" in run_summary.summary([output])[0][-1]


def test_a_summary_names_what_never_ran(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/runs/paper/01.ipynb", "data/runs/paper/org--one/01.ipynb"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    runs = [*map(str, Path().rglob("*.ipynb")), "data/runs/paper/org--one/02.ipynb"]
    assert run_summary.main(*sorted(runs)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Figures and tables: figures/paper/   executed notebooks: data/runs/paper/",
        "Figures and tables: figures/paper/org--one/   executed notebooks: data/runs/paper/org--one/",
        "2 of 3 notebooks finished; failed: org--one/02 (it was stopped)",
    ]


@pytest.mark.slow
def test_an_export_starts_where_the_user_is(tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path, "print(export_to)", parameters='profile = ""\nexport_to = ""')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(notebook, tmp_path / "o.ipynb", "--parameters", "export_to=new").exit_code == 0
    assert printed(tmp_path / "o.ipynb") == f"{tmp_path}/here/new\n"
