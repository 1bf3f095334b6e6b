"""Figures of notebook 11: selections of blocks, recipes of training after removal."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from layer_redundancy.figures.parts import interval
from layer_redundancy.figures.style import BLACK, BLUE, GREY, WIDTH, style_of, styled, words

# What losses are set beside: how its line is drawn.
LEVELS = {
    "whole model": (BLACK, "-", "whole model"),
    "untrained": (GREY, "--", "blocks removed, untrained"),
    "unigram": (GREY, ":", "a model of single tokens"),
}
FAR = 1.25  # times the highest value that is drawn
LINEAR_TO = 1.0  # nats up to which the axis of selections is linear; beyond, a model is ruined


def _levels(axes: Axes, levels: Mapping[str, float], which: str, highest: float = np.inf) -> None:
    """A line at each level, on the x or the y axis, named in the legend; one far above `highest` is told there alone,
    so that what is compared has room."""
    draw = axes.axvline if which == "x" else axes.axhline
    for name in LEVELS:
        if name in levels:
            colour, dashes, label = LEVELS[name]
            beyond = levels[name] > FAR * highest
            label = f"{label}: {levels[name]:.2g}, beyond the axis" if beyond else label
            draw(np.nan if beyond else levels[name], color=colour, ls=dashes, lw=1.4, zorder=1, label=label)


@styled
def training_curves(rows: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Held-out loss against tokens trained on; a line a recipe, the mean over seeds, named at its end.

    Args:
        rows: recipe, label, seed, tokens, held_out (nats a token).
        levels: losses on the same text: "whole model", "unigram".
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    curves = {
        (str(recipe), part["label"].iloc[0]): part.groupby("tokens")["held_out"].mean()
        for recipe, part in rows.groupby("recipe", sort=False)
    }
    curves = dict(sorted(curves.items(), key=lambda one: -one[1].iloc[-1]))
    for (recipe, label), mean in curves.items():
        colour, marker = style_of(recipe)
        axes.plot(mean.index, mean, color=colour, marker=marker, ms=6, lw=1.8, label=f"{label}: {mean.iloc[-1]:.2f}")
    _levels(axes, levels, "y", rows["held_out"].max())
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss on held-out text, nats a token")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="mean over seeds, and at the end")
    return figure


@styled
def recipes(rows: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """What each recipe leaves of the damage and what it costs: trainable weights, memory, seconds.

    Args:
        rows: one row a recipe: recipe, label, damage, low, high (nats a token), trainable, peak_bytes, seconds.
        levels: losses above the whole model's: "whole model" (0), "untrained", "unigram".
    """
    panels = [
        ("damage", "loss above the whole\nmodel's, nats a token", 1.0, False),
        ("trainable", "weights trained,\nmillions (log scale)", 1e-6, True),
        ("peak_bytes", "peak memory,\nGB", 1e-9, False),
        ("seconds", "training,\nseconds", 1.0, False),
    ]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 0.5 * len(rows) + 2.0), layout="constrained", sharey=True,
        gridspec_kw={"width_ratios": [2.2, 1, 1, 1]},
    )  # fmt: skip
    place = np.arange(len(rows))[::-1]
    for axes, (column, label, scale, logarithmic) in zip(all_axes, panels, strict=True):
        for y, (_, row) in zip(place, rows.iterrows(), strict=True):
            colour, marker = style_of(row["recipe"])
            fill = "white" if row["recipe"] == "nf4" else colour
            if column == "damage":
                axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.2)
            if column == "damage" or row["trainable"] > 0:
                axes.plot(row[column] * scale, y, marker, color=colour, mfc=fill, ms=7)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(x=0.15)
        elif column != "damage":
            axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(axis="x", labelsize=8.5, which="both")
        axes.grid(axis="y", visible=False)
    first = all_axes[0]
    _levels(first, levels, "x", rows["high"].max())
    first.set_yticks(place, rows["label"])
    first.set_ylim(-0.6, len(rows) - 0.4)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


@styled
def capabilities(rows: pd.DataFrame) -> Figure:
    """Accuracy of the whole model, of what removal left, and of each recipe's model; a panel a task.

    Args:
        rows: `healing.capability_table`.
    """
    tasks, models = list(dict.fromkeys(rows["task"])), list(dict.fromkeys(rows["model"]))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(WIDTH, 0.42 * len(models) + 1.5), layout="constrained", sharey=True, squeeze=False
    )
    place = {model: len(models) - 1 - k for k, model in enumerate(models)}
    for axes, task in zip(panels[0], tasks, strict=True):
        part = rows[rows["task"] == task]
        for _, row in part.iterrows():
            colour, marker = (BLACK, "o") if row["recipe"] in LEVELS else style_of(row["recipe"])
            fill = "white" if row["recipe"] in ("untrained", "nf4") else colour
            y = place[row["model"]]
            axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.2)
            axes.plot(row["accuracy"], y, marker, color=colour, mfc=fill, ms=7)
        axes.axvline(part["chance"].iloc[0], color=GREY, ls=(0, (4, 2)), lw=1.2, label="chance")
        axes.set_xlim(0, 1.03)
        axes.set_xlabel(f"{words(task)}: accuracy (n = {int(part['n'].iloc[0])}, 95 % interval)")
        axes.grid(axis="y", visible=False)
    first = panels[0][0]
    first.set_yticks(list(place.values()), ["removed, untrained" if m == "untrained" else m for m in models])
    first.legend(loc="upper left")
    return figure


@styled
def selections(rows: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """What each selection costs before and after the same training.

    Args:
        rows: selection, damage, low, high, healed_damage, healed_low, healed_high (above the whole model's loss, nats a
            token), best first.
        levels: the same of "unigram".
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 * len(rows) + 1.9), layout="constrained")
    place = np.arange(len(rows))[::-1]
    for column, low, high, fill, label, shift in (
        ("damage", "low", "high", "white", "untrained", 0.12),
        ("healed_damage", "healed_low", "healed_high", BLUE, "trained", -0.12),
    ):
        axes.errorbar(
            rows[column], place + shift, xerr=interval(rows, column, low, high),
            fmt="o", color=BLUE, mfc=fill, ms=7, elinewidth=1.2, label=label,
        )  # fmt: skip
    _levels(axes, levels, "x")
    axes.set_yticks(place, rows["selection"].str.replace("_", " "))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xscale("symlog", linthresh=LINEAR_TO, linscale=0.4)  # an interval may reach below 0
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in (-10, -3, -1, 0, 1, 3, 10, 30) if left <= tick <= right])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"loss above the whole model's, nats a token (linear to {LINEAR_TO:g}, then logarithmic)")
    axes.grid(axis="y", visible=False)
    axes.legend()
    return figure
