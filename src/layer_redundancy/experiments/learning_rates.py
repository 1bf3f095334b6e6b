"""Learning rates, chosen on held-out training text: every subject on one grid, by one rule.

`make rates` (tools/rates.py) tries what experiments name in their `trials`, and writes a table; a profile's rates are
those that are best in it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import paths
from layer_redundancy.core.errors import Diverged
from layer_redundancy.study import Study

GRID = (3e-4, 1e-3, 3e-3, 1e-2)  # two rates in each power of ten; beyond them where the best is one of the ends
SEEDS = 2
EXTENSIONS = 4  # the most rates beyond the grid
HELD_OUT = 32  # blocks of held-out training text on which rates are compared
COLUMNS = ["experiment", "subject", "trained", "steps", "batch", "rate", "seeds", "loss", "best"]


@dataclass(frozen=True)
class Trial:
    """Something that is trained, whose learning rate is looked for.

    Attributes:
        experiment: the experiment's module.
        subject: what is trained, such as the selection by which blocks went.
        trained: the weights that are trained, as a table says it.
        steps: optimizer steps.
        batch: examples a step.
        rate: the rate that the profile has.
        loss: (rate, seed) -> loss on text that is held out from the training text, the lower the better; nan where the
            training broke down. It comes from the store where it is there.
        prepare: does what all of its trainings need, once, before several processes share them.
    """

    experiment: str
    subject: str
    trained: str
    steps: int
    batch: int
    rate: float
    loss: Callable[[float, int], float]
    prepare: Callable[[], object] = lambda: None

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells one trial from another."""
        return self.experiment, self.subject, self.trained


def held_out_loss(study: Study, removed: Sequence[int], recipe: Recipe, budget: TrainingBudget, seed: int) -> float:
    """What a training of a pruned model comes to on held-out training text, nats a token; its weights are not kept.

    nan where its loss does not stay finite.
    """
    held_out = replace(budget, held_out=HELD_OUT, validations=1)
    try:
        training = study.healed(removed, recipe, held_out, seed).training(keep=False)
    except Diverged:
        return math.nan
    return float(training.arrays["held_out"][-1])


def best(losses: Mapping[float, float]) -> float:
    """The rate of the lowest loss, the lower of two alike."""
    return min(sorted(losses), key=lambda rate: math.inf if math.isnan(losses[rate]) else losses[rate])


def beyond(losses: Mapping[float, float]) -> list[float]:
    """The next rate beyond the grid's end where the best is that end; else none."""
    found = best(losses)
    digit, _, power = f"{found:e}".partition("e")
    if found == max(losses):
        return [float(f"3e{power}" if digit[0] == "1" else f"1e{int(power) + 1}")]
    return [float(f"1e{power}" if digit[0] == "3" else f"3e{int(power) - 1}")] if found == min(losses) else []


def search(
    trials: Sequence[Trial],
    run: Callable[[list[tuple[int, float, int]]], Iterable[float]],
    grid: Sequence[float] = GRID,
    seeds: int = SEEDS,
) -> pd.DataFrame:
    """Tries every trial at every rate of the grid, and beyond its end as long as the best is there.

    Args:
        trials: what is tried.
        run: runs the (place in `trials`, rate, seed) that it is given, and returns their losses in that order.
        grid: the rates, of two in each power of ten.
        seeds: trainings at each rate, with seeds from 0 on; their mean loss counts.

    Returns:
        experiment, subject, trained, steps, batch, rate, seeds, loss (mean over seeds), best (whether the rate is the
        trial's).
    """
    found: dict[int, dict[float, float]] = {k: {} for k in range(len(trials))}
    todo = {k: list(grid) for k in found}
    for _ in range(EXTENSIONS + 1):
        asked = [(k, rate, seed) for k, rates in todo.items() for rate in rates for seed in range(seeds)]
        losses = dict(zip(asked, run(asked), strict=True))
        for k, rates in todo.items():
            found[k] |= {rate: float(np.mean([losses[k, rate, seed] for seed in range(seeds)])) for rate in rates}
        todo = {k: more for k, rates in found.items() if k in todo and (more := beyond(rates))}
        if not todo:
            break
    rows = [
        (*trial.name, trial.steps, trial.batch, rate, seeds, found[k][rate], rate == best(found[k]))
        for k, trial in enumerate(trials)
        for rate in sorted(found[k])
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def table(profile: str) -> pd.DataFrame:
    """The table that `make rates` wrote of a profile that ships with the study; columns as `search`."""
    return pd.read_csv(paths.PACKAGE / "data" / "rates" / f"{profile}.csv")
