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

from layer_redundancy import plots
from layer_redundancy.errors import StudyError

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


FIGURES = {
    "removal_order": lambda n: plots.removal_order(score_frame(n), order_of(score_frame(n))),
    "importance_metrics": lambda n: plots.importance_metrics(metric_frame(n)),
    "block_influence_geometry": lambda n: plots.block_influence_geometry(score_frame(n)),
    "angular_grid": lambda n: plots.angular_grid(grid_frame(n)),
    "order_stability": lambda n: plots.order_stability(inclusion_frame(n), rank_frame(n)),
    "rank_intervals": lambda n: plots.rank_intervals(rank_frame(n)),
    "speed_ratios": lambda n: plots.speed_ratios(ratio_frame(min(n, 10))),
    "single_layer_removal": lambda n: plots.single_layer_removal(*removal_frames(n)),
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
    for function in ("score_frame", "grid_frame", "inclusion_frame", "rank_frame"):
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
    from layer_redundancy.importance import MEASURES

    assert {name: first for name, (_, _, first) in plots.METRICS.items()} == {
        name: measure.removed_first for name, measure in MEASURES.items()
    }
