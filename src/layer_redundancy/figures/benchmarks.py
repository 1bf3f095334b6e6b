"""The figure of notebook 08: accuracies by method of pruning."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import chance_line, interval, legend_above
from layer_redundancy.figures.style import GREY, WIDTH, style_of, styled


@styled
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
        colour, marker = style_of(task, tasks)
        x = [methods.index(m) + (place - (len(tasks) - 1) / 2) * 0.5 / len(tasks) for m in part["method"]]
        reach = interval(part, "accuracy")
        label = f"{task}, n={int(part['n'].iloc[0])}"
        axes.errorbar(x, part["accuracy"], yerr=reach, color=colour, ls="", marker=marker, ms=6, label=label)
    for place, chance in enumerate(sorted(measured["chance"].dropna().unique())):
        label = "_chance" if place else "chance"
        chance_line(axes, chance, label)
    for place, (label, part) in enumerate(reported.groupby("label", sort=False)):
        x = [methods.index(m) + 0.3 for m in part["method"]]
        axes.plot(x, part["accuracy"], "Dsv^"[place % 4], ls="", ms=6, mfc="white", mec=GREY, mew=1.1, label=label)
    axes.set_xticks(range(len(methods)), methods)
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.set_ylim(0, None)
    axes.set_ylabel("accuracy")
    axes.set_xlabel("model: dense, or a quarter removed by")
    legend_above(axes)
    return figure
