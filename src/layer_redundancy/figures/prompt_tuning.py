"""Figures of notebook 12: the first blocks alone, tuned for classification."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from layer_redundancy.figures.parts import band, band_handle
from layer_redundancy.figures.style import BASELINES, BLACK, METHODS, WIDTH, styled

COLUMNS = 3  # panels beside one another


@styled
def accuracy_by_kept_blocks(rows: pd.DataFrame, levels: pd.DataFrame) -> Figure:
    """Accuracy by the number of kept blocks, a panel a data set.

    Args:
        rows: one row a (dataset, method, kept): accuracy (0 to 1), low, high (95 % interval), seed_low, seed_high (the
            seeds' range), seeds, n (items).
        levels: one row a dataset, with a column for each of `LEVELS` (0 to 1).
    """
    names, methods = (list(dict.fromkeys(rows[column])) for column in ("dataset", "method"))
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(WIDTH, 3.1 * lines + 0.7), squeeze=False, sharey=True, layout="constrained"
    )
    levels = levels.set_index("dataset")
    for axes, name in zip(grid.flat, names, strict=False):
        for column, (label, colour, line) in BASELINES.items():
            axes.axhline(levels[column][name], color=colour, ls=line, lw=1.2, label=label, zorder=1)
        for method in methods:
            part = rows[(rows["dataset"] == name) & (rows["method"] == method)].sort_values("kept")
            colour, marker = METHODS[method]
            band(axes, part, "kept", colour)
            axes.plot(part["kept"], part["accuracy"], marker=marker, color=colour, label=method, zorder=3)
            axes.vlines(part["kept"], part["seed_low"], part["seed_high"], color=colour, lw=1.1, alpha=0.7, zorder=2)
        axes.set_title("mean of the data sets" if name == "mean" else name.replace("_", " "))
        _kept_axis(axes, rows["kept"])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    handles.append(band_handle())
    seeds, items = int(rows["seeds"].max()), " to ".join(f"{n:.0f}" for n in sorted({rows["n"].min(), rows["n"].max()}))
    labels.append(f"95 % interval; upright: range of {seeds} seed{'s' * (seeds > 1)}, n={items} texts each")
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    return figure


@styled
def tuning_costs(rows: pd.DataFrame) -> Figure:
    """Weights, memory and time by the number of kept blocks.

    Args:
        rows: one row a (method, kept): parameters, inference_bytes, training_bytes (peaks), seconds (an item),
            fastest, slowest.
    """
    figure, grid = plt.subplots(1, 3, figsize=(WIDTH, 3.7), layout="constrained")
    of_model = rows.drop_duplicates("kept").sort_values("kept")
    memory, time, training = grid[0], grid[2], grid[1]
    memory.plot(of_model["kept"], 4 * of_model["parameters"] / 1e6, ":", color=BLACK, label="weights at 4 bytes")
    for method, part in rows.groupby("method", sort=False):
        part = part.sort_values("kept")
        colour, marker = METHODS[method]
        memory.plot(part["kept"], part["inference_bytes"] / 1e6, marker=marker, color=colour, label=method)
        training.plot(part["kept"], part["training_bytes"] / 1e6, marker=marker, color=colour)
        time.plot(part["kept"], 1e3 * part["seconds"], marker=marker, color=colour)
        time.fill_between(
            part["kept"], 1e3 * part["fastest"], 1e3 * part["slowest"], color=colour, alpha=0.25, lw=0, zorder=1
        )
    for axes, title, label in (
        (memory, "memory at inference", "peak (MB)"),
        (training, "memory at training", "peak (MB)"),
        (time, "time at inference", "milliseconds a text"),
    ):
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        # Not on a scale of factors: a straight line is what there is to see.
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set_xlim(left=0)
        axes.set_xlabel("first blocks kept")
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def _kept_axis(axes: Axes, kept: pd.Series) -> None:
    """Numbers of blocks, on a scale of factors, since the first few are what is asked about."""
    ticks = sorted(set(kept))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xlabel("first blocks kept")
