"""Figures come out whole, with their captions, and byte for byte the same."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core.errors import StudyError
from layer_redundancy.figures import layer_importance, saving, single_layer_removal

from .frames import CAPTION, drawn_boxes, rank_frame, removal_frames, score_frame


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_and_loads_no_model_library(tmp_path):
    code = """
import sys
from pathlib import Path
import pandas as pd
from layer_redundancy.figures import layer_importance, saving
data = pd.DataFrame({"block": range(5), "score": [0.5, 0.1, 0.02, 0.03, 0.4]})
saving.save(layer_importance.removal_order(data, [2, 3, 1]), data, Path(sys.argv[1]), "x", "caption")
assert not {"torch", "transformers"} & set(sys.modules)
"""
    for seed in ("1", "2"):  # of string hashes, hence of the order of sets
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env=environment)
    for name in ("x.png", "x.pdf", "x.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_caption_lies_beneath_the_axes_inside_the_page():
    figure = saving._laid_out(single_layer_removal.single_layer_removal(*removal_frames(30)), CAPTION)
    boxes, page = drawn_boxes(figure)
    (caption,) = [text for text in figure.texts if text.get_gid() == "caption"]
    box = caption.get_window_extent()
    assert caption.get_text().replace("\n", " ") == CAPTION.strip()
    assert caption.get_text().count("\n") >= 2
    assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0
    assert box.y1 < min(axes.y0 for axes in boxes)


def test_csv_has_fixed_digits_and_line_ends(tmp_path):
    frame = pd.DataFrame({"block": [0, 1], "score": [1 / 3, np.nan]})
    *_, csv = saving.save(layer_importance.removal_order(score_frame(3), [1]), frame, tmp_path, "x", "")
    assert csv.read_bytes() == b"block,score\n0,0.33333333\n1,\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StudyError, match=r"cannot write .*file.sub.x.png") as error:
        saving.save(
            layer_importance.removal_order(score_frame(3), [1]), rank_frame(3), tmp_path / "file" / "sub", "x", ""
        )
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    figure, frame = layer_importance.removal_order(score_frame(3), [1]), rank_frame(3)
    old = {path: path.read_bytes() for path in saving.save(figure, frame, tmp_path, "x", "old")}
    write = Path.write_bytes

    def fills_up(path: Path, content: bytes) -> int:
        if ".pdf" in path.name:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.raises(StudyError, match="No space left on device"):
        saving.save(figure, frame, tmp_path, "x", "new")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
