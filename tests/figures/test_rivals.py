"""The figures of notebook 13 show what they are given, also where that is little."""

import itertools

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.figures import rivals as draw

from .frames import RIVALS, drawn_boxes, named_lines, rival_frames, rival_runs_frame, rival_shares_frame

NAMES = list(RIVALS.values())


def tick_labels(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def points(axes, label):
    """Places of the points of error bars of that name."""
    (container,) = [one for one in axes.containers if one.get_label() == label]
    return np.asarray(container.lines[0].get_xydata(), float)


def test_methods_stand_in_rows_the_best_above_with_a_panel_a_task():
    quality, accuracy = rival_frames()
    left, *tasks = draw.at_ratio(quality, accuracy, RIVALS).axes
    assert tick_labels(left) == NAMES and left.yaxis_inverted()
    np.testing.assert_allclose(points(left, "as it is, 95 %"), np.column_stack([quality["damage"], range(9)]))
    trained = points(left, "after training")
    np.testing.assert_allclose(trained, [[0.4, 0], [quality["damage"][3] / 2, 3]])
    bars = next(one for one in left.collections if one.get_label() == "least to most, by text")
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, quality[["least", "most"]])
    assert [axes.get_title("left") for axes in tasks] == ["agreement\n(n = 200)", "copying\n(n = 200)"]
    for axes in tasks:
        known = {line.get_gid(): line.get_xdata()[0] for line in axes.lines if line.get_gid()}
        assert known == {"dense": 0.9, "chance": 0.5} and axes.get_xlabel() == "accuracy"
        np.testing.assert_allclose(axes.containers[0].lines[0].get_xdata().astype(float), 0.9 - 0.05 * np.arange(1, 10))


FEW = {
    "one method": (1, 2, True),
    "one task": (9, 1, True),
    "no task": (9, 0, True),
    "none was trained": (9, 2, False),
    "one method alone": (1, 0, False),
}


@pytest.mark.parametrize(("methods", "tasks", "trained"), FEW.values(), ids=FEW)
def test_little_is_drawn_too_and_fits_its_page(methods, tasks, trained):
    quality, accuracy = rival_frames()
    quality = quality.head(methods)
    accuracy = accuracy[accuracy["task"].isin(["agreement", "copying"][:tasks])]
    accuracy = accuracy[accuracy["method"].isin(["whole model", *quality["method"]])]
    if not trained:
        quality = quality.assign(healed=np.nan, healed_low=np.nan, healed_high=np.nan)
    figure = draw.at_ratio(quality, accuracy, RIVALS)
    assert len(figure.axes) == 1 + tasks and tick_labels(figure.axes[0]) == NAMES[:methods]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("after training" in labels) == trained
    boxes, page = drawn_boxes(figure)
    assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1 for box in boxes)
    apart = sorted(boxes, key=lambda box: box.x0)
    assert all(one.x1 <= other.x0 + 1 for one, other in itertools.pairwise(apart)), "panels overlap"


def test_a_single_text_and_a_single_block_have_no_intervals_and_are_drawn():
    quality, accuracy = rival_frames()
    quality = quality.assign(low=np.nan, high=np.nan, least=quality["damage"], most=quality["damage"])
    left = draw.at_ratio(quality, accuracy, RIVALS).axes[0]
    np.testing.assert_allclose(points(left, "as it is, 95 %")[:, 0], quality["damage"])


@pytest.mark.parametrize(
    ("least", "healed", "scale"), [(0.1, 0.05, "log"), (0.1, -0.05, "linear"), (1.2, 0.9, "linear")]
)
def test_losses_far_apart_stand_on_a_logarithmic_axis_unless_some_are_gains(least, healed, scale):
    quality, accuracy = rival_frames()
    quality.loc[0, ["damage", "low", "high", "least", "most"]] = least * np.array([1, 0.9, 1.1, 0.95, 1.05])
    quality.loc[0, ["healed", "healed_low", "healed_high"]] = healed, healed - 0.01, healed + 0.01
    left = draw.at_ratio(quality, accuracy, RIVALS).axes[0]
    left.figure.draw_without_rendering()
    assert left.get_xscale() == scale
    low, high = left.get_xlim()
    assert low < min(least, healed) < high


def test_every_method_has_a_line_of_its_own_against_both_shares():
    table = rival_shares_frame()
    figure = draw.by_share(table.sample(frac=1, random_state=1), RIVALS)
    for axes, column in zip(figure.axes, ("removed", "removed_of_blocks"), strict=True):
        lines = named_lines(axes)
        assert set(lines) == set(NAMES) and axes.get_title("left").removeprefix("against ") in axes.get_xlabel()
        for method, part in table.groupby("method"):
            np.testing.assert_allclose(lines[RIVALS[method]].get_xydata(), part[[column, "damage"]])
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines.values()}
        assert len(looks) == len(RIVALS), "two look alike"
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(NAMES)


def test_one_method_of_one_size_is_a_point():
    figure = draw.by_share(rival_shares_frame().head(1), RIVALS)
    assert named_lines(figure.axes[0])["ShortGPT"].get_xydata().tolist() == [[10, 0.3]]
    figure.draw_without_rendering()


@pytest.mark.parametrize("lengths", [(2,), (2, 3)], ids=str)
def test_runs_have_a_panel_a_length_and_rings_around_those_that_rules_choose(lengths):
    table = rival_runs_frame(6, lengths)
    figure = draw.runs(table)
    assert [axes.get_title("left") for axes in figure.axes] == [f"runs of {n}" for n in lengths]
    for axes, length in zip(figure.axes, lengths, strict=True):
        lines, part = named_lines(axes), table[table["length"] == length]
        for kind, label in (("removed", "removed"), ("replaced", "a linear map in its place")):
            of_kind = part[part["kind"] == kind]
            np.testing.assert_allclose(lines[label].get_xydata(), of_kind[["start", "choosing"]])
        for rule in ("least Block Influence", "best replaced"):
            np.testing.assert_allclose(lines[rule].get_xydata(), [[2, 1.2]])
        sizes = [
            line.get_markersize() for name, line in lines.items() if name in ("least Block Influence", "best replaced")
        ]
        assert len(set(sizes)) == 2, "one ring around the other"


def test_a_single_run_of_each_length_is_drawn():
    figure = draw.runs(pd.concat([rival_runs_frame(3, (2,)), rival_runs_frame(4, (3,))]))
    figure.draw_without_rendering()
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks())
