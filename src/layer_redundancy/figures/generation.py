"""Figures of notebook 09: what a pruned model writes."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import band, band_handle, chance_line, choose_y_scale, interval, whole_ticks
from layer_redundancy.figures.style import BLACK, GREY, SERIES, VERMILLION, WIDTH, style_of, styled


@styled
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
    styles = {name: (*SERIES[name], "-") for name in ("teacher-forced", "own text", "free-running")}
    styles |= {"not yet diverged": (VERMILLION, "", "-"), "independent errors": (GREY, "", "--")}
    rows = (list(styles)[:3], list(styles)[3:])
    for column, depth in enumerate(depths):
        for axes, readings in zip(panels[:, column], rows, strict=True):
            for reading in readings:
                part = curves[(curves["removed"] == depth) & (curves["reading"] == reading)].sort_values("position")
                colour, marker, line = styles[reading]
                axes.plot(part["position"], part["agreement"], line, color=colour, marker=marker, label=labels[reading])
                if reading != "independent errors":  # two bands on one another say nothing
                    band(axes, part, "position", colour)
            axes.set_ylim(-0.03, 1.03)
        panels[0, column].set_title(f"{depth} block{'' if depth == 1 else 's'} removed")
        together = curves[(curves["removed"] == depth) & (curves["reading"] == "not yet diverged")]["agreement"].sum()
        panels[1, column].set_title(f"{together:.1f} tokens before they part", size=9.5)
        whole_ticks(panels[1, column], curves["position"].round(), 6)
        panels[1, column].set_xlabel("position of the new token")
    panels[0, 0].set_ylabel("same token (share of prompts)")
    panels[1, 0].set_ylabel("all tokens the same so far\n(share of prompts)")
    entries = [entry for axes in panels[:, 0] for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries.append((band_handle(), f"95 % interval, n={curves['n'].iloc[0]:.0f} prompts"))
    figure.legend(*zip(*entries, strict=True), loc="outside upper left", ncols=2)
    return figure


@styled
def generation_by_depth(values: pd.DataFrame, kept: pd.DataFrame, chance: float) -> Figure:
    """Greedy continuations and what tasks keep, by the number of removed blocks (figure 10).

    Args:
        values: one row a (removed, measure): removed (number of blocks; NaN for the real text), measure
            ("teacher-forced", "own text", "free-running": agreement, 0 to 1; "repetition": share of repeated 4-grams;
            "perplexity": under the dense model), value, low, high (95 %), n (prompts).
        kept: one row a (removed, task): removed, task, kind ("generative" is drawn solid), kept (share of the dense
            model's score above chance), low, high (95 %), n (items). Without a row its panel is left out.
        chance: agreement of continuations of different prompts.
    """
    figure, ((top, right), (left, bottom)) = plt.subplots(2, 2, figsize=(WIDTH, 7.0), layout="constrained")
    text = values[values["removed"].isna()].set_index("measure")["value"]
    values = values.dropna(subset="removed")

    def draw(axes: Axes, measure: str, label: str, style: tuple[str, str]) -> None:
        part = values[values["measure"] == measure].sort_values("removed")
        axes.plot(part["removed"], part["value"], marker=style[1], color=style[0], label=label)
        band(axes, part, "removed", style[0])

    draw(top, "teacher-forced", "both read the dense model's text", SERIES["teacher-forced"])
    draw(top, "own text", "both read the pruned model's text", SERIES["own text"])
    draw(top, "free-running", "each reads its own text (free-running)", SERIES["free-running"])
    chance_line(top, chance, label="texts of different prompts")
    top.set_ylabel("same token as the dense model (share)")
    names = list(dict.fromkeys(kept["task"]))
    for place, name in enumerate(names):
        part = kept[kept["task"] == name].sort_values("removed")
        colour, marker = style_of(name, names)
        line = "-" if part["kind"].iloc[0] == "generative" else "--"
        reach = interval(part, "kept")
        label = f"agreement, {name}" if name in ("free-running", "teacher-forced") else name
        right.errorbar(
            part["removed"] + 0.12 * (place - (len(names) - 1) / 2), part["kept"], yerr=reach, color=colour,
            ls=line, marker=marker, elinewidth=0.9, label=f"{label}, n={int(part['n'].iloc[0])}",
        )  # fmt: skip
    if names:
        right.axhline(0, color=GREY, ls=(0, (4, 2)), lw=1.2, zorder=1, label="chance")
        right.set_ylabel("score above chance kept (share)")
    else:
        right.remove()
    draw(left, "repetition", "generated text", SERIES["free-running"])
    left.axhline(text["repetition"], color=BLACK, lw=1.2, ls=":", label="real text", gid="text")
    left.set_ylim(-0.02, max(0.2, 1.05 * values.loc[values["measure"] == "repetition", "high"].max()))
    left.set_ylabel("repeated 4-grams (share)")
    draw(bottom, "perplexity", "generated text", SERIES["free-running"])
    bottom.axhline(text["perplexity"], color=BLACK, lw=1.2, ls=":", label="real text", gid="text")
    choose_y_scale(bottom, [*values[values["measure"] == "perplexity"]["value"], text["perplexity"]], log=True)
    bottom.set_ylabel("dense model's perplexity, log scale")
    prompts = f"95 % interval, n={int(values['n'].iloc[0])} prompts"
    for axes in figure.axes:
        whole_ticks(axes, values["removed"], 11)
        axes.set_xlabel("blocks removed by Block Influence")
        handles, labels = axes.get_legend_handles_labels()
        if axes is left:
            handles, labels = [*handles, band_handle()], [*labels, prompts]
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure
