"""The figure of a training."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.figures.style import BLACK, BLUE, GREY, PURPLE, VERMILLION, WIDTH, styled


@styled
def training_curve(log: pd.DataFrame, levels: dict[str, float]) -> Figure:
    """Loss on the training text, and bits per byte of text held out, by training tokens.

    Args:
        log: tokens, loss (nats a token, mean since the row before), bits_per_byte (empty where not measured).
        levels: name -> bits per byte of what the model must beat, drawn across.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    millions = log["tokens"] / 1e6
    left.plot(millions, log["loss"], color=BLUE)
    left.set_ylabel("training loss (nats a token)")
    judged = log["bits_per_byte"].notna()
    right.plot(millions[judged], log["bits_per_byte"][judged], "o-", color=VERMILLION, label="validation articles")
    for place, (name, level) in enumerate(levels.items()):
        right.axhline(level, color=[GREY, BLACK, PURPLE][place % 3], ls=["--", ":", "-."][place % 3], label=name)
    right.set_ylabel("bits per byte, held-out articles")
    for axes in (left, right):
        axes.set_xlabel("training tokens (millions)")
    right.legend(loc="center right")
    return figure
