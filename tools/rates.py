"""Tries learning rates on held-out training text and writes data/rates/<profile>.csv; `make rates` runs it.

What was tried lies in the results store, so a search that was stopped goes on where it was. On a GPU most of a small
training is waiting, so that a dozen processes share it well: make -j12 rates.
"""

import logging
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments import block_pruning, healing, learning_rates, prompt_tuning
from layer_redundancy.experiments.learning_rates import GRID, SEEDS, Trial
from layer_redundancy.study import Study

EXPERIMENTS = (block_pruning, healing, prompt_tuning)  # modules with a function trials(study)

_trials: list[Trial] = []  # of this process


def trials(profile: str, device: str) -> list[Trial]:
    """What the experiments try on a profile; what the rates are chosen for is in the profile, but its tasks are not."""
    found = replace(profiles.get(profile), tasks=())
    study = Study.of(replace(found, device=device) if device else found)
    return [trial for experiment in EXPERIMENTS for trial in experiment.trials(study)]


def _begin(profile: str, device: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("layer_redundancy").setLevel(logging.ERROR)
    _trials[:] = trials(profile, device)


def _one(asked: tuple[int, float, int]) -> float:
    place, rate, seed = asked
    loss = _trials[place].loss(rate, seed)
    print(*_trials[place].name, f"{rate:g}", f"seed {seed}", f"{loss:.4f}", sep=" | ", flush=True)
    return loss


def main(
    profile: Annotated[str, typer.Option(help="profile that ships with the study, or a file of your own")] = "embedded",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto; the profile's if not given")] = "",
    jobs: Annotated[int, typer.Option(help="trainings at a time")] = 1,
    seeds: Annotated[int, typer.Option(help="trainings at each rate")] = SEEDS,
    output: Annotated[
        Path | None, typer.Option(help="file to write; the profile's in data/rates/ if not given")
    ] = None,
) -> None:
    """Try learning rates on held-out training text; stopped, it goes on where it was."""
    target = output or paths.PACKAGE / "data" / "rates" / f"{Path(profile).stem}.csv"
    try:
        _begin(profile, device)
        if jobs == 1:
            found = learning_rates.search(_trials, lambda asked: map(_one, asked), GRID, seeds)
        else:
            for trial in _trials:
                trial.prepare()  # once, and not in every process
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, spawn, initializer=_begin, initargs=(profile, device)) as pool:

                def run(asked: list[tuple[int, float, int]]) -> Iterator[float]:
                    return pool.map(_one, asked)

                found = learning_rates.search(_trials, run, GRID, seeds)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(target, index=False, float_format="%.6g")
    print(found[found["best"]].to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
