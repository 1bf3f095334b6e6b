"""DataFrame -> Figure, one look for all of them; imports neither torch nor transformers.

Every figure function takes DataFrames (columns and units in its docstring) and returns a matplotlib Figure that pyplot
does not hold, so a notebook cell ending in it shows it once. `save` writes one as PNG, PDF and CSV, byte for byte the
same for the same data. Blocks are counted from 0 = first.
"""

import functools
import io
import pickle
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from layer_redundancy.core.cache import write_whole

# Okabe and Ito's palette, told apart by colour-blind readers; yellow is left out, too pale for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#666666"

# The same thing has the same colour and marker in every figure. Names not listed take what is free, in order.
LOOKS = {
    "block_influence": (BLUE, "o"),
    "relative_magnitude": (ORANGE, "s"),
    "hidden_norm": (GREEN, "^"),
    "sequential": (PURPLE, "v"),
    "reverse_order": (SKY, "D"),
    "angular_distance": (VERMILLION, "P"),
    "angular_blocks": (VERMILLION, "P"),
    "greedy": (BLACK, "X"),
    "perplexity": (BLACK, "o"),
    "passage_continuation": (GREEN, "o"),
    "mmlu_dev": (ORANGE, "s"),
    "mmlu": (ORANGE, "s"),
    "free-running": (VERMILLION, "D"),
    "teacher-forced": (BLUE, "o"),
    "own text": (PURPLE, "^"),
    "full precision": (BLACK, "o"),
    "GPTQ, 8 bits": (SKY, "s"),
    "GPTQ, 4 bits": (BLUE, "D"),
    "GPTQ, 3 bits": (VERMILLION, "^"),
}
_SPARE = [(VERMILLION, "D"), (PURPLE, "^"), (SKY, "v"), (BLUE, "P"), (GREEN, "X"), (ORANGE, "o")]

# metric -> title, axis label, which score is removed first
METRICS = {
    "block_influence": ("Block Influence", "1 - cosine", "smallest"),
    "relative_magnitude": ("Relative magnitude", "|f(x)| / |x + f(x)|", "smallest"),
    "hidden_norm": ("Hidden-state norm", "|output|", "largest"),
    "sequential": ("Sequential", "−block index", "largest"),
    "reverse_order": ("Reverse order", "−block index", "smallest"),
    "angular_distance": ("Angular distance, last token", "arccos(cosine) / π", "smallest"),
}

WIDTH = 9.0  # inches of every figure; a README shows it at about 900 px, so a point of type is 1.4 px there
CAPTION_SIZE = 7.5
PNG_DPI = 200
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws the same letters
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.borderaxespad": 0.2,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "savefig.bbox": None,
    "svg.hashsalt": "layer-redundancy",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def style() -> AbstractContextManager:
    """Context in which everything is drawn and saved, whatever the caller's own matplotlib settings are."""
    return plt.style.context(["default", STYLE])


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        with style():
            figure = draw(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        # Made by pyplot, because that teaches Jupyter to show figures; closed, because Jupyter would show it twice.
        plt.close(figure)
        return figure

    return wrapper


def _rounded(value: object) -> object:
    """A frame with the digits that its CSV file has, so that what no reader sees cannot change a figure's bytes.

    The last bits of a matrix product depend on where its operands lie in memory.
    """
    if not isinstance(value, pd.DataFrame):
        return value
    floats = value.select_dtypes("float").columns
    return value.assign(**{name: [float(f"{x:.8g}") for x in value[name]] for name in floats})


def look(name: str, among: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a series; one without a fixed look takes a free one, by its place in `among`."""
    if name in LOOKS:
        return LOOKS[name]
    taken = {LOOKS[other] for other in among if other in LOOKS}
    colours = {colour for colour, _ in taken}
    free = [spare for spare in _SPARE if spare[0] not in colours] or _SPARE
    unknown = [other for other in among if other not in LOOKS]
    return free[(unknown.index(name) if name in unknown else 0) % len(free)]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


@_styled
def speed_ratios(rows: pd.DataFrame) -> Figure:
    """How much faster shared sweeps are than what others do.

    Args:
        rows: one row a (case, peer): case, plan, peer, ratio (the peer's seconds over ours, median), ratio_low,
            ratio_high (of the pairs), target.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.46 * len(rows)), layout="constrained")
    y = np.arange(len(rows))[::-1]
    axes.hlines(y, rows["ratio_low"], rows["ratio_high"], color=BLUE, lw=2.5, alpha=0.45)
    axes.plot(rows["ratio"], y, "o", color=BLUE, ms=6, label="median of the pairs; line: smallest to largest")
    axes.plot(rows["target"], y, "|", color=VERMILLION, ms=15, mew=2, label="target: not below")
    axes.axvline(1, color=GREY, ls="--", lw=1, label="as fast")
    for place, row in zip(y, rows.itertuples(), strict=True):
        axes.annotate(
            f"{row.ratio:.2f}", (row.ratio, place), (0, 7), textcoords="offset points", ha="center", va="bottom", size=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("peer's time / time of the shared sweep (more is faster)")
    axes.set_ylabel("plan, and who it is timed against")
    axes.set_yticks(y, [f"({case}) {peer}" for case, peer in zip(rows["case"], rows["peer"], strict=True)])
    _legend_above(axes)
    return figure


@_styled
def prefill_rates(rows: pd.DataFrame) -> Figure:
    """Tokens a second that sides read prompts at, a panel a model.

    Args:
        rows: one row a (model, prompt_tokens, side): those, tokens_per_second (median), low, high (of the rounds).
    """
    models, sides = (list(dict.fromkeys(rows[column])) for column in ("model", "side"))
    figure = plt.figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        mine = rows[rows["model"] == model]
        lengths = sorted(mine["prompt_tokens"].unique())
        for place, side in enumerate(sides):
            of = mine[mine["side"] == side].sort_values("prompt_tokens")
            x = np.arange(len(of)) + 0.26 * (place - (len(sides) - 1) / 2)
            error = [of["tokens_per_second"] - of["low"], of["high"] - of["tokens_per_second"]]
            colour = [BLUE, GREY, ORANGE][place % 3]
            axes.bar(x, of["tokens_per_second"], 0.24, yerr=error, color=colour, label=side, ecolor=BLACK)
            for at, rate, high in zip(x, of["tokens_per_second"], of["high"], strict=True):
                axes.annotate(f"{rate:,.0f}", (at, high), (0, 3), textcoords="offset points", ha="center", size=8.5)
        axes.set_title(model)
        axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axes.set_xlabel("tokens of the prompt")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
    panels[0].set_ylabel("tokens a second")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(sides), frameon=False)
    return figure


@_styled
def removal_order(
    scores: pd.DataFrame, order: Sequence[int], highlight: int | None = None, reported: Sequence[int] = ()
) -> Figure:
    """Block Influence of each block, labelled with its place in the removal order (figure 2a of the paper).

    Args:
        scores: one row a block: block, score (1 - cosine); optionally low, high (95 % interval).
        order: blocks, first removed first; blocks not in it get no label.
        highlight: how many of the first removed are coloured; by default a quarter, about the paper's cut.
        reported: blocks that the paper removes of the same model, ringed; none if it is not the paper's.
    """
    scores = scores.sort_values("block")
    blocks = scores["block"].to_numpy(int)
    highlight = len(blocks) // 4 if highlight is None else highlight
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    colour, marker = LOOKS["block_influence"]
    _band(axes, scores, "block", GREY)
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
    log = _scale(axes, scores["score"])
    size = 8.5 if len(blocks) <= 40 else 6.5
    rank = {int(block): place for place, block in enumerate(order, start=1)}
    top = scores["high"].fillna(scores["score"]) if "high" in scores else scores["score"]
    for block, height, removed in zip(blocks, top, first, strict=True):
        if int(block) in rank and np.isfinite(height):
            axes.annotate(
                str(rank[int(block)]),
                (block, height),
                (0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                size=size,
                rotation=0 if len(blocks) <= 40 else 90,
                color=VERMILLION if removed else "#333333",
                weight="bold" if removed else "normal",
            )
    axes.margins(y=0.12)
    axes.set_ylabel("Block Influence (1 - cosine)" + (", log scale" if log else ""))
    _block_axis(axes, blocks)
    handles, labels = axes.get_legend_handles_labels()
    if {"low", "high"} <= set(scores):
        handles, labels = [*handles, Patch(color=GREY, alpha=0.25, lw=0)], [*labels, "95 % interval"]
    _legend_above(axes, handles, labels, title="number = place in the removal order")
    return figure


@_styled
def importance_metrics(scores: pd.DataFrame) -> Figure:
    """All importance measures side by side, a panel each (figure 8), with the block that each would remove first.

    Args:
        scores: one row a (metric, first_token, block): metric (a key of METRICS, or any name: its smallest score is
            then removed first), first_token ("included" or "excluded"), block, score; optionally low, high (95 %
            interval). "excluded" rows may be missing. Panels follow the order of the metrics in the frame. `sequential`
            and `reverse_order` both score -block, as in the paper.
    """
    metrics = list(dict.fromkeys(scores["metric"]))
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.75 * rows + 0.3), squeeze=False, layout="constrained")
    has_excluded = (scores["first_token"] == "excluded").any()
    for axes, metric in zip(grid.flat, metrics, strict=False):
        title, label, first = METRICS.get(metric, (metric, "score", "smallest"))
        colour, marker = look(metric, metrics)
        part = scores[scores["metric"] == metric].sort_values("block")
        included = part[part["first_token"] == "included"].dropna(subset=["score"])
        excluded = part[part["first_token"] == "excluded"].dropna(subset=["score"])
        if np.array_equal(included["score"], excluded["score"]):
            excluded = excluded.iloc[:0]  # nothing to tell apart: the measure does not look at tokens
        removed = []
        for rows_of, line, shade in ((included, "-", colour), (excluded, "--", GREY)):
            if len(rows_of):
                size = 3.2 if len(rows_of) <= 40 and line == "-" else 0
                _band(axes, rows_of, "block", shade)
                axes.plot(rows_of["block"], rows_of["score"], line, marker=marker, ms=size, color=shade)
                row = _extreme(rows_of, "score", first, tie="block")
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
                removed.append(int(row["block"]))
        log = _scale(axes, part["score"])
        axes.set_ylabel(label + (", log" if log else ""))
        blocks = " / ".join(str(block) for block in dict.fromkeys(removed))
        axes.set_title(f"{title}\nfirst removed: {first}, block {blocks}", size=9.5, linespacing=1.3)
        _block_axis(axes, part["block"], label="block index", ticks=8)
    for axes in grid.flat[len(metrics) :]:
        axes.remove()
    handles = [Line2D([], [], color=BLACK, marker="o", ms=3.2, label="all tokens")]
    if has_excluded:
        handles.append(Line2D([], [], color=GREY, ls="--", label="without the first token"))
    if {"low", "high"} <= set(scores):
        handles.append(Patch(color=GREY, alpha=0.25, lw=0, label="95 % interval"))
    handles.append(Line2D([], [], ls="", marker="*", ms=11, mfc="white", mec="black", mew=0.6, label="removed first"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


@_styled
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


@_styled
def angular_grid(grid: pd.DataFrame) -> Figure:
    """Angular distance between the input of block l and that of block l + n, the best start of each n marked.

    Figure 4 of Gromov et al. 2024; removing the n blocks from the marked start on is their pruning rule.

    Args:
        grid: one row a (n, start): n (blocks removed), start (first of them), distance (arccos(cosine) / π, 0 to 1).
    """
    # pivot refuses a cell given twice, where pivot_table would average it
    table = grid.pivot(index="n", columns="start", values="distance").sort_index(ascending=False)  # noqa: PD010
    figure, axes = plt.subplots(figsize=(WIDTH, 5.4), layout="constrained")
    _heat_map(axes, table, label="angular distance, arccos(cosine) / π", cmap="viridis_r")
    best = [_extreme(part, "distance", "smallest", tie="start") for _, part in grid.dropna().groupby("n")]
    x = [list(table.columns).index(row["start"]) + 0.5 for row in best]
    y = [list(table.index).index(row["n"]) + 0.5 for row in best]
    size = float(np.clip(180 / len(table), 2.5, 7))
    axes.plot(x, y, "o", ms=size, mfc="white", mec=BLACK, mew=0.8, label="smallest distance for this n: remove these n")
    axes.set_xlabel("first block of the n, l (0 = first)")
    axes.set_ylabel("number of blocks, n")
    _legend_above(axes)
    return figure


@_styled
def rank_intervals(ranks: pd.DataFrame) -> Figure:
    """Place of each block in the removal order, with the 95 % interval over resamples of the text.

    Args:
        ranks: one row a block: block, rank (1 = removed first), low, high (95 % of the resamples).
    """
    ranks = ranks.sort_values("rank")
    figure, axes = plt.subplots(figsize=(WIDTH, _tall(len(ranks))), layout="constrained")
    _draw_ranks(axes, ranks)
    _row_labels(axes, ranks["block"])
    return figure


@_styled
def order_stability(inclusion: pd.DataFrame, ranks: pd.DataFrame | None = None) -> Figure:
    """How certain the removal order is: the share of resamples in which a block is among the first k removed.

    Args:
        inclusion: one row a (block, k): block, k (blocks removed), probability (share of the bootstrap resamples).
        ranks: as in `rank_intervals`, for the same blocks; drawn beside the map and gives the order of its rows.
            Without it rows are sorted by how early a block tends to be removed.
    """
    table = inclusion.pivot(index="block", columns="k", values="probability")  # noqa: PD010 - see angular_grid
    order = ranks.sort_values("rank")["block"] if ranks is not None else None
    # Sum over k of P(among the first k) falls with the expected rank; ties go to the deeper block, as in the order.
    early = table.sum(axis=1).to_frame("early").reset_index().sort_values(["early", "block"], ascending=False)
    table = table.reindex(early["block"] if order is None else order)
    panels = 1 if ranks is None else 2
    size = (WIDTH, _tall(len(table)))
    figure, grid = plt.subplots(
        1, panels, figsize=size, squeeze=False, layout="constrained", width_ratios=[1.25, 1][:panels]
    )
    left = grid[0, 0]
    _heat_map(left, table, ticks=32 if ranks is None else 16, cmap="Blues", vmin=0, vmax=1)
    left.set_title("Probability of being among the first k removed")
    left.set_xlabel("number of blocks removed, k")
    _row_labels(left, table.index, offset=0.5)
    if ranks is not None:
        _draw_ranks(grid[0, 1], ranks.set_index("block").loc[table.index].reset_index())
        grid[0, 1].set_title("Place in the removal order")
        _row_labels(grid[0, 1], table.index, label="")
    return figure


@_styled
def single_layer_removal(
    perplexity: pd.DataFrame, accuracy: pd.DataFrame, reference: pd.DataFrame | None = None
) -> Figure:
    """Perplexity and accuracy after removing one block, for each block (figure 3).

    Args:
        perplexity: one row a removed block: block, perplexity; optionally low, high (95 % interval). Values that
            are not finite are drawn as triangles at the upper edge.
        accuracy: one row a (removed block, task, metric): block, task, metric, accuracy (0 to 1), low, high (95 %
            interval), n (items), chance (accuracy of guessing).
        reference: the dense model, same columns, `block` empty: one row with perplexity, one with accuracy a (task,
            metric).
    """
    blocks = np.unique(np.concatenate([perplexity["block"].dropna(), accuracy["block"].dropna()]).astype(int))
    reference = pd.DataFrame() if reference is None else reference
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.6), sharex=True, layout="constrained", height_ratios=[1, 1.15]
    )
    _draw_perplexity(top, perplexity, reference.dropna(subset=["perplexity"]) if "perplexity" in reference else None)
    _draw_accuracy(bottom, accuracy, reference.dropna(subset=["accuracy"]) if "accuracy" in reference else None)
    _block_axis(bottom, blocks, label="removed block (0 = first)")
    return figure


@_styled
def prune_ratio(
    perplexity: pd.DataFrame,
    accuracy: pd.DataFrame,
    cliffs: pd.DataFrame | None = None,
    reported: pd.DataFrame | None = None,
) -> Figure:
    """Perplexity and accuracy against the share of blocks removed (figure 2b), the cliff of each task marked.

    Args:
        perplexity: one row a depth: share (percent of blocks removed), perplexity; optionally low, high (95 %).
        accuracy: one row a (depth, task, metric): share, and columns as in `single_layer_removal`.
        cliffs: one row a task: task, share (first depth after the fall), share_low, share_high (95 % of resamples),
            block (removed at that depth).
        reported: published accuracies, drawn hollow: share, accuracy (0 to 1), label.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.9), sharex=True, layout="constrained", height_ratios=[1, 1.25]
    )
    dense = [table[table["share"] == 0] for table in (perplexity, accuracy)]
    _draw_perplexity(top, perplexity, dense[0], x="share", label="blocks removed by Block Influence")
    if reported is not None and len(reported):
        for place, (label, part) in enumerate(reported.groupby("label", sort=False)):
            marker = "Dsv^<>P"[place % 7]
            bottom.plot(
                part["share"], part["accuracy"], marker, ls="", ms=6, mfc="white", mec=GREY, mew=1.1, label=label
            )
    _draw_accuracy(bottom, accuracy, dense[1], x="share")
    for row in [] if cliffs is None else cliffs.itertuples():
        colour = look(row.task, list(cliffs["task"]))[0]
        bottom.axvspan(row.share_low, row.share_high, color=colour, alpha=0.12, lw=0, zorder=0)
        bottom.axvline(row.share, color=colour, lw=1.2, ls="-.", zorder=1, gid="cliff")
        bottom.annotate(
            f"cliff: block {row.block}", (row.share, 0.99), (4, 0), xycoords=bottom.get_xaxis_transform(),
            textcoords="offset points", size=9, color=colour, va="top",
        )  # fmt: skip
    _share_axis(bottom)
    return figure


@_styled
def metric_curves(perplexity: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Perplexity and accuracy by the measure that chooses what to remove (figures 5 and 9).

    Args:
        perplexity: one row a (metric, depth): metric, share (percent of blocks removed), perplexity; optionally low,
            high: the range over resamples of the calibration text.
        accuracy: one row a (metric, depth, task): metric, share, task, accuracy, low, high (95 % interval), n, chance;
            optionally text_low, text_high: the range over resamples of the calibration text.
    """
    tasks = list(dict.fromkeys(accuracy["task"]))
    metrics = list(dict.fromkeys(perplexity["metric"]))
    figure, panels = plt.subplots(
        1 + len(tasks), 1, figsize=(WIDTH, 3.3 + 3.1 * len(tasks)), sharex=True, layout="constrained", squeeze=False
    )
    top, *others = panels[:, 0]
    for place, metric in enumerate(metrics):
        colour, marker = look(metric, metrics)
        front = 4 if metric == "block_influence" else 2
        dashes = "--" if metric == "greedy" else "-"
        part = perplexity[perplexity["metric"] == metric].sort_values("share")
        top.plot(part["share"], part["perplexity"], dashes, marker=marker, color=colour, label=metric, zorder=front)
        _band(top, part, "share", colour)
        for axes, task in zip(others, tasks, strict=True):
            part = accuracy[(accuracy["metric"] == metric) & (accuracy["task"] == task)].sort_values("share")
            shift = (place - (len(metrics) - 1) / 2) * 0.28
            interval = np.abs(part[["low", "high"]].sub(part["accuracy"], axis=0)).to_numpy(float).T
            axes.errorbar(
                part["share"] + shift, part["accuracy"], yerr=interval, color=colour, ls=dashes, marker=marker,
                elinewidth=0.5, zorder=front, label=metric,
            )  # fmt: skip
            if {"text_low", "text_high"} <= set(part):
                band = part.assign(low=part["text_low"], high=part["text_high"], share=part["share"] + shift)
                _band(axes, band, "share", colour)
    _scale(top, perplexity["perplexity"].clip(upper=PERPLEXITY_LIMIT), log=True)
    _cut_perplexity(top, perplexity, "share")
    top.set_ylabel("perplexity, log scale")
    handles, labels = top.get_legend_handles_labels()
    if {"low", "high"} <= set(perplexity):
        handles, labels = [*handles, Patch(color=GREY, alpha=0.25, lw=0)], [*labels, "range over calibration texts"]
    _legend_above(top, handles, labels)
    for axes, task in zip(others, tasks, strict=True):
        _explain_accuracy(axes, accuracy[accuracy["task"] == task])
    _share_axis(panels[-1, 0])
    return figure


@_styled
def removal_beside(curves: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Bits per byte and accuracy by the measure that chooses what to remove, two models side by side.

    Args:
        curves: one row a (model, metric, depth): model, metric, share (percent of blocks removed), bits_per_byte, low,
            high (95 % interval).
        accuracy: one row a (model, metric, depth, task): model, metric, share, task, metric_name, accuracy, low, high
            (95 % interval), n, chance; of one task.
    """
    models, metrics = list(dict.fromkeys(curves["model"])), list(dict.fromkeys(curves["metric"]))
    figure, panels = plt.subplots(
        2, len(models), figsize=(WIDTH, 6.6), sharex=True, sharey="row", layout="constrained", squeeze=False
    )
    for (top, bottom), model in zip(panels.T, models, strict=True):
        for place, metric in enumerate(metrics):
            colour, marker = look(metric, metrics)
            options = {
                "color": colour,
                "ls": "--" if metric == "greedy" else "-",
                "marker": marker,
                "elinewidth": 0.5,
                "zorder": 4 if metric == "block_influence" else 2,
            }
            shift = (place - (len(metrics) - 1) / 2) * 0.28
            for axes, table, value in ((top, curves, "bits_per_byte"), (bottom, accuracy, "accuracy")):
                part = table[(table["model"] == model) & (table["metric"] == metric)].sort_values("share")
                interval = np.abs(part[["low", "high"]].sub(part[value], axis=0)).to_numpy(float).T
                axes.errorbar(part["share"] + shift, part[value], yerr=interval, label=metric, **options)
        dense = curves[(curves["model"] == model) & (curves["share"] == 0)]
        top.axhline(dense["bits_per_byte"].iloc[0], color=GREY, lw=1, zorder=1)
        part = accuracy[accuracy["model"] == model]
        bottom.axhline(part["chance"].iloc[0], color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, gid="chance")
        bottom.set_title(
            f"{part['task'].iloc[0]}, {part['metric_name'].iloc[0]}, n={int(part['n'].iloc[0])}; dashes: chance", size=9
        )
        top.set_title(model)
        _share_axis(bottom)
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    panels[0, 0].set_ylabel("bits per byte, log scale")
    panels[1, 0].set_ylabel("accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


@_styled
def training_curve(log: pd.DataFrame, levels: dict[str, float]) -> Figure:
    """Loss on the training text, and bits per byte of text held out, by training tokens.

    Args:
        log: tokens, loss (nats a token, mean since the row before), bits_per_byte (empty where not measured).
        levels: name -> bits per byte of what the model must beat, drawn across.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    millions = log["tokens"] / 1e6
    left.plot(millions, log["loss"], color=BLUE)
    left.set_ylabel("training loss (nats a token)")
    judged = log["bits_per_byte"].notna()
    right.plot(millions[judged], log["bits_per_byte"][judged], "o-", color=VERMILLION, label="validation articles")
    for place, (name, level) in enumerate(levels.items()):
        right.axhline(level, color=[GREY, BLACK, PURPLE][place % 3], ls=["--", ":", "-."][place % 3], label=name)
    right.set_ylabel("bits per byte, held-out articles")
    for axes in (left, right):
        axes.set_xlabel("training tokens (millions)")
    right.legend(loc="center right")
    return figure


@_styled
def order_correlation(table: pd.DataFrame) -> Figure:
    """Rank correlation between the removal orders of measures.

    Args:
        table: one row a pair: a, b, tau (Kendall).
    """
    names = list(dict.fromkeys(table["a"]))
    square = table.pivot(index="a", columns="b", values="tau").loc[names, names]  # noqa: PD010 - see angular_grid
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + 0.5 * len(names)), layout="constrained")
    bar = {"label": "Kendall's tau", "pad": 0.02, "fraction": 0.06}
    sns.heatmap(
        square, ax=axes, cbar_kws=bar, cmap="PuOr", vmin=-1, vmax=1, annot=True, fmt=".2f", annot_kws={"size": 9}
    )
    axes.grid(False)
    axes.set_xlabel("order of removal by")
    axes.set_ylabel("order of removal by")
    labels = [name.replace("_", "\n") for name in names]
    axes.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=0)
    axes.set_yticks(np.arange(len(names)) + 0.5, [name.replace("_", " ") for name in names], rotation=0)
    axes.tick_params(length=0)
    return figure


@_styled
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
        part = everywhere[everywhere["measurement"] == name].sort_values("head")
        colour, marker = look(name, measured)
        interval = np.abs(part[["low", "high"]].sub(part["value"], axis=0)).to_numpy(float).T
        left.errorbar(part["head"], part["value"], yerr=interval, color=colour, marker=marker, elinewidth=0.9)
        left.axhline(part["dense"].iloc[0], color=GREY, lw=1.6, zorder=1, gid="dense")
        if name == "perplexity":
            _scale(left, [*part["low"], *part["high"], *part["dense"]], log=True)
            left.set_ylabel("perplexity, log scale")
            right.set_ylabel("log-perplexity, change (nats)")
        else:
            left.axhline(part["chance"].iloc[0], color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, gid="chance")
            left.set_ylabel(f"accuracy, {name}\n(n={int(part['n'].iloc[0])})")
            few = int(single.loc[single["measurement"] == name, "n"].min())
            right.set_ylabel(f"accuracy, change\n({name}, n={few} a block)")
        points = single[single["measurement"] == name]
        heads = sorted(points["head"].unique())
        jitter = np.linspace(-0.28, 0.28, max(2, points["block"].nunique()))
        places = points.groupby("head")["block"].rank(method="first").astype(int).to_numpy() - 1
        shades = points["block"] / max(points["block"].max(), 1)
        right.scatter(
            points["head"] + jitter[places], points["change"], c=shades, cmap="viridis_r", s=9, lw=0, zorder=2
        )
        means = points.groupby("head")["change"].mean()
        right.plot(heads, means, "_", color=VERMILLION, ms=13, mew=2.2, zorder=3)
        right.axhline(0, color=GREY, lw=1.6, zorder=1)
        if name == "perplexity" and points["change"].abs().max() > 20 * points["change"].abs().median() > 0:
            right.set_yscale("symlog", linthresh=float(f"{points['change'].abs().quantile(0.75):.1g}"))
            right.yaxis.set_minor_locator(NullLocator())
    for axes in grid[-1]:
        axes.set_xlabel("head id")
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    handles = [
        Line2D([], [], color=BLACK, marker="o"),
        Line2D([], [], color=GREY, lw=1.6),
        Line2D([], [], color=GREY, ls=(0, (4, 2))),
    ]
    grid[0, 0].set_title("removed in all blocks")
    grid[0, 1].set_title("removed in one block (light: first, dark: last)")
    mean = Line2D([], [], color=VERMILLION, marker="_", ms=11, mew=2.2, ls="")
    labels = ["value, 95 % interval", "dense model", "chance", "mean over blocks"]
    figure.legend([*handles, mean], labels, loc="outside upper center", ncols=4)
    return figure


@_styled
def head_map(table: pd.DataFrame) -> Figure:
    """What every single query head costs when it is removed.

    Args:
        table: one row a (block, head): block, head, change (log-increase in nats).
    """
    square = table.pivot(index="head", columns="block", values="change")  # noqa: PD010 - see angular_grid
    limit = float(np.nanpercentile(np.abs(square), 95)) or 1.0
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + max(2.0, 0.22 * len(square))), layout="constrained")
    label = f"log-perplexity, change (nats)\ncolours end at ±{limit:.2g}"
    _heat_map(axes, square, label=label, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes.set_xlabel("block (0 = first)")
    axes.set_ylabel("head id")
    return figure


@_styled
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
    _legend_above(axes, [*handles, Line2D([], [], color=GREY, lw=1, ls=":")], [*labels, "median"])
    return figure


@_styled
def method_accuracies(measured: pd.DataFrame, reported: pd.DataFrame | None = None) -> Figure:
    """Accuracy of the dense and the pruned models (figure 1).

    Args:
        measured: one row a (method, task): method, task, accuracy, low, high (95 % interval), n, chance.
        reported: published accuracies on the paper's models, drawn hollow: method, label, accuracy (0 to 1).
    """
    reported = pd.DataFrame(columns=["method", "label", "accuracy"]) if reported is None else reported
    methods = list(dict.fromkeys([*measured["method"], *reported["method"]]))
    tasks = list(dict.fromkeys(measured["task"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    for place, task in enumerate(tasks):
        part = measured[measured["task"] == task]
        colour, marker = look(task, tasks)
        x = [methods.index(m) + (place - (len(tasks) - 1) / 2) * 0.5 / len(tasks) for m in part["method"]]
        interval = np.abs(part[["low", "high"]].sub(part["accuracy"], axis=0)).to_numpy(float).T
        label = f"{task}, n={int(part['n'].iloc[0])}"
        axes.errorbar(x, part["accuracy"], yerr=interval, color=colour, ls="", marker=marker, ms=6, label=label)
    for place, chance in enumerate(sorted(measured["chance"].dropna().unique())):
        label = "_chance" if place else "chance"
        axes.axhline(chance, color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, gid="chance", label=label)
    for place, (label, part) in enumerate(reported.groupby("label", sort=False)):
        x = [methods.index(m) + 0.3 for m in part["method"]]
        axes.plot(x, part["accuracy"], "Dsv^"[place % 4], ls="", ms=6, mfc="white", mec=GREY, mew=1.1, label=label)
    axes.set_xticks(range(len(methods)), methods)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.set_ylim(0, None)
    axes.set_ylabel("accuracy")
    axes.set_xlabel("model: dense, or a quarter removed by")
    _legend_above(axes)
    return figure


@_styled
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
        colour, marker = look(name, names)
        part = text[text["weights"] == name].sort_values("megabytes")
        interval = np.abs(part[["low", "high"]].sub(part["perplexity"], axis=0)).to_numpy(float).T
        options = {"color": colour, "marker": marker, "elinewidth": 0.5, "label": name}
        top.errorbar(part["megabytes"], part["perplexity"], yerr=interval, **options)
        for row in part[part["count"].isin(labelled)].itertuples():
            top.annotate(
                f"−{row.count}" if row.count else "dense", (row.megabytes, row.perplexity),
                (14, 5) if place % 2 else (-6, -11), color=colour,
                textcoords="offset points", size=7.5, ha="center",
            )  # fmt: skip
        for axes, task in zip(others, tasks, strict=True):
            part = points[(points["weights"] == name) & (points["task"] == task)].sort_values("megabytes")
            interval = np.abs(part[["low", "high"]].sub(part["accuracy"], axis=0)).to_numpy(float).T
            axes.errorbar(part["megabytes"], part["accuracy"], yerr=interval, **options)
    limit = 1e5  # models that no size makes worth having; the lines would be flat below
    _scale(top, text["perplexity"].clip(upper=limit), log=True)
    top.set_ylim(bottom=0.5 * text["perplexity"].min())
    _cut_perplexity(top, text, "megabytes", limit)
    top.set_ylabel("perplexity, log scale")
    _legend_above(top)
    for axes, task in zip(others, tasks, strict=True):
        _explain_accuracy(axes, points[points["task"] == task])
    panels[-1, 0].set_xlabel("weights (MB = 10⁶ bytes); numbers in the upper panel: blocks removed")
    return figure


@_styled
def damage_interaction(rows: pd.DataFrame) -> Figure:
    """What pruning and quantization cost together, against the sum of what each costs alone.

    Args:
        rows: one row a (precision, depth): weights, share (percent of blocks removed), sum, both, interaction, low,
            high (95 % interval of the interaction); nats a token.
    """
    names = list(dict.fromkeys(rows["weights"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.0), layout="constrained")
    for name in names:
        colour, marker = look(name, names)
        part = rows[rows["weights"] == name].sort_values("share")
        left.plot(part["share"], part["both"], color=colour, marker=marker, ms=3.5, label=f"{name}: both")
        left.plot(part["share"], part["sum"], color=colour, ls="--", label=f"{name}: sum")
        right.plot(part["share"], part["interaction"], color=colour, marker=marker, ms=3.5, label=name)
        _band(right, part, "share", colour)
    right.axhline(0, color=GREY, lw=1, zorder=1)
    left.set_ylabel("increase of the mean NLL (nats a token)")
    right.set_ylabel("both minus sum (nats a token)")
    left.set_title("together, and the sum of the two alone")
    right.set_title("interaction, 95 % interval")
    left.legend(loc="upper left")
    right.legend(loc="best")
    for axes in (left, right):
        _share_axis(axes)
        axes.set_xlim(-2, rows["share"].max() + 2)
    return figure


@_styled
def influence_by_precision(rows: pd.DataFrame) -> Figure:
    """Block Influence of every block, a line a precision.

    Args:
        rows: one row a (precision, block): weights, block, score (1 - cosine).
    """
    names = list(dict.fromkeys(rows["weights"]))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name in names:
        colour, marker = look(name, names)
        part = rows[rows["weights"] == name].sort_values("block")
        axes.plot(part["block"], part["score"], color=colour, marker=marker, label=name)
    _scale(axes, rows["score"])
    _block_axis(axes, rows["block"])
    axes.set_ylabel("Block Influence (1 − cosine)")
    _legend_above(axes)
    return figure


@_styled
def generation_by_position(curves: pd.DataFrame) -> Figure:
    """Agreement with the dense model along greedy continuations, a column a number of removed blocks (figure 10).

    Args:
        curves: one row a (removed, reading, position): removed (number of blocks), reading ("teacher-forced", "own
            text", "free-running"; "not yet diverged", "independent errors"), position (1 = first new token), agreement
            (0 to 1), low, high (95 %), n (prompts).
    """
    depths = sorted(curves["removed"].unique())
    figure, panels = plt.subplots(
        2, len(depths), figsize=(WIDTH, 5.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    labels = {
        "teacher-forced": "both read the dense model's text (teacher-forced)",
        "own text": "both read the pruned model's text",
        "free-running": "each reads its own text (free-running)",
        "not yet diverged": "not yet diverged",
        "independent errors": "if errors were independent",
    }
    looks = {name: (*LOOKS[name], "-") for name in ("teacher-forced", "own text", "free-running")}
    looks |= {"not yet diverged": (VERMILLION, "", "-"), "independent errors": (GREY, "", "--")}
    rows = (list(looks)[:3], list(looks)[3:])
    for column, depth in enumerate(depths):
        for axes, readings in zip(panels[:, column], rows, strict=True):
            for reading in readings:
                part = curves[(curves["removed"] == depth) & (curves["reading"] == reading)].sort_values("position")
                colour, marker, line = looks[reading]
                axes.plot(part["position"], part["agreement"], line, color=colour, marker=marker, label=labels[reading])
                if reading != "independent errors":  # two bands on one another tell nothing
                    _band(axes, part, "position", colour)
            axes.set_ylim(-0.03, 1.03)
        panels[0, column].set_title(f"{depth} block{'' if depth == 1 else 's'} removed")
        together = curves[(curves["removed"] == depth) & (curves["reading"] == "not yet diverged")]["agreement"].sum()
        panels[1, column].set_title(f"{together:.1f} tokens before they part", size=9.5)
        panels[1, column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels[1, column].set_xlabel("position of the new token")
    panels[0, 0].set_ylabel("same token (share of prompts)")
    panels[1, 0].set_ylabel("all tokens the same so far\n(share of prompts)")
    handles, names = [], []
    for axes in panels[:, 0]:
        more = axes.get_legend_handles_labels()
        handles, names = handles + more[0], names + more[1]
    n = int(curves["n"].iloc[0])
    handles, names = [*handles, Patch(color=GREY, alpha=0.25, lw=0)], [*names, f"95 % interval, n={n} prompts"]
    figure.legend(handles, names, loc="outside upper left", ncols=2)
    return figure


@_styled
def generation_by_depth(values: pd.DataFrame, kept: pd.DataFrame, chance: float) -> Figure:
    """Greedy continuations and what tasks keep, by the number of removed blocks (figure 10).

    Args:
        values: one row a (removed, measure): removed (number of blocks; NaN for the real text), measure
            ("teacher-forced", "own text", "free-running": agreement, 0 to 1; "repetition": share of repeated 4-grams;
            "perplexity": under the dense model), value, low, high (95 %), n (prompts).
        kept: one row a (removed, task): removed, task, kind ("generative" is drawn solid), kept (share of the dense
            model's score above chance), low, high (95 %), n (items).
        chance: agreement of continuations of different prompts.
    """
    figure, ((top, right), (left, bottom)) = plt.subplots(2, 2, figsize=(WIDTH, 7.0), layout="constrained")
    text = values[values["removed"].isna()].set_index("measure")["value"]
    values = values.dropna(subset="removed")

    def draw(axes: Axes, measure: str, label: str, look: tuple[str, str]) -> None:
        part = values[values["measure"] == measure].sort_values("removed")
        axes.plot(part["removed"], part["value"], marker=look[1], color=look[0], label=label)
        _band(axes, part, "removed", look[0])

    draw(top, "teacher-forced", "both read the dense model's text", LOOKS["teacher-forced"])
    draw(top, "own text", "both read the pruned model's text", LOOKS["own text"])
    draw(top, "free-running", "each reads its own text (free-running)", LOOKS["free-running"])
    top.axhline(chance, color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, label="texts of different prompts", gid="chance")
    top.set_ylabel("same token as the dense model (share)")
    names = list(dict.fromkeys(kept["task"]))
    for place, name in enumerate(names):
        part = kept[kept["task"] == name].sort_values("removed")
        colour, marker = look(name, names)
        line = "-" if part["kind"].iloc[0] == "generative" else "--"
        interval = np.abs(part[["low", "high"]].sub(part["kept"], axis=0)).to_numpy(float).T
        label = f"agreement, {name}" if name in ("free-running", "teacher-forced") else name
        right.errorbar(
            part["removed"] + 0.12 * (place - (len(names) - 1) / 2), part["kept"], yerr=interval, color=colour,
            ls=line, marker=marker, elinewidth=0.9, label=f"{label}, n={int(part['n'].iloc[0])}",
        )  # fmt: skip
    right.axhline(0, color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, label="chance")
    right.set_ylabel("score above chance kept (share)")
    draw(left, "repetition", "generated text", LOOKS["free-running"])
    left.axhline(text["repetition"], color=BLACK, lw=1.2, ls=":", label="real text", gid="text")
    left.set_ylim(-0.02, max(0.2, 1.05 * values.loc[values["measure"] == "repetition", "high"].max()))
    left.set_ylabel("repeated 4-grams (share)")
    draw(bottom, "perplexity", "generated text", LOOKS["free-running"])
    bottom.axhline(text["perplexity"], color=BLACK, lw=1.2, ls=":", label="real text", gid="text")
    _scale(bottom, [*values[values["measure"] == "perplexity"]["value"], text["perplexity"]], log=True)
    bottom.set_ylabel("dense model's perplexity, log scale")
    said = f"95 % interval, n={int(values['n'].iloc[0])} prompts"
    for axes in (top, right, left, bottom):
        axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
        axes.set_xlabel("blocks removed by Block Influence")
        handles, labels = axes.get_legend_handles_labels()
        if axes is left:
            handles, labels = [*handles, Patch(color=GREY, alpha=0.25, lw=0)], [*labels, said]
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Parts of figures


def _draw_perplexity(
    axes: Axes, rows: pd.DataFrame, dense: pd.DataFrame | None, x: str = "block", label: str = "one block removed"
) -> None:
    rows = rows.sort_values(x)
    colour, marker = LOOKS["perplexity"]
    values = rows["perplexity"].replace([np.inf, -np.inf], np.nan)
    size = 4.5 if len(rows) <= 40 else 3
    axes.plot(rows[x], values, marker=marker, ms=size, color=colour, label=label)
    _band(axes, rows[values.notna()], x, colour, label="95 % interval")
    for value in [] if dense is None else dense["perplexity"]:
        axes.axhline(value, color=GREY, lw=1.6, zorder=1, label=f"dense model: {value:.4g}", gid="dense")
        values = pd.concat([values, pd.Series([value])])
    _scale(axes, values.clip(upper=PERPLEXITY_LIMIT), log=True)
    _cut_perplexity(axes, rows.assign(perplexity=rows["perplexity"].replace(np.inf, np.nan)), x)
    gone = rows[x][~np.isfinite(rows["perplexity"].astype(float))]
    if len(gone):
        place = axes.get_xaxis_transform()  # x in data, y from 0 (foot) to 1 (top)
        axes.plot(gone, [0.97] * len(gone), "^", color=VERMILLION, transform=place, clip_on=False, label="not finite")
    axes.set_ylabel("perplexity, log scale")
    _legend_above(axes)


def _draw_accuracy(axes: Axes, rows: pd.DataFrame, dense: pd.DataFrame | None, x: str = "block") -> None:
    series = list(rows.groupby(["task", "metric"], sort=False))
    tasks = list(dict.fromkeys(rows["task"]))
    blocks = max(rows[x].nunique(), 1)
    chances = rows.groupby("task", sort=False)["chance"].first().dropna()
    seen: dict[str, int] = {}
    for place, ((task, metric), part) in enumerate(series):
        part = part.sort_values(x)
        colour, marker = look(task, tasks)
        again = seen.get(task, 0)  # a second metric of a task keeps its colour, with hollow markers
        seen[task] = again + 1
        counts = sorted({int(n) for n in part["n"].dropna()})
        items = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]}-{counts[-1]}" if counts else "n unknown"
        # So that error bars stand side by side.
        shift = (place - (len(series) - 1) / 2) * 0.5 / len(series) * (1 if x == "block" else 3)
        interval = np.abs(part[["low", "high"]].sub(part["accuracy"], axis=0)).to_numpy(float).T
        axes.errorbar(
            part[x] + shift,
            part["accuracy"],
            yerr=interval,
            color=colour,
            ls=("-", ":")[again % 2],
            lw=1.0,
            elinewidth=0.8 if blocks <= 40 else 0.5,
            marker=marker,
            ms=4.5 if blocks <= 40 else 2.5,
            mfc="white" if again else colour,
            label=f"{task}, {metric}, {items}",
        )
        if dense is not None:
            for value in dense.loc[(dense["task"] == task) & (dense["metric"] == metric), "accuracy"]:
                axes.axhline(value, color=colour, lw=1.6, ls=("-", ":")[again % 2], zorder=1, alpha=0.75, gid="dense")
    for value, same in chances.groupby(chances, sort=False):
        for turn, task in enumerate(same.index):  # tasks of equal chance share one line, in dashes of either colour
            dashes = (5 * turn, (4, 5 * len(same) - 4))
            axes.axhline(value, color=look(task, tasks)[0], lw=1.4, ls=dashes, zorder=1, gid="chance")
    handles, labels = axes.get_legend_handles_labels()
    if dense is not None and len(dense):
        handles, labels = [*handles, Line2D([], [], color=GREY, lw=1.6)], [*labels, "dense model"]
    if len(chances):
        handles, labels = [*handles, Line2D([], [], color=GREY, ls=(0, (4, 2)))], [*labels, "chance"]
    axes.set_ylabel("accuracy")
    _legend_above(axes, handles, labels)


def _explain_accuracy(axes: Axes, rows: pd.DataFrame) -> None:
    """Chance, and a legend for one task where colours stand for something else."""
    axes.axhline(rows["chance"].iloc[0], color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, gid="chance")
    axes.set_ylabel("accuracy")
    handles = [Line2D([], [], color=GREY, ls=(0, (4, 2))), Line2D([], [], color=GREY, marker="|", ms=9, lw=0)]
    first = rows.iloc[0]
    said = f"{first['task']}, {first['metric_name']}, n={int(first['n'])}: 95 % interval"
    _legend_above(axes, handles, ["chance", said])


def _draw_ranks(axes: Axes, ranks: pd.DataFrame) -> None:
    """Points and intervals, one row a block in the frame's order, first row at the top."""
    y = np.arange(len(ranks))
    axes.hlines(y, ranks["low"], ranks["high"], color=SKY, lw=float(np.clip(110 / len(ranks), 1.5, 5)))
    axes.plot(ranks["rank"], y, "o", color=BLUE, ms=float(np.clip(160 / len(ranks), 2, 5)))
    axes.set_ylim(len(ranks) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("place (1 = removed first), 95 % of resamples")


def _draw_block(axes: Axes) -> None:
    """One residual block from X_i (foot) to X_{i+1} (top); layer norms are left out, as in the paper."""
    axes.set(xlim=(-0.75, 1.05), ylim=(-0.06, 1.1))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 10, "color": BLACK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}

    def box(y: float, text: str, colour: str) -> None:
        shape = {"boxstyle": "round,pad=0,rounding_size=0.03", "fc": colour, "ec": BLACK, "lw": 1}
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
    colour = LOOKS["block_influence"][0]
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


def _block_axis(axes: Axes, blocks: Iterable[int], label: str = "block index (0 = first)", ticks: int = 21) -> None:
    blocks = np.asarray(list(blocks), int)
    axes.set_xlim(blocks.min() - 0.7, blocks.max() + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(label)


PERPLEXITY_LIMIT = 1e7  # far beyond a guess among all tokens; what is above is drawn at the upper edge


def _cut_perplexity(axes: Axes, rows: pd.DataFrame, x: str, limit: float = PERPLEXITY_LIMIT) -> None:
    """Ends a perplexity axis at a limit if values go beyond, and marks where they do."""
    beyond = rows[rows["perplexity"].astype(float) > limit]
    if not len(beyond):
        return
    axes.set_ylim(top=limit)
    transform = axes.get_xaxis_transform()  # x in data, y from 0 (foot) to 1 (top)
    axes.plot(
        beyond[x], [0.985] * len(beyond), "^", ms=4, color=GREY, transform=transform, clip_on=False, zorder=6,
        label=f"above {limit:,.0f}",
    )  # fmt: skip


def _share_axis(axes: Axes) -> None:
    axes.set_xlim(-2, 100)
    axes.xaxis.set_major_locator(MaxNLocator(11))
    axes.set_xlabel("blocks removed (%)")


def _row_labels(
    axes: Axes, blocks: Iterable[int], offset: float = 0.0, label: str = "block, removed first at the top"
) -> None:
    blocks = list(blocks)
    size = 9 if len(blocks) <= 34 else 7
    axes.set_yticks(np.arange(len(blocks)) + offset, [str(block) for block in blocks], size=size, rotation=0)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel(label)


def _tall(rows: int) -> float:
    """Inches of a figure with one row a block."""
    return 1.6 + max(rows * (0.165 if rows <= 34 else 0.125), 1.6)


def _band(axes: Axes, rows: pd.DataFrame, x: str, colour: str, label: str | None = None) -> None:
    if {"low", "high"} <= set(rows.columns) and rows[["low", "high"]].notna().any(axis=None):
        low, high = rows["low"].astype(float), rows["high"].astype(float)
        axes.fill_between(rows[x].astype(float), low, high, color=colour, alpha=0.25, lw=0, label=label, zorder=1)


def _heat_map(axes: Axes, table: pd.DataFrame, label: str = "", ticks: int = 32, **options) -> None:
    bar = {"label": label, "pad": 0.02, "fraction": 0.06, "aspect": max(30, len(table))}
    sns.heatmap(table, ax=axes, cbar_kws=bar, xticklabels=False, yticklabels=False, **options)
    axes.set_facecolor("#efefef")  # cells that do not exist
    axes.grid(False)
    for set_ticks, values in ((axes.set_xticks, table.columns), (axes.set_yticks, table.index)):
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(values) <= ticks * step)
        chosen = [place for place, value in enumerate(values) if value % step == 0]
        set_ticks([place + 0.5 for place in chosen], [str(values[place]) for place in chosen])
    axes.tick_params(length=0, rotation=0)


def _scale(axes: Axes, values: Iterable[float], log: bool | None = None) -> bool:
    """Makes the y axis logarithmic where values span more than a factor of 20 (or as told), with readable ticks."""
    values = np.asarray(list(values), float)
    values = values[np.isfinite(values)]
    span = values.max() / values.min() if len(values) and values.min() > 0 else 1.0
    if not (span > 20 if log is None else log):
        return False
    axes.set_yscale("log")
    if span < 2.5:  # too narrow for powers of ten and their parts
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1e3 else (1,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator() if span < 1e3 else LogLocator(subs=range(2, 10), numticks=99))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    return True


def _extreme(rows: pd.DataFrame, column: str, which: str, tie: str) -> pd.Series:
    """The row with the smallest or largest value; ties go to the deeper block, as in the removal order."""
    ascending = which == "smallest"
    return rows.dropna(subset=[column]).sort_values([column, tie], ascending=[ascending, False]).iloc[0]


def _legend_above(axes: Axes, handles: list | None = None, labels: list | None = None, title: str = "") -> None:
    """Legend above the axes, where no data can be, in as many columns as fit the figure's width."""
    if handles is None:
        handles, labels = axes.get_legend_handles_labels()
    labels = list(labels or [])
    if title:
        handles, labels = [*handles, Line2D([], [], ls="")], [*labels, title]
    size = STYLE["legend.fontsize"]
    widest = max(_text_width(label, size) for label in labels) + 4.2 * size  # handle and gaps
    columns = int(np.clip((WIDTH - 0.9) * 72 // widest, 1, len(labels)))
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, columnspacing=1.6)


@functools.cache
def _text_width(text: str, size: float) -> float:
    """Points."""
    renderer = FigureCanvasAgg(
        Figure((0.1, 0.1), dpi=720)
    ).get_renderer()  # fine enough that rounding to pixels is nothing
    width, _, _ = renderer.get_text_width_height_descent(text, FontProperties(family="DejaVu Sans", size=size), False)
    return float(width) / 10


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save(figure: Figure, data: pd.DataFrame, folder: Path, name: str, caption: str) -> list[Path]:
    """Writes a figure as <name>.png (200 dpi), <name>.pdf and its data as <name>.csv; the figure stays as it was.

    The same figure and data give the same bytes. Each file appears whole or not at all.

    Args:
        data: what the figure shows.
        folder: made if need be.
        caption: model, revision, dtype, text and item counts; drawn small beneath the axes, in the image.

    Returns:
        The paths written.

    Raises:
        StudyError: a file cannot be written (disk full, no permission).
    """
    return _write({**_render(figure, caption), "csv": _csv(data)}, folder, name)


def save_table(data: pd.DataFrame, folder: Path, name: str, caption: str) -> list[Path]:
    """Writes a table as <name>.csv (all digits that count), .md (for the README), .png and .pdf (drawn); like `save`.

    In .md and images, numbers have about four significant digits, a column the same decimals, and NaN is a dash.
    """
    cells, numeric = _cells(data), _numeric(data)
    with style():
        figure = _table_figure(cells, right=[column in numeric for column in data.columns])
    plt.close(figure)
    rows = [list(cells.columns), ["--:" if c in numeric else ":--" for c in data.columns], *cells.to_numpy().tolist()]
    rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    markdown = "\n".join([*rows, "", f"*{caption}*", ""])
    return _write({"md": markdown.encode(), **_render(figure, caption), "csv": _csv(data)}, folder, name)


def _render(figure: Figure, caption: str) -> dict[str, bytes]:
    """PNG and PDF of the figure, made taller by its caption; on a copy, so that saving twice gives equal bytes."""
    figure = pickle.loads(pickle.dumps(figure))
    with style():
        width, height = figure.get_size_inches()
        margin = 0.12
        lines = _wrap(caption, (width - 2 * margin) * 72)
        foot = (len(lines) * 1.35 * CAPTION_SIZE / 72 + 2 * margin) if lines else 0.0
        figure.set_size_inches(width, height + foot)
        share = foot / (height + foot)
        if figure.get_layout_engine() is None:
            figure.set_layout_engine("constrained")
        figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
        figure.text(
            margin / width,
            (foot - margin) / (height + foot),
            "\n".join(lines),
            size=CAPTION_SIZE,
            color="#555555",
            va="top",
            linespacing=1.35,
            parse_math=False,
            gid="caption",
        ).set_in_layout(False)
        _fix_layout(figure)
        files = {}
        for kind, metadata in (
            ("png", {"Software": None}),
            ("pdf", dict.fromkeys(("CreationDate", "Creator", "Producer"))),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def _fix_layout(figure: Figure) -> None:
    """Lays the figure out once and keeps that, rounded: the solver's last bits depend on where its variables lie."""
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(value, 6) for value in axes.get_position(original=True).bounds])


def _wrap(text: str, points: float) -> list[str]:
    """Lines of caption no wider than so many points."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and _text_width(f"{line} {word}", CAPTION_SIZE) > 0.98 * points:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines if text.strip() else []


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode()


def _write(files: dict[str, bytes], folder: Path, name: str) -> list[Path]:
    """Writes name.<kind> for each kind."""
    return write_whole({Path(folder) / f"{name}.{kind}": content for kind, content in files.items()})


def _numeric(data: pd.DataFrame) -> list:
    return [c for c in data.columns if pd.api.types.is_numeric_dtype(data[c]) and data[c].dtype != bool]


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    """The frame as text, ready to print."""
    cells = pd.DataFrame(index=data.index)
    for column in data.columns:
        values = data[column]
        if column in _numeric(data) and not pd.api.types.is_integer_dtype(values):
            sizes = values.abs()[np.isfinite(values.astype(float)) & (values != 0)]
            whole = bool((sizes % 1 == 0).all())
            # From a quartile, so that a few exploded perplexities do not hide the digits of the others.
            decimals = 0 if whole else int(np.clip(3 - np.floor(np.log10(sizes.quantile(0.75))), 0, 6))
            cells[column] = [_number(value, decimals) for value in values]
        else:
            cells[column] = [_text(value) for value in values]
    cells.columns = [str(column).replace("_", " ") for column in data.columns]
    return cells


def _number(value: float, decimals: int) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.3g}" if abs(value) >= 1e7 else f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0.00


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return "–" if value is None or value is pd.NA or value != value else str(value)


def _table_figure(cells: pd.DataFrame, right: list[bool]) -> Figure:
    """The cells drawn as a plain table in the common width; long text is wrapped, wide tables get small type."""
    wrapped = [["\n".join(textwrap.wrap(cell, 60)) for cell in row] for row in cells.to_numpy().tolist()]
    head = ["\n".join(textwrap.wrap(column, 12)) for column in cells.columns]
    size = 9.0
    gap = 1.6 * size
    wide = []
    for title, *column in zip(head, *wrapped, strict=True):
        bold = 1.15 * max(_text_width(line, size) for line in title.split("\n"))
        wide.append(max(bold, *(_text_width(line, size) for cell in column for line in cell.split("\n")), 0.0) + gap)
    shrink = min(1.0, (WIDTH - 0.3) * 72 / sum(wide))
    size, wide = size * shrink, [w * shrink for w in wide]
    lines = [max(1, *(cell.count("\n") + 1 for cell in row)) for row in [head, *wrapped]]
    line, pad = 1.3 * size, 0.75 * size
    heights = [count * line + pad for count in lines]
    total = sum(heights) + 8
    figure = plt.figure(figsize=(WIDTH, total / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, (WIDTH - 0.1) * 72), ylim=(total, 0))
    axes.axis("off")
    y = 2.0
    for index, (row, height) in enumerate(zip([head, *wrapped], heights, strict=True)):
        x = 6.0
        for cell, width, flush in zip(row, wide, right, strict=True):
            place = {"ha": "right", "x": x + width - gap * shrink} if flush else {"ha": "left", "x": x}
            weight = "bold" if index == 0 else "normal"
            axes.text(y=y + height / 2, s=cell, size=size, va="center", weight=weight, parse_math=False, **place)
            x += width
        y += height
        axes.hlines(y, 2, x - gap * shrink + 6, color=BLACK if index == 0 else "#dddddd", lw=1.0 if index == 0 else 0.6)
    return figure
