"""The figures of notebook 05 show what they are given."""

import pytest

from layer_redundancy.figures import width_vs_depth

from .frames import damage_frame, head_frames


def test_head_removal_draws_every_point_and_the_means():
    axes = width_vs_depth.head_removal(*head_frames(5)).axes
    assert len(axes) == 4
    points = axes[1].collections[0].get_offsets()
    assert len(points) == 30
    (means,) = [line for line in axes[3].lines if line.get_marker() == "_"]
    assert list(means.get_ydata()) == pytest.approx([-0.1] * 6)


def test_damage_distributions_draw_shares():
    (axes,) = width_vs_depth.damage_distributions(damage_frame(9)).axes
    (blocks,) = [line for line in axes.lines if line.get_label() == "one block (n=9)"]
    assert blocks.get_ydata()[-1] == 1 and blocks.get_xdata()[0] == 0.05
    assert len([line for line in axes.lines if line.get_gid() == "median"]) == 3
