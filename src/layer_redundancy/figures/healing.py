"""Figures of notebook 11: recipes of training after removal."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from layer_redundancy.figures.parts import interval, log_axis
from layer_redundancy.figures.style import BLUE, GREY, WIDTH, style_of, styled


@styled
def training_curves(rows: pd.DataFrame) -> Figure:
    """Held-out loss against tokens trained on; a line a recipe, its band the range over seeds.

    Args:
        rows: recipe, label, seed, tokens, held_out (nats a token).
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for recipe, part in rows.groupby("recipe", sort=False):
        colour, marker = style_of(str(recipe))
        of = part.groupby("tokens")["held_out"]
        mean = of.mean()
        axes.plot(mean.index, mean, color=colour, marker=marker, label=part["label"].iloc[0])
        axes.fill_between(mean.index, of.min(), of.max(), color=colour, alpha=0.2, lw=0)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss on held-out text, nats a token (log scale)")
    log_axis(axes, "y", minor_size=None)
    axes.legend(title="trained (band: range over seeds)")
    return figure


@styled
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
            colour, marker = style_of(row["recipe"])
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


@styled
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
            rows[column], place + shift, xerr=interval(rows, column, low, high),
            fmt="o", color=BLUE, mfc=fill, ms=6, elinewidth=1, label=label,
        )  # fmt: skip
    axes.set_yticks(place, rows["selection"].str.replace("_", " "))
    log_axis(axes, "x")
    axes.set_xlabel("loss on evaluation text, nats a token (log scale)")
    axes.grid(axis="y", visible=False)
    axes.legend()
    return figure
