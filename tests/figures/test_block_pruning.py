"""The figures of notebook 10 show what they are given."""

import numpy as np

from layer_redundancy.figures import block_pruning as draw

from .frames import healing_curve_frame, last_block_frame, named_lines, pruning_accuracy_frame, pruning_frame


def test_damage_sets_healed_beside_not_healed():
    axes = draw.block_pruning(pruning_frame(), 4.4).axes[0]
    drawn = named_lines(axes)
    assert list(drawn) == [
        "similarity, not healed", "simple rule, not healed", "last blocks, not healed", "similarity, healed",
        "simple rule, healed",
    ]  # fmt: skip
    np.testing.assert_allclose(drawn["simple rule, healed"].get_ydata(), [2.4, 2.55])
    np.testing.assert_allclose(drawn["simple rule, not healed"].get_xdata(), [100 / 3, 50])
    assert axes.get_yscale() == "log" and "nats a token" in axes.get_ylabel()
    assert any("single tokens" in text.get_text() for text in axes.texts)


def test_capabilities_have_a_panel_a_task_and_begin_at_the_whole_model():
    left, right = draw.capabilities(pruning_accuracy_frame(), (45, 55)).axes
    np.testing.assert_allclose(named_lines(right)["similarity, healed"].get_ydata(), [0.8, 0.8, 0.3])
    assert left.get_title(loc="left") == "agreement (n = 200)" and named_lines(left)["chance"].get_ydata()[0] == 0.5


def test_the_last_block_has_a_place_a_number_of_removed_blocks():
    axes = draw.last_block(last_block_frame()).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3"]


def test_healing_curves_have_a_panel_a_rule_and_are_means_over_seeds():
    figure = draw.healing_curves(healing_curve_frame())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["similarity", "simple rule"]
    assert named_lines(figure.axes[0])["2"].get_ydata().tolist() == [5.5, 4.5]
