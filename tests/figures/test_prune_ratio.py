"""The figure of notebook 03 shows what it is given."""

import numpy as np
import pytest

from layer_redundancy.figures import prune_ratio

from .frames import ratio_curves


def test_prune_ratio_shows_weights_rules_and_frequencies():
    perplexity, accuracy, rules, unigram = ratio_curves(9)
    figure = prune_ratio.prune_ratio(perplexity, accuracy, rules, unigram)
    top, _, bottom, right = figure.axes
    assert list(top.lines[0].get_ydata()) == pytest.approx(list(perplexity["log_increase"]))
    assert [line.get_ydata()[0] for line in top.lines if line.get_gid() == "unigram"] == [4.5]
    assert [label.get_text() for label in right.get_xticklabels()] == ["TF-IDF", "longest"]
    assert right.get_ylim() == bottom.get_ylim()
    (second,) = top.child_axes
    figure.draw_without_rendering()
    last = perplexity.iloc[-1]
    assert second.get_xlim()[1] / top.get_xlim()[1] == pytest.approx(last["weights"] / last["share"])
    assert "share of all weights" in second.get_xlabel()


def test_prune_ratio_without_rules_or_weights_has_neither():
    perplexity, accuracy, _, _ = ratio_curves(5)
    figure = prune_ratio.prune_ratio(perplexity.assign(weights=0.0), accuracy)
    assert not figure.axes[0].child_axes
    assert [axes.axison for axes in figure.axes] == [True, False, True, False]
    assert not [line for line in figure.axes[0].lines if line.get_gid() == "unigram"]
    assert np.isfinite(figure.axes[0].get_ylim()).all()
