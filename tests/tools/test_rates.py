"""`make rates` writes what its search found."""

import pandas as pd
import pytest
import typer

from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments.learning_rates import COLUMNS, Trial
from tools import rates


def test_the_table_has_every_rate_that_was_tried(tmp_path, monkeypatch, capsys):
    def made_up(profile, device):
        return [Trial("healing", "taylor", "LoRA", 16, 4, 1e-3, lambda rate, seed: abs(rate - 1e-3) + seed)]

    monkeypatch.setattr(rates, "trials", made_up)
    rates.main("smoke", seeds=2, output=tmp_path / "new" / "smoke.csv")
    table = pd.read_csv(tmp_path / "new" / "smoke.csv")
    assert list(table.columns) == COLUMNS and table.loc[table["best"], "rate"].tolist() == [1e-3]
    assert table["rate"].tolist() == [3e-4, 1e-3, 3e-3, 1e-2] and table["loss"].iloc[1] == 0.5
    assert "taylor | LoRA | 0.001 | seed 1" in capsys.readouterr().out


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    def fails(profile, device):
        raise StudyError("unknown profile 'x'")

    monkeypatch.setattr(rates, "trials", fails)
    with pytest.raises(typer.Exit):
        rates.main("x")
    assert capsys.readouterr().err == "error: unknown profile 'x'\n"
