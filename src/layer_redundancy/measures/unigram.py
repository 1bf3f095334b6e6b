"""A model of single tokens: what a text costs whoever knows how frequent tokens are, and nothing else."""

import numpy as np

from layer_redundancy.data.corpora import TokenBlocks


def loss(known: TokenBlocks, text: TokenBlocks, vocabulary: int) -> np.ndarray:
    """Loss of a text under the frequencies of the tokens of another, each counted once more than it is there.

    Args:
        known: the text whose tokens are counted.
        text: the text to judge; the first token of each block is not.
        vocabulary: number of tokens that there are.

    Returns:
        (N,) float64, the mean over each block's tokens, nats a token.
    """
    size = max(vocabulary, int(known.input_ids.max()) + 1, int(text.input_ids.max()) + 1)
    counts = np.bincount(known.input_ids.numpy().ravel(), minlength=size) + 1
    return -np.log(counts / counts.sum())[text.input_ids.numpy()[:, 1:]].mean(1)
