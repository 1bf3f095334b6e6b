"""Figures of benchmark times."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from layer_redundancy.figures.parts import legend_above
from layer_redundancy.figures.style import BLACK, BLUE, GREY, ORANGE, VERMILLION, WIDTH, styled


@styled
def speed_ratios(rows: pd.DataFrame) -> Figure:
    """How much faster shared sweeps are than what others do.

    Args:
        rows: one row a (case, peer): case, plan, peer, ratio (the peer's seconds over ours, median), ratio_low,
            ratio_high (of the pairs), target, allowed (by sharing alone; NaN where that is not known).
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.46 * len(rows)), layout="constrained")
    y = np.arange(len(rows))[::-1]
    axes.hlines(y, rows["ratio_low"], rows["ratio_high"], color=BLUE, lw=2.5, alpha=0.45)
    axes.plot(rows["ratio"], y, "o", color=BLUE, ms=6, label="median of the pairs; line: smallest to largest")
    axes.plot(rows["target"], y, "|", color=VERMILLION, ms=15, mew=2, label="target: not below")
    axes.plot(rows["allowed"], y, "D", color=ORANGE, ms=6, mfc="none", mew=1.5, label="what sharing alone allows")
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
    legend_above(axes)
    return figure


@styled
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
