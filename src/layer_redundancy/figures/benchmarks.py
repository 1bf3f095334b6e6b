"""The figure of notebook 08: what is left by method of pruning, measured here and as the paper prints it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import chance_line, interval
from layer_redundancy.figures.style import GREY, LEGEND_SIZE, WIDTH, style_of, styled

HOLLOW = "Dsv^"


@styled
def method_accuracies(measured: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Accuracy of the dense and the pruned models (figure 1): measured on the left, the paper's on the right.

    Args:
        measured: one row a (model, task): model, task, accuracy, low, high (95 % interval; NaN for none), n, chance. It
            may have no row.
        reported: published accuracies of MMLU: method, model, accuracy (0 to 1).
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 4.6), layout="constrained", sharey=True, width_ratios=[1.7, 1]
    )
    _measured_panel(left, measured)
    methods = list(dict.fromkeys(reported["method"]))
    models = list(reported.groupby("model", sort=False))
    for place, (model, part) in enumerate(models):
        shift = (place - (len(models) - 1) / 2) * 0.12
        x = [methods.index(method) + shift for method in part["method"]]
        marker = HOLLOW[place % len(HOLLOW)]
        right.plot(x, part["accuracy"], marker, ls="", ms=6, mfc="white", mec=GREY, mew=1.2, label=model)
    chance_line(right, 0.25)
    _name(right, methods, "method of pruning")
    right.set_title("MMLU as the paper prints it")
    right.legend(loc="upper right", fontsize=LEGEND_SIZE)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=LEGEND_SIZE)
    left.set_ylim(0, 1.02)
    return figure


def _measured_panel(axes: Axes, rows: pd.DataFrame) -> None:
    """Draws every task, with its chance in its colour."""
    models, tasks = list(dict.fromkeys(rows["model"])), list(dict.fromkeys(rows["task"]))
    for place, task in enumerate(tasks):
        part = rows[rows["task"] == task]
        colour, marker = style_of(task, tasks)
        shift = (place - (len(tasks) - 1) / 2) * 0.5 / len(tasks)
        axes.errorbar(
            [models.index(model) + shift for model in part["model"]],
            part["accuracy"],
            yerr=interval(part, "accuracy"),
            color=colour,
            ls="",
            marker=marker,
            ms=6,
            label=f"{task}, n={int(part['n'].iloc[0])}",
        )
    chances = rows.groupby("task", sort=False)["chance"].first().dropna()
    for value, same in chances.groupby(chances, sort=False):
        for turn, task in enumerate(same.index):  # tasks of equal chance share one line, in dashes of each colour
            dashes = (5 * turn, (4, 5 * len(same) - 4))
            axes.axhline(value, color=style_of(task, tasks)[0], lw=1.3, ls=dashes, zorder=1, gid="chance")
    if rows.empty:
        axes.text(0.5, 0.5, "no benchmark on enough items", transform=axes.transAxes, ha="center", color=GREY)
    axes.plot([], [], color=GREY, lw=1.3, ls=(0, (4, 2)), label="chance")
    _name(axes, models, "model, and how many of its blocks are removed")
    axes.set_ylabel("accuracy")
    axes.set_title("Measured here, 95 % intervals")


def _name(axes: Axes, names: list[str], label: str) -> None:
    """Names the places of an x axis, aslant."""
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], rotation=35, ha="right")
    axes.set_xlim(-0.5, max(1, len(names)) - 0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", visible=False)
