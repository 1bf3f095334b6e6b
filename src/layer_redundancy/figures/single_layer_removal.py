"""The figure of notebooks 02 and 06: what the removal of each single block costs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from layer_redundancy.figures.parts import accuracy_panel, block_axis, perplexity_panel
from layer_redundancy.figures.style import WIDTH, styled


@styled
def single_layer_removal(
    perplexity: pd.DataFrame, accuracy: pd.DataFrame, reference: pd.DataFrame | None = None
) -> Figure:
    """Perplexity and accuracy after removing one block, for each block (figure 3).

    Args:
        perplexity: one row a removed block: block, perplexity; optionally low, high (95 % interval). Values that
            are not finite are drawn as triangles at the upper edge.
        accuracy: one row a (removed block, task, metric): block, task, metric, accuracy (0 to 1), low, high (95 %
            interval), n (items), chance (accuracy of guessing).
        reference: the dense model, same columns, `block` empty: one row with perplexity, one with accuracy a (task,
            metric).
    """
    blocks = np.unique(np.concatenate([perplexity["block"].dropna(), accuracy["block"].dropna()]).astype(int))
    reference = pd.DataFrame() if reference is None else reference
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.6), sharex=True, layout="constrained", height_ratios=[1, 1.15]
    )
    perplexity_panel(top, perplexity, reference.dropna(subset=["perplexity"]) if "perplexity" in reference else None)
    accuracy_panel(bottom, accuracy, reference.dropna(subset=["accuracy"]) if "accuracy" in reference else None)
    block_axis(bottom, blocks, label="removed block (0 = first)")
    return figure
