import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import sweeps
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import StudyError
from made_up import checkpoint

CONFIG = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TEXT = {"kind": "random", "count": 2, "prefix": 0, "length": 24, "targets": 1}
QUESTIONS = {"kind": "random", "count": 5, "prefix": 20, "length": 9, "targets": 4}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The benchmark in small, with a folder of its own for what it writes; short-transformers is not there."""
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    a, b, c, d = sweeps.CASES
    d = replace(d, peers={"bare": 0.8}, on={"block_length": 32, "calibration_blocks": 3})
    b = replace(b, on=QUESTIONS, peers={"compiled": None}, sampled=2)
    cases = (replace(a, on=TEXT), b, replace(c, on=TEXT), d)
    monkeypatch.setattr(sweeps, "JOB", sweeps.JOB | {"backend": "eager"})
    monkeypatch.setattr(sweeps, "CASES", cases)
    return tmp_path


@pytest.mark.slow
def test_an_interrupted_benchmark_continues_and_all_sides_agree(small, monkeypatch):
    runs, answer = [], sweeps.Side.run

    def run(self, chosen):
        runs.append((self.name, chosen))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return answer(self, chosen)

    monkeypatch.setattr(sweeps.Side, "run", run)
    with pytest.raises(KeyboardInterrupt):
        sweeps._run("bd", 1, small, CONFIG)
    rows, note = sweeps._run("bd", 1, small, CONFIG)
    sides = ["shared", "compiled", "compiled", "bare_blocks", "every_measure", "bare"]
    assert [name for name, _ in runs] == sides
    assert runs[0][1] is None and len(runs[1][1]) == len(runs[2][1]) == 2 and runs[3][1] is None
    assert [row["peer"] for row in rows] == [sweeps.PEERS[name] for name in ("compiled", "bare")]
    assert rows[0]["difference"] < 1e-5
    assert rows[0]["block_share"] < 0.4 and rows[0]["head_share"] < 0.1 and rows[0]["peer_head_s"] > 0
    assert rows[0]["allowed"] > 2 and 0 < rows[0]["share_of_floor"] < 1
    assert rows[0]["target"] == pytest.approx(0.9 * rows[0]["allowed"]) and rows[1]["target"] == 0.8
    assert all(row["ours_gb"] > 0.1 and row["ratio"] > 0 for row in rows)
    assert not (small / "results" / "bench.sqlite").exists(), "the next one starts anew"
    assert {path.suffix for path in (small / "figures" / "bench").iterdir()} == {".png", ".pdf", ".csv", ".md"}
    assert "6 blocks" in note and "threads" in note


def test_plans_are_those_asked_for(small):
    job = {**sweeps.JOB, "config": CONFIG}
    del job["model"]
    identity, stack = sweeps.worker.load(job)
    a, _, c, d = (sweeps.plan(case, stack, job, identity) for case in sweeps.CASES)
    assert a[0] == variants.dense(6) and set(variants.single_removal(6)) < set(a) and len(a) == len(set(a))
    assert {(0,), (5,)} < set(a), "both simple orders go down to one block"
    assert len(c) == 1 + 6 * 4 and d == []


def test_samples_are_spread_over_the_depths():
    plan = variants.cumulative_removal(30, range(29)) + variants.single_removal(30)
    mean = np.mean([len(v) for v in plan])
    drawn = [sweeps.sample(plan, 4, pair) for pair in range(3)]
    assert len({tuple(d) for d in drawn}) == 3 and all(len(set(d)) == 4 for d in drawn)
    assert all(abs(np.mean([len(plan[i]) for i in d]) - mean) < 3 for d in drawn)


def test_summary_by_hand():
    case = replace(sweeps.CASES[0], peers={"plain": 1.5, "hflm": None})

    def answer(seconds, values, chosen=None, scale=1.0):
        common = {"head_seconds": 1.0, "peak_bytes": 2e9, "chosen": chosen, "scale": scale}
        return {"seconds": seconds, "values": np.array(values), **common}

    answers = {
        "shared": [answer(s, [[-1.0], [-2.0], [-3.0]]) for s in (10, 20, 10)],
        "plain": [answer(s, [[-3.5]], [2], 3.0) for s in (5, 9, 4)],
        sweeps.FLOOR: [answer(s, [200, 50]) for s in (5, 3, 9)],  # four seconds of blocks, one of the head
    }
    answers["hflm"] = answers["plain"]
    cost = {"block_tokens_shared": 250, "block_tokens_naive": 500, "head_tokens": 100, "head_tokens_naive": 100}
    row, other = sweeps.summarise(case, answers, cost | {"flops": 1e12}, rate=1e12)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == pytest.approx((1.35, 1.2, 1.5))
    assert (row["ours_s"], row["peer_s"], row["difference"]) == pytest.approx((10, 15, 0.5))
    assert not row["met"] and row["share_of_matmul_rate"] == pytest.approx(0.1)
    assert (row["floor_s"], row["share_of_floor"], row["allowed"]) == pytest.approx((7, 0.7, 12 / 7))
    assert (row["block_share"], row["head_share"], row["ours_head_s"]) == (0.5, 1, 1)
    assert other["target"] == pytest.approx(0.9 * 12 / 7) and not other["met"]
    (floor,) = sweeps.summarise(
        replace(case, peers={"bare": 0.8}), answers | {"bare": answers["plain"]}, {"flops": 1e12}, rate=1e12
    )
    assert floor["target"] == 0.8 and floor["met"] and floor["block_share"] == 1 and np.isnan(floor["allowed"])


def test_user_mistakes_are_one_line(small):
    with pytest.raises(StudyError, match="unknown benchmark cases 'ax': choose some of abcd"):
        sweeps._run("ax", 1, small, CONFIG)
    with pytest.raises(StudyError, match=r"short-transformers is not in .*: run `make bench`"):
        sweeps.CASES[3].peers["short_transformers"] = 1.0
        sweeps._run("d", 1, small, CONFIG)


@pytest.mark.slow
def test_a_side_that_ends_is_one_line(tmp_path):
    job = {"side": "plain", "config": CONFIG | {"model_type": "no such"}, "device": "cpu"}
    side = sweeps.Side(job, tmp_path, tmp_path)
    with pytest.raises(StudyError, match=r"the benchmark's side plain ended: .*no such") as e:
        side.run(None)
    side.close()
    assert "\n" not in str(e.value) and json.loads(side.path.read_text())["side"] == "plain"


def test_sides_answer_the_same_questions(tmp_path):
    checkpoint(tmp_path / "model")
    job = {**sweeps.JOB, "model": str(tmp_path / "model")}
    job["measurement"] = {"kind": "task", "name": "mmlu_dev_fewshot", "limit": 4}
    identity, stack = sweeps.worker.load(job)
    clock = sweeps.worker.Clock(stack.device)
    sides = [sweeps.worker.SIDES[name] for name in ("plain", "hflm")]
    plan = [variants.dense(5), (0, 3)]
    plain, hflm = (side(job, identity, stack, clock)(plan) for side in sides)
    assert plain.shape == (2, 16) and np.ptp(plain) > 1e-3
    np.testing.assert_allclose(hflm, plain, atol=1e-4)


def test_older_libraries_read_the_rotary_base(small):
    _, stack = sweeps.worker.load({**sweeps.JOB, "config": CONFIG | {"rope_theta": 12345.0}})
    config = json.loads((sweeps.older_checkpoint(stack) / "config.json").read_text())
    assert config["rope_theta"] == 12345.0
