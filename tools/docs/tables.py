"""What a page may say of the committed tables: one row's values, and what the prose claims of them.

A value is named by table, row and column, so that no number is typed into a page; a claim is checked while the page is
rendered, so that a page cannot go on saying what its table no longer shows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError

EMBEDDED = paths.ROOT / "figures" / "embedded"
BENCH = paths.ROOT / "figures" / "bench"


@dataclass(frozen=True)
class Accuracy:
    """A share of items, which is never printed without their number.

    Attributes:
        value: share in [0, 1].
        interval: its 95 % interval, where the table has one.
        n: items.
    """

    value: float
    interval: tuple[float, float] | None
    n: int

    def __str__(self) -> str:
        between = f"{100 * self.interval[0]:.0f} to {100 * self.interval[1]:.0f}, " if self.interval else ""
        return f"{100 * self.value:.0f} % ({between}n = {self.n})"

    def __float__(self) -> float:
        return self.value


class Row(Mapping[str, Any]):
    """One row of a table; its columns are attributes too, and one that is missing is an error."""

    def __init__(self, table: str, values: Mapping[str, Any]) -> None:
        self._table, self._values = table, dict(values)

    def __getitem__(self, column: str) -> Any:
        if column not in self._values:
            raise StudyError(f"{self._table}.csv has no column {column!r}: choose from {', '.join(self._values)}")
        value = self._values[column]
        return self._accuracy(value) if column == "accuracy" else value

    def __getattr__(self, column: str) -> Any:
        if column.startswith("_"):
            raise AttributeError(column)
        return self[column]

    def __contains__(self, column: object) -> bool:
        return column in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _accuracy(self, value: float) -> Accuracy:
        n = self._values.get("n")
        if n is None or math.isnan(n):
            raise StudyError(f"{self._table}.csv has an accuracy without its number of items: print another column")
        names = next((p for p in (("accuracy_low", "accuracy_high"), ("low", "high")) if p[0] in self._values), None)
        return Accuracy(value, (self._values[names[0]], self._values[names[1]]) if names else None, int(n))


@dataclass(frozen=True)
class Check:
    """What a page's prose says of the tables.

    Attributes:
        words: what it says.
        true: whether the tables say so too.
        found: what they say.
    """

    words: str
    true: bool
    found: str


class Tables:
    """Committed tables by name; the first of the folders that has one counts.

    Args:
        folders: where the tables lie.
    """

    def __init__(self, folders: tuple[Path, ...] = (EMBEDDED, BENCH, paths.PAPER)) -> None:
        self.folders = folders
        self._read: dict[str, pd.DataFrame] = {}

    def table(self, name: str) -> pd.DataFrame:
        """A table.

        Raises:
            StudyError: there is none of that name.
        """
        if name not in self._read:
            found = [folder / f"{name}.csv" for folder in self.folders if (folder / f"{name}.csv").exists()]
            if not found:
                raise StudyError(f"no table {name}.csv in {', '.join(folder.name for folder in self.folders)}")
            self._read[name] = pd.read_csv(found[0])
        return self._read[name]

    def rows(self, table: str, **where: Any) -> list[Row]:
        """The rows of a table with these values in these columns; None stands for an empty cell.

        Raises:
            StudyError: no such table or column.
        """
        found = self.table(table)
        for column, value in where.items():
            if column not in found:
                raise StudyError(f"{table}.csv has no column {column!r}: choose from {', '.join(found.columns)}")
            found = found[found[column].isna() if value is None else found[column] == value]
        return [Row(table, values) for values in found.to_dict("records")]

    def row(self, table: str, **where: Any) -> Row:
        """The one row with these values.

        Raises:
            StudyError: none or several have them.
        """
        found = self.rows(table, **where)
        if len(found) != 1:
            raise StudyError(f"{len(found)} rows of {table}.csv have {_named(where)}: name one")
        return found[0]

    # ------------------------------------------------------------------------------------------------ claims

    def verdict(self, table: str, statement: str, verdict: str, **where: Any) -> Check:
        """That the data say so of a statement.

        Args:
            table: name of a table of verdicts.
            statement: its statement, word for word.
            verdict: supported, refuted, undecided or not testable here.
            where: what else names the row.
        """
        row = self.row(table, statement=statement, **where)
        return Check(
            f"{statement!r} is {verdict}",
            row.verdict == verdict,
            f"{table}.csv{f' ({_named(where)})' if where else ''}: {row.verdict}, difference {row.difference:g} "
            f"({row.low:g} to {row.high:g}), p {row.p:g}",
        )


def compare(words: str, left: Any, relation: str, right: Any) -> Check:
    """That two values are in some relation, said in words.

    Raises:
        StudyError: no such relation.
    """
    relations = {
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
        "<=": lambda a, b: a <= b,
        ">=": lambda a, b: a >= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
    }
    if relation not in relations:
        raise StudyError(f"no relation {relation!r}: choose from {' '.join(relations)}")
    left, right = (float(x) if isinstance(x, Accuracy) else x for x in (left, right))
    return Check(words, bool(relations[relation](left, right)), f"it is {left} against {right}, not {relation}")


def _named(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} = {value!r}" for column, value in where.items()) or "nothing"
