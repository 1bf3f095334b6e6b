"""Several notebooks at once, on tiny ones with real kernels that are forks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from children import as_at_a_terminal
from layer_redundancy import run_notebooks, run_summary
from test_run_notebook import printed, write_notebook

MODULE = [sys.executable, "-m", "layer_redundancy.run_notebooks", "--profile", "smoke", "--keep-going"]
forks = pytest.mark.skipif(not run_notebooks.FORKS, reason="kernels are forks on Linux only")


def started(folder: Path, *cells: tuple[str, ...], jobs: int = 2) -> tuple[subprocess.Popen, list[Path]]:
    """Executes notebooks of these cells, called 91, 92 and so on; the process, and where their copies go."""
    words, copies = [], []
    for place, code in enumerate(cells, 1):
        (folder / f"{place}").mkdir()
        notebook = write_notebook(folder / f"{place}", *code).rename(folder / f"9{place}_study.ipynb")
        copies.append(folder / "out" / notebook.name)
        words.append(f"{notebook}:{copies[-1]}:")
    return subprocess.Popen(
        [*MODULE, "--jobs", str(jobs), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=as_at_a_terminal,
    ), copies


def test_each_has_a_kernel_of_its_own_and_one_that_fails_or_dies_stops_no_other(tmp_path):
    about = "import os, sys, threading; print('torch' in sys.modules, threading.active_count() < 20, os.getcwd())"
    process, (good, failing, dying) = started(
        tmp_path,
        ("left = 1", f"{about}; print(os.environ['LAYER_REDUNDANCY_NOTEBOOK'], left, 'x' in globals())"),
        ("x = 1", "1 / 0"),
        ("x = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    )
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert printed(good) == f"False True {tmp_path}\n91_study 1 False\n"
    assert f"91 | False True {tmp_path}\n91 | 91_study 1 False\n" in said and "91 | 91_study: finished in" in said
    assert "92_study: cell 4 (In [4]) failed with ZeroDivisionError" in said
    assert "93_study: the kernel died in cell 4 (out of memory?)" in said
    assert not failing.exists() and not dying.exists()
    assert "ZeroDivisionError" in run_summary.reason_file(failing).read_text()


@forks
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_stops_what_it_started_and_keeps_what_is_finished(tmp_path, how):
    waits = "import os, time; print('kernel', os.getpid(), flush=True); time.sleep(600)"
    process, (first, second, _) = started(tmp_path, ("1",), (waits,), (waits,))
    kernels = []
    while len(kernels) < 2:
        line = process.stderr.readline()
        assert line, process.wait()
        kernels += [int(line.split()[-1])] if "kernel" in line else []
    assert first.exists()
    begun = psutil.Process(process.pid).children(recursive=True)
    assert set(kernels) <= {one.pid for one in begun}
    process.send_signal(how)
    said = process.stderr.read()
    process.wait(timeout=60)
    _, left = psutil.wait_procs(begun, timeout=30)
    assert not left
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert "92_study: interrupted in cell 3" in said and "93_study: interrupted in cell 3" in said
    assert first.exists() and not second.exists() and second.with_suffix(".failed.ipynb").exists()


@forks
def test_one_that_is_killed_takes_its_kernel_with_it_and_no_other(tmp_path):
    waits = "import os, time; print('kernel', os.getpid(), os.getppid(), flush=True); time.sleep(600)"
    process, (_, other) = started(tmp_path, (waits,), ("import time; time.sleep(3)",))
    while "kernel" not in (line := process.stderr.readline()):
        assert line, process.wait()
    kernel, runner = map(int, line.split()[-2:])
    kernel = psutil.Process(kernel)
    os.kill(runner, signal.SIGKILL)
    said = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "92_study: finished" in said and other.exists()
    assert psutil.wait_procs([kernel], timeout=10)[0]


@pytest.mark.parametrize(
    ("cores", "given", "chosen"),
    [
        (1, {}, (1, 1)),
        (2, {}, (2, 1)),
        (2, {"runs": 1}, (1, 2)),
        (2, {"small": False}, (1, 2)),
        (2, {"jobs": 1}, (1, 2)),
        (2, {"threads": 2}, (1, 2)),
        (2, {"jobs": 3, "threads": 2}, (3, 2)),
        (4, {}, (2, 2)),
        (16, {}, (4, 4)),
        (16, {"threads": 1}, (4, 1)),
        (16, {"jobs": 8, "small": False}, (8, 2)),
    ],
)
def test_cores_decide_how_many_run_at_a_time_unless_the_user_does(monkeypatch, cores, given, chosen):
    monkeypatch.setattr(run_notebooks.processes, "cores", lambda: cores)
    monkeypatch.setattr(run_notebooks, "BYTES_EACH", 1)
    asked = {"runs": 12, "jobs": None, "threads": None, "small": True} | given
    assert run_notebooks.jobs_and_threads(**asked) == chosen
    monkeypatch.setattr(run_notebooks, "BYTES_EACH", psutil.virtual_memory().total)
    if asked["jobs"] is None:
        assert run_notebooks.jobs_and_threads(**asked)[0] == 1, "as many as memory holds"
