"""The orders of the seven selections."""

import numpy as np
import pytest

from layer_redundancy.core.errors import StudyError
from layer_redundancy.measures import selections


def test_orders():
    scores = {"taylor": np.array([3.0, 1, 2, 1])}
    assert selections.order("taylor", scores, 4).tolist() == [3, 1, 2, 0]  # ties toward the deeper block
    assert selections.order("reverse_order", {}, 4).tolist() == [3, 2, 1, 0]
    draws = [tuple(selections.order("random", {}, 8, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and sorted(draws[0]) == list(range(8))
    with pytest.raises(StudyError, match="unknown selection 'tailor': choose one of random, perplexity, taylor"):
        selections.order("tailor", {}, 4)
