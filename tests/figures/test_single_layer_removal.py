"""The figures of notebook 02 show what they are given."""

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.figures import parts, single_layer_removal

from .frames import (
    capability_frame,
    capability_orders_frame,
    first_token_frame,
    first_token_frames,
    removal_frames,
)


def test_single_layer_removal_draws_series_dense_and_chance():
    top, bottom = single_layer_removal.single_layer_removal(*removal_frames(7)).axes
    assert top.get_yscale() == "symlog" and bottom.get_yscale() == "linear"
    assert top.get_shared_x_axes().joined(top, bottom)
    assert bottom.get_xlabel() == "removed block (0 = first)"
    assert top.lines[0].get_ydata()[0] == pytest.approx(np.log(1025 / 23.4))
    legend = [text.get_text() for text in bottom.get_legend().get_texts()]
    assert legend == [
        "passage continuation (n = 100)",
        "MMLU, letters (n = 80)",
        "passage continuation: chance",
        "MMLU, letters: chance",
        "dense model",
    ]
    assert len(bottom.containers) == 2
    chance = [line for line in bottom.lines if line.get_gid() == "chance"]
    assert [line.get_ydata()[0] for line in chance] == [0.25, 0.25]
    assert all(line.get_linestyle() != "-" for line in chance)
    assert [line.get_ydata()[0] for line in bottom.lines if line.get_gid() == "dense"] == [0.65, 0.65]


def test_the_largest_of_the_rules_says_of_how_many():
    rules = pd.DataFrame(
        {"task": ["mmlu_dev"] * 3 + ["passage_continuation", "elsewhere"], "accuracy": [0.2, 0.3, 0.1, 0.4, 0.9]}
    )
    _, bottom = single_layer_removal.single_layer_removal(*removal_frames(7), rules).axes
    drawn = [line for line in bottom.lines if line.get_gid() == "rule"]
    assert sorted(line.get_ydata()[0] for line in drawn) == [0.3, 0.4]
    assert bottom.get_legend().get_texts()[-1].get_text() == "largest of 1 to 3 rules without a model"


def test_single_layer_removal_shows_values_that_are_not_finite():
    perplexity, accuracy, _ = removal_frames(5)
    perplexity.loc[[1, 3], "log_increase"] = [np.inf, np.nan]
    top, _ = single_layer_removal.single_layer_removal(perplexity, accuracy).axes
    (marks,) = [line for line in top.lines if line.get_label() == "not finite"]
    assert list(marks.get_xdata()) == [1, 3]


def test_legends_lie_outside_the_data():
    for axes in single_layer_removal.single_layer_removal(*removal_frames(30)).axes:
        axes.figure.draw_without_rendering()
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_a_map_says_what_is_lost_and_what_is_sure():
    frame = capability_frame(4)
    nats, accuracy = single_layer_removal.capability_map(frame).axes
    assert [label.get_text() for label in nats.get_xticklabels()] == ["text", "agreement"]
    assert nats.texts[0].get_text() == "7.00" and accuracy.texts[0].get_text() == "40"
    bold = [text.get_weight() == "bold" for text in accuracy.texts]
    assert bold == [text.get_gid() == "seen" for text in accuracy.texts] == [True, False, True, False]
    assert not single_layer_removal.capability_map(capability_frame(80)).axes[0].texts, "too small to read"


def test_orders_are_drawn_with_what_could_be_reached():
    axes = single_layer_removal.order_agreement(capability_orders_frame()).axes[0]
    ceilings = [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "itself"]
    assert ceilings == [0.8, 0.8]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["Block Influence", "Weights, sum of sizes", "order of text", "order of agreement"]


def test_attention_is_left_out_where_it_is_not_known():
    frame = first_token_frame(6)
    assert len(single_layer_removal.first_token_state(frame, 3).axes) == 2
    silent = frame.assign(attention_whole=np.nan, attention_without=np.nan)
    (axes,) = single_layer_removal.first_token_state(silent, 3).axes
    assert axes.get_yscale() == "log"


def test_what_breaks_is_drawn_by_capability_and_by_place():
    left, right = single_layer_removal.first_token_loss(*first_token_frames()).axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["text", "copying"]
    assert len(left.containers) == 3 and len(right.lines) == 4, "three conditions, and the line at nothing"


def test_small_damage_lies_where_the_axis_is_linear():
    perplexity, accuracy, reference = removal_frames(5)
    perplexity["log_increase"] = [-0.05, 0.0, 0.05, 0.3, 8.0]
    top, _ = single_layer_removal.single_layer_removal(perplexity, accuracy, reference).axes
    shown = top.transData.transform([(0, value) for value in (-0.05, 0, 0.05)])[:, 1]
    assert shown[2] - shown[1] == pytest.approx(shown[1] - shown[0]) and parts.LINEAR_TO > 0.05
