"""Figures of notebook 05: heads removed, beside blocks."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter

from layer_redundancy.figures.parts import (
    chance_handle,
    chance_line,
    choose_y_scale,
    heat_map,
    interval,
    legend_above,
    whole_ticks,
)
from layer_redundancy.figures.style import BLACK, BLUE, GREEN, GREY, VERMILLION, WIDTH, style_of, styled


@styled
def head_removal(single: pd.DataFrame, everywhere: pd.DataFrame) -> Figure:
    """Perplexity and accuracy by the id of the removed query head (figure 6).

    Args:
        single: one row a (block, head, measurement): block, head, measurement ("perplexity" or a task), change
            (log-increase in nats, or change of accuracy) of removing that head of that block alone, n (items).
        everywhere: one row a (head, measurement): head, measurement, value (perplexity, or accuracy 0 to 1) with that
            head removed in all blocks, low, high (95 % interval), dense (the same of the whole model), n, chance.
    """
    measured = list(dict.fromkeys(everywhere["measurement"]))
    figure, grid = plt.subplots(
        len(measured), 2, figsize=(WIDTH, 0.5 + 2.9 * len(measured)), sharex=True, squeeze=False, layout="constrained"
    )
    for (left, right), name in zip(grid, measured, strict=True):
        _heads_of_all_blocks(left, everywhere[everywhere["measurement"] == name].sort_values("head"), measured)
        _heads_of_one_block(right, single[single["measurement"] == name])
    for axes in grid[-1]:
        axes.set_xlabel("head id")
        whole_ticks(axes, everywhere["head"], 16)
    handles = [
        Line2D([], [], color=BLACK, marker="o"),
        Line2D([], [], color=GREY, lw=1.6),
        chance_handle(),
    ]
    grid[0, 0].set_title("removed in all blocks")
    grid[0, 1].set_title("removed in one block (light: first, dark: last)")
    mean = Line2D([], [], color=VERMILLION, marker="_", ms=11, mew=2.2, ls="")
    labels = ["value, 95 % interval", "dense model", "chance", "mean over blocks"]
    figure.legend([*handles, mean], labels, loc="outside upper center", ncols=4)
    return figure


def _heads_of_all_blocks(axes: Axes, rows: pd.DataFrame, among: Sequence[str]) -> None:
    """Draws one measurement by the head removed in all blocks, as in `head_removal`."""
    name = rows["measurement"].iloc[0]
    colour, marker = style_of(name, among)
    reach = interval(rows, "value")
    axes.errorbar(rows["head"], rows["value"], yerr=reach, color=colour, marker=marker, elinewidth=0.9)
    axes.axhline(rows["dense"].iloc[0], color=GREY, lw=1.6, zorder=1, gid="dense")
    if name == "perplexity":
        choose_y_scale(axes, [*rows["low"], *rows["high"], *rows["dense"]], log=True)
        axes.set_ylabel("perplexity, log scale")
    else:
        chance_line(axes, rows["chance"].iloc[0])
        axes.set_ylabel(f"accuracy, {name}\n(n={int(rows['n'].iloc[0])})")


def _heads_of_one_block(axes: Axes, rows: pd.DataFrame) -> None:
    """Draws the change of one measurement by the head removed, a point a block, and the means."""
    name = rows["measurement"].iloc[0]
    heads = sorted(rows["head"].unique())
    jitter = np.linspace(-0.28, 0.28, max(2, rows["block"].nunique()))
    places = rows.groupby("head")["block"].rank(method="first").astype(int).to_numpy() - 1
    shades = rows["block"] / max(rows["block"].max(), 1)
    axes.scatter(rows["head"] + jitter[places], rows["change"], c=shades, cmap="viridis_r", s=9, lw=0, zorder=2)
    means = rows.groupby("head")["change"].mean()
    axes.plot(heads, means, "_", color=VERMILLION, ms=13, mew=2.2, zorder=3)
    axes.axhline(0, color=GREY, lw=1.6, zorder=1)
    if name == "perplexity":
        axes.set_ylabel("log-perplexity, change (nats)")
        if rows["change"].abs().max() > 20 * rows["change"].abs().median() > 0:
            axes.set_yscale("symlog", linthresh=float(f"{rows['change'].abs().quantile(0.75):.1g}"))
            axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylabel(f"accuracy, change\n({name}, n={int(rows['n'].min())} a block)")


@styled
def head_map(table: pd.DataFrame) -> Figure:
    """What every single query head costs when it is removed.

    Args:
        table: one row a (block, head): block, head, change (log-increase in nats).
    """
    square = table.pivot(index="head", columns="block", values="change")  # noqa: PD010 - see angular_grid
    limit = float(np.nanpercentile(np.abs(square), 95)) or 1.0
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + max(2.0, 0.22 * len(square))), layout="constrained")
    label = f"log-perplexity, change (nats)\ncolours end at ±{limit:.2g}"
    heat_map(axes, square, label=label, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes.set_xlabel("block (0 = first)")
    axes.set_ylabel("head id")
    return figure


@styled
def damage_distributions(table: pd.DataFrame) -> Figure:
    """Damage by depth and by width at equal weights removed: the share of choices that cost at most so much.

    Args:
        table: one row a removal: what (what is removed), damage (log-increase in nats).
    """
    kinds = list(dict.fromkeys(table["what"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.9), layout="constrained")
    for place, what in enumerate(kinds):
        damage = np.sort(table.loc[table["what"] == what, "damage"].to_numpy(float))
        colour = (BLUE, VERMILLION, GREY, GREEN)[place % 4]
        share = np.arange(1, len(damage) + 1) / len(damage)
        axes.step(damage, share, where="post", color=colour, marker="osD^"[place % 4], ms=3.5, label=what)
        axes.axvline(np.median(damage), color=colour, lw=1, ls=":", gid="median")
    span = table["damage"].abs()
    axes.set_xscale("symlog", linthresh=float(f"{max(span.quantile(0.25), 1e-3):.1g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("increase of log-perplexity (nats a token)")
    axes.set_ylabel("share of the removals")
    handles, labels = axes.get_legend_handles_labels()
    legend_above(axes, [*handles, Line2D([], [], color=GREY, lw=1, ls=":")], [*labels, "median"])
    return figure
