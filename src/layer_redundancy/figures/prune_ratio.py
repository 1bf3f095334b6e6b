"""The figure of notebook 03: quality by the share of blocks removed."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import accuracy_panel, perplexity_panel, share_axis
from layer_redundancy.figures.style import GREY, WIDTH, style_of, styled


@styled
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
    perplexity_panel(top, perplexity, dense[0], x="share", label="blocks removed by Block Influence")
    if reported is not None and len(reported):
        for place, (label, part) in enumerate(reported.groupby("label", sort=False)):
            marker = "Dsv^<>P"[place % 7]
            bottom.plot(
                part["share"], part["accuracy"], marker, ls="", ms=6, mfc="white", mec=GREY, mew=1.1, label=label
            )
    accuracy_panel(bottom, accuracy, dense[1], x="share")
    cliffs = pd.DataFrame({"task": []}) if cliffs is None else cliffs
    for row in cliffs.itertuples():
        colour = style_of(row.task, list(cliffs["task"]))[0]
        bottom.axvspan(row.share_low, row.share_high, color=colour, alpha=0.12, lw=0, zorder=0)
        bottom.axvline(row.share, color=colour, lw=1.2, ls="-.", zorder=1, gid="cliff")
        bottom.annotate(
            f"cliff: block {row.block}", (row.share, 0.99), (4, 0), xycoords=bottom.get_xaxis_transform(),
            textcoords="offset points", size=9, color=colour, va="top",
        )  # fmt: skip
    share_axis(bottom)
    return figure
