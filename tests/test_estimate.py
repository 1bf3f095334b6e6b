from dataclasses import replace

import pandas as pd
import pytest
from transformers import AutoConfig

import tiny_models
from benchmarks import gpu as bench_gpu
from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import PROFILES, Recipe
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.planning import estimate
from layer_redundancy.planning.downloads import Download
from layer_redundancy.planning.workload import Sweep, Training, Work, Writing
from layer_redundancy.train import healing
from rehearsal import run as rehearsal

TINY = tiny_models.CONFIGS["llama"]()
SHAPE = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture
def speed():
    return estimate.Speed(estimate.probe(TINY, "float32", "cpu"), blocks=5, batch_tokens=256)


@pytest.mark.parametrize("name", ["llama", "gemma2", "rwkv5", "baichuan", "opt"])
def test_a_probe_has_two_blocks_of_the_shape(name):
    config = tiny_models.CONFIGS[name]()
    stack = estimate.probe(config, "bfloat16", "cpu")
    assert len(stack) == 2 and config.num_hidden_layers == 5
    assert estimate.shape_of("m", config, stack).blocks == 5
    speed = estimate.Speed(stack, 5, 256)
    whole = tiny_models.build(name)
    assert speed.weight_bytes(5) == pytest.approx(2 * sum(p.numel() for p in whole.parameters()), rel=0.05)


def test_shapes_of_the_papers_models_are_known_without_the_hub():
    for name in ("meta-llama/Llama-2-13b-hf", "baichuan-inc/Baichuan2-13B-Base", "RWKV/v5-Eagle-7B-HF"):
        config = estimate.config_of(name, sources.pinned(name))
        assert config.num_hidden_layers == sources.MODELS[name].shape["num_hidden_layers"]
    with pytest.raises(StudyError, match="not in the local cache"):
        estimate.config_of("nobody/nothing", None)


def test_more_work_takes_longer(speed):
    amount = Amount(8, 8, 800, 800, 800)
    one = estimate.sweep_seconds(Sweep("perplexity", amount, ((0, 1),)), speed)
    more = estimate.sweep_seconds(Sweep("perplexity", amount, ((0, 1), (1, 2), (0, 2, 3))), speed)
    assert 0 < one < more and estimate.sweep_seconds(Sweep("p", amount, ()), speed) == 0
    work = Work("09", writings=[Writing("continuations", Amount(2, 2, 20, 0, 0, 5), (5, 4))], quantizations=[(5, 64)])
    assert estimate.seconds(work, speed, {}, amount) > estimate.START_SECONDS


RECIPES = [Recipe("lora", 1e-4), Recipe("qlora", 1e-4), Recipe("partial", 1e-4, last_blocks=3), Recipe("full", 1e-4)]


def test_training_takes_time_and_memory(speed):
    amount, whole = Amount(8, 8, 800, 800, 800), tiny_models.build("llama")
    trainings = [Training(recipe, 4096, 64, 4096, 5) for recipe in RECIPES]
    for one in trainings:  # of the whole model, found on two of its blocks
        assert speed.trained_weights(one) == healing.trainable_weights(whole, one.recipe)
    needed = {one.recipe.method: speed.training_bytes(one) for one in trainings}
    assert max(needed, key=needed.get) == "full"
    assert speed.training_bytes(Training(Recipe("prompts", 0.1), 4096, 64, 64, 5)) < needed["lora"]
    shallow = Training(Recipe("partial", 1e-4, last_blocks=1), 4096, 64, 64, 5)
    deeper = Training(Recipe("partial", 1e-4, last_blocks=2), 4096, 64, 64, 5)
    assert speed.training_bytes(shallow) < speed.training_bytes(deeper) < needed["full"]
    nothing = estimate.seconds(Work("10"), speed, {}, amount)
    times = [estimate.seconds(Work("10", trainings=[one]), speed, {}, amount) - nothing for one in trainings]
    assert 0 < times[0] == times[1] and times[0] < times[3]
    assert estimate.seconds(Work("10", trainings=2 * trainings[:1]), speed, {}, amount) - nothing == pytest.approx(
        2 * times[0]
    )


def test_what_does_not_fit_is_left_out_or_replaced(speed):
    weights, lora = Recipe("full", 1e-4), Recipe("lora", 1e-4)
    whole = Training(weights, 4096, 64, 64, 5)
    spared, few = replace(whole, spared=True), replace(whole, blocks=1, instead=lora)
    there = speed.training_bytes(whole) / estimate.FITS
    assert estimate.fitting([whole, spared, few], speed, 1.01 * there) == ([whole, spared, few], [])
    # One block's weights would fit: but what is compared is trained alike at every depth.
    kept, left_out = estimate.fitting([spared, spared, few, whole], speed, 0.99 * there)
    assert kept == [Training(lora, 4096, 64, 64, 1), whole] and left_out == ["all weights"]
    row = estimate.Row("m", "11", 1, 1, 1, 1.0, 1.0, 3, 4096, "all weights", 2e9)
    assert estimate.report_trainings(row) == "; 3 trainings on 4.1e+03 tokens; no memory for: all weights"
    assert not estimate.report_trainings(estimate.Row("m", "02", 1, 1, 1, 1.0, 1.0))


def test_what_is_trained_takes_disk(speed):
    lora, whole = (Training(Recipe(method, 1e-4), 4096, 64, 64, 5) for method in ("lora", "full"))
    weights = [speed.trained_weights(one) for one in (lora, whole)]
    assert speed.disk_bytes([lora, whole, whole]) == 4 * (weights[0] + 2 * weights[1]) + 24 * weights[1]
    assert speed.disk_bytes([replace(lora, kept=False)]) == 24 * weights[0] and not speed.disk_bytes([])
    row = estimate.Row("m", "11", 1, 1, 1, 1.0, 1.0, 3, 4096, "", 2e9)
    assert "disk for what is trained: 2.0 GB" in estimate.report_disk([row], PROFILES["smoke"])
    # 164 million tokens of C4 and 25 million of Alpaca, eight bytes each.
    assert "disk for what is trained: 3.5 GB" in estimate.report_disk([row], PROFILES["paper"])
    assert "TOO LITTLE" in estimate.report_disk([replace(row, disk_bytes=1e18)], PROFILES["smoke"])
    assert estimate.report_disk([replace(row, disk_bytes=0.0)], PROFILES["paper"]) is None


def test_inputs_of_a_kind_are_timed_once(speed, monkeypatch):
    first = speed.rates(Amount(8, 8, 800, 800, 800))
    monkeypatch.setattr(estimate.sweep_estimate, "rates", lambda *_: pytest.fail("timed again"))
    assert speed.rates(Amount(4, 4, 412, 412, 412)) == first


def test_the_whole_of_a_profile_is_planned():
    told = []
    rows = list(estimate.rows(profiles.get("smoke"), ["02", "06", "11"], told.append))
    assert [row.notebook for row in rows] == ["02", "06", "11"] and len(told) == 2
    tuning = PROFILES["smoke"].healing.tuning
    assert rows[2].trained_tokens == rows[2].trainings * tuning.tokens > 0 == rows[0].trainings
    single = rows[0]
    assert single.variants == 31 and single.block_tokens < 0.5 * single.block_tokens_naive
    frame = estimate.table(rows)
    assert frame["share"].iloc[0] == single.block_tokens / single.block_tokens_naive
    assert "fits" in estimate.report_memory(rows, PROFILES["smoke"])


def test_too_little_disk_is_said():
    huge = Download("a", "org/a", 1e9, False, "MIT", "gated: accept")
    lines = estimate.report_downloads([huge, Download("b", "org/b", 1.0, True, "MIT")])
    assert "TOO LITTLE" in lines[-1] and "1 downloads" in lines[-1]
    assert "gated: accept" in lines[0] and "here" in lines[1]
    assert "[no licence named]" in estimate.report_downloads([Download("c", "org/c", 1.0, False, "")])[0]


@pytest.mark.parametrize("arguments", [("huge",), ("smoke", "--notebooks", "77")])
def test_a_mistake_is_one_line(arguments):
    from typer.testing import CliRunner

    done = CliRunner().invoke(estimate.app, list(arguments))
    assert done.exit_code == 1 and done.output.startswith("error: ") and len(done.output.splitlines()) == 1


def test_a_rehearsal_runs_every_model_on_its_notebooks():
    wanted = rehearsal.runs([])
    assert [model for (model, _), *_ in wanted] == ["", *(f.model for f in PROFILES["paper"].further)]
    files = sorted(path.name[:2] for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    assert [len(of) for of in wanted] == [len(files), 3, 5, 4] and files == list(estimate.NOTEBOOKS)
    assert [[path.name[:2] for _, path in of] for of in rehearsal.runs(["09"])] == [["09"], ["09"]]
    with pytest.raises(StudyError, match="no notebook 42"):
        rehearsal.runs(["42"])
    assert "rehearsal/baichuan-inc--Baichuan2-7B-Base" in str(
        rehearsal._output("baichuan-inc/Baichuan2-7B-Base", wanted[0][0][1], rehearsal.FOLDER)
    )


def test_what_ran_is_set_against_what_was_planned():
    planned = pd.DataFrame({"notebook": [2, 2, 3], "block_tokens_naive": [100, 100, 50], "block_tokens": [40, 40, 0]})
    swept = [
        {"notebook": "02_single", "block_tokens_naive": 150, "block_tokens_shared": 60},
        {"notebook": "02_single", "block_tokens_naive": 30, "block_tokens_shared": 12},
    ]
    (row,) = rehearsal.compare(planned, swept).to_dict("records")
    assert (row["notebook"], row["planned"], row["ran"], row["ratio"]) == ("02", 80, 72, 0.9)
    assert rehearsal.compare(planned.iloc[2:], []).empty, "notebook 12 sweeps nothing"


def test_the_benchmark_of_a_gpu_runs_without_one():
    table = bench_gpu.sweep_rows(SHAPE, "float32", "cpu", 2)
    assert list(table["input"]) == list(bench_gpu.KINDS) and table["seconds"].gt(0).all()
    # Removal of the first block and of one in the order are among both plans: dense, 4 single, 2 and 3 removed.
    assert set(table["variants"]) == {7}
    assert table["block_tokens"].lt(table["block_tokens_naive"]).all()
    assert table["share_of_matmul_rate"].between(0, 2).all()
    assert AutoConfig.for_model(**SHAPE).num_hidden_layers == 4
