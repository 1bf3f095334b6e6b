"""Figures of notebook 04: importance measures compared."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from layer_redundancy.figures.parts import band, band_handle, chance_handle, chance_line, interval, legend_above
from layer_redundancy.figures.style import BLACK, GREY, WIDTH, style_of, styled, title_of, words

LINEAR_TO = 1.0  # nats of gap to the greedy order up to which the axis is linear; beyond, a model is ruined


def titles(metric: str) -> str:
    """Names for people of measures that stand together in a cell, with commas between."""
    return ", ".join(map(title_of, metric.split(", ")))


def _style(metric: str) -> tuple[str, str]:
    return style_of(metric.split(", ")[0])


@styled
def gap_to_greedy(gaps: pd.DataFrame, accuracy: pd.DataFrame, rules: pd.DataFrame) -> Figure:
    """What each measure's order of removal loses beside the greedy one, and what it leaves of each task.

    Args:
        gaps: one row a (metric, depth): metric (measures of equal orders together, with commas between), share
            (percent of blocks removed), weights (percent of weights), gap (nats), low, high (95 % interval).
        accuracy: one row a (metric, task, depth): metric ("" for the dense model), share, task, accuracy, low, high
            (95 % interval), n, chance.
        rules: rules without a model: task, accuracy; the largest of each task is drawn, without an interval, since it
            was picked on the very items.
    """
    tasks = list(dict.fromkeys(accuracy["task"]))
    counts = sorted(set(rules["task"].value_counts()))
    picked = f"largest of {' to '.join(map(str, counts[:1] + counts[1:][-1:]))} rules without a model"
    figure = plt.figure(figsize=(WIDTH, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, len(tasks), height_ratios=[1.15, 1])
    _gaps(figure.add_subplot(grid[0, :]), gaps)
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(grid[1, place])
        _task(axes, accuracy[accuracy["task"] == task], rules[rules["task"] == task], "" if place else picked)
        axes.tick_params(labelleft=not place)
        axes.set_ylabel("" if place else "accuracy")
    return figure


def _gaps(axes: Axes, gaps: pd.DataFrame) -> None:
    metrics = [metric for metric in dict.fromkeys(gaps["metric"]) if metric != "greedy"]
    for metric in metrics:
        part = gaps[(gaps["metric"] == metric) & (gaps["count"] > 0)].sort_values("share")
        colour, marker = _style(metric)
        front = 4 if metric.startswith("block_influence") else 2
        axes.plot(part["share"], part["gap"], marker=marker, color=colour, label=titles(metric), zorder=front)
        band(axes, part, "share", colour)
    axes.axhline(0, color=BLACK, lw=1.4, ls="--", zorder=3)
    axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=1.6)
    ticks = [-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20]
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"loss above the greedy order's\n(nats a token; linear to {LINEAR_TO:g})")
    axes.set_xlim(0, 51.5)
    shares = np.arange(0, 51, 10)
    axes.set_xticks(shares)
    axes.set_xlabel("blocks removed (%)")
    if gaps["weights"].max() > 0:  # blocks weigh about the same
        weights = shares * gaps["weights"].max() / gaps["share"].max()
        axes.set_xticks(shares, [f"{share}\n({weight:.0f})" for share, weight in zip(shares, weights, strict=True)])
        axes.set_xlabel("blocks removed (%); in brackets: weights removed (%)")
    handles, labels = axes.get_legend_handles_labels()
    greedy = Line2D([], [], color=BLACK, ls="--", marker=style_of("greedy")[1])
    legend_above(axes, [*handles, greedy, band_handle()], [*labels, titles("greedy"), "95 % interval"])


def _task(axes: Axes, rows: pd.DataFrame, rules: pd.DataFrame, picked: str) -> None:
    """Draws one task; with a legend that says what rule was picked, if it is to have one."""
    metrics = [metric for metric in dict.fromkeys(rows["metric"]) if metric]
    shares = sorted(set(rows.loc[rows["metric"] != "", "share"]))
    for place, metric in enumerate(metrics):
        part = rows[rows["metric"] == metric].sort_values("share")
        colour, marker = _style(metric)
        at = [shares.index(share) + 0.7 * ((place + 0.5) / len(metrics) - 0.5) for share in part["share"]]
        axes.errorbar(
            at, part["accuracy"], yerr=interval(part, "accuracy"), color=colour, marker=marker, ls="", elinewidth=1.1
        )
    dense, name = rows[rows["metric"] == ""].iloc[0], words(rows["task"].iloc[0])
    axes.axhline(dense["accuracy"], color=GREY, lw=1.6, zorder=1, gid="dense")
    axes.axhspan(dense["low"], dense["high"], color=GREY, alpha=0.15, lw=0, zorder=0)
    chance_line(axes, dense["chance"])
    handles = [Line2D([], [], color=GREY, lw=1.6), chance_handle()]
    labels = ["dense model", "chance"]
    if len(rules):
        axes.axhline(rules["accuracy"].max(), color=GREY, ls=":", lw=1.4, zorder=1, gid="rule")
        handles, labels = (
            [*handles, Line2D([], [], color=GREY, ls=":", lw=1.4)],
            [*labels, picked],
        )
    if picked:
        legend = axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, columnspacing=1.2)
        legend.set_in_layout(False)  # it may reach over the next panel, which has none
    axes.set_title(f"{name}, n = {int(dense['n'])}", loc="left", pad=24)
    axes.set_xticks(range(len(shares)), [f"{share:.0f} %" for share in shares])
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("blocks removed")


@styled
def order_correlation(table: pd.DataFrame) -> Figure:
    """Rank correlation between the removal orders of measures.

    Args:
        table: one row a pair: a, b (measures of equal orders together, with commas between), tau (Kendall).
    """
    names = list(dict.fromkeys(table["a"]))
    square = table.pivot(index="a", columns="b", values="tau").loc[names, names]  # noqa: PD010 - see angular_grid
    figure, axes = plt.subplots(figsize=(WIDTH, 1.7 + 0.5 * len(names)), layout="constrained")
    bar = {"label": "Kendall's tau", "pad": 0.02, "fraction": 0.06}
    sns.heatmap(
        square, ax=axes, cbar_kws=bar, cmap="PuOr", vmin=-1, vmax=1, annot=True, fmt=".2f", annot_kws={"size": 9}
    )
    axes.grid(False)
    axes.set_xlabel("order of removal by")
    axes.set_ylabel("order of removal by")
    labels = [titles(name) for name in names]
    broken = [label.replace(", ", ",\n").replace(" ", "\n", 1) for label in labels]
    axes.set_xticks(np.arange(len(names)) + 0.5, broken, rotation=0)
    axes.set_yticks(np.arange(len(names)) + 0.5, labels, rotation=0)
    axes.tick_params(length=0)
    return figure
