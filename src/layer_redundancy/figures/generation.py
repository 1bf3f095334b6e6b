"""Figures of notebook 09: what a pruned model writes."""

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from layer_redundancy.figures.parts import band, band_handle, chance_handle, chance_line, interval, whole_ticks
from layer_redundancy.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, styled

PRUNED = [(ORANGE, "s"), (VERMILLION, "P"), (PURPLE, "^"), (SKY, "v")]
WAYS = {"chosen": (BLUE, "o", "chosen among the choices"), "written": (VERMILLION, "s", "written")}
REFERENCES = {"whole model": (BLACK, "o"), "8 bits": (GREEN, "D"), "real text": (GREY, "X")}


def model_styles(models: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model; of pruned ones from light to dark as more goes."""
    pruned = sorted((name for name in models if name not in REFERENCES), key=lambda name: (len(name), name))
    return {name: look for name, look in REFERENCES.items() if name in models} | dict(
        zip(pruned, cycle(PRUNED), strict=False)
    )


@styled
def agreement_by_position(curves: pd.DataFrame) -> Figure:
    """Agreement with the dense model along greedy continuations, on the dense model's text and on a model's own.

    Args:
        curves: one row a (model, reading, position): model, reading ("teacher-forced", "own text"), position (1 = first
            new token), agreement (0 to 1), low, high (95 %), n (prompts).
    """
    readings = {"teacher-forced": "both read the whole model's text", "own text": "both read the model's own text"}
    figure, panels = plt.subplots(1, len(readings), figsize=(WIDTH, 3.7), sharey=True, layout="constrained")
    styles = model_styles(list(dict.fromkeys(curves["model"])))
    for axes, (reading, title) in zip(panels, readings.items(), strict=True):
        for model, (colour, marker) in styles.items():
            part = curves[(curves["model"] == model) & (curves["reading"] == reading)].sort_values("position")
            axes.plot(part["position"], part["agreement"], marker=marker, color=colour, label=model)
            band(axes, part, "position", colour)
        axes.set_title(title)
        axes.set_ylim(0, 1.03)
        whole_ticks(axes, curves["position"].round(), 6)
        axes.set_xlabel("position of the new token")
    panels[0].set_ylabel("same token as the whole model\n(share; repeats left out)")
    handles, labels = panels[0].get_legend_handles_labels()
    handles, labels = [*handles, band_handle()], [*labels, f"95 % interval, n={curves['n'].iloc[0]:.0f} prompts"]
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


@styled
def text_quality(values: pd.DataFrame) -> Figure:
    """What becomes of written text: the same tokens, repetition and likelihood, a row a model.

    Args:
        values: one row a (model, measure): model, measure ("same tokens", "repeated 4-grams": shares; "perplexity"),
            value, low, high (95 %), n (prompts).
    """
    measures = {
        "same tokens": "tokens that the whole\nmodel writes there (share)",
        "repeated 4-grams": "repeated 4-grams (share)",
        "perplexity": "perplexity to the whole model,\nlog scale",
    }
    models = list(dict.fromkeys(values["model"]))
    styles = model_styles(models)
    height = 1.3 + 0.36 * len(models)
    figure, panels = plt.subplots(1, len(measures), figsize=(WIDTH, height), sharey=True, layout="constrained")
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        part = values[values["measure"] == measure].set_index("model")
        for place, model in enumerate(models):
            if model in part.index:
                colour, marker = styles[model]
                row = part.loc[[model]]
                axes.errorbar(
                    row["value"], [place], xerr=interval(row, "value"), color=colour, marker=marker, ms=6, ls="",
                    elinewidth=1.6,
                )  # fmt: skip
        axes.set_xlabel(label)
        if measure == "perplexity":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(-0.02, 1.02 if measure == "same tokens" else None)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    line = Line2D([], [], color=GREY, marker="|", ms=9, lw=1.6)
    figure.legend([line], [f"95 % interval, n={int(values['n'].iloc[0])} prompts"], loc="outside upper left")
    return figure


@styled
def chosen_and_written(rows: pd.DataFrame) -> Figure:
    """Right answers to the same items by choosing and by writing, a panel a task.

    Args:
        rows: one row a (task, how, model): how ("chosen", "written"), accuracy (0 to 1), low, high (95 %), n (items),
            chance (of choosing).
    """
    tasks, models = (list(dict.fromkeys(rows[column])) for column in ("task", "model"))
    figure, panels = plt.subplots(1, len(tasks), figsize=(WIDTH, 3.6), sharey=True, squeeze=False, layout="constrained")
    for axes, task in zip(panels[0], tasks, strict=True):
        for turn, (how, (colour, marker, label)) in enumerate(WAYS.items()):
            part = rows[(rows["task"] == task) & (rows["how"] == how)].set_index("model").reindex(models).dropna()
            places = [models.index(model) + 0.14 * (2 * turn - 1) for model in part.index]
            axes.errorbar(
                places, part["accuracy"], yerr=interval(part, "accuracy"), color=colour, marker=marker, ms=6, ls="",
                elinewidth=1.6, label=f"{label}, n={int(part['n'].iloc[0])}",
            )  # fmt: skip
            if how == "chosen":
                chance_line(axes, part["chance"].iloc[0])
        axes.set_xticks(range(len(models)), [name.replace(" removed", "\nremoved") for name in models])
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(task.replace("_", " "))
        axes.set_xlabel("model")
    panels[0, 0].set_ylabel("right answers (share)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    labels = [*labels, "chance of choosing right"]
    figure.legend([*handles, chance_handle()], labels, loc="outside upper left", ncols=len(labels))
    return figure
