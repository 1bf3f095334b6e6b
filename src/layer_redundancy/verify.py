"""Compares a run's tables with those that are committed: `layer-redundancy verify PROFILE`.

data/expected/<profile>/ holds the tables, data/expected/tolerances.toml says how near a column must come. Cells are
compared as they stand in the files: numbers within the column's tolerance, also those that stand in a text such as
"79.0 (70.0 to 85.8)", and everything else exactly. Only the standard library is needed, so that it takes no time.
"""

import ast
import csv
import json
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from layer_redundancy.config import profiles
from layer_redundancy.config.notebooks import chosen_notebooks, number
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import flags, paths
from layer_redundancy.core.errors import StudyError

# A number by itself: no part of a name (rwkv5-6.6m, v1.5) and no sign that joins two words.
NUMBER = re.compile(r"(?<![\w.])(?:(?<!\S)[-+])?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w|\.\d)")
DEFAULTS = ("number", "count")
SHOWN = 40  # characters of a cell in a message


@dataclass(frozen=True)
class Tolerance:
    """How near the numbers of a column must come to the expected ones.

    Attributes:
        kind: its name: what the column holds that another machine gives otherwise.
        relative: share of the expected number by which another may differ.
        absolute: difference that is allowed whatever the number, in the column's unit.
        compared: False for columns that say something about the machine.
    """

    kind: str
    relative: float = 0.0
    absolute: float = 0.0
    compared: bool = True

    def __str__(self) -> str:
        if not self.compared:
            return f"{self.kind}, not compared"
        parts = [f"{100 * self.relative:g} %"] * (self.relative > 0) + [f"{self.absolute:g}"] * (self.absolute > 0)
        return f"{self.kind}, {'within ' + ' or '.join(parts) if parts else 'exact'}"

    def allows(self, expected: str, got: str) -> bool:
        """Whether a cell is as expected."""
        if expected == got or not self.compared:
            return True
        if NUMBER.split(expected) != NUMBER.split(got):
            return False
        alone = NUMBER.fullmatch(expected) is not None
        pairs = zip(NUMBER.findall(expected), NUMBER.findall(got), strict=True)
        return all(one == other or self._near(one, other, alone) for one, other in pairs)

    def _near(self, expected: str, got: str, alone: bool) -> bool:
        """Whether two numbers are near; in a text whole ones never are, and others are to their last printed digit."""
        if not alone and _is_whole(expected) and _is_whole(got):
            return False
        allowed = max(self.relative * abs(float(expected)), self.absolute, 0.0 if alone else _last_digit(expected))
        return abs(float(expected) - float(got)) <= allowed * (1 + 1e-9)


def _is_whole(cell: str) -> bool:
    return re.fullmatch(r"[-+]?\d+", cell) is not None


def _last_digit(number: str) -> float:
    """What one step of the last digit after the point is worth; 0 for a whole number."""
    digits, _, exponent = number.lower().partition("e")
    places = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - places) if places else 0.0


@dataclass(frozen=True)
class Columns:
    """Columns with a tolerance of their own. Names and cells may have wildcards.

    Attributes:
        kind: name of the tolerance.
        tables, columns: names of tables, and of their columns.
        rows: only rows whose cell in a column is one of some: column -> cells.
        profiles: names of the profiles where it holds; all if empty.
    """

    kind: str
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()

    def fits(self, table: str, column: str) -> bool:
        """Whether a column is one of them, at least in some rows."""
        return _one_of(table, self.tables) and _one_of(column, self.columns)

    def fits_row(self, row: Mapping[str, str]) -> bool:
        """Whether a row, column -> cell, is one of those that are meant."""
        return all(_one_of(row.get(column, ""), cells) for column, cells in self.rows.items())


def _one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Rules:
    """How tables are compared.

    Attributes:
        kinds: the tolerances by name; "number" is that of every column without one of its own, and "count" of every
            such column of whole numbers.
        columns: columns with one of their own; of several that fit, the last counts.
        keys: columns that name a row, by table; rows of a table without them are compared place by place.
    """

    kinds: Mapping[str, Tolerance]
    columns: tuple[Columns, ...] = ()
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, profile: str = "") -> "Rules":
        """The rules of a TOML file that hold for a profile.

        Raises:
            StudyError: the file cannot be read, or says something that is not known.
        """
        try:
            content = tomllib.loads(path.read_text())
            kinds = {name: Tolerance(name, **values) for name, values in content["kinds"].items()}
            columns = [Columns(**_tuples(values)) for values in content.get("columns", [])]
            for name in (*DEFAULTS, *(one.kind for one in columns)):
                kinds[name]
        except OSError as error:
            raise StudyError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
            raise StudyError(f"{path}: {error}") from error
        held = tuple(one for one in columns if not one.profiles or profile in one.profiles)
        return cls(kinds, held, _tuples(content.get("keys", {})))

    def tolerances(
        self, table: str, column: str, rows: Sequence[Mapping[str, str]], whole: bool = False
    ) -> list[Tolerance]:
        """The tolerance of a column in each row; whole says that all its numbers are whole."""
        fitting = [one for one in reversed(self.columns) if one.fits(table, column)]
        default = "count" if whole else "number"
        kinds = (next((one.kind for one in fitting if one.fits_row(row)), default) for row in rows)
        return [self.kinds[kind] for kind in kinds]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@dataclass(frozen=True)
class Difference:
    """What is not as expected in a column, or in the table where no column is named.

    Attributes:
        column: the column's name; "" for the whole table.
        what: the first place and what stands there, in words.
        more: number of further rows with a difference in that column.
    """

    column: str
    what: str
    more: int = 0

    def __str__(self) -> str:
        return (f"{self.column}: " if self.column else "") + self.what + f"; {self.more} more rows" * (self.more > 0)


@dataclass(frozen=True)
class Verdict:
    """What is found of one table.

    Attributes:
        table: its name.
        state: "as expected", "differs", "missing" or "not expected".
        differences: what differs, one a column.
        wider: tolerance -> columns, of those that have one of their own in at least some rows.
    """

    table: str
    state: str
    differences: tuple[Difference, ...] = ()
    wider: Mapping[Tolerance, Sequence[str]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether the table is as expected."""
        return self.state == "as expected"


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns and the rows of a CSV file, every cell as it stands there.

    Raises:
        StudyError: the file cannot be read, or a row has not as many cells as there are columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        return columns, [dict(zip(columns, row, strict=True)) for row in rows]
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise StudyError(f"{path} is no whole table: delete it and run its notebook again") from error


def compare(table: str, expected: Path, got: Path, rules: Rules) -> Verdict:
    """Compares one table with the expected one; raises StudyError as `read_table`."""
    columns, rows = read_table(expected)
    got_columns, got_rows = read_table(got)
    shared = [column for column in columns if column in got_columns]
    differences = [Difference(column, "column is missing") for column in columns if column not in got_columns]
    differences += [Difference(column, "column is not expected") for column in got_columns if column not in columns]
    keys = [column for column in rules.keys.get(table, ()) if column in shared]
    if keys:
        rows, got_rows, lost = _matched(rows, got_rows, keys)
        differences += lost
    wider: dict[Tolerance, list[str]] = {}
    if len(rows) != len(got_rows):
        differences.append(Difference("", f"{len(got_rows)} rows instead of {len(rows)}"))
    elif rows != got_rows and _counted(rows) == _counted(got_rows):
        differences.append(Difference("", "the rows stand in another order"))
    else:
        for column in shared:
            cells = [(row[column], other[column]) for row, other in zip(rows, got_rows, strict=True)]
            # Not cell by cell, since a large perplexity may be written without a point.
            whole = all(_is_whole(cell) for pair in cells for cell in pair if cell)
            tolerances = rules.tolerances(table, column, rows, whole)
            for tolerance in dict.fromkeys(tolerances):
                if tolerance.kind not in DEFAULTS:
                    wider.setdefault(tolerance, []).append(column)
            wrong = [i for i, cell in enumerate(cells) if not tolerances[i].allows(*cell)]
            if wrong:
                first = wrong[0]
                name = ", ".join(_short(rows[first][key]) for key in keys or columns[:1])
                wanted, found = map(_cell, cells[first])
                what = f"row {first + 1} ({name}): {found} instead of {wanted} ({tolerances[first]})"
                differences.append(Difference(column, what, len(wrong) - 1))
    return Verdict(table, "differs" if differences else "as expected", tuple(differences), wider)


def _matched(
    rows: list[dict[str, str]], got_rows: list[dict[str, str]], keys: Sequence[str]
) -> tuple[list[dict[str, str]], list[dict[str, str]], list[Difference]]:
    """Rows of both tables that have the same key, in the same order, and what is told of the others."""

    def by_key(table: list[dict[str, str]]) -> dict[tuple[str, ...], dict[str, str]]:
        return {tuple(row[key] for key in keys): row for row in table}

    one, other = by_key(rows), by_key(got_rows)
    if len(one) < len(rows) or len(other) < len(got_rows):  # a key that names two rows names none
        return rows, got_rows, []
    lost = [Difference("", f"row {', '.join(key)} is missing") for key in one if key not in other]
    lost += [Difference("", f"row {', '.join(key)} is not expected") for key in other if key not in one]
    both = [key for key in one if key in other]
    return [one[key] for key in both], [other[key] for key in both], lost


def _counted(rows: list[dict[str, str]]) -> Counter:
    return Counter(tuple(sorted(row.items())) for row in rows)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _cell(text: str) -> str:
    if NUMBER.fullmatch(text):
        return text
    return f'"{_short(text)}"' if text else "nothing"


def verify(folder: Path, expected: Path, rules: Rules, tables: Sequence[str] | None = None) -> list[Verdict]:
    """Compares the tables of a run with the expected ones.

    Args:
        folder: folder of the run's figures and tables.
        expected: folder of the expected tables.
        rules: how they are compared.
        tables: compare only these, which may have wildcards; all if not given.

    Returns:
        A verdict on each table that is expected or there, by name.

    Raises:
        StudyError: as `read_table`; there is nothing to compare with.
    """
    chosen = ("*",) if tables is None else tables
    wanted = {path.stem: path for path in expected.glob("*.csv") if _one_of(path.stem, chosen)}
    there = {path.stem: path for path in folder.glob("*.csv") if _one_of(path.stem, chosen)}
    if not wanted:
        raise StudyError(f"no expected tables in {expected}")
    verdicts = []
    for name in sorted(wanted | there):
        if name not in there:
            verdicts.append(Verdict(name, "missing"))
        elif name not in wanted:
            verdicts.append(Verdict(name, "not expected"))
        else:
            verdicts.append(compare(name, wanted[name], there[name], rules))
    return verdicts


@flags.checked
def report(verdicts: Sequence[Verdict], brief: bool = False) -> list[str]:
    """Lines with a verdict on each table.

    Args:
        verdicts: what was found.
        brief: leave out the tables that are as expected.
    """
    told = [one for one in verdicts if not (brief and one.good)]
    width = max((len(one.table) for one in told), default=0)
    lines = []
    for one in told:
        state = one.state if one.good else one.state.upper()
        notes = "; ".join(map(str, one.wider))
        lines.append(f"{one.table:<{width}}  {state}" + (f"  ({notes})" if notes and one.good else ""))
        lines += [f"    {difference}" for difference in one.differences]
    return lines


def summary(verdicts: Sequence[Verdict], name: str) -> str:
    """One line on all tables.

    Args:
        verdicts: what was found.
        name: what was compared.
    """
    bad = {state: [v.table for v in verdicts if v.state == state] for state in ("differs", "missing", "not expected")}
    wanted = [one for one in verdicts if one.state != "not expected"]
    line = f"{name}: {sum(one.good for one in wanted)} of {len(wanted)} tables as expected"
    for state, tables in bad.items():
        if tables:
            line += f"; {len(tables)} {'differ' if state == 'differs' and len(tables) > 1 else state}"
            line += f" ({', '.join(tables[:3])}{', ...' if len(tables) > 3 else ''})"
    return line


# --- Runs and their notebooks ----------------------------------------------------------------------------------------


def saved_tables(notebook: Path) -> list[str]:
    """Names of the tables that a notebook hands to `Study.save` and its likes; "name*" where only the beginning is
    written there."""
    places = {
        "save": 2,
        "save_reported_figure": 2,
        "save_table": 1,
        "save_verdicts": 1,
        "save_reported": 1,
        "save_data": 1,
    }
    names = []
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    place = places.get(node.func.attr)
                    if place is not None and len(node.args) > place:
                        names += _literal(node.args[place])
    return names


def _literal(name: ast.expr) -> list[str]:
    if isinstance(name, ast.Constant):
        return [str(name.value)]
    if isinstance(name, ast.BinOp) and isinstance(name.left, ast.Constant):
        return [f"{name.left.value!s}*"]
    return []


def not_run(folder: str, of: Sequence[Path]) -> list[str]:
    """Numbers of the notebooks without an executed copy: their tables, if any, are of another run."""
    return [number(path) for path in of if not (paths.RUNS / folder / path.name).exists()]


def notebooks_of(profile: Profile, chosen: str = "") -> list[Path]:
    """The notebooks that a profile's model has: a further model those that are named for it, any other all.

    The one that compares models is among them only where it is chosen by name, or has several to compare and writes
    what it finds beside what is found of the profile's own.
    """
    its = profile.studied.get(profile.model) if profile.declares(profile.model) else None
    further = {one.model: one.notebooks for one in profile.further}
    its = further.get(profile.model, its)
    beside = profiles.across_folder(profile) == profiles.artifact_folder(profile)
    across = bool(chosen.strip()) or (len(profile.studied) > 1 and beside)
    return [
        path
        for path in chosen_notebooks(chosen)
        if (its is None or number(path) in its) and (across or number(path) != profiles.ACROSS)
    ]


def is_expected(profile: Profile, chosen: str = "") -> bool:
    """Whether there are expected tables of a profile's model, and it has some of the chosen notebooks."""
    return (paths.EXPECTED / profiles.artifact_folder(profile)).is_dir() and bool(notebooks_of(profile, chosen))


def renewed(folder: Path, expected: Path, of: Sequence[Path]) -> str:
    """Makes a run's tables the expected ones.

    Args:
        folder: folder of the run's figures and tables.
        expected: folder of the expected tables; others in it are deleted.
        of: the notebooks, whose tables are taken.

    Returns:
        One line on what changed.
    """
    saved = [name for path in of for name in saved_tables(path)]
    new = {path.name: path.read_bytes() for path in folder.glob("*.csv") if _one_of(path.stem, saved)}
    old = {path.name: path.read_bytes() for path in expected.glob("*.csv")}
    expected.mkdir(parents=True, exist_ok=True)
    for name in new:
        shutil.copyfile(folder / name, expected / name)
    for name in old.keys() - new.keys():
        (expected / name).unlink()
    changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    counts = f"{changed} changed, {len(new.keys() - old.keys())} new, {len(old.keys() - new.keys())} gone"
    return f"{len(new)} tables are expected now ({counts})"


def verify_run(
    profile: Profile, notebooks: str = "", tables: Path | None = None, expected: Path | None = None
) -> tuple[list[Verdict], str]:
    """Compares the tables of a profile's run with the expected ones.

    Args:
        profile: the profile that was run.
        notebooks: numbers or names of the notebooks whose tables are compared; "" for all.
        tables: folder of the tables; the run's if not given.
        expected: folder of the expected tables; the profile's if not given.

    Returns:
        A verdict on each table, and one line on all of them.

    Raises:
        StudyError: as `verify` and `chosen_notebooks`; nothing was run, or nothing is known of such a run.
    """
    run, of = profiles.artifact_folder(profile), notebooks_of(profile, notebooks)
    wanted = expected or paths.EXPECTED / run
    if not wanted.is_dir():
        known = ", ".join(sorted(path.name for path in paths.EXPECTED.glob("*") if path.is_dir())) or "none"
        raise StudyError(f"nothing to compare {run} with: there are expected tables of {known}, or give --expected")
    skipped = [] if tables else not_run(run, of)
    if not tables and len(skipped) == len(of):  # the tables that are there may be the expected ones themselves
        raise StudyError(f"no notebook of {run} was run here: make figures PROFILE={profile.name}, or give --tables")
    if tables and not tables.is_dir():
        raise StudyError(f"{tables} is no folder: give one with the tables of a run")
    names = [name for path in of for name in saved_tables(path)] if notebooks.strip() else None
    rules = Rules.read(paths.EXPECTED / "tolerances.toml", profile.name)
    verdicts = verify(tables or paths.FIGURES / run, wanted, rules, names)
    return verdicts, summary(verdicts, run) + (f" (not run here: {' '.join(skipped)})" if skipped else "")


def expect_run(profile: Profile) -> str:
    """Makes the tables of a profile's run the expected ones; returns one line on what changed.

    Raises:
        StudyError: not all notebooks were run, or not with a model that the profile names.
    """
    run, of = profiles.artifact_folder(profile), notebooks_of(profile)
    if not profile.declares(profile.model):
        raise StudyError("what is expected is that of the profile's own models: leave out MODEL")
    if skipped := not_run(run, of):
        raise StudyError(
            f"only a whole run can be what is expected, and {' '.join(skipped)} was not run here: "
            f"make figures PROFILE={profile.name}"
        )
    every = chosen_notebooks() if profile.is_own_model else of  # what compares models may lie there from another run
    return f"{run}: {renewed(paths.FIGURES / run, paths.EXPECTED / run, every)}"
