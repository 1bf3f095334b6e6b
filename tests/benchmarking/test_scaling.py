"""The simulation of many GPUs, beside what can be worked out by hand."""

import pandas as pd
import pytest

from benchmarks import scaling
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.evaluate.amounts import Pass, Quantization, Sweep, Training, Writing
from layer_redundancy.planning import workers as sharing
from layer_redundancy.planning.dry import Ledger

LLAMA = scaling.MODELS["Llama-2-7B"]
MEASURED = scaling.Measured(4e14, 2e14, 1e14, 8.0, 8192, "a GPU")
TEXT = Sweep("perplexity", Amount(8, 8, 8000, 8000, 8000), ((0, 1), (0, 2)))
TRAINING = Training(Recipe("lora", 1e-4), 4096, 64, 4096, 5)


def test_shapes_are_the_published_ones():
    small, medium, large = map(scaling.shape, scaling.MODELS.values())
    assert (small.blocks, medium.blocks, large.blocks) == (32, 40, 80)
    assert small.block == 4 * 4096**2 + 3 * 4096 * 11008 and small.head == 32000 * 4096
    # Eight heads of 64 for keys and values.
    assert large.block == 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672
    assert [one.gpus for one in (small, medium, large)] == [1, 1, 2]
    assert large.weights == pytest.approx(68.98e9, rel=0.001)


def test_work_takes_as_long_as_its_operations():
    of = scaling.shape(LLAMA)
    rates = scaling.rates(of, MEASURED)
    assert rates.sweep(TEXT) == (4e14 / (2 * of.block), 4e14 / (2 * of.head))
    asked = Sweep("task", Amount(8, 8, 8000, 2000, 8), TEXT.variants)
    assert rates.sweep(asked) == (2e14 / (2 * of.block), 2e14 / (2 * of.head))
    whole = Sweep("task", asked.amount, TEXT.variants, keeps_prefixes=False)
    assert rates.sweep(whole) == rates.sweep(TEXT)
    assert rates.seconds(Pass(10**6)) == pytest.approx(1e6 * 2 * of.block / 1e14)
    assert rates.seconds(TRAINING) == pytest.approx(
        2 * (TRAINING.block_tokens * of.block + TRAINING.head_tokens * of.head) / 1e14
    )
    one, two = (rates.seconds(Writing("w", Amount(2, 2, 20, 0, 0, 5), blocks)) for blocks in ((5,), (5, 5)))
    assert two == 2 * one > 5 * 5 * scaling.WRITTEN_BLOCK_SECONDS
    assert 0 < rates.seconds(Quantization(5, 0)) < rates.seconds(Quantization(5, 64))


def test_rates_are_those_of_the_committed_table():
    found = scaling.Measured.read(paths.FIGURES / "bench" / "gpu_cuda.csv")
    assert "H100" in found.device and found.batch_tokens == 8192
    assert 1e14 < found.eager < found.text < 1e15 and found.questions < found.text
    # The sweep was so many times as fast as eager plain forwards; sharing alone allows some of it.
    table = pd.read_csv(paths.FIGURES / "bench" / "gpu_cuda.csv").set_index(["step", "what"])["value"]
    allowed = table[scaling.TEXT, "times as fast as sharing alone allows"]
    faster = table[scaling.TEXT, "times as fast as eager plain forwards"]
    assert found.text / found.eager == pytest.approx(faster / allowed, rel=0.05)


def test_what_waits_for_what():
    steps = [[("m", TEXT), ("m", Pass(1))], [("m", Pass(2))], [("m", TRAINING)], [("m", TEXT)], [("m", TRAINING)]]
    page = sharing.ledger(steps)
    assert page.steps() == steps and scaling.chains(page, scaling.ALL) == [page]
    assert [one.steps() for one in scaling.chains(page, scaling.SWEEPS)] == [[[("m", TEXT)], [("m", TEXT)]]]
    apart = [one.steps() for one in scaling.chains(page, scaling.SIDE_BY_SIDE)]
    assert apart == [steps[:2], steps[2:4], steps[4:]]


def test_trainings_that_do_not_fit_are_left_out():
    def training(method, last=10):
        return Training(Recipe(method, 1e-4, last_blocks=last), 4096, 64, 4096, 32)

    assert scaling.fits(LLAMA, training("lora")) and scaling.fits(LLAMA, training("partial", 3))
    assert not scaling.fits(LLAMA, training("full")), "four float32 numbers a weight take 108 GB"


def test_a_table_holds_what_was_simulated(monkeypatch):
    page = Ledger(work=[(LLAMA, TEXT), (LLAMA, TRAINING), (LLAMA, TRAINING)], requests=[0, 1, 2])
    monkeypatch.setattr(scaling, "pages", lambda model: {"11": page})
    monkeypatch.setattr(scaling, "MODELS", {"Llama-2-7B": LLAMA, "Llama-2-70B": scaling.MODELS["Llama-2-70B"]})
    rows = scaling.table(MEASURED, 0.5, (1, 2, 4))
    assert len(rows) == 3 * (3 + 2), "one GPU does not hold the largest"
    assert set(rows["rates"]) == {"measured", "scaled by operations a block-token"}
    first = rows[rows["workers"] == 1]
    assert (first["efficiency"] == 1).all() and (rows["ideal_seconds"] * rows["workers"]).nunique() <= 6
    shares = rows[[what.replace(" ", "_") for what in sharing.SPENT]].sum(axis=1)
    assert shares.to_numpy() == pytest.approx(1)
    assert (rows["seconds"] >= rows["chain_seconds"]).all() and set(rows["chain"]) == {"notebook 11"}
    assert (rows["guessed"] == 0).all()
    both = {"07": Ledger(work=[(LLAMA, Quantization(5, 64)), (LLAMA, Pass(1))])}
    assert 0.9 < scaling.guessed(both, scaling.ALL, MEASURED) < 1 == 1 + scaling.guessed(both, scaling.SWEEPS, MEASURED)
    panels = scaling.time_by_gpus(rows).axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        "Llama-2-7B, 1 GPU a worker",
        "Llama-2-70B, 2 GPUs a worker",
    ]
    of = rows[(rows["model"] == "Llama-2-7B") & (rows["plan"] == scaling.ALL)]
    assert panels[0].lines[0].get_ydata() == pytest.approx(of["seconds"] / 3600)


def test_the_overhead_is_what_a_cluster_showed(tmp_path):
    assert scaling.measured_overhead(tmp_path / "cluster.csv") == sharing.TASK_SECONDS
    pd.DataFrame({"what": [scaling.OVERHEAD], "value": [0.125]}).to_csv(tmp_path / "cluster.csv", index=False)
    assert scaling.measured_overhead(tmp_path / "cluster.csv") == 0.125
    pd.DataFrame({"what": ["workers"], "value": [2]}).to_csv(tmp_path / "cluster.csv", index=False)
    assert scaling.measured_overhead(tmp_path / "cluster.csv") == sharing.TASK_SECONDS
