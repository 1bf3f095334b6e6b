"""The command, in this process, on tiny random models; its store and cache are the test's own."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from layer_redundancy import cli
from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Store
from layer_redundancy.experiments import result_tables
from layer_redundancy.pruning import checkpoint as pruning_record
from layer_redundancy.study import Study
from made_up import checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(own_folders):
    """Runs a command line; returns what it prints to stdout, or raises what it raises."""

    def run(*arguments, profile="smoke"):
        chosen = ["--profile", profile] if profile else []
        done = CliRunner().invoke(cli.app, [*map(str, arguments), *chosen])
        if isinstance(done.exception, StudyError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def stored(tmp_path) -> int:
    with Store(tmp_path / "results" / "results.sqlite") as store:
        return len(store.sweeps())


@pytest.mark.slow
def test_rank_is_the_studys_own_order(run, model, tmp_path):
    found = json.loads(run("rank", model, "--json"))
    blocks = [row["block"] for row in found["rows"]]
    study = Study.open("smoke", str(model), store=tmp_path / "results" / "results.sqlite")
    assert blocks == list(study.order("block_influence"))
    assert all(row["rank_low"] <= row["rank"] <= row["rank_high"] for row in found["rows"])
    assert all(row["low"] <= row["score"] <= row["high"] for row in found["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["taylor", "magnitude_l1", "perplexity", "greedy", "random", "reverse_order"])
def test_every_kind_of_measure_ranks_all_blocks(run, model, by):
    rows = json.loads(run("rank", model, "--by", by, "--json"))["rows"]
    assert sorted(row["block"] for row in rows) == list(range(5))
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert all((row["score"] is None) == (by in ("greedy", "random")) for row in rows)


@pytest.mark.slow
def test_a_sweep_is_the_notebooks_and_is_not_computed_twice(run, model, tmp_path):
    rows = json.loads(run("sweep", model, "--remove", "1..3", "--json"))["rows"]
    assert [row["removed"] for row in rows] == [0, 1, 2, 3] and rows[0]["increase"] == 0
    study = Study.open("smoke", str(model), store=tmp_path / "results" / "results.sqlite")
    order = study.order("block_influence")
    sweeps = stored(tmp_path)
    for row in rows:
        kept = tuple(i for i in range(5) if i not in order[: row["removed"]])
        result = study.sweep([kept])
        assert row["perplexity"] == result["perplexity"][kept].summary["perplexity"]
        for task in study.tasks:
            right = result_tables.right(result[task.name][kept])
            assert row[f"{task.items.name} accuracy"] == right.mean()
    assert "nothing to compute" in run("sweep", model, "--remove", "1..3", "--dry-run")
    run("sweep", model, "--remove", "2,3")
    assert stored(tmp_path) == sweeps, "all of it was in the store"


@pytest.mark.slow
def test_a_dry_run_counts_and_writes_nothing(run, model, tmp_path):
    found = json.loads(run("sweep", model, "--remove", "1..3", "--dry-run", "--json"))["to_compute"]
    assert found["variants"] == 4 and found["seconds"] > 0
    said = run("prune", model, "--remove", 2, "--heal", "lora", "--out", tmp_path / "pruned", "--dry-run")
    assert "1 training on 64 tokens" in said and not (tmp_path / "pruned").exists()
    assert stored(tmp_path) == 0


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_pruned_folder_is_what_it_says(run, model, tmp_path):
    found = json.loads(run("prune", model, "--remove", 2, "--out", tmp_path / "pruned", "--json"))
    order = [row["block"] for row in json.loads(run("rank", model, "--json"))["rows"]]
    assert found["removed_blocks"] == order[:2]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert loaded.config.num_hidden_layers == 3
    record = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert record == {name: value for name, value in found.items() if name != "folder"}
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert "without 2 of its 5 blocks" in card and f"Blocks {order[0]}, {order[1]} " in card
    assert "block_influence on wikipedia (calibration split, 8 blocks of 64 tokens)" in card
    cost = found["cost"]["perplexity"]
    assert f"{cost['increase']:+.3f} nats a token ({cost['increase_low']:+.3f} to {cost['increase_high']:+.3f})" in card
    # On the text and tasks that pruning.json names, the folder has the numbers measured before it was written.
    rows = {row["on"]: row for row in json.loads(run("evaluate", tmp_path / "pruned", "--json", profile=""))["rows"]}
    assert rows["perplexity"]["value"] == pytest.approx(cost["pruned"], rel=1e-5)
    assert rows["agreement"]["value"] == found["cost"]["tasks"][0]["pruned"]
    both = json.loads(run("compare", model, tmp_path / "pruned", "--json", profile=""))["rows"]
    assert both[0]["difference"] == pytest.approx(cost["increase"], rel=1e-4, abs=1e-6)
    assert (both[0]["low"], both[0]["high"]) == pytest.approx((cost["increase_low"], cost["increase_high"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--heal", "lora", "--quantize", 8)])
def test_pruning_json_makes_the_same_again(run, model, tmp_path, more):
    """Trained and quantized too, with nothing left of the first time: compared tensor by tensor."""
    run("prune", model, "--ratio", 0.4, *more, "--out", tmp_path / "first")
    shutil.rmtree(tmp_path / "results")
    for made in paths.CACHE.iterdir():
        if not made.is_symlink():
            shutil.rmtree(made)
    run("prune", "--like", tmp_path / "first" / "pruning.json", "--out", tmp_path / "second", profile="")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    assert (tmp_path / "first" / "README.md").read_text() == (tmp_path / "second" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "first").config.num_hidden_layers == 3


def test_a_pruning_json_brings_no_leave_to_run_code(tmp_path):
    profile = replace(profiles.get("smoke"), trust_remote_code=True, trust_tasks=True)
    (tmp_path / "pruning.json").write_text(json.dumps({"profile": asdict(profile)}))
    found = json.loads((tmp_path / "pruning.json").read_text())
    for leave in (False, True):
        read = pruning_record.profile_of(found, "pruning.json", leave)
        assert (read.trust_remote_code, read.trust_tasks) == (leave, leave)
    assert replace(read, budgets=profile.budgets) == profile, "and all else as it was"


@pytest.mark.slow
def test_as_many_go_as_a_loss_of_calibration_text_allows(run, model, tmp_path):
    found = json.loads(run("prune", model, "--max-loss", 50, "--out", tmp_path / "all", "--json"))
    assert len(found["removed_blocks"]) == 4, "no loss is so large"
    with pytest.raises(StudyError, match=r"costs .* nats a token already, more than 1e-09"):
        run("prune", model, "--max-loss", 1e-9, "--by", "sequential", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_pruned_model_is_pruned_again(run, model, tmp_path):
    run("prune", model, "--remove", 1, "--out", tmp_path / "one")
    run("prune", tmp_path / "one", "--remove", 1, "--out", tmp_path / "two")
    note = json.loads((tmp_path / "two" / "layer_redundancy.json").read_text())
    assert len(note["removed_blocks"]) == 2 and len(note["steps"]) == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two").config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "--out", "new"], "one of --remove, --ratio and --max-loss"),
        (["prune", "MODEL", "--remove", 1, "--ratio", 0.5, "--out", "new"], "one of --remove, --ratio and --max-loss"),
        (["prune", "MODEL", "--remove", 5, "--out", "new"], "the model has 5, so give 0 to 4"),
        (["prune", "MODEL", "--remove", 0, "--out", "new"], "give 1 to 4"),
        (["prune", "MODEL", "--remove", -1, "--out", "new"], "cannot be removed"),
        (["prune", "MODEL", "--ratio", 1, "--out", "new"], "above 0 and below 1"),
        (["prune", "MODEL", "--max-loss", 0, "--out", "new"], "above 0"),
        (["prune", "MODEL", "--remove", 1, "--by", "influence", "--out", "new"], "unknown importance measure"),
        (
            ["prune", "MODEL", "--remove", 1, "--heal", "sft", "--out", "new"],
            "no recipe 'sft': choose one of partial, lora",
        ),
        (["prune", "MODEL", "--remove", 1, "--quantize", 5, "--out", "new"], "cannot quantize to 5 bits"),
        (["prune", "MODEL", "--remove", 1, "--out", "."], "exists: choose another folder"),
        (["prune", "MODEL", "--like", "nothing.json", "--out", "new"], "give nothing else but --out"),
        (["sweep", "MODEL", "--remove", "5"], "cannot be removed"),
        (["sweep", "MODEL", "--remove", "1-3"], "write a number, a range such as 1..10, or 2,4,8"),
        (["sweep", "MODEL", "--remove", "3..1"], "write 1..3"),
        (["rank", "MODEL", "--by", "influence"], "unknown importance measure 'influence'"),
        (["rank", "no/such/folder"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line(run, model, tmp_path, arguments, message):
    arguments = [model if one == "MODEL" else one for one in arguments]
    with pytest.raises(StudyError, match=message) as raised:
        run(*arguments)
    assert "\n" not in str(raised.value) and not (tmp_path / "new").exists()


def test_another_base_model_is_not_taken_for_the_one_of_pruning_json(run, model, tmp_path):
    moved = shutil.copytree(model, tmp_path / "base")
    run("prune", moved, "--remove", 1, "--out", tmp_path / "pruned")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(StudyError, match="its weights are others"):
        run("prune", "--like", tmp_path / "pruned", "--out", tmp_path / "again", profile="")


@pytest.mark.slow
def test_models_with_other_tokens_are_compared_in_bits_a_byte(run, model):
    rows = json.loads(run("compare", model, "rwkv5-6.6m", "--json"))["rows"]
    assert rows[0]["on"] == "bits a byte" and rows[0]["low"] is None and rows[0]["first"] > rows[0]["second"]
    assert rows[1]["on"] == "agreement" and rows[1]["low"] is not None


def test_verify_exits_by_what_it_finds(tmp_path):
    expected = paths.EXPECTED / "smoke"
    own = tmp_path / "tables"
    shutil.copytree(expected, own)
    same = CliRunner().invoke(cli.app, ["verify", "smoke", "--tables", str(own), "--json"])
    assert same.exit_code == 0, same.output
    assert {one["state"] for one in json.loads(same.stdout)["tables"]} == {"as expected"}
    table = own / "figure3_single_layer_removal.csv"
    table.write_text(table.read_text().replace("50.7", "51.7", 1))
    other = CliRunner().invoke(cli.app, ["verify", "smoke", "--tables", str(own), "--json"])
    assert other.exit_code == 1
    (differs,) = [one for one in json.loads(other.stdout)["tables"] if one["state"] != "as expected"]
    assert differs["table"] == table.stem and differs["differences"]
