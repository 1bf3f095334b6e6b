"""README.md and the pages of docs/, rendered from docs/templates/*.md and the committed tables."""

import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.verdicts import LEVEL, POWER
from layer_redundancy.core.verdicts import shown as shown_verdicts
from tools.docs.tables import Accuracy, Check, Row, Tables, compare

TEMPLATES = paths.ROOT / "docs" / "templates"
NO_BREAK = "\N{NO-BREAK SPACE}"
MADE = "<!-- Made by `make docs` from docs/templates/{}: edit that, not this. -->\n"


def page(template: str) -> Path:
    """Where the page of a template lies: the readme at the root, others in docs/."""
    return paths.ROOT / template if template == "README.md" else paths.ROOT / "docs" / template


def names() -> list[str]:
    """The templates' names."""
    return sorted(path.name for path in TEMPLATES.glob("*.md"))


def render(template: str, tables: Tables | None = None, folder: Path = TEMPLATES) -> str:
    """A page as text.

    Args:
        template: name of its template.
        tables: the tables that it speaks of; the committed ones if not given.
        folder: where templates lie.

    Raises:
        StudyError: a finding turned; a value, table, row or column that is not there; a mistake in the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    tables = tables or Tables()
    environment.globals |= {
        "row": tables.row,
        "rows": tables.rows,
        "verdict": tables.verdict,
        "compare": compare,
        "finding": finding,
        "verdicts": lambda name: verdicts(tables.table(name)),
        "told": lambda name, statement="", **where: told(tables, name, statement, **where),
        "exp": math.exp,
        "level": LEVEL,
        "power": POWER,
        "card": _card,
    }
    environment.filters |= {"fixed": fixed, "percent": percent, "signed": signed, "interval": interval}
    try:
        text = environment.get_template(template).render()
        return MADE.format(template) + re.sub(r"\n{3,}", "\n\n", text)
    except StudyError as error:
        raise StudyError(f"docs/templates/{template}: {error}") from error
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise StudyError(f"docs/templates/{template}{line}: {error.message}") from error


def _card(name: str) -> Any:
    """`task_cards.card`, whose libraries take seconds to import and one page alone needs."""
    from tools.docs.task_cards import card

    return card(name)


# ---------------------------------------------------------------------------------------------------- what is said


def finding(name: str, *checks: Check, caller: Callable[[], str]) -> str:
    """A paragraph, if the tables still say what it says: `{% call finding("name", verdict(...)) %}...{% endcall %}`.

    Raises:
        StudyError: they do not, or nothing is checked.
    """
    if not checks:
        raise StudyError(f"finding {name!r} is tied to nothing: give it what it claims (verdict, compare)")
    for check in checks:
        if not check.true:
            raise StudyError(f"finding {name!r} turned: the prose says that {check.words}, but {check.found}")
    text = " ".join(caller().split()).replace(" %", NO_BREAK + "%")
    text = textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False).replace(NO_BREAK, " ")
    return ("\n" if text.startswith("**") else "") + text + "\n"  # a bold answer begins a paragraph


def verdicts(table: pd.DataFrame) -> str:
    """A notebook's statements and their verdicts, folded."""
    shown = shown_verdicts(table)
    head, rule = "| " + " | ".join(shown.columns) + " |", "| " + " | ".join("---" for _ in shown.columns) + " |"
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in shown.to_numpy()]
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    return "\n".join([f"<details><summary>Statements: {summary}</summary>", "", head, rule, *lines, "", "</details>"])


def told(tables: Tables, name: str, statement: str = "", **where: Any) -> str:
    """What the data say of a statement of a table of verdicts, in a line; of the primary one if none is named.

    Args:
        tables: the tables.
        name: name of a table of verdicts.
        statement: its statement, word for word.
        where: what else names the row.

    Raises:
        StudyError: no such table, or no one such statement in it.
    """
    row = tables.row(name, **where, **({"statement": statement} if statement else {"role": "primary"}))
    statement = row.statement.replace("|", "\\|")
    return f"*{row.verdict}*: {statement} ({row.measured:.3g} against {row.threshold:.3g})"


# ---------------------------------------------------------------------------------------------------- numbers


def fixed(value: Any, digits: int = 0) -> str:
    """A number with so many digits after the point, thousands separated.

    Raises:
        StudyError: an empty cell, or an accuracy, which is printed with its items (print it as it is).
    """
    if isinstance(value, Accuracy):
        raise StudyError("an accuracy is printed with its number of items: leave the filter out")
    if isinstance(value, jinja2.Undefined) or not math.isfinite(value):
        raise StudyError("an empty cell cannot be printed")
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(value: Any, digits: int = 0) -> str:
    """A share as percent; errors as `fixed`."""
    return f"{fixed(value if isinstance(value, Accuracy) else 100 * value, digits)} %"


def signed(value: float, digits: int = 0) -> str:
    """A number with its sign; errors as `fixed`."""
    return ("+" if value >= 0 else "") + fixed(value, digits)


def interval(row: Row, column: str, digits: int = 0, scale: float = 1) -> str:
    """The 95 % interval of a column, as "low to high"."""
    low, high = (f"{column}_{end}" if f"{column}_{end}" in row else end for end in ("low", "high"))
    return f"{fixed(scale * row[low], digits)} to {fixed(scale * row[high], digits)}"
