"""Figures of notebook 01: what each block does to the residual stream, and the order of removal."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from layer_redundancy.figures.parts import (
    band,
    band_handle,
    block_axis,
    choose_y_scale,
    heat_map,
    height_of_block_rows,
    legend_above,
    row_labels,
)
from layer_redundancy.figures.style import (
    BLACK,
    BLUE,
    GREY,
    MEASURES,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    MeasureStyle,
    style_of,
    styled,
)


@styled
def removal_order(
    scores: pd.DataFrame, order: Sequence[int], highlight: int = 0, reported: Sequence[int] = ()
) -> Figure:
    """Block Influence of each block, labelled with its place in the removal order (figure 2a of the paper).

    Args:
        scores: one row a block: block, score (1 - cosine); optionally low, high (95 % interval).
        order: blocks, first removed first; blocks not in it get no label.
        highlight: how many of the first removed are coloured.
        reported: blocks that the paper removes of the same model, ringed; none if it is not the paper's.
    """
    scores = scores.sort_values("block")
    blocks = scores["block"].to_numpy(int)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    colour, marker = style_of("block_influence")
    band(axes, scores, "block", GREY)
    axes.plot(blocks, scores["score"], color="#c8c8c8", zorder=1)
    first = np.isin(blocks, list(order[:highlight]))
    for chosen, shade, label in (
        (~first, colour, "kept"),
        (first, VERMILLION, f"the {first.sum()} removed first"),
    ):
        if chosen.any():
            axes.plot(
                blocks[chosen],
                scores["score"][chosen],
                marker,
                color=shade,
                ms=5.5 if len(blocks) <= 40 else 4,
                label=label,
                zorder=3,
            )
    ringed = np.isin(blocks, list(reported))
    if ringed.any():
        label = f"the {ringed.sum()} removed in the paper"
        axes.plot(blocks[ringed], scores["score"][ringed], "o", mfc="none", mec="black", ms=11, label=label, zorder=4)
    log = choose_y_scale(axes, scores["score"])
    _number_places(axes, scores, order, first)
    axes.margins(y=0.12)
    axes.set_ylabel("Block Influence (1 - cosine)" + (", log scale" if log else ""))
    block_axis(axes, blocks)
    handles, labels = axes.get_legend_handles_labels()
    if {"low", "high"} <= set(scores):
        handles, labels = [*handles, band_handle()], [*labels, "95 % interval"]
    legend_above(axes, handles, labels, title="number = place in the removal order")
    return figure


def _number_places(axes: Axes, scores: pd.DataFrame, order: Sequence[int], first: np.ndarray) -> None:
    """Writes each block's place in the order above its score, those of `first` (a mask of the rows) in bold."""
    few = len(scores) <= 40
    rank = {int(block): place for place, block in enumerate(order, start=1)}
    top = scores["high"].fillna(scores["score"]) if "high" in scores else scores["score"]
    for block, height, removed in zip(scores["block"], top, first, strict=True):
        if int(block) in rank and np.isfinite(height):
            axes.annotate(
                str(rank[int(block)]),
                (block, height),
                (0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                size=8.5 if few else 6.5,
                rotation=0 if few else 90,
                color=VERMILLION if removed else "#333333",
                weight="bold" if removed else "normal",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],  # the line between points runs behind
            )


@styled
def importance_metrics(scores: pd.DataFrame) -> Figure:
    """All importance measures side by side, a panel each (figure 8), with the block that each would remove first.

    Args:
        scores: one row a (metric, first_token, block): metric (a key of `style.MEASURES`, or any name),
            first_token ("included" or "excluded"), block, score, rank (1 = removed first); optionally low, high (95 %
            interval). "excluded" rows may be missing. Panels follow the order of the metrics in the frame; those that
            score by the position alone, a straight line each, have none.
    """
    metrics = [name for name, part in scores.groupby("metric", sort=False) if not _is_position(part)]
    scores = scores[scores["metric"].isin(metrics)]
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.75 * rows + 0.3), squeeze=False, layout="constrained")
    has_excluded = (scores["first_token"] == "excluded").any()
    for axes, metric in zip(grid.flat, metrics, strict=False):
        style = MEASURES.get(metric) or MeasureStyle(*style_of(metric, metrics), metric, "score")
        _measure_panel(axes, scores[scores["metric"] == metric].sort_values("block"), style)
    for axes in grid.flat[len(metrics) :]:
        axes.remove()
    handles: list[Line2D | Patch] = [Line2D([], [], color=BLACK, marker="o", ms=3.2, label="all tokens")]
    if has_excluded:
        handles.append(Line2D([], [], color=GREY, ls="--", label="without the first token"))
    if {"low", "high"} <= set(scores):
        handles.append(band_handle("95 % interval"))
    handles.append(Line2D([], [], ls="", marker="*", ms=11, mfc="white", mec="black", mew=0.6, label="removed first"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _is_position(rows: pd.DataFrame) -> bool:
    """Whether the scores of a measure are the blocks' places, counted downwards."""
    return len(rows) > 1 and np.array_equal(rows["score"], -rows["block"])


def _measure_panel(axes: Axes, rows: pd.DataFrame, style: MeasureStyle) -> None:
    """Draws the scores of one measure, with and without the first token, and stars where it removes first."""
    included = rows[rows["first_token"] == "included"].dropna(subset=["score"])
    excluded = rows[rows["first_token"] == "excluded"].dropna(subset=["score"])
    if np.array_equal(included["score"], excluded["score"]):
        excluded = excluded.iloc[:0]  # nothing to tell apart: the measure does not depend on the tokens
    removed = []
    for part, line, shade in ((included, "-", style.colour), (excluded, "--", GREY)):
        if len(part):
            size = 3.2 if len(part) <= 40 and line == "-" else 0
            band(axes, part, "block", shade)
            axes.plot(part["block"], part["score"], line, marker=style.marker, ms=size, color=shade)
            row = part.loc[part["rank"].idxmin()]
            axes.plot(
                row["block"],
                row["score"],
                "*",
                ms=9,
                mfc=shade if line == "-" else "white",
                mec=BLACK,
                mew=0.6,
                zorder=5 if line == "-" else 4,
                clip_on=False,
            )
            removed.append(row)
    log = choose_y_scale(axes, rows["score"])
    axes.set_ylabel(style.label + (", log" if log else ""))
    which = "smallest" if removed[0]["score"] == included["score"].min() else "largest"
    blocks = " / ".join(dict.fromkeys(str(int(row["block"])) for row in removed))
    axes.set_title(f"{style.title}\nfirst removed: {which}, block {blocks}", size=9.5, linespacing=1.3)
    block_axis(axes, rows["block"], label="block index", ticks=8)


@styled
def block_influence_geometry(scores: pd.DataFrame) -> Figure:
    """What Block Influence measures (figure 4): one residual block, and the turn it gives the residual stream.

    The vectors are drawn at the angle whose cosine is the measured mean cosine, for the least, the median and the
    most influential block; the coloured stretch on X_i is then exactly the score, 1 - cosine.

    Args:
        scores: one row a block: block, score (Block Influence).
    """
    ranked = scores.dropna(subset=["score"]).sort_values(["score", "block"]).reset_index(drop=True)
    figure = plt.figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.add_gridspec(1, 4, width_ratios=[1.15, 1, 1, 1])
    _draw_block(figure.add_subplot(grid[0]))
    chosen = [(0, "least influential"), ((len(ranked) - 1) // 2, "median"), (len(ranked) - 1, "most influential")]
    reach = min(0.0, 1 - ranked["score"].max())  # vectors turned by more than 90 degrees point left
    for column, (place, title) in enumerate(chosen, start=1):
        row = ranked.iloc[place]
        axes = figure.add_subplot(grid[column])
        axes.set_title(f"{title}: block {int(row['block'])}", loc="center")
        _draw_angle(axes, row["score"], left=reach)
    return figure


def _draw_block(axes: Axes) -> None:
    """One residual block from X_i (foot) to X_{i+1} (top); layer norms are left out, as in the paper."""
    axes.set(xlim=(-0.75, 1.05), ylim=(-0.06, 1.1))
    axes.axis("off")
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 10, "color": BLACK, "lw": 1.2}
    arrow |= {"shrinkA": 0, "shrinkB": 0}

    def box(y: float, text: str, colour: str) -> None:
        shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.03", "fc": colour, "ec": BLACK, "lw": 1}
        axes.add_patch(FancyBboxPatch((-0.45, y), 0.9, 0.15, **shape))
        axes.text(0, y + 0.07, text, ha="center", va="center", size=9.5)

    def path(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points[:-1], strict=True), color=BLACK, lw=1.2) if len(points) > 2 else None
        axes.add_patch(FancyArrowPatch(points[-2], points[-1], **arrow))

    def plus(y: float) -> None:
        axes.plot(0, y, "o", ms=11, mfc="white", mec=BLACK, mew=1, zorder=4)
        axes.plot(0, y, "+", ms=6.5, mec=BLACK, mew=1.2, zorder=5)

    box(0.19, "attention", "#d9ecf7")
    box(0.63, "feed-forward", "#d5efe6")
    for foot, join in ((0.1, 0.44), (0.55, 0.88)):  # the detour of the residual stream around either part
        path((0, foot), (0.75, foot), (0.75, join), (0.09, join))
    for start, end in ((0.0, 0.19), (0.34, 0.405), (0.48, 0.63), (0.78, 0.845), (0.92, 1.01)):
        path((0, start), (0, end))
    plus(0.44)
    plus(0.88)
    axes.text(0, -0.01, "$X_i$", ha="center", va="top", size=11)
    axes.text(0, 1.02, "$X_{i+1}$", ha="center", va="bottom", size=11)
    axes.text(0.8, 0.5, "residual", rotation=270, ha="left", va="center", size=8.5, color=GREY)


def _draw_angle(axes: Axes, score: float, left: float) -> None:
    """Unit vectors X_i and X_{i+1} whose cosine is 1 - score; the score is the stretch from the foot of the
    perpendicular to the tip of X_i."""
    cosine = float(np.clip(1 - score, -1, 1))
    angle = float(np.arccos(cosine))
    tip = (cosine, float(np.sin(angle)))
    colour = MEASURES["block_influence"].colour
    axes.set_aspect("equal")
    axes.set(xlim=(left - 0.08, 1.24), ylim=(-0.42, 1.16))
    axes.axis("off")
    axes.add_patch(Arc((0, 0), 2, 2, theta1=0, theta2=np.degrees(max(angle, np.pi / 2)), color="#d0d0d0", lw=0.8))
    axes.add_patch(Arc((0, 0), 0.7, 0.7, theta1=0, theta2=np.degrees(angle), color=VERMILLION, lw=1.2))
    axes.plot([cosine, cosine], [0, tip[1]], ":", color=GREY, lw=1)
    axes.plot([cosine, 1], [0, 0], color=ORANGE, lw=7, solid_capstyle="butt", zorder=1, gid="score")
    for end, shade in (((1, 0), BLACK), (tip, colour)):
        axes.add_patch(
            FancyArrowPatch((0, 0), end, arrowstyle="-|>", mutation_scale=11, color=shade, lw=1.6, shrinkA=0, shrinkB=0)
        )
    axes.text(1.04, -0.01, "$X_i$", va="center", size=10.5)
    away = 1.1 if angle > 0.3 else 1.06
    axes.text(
        away * tip[0],
        max(away * tip[1], 0.17),
        "$X_{i+1}$",
        ha="center" if angle > 0.7 else "left",
        va="center",
        size=10.5,
        color=colour,
    )
    middle = (max(left, 0) + 1) / 2 if left >= 0 else (left + 1) / 2
    axes.text(middle, -0.13, f"BI = 1 - cos = {score:.3g}", ha="center", va="top", size=9.5, color="#9a6a00")
    axes.text(middle, -0.3, f"angle {np.degrees(angle):.1f}°", ha="center", va="top", size=9.5, color=VERMILLION)


@styled
def angular_grid(grid: pd.DataFrame) -> Figure:
    """Angular distance between the input of block l and that of block l + n, the best start of each n marked.

    Figure 4 of Gromov et al. 2024; removing the n blocks from the marked start on is their pruning rule.

    Args:
        grid: one row a (n, start): n (blocks removed), start (first of them), distance (arccos(cosine) / π, 0 to 1).
    """
    # pivot refuses a cell given twice, where pivot_table would average it
    table = grid.pivot(index="n", columns="start", values="distance").sort_index(ascending=False)  # noqa: PD010
    figure, axes = plt.subplots(figsize=(WIDTH, 5.4), layout="constrained")
    heat_map(axes, table, label="angular distance, arccos(cosine) / π", cmap="viridis_r")
    # Ties go to the deeper start, as in the removal order.
    ordered = grid.dropna().sort_values(["distance", "start"], ascending=[True, False])
    best = [part.iloc[0] for _, part in ordered.groupby("n")]
    x = [list(table.columns).index(row["start"]) + 0.5 for row in best]
    y = [list(table.index).index(row["n"]) + 0.5 for row in best]
    size = float(np.clip(180 / len(table), 2.5, 7))
    axes.plot(x, y, "o", ms=size, mfc="white", mec=BLACK, mew=0.8, label="smallest distance for this n: remove these n")
    axes.set_xlabel("first block of the n, l (0 = first)")
    axes.set_ylabel("number of blocks, n")
    legend_above(axes)
    return figure


@styled
def order_stability(inclusion: pd.DataFrame, ranks: pd.DataFrame | None = None) -> Figure:
    """How certain the removal order is: the share of resamples in which a block is among the first k removed.

    Args:
        inclusion: one row a (block, k): block, k (blocks removed), probability (share of the bootstrap resamples).
        ranks: one row a block: block, rank (1 = removed first), low, high (95 % of the resamples); drawn beside the
            map and gives the order of its rows. Without it rows are sorted by how early a block tends to be removed.
    """
    table = inclusion.pivot(index="block", columns="k", values="probability")  # noqa: PD010 - see angular_grid
    order = ranks.sort_values("rank")["block"] if ranks is not None else None
    # Sum over k of P(among the first k) falls with the expected rank; ties go to the deeper block, as in the order.
    early = table.sum(axis=1).to_frame("early").reset_index().sort_values(["early", "block"], ascending=False)
    table = table.reindex(early["block"] if order is None else order)
    panels = 1 if ranks is None else 2
    size = (WIDTH, height_of_block_rows(len(table)))
    figure, grid = plt.subplots(
        1, panels, figsize=size, squeeze=False, layout="constrained", width_ratios=[1.25, 1][:panels]
    )
    left = grid[0, 0]
    heat_map(left, table, "probability", ticks=32 if ranks is None else 16, cmap="Blues", vmin=0, vmax=1)
    left.set_title("Among the first k removed, on another text")
    left.set_xlabel("number of blocks removed, k")
    row_labels(left, table.index, offset=0.5)
    if ranks is not None:
        _draw_ranks(grid[0, 1], ranks.set_index("block").loc[table.index].reset_index())
        grid[0, 1].set_title("Place in the removal order, 95 % interval")
        row_labels(grid[0, 1], table.index, label="")
    return figure


def _draw_ranks(axes: Axes, ranks: pd.DataFrame) -> None:
    """Points and intervals, one row a block in the frame's order, first row at the top."""
    y = np.arange(len(ranks))
    axes.hlines(y, ranks["low"], ranks["high"], color=SKY, lw=float(np.clip(110 / len(ranks), 1.5, 5)))
    axes.plot(ranks["rank"], y, "o", color=BLUE, ms=float(np.clip(160 / len(ranks), 2, 5)))
    axes.set_ylim(len(ranks) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("place (1 = removed first)")
