"""What every figure looks like: colours, sizes, and the label, colour and marker of every measure and named series.

`@styled` makes a figure function draw in this style, whatever the caller's own matplotlib settings are.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

# Okabe and Ito's palette, told apart by colour-blind readers; yellow is left out, too pale for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#666666"

WIDTH = 9.0  # inches of every figure; a README shows it at about 900 px, so a point of type is 1.4 px there
PNG_DPI = 200
CAPTION_SIZE = 7.5
LEGEND_SIZE = 9
FONT = "DejaVu Sans"  # comes with matplotlib, so every machine draws the same letters
SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "font.family": [FONT],
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.borderaxespad": 0.2,
    "legend.fontsize": LEGEND_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "savefig.bbox": None,
    "svg.hashsalt": "layer-redundancy",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


class MeasureStyle(NamedTuple):
    """How an importance measure is drawn.

    Attributes:
        title: the measure's name, above a panel.
        label: label of the axis of its scores.
    """

    colour: str
    marker: str
    title: str
    label: str


MEASURES = {
    "block_influence": MeasureStyle(BLUE, "o", "Block Influence", "1 - cosine"),
    "relative_magnitude": MeasureStyle(ORANGE, "s", "Relative magnitude", "update / output (lengths)"),
    "hidden_norm": MeasureStyle(GREEN, "^", "Hidden-state norm", "length of the output"),
    "sequential": MeasureStyle(PURPLE, "v", "Sequential", "−block index"),
    "reverse_order": MeasureStyle(SKY, "D", "Reverse order", "−block index"),
    "angular_distance": MeasureStyle(VERMILLION, "P", "Angular distance, last token", "arccos(cosine) / π"),
}

# Rules of block pruning, recipes of healing, methods of prompt tuning: colour and marker, in the order of a legend.
RULES = {"similarity": (VERMILLION, "P"), "simple rule": (BLUE, "o"), "last blocks": (SKY, "D")}
RECIPES = {
    "lora": (ORANGE, "s"),
    "qlora": (PURPLE, "^"),
    "nf4": (PURPLE, "^"),
    "partial": (BLUE, "o"),
    "partial_kept": (SKY, "D"),
    "full": (BLACK, "X"),
}
METHODS = {"untuned": (GREY, "s"), "prompt tuning": (ORANGE, "^"), "fine-tuning": (BLUE, "o")}
BASELINES = {  # baselines of a classification: column -> label, colour, line
    "chance": ("chance", GREY, ":"),
    "majority": ("commonest label", BLACK, "--"),
    "bag_of_words": ("word counts of the same shots", GREEN, "-."),
}

# The same thing has the same colour and marker in every figure. Names not listed take what is free, in order.
SERIES = {
    **{name: (measure.colour, measure.marker) for name, measure in MEASURES.items()},
    "angular_blocks": (VERMILLION, "P"),
    "greedy": (BLACK, "X"),
    "perplexity": (BLACK, "o"),
    "text": (BLACK, "o"),
    "agreement": (BLUE, "s"),
    "copying": (VERMILLION, "^"),
    "last_word": (GREEN, "D"),
    "last word": (GREEN, "D"),
    "mmlu_dev": (ORANGE, "s"),
    "MMLU, letters": (ORANGE, "s"),
    "mmlu": (ORANGE, "s"),
    "full precision": (BLACK, "o"),
    "GPTQ, 8 bits": (SKY, "s"),
    "GPTQ, 4 bits": (BLUE, "D"),
    "GPTQ, 3 bits": (VERMILLION, "^"),
    "shortgpt": (BLUE, "o"),
    "sleb": (BLACK, "X"),
    "magnitude_compensation": (SKY, "P"),
    "replace_me": (PURPLE, "D"),
    "laco": (ORANGE, "v"),
    "laco_code": (ORANGE, "v"),
    "llm_pruner": (VERMILLION, "^"),
    "slice_gpt": (GREEN, "s"),
    "slice_gpt_tied": (GREEN, "s"),
    **RULES,
    **RECIPES,
    **METHODS,
}
_SPARE = [(VERMILLION, "D"), (PURPLE, "^"), (SKY, "v"), (BLUE, "P"), (GREEN, "X"), (ORANGE, "o")]


# Orders of removal that have no scores.
ORDERS = {"greedy": "Greedy", "angular_blocks": "Runs of the smallest angular distance"}


def title_of(measure: str) -> str:
    """A measure's name for people; its name in the registry where it has no style of its own."""
    return MEASURES[measure].title if measure in MEASURES else ORDERS.get(measure, measure)


# Tasks that are called something else than their name with spaces.
TASKS = {
    "mmlu_dev": "MMLU, letters",
    "mmlu_dev_continuation": "MMLU, whole answers",
    "mmlu_dev_fewshot": "MMLU, letters after five examples",
}


def words(name: str) -> str:
    """A task's or series' name as people read it."""
    return TASKS.get(name, name.replace("_", " "))


def style_of(name: str, among: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a series; one that `SERIES` does not name takes a free one, by its place in `among`."""
    if name in SERIES:
        return SERIES[name]
    colours = {SERIES[other][0] for other in among if other in SERIES}
    free = [spare for spare in _SPARE if spare[0] not in colours] or _SPARE
    unknown = [other for other in among if other not in SERIES]
    return free[(unknown.index(name) if name in unknown else 0) % len(free)]


def settings() -> AbstractContextManager:
    """Context in which everything is drawn and saved, whatever the caller's own matplotlib settings are."""
    return plt.style.context(["default", SETTINGS])


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Makes a function of frames draw in the common style and return a figure that pyplot does not hold."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with settings():
            figure = draw(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        # Made by pyplot, because that teaches Jupyter to show figures; closed, because Jupyter would show it twice.
        plt.close(figure)
        return figure

    return wrapper


def _rounded(value: object) -> object:
    """A frame with the digits that its CSV file has, so that what no reader sees cannot change a figure's bytes.

    The last bits of a matrix product depend on where its operands lie in memory.
    """
    if not isinstance(value, pd.DataFrame):
        return value
    floats = value.select_dtypes("float").columns
    return value.assign(**{name: [float(f"{x:.8g}") for x in value[name]] for name in floats})


@functools.cache
def text_width(text: str, size: float) -> float:
    """Width in points of one line of text in the common font."""
    width, _, _ = _ruler().get_text_width_height_descent(text, FontProperties(family=FONT, size=size), False)
    return float(width) / 10


@functools.cache
def _ruler() -> RendererAgg:
    """Renderer that measures text: at ten pixels a point, so that rounding to pixels is nothing."""
    return FigureCanvasAgg(Figure((0.1, 0.1), dpi=720)).get_renderer()
