"""Executes notebooks, several at a time where that pays, each in processes of its own.

`python -m layer_redundancy.run_notebooks --profile smoke NOTEBOOK:COPY[:MODEL] ...`

Importing what the notebooks use takes longer than drawing what they found. It is done once here, and each notebook's
process and kernel are forks of this one, which computes nothing itself: no thread is lost, and no GPU was touched.
Where a process cannot be forked safely (anywhere but on Linux) each imports for itself.
"""

from layer_redundancy.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import ctypes
import gc
import importlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from layer_redundancy.config import cluster, profiles
from layer_redundancy.config.cluster import FROM_STORE
from layer_redundancy.config.notebooks import number
from layer_redundancy.core import doors, flags, processes
from layer_redundancy.core.errors import StudyError

FORKS = sys.platform == "linux"
context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")

# The order in which several at a time end soonest on the embedded profile: those that train and quantize take longest,
# and beside the longest run, one after the other, those that sweep the same texts and take over each other's results.
ORDER = ("13", "11", "04", "02", "03", "08", "12", "10", "07", "05", "06", "09", "01", "15")
SEVERAL = {2: 2, 8: 4}  # from so many cores on, so many notebooks at a time
KERNELS = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "pdb")  # what every kernel imports
# What the study's notebooks import later on, when they load a model.
MODELS = (
    "layer_redundancy.models.baichuan",
    "layer_redundancy.models.rwkv5",
    "transformers.models.llama.modeling_llama",
)
BYTES_EACH = 4 * 2**30  # what a notebook on the embedded model takes at most, and some


@dataclass(frozen=True)
class Run:
    """A notebook to execute, where its copy goes, and the model in the place of the profile's; "" for the profile's."""

    notebook: Path
    output: Path
    model: str = ""

    @classmethod
    def read(cls, text: str) -> "Run":
        """A run as the command line has it: notebook, copy and model with colons between them."""
        notebook, output, *model = text.split(":", maxsplit=2)
        return cls(Path(notebook), Path(output), *model)


# ---------------------------------------------------------------------------------------------------------------------
# How many at a time


@flags.checked
def jobs_and_threads(runs: int, jobs: int | None, threads: int | None, small: bool) -> tuple[int, int]:
    """Notebooks to execute at a time, and threads of each.

    Most of a notebook runs on one thread: Python, drawing, small operations. Two at a time keep two cores busier than
    two threads of one do.

    Args:
        runs: how many there are to execute.
        jobs, threads: what the user asked for; None to choose.
        small: whether it is known that the model takes no more than `BYTES_EACH`; others run one at a time.
    """
    cores = processes.cores()
    if jobs is None:
        jobs = max((most for least, most in SEVERAL.items() if cores >= least), default=1) if small else 1
        jobs = min(jobs, psutil.virtual_memory().available // BYTES_EACH, cores // (threads or 1))
    jobs = max(1, min(jobs, runs))
    return jobs, threads or max(1, cores // jobs)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def preload(notebooks: Sequence[Path]) -> None:
    """Imports what the notebooks and their kernels use.

    What cannot be imported here is left to the notebook, which says so.
    """
    from layer_redundancy import run_notebook

    run_notebook.quieten()
    warnings.filterwarnings("ignore", "IProgress not found")
    # As a kernel sets it before matplotlib is imported.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # Its debugger would warn of how this Python was started, which only a debugger minds.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # Asked without it whether there is a GPU, CUDA would start, and no fork could use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    stems = [notebook.stem.partition("_")[2] for notebook in notebooks]
    names = [name for name in stems if name.isidentifier()]
    of_notebooks = [f"layer_redundancy.{part}.{name}" for part in ("experiments", "figures") for name in names]
    ours = [name for name in of_notebooks if importlib.util.find_spec(name)]
    for name in (*KERNELS, *ours, *(MODELS if ours else ())):
        with suppress(ImportError, OSError, RuntimeError):
            importlib.import_module(name)


def execute(runs: Sequence[Run], jobs: int, options: argparse.Namespace) -> bool:
    """Executes notebooks, so many at a time, and returns whether all finished or failed and that was written down.

    A signal is passed on to all that run, and no other is begun.
    """
    waiting, running, good = list(runs), list[BaseProcess](), True
    if jobs > 1:
        waiting.sort(key=lambda run: ORDER.index(number(run.notebook)) if number(run.notebook) in ORDER else len(ORDER))
    interrupts.interrupt()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                arguments = (waiting.pop(0), jobs > 1, options)
                process = context.Process(target=_execute, args=arguments)
                process.start()
                running.append(process)
            wait([process.sentinel for process in running])
            for process in [one for one in running if not one.is_alive()]:
                running.remove(process)
                good = good and process.exitcode == 0
    except KeyboardInterrupt:
        interrupts.hush()
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        sys.exit(interrupts.STATUS)
    return good


def _execute(run: Run, among_others: bool, options: argparse.Namespace) -> None:
    """A process of one notebook; exits with 0 where it finished, or failed and that was written down."""
    interrupts.end_at_once()
    if FORKS:
        os.setpgid(0, 0)  # a signal of the terminal comes by way of the parent, and once
        _end_with_parent()
    from layer_redundancy import forked_kernel, run_notebook

    given = {
        "profile": options.profile,
        "model": run.model,
        "revision": options.revision,
        "trust_remote_code": options.trust_remote_code,
    }
    prefix = f"{number(run.notebook)} | " if among_others else ""
    echo = run_notebook.Echo(sys.stderr, prefix)
    with forked_kernel.forked() if FORKS and not _lost_gpu() else nullcontext(run_notebook.ThisPython) as kernel:
        try:
            good = run_notebook.run(
                run.notebook,
                run.output,
                given,
                echo,
                parameters_text=options.parameters,
                keep_going=options.keep_going,
                kernel=kernel,
            )
        except KeyboardInterrupt:
            sys.exit(interrupts.STATUS)
    sys.exit(0 if good else 1)


def _lost_gpu() -> bool:
    """Whether something asked CUDA before this process was forked: only a new process can use it then."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


def _end_with_parent() -> None:
    """Lets this process be interrupted when the one that started it dies, however it does."""
    parent_death_signal = 1  # sys/prctl.h: PR_SET_PDEATHSIG
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def measured(options: argparse.Namespace) -> int:
    """Has the notebooks' experiments measured by a process of its own, so that none of it is in those forked here.

    Returns:
        Its exit status: 0 if all were measured, 1 if some were not.
    """
    command = [sys.executable, "-m", "layer_redundancy.cluster.driver", "--profile", options.profile]
    command += ["--revision", options.revision, *(["--trust-remote-code"] if options.trust_remote_code else [])]
    command += ["--workers", options.workers] if options.workers else ["--scheduler", options.scheduler]
    command += ["--trust-network"] if options.trust_network else []
    command += [f"{run.notebook}:{run.output}:{run.model}" for run in options.runs]
    interrupts.interrupt()
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        interrupts.hush()
        process.terminate()
        process.wait()
        sys.exit(interrupts.STATUS)
    if status < 0:
        print(f"the driver was ended by signal {-status}: what was finished is stored; run again", file=sys.stderr)
        return interrupts.STATUS
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m layer_redundancy.run_notebooks", description="Executes notebooks.")
    parser.add_argument("runs", nargs="+", type=Run.read, metavar="NOTEBOOK:COPY[:MODEL]")
    parser.add_argument("--profile", default="embedded", help="smoke, embedded, paper, or a file ending in .toml")
    parser.add_argument("--revision", default="", help="hub revision of the model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    parser.add_argument("--parameters", default="", help="several name=value, for the notebooks that know them")
    parser.add_argument(
        "--keep-going", action="store_true", help="exit with 0 also where one fails, and run_summary says so"
    )
    parser.add_argument("--workers", default="", help="measure in so many processes of this machine, one a GPU")
    parser.add_argument("--scheduler", default="", help="measure on a Dask cluster: tcp://HOST:PORT or tls://HOST:PORT")
    parser.add_argument("--trust-network", action="store_true", help="go to a scheduler elsewhere without TLS")
    parser.add_argument("--jobs", type=int, help="how many at a time; by the machine if not given")
    return parser.parse_args()


def main() -> int:
    """Executes the notebooks that the command line names; the exit status."""
    options = _options()
    try:
        cluster.check_given(options.workers, options.scheduler, trust_network=options.trust_network)
        profile = profiles.get(options.profile, model=options.runs[0].model, revision=options.revision)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    if options.workers or options.scheduler:
        status = measured(options)
        if status and not (status == 1 and options.keep_going):
            return status
        os.environ[FROM_STORE] = "yes"
    threads = profile.threads or _whole(os.environ.get("OMP_NUM_THREADS", ""))
    small = not any(run.model for run in options.runs) and profile.model == profiles.EMBEDDED_MODEL
    jobs, threads = jobs_and_threads(len(options.runs), options.jobs, threads, small)
    # Before anything that computes is imported: libraries read it when they are loaded.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if jobs > 1:
        # GPTQ runs on two threads, and one that waits spins otherwise: on a crowded processor that took six times as
        # much of it as GPTQ itself.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if FORKS:
        preload([run.notebook for run in options.runs])
        gc.freeze()
    return 0 if execute(options.runs, jobs, options) else 1


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) else None


if __name__ == "__main__":
    doors.entered(doors.COMMAND)
    sys.exit(main())
