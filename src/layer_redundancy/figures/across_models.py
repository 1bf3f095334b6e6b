"""The figures of notebook 14: several models beside each other, by share of their blocks or weights."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from layer_redundancy.figures.parts import interval, legend_above
from layer_redundancy.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    styled,
    title_of,
    words,
)

_LOOKS = (
    (BLUE, "o"),
    (VERMILLION, "D"),
    (GREEN, "s"),
    (ORANGE, "^"),
    (PURPLE, "v"),
    (SKY, "P"),
    (BLACK, "X"),
    (GREY, "*"),
)
_APART = 0.62  # of the space between two rows, for all models together


@styled
def damage(table: pd.DataFrame) -> Figure:
    """What equal shares of the blocks, and of the weights, cost each model.

    Args:
        table: model, of ("blocks" or "weights"), ratio (percent asked for), rise, low, high (percent of the whole
            model's bits a byte; 95 % interval), n; rows without a rise are shares that removals do not reach.
    """
    kinds = ["blocks", "weights"]
    figure, both = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained", sharey=True)
    models = list(dict.fromkeys(table["model"]))
    ratios = sorted(table["ratio"].unique())
    for axes, kind in zip(both, kinds, strict=True):
        for (model, offset), (colour, marker) in zip(_offsets(models), _looks(models), strict=True):
            rows = table[(table["model"] == model) & (table["of"] == kind)].dropna(subset="rise")
            at = [ratios.index(ratio) + offset for ratio in rows["ratio"]]
            axes.errorbar(
                at,
                rows["rise"],
                interval(rows, "rise"),
                color=colour,
                marker=marker,
                ls="",
                elinewidth=1.1,
                label=model,
            )
        axes.axhline(0, color=GREY, lw=1.6, zorder=1, gid="dense")
        axes.set_yscale("symlog", linthresh=1, linscale=0.4)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
        axes.set_xlim(-0.5, len(ratios) - 0.5)
        axes.set_title("by share of the blocks" if kind == "blocks" else "by share of all weights, the embedding too")
        axes.set_xlabel(f"{kind} removed (%)")
    both[0].set_ylabel("rise of the bits a byte\n(% of the whole model's)")
    _legend(figure, both[0], f"n = {table['n'].iloc[0]} passages, 95 % interval")
    return figure


@styled
def depths(table: pd.DataFrame) -> Figure:
    """Where the quarter of the blocks lies that each measure removes.

    Args:
        table: a row a (model, measure, block): model, measure, depth (percent of the model's depth).
    """
    names = list(dict.fromkeys(table["measure"]))
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + 0.19 * len(names) * (1 + len(models))), layout="constrained")
    for (model, offset), (colour, marker) in zip(_offsets(models), _looks(models), strict=True):
        rows = table[table["model"] == model]
        at = [names.index(name) + offset for name in rows["measure"]]
        axes.plot(rows["depth"], at, color=colour, marker=marker, ls="", label=model)
    _rows(axes, [title_of(name) for name in names])
    axes.set_xlim(0, 100)
    axes.set_xlabel("where the removed blocks lie (% of the depth)")
    legend_above(axes)
    return figure


@styled
def ranks(table: pd.DataFrame) -> Figure:
    """How well Block Influence foretells what a block's removal costs, on text and by task.

    Args:
        table: model, on, tau with its 95 % interval low, high.
    """
    names = list(dict.fromkeys(table["on"]))
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6 + 0.24 * len(names) * (1 + len(models))), layout="constrained")
    for (model, offset), (colour, marker) in zip(_offsets(models), _looks(models), strict=True):
        rows = table[table["model"] == model]
        at = [names.index(name) + offset for name in rows["on"]]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "", "elinewidth": 1.1, "label": model}
        axes.errorbar(rows["tau"], at, xerr=interval(rows, "tau"), **style)
    axes.axvline(0, color=GREY, lw=1.6, zorder=1)
    _rows(axes, [words(name) for name in names])
    axes.set_xlim(-1, 1)
    axes.set_xlabel(
        "Kendall's tau of Block Influence and what a block's removal costs (1: the same order), 95 % interval"
    )
    legend_above(axes)
    return figure


@styled
def capabilities(table: pd.DataFrame) -> Figure:
    """What is left of each capability at a few shares of the blocks.

    Args:
        table: model, on, share (percent of the blocks removed), left with its 95 % interval left_low, left_high
            (percent of what exceeds a model without nearly all of its blocks), n; no row without left.
    """
    names = list(dict.fromkeys(table["on"]))
    models = list(dict.fromkeys(table["model"]))
    figure, every = plt.subplots(1, len(names), figsize=(WIDTH, 4.0), layout="constrained", sharey=True, squeeze=False)
    for axes, name in zip(every[0], names, strict=True):
        for (model, offset), (colour, marker) in zip(_offsets(models), _looks(models), strict=True):
            rows = table[(table["model"] == model) & (table["on"] == name)].sort_values("share")
            error = interval(rows, "left", "left_low", "left_high")
            style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "-", "elinewidth": 1.1, "label": model}
            axes.errorbar(rows["share"] + 2 * offset, rows["left"], error, **style)
        counts = sorted(set(table.loc[table["on"] == name, "n"]))
        axes.set_title(f"{words(name)}, n = {' or '.join(map(str, counts))}")
        axes.axhline(100, color=GREY, lw=1.2, zorder=1)
        axes.axhline(0, color=GREY, lw=1.2, ls="--", zorder=1, gid="floor")
        axes.set_xlim(0, 60)
        axes.set_xlabel("blocks removed (%)")
    every[0, 0].set_ylabel("left of the accuracy above that of\na model with one block (%), 95 % interval")
    _legend(figure, every[0, 0], "")
    return figure


def _offsets(models: Sequence[str]) -> list[tuple[str, float]]:
    """Each model with its place around the middle of a row, the first above."""
    places = (np.arange(len(models)) - (len(models) - 1) / 2) * _APART / max(1, len(models))
    return list(zip(models, map(float, places), strict=True))


def _looks(models: Sequence[str]) -> list[tuple[str, str]]:
    return [_LOOKS[place % len(_LOOKS)] for place in range(len(models))]


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names of rows, the first at the top, with a line between two."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for between in range(1, len(labels)):
        axes.axhline(between - 0.5, color="#e4e4e4", lw=0.7, zorder=0)


def _legend(figure: Figure, axes: Axes, note: str) -> None:
    """Above all panels, the models and a note."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(4, len(labels)), title=note or None, alignment="left"
    )
