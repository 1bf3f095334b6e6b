"""Tries learning rates for both small models, each as widely, and writes data/rates/small_models.csv.

`make twin-rates` runs it. A try is the beginning of a training with a schedule of its own; what is in the table is not
tried again, and a try that was stopped goes on where it was.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from layer_redundancy.core.errors import StudyError
from tools.small_models.texts import training_texts, validation_texts
from tools.small_models.train import RATES, TRAINING, Kind, Settings, fingerprint, kept_bits, train

STEPS = 300
FACTORS = ((1, 1), (1 / 3, 1), (3, 1), (1, 1 / 3), (1, 3))  # of the rate of Muon, of that of AdamW


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        kind: which of the two models.
        steps: steps of the training.
        matrix_learning_rate, learning_rate: the two rates, as text of six digits.
        bits_per_byte: of the validation articles, at the end.
        loss: training loss at the end, nats a token.
        seconds: how long it took.
    """

    kind: str
    steps: str
    matrix_learning_rate: str
    learning_rate: str
    bits_per_byte: str
    loss: str
    seconds: str

    @property
    def asked(self) -> tuple[str, ...]:
        """What was tried: all but what came out."""
        return self.kind, self.steps, self.matrix_learning_rate, self.learning_rate


def grid(steps: int) -> Iterator[Settings]:
    """The trainings of either kind: the shipped recipe, and each of its rates a third and three times as high."""
    for kind in get_args(Kind):
        recipe = Settings(kind=kind, steps=steps)
        for matrices, rest in FACTORS:
            yield replace(
                recipe,
                matrix_learning_rate=recipe.matrix_learning_rate * matrices,
                learning_rate=recipe.learning_rate * rest,
            )


def rows(output: Path) -> list[Row]:
    """What the table has."""
    if not output.is_file():
        return []
    with output.open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def write(output: Path, found: Sequence[Row]) -> None:
    """Writes the table, all of it or nothing."""
    names = [field.name for field in fields(Row)]
    temporary = output.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows([getattr(row, name) for name in names] for row in found)
    temporary.replace(output)


def try_rates(
    steps: int, sources: dict[str, list[str]], validation: Sequence[str], folder: Path, output: Path
) -> list[Row]:
    """Trains what the table does not have yet; see `train` for sources, validation and folder."""
    found = rows(output)
    for settings in grid(steps):
        asked = (settings.kind, str(steps), f"{settings.matrix_learning_rate:g}", f"{settings.learning_rate:g}")
        if asked in {row.asked for row in found}:
            continue
        try:
            *_, log = train(settings, sources, validation, folder)
            found.append(Row(*asked, f"{kept_bits(log):.4f}", f"{log[-1]['loss']:.4f}", str(log[-1]["seconds"])))
        except StudyError as error:  # diverged: that, too, is known of these rates
            print(*asked, error, sep=" | ")
            found.append(Row(*asked, "", "", ""))
        write(output, found)
        (folder / f"{fingerprint(settings, sources, validation)}.pt").unlink(missing_ok=True)
    return found


def main(
    steps: Annotated[int, typer.Option(help="steps of each training")] = STEPS,
    output: Annotated[Path, typer.Option(help="the table")] = RATES,
) -> None:
    """Try learning rates for both small models; stopped, it goes on where it was."""
    try:
        found = try_rates(steps, training_texts(), validation_texts(), TRAINING, output)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for row in found:
        print(*row.asked, row.bits_per_byte, sep=" | ")


if __name__ == "__main__":
    typer.run(main)
