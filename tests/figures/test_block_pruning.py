"""The figures of notebook 10 show what they are given."""

import numpy as np

from layer_redundancy.figures import block_pruning as draw

from .frames import healing_curve_frame, named_lines, pruning_frame


def test_block_pruning_sets_healed_beside_not_healed():
    figure = draw.block_pruning(pruning_frame(), 1000, (45, 55))
    left, right = figure.axes
    drawn = named_lines(left)
    assert list(drawn) == [
        "similarity, not healed", "simple rule, not healed", "last blocks, not healed", "similarity, healed",
        "simple rule, healed",
    ]  # fmt: skip
    np.testing.assert_allclose(drawn["simple rule, healed"].get_ydata(), [2.0, 2.4, 2.55])
    np.testing.assert_allclose(drawn["simple rule, not healed"].get_xdata(), [0, 100 / 3, 50])
    assert left.get_yscale() == "log" and "nats a token" in left.get_ylabel() and "n = 10" in right.get_ylabel()
    np.testing.assert_allclose(named_lines(right)["similarity, healed"].get_ydata(), [0.8, 0.8, 0.3])
    assert any("paper" in text.get_text() for text in right.texts)
    alone = draw.block_pruning(pruning_frame().assign(task=""), 1000)
    assert len(alone.axes) == 1, "a profile without tasks"


def test_healing_curves_have_a_panel_a_rule():
    figure = draw.healing_curves(healing_curve_frame())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["similarity", "simple rule"]
    assert named_lines(figure.axes[0])["2"].get_ydata().tolist() == [5.0, 4.0]
