"""Figures of notebooks 10 and 11: before and after healing, and while models are trained."""

from math import log

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from layer_redundancy.figures.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, _styled

RULES = {"similarity": (VERMILLION, "P"), "simple rule": (BLUE, "o"), "last blocks": (SKY, "D")}
RECIPES = {"lora": (ORANGE, "s"), "qlora": (PURPLE, "^"), "partial": (BLUE, "o"), "full": (BLACK, "X")}
_SPARE = [(GREEN, "v"), (SKY, "D"), (VERMILLION, "P")]


@_styled
def block_pruning(rows: pd.DataFrame, vocabulary: int, reported: tuple[float, float] | None = None) -> Figure:
    """Loss and accuracy against the share of blocks removed, before (hollow, dashed) and after healing (filled).

    Args:
        rows: `block_pruning.table`.
        vocabulary: tokens; guessing costs its log.
        reported: percent of blocks between which the paper sees accuracy fall to chance; shaded.
    """
    tasks = [task for task in dict.fromkeys(rows["task"]) if task]
    figure, (left, *right) = (
        plt.subplots(1, 1 + len(tasks), figsize=(WIDTH, 4.3), layout="constrained", squeeze=True)
        if tasks
        else _single()
    )
    once = rows[rows["task"] == (tasks[0] if tasks else "")]
    _curves(left, once, "loss", "low", "high")
    left.axhline(log(vocabulary), color=GREY, ls=":", lw=1)
    left.text(100, log(vocabulary), "guessing, log V", color=GREY, fontsize=8, va="top", ha="right")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.tick_params(axis="y", which="minor", labelsize=8)
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


def _single():
    figure, axes = plt.subplots(figsize=(WIDTH / 1.6, 4.3), layout="constrained")
    return figure, (axes,)


def _curves(axes: Axes, rows: pd.DataFrame, y: str, low: str, high: str) -> None:
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
            error = np.abs(mine[[low, high]].to_numpy().T - mine[y].to_numpy())
            axes.errorbar(mine["share"], mine[y], error, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)


@_styled
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
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=8)
    all_axes[0][0].set_ylabel("loss on held-out text, nats a token (log scale)")
    all_axes[0][-1].legend(title="blocks removed")
    return figure


@_styled
def training_curves(rows: pd.DataFrame) -> Figure:
    """Held-out loss against tokens trained on; a line a recipe, its band the range over seeds.

    Args:
        rows: recipe, label, seed, tokens, held_out (nats a token).
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for recipe, part in rows.groupby("recipe", sort=False):
        colour, marker = RECIPES.get(str(recipe), _SPARE[0])
        of = part.groupby("tokens")["held_out"]
        mean = of.mean()
        axes.plot(mean.index, mean, color=colour, marker=marker, label=part["label"].iloc[0])
        axes.fill_between(mean.index, of.min(), of.max(), color=colour, alpha=0.2, lw=0)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss on held-out text, nats a token (log scale)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(title="trained (band: range over seeds)")
    return figure


@_styled
def recipes(rows: pd.DataFrame) -> Figure:
    """What each recipe reaches and costs: perplexity, accuracy, trainable weights, memory, seconds.

    Args:
        rows: one row a recipe: recipe, label, perplexity, low, high, accuracy, accuracy_low, accuracy_high,
            trainable, peak_bytes, seconds.
    """
    panels = [
        ("perplexity", "perplexity\n(log scale)", 1.0, True),
        ("accuracy", f"accuracy\n(n = {rows['n'].max():g})", 1.0, False),
        ("trainable", "weights trained,\nmillions (log scale)", 1e-6, True),
        ("peak_bytes", "peak memory,\nGB", 1e-9, False),
        ("seconds", "training,\nseconds", 1.0, False),
    ]
    panels = [panel for panel in panels if rows[panel[0]].notna().any()]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 0.5 * len(rows) + 1.5), layout="constrained", sharey=True
    )
    place = np.arange(len(rows))[::-1]
    for axes, (column, label, scale, logarithmic) in zip(all_axes, panels, strict=True):
        for y, (_, row) in zip(place, rows.iterrows(), strict=True):
            colour, marker = RECIPES.get(row["recipe"], (GREY, "o"))
            low, high = {"perplexity": ("low", "high"), "accuracy": ("accuracy_low", "accuracy_high")}.get(
                column, (None, None)
            )
            if low:
                axes.plot([row[low] * scale, row[high] * scale], [y, y], color=colour, lw=1)
            axes.plot(row[column] * scale, y, marker, color=colour, ms=6)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
        if column == "accuracy":
            chance = rows["chance"].max()
            axes.axvline(chance, color=GREY, ls=":", lw=1)
            axes.text(chance, len(rows) - 0.45, "chance", color=GREY, fontsize=8, ha="center", va="top")
        axes.set_xlabel(label, fontsize=8.5)
        axes.tick_params(axis="x", labelsize=8, which="both")
        axes.grid(axis="y", visible=False)
    all_axes[0].set_yticks(place, rows["label"])
    all_axes[0].set_ylim(-0.6, len(rows) - 0.4)
    return figure


@_styled
def selections(rows: pd.DataFrame) -> Figure:
    """Loss of each selection before and after the same training.

    Args:
        rows: selection, loss, low, high, healed_loss, healed_low, healed_high (nats a token), best first.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(rows) + 1.4), layout="constrained")
    place = np.arange(len(rows))[::-1]
    for column, low, high, fill, label, shift in (
        ("loss", "low", "high", "white", "before training", 0.12),
        ("healed_loss", "healed_low", "healed_high", BLUE, "after", -0.12),
    ):
        axes.errorbar(
            rows[column], place + shift, xerr=np.abs(rows[[low, high]].to_numpy().T - rows[column].to_numpy()),
            fmt="o", color=BLUE, mfc=fill, ms=6, elinewidth=1, label=label,
        )  # fmt: skip
    axes.set_yticks(place, rows["selection"].str.replace("_", " "))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.set_xlabel("loss on evaluation text, nats a token (log scale)")
    axes.grid(axis="y", visible=False)
    axes.legend()
    return figure
