"""`make rehearse`: the paper profile in small, from downloads to figures, without the hub and without a GPU.

Tiny random models and made-up data lie under the real names on a server of this machine that speaks the hub's protocol.
They are prefetched from it and planned; then the server is closed, and every notebook runs on every model that the
profile has for it, with the hub offline. What ran is set against what was planned. The numbers mean nothing: what is
rehearsed is everything but the weights.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from rehearsal import local_hub, made_up_data, tiny_models

PROFILE = "rehearsal"
FOLDER = paths.ROOT / "build" / "rehearsal"
TOLERANCE = 0.25  # of the block-tokens that were planned

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def runs(notebooks: Sequence[str]) -> list[list[tuple[str, Path]]]:
    """What is run: for each model of the profile, (model, notebook) in order; "" for the profile's own model.

    Args:
        notebooks: numbers; all if empty.
    """
    profile = profiles.PROFILES[PROFILE]
    files = {path.name[:2]: path for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))}
    if unknown := set(notebooks) - set(files):
        raise StudyError(f"no notebook {' '.join(sorted(unknown))}: choose from {' '.join(files)}")
    chosen = {"": tuple(files)} | {further.model: further.notebooks for further in profile.further}
    wanted = [[(model, files[n]) for n in own if not notebooks or n in notebooks] for model, own in chosen.items()]
    return [of_model for of_model in wanted if of_model]


def _environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables of every process: nothing of the user's caches, results or figures is touched."""
    ours = {
        "LAYER_REDUNDANCY_WORK": str(folder),
        "HF_HOME": str(folder / "hub_cache"),
        "HF_TOKEN": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",  # tiny models gain nothing from threads
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | ours | more


def _call(module: str, *arguments: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"layer_redundancy.{module}", *arguments],
        env=environment, cwd=paths.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise StudyError(f"{module} {' '.join(arguments)} failed: " + "\n".join(last[-25:]))


def _output(model: str, notebook: Path, folder: Path) -> Path:
    profile = profiles.get(PROFILE, model=model)
    return folder / "data" / "runs" / profiles.artifact_folder(profile) / notebook.name


def _run(of_model: list[tuple[str, Path]], folder: Path) -> list[tuple[str, str, float]]:
    """One model's notebooks, in order; (model, notebook, seconds) of each."""
    spent = []
    for model, notebook in of_model:
        begin, output = time.monotonic(), _output(model, notebook, folder)
        arguments = [str(notebook), "--output", str(output), "--profile", PROFILE, "--model", model]
        _call("run_notebook", *arguments, environment=_environment(folder, HF_HUB_OFFLINE="1"))
        seconds = time.monotonic() - begin
        name = model or profiles.PROFILES[PROFILE].model
        spent.append((name, notebook.name[:2], seconds))
        print(f"{notebook.stem} on {name}: {seconds:.0f} s", flush=True)
    return spent


def compare(planned: pd.DataFrame, swept: Sequence[dict]) -> pd.DataFrame:
    """Block-tokens of sweeps that were planned, against those that ran.

    Args:
        planned: the table of `make plan`.
        swept: `Store.sweeps`.

    Returns:
        One row a notebook: notebook, planned_naive, ran_naive, planned, ran (shared), ratio (ran over planned).
    """
    columns = ["block_tokens_naive", "block_tokens_shared"]
    ran = pd.DataFrame(swept, columns=["notebook", *columns])  # notebook 12 sweeps nothing
    ran = ran.assign(notebook=ran["notebook"].astype(str).str[:2]).groupby("notebook")[columns].sum()
    planned = planned.assign(notebook=[f"{int(n):02}" for n in planned["notebook"]]).groupby("notebook")
    planned = planned[["block_tokens_naive", "block_tokens"]].sum()
    planned.columns, ran.columns = ["planned_naive", "planned"], ["ran_naive", "ran"]
    both = planned.join(ran, how="outer").fillna(0)
    both = both[(both["planned"] > 0) | (both["ran"] > 0)]
    return both.assign(ratio=both["ran"] / both["planned"]).reset_index()


def rehearse(notebooks: Sequence[str] = (), folder: Path = FOLDER) -> pd.DataFrame:
    """Runs all of it; returns `compare`'s table.

    Raises:
        StudyError: something failed, in the words of what failed; a figure is missing; or what ran is not what was
            planned.
    """
    todo = runs(notebooks)
    shutil.rmtree(folder, ignore_errors=True)
    hub_root = folder / "hub"
    tiny_models.write(hub_root)
    made_up_data.write(hub_root)
    with local_hub.LocalHub(hub_root) as server:
        online = _environment(folder, **server.environment)
        _call("planning.downloads", PROFILE, environment=online)
        print(f"prefetched with {len(server.requests)} requests, {server.bodies / 1e6:.1f} MB", flush=True)
        _call("planning.estimate", PROFILE, "--alone", "--notebooks", " ".join(notebooks), environment=online)
    planned = pd.read_csv(folder / "data" / "results" / f"plan-{PROFILE}.csv", dtype={"notebook": str})
    # Longest first, two models at a time: each has its own folder, and they share nothing in the store.
    todo.sort(key=len, reverse=True)
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(_run, of_model, folder) for of_model in todo]:
            done.result()
    for model, notebook in (run for of_model in todo for run in of_model):
        figures = folder / "figures" / profiles.artifact_folder(profiles.get(PROFILE, model=model))
        if not _output(model, notebook, folder).is_file() or not any(figures.glob("*.png")):
            raise StudyError(f"{notebook.name} on {model or 'the main model'} left no figure in {figures}")
    with Store(folder / "data" / "results" / "results.sqlite") as store:
        return compare(planned, store.sweeps())


@app.command()
def main(notebooks: Annotated[str, typer.Option(help="only these, by number")] = "") -> None:
    """Rehearses the paper profile with tiny random models and made-up data."""
    begin = time.monotonic()
    try:
        table = rehearse([n.zfill(2) for n in notebooks.split()])
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
        total = table["ran"].sum() / table["planned"].sum() if len(table) else 1.0
        if abs(total - 1) > TOLERANCE:
            raise StudyError(f"block-tokens that ran are {total:.2f} of those planned: workload.py is out of date")
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"the rehearsal went well, in {time.monotonic() - begin:.0f} s; block-tokens: {total:.2f} of those planned")


if __name__ == "__main__":
    app()
