"""Figures of notebook 04: importance measures compared."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import (
    PERPLEXITY_LIMIT,
    band,
    band_handle,
    choose_y_scale,
    cut_perplexity,
    explain_accuracy,
    interval,
    legend_above,
    share_axis,
)
from layer_redundancy.figures.style import WIDTH, style_of, styled


@styled
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
        colour, marker = style_of(metric, metrics)
        front = 4 if metric == "block_influence" else 2
        dashes = "--" if metric == "greedy" else "-"
        part = perplexity[perplexity["metric"] == metric].sort_values("share")
        top.plot(part["share"], part["perplexity"], dashes, marker=marker, color=colour, label=metric, zorder=front)
        band(top, part, "share", colour)
        for axes, task in zip(others, tasks, strict=True):
            part = accuracy[(accuracy["metric"] == metric) & (accuracy["task"] == task)].sort_values("share")
            shift = (place - (len(metrics) - 1) / 2) * 0.28
            reach = interval(part, "accuracy")
            axes.errorbar(
                part["share"] + shift, part["accuracy"], yerr=reach, color=colour, ls=dashes, marker=marker,
                elinewidth=0.5, zorder=front, label=metric,
            )  # fmt: skip
            if {"text_low", "text_high"} <= set(part):
                texts = part.assign(low=part["text_low"], high=part["text_high"], share=part["share"] + shift)
                band(axes, texts, "share", colour)
    choose_y_scale(top, perplexity["perplexity"].clip(upper=PERPLEXITY_LIMIT), log=True)
    cut_perplexity(top, perplexity, "share")
    top.set_ylabel("perplexity, log scale")
    handles, labels = top.get_legend_handles_labels()
    if {"low", "high"} <= set(perplexity):
        handles, labels = [*handles, band_handle()], [*labels, "range over calibration texts"]
    legend_above(top, handles, labels)
    for axes, task in zip(others, tasks, strict=True):
        explain_accuracy(axes, accuracy[accuracy["task"] == task])
    share_axis(panels[-1, 0])
    return figure


@styled
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
