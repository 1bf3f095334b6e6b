"""The figure of notebook 03 shows what it is given."""

import pytest

from layer_redundancy.figures import parts, prune_ratio

from .frames import ratio_curves


def test_prune_ratio_marks_the_cliff_and_what_is_off_the_scale():
    perplexity, accuracy, cliffs, reported = ratio_curves(9)
    top, bottom = prune_ratio.prune_ratio(perplexity, accuracy, cliffs, reported).axes
    assert top.get_ylim()[1] == parts.PERPLEXITY_LIMIT
    (beyond,) = [line for line in top.lines if line.get_label() == "above 10,000,000"]
    expected = perplexity["share"][perplexity["perplexity"] > 1e7]
    assert list(beyond.get_xdata()) == pytest.approx(list(expected)) and len(expected)
    assert [line.get_xdata()[0] for line in bottom.lines if line.get_gid() == "cliff"] == [20.0]
    assert [text.get_text() for text in bottom.texts] == ["cliff: block 3"]
    (hollow,) = [line for line in bottom.lines if line.get_label() == "MMLU, paper, A"]
    assert list(hollow.get_ydata()) == [0.5, 0.4] and hollow.get_markerfacecolor() == "white"
