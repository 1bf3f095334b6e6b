"""The figures of notebook 09 show what they are given."""

import numpy as np

from layer_redundancy.figures import generation

from .frames import WRITERS, answer_frame, curve_frame, quality_frame


def test_agreement_by_position_has_a_panel_a_reading():
    curves = curve_frame(8)
    figure = generation.agreement_by_position(curves)
    assert [axes.get_title("left") for axes in figure.axes] == [
        "both read the whole model's text", "both read the model's own text"]  # fmt: skip
    part = curves[(curves["model"] == WRITERS[2]) & (curves["reading"] == "own text")]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), part["agreement"])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*WRITERS[1:], "95 % interval, n=200 prompts"]


def test_text_quality_has_a_row_a_model_and_the_real_text():
    values = quality_frame()
    same, repeated, perplexity = generation.text_quality(values).axes
    assert [text.get_text() for text in same.get_yticklabels()] == [*WRITERS, "real text"]
    assert [len(axes.containers) for axes in (same, repeated, perplexity)] == [4, 5, 5], "the real text is no model's"
    assert perplexity.get_xscale() == "log"


def test_answers_have_a_chance_of_choosing_and_none_of_writing():
    (axes,) = generation.chosen_and_written(answer_frame()).axes
    assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "chance"] == [0.25]
    assert [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()] == WRITERS
    written = axes.containers[1].lines[0].get_ydata().astype(float)
    np.testing.assert_allclose(written, answer_frame().query("how == 'written'")["accuracy"])
