"""`make bench-notebooks`: where the time of every notebook goes, from an empty store; results go to figures/bench/.

Each kernel looks at its own stack fifty times a second (`core.sampling`). What is found there says what it is at: code
of the model's blocks, of its head, of a training, of matplotlib, and so on. Linux only, where kernels are forks.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

from benchmarks import empty_store
from layer_redundancy import run_notebooks
from layer_redundancy.config.notebooks import chosen_notebooks, number
from layer_redundancy.core import paths, sampling
from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures import saving, table_pictures
from layer_redundancy.figures.parts import legend_above
from layer_redundancy.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, styled

# Kind of work -> its colour, and patterns of places (file:function); the first kind of which a place in the stack fits
# one is what is done. A pattern that begins with ^ is looked for in the innermost place alone.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "starting": (GREY, (r"<frozen importlib", r"/kernelapp\.py:initialize")),
    "waiting": ("#cccccc", (r"^.*/evaluate/sweep\.py:run$", r"^.*/core/(store|cache|waiting)\.py:_?(patiently|wait)")),
    "drawing": (SKY, (r"/matplotlib/", r"/seaborn/", r"/layer_redundancy/figures/")),
    "quantizing": (PURPLE, (r"/models/quantize\.py:", r"/llmcompressor/")),
    "training": (ORANGE, (r"/layer_redundancy/train/",)),
    "loading": (
        GREEN,
        (r"/models/(loading|checkpoints|smollm2|weight_files|provenance|packing)\.py:", r"/layer_redundancy/data/"),
    ),
    "head": (VERMILLION, (r"/evaluate/scoring\.py:", r"/models/stack\.py:logits")),
    "blocks": (BLUE, (r"/models/stack\.py:", r"/evaluate/batches\.py:", r"/transformers/", r"/torch/nn/")),
    "other": (BLACK, (r"",)),
}
IDLE = re.compile(r"/selectors\.py:select$")  # between two cells

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def kind(stack: str) -> str | None:
    """What is done at places of a stack, outermost first, with semicolons between them; None between two cells."""
    innermost = stack.rpartition(";")[2]
    if IDLE.search(innermost):
        return None
    return next(
        name
        for name, (_, patterns) in KINDS.items()
        if any(re.search(pattern, innermost if pattern.startswith("^") else stack) for pattern in patterns)
    )


def seconds_by_kind(file: Path) -> dict[str, float]:
    """What `core.sampling` wrote of a process, as seconds of every kind of work."""
    spent = Counter(dict.fromkeys(KINDS, 0))
    for line in file.read_text(encoding="utf-8").splitlines():
        stack, _, milliseconds = line.rpartition(" ")
        found = kind(stack)
        if found is not None:
            spent[found] += int(milliseconds)
    return {name: milliseconds / 1000 for name, milliseconds in spent.items()}


def measure(profile: str, notebooks: list[Path], jobs: int | None = None) -> tuple[pd.DataFrame, float]:
    """Executes notebooks from an empty store.

    Args:
        profile: the profile.
        notebooks: which.
        jobs: how many at a time; by the machine if not given.

    Returns:
        One row a notebook: notebook (its name), seconds (of its kernel's main thread) and those of each of `KINDS`; and
        the seconds by the clock of all together.

    Raises:
        StudyError: a notebook failed; kernels are not forks here.
    """
    if not run_notebooks.FORKS:
        raise StudyError("kernels are watched on Linux only")
    with empty_store.work_folder() as (folder, environment):
        samples = folder / "samples"
        runs = [f"{notebook}:{folder / 'data' / 'runs' / notebook.name}:" for notebook in notebooks]
        command = [sys.executable, "-m", "layer_redundancy.run_notebooks", "--profile", profile]
        command += ["--jobs", str(jobs)] if jobs else []
        environment[sampling.VARIABLE] = str(samples)
        started = time.monotonic()
        done = subprocess.run([*command, *runs], env=environment, cwd=paths.ROOT)
        spent = time.monotonic() - started
        if done.returncode:
            raise StudyError("not every notebook finished, as the lines above say")
        rows = []
        for notebook in notebooks:
            of_kinds = seconds_by_kind(samples / f"{notebook.stem}.txt")
            rows.append({"notebook": notebook.stem, "seconds": sum(of_kinds.values())} | of_kinds)
    return pd.DataFrame(rows), spent


@styled
def time_by_kind(rows: pd.DataFrame) -> Figure:
    """Seconds of every notebook, by kind of work.

    Args:
        rows: as `measure` gives them.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.32 * len(rows)), layout="constrained")
    y, left = np.arange(len(rows))[::-1], np.zeros(len(rows))
    for name, (colour, _) in KINDS.items():
        if rows[name].any():
            axes.barh(y, rows[name], 0.7, left=left, color=colour, label=name)
            left += rows[name].to_numpy()
    axes.set_yticks(y, [number(Path(notebook)) for notebook in rows["notebook"]])
    axes.set_xlabel("seconds of its main thread")
    axes.set_ylabel("notebook")
    axes.grid(axis="y", visible=False)
    legend_above(axes)
    return figure


@app.command()
def main(
    profile: Annotated[str, typer.Option(help="The profile.")] = "embedded",
    notebooks: Annotated[str, typer.Option(help="Only these, by number or name.")] = "",
    jobs: Annotated[int | None, typer.Option(help="How many at a time; by the machine if not given.")] = None,
) -> None:
    """Executes notebooks from an empty store and writes down where their time went."""
    try:
        table, seconds = measure(profile, chosen_notebooks(notebooks), jobs)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    device = os.environ.get("LAYER_REDUNDANCY_DEVICE") or "cpu"
    name = f"notebooks_{Path(profile).stem}_{device}"
    several = f"{jobs} at a time" if jobs else "several at a time, as the machine is good for"
    note = (
        f"Profile {profile}, from an empty store with downloads at hand, {several}, device {device}: {seconds:.0f} s "
        "by the clock, with what is imported once for all. From 50 looks a second at each kernel's main thread"
    )
    folder = paths.FIGURES / "bench"
    saving.save(time_by_kind(table), table, folder, name, note)
    whole = pd.DataFrame([{"notebook": "all"} | table.drop(columns="notebook").sum().to_dict()])
    table_pictures.save_table(pd.concat([table, whole], ignore_index=True).round(1), folder, f"{name}_table", note)
    print(pd.concat([table, whole]).to_string(index=False, float_format="{:.1f}".format))
    print(f"{seconds:.0f} s by the clock; figures and tables: {os.path.relpath(folder)}/")


if __name__ == "__main__":
    app()
