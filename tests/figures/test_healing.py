"""The figures of notebook 11 show what they are given."""

import numpy as np

from layer_redundancy.figures import healing as draw

from .frames import named_lines, recipe_frame, selection_frame, training_curves_frame


def test_recipes_have_a_panel_a_cost():
    figure = draw.recipes(recipe_frame())
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["head and last 3", "LoRA, rank 8"]
    assert len(figure.axes) == 5 and figure.axes[4].lines[-1].get_xdata()[0] == 4.0


def test_training_curves_are_means_over_seeds():
    drawn = named_lines(draw.training_curves(training_curves_frame()).axes[0])
    np.testing.assert_allclose(drawn["LoRA, rank 8"].get_xydata(), [[0, 9], [1024, 3.05]])


def test_selections_are_named_best_first():
    names = [t.get_text() for t in draw.selections(selection_frame()).axes[0].get_yticklabels()]
    assert names[0] == "random" and names[-1] == "reverse order"
