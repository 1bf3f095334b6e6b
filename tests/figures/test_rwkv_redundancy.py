"""The figure of notebook 06 shows what it is given."""

from layer_redundancy.figures import rwkv_redundancy

from .frames import beside_frames


def test_removal_beside_draws_each_model_with_its_dense_level_and_chance():
    figure = rwkv_redundancy.removal_beside(*beside_frames(5))
    top_left, top_right, bottom_left, bottom_right = figure.axes
    assert [top_left.get_title("left"), top_right.get_title("left")] == ["recurrent", "transformer"]
    assert top_left.get_yscale() == "log" and top_left.get_shared_y_axes().joined(top_left, top_right)
    for axes in (bottom_left, bottom_right):
        assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "chance"] == [0.25]
        assert "n=80" in axes.get_title("left")
    assert len(top_left.containers) == len(bottom_right.containers) == 7
    drawn = [len(axes.containers[0].lines[0].get_xdata()) for axes in (top_left, top_right)]
    assert drawn == [5, 10]
