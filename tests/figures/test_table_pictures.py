"""Tables come out in four forms and stay on their page."""

import numpy as np
import pandas as pd

from layer_redundancy.figures import table_pictures


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
    written = table_pictures.save_table(frame, tmp_path, "t", "some model")
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
    assert {path: path.read_bytes() for path in table_pictures.save_table(frame, tmp_path, "t", "some model")} == first


def test_a_wide_or_long_table_stays_on_its_page():
    wide = pd.DataFrame({f"benchmark_{i}": np.linspace(0.0, 99.9, 15) for i in range(18)})
    figure = table_pictures._table_figure(table_pictures._cells(wide), [True] * 18)
    figure.draw_without_rendering()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1
