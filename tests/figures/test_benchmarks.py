"""The figure of notebook 08 shows what it is given."""

from layer_redundancy.figures import benchmarks

from .frames import method_frames


def test_measured_models_stand_left_of_what_the_paper_prints():
    figure = benchmarks.method_accuracies(*method_frames())
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["Dense", "ShortGPT"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["Dense", "LaCo"]
    (hollow,) = [line for line in right.lines if line.get_label() == "A"]
    assert list(hollow.get_ydata()) == [0.55, 0.3] and hollow.get_markerfacecolor() == "white"
    assert [t.get_text() for t in figure.legends[0].get_texts()].count("chance") == 1
    assert len([line for line in left.lines if line.get_gid() == "chance"]) == 2, "a share of the dashes a task"


def test_a_panel_without_a_benchmark_says_so():
    measured, reported = method_frames()
    left, right = benchmarks.method_accuracies(measured.iloc[:0], reported).axes
    assert [text.get_text() for text in left.texts] == ["no benchmark on enough items"]
    assert not left.get_xticks().size and right.get_xticks().size
