"""The figure of notebook 02 shows what it is given."""

import numpy as np

from layer_redundancy.figures import single_layer_removal

from .frames import removal_frames


def test_single_layer_removal_draws_series_dense_and_chance():
    top, bottom = single_layer_removal.single_layer_removal(*removal_frames(7)).axes
    assert top.get_yscale() == "log"
    assert bottom.get_yscale() == "linear"
    assert top.get_shared_x_axes().joined(top, bottom)
    assert bottom.get_xlabel() == "removed block (0 = first)"
    legend = [text.get_text() for text in bottom.get_legend().get_texts()]
    assert legend == [
        "passage_continuation, acc_norm, n=100",
        "mmlu_dev, acc, n=80",
        "dense model",
        "chance",
    ]
    assert len(bottom.containers) == 2
    chance = [line for line in bottom.lines if line.get_gid() == "chance"]
    assert [line.get_ydata()[0] for line in chance] == [0.25, 0.25]
    assert all(line.get_linestyle() != "-" for line in chance)
    assert [line.get_ydata()[0] for line in bottom.lines if line.get_gid() == "dense"] == [0.65, 0.65]
    assert [line.get_ydata()[0] for line in top.lines if line.get_gid() == "dense"] == [23.4]
    assert "dense model: 23.4" in [text.get_text() for text in top.get_legend().get_texts()]


def test_single_layer_removal_shows_values_that_are_not_finite():
    perplexity, accuracy, _ = removal_frames(5)
    perplexity.loc[[1, 3], "perplexity"] = [np.inf, np.nan]
    top, _ = single_layer_removal.single_layer_removal(perplexity, accuracy).axes
    (marks,) = [line for line in top.lines if line.get_label() == "not finite"]
    assert list(marks.get_xdata()) == [1, 3]


def test_legends_lie_outside_the_data():
    for axes in single_layer_removal.single_layer_removal(*removal_frames(30)).axes:
        axes.figure.draw_without_rendering()
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1
