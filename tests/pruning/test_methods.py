"""`prune --method`: what it writes, and what it refuses before any weights are read; on tiny random models."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import one_line
import tiny_models
from layer_redundancy import cli
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.methods import registry
from layer_redundancy.methods.method import NEAR, Plan
from layer_redundancy.models import smollm2, surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.pruning import checkpoint as pruned_checkpoint
from layer_redundancy.study import Study
from made_up import checkpoint

LLAMA = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 5,
    "num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OWN = {"llm_pruner": "uneven", "slice_gpt": "sliced", "slice_gpt_tied": "sliced"}


def saved(folder, model):
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, tied in (("tied", True), ("untied", False)):
        config = tf.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
        saved(root / name, AutoModelForCausalLM.from_config(config))
    checkpoint(root / "gpt2", "gpt2")
    for name in ("gemma2", "baichuan"):
        saved(root / name, tiny_models.build(name))
    one = tf.LlamaConfig(**LLAMA | {"num_hidden_layers": 1})
    saved(root / "single", AutoModelForCausalLM.from_config(one))
    study = Study.open("smoke", str(root / "tied"), store=root / "s.sqlite")
    small = study.made("slice_gpt_tied", study.plans("slice_gpt_tied")[2]).stack.model
    surgery.export(small, study.tokenizer, [], root / "sliced")
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    shutil.copytree(root / "tied", root / "gptq")
    config = json.loads((root / "gptq" / "config.json").read_text())
    (root / "gptq" / "config.json").write_text(json.dumps(config | {"quantization_config": gptq}))
    return root


@pytest.fixture
def run(models, own_folders):
    """Runs a command line, where a model is one of `models`; returns what it prints, or raises what it raises."""
    (own_folders / "full").mkdir()

    def run(line):
        words = line.split()
        words[1:] = [str(models / word) if (models / word).is_dir() else word for word in words[1:]]
        if words[0] == "prune" and "--like" not in words:
            words += ["--profile", "smoke"]
        done = CliRunner().invoke(cli.app, words)
        if isinstance(done.exception, StudyError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


REFUSED = {
    "no method": ("prune tied --method lacko --ratio 0.1 --out new", "unknown method 'lacko': choose one of shortgpt"),
    "a method of no name": ("prune tied --method= --ratio 0.1 --out new", "unknown method ''"),
    "by a measure too": ("prune tied --method laco --by taylor --ratio 0.1 --out new", "--by is for removal by an"),
    "for a loss": ("prune tied --method laco --max-loss 0.1 --out new", "--max-loss is for removal by an importance"),
    "no amount": ("prune tied --method laco --out new", "say how many blocks go by one of"),
    "a method and like": ("prune --like full --method laco --out new", "give nothing else but --out"),
    "out of reach": ("prune tied --method laco --ratio 0.9 --out new", "LaCo (as printed) cannot remove 90.0 % of"),
    "between two sizes": ("prune tied --method slice_gpt_tied --ratio 0.18 --out new", "tied cannot remove 18.0 % of"),
    "next to nothing": (
        "prune smollm2-135m-instruct --method shortgpt --ratio 0.001 --out new",
        "ShortGPT cannot remove 0.1 % of this model's weights: the nearest is 2.6 %, of 2.6 to 76.3 %",
    ),
    "blocks of one that takes none": ("prune tied --method llm_pruner --remove 1 --out new", "removes no whole blocks"),
    "too many blocks": ("prune tied --method laco --remove 4 --out new", "remove 4 blocks of this model: give 1 to 3"),
    "no block": ("prune tied --method sleb --remove 0 --out new", "remove 0 blocks of this model: give 1 to 4"),
    "of a single block": ("prune single --method shortgpt --ratio 0.1 --out new", "no smaller at any of its sizes"),
    "a head that is not tied": ("prune untied --method slice_gpt_tied --ratio 0.1 --out new", "head is not the embedd"),
    "norms after the halves": ("prune gemma2 --method slice_gpt --ratio 0.1 --out new", "Gemma2ForCausalLM is none of"),
    "alibi": ("prune baichuan --method slice_gpt --ratio 0.1 --out new", "BaichuanForCausalLM is none of these"),
    "GPT-2": ("prune gpt2 --method replace_me --ratio 0.1 --out new", "cannot be used on GPT2LMHeadModel"),
    "heads of GPT-2": ("prune gpt2 --method llm_pruner --ratio 0.06 --out new", "and not for GPT2LMHeadModel"),
    "GPTQ": ("prune gptq --method shortgpt --remove 1 --out new", "has quantized weights (gptq), which ShortGPT does"),
    "GPTQ by a measure": ("prune gptq --remove 1 --out new", "GPTQ weights as they lie in memory cannot be written"),
    "blocks of a sliced model": ("prune sliced --remove 1 --out new", "SLICED can be removed: each reads the residual"),
    "the same by a method": (
        "prune sliced --method sleb --remove 1 --out new",
        "the blocks of SlicedLlamaForCausalLM differ",
    ),
    "a sliced model once more": (
        "prune sliced --method slice_gpt --ratio 0.1 --out new",
        "SlicedLlamaForCausalLM is none",
    ),
    "too little text": (
        "prune smollm2-135m-instruct --method replace_me --ratio 0.1 --out new",
        "a map of 576 x 576 numbers cannot be fitted to 512 tokens",
    ),
    "widths that no group divides": (
        "prune tied --method llm_pruner --ratio 0.06 --quantize 4 --out new",
        "LLM-Pruner on TIED: none of the group sizes",
    ),
    "no recipe": ("prune tied --method laco --remove 1 --heal sft --out new", "no recipe 'sft'"),
    "no bits": ("prune tied --method laco --remove 1 --quantize 5 --out new", "cannot quantize to 5 bits"),
    "a head that is half of two": (
        "prune tied --method slice_gpt_tied --ratio 0.24 --heal partial --out new",
        "cannot be trained apart from the embedding",
    ),
    "a folder that is there": ("prune tied --method laco --remove 1 --out full", "full exists: choose another folder"),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_come_out_is_refused_before_weights_are_read(run, models, remarks, line, words):
    said = one_line.refusal(lambda: run(line))
    assert words.replace("TIED", str(models / "tied")).replace("SLICED", str(models / "sliced")) in said
    assert "loading" not in remarks()


def test_a_quantized_model_is_refused(run, models, tmp_path, remarks):
    rounded = Study.open("smoke", str(models / "tied"), store=tmp_path / "s.sqlite").quantized(Scheme(8, "rtn"))
    remarks()
    line = f"prune {rounded.identity.source} --method shortgpt --remove 1 --out new"
    assert "has quantized weights (compressed-tensors)" in one_line.refusal(lambda: run(line))
    assert "loading" not in remarks()


# ------------------------------------------------------------------------------------------------ what is written


def weights(folder):
    return load_file(folder / "model.safetensors")


# Loads folders and says of each what class it is, or that transformers does not know it; keeps the logits.
PROGRAM = """
import sys, torch
from transformers import AutoModelForCausalLM
for imported in {imports}:
    __import__(imported)
for name in {names}:
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
    except ValueError as error:
        print(name, "unknown" if "does not recognize" in str(error) else error)
        continue
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(3, 40)[None]).logits, name + ".pt")
    print(name, type(model).__name__)
assert {imports} or not any(name.startswith("layer_redundancy") for name in sys.modules)
"""


def elsewhere(names, imports) -> dict[str, str]:
    """What a program of its own says of some folders, by their names."""
    program = PROGRAM.format(names=names, imports=imports)
    here = os.environ | {"PYTHONPATH": str(paths.ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=here, check=True)
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_folders_are_what_they_say(run, models, tmp_path):
    studies = {
        base: Study.open("smoke", str(models / base), store=tmp_path / f"{base}.sqlite") for base in ("tied", "untied")
    }
    expected = {}
    methods = ["replace_me", "llm_pruner", "slice_gpt_tied"]  # folded, of uneven widths, and sliced
    for method in methods:
        base = "untied" if method == "slice_gpt" else "tied"
        dense = studies[base]
        plan = min(dense.plans(method), key=lambda plan: abs(plan.removed - 0.08))
        share = plan.removed + (0.3 * NEAR if plan.blocks else 0)
        found = json.loads(run(f"prune {base} --method {method} --ratio {share} --out {method} --json"))
        assert found["method"] == method and found["plan"] == dict(plan.settings)
        note = json.loads((tmp_path / method / "layer_redundancy.json").read_text())
        (made_by,) = note["made_by"]
        assert (made_by["method"], made_by["settings"]) == (method, found["plan"])
        assert made_by["text"] == found["calibration"]["fingerprint"]
        assert len(note["removed_blocks"]) == plan.blocks and note["exported_from"] == str(models / base)
        card, about = (tmp_path / method / "README.md").read_text(), registry.find(method).card
        for words in (about.title, about.paper, about.code, about.settings, about.code_differs, about.changed):
            assert words in card
        assert f"{100 * found['removed_share']:.1f} % of all weights" in card
        needed = [f"layer_redundancy.models.{OWN[method]}"] if method in OWN else []
        assert found["needs_import"] == needed and ("Plain transformers does not load it" in card) == bool(needed)
        assert all(f"\nimport {module}\n" in card for module in needed)
        small = dense.made(method, plan).stack.model
        weights = [sum(p.numel() for p in model.parameters()) for model in (dense.stack.model, small)]
        assert weights[1] == round(weights[0] * (1 - found["removed_share"]))
        with torch.no_grad():
            expected[method] = small(input_ids=torch.arange(3, 40)[None]).logits
    own = {method: module for method, module in OWN.items() if method in methods}
    plain = {method: "LlamaForCausalLM" for method in methods if method not in own}
    assert elsewhere([*plain, *own], []) == plain | dict.fromkeys(own, "unknown")
    for method, module in own.items():
        name = f"layer_redundancy.models.{module}"
        assert elsewhere([method], [name]) == {method: f"{module.capitalize()}LlamaForCausalLM"}
    for method, ours in expected.items():
        torch.testing.assert_close(torch.load(f"{method}.pt"), ours, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("llm_pruner", 0.06)])
def test_a_folder_has_the_numbers_of_its_card(run, method, share):
    found = json.loads(run(f"prune tied --method {method} --ratio {share} --out made --json"))
    cost = found["cost"]["perplexity"]
    rows = {row["on"]: row for row in json.loads(run("evaluate made --json"))["rows"]}
    assert rows["perplexity"]["value"] == pytest.approx(cost["pruned"], rel=1e-5)
    assert rows["agreement"]["value"] == found["cost"]["tasks"][0]["pruned"]
    both = json.loads(run("compare tied made --json"))["rows"]
    assert both[0]["difference"] == pytest.approx(cost["increase"], rel=1e-3, abs=1e-6)
    assert (both[0]["low"], both[0]["high"]) == pytest.approx((cost["increase_low"], cost["increase_high"]), abs=1e-5)


def forget(tmp_path):
    """Leaves nothing of what was measured or made."""
    shutil.rmtree(tmp_path / "results")
    for made in paths.CACHE.iterdir():
        if not made.is_symlink():
            shutil.rmtree(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "tied --method slice_gpt_tied --ratio 0.24 --heal lora --quantize 8",
    ],
)
def test_pruning_json_makes_the_same_again(run, tmp_path, line):
    said = run(f"prune {line} --out first")
    assert said.startswith("first: ") and "% of all weights removed" in said.splitlines()[0]
    assert ("plain transformers does not load it" in said) == ("laco" not in line)
    forget(tmp_path)
    run("prune --like first/pruning.json --out second")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    assert (tmp_path / "first" / "README.md").read_text() == (tmp_path / "second" / "README.md").read_text()
    assert ("bits (GPTQ)" in (tmp_path / "first" / "README.md").read_text()) == ("--quantize" in line)


@pytest.mark.slow
def test_a_pruning_json_that_is_true_no_more_is_one_line(run, models, tmp_path):
    study = Study.open("smoke", str(models / "tied"), store=tmp_path / "s.sqlite")
    wanted = pruned_checkpoint.ByMethod("laco", study.plans("laco")[1])
    record = json.loads(json.dumps(pruned_checkpoint.record(study, wanted, {})))
    assert pruned_checkpoint.again(record, "it")[1] == wanted

    def like(**changes):
        (tmp_path / "bad.json").write_text(json.dumps(record | changes))
        return one_line.refusal(lambda: run("prune --like bad.json --out new"))

    assert "has no plan with the settings {'blocks': 9}" in like(plan={"blocks": 9})
    assert "unknown method 'lacko'" in like(method="lacko")
    assert "plan is none that" in like(plan=[1])
    assert "would read another text than bad.json was made from" in like(calibration={"fingerprint": "x"})
    assert "would read another text" in like(calibration={})
    del record["calibration"]
    assert "lacks calibration" in like()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda plan: pruned_checkpoint.ByMethod("lacko", plan), "unknown method 'lacko'"),
        (lambda plan: pruned_checkpoint.ByMethod("laco", 0.3), "0.3 is no plan: give one of study.plans('laco')"),
        (lambda plan: pruned_checkpoint.ByMethod("laco", plan, bits=5), "cannot quantize to 5 bits"),
        (lambda plan: pruned_checkpoint.ByMethod("laco", plan, heal="lora"), "'lora'"),
    ],
)
def test_a_wrong_argument_is_one_line(make, words):
    assert words in one_line.refusal(lambda: make(Plan({"blocks": 1}, 0.1, 0.2, 1)))


@pytest.mark.slow
def test_a_dry_run_counts_and_writes_nothing(run, tmp_path, remarks):
    line = "prune tied --method sleb --remove 2 --heal lora --quantize 8 --out made"
    found = json.loads(run(f"{line} --dry-run --json"))["to_compute"]
    assert (found["trainings"], found["quantizations"]) == (1, 1)
    assert found["pass_block_tokens"] >= registry.find("sleb").passes(Plan({"shortlist": 1.0}, 0, 0, 2), 5) * 512 * 5
    assert not (tmp_path / "made").exists() and "loading" not in remarks()
    run("prune tied --method sleb --remove 2 --out made")
    assert "nothing to compute" in run("prune tied --method sleb --remove 2 --out other --dry-run")


def test_the_methods_are_listed(run):
    rows = {row["method"]: row for row in json.loads(run("methods --json"))["rows"]}
    assert rows.keys() == registry.METHODS.keys()
    assert {name for name, row in rows.items() if row["loaded by"] != "plain transformers"} == OWN.keys()
    assert rows["slice_gpt"]["loaded by"] == "transformers after import layer_redundancy.models.sliced"
    table = run("methods")
    assert all(word in table for row in rows.values() for word in row.values())
