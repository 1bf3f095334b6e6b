"""The figures of notebook 15 show what they are given: theirs hollow, ours filled."""

import numpy as np

from layer_redundancy.figures import published as draw

from .frames import drawn_boxes, published_frame, published_overlap_frames, published_windows_frame


def panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def points(axes, marker="o"):
    return [line for line in axes.lines if line.get_marker() == marker]


def test_each_model_has_a_panel_and_only_ours_is_filled():
    for figure in (draw.removals(published_frame(12)), draw.influence(published_frame(12))):
        shown = panels(figure)
        assert len(shown) == 9 and len(figure.axes) == 12
        fills = [points(axes)[0].get_markerfacecolor() for axes in shown]
        assert fills[:8] == ["white"] * 8 and fills[8] != "white"
        assert shown[8].get_title("left").startswith("this model")
        boxes, page = drawn_boxes(figure)
        assert all(box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1 for box in boxes)


def test_costs_beyond_the_worst_are_triangles_at_the_edge():
    figure = draw.removals(published_frame(12), worst=10)
    first, mine = panels(figure)[0], panels(figure)[8]
    (beyond,) = points(first, "^")
    assert beyond.get_ydata() == [10] and not points(mine, "^")
    np.testing.assert_allclose(beyond.get_xdata(), 100 * 0.5 / 12)
    assert np.isnan(points(first)[0].get_ydata()[0]) and first.get_yscale() == "symlog"


def test_a_last_block_after_the_norm_stands_apart():
    figure = draw.influence(published_frame(12))
    first, mine = panels(figure)[0], panels(figure)[8]
    assert len(points(first)[0].get_xdata()) == 11 and len(points(first, "s")[0].get_xdata()) == 1
    assert len(points(mine)[0].get_xdata()) == 12


def test_windows_that_are_shorter_are_crosses():
    figure = draw.windows(published_windows_frame())
    assert [axes.get_title("left") for axes in figure.axes] == ["one", "two", "three"]
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in points(axes, "x")] == [1, 1, 1]
        assert all(len(container.lines[0].get_xdata()) == 5 for container in axes.containers)
        assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "chance"] == [0.25]


def test_matrices_hold_their_numbers():
    tables = published_overlap_frames()
    figure = draw.overlap(tables, 8)
    for axes, (model, table) in zip(figure.axes, tables.items(), strict=False):
        assert axes.get_title("left").startswith(model)
        written = [float(text.get_text()) for text in axes.texts]
        assert written == table.to_numpy().ravel().tolist()
