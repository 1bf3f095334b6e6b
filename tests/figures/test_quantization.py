"""The figures of notebook 07 show what they are given."""

import pandas as pd
import pytest

from layer_redundancy.figures import quantization


def test_size_against_quality_marks_what_no_other_mix_beats():
    frame = pd.DataFrame({"weights": ["full precision", "full precision", "GPTQ, 4 bits", "GPTQ, 4 bits"]})
    frame = frame.assign(count=[0, 1, 0, 1], megabytes=[100.0, 90, 30, 25], perplexity=[20.0, 40, 21, 50])
    frame = frame.assign(low=frame["perplexity"], high=frame["perplexity"], front=[True, False, True, True])
    beyond = pd.DataFrame([["GPTQ, 4 bits", 2, 20.0, 1e6, 1e6, 1e6, True]], columns=frame.columns)
    axes = quantization.size_against_quality(pd.concat([frame, beyond])).axes[0]
    (front,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert list(front.get_xdata()) == [25, 30, 100] and list(front.get_ydata()) == [50, 21, 20]
    assert [text.get_text() for text in axes.texts] == ["all blocks", "all blocks", "1 removed"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["full precision", "GPTQ, 4 bits", "best at its size", "another is smaller and better"]


def test_interactions_stand_on_the_margin_with_each_draw():
    rows = pd.DataFrame({"weights": "GPTQ, 4 bits", "count": [3, 8, 15], "pruning": [0.3, 1.2, 9], "quantization": 0.4})
    rows = rows.assign(interaction=[0.02, 0.1, 1], low=[0.0, 0.05, 0], high=[0.04, 0.15, 2], both=[0.72, 1.7, 10.4])
    draws = pd.DataFrame({"weights": "GPTQ, 4 bits", "count": [3, 3, 8, 8], "interaction": [0.01, 0.03, 0.08, 0.12]})
    axes = quantization.damage_interaction(rows, draws, 0.25).axes[0]
    heights = [patch.get_paths()[0].get_extents().height for patch in axes.collections[:2]]
    assert sorted(heights)[-2:] == pytest.approx([0.15, 0.2]), "a quarter of 0.3 and of 0.4, on either side"
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [0.01, 0.03] in drawn and [0.08, 0.12] in drawn
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "8"], "nothing is left of the third"
