"""The figure of notebook 06: removal from two models, side by side."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from layer_redundancy.figures.parts import chance_line, interval, share_axis
from layer_redundancy.figures.style import GREY, WIDTH, style_of, styled


@styled
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
            colour, marker = style_of(metric, metrics)
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
                reach = interval(part, value)
                axes.errorbar(part["share"] + shift, part[value], yerr=reach, label=metric, **options)
        dense = curves[(curves["model"] == model) & (curves["share"] == 0)]
        top.axhline(dense["bits_per_byte"].iloc[0], color=GREY, lw=1, zorder=1)
        part = accuracy[accuracy["model"] == model]
        chance_line(bottom, part["chance"].iloc[0])
        bottom.set_title(
            f"{part['task'].iloc[0]}, {part['metric_name'].iloc[0]}, n={int(part['n'].iloc[0])}; dashes: chance", size=9
        )
        top.set_title(model)
        share_axis(bottom)
    panels[0, 0].set_yscale("log")
    panels[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0, 0].yaxis.set_minor_formatter(NullFormatter())
    panels[0, 0].set_ylabel("bits per byte, log scale")
    panels[1, 0].set_ylabel("accuracy")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure
