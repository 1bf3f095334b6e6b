"""The figures of notebook 02: what the removal of each single block costs, and whom; the first of them in 06 too."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from layer_redundancy.figures.parts import (
    accuracy_panel,
    band,
    block_axis,
    damage_panel,
    interval,
    legend_above,
)
from layer_redundancy.figures.style import (
    BLACK,
    GREY,
    ORANGE,
    SKY,
    VERMILLION,
    WIDTH,
    style_of,
    styled,
    title_of,
    words,
)

NATS, ACCURACY = "nats", "accuracy"
WEIGHTS = {"magnitude_l1": "Weights, sum of sizes", "magnitude_l2": "Weights, sum of norms"}
NUMBERED = 40  # blocks up to which a map's cells hold their numbers


@styled
def single_layer_removal(
    perplexity: pd.DataFrame,
    accuracy: pd.DataFrame,
    reference: pd.DataFrame | None = None,
    rules: pd.DataFrame | None = None,
) -> Figure:
    """What text loses, and accuracy, after removing one block, for each block (figure 3).

    Args:
        perplexity: one row a removed block: block, log_increase (nats a token above the dense model's loss); optionally
            log_increase_low, log_increase_high (95 % interval, paired). Values that are not finite are drawn as
            triangles at the upper edge.
        accuracy: one row a (removed block, task, metric): block, task, metric, accuracy (0 to 1), low, high (95 %
            interval), n (items), chance (accuracy of guessing).
        reference: the dense model, same columns as accuracy, `block` empty: one row a (task, metric).
        rules: accuracies of rules that read nothing: task, rule, accuracy.
    """
    blocks = np.unique(np.concatenate([perplexity["block"].dropna(), accuracy["block"].dropna()]).astype(int))
    reference = pd.DataFrame() if reference is None else reference
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.6), sharex=True, layout="constrained", height_ratios=[1, 1.15]
    )
    damage_panel(top, perplexity)
    dense = reference.dropna(subset=["accuracy"]) if "accuracy" in reference else None
    accuracy_panel(bottom, accuracy, dense, rules=rules)
    block_axis(bottom, blocks, label="removed block (0 = first)")
    return figure


@styled
def capability_map(damage: pd.DataFrame) -> Figure:
    """What the removal of each block costs each capability: block x capability, in nats and in accuracy.

    Args:
        damage: a row a (capability, unit, block): on, unit ("nats", "accuracy"), block, damage (nats, or 0 to 1), seen
            (whether it differs from nothing: bold).
    """
    units = [unit for unit in (NATS, ACCURACY) if (damage["unit"] == unit).any()]
    tables = [damage[damage["unit"] == unit] for unit in units]
    columns = [part["on"].nunique() for part in tables]
    blocks = damage["block"].nunique()
    figure, all_axes = plt.subplots(
        1, len(units), figsize=(WIDTH, 1.4 + max(1.2, 0.2 * min(blocks, 50))), sharey=True, layout="constrained",
        width_ratios=columns, squeeze=False,
    )  # fmt: skip
    titles = {NATS: "lost: nats (text: a token; tasks: the right choice's share)", ACCURACY: "lost: points of accuracy"}
    for axes, unit, part in zip(all_axes[0], units, tables, strict=True):
        scale = 100 if unit == ACCURACY else 1
        _map(axes, part.assign(damage=scale * part["damage"]), 0 if unit == ACCURACY else 2)
        axes.set_title(titles[unit])
    all_axes[0][0].set_ylabel("removed block (0 = first)")
    return figure


def _map(axes: Axes, part: pd.DataFrame, digits: int) -> None:
    names = list(dict.fromkeys(part["on"]))
    values = part.pivot_table(index="block", columns="on", values="damage", sort=False)[names]
    seen = part.pivot_table(index="block", columns="on", values="seen", sort=False)[names]
    shades = values.clip(lower=0).to_numpy(float)
    top = float(np.nanmax(np.where(np.isfinite(shades), shades, 0))) or 1.0
    norm: Normalize = PowerNorm(0.4, 0, top)  # so that small differences show beside ruin
    axes.imshow(shades, cmap="YlOrBr", norm=norm, aspect="auto")
    axes.set_xticks(range(len(names)), [words(str(name)) for name in names])
    axes.xaxis.tick_top()
    step = next(step for step in (1, 2, 5, 10) if len(values) <= NUMBERED * step)
    axes.set_yticks(range(0, len(values), step), [str(block) for block in values.index[::step]])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if len(values) > NUMBERED:
        return
    for row, column in np.ndindex(values.shape):
        value = values.iloc[row, column]
        sure = bool(seen.iloc[row, column])
        dark = norm(max(0.0, value)) > 0.6
        text = f"{value:.{digits}f}".replace("-", "−")
        axes.text(
            column, row, text if text.strip("−0.") else "0", ha="center", va="center", size=8.5,
            weight="bold" if sure else "normal", color="white" if dark else BLACK if sure else GREY,
            gid="seen" if sure else "unseen",
        )  # fmt: skip


@styled
def order_agreement(orders: pd.DataFrame) -> Figure:
    """How much the order that each capability would choose agrees with importance measures, and with the others.

    Args:
        orders: a row a (capability, other order): on, other, kind ("measure", "capability", "itself"), tau, low, high.
    """
    known = list(dict.fromkeys(orders["on"]))
    drawn = orders[orders["kind"] != "itself"]
    others = list(dict.fromkeys(drawn[drawn["kind"] == "measure"]["other"])) + known
    others = [other for other in others if (drawn["other"] == other).any()]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + 0.36 * len(others)), layout="constrained")
    for place, name in enumerate(known):
        colour, marker = style_of(name, known)
        part = drawn[drawn["on"] == name]
        at = [others.index(other) + 0.22 * (place - (len(known) - 1) / 2) for other in part["other"]]
        reach = interval(part, "tau")
        axes.errorbar(
            part["tau"], at, xerr=np.nan_to_num(reach), ls="", color=colour, marker=marker, ms=5, label=words(name)
        )
        for tau in orders[(orders["kind"] == "itself") & (orders["on"] == name)]["tau"].dropna():
            axes.axvline(tau, color=colour, ls=(0, (4, 2)), lw=1.2, zorder=1, gid="itself")
    labels = [f"order of {words(other)}" if other in known else _titles(other) for other in others]
    axes.set_yticks(range(len(others)), labels)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, lw=1.0, zorder=1)
    axes.set_xlabel("Kendall's tau with the order by damage (1: the same order, 0: no relation)")
    handles, names = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=GREY, ls=(0, (4, 2)), lw=1.2))
    legend_above(axes, handles, [*names, "two halves of its own items or text, with each other"])
    return figure


def _titles(measures: str) -> str:
    """Names of measures of one order, for people."""
    titles = [WEIGHTS.get(name, title_of(name)) for name in measures.split(" = ")]
    return "\n".join(words(title) for title in titles)


@styled
def first_token_state(states: pd.DataFrame, block: int) -> Figure:
    """What the block writes that makes the first token large, and who looks at it.

    Args:
        states: a row a state X_0 .. X_L: state, whole, without (mean norm of the first token's, in the whole model and
            without the block), others (mean norm of other tokens'), attention_whole, attention_without (share of the
            attention in the block that follows; NaN where there is none).
        block: the block.
    """
    known = states[["attention_whole", "attention_without"]].notna().any(axis=None)
    figure, all_axes = plt.subplots(
        1 + known, 1, figsize=(WIDTH, 3.2 + 2.6 * known), sharex=True, layout="constrained", squeeze=False
    )
    lines = {
        "whole": ("first token, whole model", VERMILLION, "-", "o"),
        "without": (f"first token, without block {block}", SKY, "--", "s"),
    }
    top = all_axes[0, 0]
    for name, (label, colour, line, marker) in lines.items():
        top.plot(states["state"], states[name], ls=line, color=colour, marker=marker, ms=4, label=label)
    top.plot(states["state"], states["others"], color=GREY, label="other tokens, whole model")
    top.set_yscale("log")
    top.yaxis.set_minor_locator(NullLocator())
    top.yaxis.set_major_formatter("{x:,g}")
    top.set_ylabel("norm of the state\nbefore the block")
    legend_above(top)
    if known:
        bottom = all_axes[1, 0]
        for name, (label, colour, line, marker) in lines.items():
            share = states[f"attention_{name}"]
            label = label.replace("first token, ", "")
            bottom.plot(states["state"], 100 * share, ls=line, color=colour, marker=marker, ms=4, label=label)
        bottom.set_ylabel("attention that later tokens\npay to the first (%)")
        bottom.set_ylim(0, 100)
        legend_above(bottom)
    for axes in all_axes[:, 0]:
        axes.axvspan(block, block + 1, color=ORANGE, alpha=0.2, lw=0, gid="block")
    block_axis(all_axes[-1, 0], states["state"], label="block; a state lies before its block")
    return figure


@styled
def first_token_loss(breaks: pd.DataFrame, by_position: pd.DataFrame) -> Figure:
    """What breaks without the block, and what does not where the first token has its state.

    Args:
        breaks: a row a (capability, unit, condition): on, unit, condition, damage, low, high; nats are drawn.
        by_position: condition, first, last (places in the text), damage, low, high: nats a token of text.
    """
    conditions = list(dict.fromkeys(breaks["condition"]))
    looks = dict(zip(conditions, [(VERMILLION, "o"), (BLACK, "D"), (SKY, "s")], strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.0), layout="constrained", width_ratios=[1, 1.25])
    part = breaks[breaks["unit"] == NATS]
    names = list(dict.fromkeys(part["on"]))
    for place, name in enumerate(conditions):
        rows = part[part["condition"] == name].set_index("on").loc[names].reset_index()
        colour, marker = looks[name]
        at = np.arange(len(names)) + 0.2 * (place - (len(conditions) - 1) / 2)
        left.errorbar(at, rows["damage"], yerr=interval(rows, "damage"), ls="", color=colour, marker=marker, ms=6)
        rows = by_position[by_position["condition"] == name]
        centre = np.sqrt(rows["first"] * rows["last"].astype(float))
        right.plot(centre, rows["damage"], color=colour, marker=marker, ms=4.5, label=name)
        band(right, rows.assign(centre=centre), "centre", colour)
    left.set_xticks(range(len(names)), [words(name) for name in names])
    left.set_xlim(-0.6, len(names) - 0.4)
    left.axhline(0, color=GREY, lw=1.2, zorder=1)
    left.set_ylabel("lost (nats)")
    left.set_xlabel("capability")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(0, 14, 2)]))
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xlabel("place in the text (tokens)")
    right.axhline(0, color=GREY, lw=1.2, zorder=1)
    right.set_ylabel("lost on text (nats a token)")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1)
    return figure
