"""The benchmark of a GPU runs without one, in small."""

import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import psutil
import pytest

from benchmarks import gpu
from layer_redundancy.core.errors import StudyError

CONFIG = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
SMALL = gpu.Setting(
    CONFIG, "float32", "cpu", 3, {gpu.TEXT: (0, 23, 1), gpu.QUESTIONS: (20, 9, 4)}, (2, 32), backend="eager"
)
MEASURED = [step for step in gpu.STEPS if step not in ("equality", "notebooks")]


@pytest.mark.slow
def test_every_step_measures_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PEERS", {side: gpu.PEERS[side] for side in ("plain", "compiled")})
    rows = gpu.run(SMALL, MEASURED, tmp_path)
    assert "ended early" not in set(rows["what"]), rows[rows["what"] == "ended early"]
    value = rows.set_index(["step", "what"])["value"]
    for kind in gpu.KINDS:
        # Removal of the first block and of one in the order are among both plans: dense, 4 single, 2 and 3 removed.
        assert value[kind, "variants"] == 7 and value[kind, "block-tokens, of naive"] < 1
        assert value[kind, "times as fast as eager plain forwards"] > 0
        assert value[kind, "times as fast as sharing alone allows"] > 1
        assert value["plan", f"error on {kind}"] > -1
        assert value[kind, "share of the matmul rate"] > 0 and value[kind, "floor, share of the matmul rate"] > 0
    targets = rows[rows["target"] != ""]
    assert set(zip(targets["step"], targets["what"], strict=True)) == {t for t in gpu.TARGETS if t[0] in MEASURED}
    assert set(targets["met"]) <= {"yes", "no"}
    written = pd.read_csv(tmp_path / "gpu_cpu.csv")
    assert written["what"].tolist() == rows["what"].tolist() and written["value"].notna().sum() > 30


def slow(setting):
    yield "before", 1.0
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield "child", child.pid
    time.sleep(60)


def refusing(setting):
    yield "before", 2.0
    raise StudyError("it cannot be done")


def test_what_a_step_measured_before_it_ended_stays(tmp_path, monkeypatch):
    steps = {
        "machine": (lambda _: iter([("TF32", False)]), 9),
        "slow": (slow, 1),
        "refusing": (refusing, 9),
        "never": (refusing, 9),
    }
    monkeypatch.setattr(gpu, "STEPS", steps)
    rows = gpu.run(SMALL, ["slow", "refusing"], tmp_path).set_index(["step", "what"])
    assert rows.value["slow", "before"] == 1 and rows.value["refusing", "before"] == 2
    assert rows.text["slow", "ended early"] == "it took longer than 1 s"
    assert rows.text["refusing", "ended early"] == "it cannot be done"
    child = int(rows.value["slow", "child"])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    again = gpu.run(SMALL, ["never"], tmp_path, seconds=0).set_index(["step", "what"])
    assert again.text["never", "ended early"] == "no time was left"
    assert again.value["refusing", "before"] == 2, "what an earlier run measured stays"
    assert "  before: 2" in gpu.shown(again.loc[["refusing"]].reset_index())


@pytest.mark.slow
def test_sweeps_are_compared_with_plain_forwards_by_the_tests(monkeypatch):
    found, why = gpu.run_step("equality", replace(SMALL, tests="opt_350m"), 100)
    assert not why and found["architectures and dtypes"] == 1 and found["of these not equal"] == 0
    assert 0 <= found["float32, nats a token apart"] < 1e-5
