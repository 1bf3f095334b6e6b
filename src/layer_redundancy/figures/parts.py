"""Pieces that several figures share: axes, bands, intervals, legends, and panels of perplexity and accuracy."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from layer_redundancy.core.wording import span
from layer_redundancy.figures.style import GREY, LEGEND_SIZE, SERIES, VERMILLION, WIDTH, style_of, text_width, words

LINEAR_TO = 0.1  # nats of damage up to which an axis of damage is linear: there, what is nothing lies at 0
_BAND: dict[str, Any] = {"alpha": 0.25, "lw": 0}
_CHANCE: dict[str, Any] = {"color": GREY, "ls": (0, (4, 2))}


def band(axes: Axes, rows: pd.DataFrame, x: str, colour: str, label: str | None = None) -> None:
    """Shades the stretch between the columns low and high, where there are such."""
    if {"low", "high"} <= set(rows.columns) and rows[["low", "high"]].notna().any(axis=None):
        low, high = rows["low"].astype(float), rows["high"].astype(float)
        axes.fill_between(rows[x].astype(float), low, high, color=colour, **_BAND, label=label, zorder=1)


def band_handle(label: str = "") -> Patch:
    """A legend's entry for bands of any colour."""
    return Patch(color=GREY, **_BAND, label=label)


def interval(rows: pd.DataFrame, value: str, low: str = "low", high: str = "high") -> np.ndarray:
    """(2, N) distances from a column to the ends of its interval, as matplotlib's error bars want them."""
    return np.abs(rows[[low, high]].sub(rows[value], axis=0)).to_numpy(float).T


def chance_line(axes: Axes, accuracy: float, label: str | None = None) -> None:
    """Dashes at what guessing reaches."""
    axes.axhline(accuracy, **_CHANCE, lw=1.2, zorder=1, gid="chance", label=label)


def chance_handle(**options: Any) -> Line2D:
    """A legend's entry for lines of chance."""
    return Line2D([], [], **_CHANCE, **options)


def log_axis(axes: Axes, which: Literal["x", "y"], minor_size: float | None = 8) -> None:
    """Makes the x or y axis logarithmic, with plain numbers at its minor ticks too."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
    if minor_size is not None:
        axes.tick_params(axis=which, which="minor", labelsize=minor_size)


def whole_ticks(axes: Axes, values: Iterable[float], ticks: int, **options: Any) -> None:
    """Ticks of an x axis at whole numbers only, also where there is a single one."""
    fewest = min(2, len(set(values)))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=fewest, **options))


def block_axis(axes: Axes, blocks: Iterable[int], label: str = "block index (0 = first)", ticks: int = 21) -> None:
    """An x axis of whole blocks."""
    blocks = list(blocks)
    axes.set_xlim(min(blocks) - 0.7, max(blocks) + 0.7)
    whole_ticks(axes, blocks, ticks, steps=[1, 2, 5, 10])
    axes.set_xlabel(label)


def share_axis(axes: Axes) -> None:
    """An x axis of the share of blocks removed, in percent."""
    axes.set_xlim(-2, 100)
    axes.xaxis.set_major_locator(MaxNLocator(11))
    axes.set_xlabel("blocks removed (%)")


def row_labels(
    axes: Axes, blocks: Iterable[int], offset: float = 0.0, label: str = "block, removed first at the top"
) -> None:
    """Labels the y axis with blocks, one a row."""
    blocks = list(blocks)
    size = 9 if len(blocks) <= 34 else 7
    axes.set_yticks(np.arange(len(blocks)) + offset, [str(block) for block in blocks], size=size, rotation=0)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel(label)


def height_of_block_rows(rows: int) -> float:
    """Inches of a figure with one row a block."""
    return 1.6 + max(rows * (0.165 if rows <= 34 else 0.125), 1.6)


def heat_map(axes: Axes, table: pd.DataFrame, label: str = "", ticks: int = 32, **options: Any) -> None:
    """Draws a table's cells as colours, with a bar beside them; the first row at the top.

    Args:
        options: further options of `seaborn.heatmap`.
    """
    bar = {"label": label, "pad": 0.02, "fraction": 0.06, "aspect": max(30, len(table))}
    sns.heatmap(table, ax=axes, cbar_kws=bar, xticklabels=False, yticklabels=False, **options)
    axes.set_facecolor("#efefef")  # cells that do not exist
    axes.grid(False)
    for set_ticks, values in ((axes.set_xticks, table.columns), (axes.set_yticks, table.index)):
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(values) <= ticks * step)
        chosen = [place for place, value in enumerate(values) if value % step == 0]
        set_ticks([place + 0.5 for place in chosen], [str(values[place]) for place in chosen])
    axes.tick_params(length=0, rotation=0)


def choose_y_scale(axes: Axes, values: Iterable[float], log: bool | None = None) -> bool:
    """Makes the y axis logarithmic where values span more than a factor of 20, or as `log` says; with plain ticks.

    Returns:
        Whether it is logarithmic.
    """
    finite = np.asarray(list(values), float)
    finite = finite[np.isfinite(finite)]
    span = finite.max() / finite.min() if len(finite) and finite.min() > 0 else 1.0
    if not (span > 20 if log is None else log):
        return False
    axes.set_yscale("log")
    if span < 2.5:  # too narrow for powers of ten and their parts
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1e3 else (1,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator() if span < 1e3 else LogLocator(subs=range(2, 10), numticks=99))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    return True


def legend_above(
    axes: Axes, handles: list | None = None, labels: list | None = None, title: str = "", width: float = WIDTH
) -> None:
    """Legend above the axes, where no data can be, in as many columns as fit so many inches."""
    if handles is None:
        handles, labels = axes.get_legend_handles_labels()
    labels = list(labels or [])
    if title:
        handles, labels = [*handles, Line2D([], [], ls="")], [*labels, title]
    widest = max(text_width(label, LEGEND_SIZE) for label in labels) + 4.2 * LEGEND_SIZE  # handle and gaps
    columns = int(np.clip((width - 0.9) * 72 // widest, 1, len(labels)))
    side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0.2)}
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, columnspacing=1.6,
        handler_map=side_by_side,
    )  # fmt: skip


def damage_axis(axes: Axes, label: str) -> None:
    """A y axis of what is lost, in nats: linear around nothing, logarithmic beyond."""
    axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=0.5)
    axes.axhline(0, color=GREY, lw=1.2, zorder=1)
    low, high = axes.get_ylim()
    ticks = [-1, -LINEAR_TO, 0, LINEAR_TO, 0.3, 1, 3, 10, 30]
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label)


def damage_panel(axes: Axes, rows: pd.DataFrame, x: str = "block", label: str = "text, one block removed") -> None:
    """Draws what text loses, in nats a token against the dense model, with its interval.

    Args:
        rows: columns x, log_increase; optionally log_increase_low, log_increase_high. Values that are not finite are
            drawn as triangles at the upper edge.
    """
    rows = rows.sort_values(x)
    colour, marker = SERIES["perplexity"]
    values = rows["log_increase"].astype(float).replace([np.inf, -np.inf], np.nan)
    size = 4.5 if len(rows) <= 40 else 3
    axes.plot(rows[x], values, marker=marker, ms=size, color=colour, label=label)
    if {"log_increase_low", "log_increase_high"} <= set(rows.columns):
        ends = rows.assign(low=rows["log_increase_low"], high=rows["log_increase_high"])
        band(axes, ends[values.notna()], x, colour, label="95 % interval")
    damage_axis(axes, "loss above the dense model's\n(nats a token)")
    gone = rows[x][values.isna()]
    if len(gone):
        place = axes.get_xaxis_transform()  # x in data, y from 0 (foot) to 1 (top)
        axes.plot(gone, [0.97] * len(gone), "^", color=VERMILLION, transform=place, clip_on=False, label="not finite")
    legend_above(axes)


def accuracy_panel(
    axes: Axes,
    rows: pd.DataFrame,
    dense: pd.DataFrame | None,
    x: str = "block",
    width: float = WIDTH,
    rules: pd.DataFrame | None = None,
) -> None:
    """Draws accuracy with its interval, a line a (task, metric), with the dense model's level and chance.

    Args:
        rows: columns x, task, metric, accuracy, low, high, n, chance.
        dense: rows of the dense model: task, metric, accuracy.
        width: inches that the legend may take.
        rules: accuracies of rules that read nothing: task, accuracy; the largest of each task is drawn.
    """
    series = list(rows.groupby(["task", "metric"], sort=False))
    tasks = list(dict.fromkeys(rows["task"]))
    seen: dict[str, int] = {}
    handles: list[Any] = []
    labels: list[str] = []
    for (task, metric), part in series:
        part = part.sort_values(x)
        colour, marker = style_of(task, tasks)
        again = seen.get(task, 0)  # a second metric of a task keeps its colour, with hollow markers
        seen[task] = again + 1
        dashes = ("-", ":")[again % 2]
        many = part[x].nunique() > 10
        points = axes.errorbar(
            part[x],
            part["accuracy"],
            yerr=None if many else interval(part, "accuracy"),
            color=colour,
            ls=dashes,
            lw=1.2,
            elinewidth=0.8,
            marker=marker,
            ms=4.5 if part[x].nunique() <= 40 else 2.5,
            mfc="white" if again else colour,
        )
        if many:
            band(axes, part, x, colour)
        handles.append(points)
        labels.append(f"{words(task)}{f', {metric}' if len(series) > len(tasks) else ''} ({_items(part)})")
        if dense is not None:
            for value in dense.loc[(dense["task"] == task) & (dense["metric"] == metric), "accuracy"]:
                axes.axhline(value, color=colour, lw=0.9, ls=dashes, zorder=1, gid="dense")
    chances = rows.groupby("task", sort=False)["chance"].first().dropna()
    for value, same in chances.groupby(chances, sort=False):
        for turn, task in enumerate(same.index):  # tasks of equal chance share one line, in dashes of either colour
            dashed: Any = (5 * turn, (4, 5 * len(same) - 4))
            axes.axhline(value, color=style_of(task, tasks)[0], lw=1.4, ls=dashed, zorder=1, gid="chance")
            handles.append(Line2D([], [], color=style_of(task, tasks)[0], lw=1.4, ls=(0, (4, 2))))
            labels.append(f"{words(task)}: chance")
    if dense is not None and len(dense):
        handles.append(tuple(Line2D([], [], color=style_of(task, tasks)[0], lw=0.9) for task in tasks))
        labels.append("dense model")
    known = pd.DataFrame() if rules is None else rules[rules["task"].isin(tasks)]
    if len(known):
        of_task = known.groupby("task")["accuracy"]
        for task, largest in of_task.max().items():
            axes.axhline(largest, color=style_of(task, tasks)[0], lw=1.4, ls=":", zorder=1, gid="rule")
        handles.append(tuple(Line2D([], [], color=style_of(task, tasks)[0], lw=1.4, ls=":") for task in tasks))
        labels.append(f"largest of {span(of_task.size())} rules without a model")
    axes.set_ylabel("accuracy")
    legend_above(axes, handles, labels, width=width)


def _items(rows: pd.DataFrame) -> str:
    counts = [int(n) for n in rows["n"].dropna()]
    return f"n = {span(counts)}" if counts else "n unknown"
