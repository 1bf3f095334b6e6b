"""The figures of notebook 04 show what they are given."""

from layer_redundancy.figures import metric_comparison

from .frames import metric_frames


def test_metric_curves_has_a_panel_a_task_and_a_line_a_measure():
    perplexity, accuracy = metric_frames(6)
    top, first, second = metric_comparison.metric_curves(perplexity, accuracy).axes
    assert {"block_influence", "greedy", "angular_blocks"} <= {line.get_label() for line in top.lines}
    assert len(first.containers) == len(second.containers) == 7
    assert first.get_legend().get_texts()[1].get_text() == "passage_continuation, acc_norm, n=100: 95 % interval"
