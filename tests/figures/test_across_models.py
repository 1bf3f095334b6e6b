"""The figures of notebook 14: every model at its place, whatever the others lack."""

import numpy as np

from layer_redundancy.figures import across_models as draw

from .frames import COMPARED, across_damage_frame, across_depths_frame, across_left_frame, across_ranks_frame


def containers(axes):
    return {one.get_label(): one for one in axes.containers}


def test_shares_that_are_out_of_reach_have_no_point():
    blocks, weights = draw.damage(across_damage_frame()).axes
    assert list(containers(blocks)) == COMPARED
    assert [len(one.lines[0].get_ydata()) for one in containers(blocks).values()] == [3] * 4
    assert [len(one.lines[0].get_ydata()) for one in containers(weights).values()] == [3, 2, 3, 3]
    first, second = (containers(blocks)[name].lines[0].get_xdata() for name in COMPARED[:2])
    assert (first < second).all() and (
        np.round(np.array(second, float)) == [0, 1, 2]
    ).all()  # beside each other, each at its share
    assert [text.get_text() for text in blocks.get_xticklabels()] == ["10", "25", "50"]


def test_rows_hold_every_model_of_a_measure():
    (axes,) = draw.depths(across_depths_frame(12)).axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in COMPARED}
    assert list(lines) == COMPARED
    for line in lines.values():
        assert sorted(set(np.round(np.array(line.get_ydata(), float)))) == [0, 1, 2, 3, 4]
        assert len(line.get_xdata()) == 5 * 3
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first at the top


def test_a_task_that_a_model_lacks_leaves_its_place_empty():
    (axes,) = draw.ranks(across_ranks_frame()).axes
    found = containers(axes)
    assert [len(found[name].lines[0].get_xdata()) for name in COMPARED] == [3, 3, 3, 2]
    assert axes.get_xlim() == (-1, 1)


def test_panels_say_how_many_items_each_model_was_asked():
    figure = draw.capabilities(across_left_frame())
    assert [axes.get_title("left") for axes in figure.axes] == ["agreement, n = 200 or 400", "copying, n = 200 or 400"]
    assert all(list(containers(axes)) == COMPARED for axes in figure.axes)
