"""Figures of notebook 07: quantization and removal together."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import (
    band,
    block_axis,
    choose_y_scale,
    cut_perplexity,
    explain_accuracy,
    interval,
    legend_above,
    share_axis,
)
from layer_redundancy.figures.style import GREY, ORANGE, WIDTH, style_of, styled


@styled
def size_against_quality(points: pd.DataFrame, labelled: Sequence[int] = ()) -> Figure:
    """Perplexity and accuracy against the bytes of the weights, a line a precision, a point a depth of removal.

    Args:
        points: one row a (precision, depth) with weights, count (blocks removed), megabytes, perplexity, low, high
            (95 % interval); and one a (precision, depth, task) with task, metric_name, accuracy, low, high (95 %
            interval), n, chance.
        labelled: numbers of removed blocks that are written beside their points of perplexity.
    """
    names, tasks = list(dict.fromkeys(points["weights"])), list(dict.fromkeys(points["task"].dropna()))
    figure, panels = plt.subplots(
        1 + len(tasks), 1, figsize=(WIDTH, 3.9 + 3.0 * len(tasks)), sharex=True, layout="constrained", squeeze=False
    )
    top, *others = panels[:, 0]
    text = points[points["perplexity"].notna()]
    # What no other mix beats on both axes.
    front = text.sort_values(["megabytes", "perplexity"])
    front = front[front["perplexity"] <= front["perplexity"].cummin()]
    top.step(
        front["megabytes"], front["perplexity"], where="post", color=ORANGE, lw=6, alpha=0.35, zorder=1,
        label="best at that size",
    )  # fmt: skip
    for place, name in enumerate(names):
        colour, marker = style_of(name, names)
        part = text[text["weights"] == name].sort_values("megabytes")
        reach = interval(part, "perplexity")
        options = {"color": colour, "marker": marker, "elinewidth": 0.5, "label": name}
        top.errorbar(part["megabytes"], part["perplexity"], yerr=reach, **options)
        for row in part[part["count"].isin(labelled)].itertuples():
            top.annotate(
                f"−{row.count}" if row.count else "dense", (row.megabytes, row.perplexity),
                (14, 5) if place % 2 else (-6, -11), color=colour,
                textcoords="offset points", size=7.5, ha="center",
            )  # fmt: skip
        for axes, task in zip(others, tasks, strict=True):
            part = points[(points["weights"] == name) & (points["task"] == task)].sort_values("megabytes")
            reach = interval(part, "accuracy")
            axes.errorbar(part["megabytes"], part["accuracy"], yerr=reach, **options)
    limit = 1e5  # models that no size makes worth having; the lines would be flat below
    choose_y_scale(top, text["perplexity"].clip(upper=limit), log=True)
    top.set_ylim(bottom=0.5 * text["perplexity"].min())
    cut_perplexity(top, text, "megabytes", limit)
    top.set_ylabel("perplexity, log scale")
    legend_above(top)
    for axes, task in zip(others, tasks, strict=True):
        explain_accuracy(axes, points[points["task"] == task])
    panels[-1, 0].set_xlabel("weights (MB = 10⁶ bytes); numbers in the upper panel: blocks removed")
    return figure


@styled
def damage_interaction(rows: pd.DataFrame) -> Figure:
    """What pruning and quantization cost together, against the sum of what each costs alone.

    Args:
        rows: one row a (precision, depth): weights, share (percent of blocks removed), sum, both, interaction, low,
            high (95 % interval of the interaction); nats a token.
    """
    names = list(dict.fromkeys(rows["weights"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.0), layout="constrained")
    for name in names:
        colour, marker = style_of(name, names)
        part = rows[rows["weights"] == name].sort_values("share")
        left.plot(part["share"], part["both"], color=colour, marker=marker, ms=3.5, label=f"{name}: both")
        left.plot(part["share"], part["sum"], color=colour, ls="--", label=f"{name}: sum")
        right.plot(part["share"], part["interaction"], color=colour, marker=marker, ms=3.5, label=name)
        band(right, part, "share", colour)
    right.axhline(0, color=GREY, lw=1, zorder=1)
    left.set_ylabel("increase of the mean NLL (nats a token)")
    right.set_ylabel("both minus sum (nats a token)")
    left.set_title("together, and the sum of the two alone")
    right.set_title("interaction, 95 % interval")
    left.legend(loc="upper left")
    right.legend(loc="best")
    for axes in (left, right):
        share_axis(axes)
        axes.set_xlim(-2, rows["share"].max() + 2)
    return figure


@styled
def influence_by_precision(rows: pd.DataFrame) -> Figure:
    """Block Influence of every block, a line a precision.

    Args:
        rows: one row a (precision, block): weights, block, score (1 - cosine).
    """
    names = list(dict.fromkeys(rows["weights"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name in names:
        colour, marker = style_of(name, names)
        part = rows[rows["weights"] == name].sort_values("block")
        axes.plot(part["block"], part["score"], color=colour, marker=marker, label=name)
    choose_y_scale(axes, rows["score"])
    block_axis(axes, rows["block"])
    axes.set_ylabel("Block Influence (1 − cosine)")
    legend_above(axes)
    return figure
