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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.core.wording import counted
from rehearsal import local_hub, made_up_data, tiny_models

PROFILE = str(Path(__file__).with_name("rehearsal.toml"))
FOLDER = paths.ROOT / "build" / "rehearsal"
# What ready GPTQ checkpoints take, as `make rehearse` installs it: apart from what users run in, and for those runs
# alone that ask whether it is there.
GPTQ_PACKAGES = paths.ROOT / "build" / "gptq"
GPTQ_NOTEBOOK = "07"
# Block-tokens that ran over those planned. Before a run, lengths of few items are those of the average item, and how
# many variants of orders of removal are distinct only a model can say: that moves sweeps, and what notebooks 10 and 11
# train; and how deep the best runs of notebook 13 lie, whose maps are fitted once more. Notebook 12's texts are as long
# as the average text. Whether a block makes the first token large (notebook 02) only a model can say too: the plan has
# one.
BEFORE = {"sweep": (0.6, 1.4)} | dict.fromkeys(("training", "quantization", "pass"), (1.0, 1.0))
ROUGH = {(notebook, kind): BEFORE["sweep"] for notebook in ("10", "11", "12") for kind in ("training", "pass")}
ROUGH["02", "pass"] = (0.0, 1.0)
ROUGH["13", "pass"] = BEFORE["sweep"]
# Once orders are known it is known to the token, but for the order of quantized models' own importance (notebook 07).
AFTER = dict.fromkeys(BEFORE, (1.0, 1.0))
QUANTIZED = {("07", "sweep"): BEFORE["sweep"]}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def runs(notebooks: Sequence[str]) -> list[list[tuple[str, Path]]]:
    """What is run: for each model of the profile, (model, notebook) in order; "" for the profile's own model.

    Last, and when all others have run, comes the notebook that compares them.

    Args:
        notebooks: numbers of the notebooks; all if empty.
    """
    profile = profiles.load(PROFILE)
    files = {path.name[:2]: path for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))}
    if unknown := set(notebooks) - set(files):
        raise StudyError(f"no notebook {' '.join(sorted(unknown))}: choose from {' '.join(files)}")
    own_notebooks = tuple(number for number in files if number != profiles.ACROSS)
    chosen = [("", own_notebooks), *((further.model, further.notebooks) for further in profile.further)]
    chosen.append(("", (profiles.ACROSS,)))
    wanted = [[(model, files[n]) for n in own if not notebooks or n in notebooks] for model, own in chosen]
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


def _with_gptq(environment: dict[str, str]) -> dict[str, str]:
    """The variables of a process that may load the ready GPTQ checkpoint; it is left out where nothing is installed."""
    if not (GPTQ_PACKAGES / "ready").is_file():
        return environment
    searched = [str(GPTQ_PACKAGES), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(searched)}


def _call(module: str, *arguments: str, environment: dict[str, str]) -> None:
    _run_command([sys.executable, "-m", f"layer_redundancy.{module}", *arguments], environment)


def _run_command(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, cwd=paths.ROOT, capture_output=True, text=True)
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        print(*last[-25:], sep="\n", file=sys.stderr)
        raise StudyError(f"{' '.join(command[2:])} failed, as its last lines above say")


def _output(model: str, notebook: Path, folder: Path) -> Path:
    profile = profiles.get(PROFILE, model=model)
    return folder / "data" / "runs" / profiles.artifact_folder(profile) / notebook.name


def _run(of_model: list[tuple[str, Path]], folder: Path) -> None:
    """One model's notebooks, in order: one may take what another has stored."""
    start, environment = time.monotonic(), _environment(folder, HF_HUB_OFFLINE="1")
    with_gptq = [run for run in of_model if run[1].name.startswith(GPTQ_NOTEBOOK)]
    others = [run for run in of_model if run not in with_gptq]
    for together, variables in ((others, environment), (with_gptq, _with_gptq(environment))):
        words = [f"{notebook}:{_output(model, notebook, folder)}:{model}" for model, notebook in together]
        if words:
            _call("run_notebooks", "--profile", PROFILE, "--jobs", "1", *words, environment=variables)
    model = of_model[0][0] or profiles.load(PROFILE).model
    print(f"{counted(len(of_model), 'notebook')} on {model}: {time.monotonic() - start:.0f} s", flush=True)


def compare(
    planned: pd.DataFrame,
    swept: Sequence[dict],
    worked: Sequence[dict],
    bounds: Mapping[str, tuple[float, float]] = BEFORE,
    rough: Mapping[tuple[str, str], tuple[float, float]] = ROUGH,
) -> pd.DataFrame:
    """What was planned, against what ran, for each notebook and kind of work.

    Args:
        planned: the table that `make plan` writes.
        swept: rows of `Store.sweeps`.
        worked: rows of `Store.work`.
        bounds: kind -> (lowest, highest) ratio allowed.
        rough: (notebook, kind) -> other bounds of its ratio.

    Returns:
        notebook, kind ("sweep", "training", "quantization", "pass"), planned and ran (block-tokens), ratio (ran over
        planned), low, high (what it may be), agrees.
    """
    notebook = [f"{int(n):02}" for n in planned["notebook"]]
    columns = {
        "sweep": "block_tokens",
        "training": "training_block_tokens",
        "quantization": "quantization_block_tokens",
        "pass": "pass_block_tokens",
    }
    ahead = planned[list(columns.values())].groupby(notebook).sum()
    ahead.columns = list(columns)
    ahead = ahead.rename_axis("notebook").melt(ignore_index=False, var_name="kind", value_name="planned").reset_index()
    done = [(row["notebook"][:2], "sweep", row["block_tokens_shared"]) for row in swept]
    done += [(row["notebook"][:2], row["kind"], row["block_tokens"]) for row in worked if row["kind"] in columns]
    ran = pd.DataFrame(done, columns=["notebook", "kind", "ran"]).groupby(["notebook", "kind"], as_index=False).sum()
    both = ahead.merge(ran, on=["notebook", "kind"], how="outer").fillna(0)
    both = both[(both["planned"] > 0) | (both["ran"] > 0)].reset_index(drop=True)
    both["ratio"] = both["ran"] / both["planned"]
    allowed = [rough.get((n, k), bounds[k]) for n, k in both[["notebook", "kind"]].to_numpy()]
    both["low"], both["high"] = zip(*allowed, strict=True) if allowed else ((), ())
    return both.assign(agrees=both["ratio"].between(both["low"], both["high"]))


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
        _call("cli", "plan", PROFILE, "--alone", "--notebooks", " ".join(notebooks), environment=_with_gptq(online))
    planned = pd.read_csv(folder / "data" / "results" / "plan-rehearsal.csv", dtype={"notebook": str})
    # Longest first, two models at a time: each has its own folder, and they share nothing in the store.
    last = [of_model for of_model in todo if of_model[0][1].name.startswith(profiles.ACROSS)]
    first = sorted((of_model for of_model in todo if of_model not in last), key=len, reverse=True)
    for together in (first, last):
        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            for done in [pool.submit(_run, of_model, folder) for of_model in together]:
                done.result()
    for model, notebook in (run for of_model in todo for run in of_model):
        figures = folder / "figures" / profiles.artifact_folder(profiles.get(PROFILE, model=model))
        if not _output(model, notebook, folder).is_file() or not any(figures.glob("*.png")):
            raise StudyError(f"{notebook.name} on {model or 'the main model'} left no figure in {figures}")
    known = folder / "data" / "results" / "replay.csv"
    if not notebooks:
        command = [sys.executable, "-m", "rehearsal.replay", PROFILE, str(known)]
        _run_command(command, _with_gptq(_environment(folder, HF_HUB_OFFLINE="1")))
    with Store(folder / "data" / "results" / "results.sqlite") as store:
        swept, worked = store.sweeps(), store.work()
    tables = [compare(planned, swept, worked).assign(planned_with="stand-ins")]
    if not notebooks:
        replayed = pd.read_csv(known, dtype={"notebook": str})
        tables.append(compare(replayed, swept, worked, AFTER, QUANTIZED).assign(planned_with="known orders"))
    return pd.concat(tables, ignore_index=True)


@app.command()
def main(notebooks: Annotated[str, typer.Option(help="only these, by number")] = "") -> None:
    """Rehearses the paper profile with tiny random models and made-up data."""
    start = time.monotonic()
    try:
        table = rehearse([n.zfill(2) for n in notebooks.split()])
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
        if not table["agrees"].all():
            wrong = table[~table["agrees"]]
            named = ", ".join(
                f"{row.kind} of notebook {row.notebook} ({row.ratio:.2f}, with {row.planned_with})"
                for row in wrong.itertuples()
            )
            raise StudyError(f"what ran is not what was planned: {named}")
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"the rehearsal went well, in {time.monotonic() - start:.0f} s; what ran is what was planned")


if __name__ == "__main__":
    app()
