"""The figure of notebook 08 shows what it is given."""

from layer_redundancy.figures import benchmarks

from .frames import method_frames


def test_method_accuracies_puts_reported_methods_beside_measured_ones():
    (axes,) = benchmarks.method_accuracies(*method_frames()).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Dense", "ShortGPT", "LaCo"]
    (hollow,) = [line for line in axes.lines if line.get_label() == "MMLU, paper, A"]
    assert list(hollow.get_ydata()) == [0.55, 0.3]
    assert [t.get_text() for t in axes.get_legend().get_texts()].count("chance") == 1
