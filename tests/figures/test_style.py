"""Names have one colour and marker, and the caller's settings none."""

import matplotlib as mpl

from layer_redundancy.figures import layer_importance, saving, style

from .frames import CAPTION, score_frame


def test_a_thing_has_one_colour_and_marker_and_others_take_free_ones():
    names = ["mmlu_dev", "arc_easy", "passage_continuation", "piqa"]
    styles = [style.style_of(name, names) for name in names]
    assert len({colour for colour, _ in styles}) == 4
    assert style.style_of("mmlu_dev") == styles[0]
    assert len({style.style_of(metric) for metric in style.MEASURES}) == len(style.MEASURES)


def test_the_callers_settings_do_not_reach_the_figure():
    frame = score_frame(5)
    plain = saving._render(layer_importance.removal_order(frame, [2]), CAPTION)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.transparent": True}):
        assert saving._render(layer_importance.removal_order(frame, [2]), CAPTION) == plain
