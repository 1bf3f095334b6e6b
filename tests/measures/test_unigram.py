"""A model of single tokens, by hand."""

import numpy as np
import pytest
import torch

from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.measures import unigram


def test_loss_is_that_of_smoothed_frequencies_without_each_blocks_first_token():
    text = TokenBlocks(torch.tensor([[2, 0, 0], [0, 1, 2]]), "made up", "evaluation", bos=False)
    found = unigram.loss(np.array([3, 1, 0]), text)  # 4, 2 and 1 of 7
    assert found == pytest.approx([np.log(7 / 4), (np.log(7 / 2) + np.log(7)) / 2])
