"""Figures of notebook 07: quantization and removal together."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layer_redundancy.figures.parts import band, block_axis, choose_y_scale, interval, legend_above
from layer_redundancy.figures.style import BLACK, GREY, WIDTH, style_of, styled

OF_USE = 100  # times the best perplexity: beyond it a model guesses hardly better than by the frequencies of tokens


@styled
def size_against_quality(points: pd.DataFrame) -> Figure:
    """Perplexity against the bytes of the weights: what no other mix of blocks and bits beats, and what is beaten.

    Args:
        points: one row a (precision, depth) with weights, count (blocks removed), megabytes, perplexity, low, high
            (95 % interval), front (whether no other is both smaller and better). Models of no use are left out.
    """
    names = list(dict.fromkeys(points["weights"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    points = points[points["perplexity"] < OF_USE * points["perplexity"].min()]
    front = points[points["front"]].sort_values("megabytes")
    axes.step(front["megabytes"], front["perplexity"], where="post", color=GREY, lw=1.4, zorder=1)
    for name in names:
        colour, marker = style_of(name, names)
        for best, part in points[points["weights"] == name].groupby("front"):
            axes.errorbar(
                part["megabytes"], part["perplexity"], yerr=interval(part, "perplexity"), color=colour, marker=marker,
                ls="", ms=7 if best else 5, mfc=colour if best else "white", elinewidth=1.0,
                label=name if best or not points[points["weights"] == name]["front"].any() else "_",
            )  # fmt: skip
        for row in points[(points["weights"] == name) & points["front"]].itertuples():
            axes.annotate(
                f"{row.count} removed" if row.count else "all blocks", (row.megabytes, row.perplexity), (9, 4),
                color=colour, textcoords="offset points", size=8.5,
            )  # fmt: skip
    choose_y_scale(axes, points["perplexity"], log=True)
    axes.set_ylabel("perplexity, log scale")
    axes.set_xlabel("weights (MB = 10⁶ bytes)")
    axes.margins(x=0.09, y=0.1)
    handles, labels = axes.get_legend_handles_labels()
    best = Line2D([], [], color=GREY, lw=1.4)
    beaten = Line2D([], [], color=GREY, marker="o", mfc="white", ls="")
    legend_above(axes, [*handles, best, beaten], [*labels, "best at its size", "another is smaller and better"])
    return figure


@styled
def damage_interaction(rows: pd.DataFrame, draws: pd.DataFrame, additive: float) -> Figure:
    """What pruning and quantization cost together beyond the sum of what each costs alone, a panel a precision.

    Args:
        rows: one row a (precision, depth): weights, count (blocks removed), pruning, quantization, interaction, low,
            high (95 % interval), both (damage of the two together); nats a token. Models of no use are left out, unless
            none is of any.
        draws: one row a (precision, depth, draw of GPTQ's text): weights, count, interaction.
        additive: share of the smaller of the two damages, an interaction within which counts as none.
    """
    useful = rows[rows["both"] < np.log(OF_USE)]
    rows = useful if len(useful) else rows
    names = list(dict.fromkeys(rows["weights"]))
    figure, panels = plt.subplots(1, len(names), figsize=(WIDTH, 3.9), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        part = rows[rows["weights"] == name].reset_index(drop=True)
        for place, row in part.iterrows():
            half = additive * max(0.0, min(row["pruning"], row["quantization"]))
            axes.fill_between([place - 0.4, place + 0.4], -half, half, color=GREY, alpha=0.25, lw=0, zorder=0)
            each = draws[(draws["weights"] == name) & (draws["count"] == row["count"])]
            axes.plot([place - 0.15] * len(each), each["interaction"], "o", ms=3.5, color=GREY)
        reach = interval(part, "interaction")
        axes.errorbar(part.index + 0.1, part["interaction"], yerr=reach, color=BLACK, marker="D", ls="")
        axes.axhline(0, color=GREY, lw=1, zorder=1)
        axes.set_xticks(part.index, part["count"].astype(str))
        axes.set_xlim(-0.6, len(part) - 0.4)
        axes.set_title(name)
        axes.set_xlabel("blocks removed")
    panels[0][0].set_ylabel("both minus the sum of the two\n(nats a token)")
    handles = [
        Line2D([], [], color=GREY, marker="o", ms=3.5, ls=""),
        Line2D([], [], color=BLACK, marker="D", ls="-"),
        plt.Rectangle((0, 0), 1, 1, color=GREY, alpha=0.25, lw=0),
    ]
    labels = ["one calibration text of GPTQ", "mean, 95 % interval", f"{100 * additive:.0f} % of the smaller damage"]
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


@styled
def influence_by_precision(rows: pd.DataFrame) -> Figure:
    """Block Influence of every block, a line a precision.

    Args:
        rows: one row a (precision, block): weights, block, score (1 - cosine), low, high (range over GPTQ's texts).
    """
    names = list(dict.fromkeys(rows["weights"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name in names:
        colour, marker = style_of(name, names)
        part = rows[rows["weights"] == name].sort_values("block")
        axes.plot(part["block"], part["score"], color=colour, marker=marker, label=name)
        band(axes, part, "block", colour)
    choose_y_scale(axes, rows["score"])
    block_axis(axes, rows["block"])
    axes.set_ylabel("Block Influence (1 − cosine)")
    legend_above(axes)
    return figure
