"""The figures of notebook 06 show what they are given."""

import pytest

from layer_redundancy.figures import rwkv_redundancy

from .frames import beside_frame


@pytest.mark.parametrize("draw", [rwkv_redundancy.single_blocks, rwkv_redundancy.removal_beside])
@pytest.mark.parametrize("twin", [False, True])
def test_each_model_has_its_points_and_the_dense_level(draw, twin):
    (axes,) = draw(beside_frame(5, twin)).axes
    drawn = [container.lines[0].get_ydata() for container in axes.containers]
    assert [len(values) for values in drawn] == [5, 10, *[5] * twin] and drawn[1][-1] == 90
    assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "dense"] == [0]
    assert axes.get_yscale() == "symlog", "costs may be below 0"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sum("recurrent (without attention)" in label for label in labels) == 1
    assert sum("twin (transformer twin of recurrent)" in label for label in labels) == twin
