"""Figures of notebook 05: heads removed, beside blocks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from layer_redundancy.figures.parts import heat_map, interval, legend_above, log_axis, whole_ticks
from layer_redundancy.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, WIDTH, style_of, styled, words


@styled
def head_removal(everywhere: pd.DataFrame) -> Figure:
    """Loss and accuracy by the number of the query head that is removed in all blocks (figure 6).

    Args:
        everywhere: one row a (head, measurement): head, measurement ("perplexity" or a task), value (increase of the
            loss in nats a token, or accuracy 0 to 1), low, high (95 % interval), dense (the same of the whole model), n
            (items), chance.
    """
    loss = everywhere["measurement"] == "perplexity"
    panels = [loss, ~loss][: 1 + (~loss).any()]
    figure, row = plt.subplots(1, len(panels), figsize=(WIDTH, 3.9), squeeze=False, layout="constrained")
    for axes, chosen in zip(row[0], panels, strict=True):
        _by_number(axes, everywhere[chosen])
    row[0, 0].set_ylabel("rise of the loss (nats a token)")
    for axes in row[0, 1:]:
        axes.set_ylabel("accuracy")
    return figure


def _by_number(axes: Axes, rows: pd.DataFrame) -> None:
    """Draws measurements of one kind side by side, as in `head_removal`."""
    names = list(dict.fromkeys(rows["measurement"]))
    for place, name in enumerate(names):
        part = rows[rows["measurement"] == name].sort_values("head")
        colour, marker = style_of(name, names)
        task, items = words(name), int(part["n"].iloc[0])
        shift = (place - (len(names) - 1) / 2) * 0.16
        x, y, reach = part["head"] + shift, part["value"], interval(part, "value")
        label = f"{task}, n={items}" if part["chance"].notna().any() else "without the head, 95 % interval"
        axes.errorbar(x, y, yerr=reach, label=label, color=colour, marker=marker, elinewidth=0.9, ls="")
        of = f"{task}: " if part["chance"].notna().any() else ""
        axes.axhline(part["dense"].iloc[0], color=colour, lw=1.4, zorder=1, gid="dense", label=f"{of}dense model")
        if part["chance"].notna().any():
            axes.axhline(
                part["chance"].iloc[0], color=colour, lw=1.2, ls=(0, (4, 2)), zorder=1, gid="chance",
                label=f"{of}chance",
            )  # fmt: skip
    axes.set_xlabel("number of the head that is removed in all blocks")
    whole_ticks(axes, rows["head"], 16)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2 if len(names) > 1 else 1)


@styled
def head_map(table: pd.DataFrame) -> Figure:
    """What every single query head costs when it is removed.

    Args:
        table: one row a (block, head): block, head, damage (nats a token).
    """
    square = table.pivot(index="head", columns="block", values="damage")  # noqa: PD010 - see angular_grid
    limit = float(np.nanpercentile(np.abs(square), 95)) or 1.0
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + max(2.0, 0.22 * len(square))), layout="constrained")
    label = f"loss, change (nats a token)\ncolours end at ±{limit:.2g}"
    heat_map(axes, square, label=label, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes.set_xlabel("block (0 = first)")
    axes.set_ylabel("number of the head")
    return figure


@styled
def damage_distributions(table: pd.DataFrame) -> Figure:
    """Damage by depth and by width at equal weights removed: the share of choices that cost at most so much.

    Args:
        table: one row a removal: what (what is removed), damage (nats a token). What has a single row was chosen, and
            is a line across.
    """
    kinds = [(what, np.sort(d.to_numpy(float))) for what, d in table.groupby("what", sort=False)["damage"]]
    many, chosen = ([kind for kind in kinds if (len(kind[1]) > 1) == several] for several in (True, False))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.9), layout="constrained")
    for (what, damage), colour, marker in zip(many, (BLUE, VERMILLION, GREEN, BLACK), "osD^", strict=False):
        share = np.arange(1, len(damage) + 1) / len(damage)
        label = f"{what}, n={len(damage)}: median {np.median(damage):.2f}, mean {damage.mean():.2f}"
        axes.step(
            damage, share, where="post", color=colour, marker=marker if len(damage) < 60 else "", ms=3, label=label
        )
    for (what, (value,)), colour in zip(chosen, (ORANGE, GREEN, BLACK, GREY), strict=False):
        axes.axvline(value, color=colour, lw=1.8, ls="--", label=f"{what}: {value:.2f}", gid="chosen", zorder=3)
    _damage_axis(axes, table["damage"])
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("loss, above the dense model's (nats a token)")
    axes.set_ylabel("share of the removals that\ncost at most so much")
    legend_above(axes)
    return figure


def _damage_axis(axes: Axes, damage: pd.Series) -> None:
    """A logarithmic x axis, straight around 0 where something costs less than nothing."""
    least, most = float(damage.min()), float(damage.max())
    if least > 0:
        log_axis(axes, "x")
        axes.set_xlim(0.8 * least, 1.25 * most)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    axes.set_xscale("symlog", linthresh=float(f"{max(damage.abs().quantile(0.25), 1e-3):.1g}"))
    axes.set_xlim(1.25 * least, 1.25 * most)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
