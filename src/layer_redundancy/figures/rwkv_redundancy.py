"""The figures of notebook 06: removals from two models or three, in percent of what each spends on a byte of text."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from layer_redundancy.figures.parts import interval, legend_above, share_axis
from layer_redundancy.figures.style import BLUE, GREEN, GREY, VERMILLION, WIDTH, styled

_KINDS = ((VERMILLION, "D", "without attention"), (BLUE, "o", "transformer"), (GREEN, "^", "transformer twin of {}"))


@styled
def single_blocks(table: pd.DataFrame) -> Figure:
    """What the removal of each single block costs two models or three (figure 7).

    Args:
        table: one row a (model, block), the model without attention first, its twin last if there is one: model, place
            (percent of the depth), rise, low, high (percent of the dense model's bits per byte; 95 % interval).
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")
    _draw(axes, table, line=False)
    axes.set_xlabel("where the removed block lies (% of the depth)")
    return figure


@styled
def removal_beside(table: pd.DataFrame) -> Figure:
    """What removal by Block Influence costs two models or three at equal shares of their blocks.

    Args:
        table: one row a (model, depth), as in `single_blocks`; place is the share of the blocks removed, percent.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0), layout="constrained")
    _draw(axes, table, line=True)
    share_axis(axes)
    return figure


def _draw(axes: Axes, table: pd.DataFrame, line: bool) -> None:
    handles: list[Any] = []
    labels = []
    for (model, rows), (colour, marker, kind) in zip(table.groupby("model", sort=False), _KINDS, strict=False):
        rows = rows.sort_values("place")
        style: dict[str, Any] = {"color": colour, "marker": marker, "ls": "-" if line else ""}
        handles.append(axes.errorbar(rows["place"], rows["rise"], interval(rows, "rise"), elinewidth=0.9, **style))
        labels.append(f"{model} ({kind.format(table['model'].iloc[0])}), 95 % interval")
    handles.append(axes.axhline(0, color=GREY, lw=1.6, zorder=1, gid="dense"))
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set_ylim(min(1.2 * table["low"].min(), -0.3), 1.6 * max(table["high"].max(), 1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("rise of the bits per byte\n(% of the dense model's)")
    legend_above(axes, handles, [*labels, "dense model"])
