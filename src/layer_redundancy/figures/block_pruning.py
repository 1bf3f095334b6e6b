"""Figures of notebook 10: blocks removed in one piece, before and after healing."""

from math import log

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import interval, log_axis
from layer_redundancy.figures.style import BLACK, GREY, RULES, WIDTH, styled


@styled
def block_pruning(rows: pd.DataFrame, vocabulary: int, reported: tuple[float, float] | None = None) -> Figure:
    """Loss and accuracy against the share of blocks removed, before (hollow, dashed) and after healing (filled).

    Args:
        rows: `block_pruning.table`.
        vocabulary: tokens; guessing costs its log.
        reported: percent of blocks between which the paper sees accuracy fall to chance; shaded.
    """
    tasks = [task for task in dict.fromkeys(rows["task"]) if task]
    size = (WIDTH if tasks else WIDTH / 1.6, 4.3)
    figure, panels = plt.subplots(1, 1 + len(tasks), figsize=size, layout="constrained", squeeze=False)
    left, *right = panels[0]
    once = rows[rows["task"] == (tasks[0] if tasks else "")]
    _curves(left, once, "loss", "low", "high")
    left.axhline(log(vocabulary), color=GREY, ls=":", lw=1)
    left.text(100, log(vocabulary), "guessing, log V", color=GREY, fontsize=8, va="top", ha="right")
    log_axis(left, "y")
    left.set_ylabel("loss on evaluation text, nats a token (log scale)")
    for axes, task in zip(right, tasks, strict=True):
        part = rows[rows["task"] == task]
        _curves(axes, part, "accuracy", "accuracy_low", "accuracy_high")
        axes.axhline(part["chance"].iloc[0], color=GREY, ls=":", lw=1)
        axes.text(100, part["chance"].iloc[0], "chance", color=GREY, fontsize=8, va="top", ha="right")
        axes.set_ylim(0, 1.03)
        axes.set_ylabel(f"accuracy, {task} (n = {int(part['n'].iloc[0])})")
        if reported is not None:
            axes.axvspan(*reported, color=GREY, alpha=0.15, lw=0)
            axes.text(np.mean(reported), 1.02, "paper: to chance", ha="center", va="top", fontsize=8, color=GREY)
    for axes in (left, *right):
        axes.set_xlabel("blocks removed, % of all")
        axes.set_xlim(-2, 100)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8.5)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, y: str, low: str, high: str) -> None:
    """Draws a column against the share removed, two lines a rule: not healed, and healed."""
    for healed in (False, True):
        whole = rows[(rows["rule"] == "whole model") & (rows["healed"] == healed)]
        for rule, (colour, marker) in RULES.items():
            mine = rows[(rows["rule"] == rule) & (rows["healed"] == healed)]
            if mine.empty:
                continue
            mine = pd.concat([whole, mine]).sort_values("count")
            axes.plot(
                mine["share"], mine[y], marker=marker, color=colour, ls="-" if healed else "--",
                mfc=colour if healed else "white", lw=1.6 if healed else 1.0,
                label=f"{rule}, {'healed' if healed else 'not healed'}",
            )  # fmt: skip
            reach = interval(mine, y, low, high)
            axes.errorbar(mine["share"], mine[y], reach, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)


@styled
def healing_curves(rows: pd.DataFrame) -> Figure:
    """Held-out loss against tokens trained on; a panel a rule, a line a number of removed blocks.

    Args:
        rows: `block_pruning.curve_table`.
    """
    rules = [rule for rule in dict.fromkeys(rows["rule"]) if rule in RULES]
    figure, all_axes = plt.subplots(
        1, len(rules), figsize=(WIDTH, 3.9), layout="constrained", sharey=True, squeeze=False
    )
    counts = sorted(set(rows["count"]) - {0})
    colours = plt.get_cmap("viridis_r")(np.linspace(0.15, 0.95, len(counts)))
    for axes, rule in zip(all_axes[0], rules, strict=True):
        whole = rows[rows["count"] == 0]
        axes.plot(whole["tokens"], whole["held_out"], color=BLACK, ls="--", label="none (whole model)")
        for count, colour in zip(counts, colours, strict=True):
            mine = rows[(rows["rule"] == rule) & (rows["count"] == count)]
            axes.plot(mine["tokens"], mine["held_out"], color=colour, marker="o", ms=3.5, label=f"{count}")
        axes.set_title(rule)
        axes.set_xlabel("tokens trained on")
        log_axis(axes, "y")
    all_axes[0][0].set_ylabel("loss on held-out text, nats a token (log scale)")
    all_axes[0][-1].legend(title="blocks removed")
    return figure
