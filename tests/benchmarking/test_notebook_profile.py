"""What a kernel was seen at, and what is made of it."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from benchmarks import notebook_profile
from layer_redundancy.core import sampling

OURS = "/s/src/layer_redundancy"


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ("a.py:main;/b/selectors.py:select", None),
        (f"cell:<module>;{OURS}/study.py:sweep;{OURS}/evaluate/sweep.py:run", "waiting"),
        (
            f"{OURS}/evaluate/sweep.py:run;{OURS}/models/stack.py:run_block;/torch/nn/modules/linear.py:forward",
            "blocks",
        ),
        (f"{OURS}/evaluate/sweep.py:run;{OURS}/evaluate/scoring.py:score;{OURS}/models/stack.py:logits", "head"),
        (f"{OURS}/study.py:_loaded;{OURS}/models/loading.py:load;/transformers/modeling_utils.py:x", "loading"),
        (f"{OURS}/train/healing.py:heal;/transformers/models/llama.py:forward", "training"),
        (f"{OURS}/models/quantize.py:quantized;/llmcompressor/x.py:y", "quantizing"),
        (f"{OURS}/study.py:save;/matplotlib/figure.py:draw", "drawing"),
        ("cell:<module>;<frozen importlib._bootstrap>:_find_and_load;/matplotlib/x.py:<module>", "starting"),
        (f"cell:<module>;{OURS}/core/stats.py:bootstrap", "other"),
    ],
)
def test_a_stack_tells_what_is_done(stack, expected):
    assert notebook_profile.kind(stack) == expected


def test_a_process_is_watched_to_its_end(tmp_path):
    code = "import time; from layer_redundancy.core import sampling; sampling.start('me')\n"
    code += "def long(): time.sleep(0.5)\nlong()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {sampling.VARIABLE: str(tmp_path)}, check=True)
    lines = (tmp_path / "me.txt").read_text().splitlines()
    spent = {
        stack.rpartition(":")[2]: int(milliseconds) for stack, _, milliseconds in (x.rpartition(" ") for x in lines)
    }
    assert 300 < spent["long"] < 1000
    assert 0.3 < notebook_profile.seconds_by_kind(tmp_path / "me.txt")["other"] < 1.5


def test_the_figure_gives_each_notebook_a_bar_as_long_as_its_time():
    rows = pd.DataFrame({"notebook": ["01_a", "02_b"]} | dict.fromkeys(notebook_profile.KINDS, 0.0))
    rows = rows.assign(blocks=[3.0, 1.0], drawing=[1.0, 0.5])
    (axes,) = notebook_profile.time_by_kind(rows).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["drawing", "blocks"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["01", "02"]
    ends = {bar.get_y(): 0.0 for bar in axes.patches}
    for bar in axes.patches:
        ends[bar.get_y()] = max(ends[bar.get_y()], bar.get_x() + bar.get_width())
    assert sorted(ends.values()) == [1.5, 4.0]
