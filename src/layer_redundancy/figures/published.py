"""The figures of notebook 15: models that others measured beside this one. Theirs are hollow, ours filled."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from layer_redundancy.figures.parts import LINEAR_TO, chance_line
from layer_redundancy.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, WIDTH, styled

COLUMNS = 4
CRITICAL = 0.5  # nats above the median inner block, at which lines are drawn
CHANCE = 0.25  # of MMLU
AFTER = "after the final norm"


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels in rows of a few, with common axes; those that are left over are empty."""
    rows = -(-count // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(WIDTH, 0.9 + height * rows), sharex=True, sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    every = list(axes.flat)
    for place, panel in enumerate(every):
        if place >= count:
            panel.set_axis_off()
        elif place + COLUMNS >= count:  # nothing below it
            panel.set_xlabel("depth (%)")
            panel.tick_params(labelbottom=True)
        panel.set_xlim(-3, 103)
        panel.set_xticks([0, 50, 100])
    return figure, every[:count]


def _legend(figure: Figure, *further: Line2D) -> None:
    handles = [
        Line2D([], [], color=BLUE, marker="o", mfc="white", lw=0.9, label="reported by others"),
        Line2D([], [], color=BLACK, marker="o", lw=0.9, label="measured here"),
        *further,
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)


def _points(axes: Axes, x: pd.Series, y: np.ndarray, ours: bool) -> None:
    colour = BLACK if ours else BLUE
    axes.plot(x, y, color=colour, marker="o", ms=3.6, lw=0.9, mfc=colour if ours else "white", mew=0.9)


@styled
def removals(table: pd.DataFrame, worst: float = 10.0) -> Figure:
    """What the removal of each block costs, against its depth, a panel a model.

    Args:
        table: one row a (model, block): model, depth (percent), cost (nats a token above the median inner block's),
            ours.
        worst: costs beyond this are drawn as triangles there.
    """
    groups = list(table.groupby("model", sort=False))
    figure, axes = _panels(len(groups), 1.9)
    for panel, (model, part) in zip(axes, groups, strict=True):
        part = part.sort_values("depth")
        cost, ours = part["cost"].to_numpy(float), bool(part["ours"].iloc[0])
        _points(panel, part["depth"], np.where(cost > worst, np.nan, cost), ours)
        beyond = part["depth"][cost > worst]
        if len(beyond):  # an empty line that is not clipped lies nowhere, and the layout with it
            panel.plot(beyond, [worst] * len(beyond), ls="", marker="^", color=VERMILLION, ms=6, clip_on=False)
        panel.axhline(0, color=GREY, lw=0.9, zorder=1)
        panel.axhline(CRITICAL, color=GREY, lw=0.9, ls=":", zorder=1, gid="critical")
        panel.set_title(f"{model}\n{len(part)} blocks", size=8.5)
    for panel in axes:
        panel.set_yscale("symlog", linthresh=LINEAR_TO, linscale=0.5)
        panel.set_ylim(min(-0.15, 1.3 * table["cost"].replace(-np.inf, 0).min()), 1.25 * worst)
        panel.set_yticks([-LINEAR_TO, 0, LINEAR_TO, 0.5, 2, worst])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
    figure.supylabel("loss above the median inner block's (nats a token)", size=10)
    _legend(
        figure,
        Line2D([], [], ls="", marker="^", color=VERMILLION, label=f"more than {worst:g}"),
        Line2D([], [], color=GREY, lw=0.9, ls=":", label=f"{CRITICAL:g} nats: critical"),
    )
    return figure


@styled
def influence(table: pd.DataFrame) -> Figure:
    """Block Influence of each block over the median block's, against its depth, a panel a model and source.

    Args:
        table: one row a (model, source, block): model, source, depth (percent), relative, states (the last block's may
            be "after the final norm"), measure ("1 - cosine" or "angle"), ours.
    """
    groups = list(table.groupby(["model", "source"], sort=False))
    figure, axes = _panels(len(groups), 1.85)
    for panel, ((model, source), part) in zip(axes, groups, strict=True):
        part, ours = part.sort_values("depth"), bool(part["ours"].iloc[0])
        after = part["states"] == AFTER
        _points(panel, part["depth"][~after], part["relative"][~after].to_numpy(float), ours)
        panel.plot(part["depth"][after], part["relative"][after], ls="", marker="s", mfc="white", color=VERMILLION)
        panel.axhline(1, color=GREY, lw=0.9, zorder=1)
        kind = "last token's angle" if (part["measure"] == "angle").all() else str(source).partition("/")[0]
        panel.set_title(f"{model}\n{kind}", size=8.5)
    for panel in axes:
        panel.set_yscale("log")
        panel.set_yticks([0.3, 1, 3, 10, 30])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
    figure.supylabel("1 - cosine, over the median block's", size=10)
    _legend(
        figure, Line2D([], [], ls="", marker="s", mfc="white", color=VERMILLION, label="last block, after the norm")
    )
    return figure


@styled
def windows(table: pd.DataFrame) -> Figure:
    """MMLU without a window of blocks, against its depth, a panel a model and a line a length.

    Args:
        table: one row a (model, window): model, length, depth (percent, of its middle), mmlu, low, high, whole (False
            where it is a block shorter than its length).
    """
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(
        1, len(models), figsize=(WIDTH, 3.6), sharey=True, sharex=True, layout="constrained", squeeze=False
    )
    looks = dict(zip(sorted(table["length"].unique()), [(GREEN, "^"), (ORANGE, "s"), (BLUE, "o")], strict=False))
    for panel, model in zip(axes[0], models, strict=True):
        for length, (colour, marker) in looks.items():
            part = table[(table["model"] == model) & (table["length"] == length)].sort_values("depth")
            whole, short = part[part["whole"]], part[~part["whole"]]
            ends = np.abs(whole[["low", "high"]].sub(whole["mmlu"], axis=0)).to_numpy(float).T
            panel.errorbar(
                whole["depth"],
                whole["mmlu"],
                yerr=ends,
                color=colour,
                marker=marker,
                mfc="white",
                lw=0.9,
                elinewidth=0.9,
            )
            panel.plot(short["depth"], short["mmlu"], ls="", marker="x", color=colour)
        chance_line(panel, CHANCE)
        panel.set_title(model)
        panel.set_xlabel("depth of the window's middle (%)")
        panel.set_xlim(0, 100)
    axes[0, 0].set_ylabel("MMLU accuracy, five examples")
    handles = [
        Line2D([], [], color=colour, marker=marker, mfc="white", lw=0.9, label=f"{length} blocks removed")
        for length, (colour, marker) in looks.items()
    ]
    handles.append(Line2D([], [], color=GREY, marker="x", ls="", label="a block fewer"))
    handles.append(Line2D([], [], color=GREY, ls=(0, (4, 2)), label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5)
    return figure


@styled
def overlap(tables: dict[str, pd.DataFrame], count: int) -> Figure:
    """How many of the blocks that papers remove first are the same, a matrix a model.

    Args:
        tables: model -> square table of shared blocks, rows and columns "paper: method".
        count: blocks that each removes.
    """
    most = max((len(table) for table in tables.values()), default=1)
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(WIDTH, 0.8 + 0.42 * sum(len(table) + 1.6 for table in tables.values())),
        height_ratios=[len(table) for table in tables.values()], layout="constrained", squeeze=False,
    )  # fmt: skip
    image = None
    for panel, (model, table) in zip(axes[:, 0], tables.items(), strict=True):
        values = table.to_numpy(float)
        image = panel.imshow(values, cmap="Blues", vmin=0, vmax=count, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            shade = "white" if value > 0.6 * count else BLACK
            panel.text(column, row, f"{value:g}", ha="center", va="center", size=9, color=shade)
        names = [f"{chr(65 + place)}  {name}" for place, name in enumerate(table.index)]
        panel.set_yticks(range(len(names)), names, size=8.5)
        panel.set_xticks(range(len(names)), [name[0] for name in names])
        panel.set_xlim(-0.5, most - 0.5)
        panel.set_title(f"{model}: the first {count} blocks")
        panel.set_xlabel("as the rows")
        panel.grid(False)
        panel.tick_params(length=0)
        for spine in panel.spines.values():
            spine.set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=list(axes[:, 0]), label="blocks that both remove", fraction=0.04, pad=0.02)
    return figure
