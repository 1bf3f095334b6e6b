"""Figures show what the frames say, for small and large models, and files come out whole and byte for byte the same."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures import plots

CAPTION = "a model at revision 12e5678, bfloat16, 32 x 512 tokens of text $x_1$; " * 8


def score_frame(n: int) -> pd.DataFrame:
    """Scores shaped like a real model's: the ends influential, the middle not, no two equal."""
    block = np.arange(n)
    score = 0.02 + 0.6 * ((block - 0.6 * n) / n) ** 2 + 1e-4 * block
    return pd.DataFrame({"block": block, "score": score, "low": 0.9 * score, "high": 1.1 * score})


def order_of(scores: pd.DataFrame) -> list[int]:
    return scores.sort_values("score")["block"].tolist()


def metric_frame(n: int) -> pd.DataFrame:
    parts = []
    for metric in plots.METRICS:
        for token, factor in (("included", 1.0), ("excluded", 1.2)):
            part = score_frame(n).assign(metric=metric, first_token=token)
            if metric in ("sequential", "reverse_order"):
                part = part.assign(score=-part["block"], low=np.nan, high=np.nan)
            else:
                part[["score", "low", "high"]] *= factor
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def grid_frame(n: int) -> pd.DataFrame:
    rows = [(k, start, 0.01 * k + 0.001 * abs(start - 1)) for k in range(1, n + 1) for start in range(n - k + 1)]
    return pd.DataFrame(rows, columns=["n", "start", "distance"])


def inclusion_frame(n: int) -> pd.DataFrame:
    """Block n - 1 is removed first, block 0 last."""
    rows = [(block, k, float(n - block <= k)) for block in range(n) for k in range(1, n + 1)]
    return pd.DataFrame(rows, columns=["block", "k", "probability"])


def rank_frame(n: int) -> pd.DataFrame:
    rank = n - np.arange(n)
    return pd.DataFrame({"block": np.arange(n), "rank": rank, "low": rank - 0.5, "high": rank + 0.5})


def removal_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    block = np.arange(n)
    perplexity = pd.DataFrame({"block": block, "perplexity": 25.0 + 1000.0 * (block == 0)})
    perplexity = perplexity.assign(low=perplexity["perplexity"] * 0.9, high=perplexity["perplexity"] * 1.1)
    one = pd.DataFrame({"block": block, "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 100, "chance": 0.25})
    accuracy = pd.concat(
        [one.assign(task="passage_continuation", metric="acc_norm"), one.assign(task="mmlu_dev", metric="acc", n=80)]
    )
    dense = [{"block": None, "perplexity": 23.4}]
    for task, metric in (("passage_continuation", "acc_norm"), ("mmlu_dev", "acc")):
        dense.append({"block": None, "task": task, "metric": metric, "accuracy": 0.65})
    return perplexity, accuracy, pd.DataFrame(dense)


def ratio_frame(rows: int) -> pd.DataFrame:
    ratios = np.geomspace(0.9, 14, rows)
    columns = {"case": list("abcd" * rows)[:rows], "plan": "x", "peer": "an lm-eval (HFLM) evaluation a variant"}
    return pd.DataFrame(
        {"ratio": ratios, "ratio_low": ratios / 1.1, "ratio_high": ratios * 1.2, "target": 1.5, **columns}
    )


def curve_frame(n: int) -> pd.DataFrame:
    parts = []
    for removed in (1, 2, 4):
        for place, reading in enumerate(("teacher-forced", "own text", "free-running", "not yet diverged")):
            agreement = (0.9 - 0.02 * removed) ** (np.arange(n) * place)
            part = {"position": np.arange(1, n + 1), "agreement": agreement, "low": 0.9 * agreement, "high": agreement}
            parts.append(pd.DataFrame({"removed": removed, "reading": reading, "n": 24, **part}))
        parts.append(parts[-1].assign(reading="independent errors"))
    return pd.concat(parts, ignore_index=True)


def generation_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    removed = np.arange(n)
    one = pd.DataFrame({"removed": removed.astype(float), "value": 1 / (1 + removed), "n": 24})
    values = [one.assign(measure=m) for m in ("teacher-forced", "own text", "free-running", "repetition")]
    values += [one.assign(measure="perplexity", value=3.0 + 10 * removed)]
    values += [
        pd.DataFrame({"removed": [np.nan] * 2, "measure": ["repetition", "perplexity"], "value": [0.03, 20.0], "n": 24})
    ]
    values = pd.concat(values, ignore_index=True)
    kept = one.rename(columns={"value": "kept"}).assign(low=0.0, high=1.0)
    tasks = (("free-running", "generative"), ("gsm8k_cot", "generative"), ("passage_continuation", "multiple choice"))
    kept = pd.concat([kept.assign(task=task, kind=kind) for task, kind in tasks])
    return values.assign(low=0.9 * values["value"], high=1.1 * values["value"]), kept, 0.013


def ratio_curves(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Perplexity and accuracy at n depths, cliffs, published values."""
    perplexity, accuracy, _ = removal_frames(n)
    share = {"share": lambda frame: 100 * frame["block"] / n}
    perplexity["perplexity"] = 10.0 ** np.linspace(1, 9, n)  # the last ones are off the scale
    cliffs = pd.DataFrame({"task": ["mmlu_dev"], "share": 20.0, "share_low": 10.0, "share_high": 30.0, "block": 3})
    reported = pd.DataFrame({"label": ["MMLU, paper, A", "MMLU, paper, A"], "share": [0, 25.0], "accuracy": [0.5, 0.4]})
    return perplexity.assign(**share), accuracy.assign(**share), cliffs, reported


def metric_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    metrics = ("block_influence", "relative_magnitude", "hidden_norm", "sequential", "reverse_order", "angular_blocks")
    perplexity, accuracy, _, _ = ratio_curves(n)
    accuracy = accuracy.rename(columns={"metric": "metric_name"}).assign(text_low=0.45, text_high=0.55)
    both = []
    for frame in (perplexity, accuracy):
        both.append(pd.concat([frame.assign(metric=metric) for metric in (*metrics, "greedy")], ignore_index=True))
    return both[0], both[1]


def correlation_frame() -> pd.DataFrame:
    names = ["block_influence", "relative_magnitude", "greedy"]
    return pd.DataFrame([(a, b, 1.0 if a == b else -0.3) for a in names for b in names], columns=["a", "b", "tau"])


def head_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    pairs = [(block, head) for block in range(n) for head in range(6)]
    single = pd.DataFrame(pairs, columns=["block", "head"]).assign(measurement="perplexity")
    single["change"] = 0.01 * single["head"] + np.where(single["block"] == 0, 2.0, 0)
    both = pd.concat([single, single.assign(measurement="mmlu_dev", change=-0.1)], ignore_index=True).assign(n=3)
    one = pd.DataFrame({"head": range(6), "value": 20.0, "low": 18.0, "high": 25.0, "dense": 15.0})
    other = one.assign(measurement="mmlu_dev", value=0.4, low=0.3, high=0.5, dense=0.5, n=40.0, chance=0.25)
    return both, pd.concat([one.assign(measurement="perplexity"), other], ignore_index=True)


def damage_frame(n: int) -> pd.DataFrame:
    kinds = {
        "one block (n=9)": np.linspace(0.05, 7, n),
        "48 heads": np.linspace(0.5, 2, n),
        "head": np.linspace(-1, 1, n),
    }
    return pd.concat([pd.DataFrame({"what": what, "damage": d}) for what, d in kinds.items()], ignore_index=True)


def method_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    one = pd.DataFrame({"method": ["Dense", "ShortGPT"], "accuracy": [0.6, 0.4], "low": 0.3, "high": 0.7, "n": 40})
    both = pd.concat([one.assign(task="mmlu_dev", chance=0.25), one.assign(task="mmlu_dev_fewshot", chance=0.25)])
    reported = pd.DataFrame({"method": ["Dense", "LaCo"], "label": "MMLU, paper, A", "accuracy": [0.55, 0.3]})
    return both, reported


def prefill_frame() -> pd.DataFrame:
    rows = [(m, n, side, 10.0**k, 9.0**k, 11.0**k) for m in "AB" for n in (512, 2048) for k, side in enumerate("xyz")]
    return pd.DataFrame(rows, columns=["model", "prompt_tokens", "side", "tokens_per_second", "low", "high"])


def beside_frames(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two models, one of them twice as deep."""
    curves, accuracies = [], []
    for model, blocks in (("recurrent", n), ("transformer", 2 * n)):
        _, accuracy = metric_frames(blocks)
        accuracy = accuracy[accuracy["task"] == "mmlu_dev"].assign(model=model)
        bits = 1.0 + accuracy["share"] / 20
        accuracies.append(accuracy)
        curves.append(accuracy.assign(bits_per_byte=bits, low=0.9 * bits, high=1.1 * bits))
    return pd.concat(curves, ignore_index=True), pd.concat(accuracies, ignore_index=True)


def training_frame(n: int) -> pd.DataFrame:
    tokens = 1e5 * np.arange(1, n + 1)
    bits = np.where(np.arange(n) % 2, 2.0, np.nan)
    return pd.DataFrame({"tokens": tokens, "loss": 5 - tokens / 1e7, "bits_per_byte": bits})


PRECISIONS = ("full precision", "GPTQ, 8 bits", "GPTQ, 4 bits", "GPTQ, 3 bits")


def size_frame(n: int) -> pd.DataFrame:
    perplexity, accuracy, _, _ = ratio_curves(n)
    parts = []
    for place, name in enumerate(PRECISIONS):
        for frame in (perplexity, accuracy.rename(columns={"metric": "metric_name"})):
            megabytes = 60 + (200 - 50 * place) * (1 - frame["share"] / 100)
            parts.append(frame.assign(weights=name, count=frame["block"], megabytes=megabytes))
    return pd.concat(parts, ignore_index=True)


def interaction_frame(n: int) -> pd.DataFrame:
    share = 100 * np.arange(n) / n
    one = pd.DataFrame({"share": share, "sum": 0.1 * share, "both": 0.09 * share, "interaction": -0.01 * share})
    one = one.assign(low=one["interaction"] - 0.1, high=one["interaction"] + 0.1)
    return pd.concat([one.assign(weights=name) for name in PRECISIONS[1:]], ignore_index=True)


def precision_frame(n: int) -> pd.DataFrame:
    return pd.concat([score_frame(n).assign(weights=name) for name in PRECISIONS], ignore_index=True)


FIGURES = {
    "removal_order": lambda n: plots.removal_order(score_frame(n), order_of(score_frame(n))),
    "importance_metrics": lambda n: plots.importance_metrics(metric_frame(n)),
    "block_influence_geometry": lambda n: plots.block_influence_geometry(score_frame(n)),
    "angular_grid": lambda n: plots.angular_grid(grid_frame(n)),
    "order_stability": lambda n: plots.order_stability(inclusion_frame(n), rank_frame(n)),
    "rank_intervals": lambda n: plots.rank_intervals(rank_frame(n)),
    "speed_ratios": lambda n: plots.speed_ratios(ratio_frame(min(n, 10))),
    "single_layer_removal": lambda n: plots.single_layer_removal(*removal_frames(n)),
    "prune_ratio": lambda n: plots.prune_ratio(*ratio_curves(n)),
    "metric_curves": lambda n: plots.metric_curves(*metric_frames(n)),
    "order_correlation": lambda n: plots.order_correlation(correlation_frame()),
    "head_removal": lambda n: plots.head_removal(*head_frames(n)),
    "head_map": lambda n: plots.head_map(head_frames(n)[0].query("measurement == 'perplexity'")),
    "damage_distributions": lambda n: plots.damage_distributions(damage_frame(n)),
    "method_accuracies": lambda n: plots.method_accuracies(*method_frames()),
    "generation_by_position": lambda n: plots.generation_by_position(curve_frame(n)),
    "prefill_rates": lambda n: plots.prefill_rates(prefill_frame()),
    "removal_beside": lambda n: plots.removal_beside(*beside_frames(n)),
    "training_curve": lambda n: plots.training_curve(training_frame(n), {"xz -9": 2.4, "order-5 n-gram": 2.3}),
    "generation_by_depth": lambda n: plots.generation_by_depth(*generation_frames(n)),
    "size_against_quality": lambda n: plots.size_against_quality(size_frame(n), labelled=(0, 2)),
    "damage_interaction": lambda n: plots.damage_interaction(interaction_frame(n)),
    "influence_by_precision": lambda n: plots.influence_by_precision(precision_frame(n)),
}


def drawn_boxes(figure: plt.Figure) -> tuple[list, object]:
    """Boxes in pixels of every axes with its labels, and of the figure."""
    figure.draw_without_rendering()
    return [axes.get_tightbbox() for axes in figure.axes], figure.bbox


@pytest.mark.parametrize("blocks", [4, 32, 80])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_and_is_not_held_by_pyplot(name, blocks):
    before = dict(mpl.rcParams)
    figure = FIGURES[name](blocks)
    assert plt.get_fignums() == []
    boxes, page = drawn_boxes(figure)
    assert {k for k, v in before.items() if mpl.rcParams[k] != v} <= {"backend"}
    assert figure.get_size_inches()[0] == plots.WIDTH
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= page.x1 + 1, "clipped at a side"
        assert box.y0 >= -1 and box.y1 <= page.y1 + 1, "clipped at head or foot"
    for axes in figure.axes:
        if axes.axison and axes.get_label() != "<colorbar>":
            assert axes.get_xlabel() or not axes.xaxis.get_tick_params().get("labelbottom", True), (
                "ticks without a label"
            )
            assert axes.get_ylabel() or axes.get_title("left")


def test_size_against_quality_marks_what_no_other_mix_beats():
    frame = pd.DataFrame({"weights": ["full precision", "full precision", "GPTQ, 4 bits", "GPTQ, 4 bits"]})
    frame = frame.assign(count=[0, 1, 0, 1], megabytes=[100.0, 90, 30, 25], perplexity=[20.0, 40, 21, 50])
    frame = frame.assign(low=frame["perplexity"], high=frame["perplexity"], task=None)
    axes = plots.size_against_quality(frame, labelled=(0, 1)).axes[0]
    (front,) = [line for line in axes.lines if line.get_label() == "best at that size"]
    assert list(front.get_xdata()) == [25, 30, 100] and list(front.get_ydata()) == [50, 21, 20]
    assert sorted(text.get_text() for text in axes.texts) == ["dense", "dense", "−1", "−1"]


def test_removal_order_labels_each_block_with_its_place():
    scores = score_frame(12)
    order = order_of(scores)
    axes = plots.removal_order(scores, order, highlight=3).axes[0]
    assert axes.get_xlabel() == "block index (0 = first)"
    assert axes.get_ylabel().startswith("Block Influence (1 - cosine)")
    labels = {int(text.xy[0]): (text.get_text(), to_hex(text.get_color()).upper()) for text in axes.texts}
    assert {block: int(place) for block, (place, _) in labels.items()} == {b: i for i, b in enumerate(order, start=1)}
    assert {block for block, (_, colour) in labels.items() if colour == plots.VERMILLION} == set(order[:3])
    partial = plots.removal_order(scores, order[:3], highlight=3).axes[0]
    assert sorted(text.get_text() for text in partial.texts) == ["1", "2", "3"]


def test_removal_order_needs_no_interval_and_survives_missing_scores():
    scores = score_frame(6)[["block", "score"]]
    scores.loc[2, "score"] = np.nan
    figure = plots.removal_order(scores, [3, 4])
    assert "95 % interval" not in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_importance_metrics_draws_all_measures_and_names_the_first_removed():
    figure = plots.importance_metrics(metric_frame(10))
    titles = [axes.get_title("left") for axes in figure.axes]
    assert len(titles) == 6
    least = order_of(score_frame(10))[0]
    assert titles[0] == f"Block Influence\nfirst removed: smallest, block {least}"
    assert titles[2] == "Hidden-state norm\nfirst removed: largest, block 0"
    assert titles[3] == "Sequential\nfirst removed: largest, block 0"
    assert titles[4] == "Reverse order\nfirst removed: smallest, block 9"
    lines = [sum(len(line.get_xdata()) == 10 for line in axes.lines) for axes in figure.axes]
    assert lines == [2, 2, 2, 1, 1, 2], "the second line is drawn where the first token changes something"
    assert "without the first token" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_importance_metrics_without_the_second_line():
    frame = metric_frame(5)
    figure = plots.importance_metrics(frame[(frame["first_token"] == "included") & (frame["metric"] != "sequential")])
    assert len(figure.axes) == 5
    assert "without the first token" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_ties_go_to_the_deeper_block():
    frame = pd.DataFrame({"metric": "own", "first_token": "included", "block": range(4), "score": [2.0, 1.0, 1.0, 3.0]})
    assert plots.importance_metrics(frame).axes[0].get_title("left").endswith("smallest, block 2")


@pytest.mark.parametrize("scores", [[0.1, 0.5, 0.3], [0.0, 0.0, 0.0], [0.01, 1.4, 2.0]])
def test_geometry_draws_the_score_as_one_minus_cosine(scores):
    figure = plots.block_influence_geometry(pd.DataFrame({"block": [5, 6, 7], "score": scores}))
    panels = figure.axes[1:]
    assert len(panels) == 3
    for axes, score in zip(panels, sorted(scores), strict=True):
        (stretch,) = [line for line in axes.lines if line.get_gid() == "score"]
        start, end = stretch.get_xdata()
        assert end - start == pytest.approx(score)
        assert any(f"= {score:.3g}" in text.get_text() for text in axes.texts)


def test_angular_grid_marks_the_best_start_of_each_n():
    axes = plots.angular_grid(grid_frame(6)).axes[0]
    (marks,) = axes.lines
    # start 1 is best while it exists; of n = 6 there is only start 0. n = 6 is drawn at the top.
    assert dict(zip(6 - (marks.get_ydata() - 0.5), marks.get_xdata() - 0.5, strict=True)) == {
        1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 0,
    }  # fmt: skip


def test_angular_grid_refuses_a_cell_given_twice():
    with pytest.raises(ValueError, match="duplicate"):
        plots.angular_grid(pd.concat([grid_frame(3)] * 2))


def test_order_stability_sorts_rows_by_the_order():
    for ranks in (rank_frame(5), None):
        figure = plots.order_stability(inclusion_frame(5), ranks)
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["4", "3", "2", "1", "0"]
    cells = figure.axes[0].collections[0].get_array().reshape(5, 5)
    assert np.array_equal(cells, np.triu(np.ones((5, 5)))), "row r is among the first k from k = r + 1 on"
    assert figure.axes[0].collections[0].get_clim() == (0, 1)


def test_single_layer_removal_draws_series_dense_and_chance():
    top, bottom = plots.single_layer_removal(*removal_frames(7)).axes
    assert top.get_yscale() == "log"
    assert bottom.get_yscale() == "linear"
    assert top.get_shared_x_axes().joined(top, bottom)
    assert bottom.get_xlabel() == "removed block (0 = first)"
    legend = [text.get_text() for text in bottom.get_legend().get_texts()]
    assert legend == [
        "passage_continuation, acc_norm, n=100",
        "mmlu_dev, acc, n=80",
        "dense model",
        "chance",
    ]
    assert len(bottom.containers) == 2
    chance = [line for line in bottom.lines if line.get_gid() == "chance"]
    assert [line.get_ydata()[0] for line in chance] == [0.25, 0.25]
    assert all(line.get_linestyle() != "-" for line in chance)
    assert [line.get_ydata()[0] for line in bottom.lines if line.get_gid() == "dense"] == [0.65, 0.65]
    assert [line.get_ydata()[0] for line in top.lines if line.get_gid() == "dense"] == [23.4]
    assert "dense model: 23.4" in [text.get_text() for text in top.get_legend().get_texts()]


def test_single_layer_removal_shows_values_that_are_not_finite():
    perplexity, accuracy, _ = removal_frames(5)
    perplexity.loc[[1, 3], "perplexity"] = [np.inf, np.nan]
    top, _ = plots.single_layer_removal(perplexity, accuracy).axes
    (marks,) = [line for line in top.lines if line.get_label() == "not finite"]
    assert list(marks.get_xdata()) == [1, 3]


def test_prune_ratio_marks_the_cliff_and_what_is_off_the_scale():
    perplexity, accuracy, cliffs, reported = ratio_curves(9)
    top, bottom = plots.prune_ratio(perplexity, accuracy, cliffs, reported).axes
    assert top.get_ylim()[1] == plots.PERPLEXITY_LIMIT
    (beyond,) = [line for line in top.lines if line.get_label() == "above 10,000,000"]
    expected = perplexity["share"][perplexity["perplexity"] > 1e7]
    assert list(beyond.get_xdata()) == pytest.approx(list(expected)) and len(expected)
    assert [line.get_xdata()[0] for line in bottom.lines if line.get_gid() == "cliff"] == [20.0]
    assert [text.get_text() for text in bottom.texts] == ["cliff: block 3"]
    (hollow,) = [line for line in bottom.lines if line.get_label() == "MMLU, paper, A"]
    assert list(hollow.get_ydata()) == [0.5, 0.4] and hollow.get_markerfacecolor() == "white"


def test_metric_curves_has_a_panel_a_task_and_a_line_a_measure():
    perplexity, accuracy = metric_frames(6)
    top, first, second = plots.metric_curves(perplexity, accuracy).axes
    assert {"block_influence", "greedy", "angular_blocks"} <= {line.get_label() for line in top.lines}
    assert len(first.containers) == len(second.containers) == 7
    assert first.get_legend().get_texts()[1].get_text() == "passage_continuation, acc_norm, n=100: 95 % interval"


def test_head_removal_draws_every_point_and_the_means():
    axes = plots.head_removal(*head_frames(5)).axes
    assert len(axes) == 4
    points = axes[1].collections[0].get_offsets()
    assert len(points) == 30
    (means,) = [line for line in axes[3].lines if line.get_marker() == "_"]
    assert list(means.get_ydata()) == pytest.approx([-0.1] * 6)


def test_damage_distributions_draw_shares():
    (axes,) = plots.damage_distributions(damage_frame(9)).axes
    (blocks,) = [line for line in axes.lines if line.get_label() == "one block (n=9)"]
    assert blocks.get_ydata()[-1] == 1 and blocks.get_xdata()[0] == 0.05
    assert len([line for line in axes.lines if line.get_gid() == "median"]) == 3


def test_method_accuracies_puts_reported_methods_beside_measured_ones():
    (axes,) = plots.method_accuracies(*method_frames()).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Dense", "ShortGPT", "LaCo"]
    (hollow,) = [line for line in axes.lines if line.get_label() == "MMLU, paper, A"]
    assert list(hollow.get_ydata()) == [0.55, 0.3]
    assert [t.get_text() for t in axes.get_legend().get_texts()].count("chance") == 1


def test_generation_by_position_has_a_column_a_depth():
    curves = curve_frame(8)
    figure = plots.generation_by_position(curves)
    assert len(figure.axes) == 6
    assert [axes.get_title("left") for axes in figure.axes[:3]] == [
        "1 block removed", "2 blocks removed", "4 blocks removed"]  # fmt: skip
    together = curves[(curves["removed"] == 4) & (curves["reading"] == "not yet diverged")]["agreement"].sum()
    assert figure.axes[5].get_title("left") == f"{together:.1f} tokens before they part"
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3, 2, 2, 2]
    part = curves[(curves["removed"] == 2) & (curves["reading"] == "own text")]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), part["agreement"])
    assert "95 % interval, n=24 prompts" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_generation_by_depth_draws_the_real_text_chance_and_every_task():
    values, kept, chance = generation_frames(7)
    top, right, left, bottom = plots.generation_by_depth(values, kept, chance).axes
    assert [len(top.lines), len(right.containers)] == [4, 3]
    assert [line.get_ydata()[0] for line in top.lines if line.get_gid() == "chance"] == [chance]
    assert [line.get_ydata()[0] for axes in (left, bottom) for line in axes.lines if line.get_gid() == "text"] == [
        0.03, 20.0]  # fmt: skip
    assert bottom.get_yscale() == "log" and left.get_yscale() == "linear"
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert {"agreement, free-running, n=24", "gsm8k_cot, n=24", "passage_continuation, n=24", "chance"} == set(legend)


def test_legends_lie_outside_the_data():
    for axes in plots.single_layer_removal(*removal_frames(30)).axes:
        axes.figure.draw_without_rendering()
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_a_thing_has_one_look_and_others_take_free_ones():
    names = ["mmlu_dev", "arc_easy", "passage_continuation", "piqa"]
    looks = [plots.look(name, names) for name in names]
    assert len({colour for colour, _ in looks}) == 4
    assert plots.look("mmlu_dev") == looks[0]
    assert len({plots.look(metric) for metric in plots.METRICS}) == len(plots.METRICS)


@pytest.mark.parametrize("name", FIGURES)
def test_equal_data_give_equal_bytes(name, tmp_path, monkeypatch):
    frame = score_frame(6)
    figure = FIGURES[name](6)
    written = plots.save(figure, frame, tmp_path, name, CAPTION)
    assert [path.name for path in written] == [f"{name}.png", f"{name}.pdf", f"{name}.csv"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in plots.save(figure, frame, tmp_path, name, CAPTION)] == first, "saved again"
    for function in ("score_frame", "grid_frame", "inclusion_frame", "rank_frame", "curve_frame"):
        make = globals()[function]
        monkeypatch.setitem(globals(), function, lambda n, make=make: make(n).sample(frac=1, random_state=3))
    plots.save(FIGURES[name](6), frame, tmp_path, name, CAPTION)
    assert [path.read_bytes() for path in written] == first, "rows in another order"


def saved_figure(draw, monkeypatch):
    """The copy of a figure that is written."""
    saved, savefig = [], plt.Figure.savefig
    with monkeypatch.context() as m:
        m.setattr(plt.Figure, "savefig", lambda self, *a, **k: (saved.append(self), savefig(self, *a, **k)))
        plots._render(draw, CAPTION)
    return saved[0]


@pytest.mark.parametrize("name", FIGURES)
def test_the_layouts_last_bits_are_not_kept(name, monkeypatch):
    """They differ between processes, one time in ten, and a PDF has enough digits to show them."""
    figure = saved_figure(FIGURES[name](6), monkeypatch)
    assert len(figure.axes)
    for axes in figure.axes:
        bounds = axes.get_position(original=True).bounds
        assert bounds == pytest.approx([round(value, 6) for value in bounds], abs=1e-12)


def test_another_process_writes_the_same_bytes_and_loads_no_model_library(tmp_path):
    code = """
import sys
from pathlib import Path
import pandas as pd
from layer_redundancy import plots
data = pd.DataFrame({"block": range(5), "score": [0.5, 0.1, 0.02, 0.03, 0.4]})
plots.save(plots.removal_order(data, [2, 3, 1]), data, Path(sys.argv[1]), "x", "caption")
assert not {"torch", "transformers"} & set(sys.modules)
"""
    for seed in ("1", "2"):  # of string hashes, hence of the order of sets
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env=environment)
    for name in ("x.png", "x.pdf", "x.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_callers_settings_do_not_reach_the_figure():
    frame = score_frame(5)
    plain = plots._render(plots.removal_order(frame, [2]), CAPTION)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.transparent": True}):
        assert plots._render(plots.removal_order(frame, [2]), CAPTION) == plain


def test_the_caption_lies_beneath_the_axes_inside_the_page(monkeypatch):
    figure = saved_figure(plots.single_layer_removal(*removal_frames(30)), monkeypatch)
    boxes, page = drawn_boxes(figure)
    (caption,) = [text for text in figure.texts if text.get_gid() == "caption"]
    box = caption.get_window_extent()
    assert caption.get_text().replace("\n", " ") == CAPTION.strip()
    assert caption.get_text().count("\n") >= 2
    assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0
    assert box.y1 < min(axes.y0 for axes in boxes)


def test_csv_has_fixed_digits_and_line_ends(tmp_path):
    frame = pd.DataFrame({"block": [0, 1], "score": [1 / 3, np.nan]})
    *_, csv = plots.save(plots.rank_intervals(rank_frame(3)), frame, tmp_path, "x", "")
    assert csv.read_bytes() == b"block,score\n0,0.33333333\n1,\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StudyError, match=r"cannot write .*file.sub.x.png") as error:
        plots.save(plots.rank_intervals(rank_frame(3)), rank_frame(3), tmp_path / "file" / "sub", "x", "")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    figure, frame = plots.rank_intervals(rank_frame(3)), rank_frame(3)
    old = {path: path.read_bytes() for path in plots.save(figure, frame, tmp_path, "x", "old")}
    write = Path.write_bytes

    def fills_up(path: Path, content: bytes) -> int:
        if ".pdf" in path.name:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.raises(StudyError, match="No space left on device"):
        plots.save(figure, frame, tmp_path, "x", "new")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_save_table_in_four_forms(tmp_path):
    frame = pd.DataFrame(
        {
            "model": ["a|b", "c"],
            "removed_layers": [(27, 26), (1,)],
            "perplexity": [23.456789, 18234.5],
            "paper": [np.nan, -0.00001],
            "n": [100, 80],
        }
    )
    written = plots.save_table(frame, tmp_path, "t", "some model")
    assert sorted(path.suffix for path in written) == [".csv", ".md", ".pdf", ".png"]
    assert (tmp_path / "t.md").read_text().splitlines() == [
        "| model | removed layers | perplexity | paper | n |",
        "| :-- | :-- | --: | --: | --: |",
        "| a\\|b | 27, 26 | 23 | – | 100 |",
        "| c | 1 | 18,234 | -0.000010 | 80 |",
        "",
        "*some model*",
    ]
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == 'a|b,"(27, 26)",23.456789,,100'
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in plots.save_table(frame, tmp_path, "t", "some model")} == first


def test_a_wide_or_long_table_stays_on_its_page():
    wide = pd.DataFrame({f"benchmark_{i}": np.linspace(0.0, 99.9, 15) for i in range(18)})
    figure = plots._table_figure(plots._cells(wide), [True] * 18)
    figure.draw_without_rendering()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_the_directions_drawn_are_those_of_the_measures():
    from layer_redundancy.measures.importance import MEASURES

    assert {name: first for name, (_, _, first) in plots.METRICS.items()} == {
        name: measure.removed_first for name, measure in MEASURES.items()
    }


def test_prefill_rates_gives_each_model_a_panel_and_each_side_a_bar():
    left, right = plots.prefill_rates(prefill_frame()).axes
    assert (left.get_title("left"), right.get_title("left")) == ("A", "B")
    assert (left.get_ylabel(), right.get_ylabel()) == ("tokens a second", "")
    heights = [sorted(bar.get_height() for bar in axes.patches) for axes in (left, right)]
    assert heights == [[1, 1, 10, 10, 100, 100]] * 2
    assert [text.get_text() for text in left.texts] == ["1", "1", "10", "10", "100", "100"]


def test_removal_beside_draws_each_model_with_its_dense_level_and_chance():
    figure = plots.removal_beside(*beside_frames(5))
    top_left, top_right, bottom_left, bottom_right = figure.axes
    assert [top_left.get_title("left"), top_right.get_title("left")] == ["recurrent", "transformer"]
    assert top_left.get_yscale() == "log" and top_left.get_shared_y_axes().joined(top_left, top_right)
    for axes in (bottom_left, bottom_right):
        assert [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "chance"] == [0.25]
        assert "n=80" in axes.get_title("left")
    assert len(top_left.containers) == len(bottom_right.containers) == 7
    drawn = [len(axes.containers[0].lines[0].get_xdata()) for axes in (top_left, top_right)]
    assert drawn == [5, 10]


def test_training_curve_draws_what_must_be_beaten():
    left, right = plots.training_curve(training_frame(8), {"xz -9": 2.4, "order-5 n-gram": 2.3}).axes
    assert len(left.lines[0].get_xdata()) == 8 and len(right.lines[0].get_xdata()) == 4
    assert [line.get_ydata()[0] for line in right.lines[1:]] == [2.4, 2.3]
    assert [text.get_text() for text in right.get_legend().get_texts()][1:] == ["xz -9", "order-5 n-gram"]


def test_the_papers_blocks_are_ringed_where_it_has_the_model():
    scores = pd.DataFrame({"block": range(8), "score": np.linspace(0.1, 0.8, 8)})
    (ring,) = [
        line
        for line in plots.removal_order(scores, range(8), reported=(6, 5)).axes[0].lines
        if line.get_label() == "the 2 removed in the paper"
    ]
    assert list(ring.get_xdata()) == [5, 6] and ring.get_markerfacecolor() == "none"
    assert not any("paper" in line.get_label() for line in plots.removal_order(scores, range(8)).axes[0].lines)
