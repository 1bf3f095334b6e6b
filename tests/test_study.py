"""The notebooks' path on models that are not the profile's: tiny random ones in local folders."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import notebook_cells
from layer_redundancy.config import profiles
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.data import corpora
from layer_redundancy.evaluate import amounts, sweep
from layer_redundancy.experiments import (
    benchmarks,
    block_pruning,
    healing,
    prune_ratio,
    quantization,
)
from layer_redundancy.methods import replace_me
from layer_redundancy.models import surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.planning import dry
from layer_redundancy.study import Study
from made_up import checkpoint


@pytest.fixture
def root(tmp_path):
    """A project folder of its own: the real inputs, but results and figures that nobody else sees."""
    cache = tmp_path / "root" / "data" / "cache"
    cache.mkdir(parents=True)
    corpora.articles("wikipedia", "evaluation")  # so that they are in the cache and not prepared for each test
    for path in paths.CACHE.iterdir():
        (cache / path.name).symlink_to(path)
    return tmp_path / "root"


def execute(name: str, root: Path, model: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "layer_redundancy.run_notebook", str(paths.NOTEBOOKS / f"{name}.ipynb")]
    command += ["--profile", "smoke", "--model", str(model), "--output", str(root / f"{name}.ipynb")]
    env = {**os.environ, "LAYER_REDUNDANCY_ROOT": str(root)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind",
    [
        ("02_single_layer_removal", "gpt2"),
        ("04_metric_comparison", "gpt2"),
        ("06_rwkv_redundancy", "llama"),
        ("07_quantization", "llama"),
        ("11_healing", "mamba"),
    ],
)
def test_notebook_runs_on_a_users_model_and_again_without_loading_it(root, tmp_path, name, kind):
    model = checkpoint(tmp_path / "model", kind)
    code, said = notebook_cells.run(name, root, profile="smoke", model=str(model))
    assert code == 0 and "loading" in said, said
    figures = root / "figures" / profiles.artifact_folder(profiles.get("smoke", model=str(model)))
    made = {path.name: path.read_bytes() for path in figures.iterdir()}
    # No table where no statement can be made of so small a model.
    assert {".png", ".pdf", ".csv"} <= {Path(n).suffix for n in made} <= {".png", ".pdf", ".csv", ".md"}
    code, said = notebook_cells.run(name, root, profile="smoke", model=str(model))
    assert code == 0 and "loading" not in said, said
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == made, "not byte-reproducible"


@pytest.mark.slow
def test_models_of_ones_own_are_compared_and_again_without_loading_them(root, tmp_path, monkeypatch):
    """A profile's own model is none of them; one folder has a space in its name."""
    models = [checkpoint(tmp_path / "one model"), checkpoint(tmp_path / "other", "gpt2")]
    monkeypatch.chdir(tmp_path)
    named = "'one model' other"
    code, said = notebook_cells.run("14_across_models", root, profile="smoke", models=named)
    assert code == 0 and "loading" in said and profiles.EMBEDDED_MODEL not in said, said
    of = profiles.get("smoke", models=tuple(map(str, models)))
    figures = root / "figures" / profiles.across_folder(of)
    made = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert {"across_damage.png", "across_damage.csv", "across_depths.csv", "across_claim.csv"} <= set(made)
    assert [path.name for path in (root / "figures").iterdir()] == [figures.name], "nothing lies elsewhere"
    code, said = notebook_cells.run("14_across_models", root, profile="smoke", models=named)
    assert code == 0 and "loading" not in said, said
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == made, "not byte-reproducible"


@pytest.mark.slow
@pytest.mark.parametrize(("given", "told"), [({}, "name two models"), ({"model": "x"}, "name several instead")])
def test_a_notebook_that_compares_leaves_itself_out_for_a_single_model(root, tmp_path, given, told):
    if given:
        given = {"model": str(checkpoint(tmp_path / "x"))}
    _, said = notebook_cells.run("14_across_models", root, profile="smoke", **given)
    assert told in said and not (root / "figures").exists(), said


@pytest.mark.slow
def test_a_model_without_heads_leaves_notebook_05_out(root, tmp_path):
    done = execute("05_width_vs_depth", root, checkpoint(tmp_path / "model", "mamba"))
    assert done.returncode == 0 and "left out" in done.stderr and "no attention heads" in done.stderr
    assert not (root / "figures").exists() and (root / "05_width_vs_depth.ipynb").exists()


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_a_model_without_linear_layers_leaves_notebook_07_out(study, kind):
    built = study(kind)
    with pytest.raises(NotApplicable, match="cannot be quantized here"):
        quantization.measure(built)
    assert "stack" not in vars(built), "not loaded for it"


@pytest.mark.slow
def test_a_ready_quantized_checkpoint_stands_beside_ours(root, tmp_path):
    """Here one that this study has made: any that transformers loads will do."""
    model = checkpoint(tmp_path / "model")
    chosen = Study.open("smoke", str(model), store=tmp_path / "s.sqlite")
    ready = shutil.move(chosen.quantized(Scheme(8, "rtn")).identity.source, tmp_path / "ready")
    code, said = notebook_cells.run("07_quantization", root, profile="smoke", model=str(model), ready=str(ready))
    assert code == 0, said
    (table,) = (root / "figures").glob("*/table2_quantization.csv")
    assert str(ready) in table.read_text()


@pytest.fixture
def study(tmp_path):
    def build(kind="llama", **changes):
        folder = tmp_path / "model"
        if not folder.exists():
            checkpoint(folder, kind)
        return Study.open("smoke", str(folder), store=tmp_path / "store.sqlite").with_profile(**changes)

    return build


def test_threads_are_set_where_a_study_opens(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    (tmp_path / "mine.toml").write_text('extends = "smoke"\nthreads = 3\n')
    model = str(checkpoint(tmp_path / "model"))
    one, other = (
        Study.open(name, model, store=tmp_path / "s.sqlite") for name in (str(tmp_path / "mine.toml"), "smoke")
    )
    assert asked == [3]
    assert one.key("activations", 1) == other.key("activations", 1)


@pytest.mark.slow
def test_a_notebooks_parameters_decide_order_and_share(study):
    smoke = profiles.get("smoke")
    text, tasks = replace(smoke.text, block_length=16, evaluation_blocks=1), (replace(smoke.tasks[0], limit=1),)
    chosen = study("gpt2", text=text, tasks=tasks)
    found = prune_ratio.measure(chosen, "reverse_order")
    assert list(found.order) == list(range(chosen.num_blocks))[::-1]
    with pytest.raises(StudyError, match="unknown importance measure 'reverse'"):
        prune_ratio.measure(chosen, "reverse")
    num = chosen.num_blocks
    assert healing.num_removed(chosen) == max(1, round(num / 4))
    assert healing.num_removed(chosen.with_budget("healing", ratio=0.6)) == round(0.6 * num)
    assert chosen.with_budget("healing", ratio=None) is chosen
    few = chosen.with_budget("benchmarks", ratio=0.4, tasks=())
    assert benchmarks.measure(few).num_removed == round(0.4 * num)
    assert block_pruning.counts(chosen.with_budget("block_pruning", fractions=(0.5,)))[1] == [round(num / 2)]


@pytest.mark.slow
def test_results_are_reused_until_something_changes(study):
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
    first = study(text=text, tasks=())
    first.activation_sums()
    first.sweep([first.dense])
    assert "stack" in vars(first)
    second = study(text=text, tasks=())
    second.activation_sums()
    second.sweep([second.dense])
    assert "stack" not in vars(second), "the store had everything"
    second.sweep(variants.single_removal(5)[:1])
    assert "stack" in vars(second), "a new variant is measured"
    third = study(text=replace(text, block_length=33), tasks=())
    third.sweep([third.dense])
    assert "stack" in vars(third), "another text is measured"


@pytest.mark.slow
def test_maps_and_factors_are_planned_as_they_run_and_kept(study):
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
    runs = replace_me.every_run(5)

    def ask(one):
        maps, factors = one.run_maps(), one.gap_factors()
        chosen = [one.dense, *map(maps.variant, runs)]
        found = one.sweep(chosen, changes=maps, progress=False)[one.perplexity.name]
        closed = [factors.variant(removed) for removed in ([1], [0, 2], [4])]
        found |= one.sweep(closed, changes=factors, progress=False)[one.perplexity.name]
        return {variant: result.summary["nll"] for variant, result in found.items()}

    def planned(one):
        ledger = dry.Ledger()
        options = {"ledger": ledger, "shape_of": one.identity.name, "skips_stored": True}
        assert len(ask(dry.DryStudy(one.profile, one.identity, one.store, one.inputs, one.figures, **options))) == 14
        return ledger

    whole = study(text=text, tasks=())
    ledger = planned(whole)
    assert "stack" not in vars(whole)
    found = ask(whole)
    # The activations that factors are from; ten maps, whose sums are as much as a block, of five blocks.
    assert sorted(one.block_tokens for one in ledger.of(amounts.Pass)) == [2 * 32 * 5, 2 * 32 * 6]
    assert sorted(one["block_tokens"] for one in whole.store.work()) == [2 * 32 * 5, 2 * 32 * 6]
    # The dense model, and ten maps with what follows them; one block removed, two, and the last, whose first has run.
    shared = 5 + sum(1 + 5 - a - n for a, n in runs), 4 + 3 + 3
    assert [one.block_tokens for one in ledger.of(amounts.Sweep)] == [2 * 31 * blocks for blocks in shared]
    again = study(text=text, tasks=())
    assert ask(again) == found and "stack" not in vars(again) and not planned(again).work
    with pytest.raises(StudyError, match="give calibration"):
        whole.run_maps(whole.evaluation)
    with pytest.raises(StudyError, match="block 1 is to run with a change, and nothing says which"):
        whole.sweep([whole.run_maps(ridge=0.1).variant((2, 1))], progress=False)


@pytest.mark.slow
def test_pruned_and_quantized_studies_share_text_and_store(study, tmp_path, monkeypatch):
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=3, evaluation_blocks=2)
    whole = study(text=text, tasks=())
    _ = whole.stack, whole.calibration, whole.perplexity
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    pruned = whole.pruned([1, 3])
    assert pruned.num_blocks == 3 and pruned.identity.name.endswith("model without 2 blocks")
    kept = variants.without(5, [1, 3])
    ours = whole.sweep([kept])["perplexity"][kept].arrays["nll"]
    assert pruned.sweep([pruned.dense])["perplexity"][pruned.dense].arrays["nll"] == pytest.approx(ours, rel=1e-6)
    rounded = pruned.quantized(Scheme(8, "rtn"))
    assert rounded.identity.name.endswith("model without 2 blocks, round to nearest, 8 bits")
    assert rounded.store is whole.store and rounded.figures == whole.figures and "stack" not in vars(rounded)
    budget = rounded.profile.quantization_blocks
    assert rounded.calibration.input_ids.tolist() == whole.calibration.input_ids[:budget].tolist()
    nll = rounded.sweep([rounded.dense])["perplexity"][rounded.dense].arrays["nll"]
    assert nll == pytest.approx(ours, rel=1e-3) and nll.tolist() != ours.tolist()
    first = whole.quantized(Scheme(8, "rtn"), removed=[3, 1])  # rounding does not look at what it leaves out
    assert first.sweep([first.dense])["perplexity"][first.dense].arrays["nll"] == pytest.approx(nll, rel=1e-6)
    folders = sorted(path.name.rsplit("-", 1)[0] for path in paths.CACHE.iterdir())
    assert folders == ["pruned", "quantized-rtn-8", "quantized-rtn-8"]
    again = study(text=text, tasks=())
    assert again.pruned([1, 3]).identity == pruned.identity and "stack" not in vars(again), "made once"


def test_texts_for_gptq_have_no_block_in_common(study):
    whole = study(quantization_blocks=3, text=replace(profiles.get("smoke").text, calibration_blocks=4))
    texts = whole.quantization_texts(3)
    blocks = [tuple(block) for text in texts for block in text.input_ids.tolist()]
    assert len(set(blocks)) == 9 and [text.split for text in texts] == ["calibration"] * 3
    assert texts[0].input_ids.equal(whole.calibration.input_ids[:3]), "what `quantized` reads by itself"
    assert [text.corpus for text in texts] == ["wikipedia", "wikipedia, part 2", "wikipedia, part 3"]
    all_of_it = whole.with_profile(quantization_blocks=None).quantization_texts(10**6)
    assert {len(text.input_ids) for text in all_of_it} == {4} and len(all_of_it) > 100, "as many as there are"


def test_size_on_disk_is_that_of_an_export_of_16_bits(study):
    whole = study()
    variant = variants.without(5, [0, 2])
    size = quantization.disk_bytes(whole, variant)
    weights = sum(p.numel() for p in whole.stack.model.parameters()) - 2 * sum(
        p.numel() for p in whole.stack.blocks[0].parameters()
    )
    assert 0 < size - 2 * weights < 10_000, "a header"
    assert whole.stack.model.dtype == torch.float32
    again = study()
    assert quantization.disk_bytes(again, variant) == size and "stack" not in vars(again)


def test_deviation_from_plain_forwards_is_rounding_and_is_kept(study):
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
    first = study(text=text, tasks=())
    chosen = [first.dense, *variants.single_removal(5)[:2]]
    deviation = first.deviation(chosen)
    assert deviation < 1e-5
    second = study(text=text, tasks=())
    assert second.deviation(chosen) == deviation and "stack" not in vars(second)
    key = sweep.key(first.identity, first.dense, first.perplexity)
    stored = first.store.get(key)
    stored.arrays["nll"][0] += 31  # of 31 tokens
    first.store.put(key, "", stored)
    assert first.deviation(chosen) == pytest.approx(1, abs=1e-4)


def test_the_greedy_order_is_chosen_on_calibration_text_and_kept(study):
    text = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=4, evaluation_blocks=2)
    changes = {"text": text, "tasks": (), "greedy_blocks": 2, "greedy_shortlist": 1.0}
    first = study(**changes)
    order = first.greedy_order()
    assert sorted(order) == list(range(5))
    nll = {}
    for block in range(5):
        with surgery.without_layers(first.stack.model, [block]) as model, torch.no_grad():
            ids = first.calibration.input_ids[:2]
            nll[block] = model(input_ids=ids, labels=ids).loss.item()
    assert order[0] == min(nll, key=nll.get)
    second = study(**changes)
    assert (second.greedy_order() == order).all() and "stack" not in vars(second)


def test_limit_is_for_benchmarks(tmp_path):
    built = Study.open("smoke", str(checkpoint(tmp_path / "model", "llama")), store=tmp_path / "s.sqlite")
    found = benchmarks.measure(built, limit=2)
    assert built.profile.tasks == profiles.get("smoke").tasks
    assert [task.items.num_items for task in found.tasks] == [2, 2, 2, 2]
    assert benchmarks.note(built, found, 2).endswith("A quick look: 2 items a benchmark")


@pytest.mark.slow
def test_caption_names_model_revision_and_text(study):
    built = study()
    caption = built.caption(built.evaluation_note())
    assert "local folder, sha256" in caption and "5 blocks" in caption and "3 blocks of 64 tokens" in caption
    other = replace(built.identity, name="org/other", num_hidden_layers=2)
    both = replace(built, beside=(other, built.identity)).caption("What", "is shown")
    assert both.startswith("org/other (") and both.endswith(", 5 blocks). What. is shown.")
    assert both.count("blocks)") == 2 and ", 2 blocks) and " in both and "4 blocks" not in both


@pytest.mark.slow
def test_a_pruned_export_is_studied_like_any_model(study, tmp_path):
    built = study()
    surgery.export(built.stack.model, built.tokenizer, [1, 3], tmp_path / "pruned")
    pruned = Study.open("smoke", str(tmp_path / "pruned"), store=tmp_path / "store.sqlite").with_profile(tasks=())
    assert pruned.num_blocks == 3
    expected = built.sweep([(0, 2, 4)])["perplexity"][0, 2, 4].summary["perplexity"]
    assert pruned.sweep([pruned.dense])["perplexity"][0, 1, 2].summary["perplexity"] == pytest.approx(
        expected, rel=1e-3
    )


def test_export_is_a_csv_for_people(study, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    built = study(tasks=())
    built.sweep([built.dense])
    text = built.export_results().read_text()
    assert text.splitlines()[0].startswith("model_name,") and "perplexity" in text


def test_a_text_with_too_few_blocks_is_one_line(study):
    built = study("mamba", text=replace(profiles.get("smoke").text, block_length=10**6))
    with pytest.raises(StudyError, match="calibration blocks of 1000000 tokens") as e:
        built.activation_sums()
    assert "\n" not in str(e.value)


def test_blocks_longer_than_the_model_takes_are_one_line(study):
    built = study(text=replace(profiles.get("smoke").text, block_length=4096))
    with pytest.raises(StudyError, match="takes 2048 tokens, the smoke profile's blocks of text have 4096"):
        built.activation_sums()


def test_a_mistake_in_a_notebook_shows_no_stack_trace():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    with capture_output() as shown:
        InteractiveShell.instance().run_cell("from layer_redundancy.study import Study; Study.open('papre')")
    assert "StudyError: unknown profile 'papre'" in shown.stdout and "Traceback" not in shown.stdout


def test_unknown_profile_and_revision_without_model_are_one_line():
    with pytest.raises(StudyError, match="unknown profile 'papre': choose one of smoke, embedded, paper"):
        Study.open("papre")
    with pytest.raises(StudyError, match="without a model"):
        Study.open("smoke", revision="main")


def test_a_study_is_not_changed_from_outside(study):
    built = study()
    with pytest.raises(AttributeError):
        built.profile = built.profile
    with pytest.raises(AttributeError):
        built.identity = built.identity
    other = built.with_profile(seed=7)
    assert other.profile.seed == other.inputs.profile.seed == 7 and built.profile.seed == 0
    assert other.store is built.store and other.identity is built.identity


def test_a_random_order_is_that_of_its_seed(study):
    one = study()
    draws = [tuple(one.order("random", seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and sorted(draws[0]) == list(range(5))
    assert tuple(one.order("random")) == draws[0], "the profile's seed"
    with pytest.raises(
        StudyError, match="unknown importance measure 'tailor': choose one of random, perplexity, taylor"
    ):
        one.order("tailor")
