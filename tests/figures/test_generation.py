"""The figures of notebook 09 show what they are given."""

import numpy as np

from layer_redundancy.figures import generation

from .frames import curve_frame, generation_frames


def test_generation_by_position_has_a_column_a_depth():
    curves = curve_frame(8)
    figure = generation.generation_by_position(curves)
    assert len(figure.axes) == 6
    assert [axes.get_title("left") for axes in figure.axes[:3]] == [
        "1 block removed", "2 blocks removed", "4 blocks removed"]  # fmt: skip
    together = curves[(curves["removed"] == 4) & (curves["reading"] == "not yet diverged")]["agreement"].sum()
    assert figure.axes[5].get_title("left") == f"{together:.1f} tokens before they part"
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3, 2, 2, 2]
    part = curves[(curves["removed"] == 2) & (curves["reading"] == "own text")]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), part["agreement"])
    assert "95 % interval, n=24 prompts" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_generation_by_depth_draws_the_real_text_chance_and_every_task():
    values, kept, chance = generation_frames(7)
    top, right, left, bottom = generation.generation_by_depth(values, kept, chance).axes
    assert [len(top.lines), len(right.containers)] == [4, 3]
    assert [line.get_ydata()[0] for line in top.lines if line.get_gid() == "chance"] == [chance]
    assert [line.get_ydata()[0] for axes in (left, bottom) for line in axes.lines if line.get_gid() == "text"] == [
        0.03, 20.0]  # fmt: skip
    assert bottom.get_yscale() == "log" and left.get_yscale() == "linear"
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert {"agreement, free-running, n=24", "gsm8k_cot, n=24", "passage_continuation, n=24", "chance"} == set(legend)
