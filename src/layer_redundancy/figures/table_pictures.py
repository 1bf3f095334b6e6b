"""Tables as files: CSV, Markdown, and pictures of them."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.core.arguments import shown
from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures.saving import check_name, save
from layer_redundancy.figures.style import BLACK, WIDTH, settings, text_width


def save_table(
    data: pd.DataFrame, folder: Path, name: str, caption: str, shown_as: pd.DataFrame | None = None
) -> list[Path]:
    """Writes a table as <name>.csv (all digits that count), .md (for the README), .png and .pdf (drawn).

    In .md and images, numbers have about four significant digits, a column the same decimals, and NaN is a dash.
    Arguments, paths returned and errors raised are those of `saving.save`; `shown_as` is the table for .md and images,
    where people need less than the file has.
    """
    check_name(name)
    if not isinstance(data, pd.DataFrame):
        raise StudyError(f"{shown(data)} is no table: give a pandas DataFrame")
    seen = data if shown_as is None else shown_as
    cells, numeric = _cells(seen), _numeric(seen)
    with settings():
        figure = _table_figure(cells, right=[column in numeric for column in seen.columns])
    plt.close(figure)
    rows = [list(cells.columns), ["--:" if c in numeric else ":--" for c in seen.columns], *cells.to_numpy().tolist()]
    rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    markdown = "\n".join([*rows, "", f"*{caption}*", ""])
    return save(figure, data, folder, name, caption, markdown)


def _numeric(data: pd.DataFrame) -> list:
    return [c for c in data.columns if pd.api.types.is_numeric_dtype(data[c]) and data[c].dtype != bool]


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    """The frame as text, ready to print."""
    cells = pd.DataFrame(index=data.index)
    for column in data.columns:
        values = data[column]
        if column in _numeric(data) and not pd.api.types.is_integer_dtype(values):
            sizes = values.abs()[np.isfinite(values.astype(float)) & (values != 0)]
            whole = bool((sizes % 1 == 0).all())
            # From a quartile, so that a few exploded perplexities do not hide the digits of the others.
            decimals = 0 if whole else int(np.clip(3 - np.floor(np.log10(sizes.quantile(0.75))), 0, 6))
            cells[column] = [_number(value, decimals) for value in values]
        else:
            cells[column] = [_text(value) for value in values]
    cells.columns = [str(column).replace("_", " ") for column in data.columns]
    return cells


def _number(value: float, decimals: int) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.3g}" if abs(value) >= 1e7 else f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0.00


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return "–" if value is None or value is pd.NA or value != value else str(value)


def _table_figure(cells: pd.DataFrame, right: list[bool]) -> Figure:
    """The cells drawn as a plain table in the common width; long text is wrapped, wide tables get small type."""
    wrapped = [["\n".join(textwrap.wrap(cell, 60)) for cell in row] for row in cells.to_numpy().tolist()]
    head = ["\n".join(textwrap.wrap(column, 12)) for column in cells.columns]
    size = 9.0
    gap = 1.6 * size
    wide = []
    for title, *column in zip(head, *wrapped, strict=True):
        bold = 1.15 * max(text_width(line, size) for line in title.split("\n"))
        wide.append(max(bold, *(text_width(line, size) for cell in column for line in cell.split("\n")), 0.0) + gap)
    shrink = min(1.0, (WIDTH - 0.3) * 72 / sum(wide))
    size, wide = size * shrink, [w * shrink for w in wide]
    lines = [max(1, *(cell.count("\n") + 1 for cell in row)) for row in [head, *wrapped]]
    line, pad = 1.3 * size, 0.75 * size
    heights = [count * line + pad for count in lines]
    total = sum(heights) + 8
    figure = plt.figure(figsize=(WIDTH, total / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, (WIDTH - 0.1) * 72), ylim=(total, 0))
    axes.axis("off")
    y = 2.0
    for index, (row, height) in enumerate(zip([head, *wrapped], heights, strict=True)):
        x = 6.0
        for cell, width, flush in zip(row, wide, right, strict=True):
            at, side = (x + width - gap * shrink, "right") if flush else (x, "left")
            weight = "bold" if index == 0 else "normal"
            axes.text(at, y + height / 2, cell, ha=side, va="center", size=size, weight=weight, parse_math=False)
            x += width
        y += height
        axes.hlines(y, 2, x - gap * shrink + 6, color=BLACK if index == 0 else "#dddddd", lw=1.0 if index == 0 else 0.6)
    return figure
