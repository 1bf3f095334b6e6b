"""The figures of notebook 07 show what they are given."""

import pandas as pd

from layer_redundancy.figures import quantization


def test_size_against_quality_marks_what_no_other_mix_beats():
    frame = pd.DataFrame({"weights": ["full precision", "full precision", "GPTQ, 4 bits", "GPTQ, 4 bits"]})
    frame = frame.assign(count=[0, 1, 0, 1], megabytes=[100.0, 90, 30, 25], perplexity=[20.0, 40, 21, 50])
    frame = frame.assign(low=frame["perplexity"], high=frame["perplexity"], task=None)
    axes = quantization.size_against_quality(frame, labelled=(0, 1)).axes[0]
    (front,) = [line for line in axes.lines if line.get_label() == "best at that size"]
    assert list(front.get_xdata()) == [25, 30, 100] and list(front.get_ydata()) == [50, 21, 20]
    assert sorted(text.get_text() for text in axes.texts) == ["dense", "dense", "−1", "−1"]
