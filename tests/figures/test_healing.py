"""The figures of notebook 11 show what they are given."""

import numpy as np
import pytest

from layer_redundancy.figures import healing as draw

from .frames import LEVELS, healed_capability_frame, named_lines, recipe_frame, selection_frame, training_curves_frame


def test_recipes_have_a_panel_a_cost_and_levels_beside_their_damage():
    figure = draw.recipes(recipe_frame(), LEVELS)
    first = figure.axes[0]
    assert [t.get_text() for t in first.get_yticklabels()] == ["head and last 3", "LoRA, rank 8", "4 bits, untrained"]
    lines = named_lines(first)
    assert lines["blocks removed, untrained"].get_xdata()[0] == 1.2
    assert lines["whole model"].get_xdata()[0] == 0
    assert "a model of single tokens: 4.4, beyond the axis" in lines, "what is far away leaves room for the rest"
    drawn = [line for line in figure.axes[3].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in drawn] == [2.0, 4.0], "what is not trained costs nothing"


def test_training_curves_are_means_over_seeds_named_with_their_ends():
    drawn = named_lines(draw.training_curves(training_curves_frame(), {"unigram": 7.7}).axes[0])
    np.testing.assert_allclose(drawn["LoRA, rank 8: 3.05"].get_xydata(), [[0, 9], [1024, 3.05]])
    assert list(drawn)[-1] == "a model of single tokens"


def test_capabilities_have_a_panel_a_task_and_the_whole_model_first():
    figure = draw.capabilities(healed_capability_frame())
    assert len(figure.axes) == 2 and "copying" in figure.axes[1].get_xlabel() and "200" in figure.axes[1].get_xlabel()
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["whole model", "removed, untrained", "LoRA, rank 8"]


def test_selections_are_named_best_first():
    names = [t.get_text() for t in draw.selections(selection_frame(), {"unigram": 4.4}).axes[0].get_yticklabels()]
    assert names[0] == "random" and names[-1] == "reverse order"


def test_intervals_of_selections_are_drawn_to_their_ends_also_below_0():
    rows = selection_frame()
    rows.loc[0, ["low", "healed_low"]] = -2.5
    axes = draw.selections(rows, {"unigram": 4.4}).axes[0]
    ends = [segment[:, 0] for container in axes.containers for segment in container[2][0].get_segments()]
    assert min(map(min, ends)) == pytest.approx(-2.5) and axes.get_xlim()[0] < -2.5 and axes.get_xscale() == "symlog"
