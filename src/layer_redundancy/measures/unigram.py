"""A model of single tokens: what a text costs whoever knows how frequent tokens are, and nothing else."""

import numpy as np

from layer_redundancy.data.corpora import TokenBlocks


def loss(counts: np.ndarray, text: TokenBlocks) -> np.ndarray:
    """Loss of a text under the frequencies of the tokens of another.

    Args:
        counts: (V,) how often each token of the vocabulary is in the other text; each counts once more than that.
        text: the text to judge; the first token of each block is not.

    Returns:
        (N,) float64, the mean over each block's tokens, nats a token.
    """
    smoothed = np.asarray(counts, float) + 1
    return -np.log(smoothed / smoothed.sum())[text.input_ids.numpy()[:, 1:]].mean(1)
