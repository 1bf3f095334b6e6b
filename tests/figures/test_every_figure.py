"""Every figure fits its page, is not held by pyplot, and gives equal bytes for equal data."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from layer_redundancy.figures import saving, style

from . import frames
from .frames import CAPTION, FIGURES, drawn_boxes, score_frame

NAMED_ROWS = {
    "across_depths",
    "across_ranks",
    "order_agreement",
    "recipes",
    "selections",
    "difference_from_whole",
    "text_quality",
    "healed_capabilities",
    "rivals_at_ratio",
}  # whose y axis has names, not numbers


@pytest.mark.parametrize("blocks", [4, 32, 80])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_and_is_not_held_by_pyplot(name, blocks):
    before = dict(mpl.rcParams)
    figure = FIGURES[name](blocks)
    assert plt.get_fignums() == []
    boxes, page = drawn_boxes(figure)
    assert {k for k, v in before.items() if mpl.rcParams[k] != v} <= {"backend"}
    assert figure.get_size_inches()[0] == style.WIDTH
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= page.x1 + 1, "clipped at a side"
        assert box.y0 >= -1 and box.y1 <= page.y1 + 1, "clipped at head or foot"
    for axes in figure.axes:
        if axes.axison and axes.get_label() != "<colorbar>":
            assert axes.get_xlabel() or not axes.xaxis.get_tick_params().get("labelbottom", True), (
                "ticks without a label"
            )
            assert axes.get_ylabel() or axes.get_title("left") or name in NAMED_ROWS


@pytest.mark.parametrize("name", FIGURES)
def test_equal_data_give_equal_bytes(name, tmp_path, monkeypatch):
    frame = score_frame(6)
    figure = FIGURES[name](6)
    written = saving.save(figure, frame, tmp_path, name, CAPTION)
    assert [path.name for path in written] == [f"{name}.png", f"{name}.pdf", f"{name}.csv"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in saving.save(figure, frame, tmp_path, name, CAPTION)] == first, "saved again"
    for function in ("score_frame", "grid_frame", "inclusion_frame", "rank_frame", "curve_frame"):
        make = getattr(frames, function)
        monkeypatch.setattr(frames, function, lambda n, make=make: make(n).sample(frac=1, random_state=3))
    saving.save(FIGURES[name](6), frame, tmp_path, name, CAPTION)
    assert [path.read_bytes() for path in written] == first, "rows in another order"


@pytest.mark.parametrize("name", FIGURES)
def test_the_layouts_last_bits_are_not_kept(name):
    """They differ between processes, one time in ten, and a PDF has enough digits to show them."""
    figure = saving._laid_out(FIGURES[name](6), CAPTION)
    assert len(figure.axes)
    for axes in figure.axes:
        bounds = axes.get_position(original=True).bounds
        assert bounds == pytest.approx([round(value, 6) for value in bounds], abs=1e-12)
