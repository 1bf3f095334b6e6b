"""Figures of notebook 10: blocks removed in one piece, before and after healing."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import chance_line, choose_y_scale, interval, log_axis, share_axis, whole_ticks
from layer_redundancy.figures.style import BLACK, GREY, RULES, WIDTH, styled, words


@styled
def block_pruning(rows: pd.DataFrame, unigram: float) -> Figure:
    """What removal costs against the share of blocks removed, before (hollow, dashed) and after healing (filled).

    Args:
        rows: `block_pruning.table`.
        unigram: what a model of single tokens costs above the whole model, nats a token.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    rows = rows[rows["count"] > 0]
    _curves(axes, rows, "damage")
    choose_y_scale(axes, [*rows["damage"][rows["damage"] > 0], max(unigram, 1e-3)], log=True)
    axes.set_ylim(bottom=rows["damage"][rows["damage"] > 0].min() / 3)
    if unigram > 0:
        axes.axhline(unigram, color=GREY, ls=":", lw=1.4)
        axes.text(100, unigram, "a model of single tokens ", color=GREY, fontsize=9, va="bottom", ha="right")
    axes.set_ylabel("loss above the whole model's,\nnats a token (log scale)")
    share_axis(axes)
    axes.legend(ncols=2, loc="lower right")
    return figure


@styled
def capabilities(rows: pd.DataFrame, reported: tuple[float, float] | None = None) -> Figure:
    """Accuracy against the share of blocks removed, a panel a task; lines as in `block_pruning`.

    Args:
        rows: `block_pruning.accuracy_table`.
        reported: percent of blocks between which the paper sees accuracy fall to chance; shaded.
    """
    tasks = list(dict.fromkeys(rows["task"]))
    figure, panels = plt.subplots(1, len(tasks), figsize=(WIDTH, 4.3), layout="constrained", squeeze=False, sharey=True)
    for axes, task in zip(panels[0], tasks, strict=True):
        part = rows[rows["task"] == task]
        _curves(axes, part, "accuracy")
        chance_line(axes, part["chance"].iloc[0], "chance")
        if reported is not None:
            axes.axvspan(*reported, color=GREY, alpha=0.15, lw=0, label="the paper: to chance")
        axes.set_title(f"{words(task)} (n = {int(part['n'].iloc[0])})")
        axes.set_ylim(0, 1.03)
        share_axis(axes)
    panels[0][0].set_ylabel("accuracy")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, y: str) -> None:
    """Draws a column against the share removed, two lines a rule: not healed, and healed, each from the whole model."""
    for healed in (False, True):
        whole = rows[(rows["rule"] == "whole model") & (rows["healed"] == healed)]
        for rule, (colour, marker) in RULES.items():
            mine = rows[(rows["rule"] == rule) & (rows["healed"] == healed)]
            if mine.empty:
                continue
            mine = pd.concat([whole, mine]).sort_values("count")
            axes.plot(
                mine["share"], mine[y], marker=marker, color=colour, ls="-" if healed else "--", ms=6 if healed else 5,
                mfc=colour if healed else "white", lw=1.8 if healed else 1.0,
                label=f"{rule}, {'healed' if healed else 'not healed'}",
            )  # fmt: skip
            axes.errorbar(
                mine["share"], mine[y], interval(mine, y), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6
            )


@styled
def last_block(rows: pd.DataFrame) -> Figure:
    """What it costs to lose the last block rather than the one before the others that go, by their number.

    Args:
        rows: `block_pruning.last_block_table`.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    places = {count: place for place, count in enumerate(sorted(set(rows["count"])))}
    colour, marker = RULES["last blocks"]
    for healed, shift in ((False, -0.08), (True, 0.08)):
        mine = rows[rows["healed"] == healed]
        if mine.empty:
            continue
        axes.errorbar(
            mine["count"].map(places) + shift, mine["difference"], interval(mine, "difference"), fmt=marker, ms=7,
            color=BLACK if healed else colour, mfc=BLACK if healed else "white", elinewidth=1.2,
            label="healed" if healed else "not healed",
        )  # fmt: skip
    axes.axhline(0, color=GREY, lw=1)
    axes.set_xticks(list(places.values()), [str(count) for count in places])
    axes.set_xlabel("last blocks removed")
    axes.set_ylabel("costs more than sparing the very last\nblock, nats a token (95 % interval)")
    axes.legend()
    return figure


@styled
def healing_curves(rows: pd.DataFrame) -> Figure:
    """Held-out loss against tokens trained on; a panel a rule, a line a number of removed blocks, the mean over seeds.

    Args:
        rows: `block_pruning.curve_table`.
    """
    rules = [rule for rule in RULES if rule in set(rows["rule"])]
    figure, all_axes = plt.subplots(
        1, len(rules), figsize=(WIDTH, 3.9), layout="constrained", sharey=True, squeeze=False
    )
    counts = sorted(set(rows["count"]) - {0})
    colours = plt.get_cmap("viridis_r")(np.linspace(0.25, 0.95, len(counts)))
    whole = rows[rows["count"] == 0]
    for axes, rule in zip(all_axes[0], rules, strict=True):
        axes.plot(whole["tokens"], whole["held_out"], color=BLACK, ls="--", label="none (whole model)")
        for count, colour in zip(counts, colours, strict=True):
            mine = rows[(rows["rule"] == rule) & (rows["count"] == count)].groupby("tokens")["held_out"].mean()
            if len(mine):
                axes.plot(mine.index, mine, color=colour, marker="o", ms=4.5, label=f"{count}")
        axes.set_title(rule)
        axes.set_xlabel("tokens trained on")
        whole_ticks(axes, rows["tokens"], 4)
        log_axis(axes, "y")
    all_axes[0][0].set_ylabel("loss on held-out text,\nnats a token (log scale)")
    all_axes[0][0].legend(title="blocks removed")
    return figure
