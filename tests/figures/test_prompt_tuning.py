"""The figures of notebook 12 show what they are given."""

from layer_redundancy.figures import prompt_tuning as draw

from .frames import named_lines, tuning_frames


def test_accuracies_stand_at_whole_numbers_of_blocks_with_their_baselines():
    rows, levels, _ = tuning_frames(8)
    figure = draw.accuracy_by_kept_blocks(rows, levels)
    assert [axes.get_title("left") for axes in figure.axes] == ["amazon reviews", "mean of the data sets"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2", "8"]
    assert {"untuned", "prompt tuning", "fine-tuning", "chance", "commonest label"} <= set(named_lines(figure.axes[0]))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-1] == "95 % interval; upright: range of 5 seeds, n=300 texts each"


def test_costs_are_drawn_from_nothing():
    figure = draw.tuning_costs(tuning_frames(8)[2])
    assert len(figure.axes) == 3 and all(axes.get_ylim()[0] == axes.get_xlim()[0] == 0 for axes in figure.axes)
