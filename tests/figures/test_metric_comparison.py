"""The figures of notebook 04 show what they are given."""

import pytest

from layer_redundancy.figures import metric_comparison

from .frames import gap_frames


def test_gaps_stand_above_tasks_with_chance_and_rules():
    gaps, accuracy, rules = gap_frames(6)
    figure = metric_comparison.gap_to_greedy(gaps, accuracy, rules)
    top, first, second = (axes for axes in figure.axes if axes.get_subplotspec() is not None)
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert labels == ["Block Influence", "Hidden-state norm, Reverse order", "Greedy", "95 % interval"]
    drawn = {line.get_label(): line.get_ydata() for line in top.lines}
    assert drawn["Block Influence"] == pytest.approx(gaps[gaps.metric == "block_influence"].gap.to_numpy()[1:])
    for axes, task in ((first, "agreement"), (second, "last_word")):
        points = axes.containers
        assert len(points) == 3 and axes.get_title("left").startswith(task.replace("_", " "))
        levels = {line.get_gid(): line.get_ydata()[0] for line in axes.lines if line.get_gid()}
        assert levels == {"dense": 0.9, "chance": 0.5, "rule": 0.6}
    assert first.get_legend().get_texts()[-1].get_text() == "largest of 2 rules without a model"
    assert [text.get_text() for text in top.get_xticklabels()][:2] == ["0\n(0)", "10\n(8)"]


def test_orders_are_named_in_words():
    frame = metric_comparison.pd.DataFrame(
        [
            (a, b, 1.0)
            for a in ("greedy", "hidden_norm, reverse_order")
            for b in ("greedy", "hidden_norm, reverse_order")
        ],
        columns=["a", "b", "tau"],
    )
    axes = metric_comparison.order_correlation(frame).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Greedy", "Hidden-state norm, Reverse order"]
