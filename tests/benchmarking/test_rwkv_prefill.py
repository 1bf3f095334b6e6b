"""The RWKV-5 benchmark in small: its sides agree, and it writes what it says."""

import pytest
import torch

from benchmarks import rwkv_prefill as bench_rwkv
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.models.rwkv5 import model as rwkv5
from models.test_rwkv5 import random_model


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(bench_rwkv, "LENGTHS", (5, 70))
    monkeypatch.setattr(bench_rwkv, "shipped", lambda: random_model("deep"))
    monkeypatch.setattr(bench_rwkv, "world_small", lambda: random_model("wide heads"))
    return tmp_path / "figures" / "bench"


def test_all_sides_read_the_same_prompt_to_the_same_logits():
    table = bench_rwkv.measure({"tiny": random_model}, (3, 130), rounds=2)
    assert list(table["side"]) == list(bench_rwkv.SIDES) * 2
    assert (table["difference"] < 1e-4).all()
    assert (table["low"] <= table["tokens_per_second"]).all() and (table["tokens_per_second"] <= table["high"]).all()
    assert (table.loc[table["side"] == "chunked", ["ratio", "ratio_low", "ratio_high"]] == 1).all(axis=None)


def test_a_side_runs_its_own_recurrence(monkeypatch, tmp_path):
    called = []
    for name in ("chunked_time_mix", "sequential_time_mix"):
        form = getattr(rwkv5, name)
        monkeypatch.setattr(rwkv5, name, lambda *x, name=name, form=form: called.append(name) or form(*x))
    sides = bench_rwkv.readers(random_model(), tmp_path)
    usual = rwkv5.time_mix
    for side, expected in zip(
        bench_rwkv.SIDES, (["chunked_time_mix"] * 2, ["sequential_time_mix"] * 2, []), strict=True
    ):
        sides[side](torch.tensor([5, 6, 7]))
        assert called == expected
        called.clear()
    assert rwkv5.time_mix is usual


@pytest.mark.slow
def test_it_writes_figure_and_table(figures, capsys):
    bench_rwkv.main(rounds=1)
    assert {path.name for path in figures.iterdir()} >= {
        f"rwkv_prefill_cpu{end}" for end in (".png", ".pdf", ".csv", "_table.md", "_table.csv")
    }
    note = (figures / "rwkv_prefill_cpu_table.md").read_text()
    assert "Medians of 1 rounds" in note and "Goal: 5 times the package" in note
    assert "the author's package" in capsys.readouterr().out


def test_a_mistake_is_one_line(figures, monkeypatch):
    def broken():
        raise StudyError("no model in data/models/")

    monkeypatch.setattr(bench_rwkv, "shipped", broken)
    with pytest.raises(SystemExit, match="no model in data/models/"):
        bench_rwkv.main(rounds=1)
