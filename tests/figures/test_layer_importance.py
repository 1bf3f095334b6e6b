"""The figures of notebook 01 show what they are given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from layer_redundancy.figures import layer_importance as draw
from layer_redundancy.figures import style

from .frames import grid_frame, inclusion_frame, metric_frame, order_of, rank_frame, score_frame


def test_removal_order_labels_each_block_with_its_place():
    scores = score_frame(12)
    order = order_of(scores)
    axes = draw.removal_order(scores, order, highlight=3).axes[0]
    assert axes.get_xlabel() == "block index (0 = first)"
    assert axes.get_ylabel().startswith("Block Influence (1 - cosine)")
    labels = {int(text.xy[0]): (text.get_text(), to_hex(text.get_color()).upper()) for text in axes.texts}
    assert {block: int(place) for block, (place, _) in labels.items()} == {b: i for i, b in enumerate(order, start=1)}
    assert {block for block, (_, colour) in labels.items() if colour == style.VERMILLION} == set(order[:3])
    partial = draw.removal_order(scores, order[:3], highlight=3).axes[0]
    assert sorted(text.get_text() for text in partial.texts) == ["1", "2", "3"]


def test_removal_order_needs_no_interval_and_survives_missing_scores():
    scores = score_frame(6)[["block", "score"]]
    scores.loc[2, "score"] = np.nan
    figure = draw.removal_order(scores, [3, 4])
    assert "95 % interval" not in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_papers_blocks_are_ringed_where_it_has_the_model():
    scores = pd.DataFrame({"block": range(8), "score": np.linspace(0.1, 0.8, 8)})
    (ring,) = [
        line
        for line in draw.removal_order(scores, range(8), reported=(6, 5)).axes[0].lines
        if line.get_label() == "the 2 removed in the paper"
    ]
    assert list(ring.get_xdata()) == [5, 6] and ring.get_markerfacecolor() == "none"
    assert not any("paper" in line.get_label() for line in draw.removal_order(scores, range(8)).axes[0].lines)


def test_importance_metrics_draws_all_measures_and_names_the_first_removed():
    figure = draw.importance_metrics(metric_frame(10))
    titles = [axes.get_title("left") for axes in figure.axes]
    assert len(titles) == len(style.MEASURES) - 2, "places alone, straight lines, have no panel"
    least = order_of(score_frame(10))[0]
    assert titles[0] == f"Block Influence\nfirst removed: smallest, block {least}"
    assert titles[2] == "Hidden-state norm\nfirst removed: largest, block 0"
    assert titles[3].startswith("Angular distance, last token")
    lines = [sum(len(line.get_xdata()) == 10 for line in axes.lines) for axes in figure.axes]
    assert lines == [2, 2, 2, 2], "the second line is drawn where the first token changes something"
    assert "without the first token" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_importance_metrics_without_the_second_line():
    frame = metric_frame(5)
    figure = draw.importance_metrics(frame[frame["first_token"] == "included"])
    assert len(figure.axes) == len(style.MEASURES) - 2
    assert "without the first token" not in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("ranks, title", [([4, 2, 1, 3], "smallest, block 2"), ([2, 4, 3, 1], "largest, block 3")])
def test_the_block_with_rank_1_is_the_first_removed(ranks, title):
    """Ties in the scores included: the ranks have them settled."""
    frame = pd.DataFrame({"metric": "own", "first_token": "included", "block": range(4), "score": [2.0, 1.0, 1.0, 3.0]})
    assert draw.importance_metrics(frame.assign(rank=ranks)).axes[0].get_title("left").endswith(title)


@pytest.mark.parametrize("scores", [[0.1, 0.5, 0.3], [0.0, 0.0, 0.0], [0.01, 1.4, 2.0]])
def test_geometry_draws_the_score_as_one_minus_cosine(scores):
    figure = draw.block_influence_geometry(pd.DataFrame({"block": [5, 6, 7], "score": scores}))
    panels = figure.axes[1:]
    assert len(panels) == 3
    for axes, score in zip(panels, sorted(scores), strict=True):
        (stretch,) = [line for line in axes.lines if line.get_gid() == "score"]
        start, end = stretch.get_xdata()
        assert end - start == pytest.approx(score)
        assert any(f"= {score:.3g}" in text.get_text() for text in axes.texts)


def test_angular_grid_marks_the_best_start_of_each_n():
    axes = draw.angular_grid(grid_frame(6)).axes[0]
    (marks,) = axes.lines
    # start 1 is best while it exists; of n = 6 there is only start 0. n = 6 is drawn at the top.
    assert dict(zip(6 - (marks.get_ydata() - 0.5), marks.get_xdata() - 0.5, strict=True)) == {
        1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 0,
    }  # fmt: skip


def test_angular_grid_refuses_a_cell_given_twice():
    with pytest.raises(ValueError, match="duplicate"):
        draw.angular_grid(pd.concat([grid_frame(3)] * 2))


def test_order_stability_sorts_rows_by_the_order():
    for ranks in (rank_frame(5), None):
        figure = draw.order_stability(inclusion_frame(5), ranks)
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["4", "3", "2", "1", "0"]
    cells = figure.axes[0].collections[0].get_array().reshape(5, 5)
    assert np.array_equal(cells, np.triu(np.ones((5, 5)))), "row r is among the first k from k = r + 1 on"
    assert figure.axes[0].collections[0].get_clim() == (0, 1)
