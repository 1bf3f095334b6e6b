"""The figures of benchmarks and of the training of the RWKV show what they are given."""

from benchmarks import pictures
from tools.small_models import training_curve

from .frames import prefill_frame, training_frame


def test_prefill_rates_gives_each_model_a_panel_and_each_side_a_bar():
    left, right = pictures.prefill_rates(prefill_frame()).axes
    assert (left.get_title("left"), right.get_title("left")) == ("A", "B")
    assert (left.get_ylabel(), right.get_ylabel()) == ("tokens a second", "")
    heights = [sorted(bar.get_height() for bar in axes.patches) for axes in (left, right)]
    assert heights == [[1, 1, 10, 10, 100, 100]] * 2
    assert [text.get_text() for text in left.texts] == ["1", "1", "10", "10", "100", "100"]


def test_training_curve_draws_what_must_be_beaten():
    left, right = training_curve.training_curve(training_frame(8), {"xz -9": 2.4, "order-5 n-gram": 2.3}).axes
    assert len(left.lines[0].get_xdata()) == 8 and len(right.lines[0].get_xdata()) == 4
    assert [line.get_ydata()[0] for line in right.lines[1:]] == [2.4, 2.3]
    assert [text.get_text() for text in right.get_legend().get_texts()][1:] == ["xz -9", "order-5 n-gram"]
