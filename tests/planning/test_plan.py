import json
import os
from dataclasses import replace

import pandas as pd
import pytest
from transformers import AutoTokenizer

import every_architecture
import tiny_models
from layer_redundancy import cli
from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate import sweep_estimate
from layer_redundancy.evaluate.amounts import Pass, Quantization, Sweep, Training, Writing
from layer_redundancy.experiments import healing as healing_experiment
from layer_redundancy.experiments import quantization, registry
from layer_redundancy.models import compiled, smollm2
from layer_redundancy.planning import counts, downloads, dry, plan, planner, rates
from layer_redundancy.planning.downloads import Download
from layer_redundancy.planning.planner import Planner
from layer_redundancy.train import healing
from rehearsal import run

TINY = tiny_models.CONFIGS["llama"]()


@pytest.fixture
def speed():
    return rates.Speed(rates.probe(TINY, "float32", "cpu"), blocks=5, batch_tokens=256)


@pytest.mark.parametrize("name", ["llama", "gemma2", "rwkv5", "baichuan", "opt", "mamba"])
def test_a_probe_has_two_blocks_of_the_shape(name):
    config = tiny_models.CONFIGS[name]()
    stack = rates.probe(config, "bfloat16", "cpu")
    assert len(stack) == 2 and config.num_hidden_layers == 5
    assert planner.keeps_prefixes(config) == (name != "mamba")
    speed = rates.Speed(stack, 5, 256)
    whole = tiny_models.build(name)
    assert speed.weight_bytes(5) == pytest.approx(2 * sum(p.numel() for p in whole.parameters()), rel=0.05)


def test_shapes_of_the_papers_models_are_known_without_the_hub():
    for name in ("meta-llama/Llama-2-13b-hf", "baichuan-inc/Baichuan2-13B-Base", "RWKV/v5-Eagle-7B-HF"):
        config = planner.config_of(name, sources.pinned(name))
        assert config.num_hidden_layers == sources.MODELS[name].shape["num_hidden_layers"]
    with pytest.raises(StudyError, match="not in the local cache"):
        planner.config_of("nobody/nothing", None)


def test_more_work_takes_longer(speed):
    amount = Amount(8, 8, 800, 800, 800)
    one = plan.sweep_seconds(Sweep("perplexity", amount, ((0, 1),)), speed)
    more = plan.sweep_seconds(Sweep("perplexity", amount, ((0, 1), (1, 2), (0, 2, 3))), speed)
    assert 0 < one < more and plan.sweep_seconds(Sweep("p", amount, ()), speed) == 0
    page = dry.Ledger(
        work=[("m", Writing("continuations", Amount(2, 2, 20, 0, 0, 5), (5, 4))), ("m", Quantization(5, 64))]
    )
    assert plan.seconds(page, {"m": speed}, amount) > plan.START_SECONDS
    assert plan.seconds(dry.Ledger(work=[("m", Pass(10**6))]), {"m": speed}, amount) > plan.START_SECONDS
    assert plan.seconds(dry.Ledger(loads={"m": 3}), {"m": speed}, amount) > plan.START_SECONDS


def test_compiling_blocks_is_planned_once_for_all_sweeps_of_a_notebook(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    speed = rates.Speed(rates.probe(TINY, "float32", "cpu"), 5, 256, compiled=True)
    amount = Amount(8, 8, 240, 240, 240)
    one, two = (Sweep(name, amount, ((0, 1),)) for name in ("perplexity", "other"))
    both = dry.Ledger(work=[("m", one), ("m", two)])
    seconds = plan.seconds(both, {"m": speed}, amount)
    runs = sum(plan.sweep_seconds(sweep, speed) for sweep in (one, two))
    assert speed.warm_up > 0 and seconds == pytest.approx(plan.START_SECONDS + runs + speed.warm_up)
    passes = dry.Ledger(work=[("m", Pass(1000))])  # runs blocks as they are
    assert plan.seconds(passes, {"m": speed}, amount) == pytest.approx(
        plan.START_SECONDS + 1000 / speed.rates(amount)[0]
    )
    assert not rates.Speed(speed.stack, 5, 256).compiles(amount)  # on a processor


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

    def seconds(*chosen):
        page = dry.Ledger(work=[("m", one) for one in chosen])
        return plan.seconds(page, {"m": speed}, amount) - plan.START_SECONDS

    times = [seconds(one) for one in trainings]
    assert 0 < times[0] == times[1] and times[0] < times[3]
    assert seconds(*2 * trainings[:1]) == pytest.approx(2 * times[0])


def test_what_is_trained_is_said():
    row = plan.Row("m", "11", 1, 1, 1, 1.0, 1.0, 3, 4096, "all weights", 2e9)
    assert plan.report_trainings(row) == "; 3 trainings on 4.1e+03 tokens; left out: all weights"
    assert not plan.report_trainings(plan.Row("m", "02", 1, 1, 1, 1.0, 1.0))


def test_what_a_notebook_runs_is_said_without_zeros():
    nothing = plan.Row("m", "02", 0, 0, 0, 1.0, 1.0)
    assert plan.report_work(nothing) == "no sweep"
    swept = replace(nothing, variants=31, block_tokens_naive=10**6, block_tokens=3 * 10**5)
    assert plan.report_work(swept) == "    31 variants      1e+06 naive      3e+05 shared ( 30%)"
    for one in (swept, replace(swept, variants=1), replace(swept, variants=0)):
        assert len(plan.report_work(one)) == plan.WORK_WIDTH and " 0 " not in plan.report_work(one)
    other = replace(nothing, quantizations=1, written_texts=3, pass_block_tokens=1200)
    assert plan.report_work(other) == "no sweep: 1 quantized checkpoint, 3 written texts, 1.2e+03 in single passes"


def test_what_is_trained_takes_disk(speed):
    lora, whole = (Training(Recipe(method, 1e-4), 4096, 64, 64, 5) for method in ("lora", "full"))
    weights = [speed.trained_weights(one) for one in (lora, whole)]
    assert speed.disk_bytes([lora, whole, whole]) == 4 * (weights[0] + 2 * weights[1]) + 24 * weights[1]
    assert speed.disk_bytes([replace(lora, kept=False)]) == 24 * weights[0] and not speed.disk_bytes([])
    row = plan.Row("m", "11", 1, 1, 1, 1.0, 1.0, 3, 4096, "", 2e9)
    assert "disk for what is trained: 2.0 GB" in plan.report_disk([row])
    # 164 million tokens of C4, eight bytes each; what comes in packages is not kept.
    assert plan.packed_bytes(dry.dry_text("c4", "calibration", 80_032, 2048)) == pytest.approx(1.31e9, rel=0.01)
    assert not plan.packed_bytes(dry.dry_text("wikipedia", "calibration", 80_032, 2048))
    assert "TOO LITTLE" in plan.report_disk([replace(row, disk_bytes=1e18)])
    assert plan.report_disk([replace(row, disk_bytes=0.0)]) is None


def test_inputs_of_a_kind_are_timed_once(speed, monkeypatch):
    first = speed.rates(Amount(8, 8, 800, 800, 800))
    monkeypatch.setattr(sweep_estimate, "rates", lambda *_: pytest.fail("timed again"))
    assert speed.rates(Amount(4, 4, 396, 396, 396)) == first


@pytest.mark.slow
def test_the_whole_of_a_profile_is_planned():
    told = []
    rows = list(plan.rows(profiles.get("smoke"), ["02", "06", "11"], told.append))
    assert [row.notebook for row in rows] == ["02", "06", "11"] and len(told) == 3  # models
    tuning = profiles.get("smoke").budget(healing_experiment.Budget).training
    assert rows[2].trained_tokens == rows[2].trainings * tuning.tokens > 0 == rows[0].trainings
    single = rows[0]
    assert single.variants == 31 and single.block_tokens < 0.55 * single.block_tokens_naive
    frame = plan.table(rows)
    assert frame["share"].iloc[0] == single.block_tokens / single.block_tokens_naive
    assert "fits" in plan.report_memory(rows, profiles.get("smoke"))


@pytest.mark.slow
def test_a_notebook_that_a_model_leaves_out_is_planned_as_such(tmp_path):
    every_architecture.build("mamba").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(tmp_path)
    profile = profiles.get("smoke", model=str(tmp_path))
    (row,) = plan.rows(profile, ["05"], report=lambda line: None)
    assert "has no attention heads" in row.left_out and row.block_tokens == 0


CAPITALS = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: ["Paris", "Rome"]
doc_to_target: capital
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a profile with a text and a task of its own, and the profile's file."""
    rows = {
        "capitals.jsonl": [{"country": "France", "capital": "Paris"}, {"country": "Italy", "capital": "Rome"}],
        "calibration.jsonl": [{"text": f"Number {i}. " * 20} for i in range(3)],
        "evaluation.jsonl": [{"text": f"Count {i}. " * 20} for i in range(2)],
    }
    (tmp_path / "texts").mkdir()
    for name, content in rows.items():
        folder = tmp_path if name.startswith("capitals") else tmp_path / "texts"
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "capitals.yaml").write_text(CAPITALS)
    (tmp_path / "mine.toml").write_text(
        f'extends = "smoke"\nmodel = "{tmp_path / "model"}"\ntasks = [{{ name = "capitals.yaml" }}]\n'
        'text = { corpus = "texts", block_length = 16, calibration_blocks = 2, evaluation_blocks = 2 }\n'
    )
    tiny_models.build("llama").save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(counts, "RECORD", tmp_path / "prefetched.json")
    return tmp_path, str(tmp_path / "mine.toml")


def test_texts_and_tasks_of_ones_own_are_counted(own):
    folder, file = own
    needed = downloads.needs(profiles.get(file))
    assert downloads.own_texts(needed) == ["texts: 3 articles for calibration, 2 articles for evaluation"]
    assert downloads.texts(needed) == [] and not downloads.benchmarks(needed)
    studies = Planner(profiles.get(file), count=lambda *of: planner.count_here(profiles.get(file), *of))
    (task,) = studies.study(str(folder / "model")).tasks
    assert (task.items.name, task.items.num_items) == ("capitals", 2)
    (folder / "capitals.yaml").write_text(CAPITALS + "process_docs: !function own.docs\n")
    with pytest.raises(StudyError, match="runs code that comes with it"):
        planner.count_here(profiles.get(file), str(folder / "model"), profiles.get(file).tasks[0])


def test_a_text_that_is_gone_is_told_by_the_plan(own):
    folder, file = own
    profile = profiles.get(file)
    (folder / "texts").rename(folder / "elsewhere")
    with pytest.raises(StudyError, match=r"unknown corpus '.*texts'"):
        downloads.needs(profile)


def test_too_little_disk_is_said():
    huge = Download("a", "org/a", 1e9, False, "MIT", "gated: accept")
    lines = plan.report_downloads([huge, Download("b", "org/b", 1.0, True, "MIT")])
    assert "TOO LITTLE" in lines[-1] and "1 download," in lines[-1]
    assert "gated: accept" in lines[0] and "here" in lines[1]
    assert "[no licence named]" in plan.report_downloads([Download("c", "org/c", 1.0, False, "")])[0]


@pytest.mark.parametrize("arguments", [("huge",), ("smoke", "--notebooks", "77")])
def test_a_mistake_is_one_line(arguments):
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, ["plan", *arguments])
    assert isinstance(done.exception, StudyError) and "\n" not in str(done.exception) and not done.output


def test_a_rehearsal_runs_every_model_on_its_notebooks():
    wanted = run.runs([])
    assert [model for (model, _), *_ in wanted] == ["", *(f.model for f in profiles.get("paper").further), ""]
    files = sorted(path.name[:2] for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    assert [len(of) for of in wanted] == [len(files) - 1, 3, 5, 4, 1] and files == list(registry.numbers())
    assert [path.stem for _, path in wanted[-1]] == ["14_across_models"] and wanted[-1][0] not in wanted[0]
    assert [[path.name[:2] for _, path in of] for of in run.runs(["09"])] == [["09"], ["09"]]
    assert [[path.name[:2] for _, path in of] for of in run.runs(["14", "13"])] == [["13"], ["14"]]
    with pytest.raises(StudyError, match="no notebook 42"):
        run.runs(["42"])
    assert "rehearsal/baichuan-inc--Baichuan2-7B-Base" in str(
        run._output("baichuan-inc/Baichuan2-7B-Base", wanted[0][0][1], run.FOLDER)
    )


def test_what_ran_is_set_against_what_was_planned():
    planned = pd.DataFrame({"notebook": [2, 2, 3, 11], "block_tokens": [40, 40, 0, 10]})
    planned = planned.assign(training_block_tokens=[0, 0, 0, 7], quantization_block_tokens=0, pass_block_tokens=0)
    swept = [
        {"notebook": "02_single", "block_tokens_shared": 60},
        {"notebook": "02_single", "block_tokens_shared": 12},
        {"notebook": "11_healing", "block_tokens_shared": 20},
    ]
    worked = [{"notebook": "11_healing", "kind": "training", "block_tokens": 7}]
    found = run.compare(planned, swept, worked).set_index(["notebook", "kind"])
    assert found.loc[("02", "sweep"), ["planned", "ran", "ratio"]].tolist() == [80, 72, 0.9]
    assert found.agrees.to_dict() == {("02", "sweep"): True, ("11", "sweep"): False, ("11", "training"): True}
    exact = run.compare(planned, swept, worked, run.AFTER, {}).set_index(["notebook", "kind"])
    assert not exact.loc[("02", "sweep"), "agrees"], "once orders are known, to the token"
    unplanned = run.compare(planned.iloc[2:3], swept[:1], []).iloc[0]
    assert unplanned["planned"] == 0 and not unplanned["agrees"]


def test_a_rehearsals_gptq_packages_are_searched_where_they_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "GPTQ_PACKAGES", tmp_path)
    own = {"PYTHONPATH": "src"}
    assert run._with_gptq(own) == own
    (tmp_path / "ready").touch()
    assert run._with_gptq(own)["PYTHONPATH"] == f"{tmp_path}{os.pathsep}src"
    assert run._with_gptq({}) == {"PYTHONPATH": str(tmp_path)}
    assert next(paths.NOTEBOOKS.glob(f"{run.GPTQ_NOTEBOOK}_*.ipynb")).stem == quantization.NOTEBOOK
