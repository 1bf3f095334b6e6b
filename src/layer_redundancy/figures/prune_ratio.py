"""The figure of notebook 03: what is left by the share of blocks removed."""

from functools import partial
from operator import mul

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import accuracy_panel, damage_panel, interval, legend_above, share_axis
from layer_redundancy.figures.style import GREY, WIDTH, style_of, styled


@styled
def prune_ratio(
    perplexity: pd.DataFrame,
    accuracy: pd.DataFrame,
    without_a_model: pd.DataFrame | None = None,
    unigram: float = np.nan,
) -> Figure:
    """What text loses, and accuracy, against the share of blocks removed (figure 2b), beside rules without a model.

    Args:
        perplexity: one row a depth: share (percent of blocks removed), weights (percent of all weights),
            log_increase (nats a token above the dense model's loss); optionally log_increase_low, log_increase_high.
        accuracy: one row a (depth, task, metric): share, and columns as in `single_layer_removal`.
        without_a_model: accuracies of rules that read nothing: task, rule, accuracy, low, high.
        unigram: loss above the dense model's of who knows how frequent tokens are, and nothing else (nats a token).
    """
    rules = pd.DataFrame() if without_a_model is None else without_a_model
    figure, grid = plt.subplots(
        2, 2, figsize=(WIDTH, 7.2), sharey="row", layout="constrained", height_ratios=[1, 1.25],
        width_ratios=[1, 0.22 if len(rules) else 0.001],
    )  # fmt: skip
    top, bottom = grid[:, 0]
    top.sharex(bottom)
    top.tick_params(labelbottom=False)
    grid[0, 1].set_axis_off()
    damage_panel(top, perplexity, x="share", label="text")
    if np.isfinite(unigram):
        top.axhline(unigram, color=GREY, ls="-.", lw=1.3, label="frequencies of tokens alone", gid="unigram")
    width = WIDTH - 1.9 * bool(len(rules))
    legend_above(top, width=width)
    accuracy_panel(bottom, accuracy, accuracy[accuracy["share"] == 0], x="share", width=width)
    share_axis(bottom)
    _weights_axis(top, perplexity)
    if len(rules):
        _rules(grid[1, 1], rules, list(dict.fromkeys(accuracy["task"])))
    else:
        grid[1, 1].set_axis_off()
    return figure


def _weights_axis(axes: Axes, rows: pd.DataFrame) -> None:
    """A second axis: the share of all weights that is gone."""
    if "weights" not in rows or not rows["weights"].max() > 0:
        return
    per_share = rows["weights"].max() / rows["share"].max()  # blocks weigh about the same
    second = axes.secondary_xaxis(-0.04, functions=(partial(mul, per_share), partial(mul, 1 / per_share)))
    second.set_xlabel("share of all weights removed (%)", size=9)
    second.tick_params(labelsize=8)


def _rules(axes: Axes, rules: pd.DataFrame, tasks: list[str]) -> None:
    names = list(dict.fromkeys(rules["rule"]))
    for place, task in enumerate(tasks):
        part = rules[rules["task"] == task]
        at = [names.index(rule) + 0.22 * (place - (len(tasks) - 1) / 2) for rule in part["rule"]]
        colour, marker = style_of(task, tasks)
        axes.errorbar(
            at,
            part["accuracy"],
            yerr=interval(part, "accuracy"),
            ls="",
            marker=marker,
            ms=4.5,
            color=colour,
            mfc="white",
        )
    axes.set_xticks(range(len(names)), names, rotation=90, size=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", labelleft=False)
    axes.set_title("without a model", size=9.5)
    axes.set_xlabel("rule")
