"""The figures of notebook 13: methods side by side at one size, over sizes, and runs of blocks with linear maps."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from layer_redundancy.figures.parts import (
    band,
    choose_y_scale,
    damage_axis,
    interval,
    legend_above,
    whole_ticks,
)
from layer_redundancy.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    style_of,
    styled,
    words,
)


@styled
def at_ratio(
    quality: pd.DataFrame, accuracy: pd.DataFrame, titles: Mapping[str, str], rules: pd.DataFrame | None = None
) -> Figure:
    """What each method costs text, and what it leaves of each task, a row a method, the best above.

    Args:
        quality: one row a method, the best first: method, damage (nats a token), low, high, least, most (of a
            calibration text), healed (NaN where none was trained), healed_low, healed_high.
        accuracy: one row a (method, task): accuracy, low, high, n, chance; that of the whole model is called so.
        titles: method -> its name for people.
        rules: accuracies of rules that read nothing: task, accuracy; the largest of each task is drawn.
    """
    methods, tasks = list(quality["method"]), list(dict.fromkeys(accuracy["task"]))
    figure, axes = plt.subplots(
        1, 1 + len(tasks), figsize=(WIDTH, 1.5 + 0.36 * len(methods)), sharey=True, layout="constrained",
        width_ratios=[2.2, *[1] * len(tasks)], squeeze=False,
    )  # fmt: skip
    rows = np.arange(len(methods))
    left = axes[0, 0]
    _text_panel(left, quality, rows)
    left.set_yticks(rows, [titles[method] for method in methods])
    left.set_ylim(len(methods) - 0.4, -0.6)
    for panel, task in zip(axes[0, 1:], tasks, strict=True):
        part = accuracy[accuracy["task"] == task].set_index("method")
        colour, marker = style_of(task, tasks)
        ours = part.reindex(methods)
        panel.errorbar(
            ours["accuracy"], rows, xerr=interval(ours, "accuracy"), ls="", marker=marker, color=colour, elinewidth=0.9
        )
        if "whole model" in part.index:
            panel.axvline(part.loc["whole model", "accuracy"], color=colour, lw=0.9, gid="dense")
        panel.axvline(part["chance"].iloc[0], color=GREY, ls=(0, (4, 2)), lw=1.2, gid="chance")
        if rules is not None and len(known := rules.loc[rules["task"] == task, "accuracy"]):
            panel.axvline(known.max(), color=GREY, ls=":", lw=1.4, gid="rule")
        panel.set_title(f"{words(task)}\n(n = {int(part['n'].iloc[0])})", size=9.5)
        panel.set_xlabel("accuracy")
        panel.set_xlim(-0.02, 1.02)
    return figure


def _text_panel(axes: Axes, quality: pd.DataFrame, rows: np.ndarray) -> None:
    axes.hlines(rows, quality["least"], quality["most"], color="#bbbbbb", lw=6, label="least to most, by text")
    axes.errorbar(
        quality["damage"], rows, xerr=interval(quality, "damage"), ls="", marker="o", color=BLUE, elinewidth=1,
        label="as it is, 95 %",
    )  # fmt: skip
    trained = quality["healed"].notna().to_numpy()
    if trained.any():
        part = quality[trained]
        ends = interval(part, "healed", "healed_low", "healed_high")
        axes.errorbar(
            part["healed"],
            rows[trained],
            xerr=ends,
            ls="",
            marker="D",
            mfc="white",
            color=ORANGE,
            label="after training",
        )
    drawn = quality[["damage", "least", "most", "healed"]]
    least, most = np.nanmin(drawn), np.nanmax(drawn)
    if 0 < 10 * least < most:
        axes.set_xscale("log")
        ticks = [power * digit for power in (0.01, 0.1, 1, 10) for digit in (1, 2, 5)]
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("loss above the whole model's\n(nats a token)")
    legend_above(axes, width=WIDTH / 2)


@styled
def by_share(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """What text loses against the share of weights that go, a line a method; by all weights, and by those of blocks.

    Args:
        table: one row a (method, size): method, removed and removed_of_blocks (percent), damage (nats a token), low,
            high.
        titles: method -> its name for people.
    """
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.8), sharey=True, layout="constrained")
    wide = {"removed": "all weights", "removed_of_blocks": "weights of the blocks"}
    for panel, (column, of) in zip(axes, wide.items(), strict=True):
        for method in methods:
            part = table[table["method"] == method].sort_values(column)
            colour, marker = style_of(method, methods)
            dashes = ":" if method.endswith(("_tied", "_code")) else "-"
            panel.plot(part[column], part["damage"], color=colour, marker=marker, ls=dashes, label=titles[method])
            band(panel, part, column, colour)
        panel.set_title(f"against {of}")
        panel.set_xlabel(f"{of} removed (%)")
    damage_axis(axes[0], "loss above the whole model's\n(nats a token)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


@styled
def runs(table: pd.DataFrame) -> Figure:
    """What each run of blocks costs, removed, and with a linear map in its place; a panel a length.

    Args:
        table: one row a (length, start, kind): choosing (nats a token above the whole model's, of the calibration text
            on which the best is chosen), chosen_by (rules with commas between, which are marked).
    """
    lengths = list(dict.fromkeys(table["length"]))
    figure, axes = plt.subplots(1, len(lengths), figsize=(WIDTH, 4.2), sharey=True, layout="constrained", squeeze=False)
    looks = {"removed": (BLUE, "o", "removed"), "replaced": (ORANGE, "s", "a linear map in its place")}
    rules = list(dict.fromkeys(rule for text in table["chosen_by"] for rule in text.split(", ") if rule))
    rings = dict(zip(rules, [(BLACK, 9), (VERMILLION, 12), (SKY, 15), (GREEN, 18)], strict=False))
    for panel, length in zip(axes[0], lengths, strict=True):
        of_length = table[table["length"] == length]
        for kind, (colour, marker, label) in looks.items():
            part = of_length[of_length["kind"] == kind]
            panel.plot(part["start"], part["choosing"], color=colour, marker=marker, label=label)
        part = of_length[of_length["kind"] == "replaced"]
        for rule, (colour, size) in rings.items():
            chosen = part[[rule in text.split(", ") for text in part["chosen_by"]]]
            panel.plot(
                chosen["start"], chosen["choosing"], "o", ms=size, mfc="none", color=colour, mew=1.3, label=f"{rule}"
            )
        panel.set_title(f"runs of {length}")
        panel.set_xlabel("first block of the run")
        whole_ticks(panel, of_length["start"], 12)
    choose_y_scale(axes[0, 0], table["choosing"])
    axes[0, 0].set_ylabel("loss above the whole model's\n(nats a token)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure
