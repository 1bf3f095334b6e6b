"""Tuning the first blocks: what is trained and what is not, scores, costs, tables, export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers as tf

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.core import paths
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.data import classification_sets
from layer_redundancy.experiments import prompt_tuning
from layer_redundancy.experiments.prompt_tuning import MEAN, PROMPTS, UNTUNED, WEIGHTS, Accuracies, Run
from layer_redundancy.figures import prompt_tuning as draw
from layer_redundancy.models import smollm2, surgery
from layer_redundancy.study import Study
from layer_redundancy.train import prompts, training_loop

WORDS = torch.tensor([11, 12])


def examples(*lengths: int) -> list[dict[str, torch.Tensor]]:
    """A text of each length, of random tokens; labels take turns."""
    tokens = {n: tiny_models.tokens(1, n, seed=n)[0] for n in lengths}
    return [{"input_ids": tokens[n], "label": torch.tensor(i % 2)} for i, n in enumerate(lengths)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model that reads the embedded model's tokens."""
    target = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(target)
    tf.AutoTokenizer.from_pretrained(smollm2.folder()).save_pretrained(target)
    return target


@pytest.fixture
def study(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", cache(tmp_path))

    def build(**changes) -> Study:
        built = Study.open("smoke", str(folder), store=tmp_path / "store.sqlite")
        changes = {"datasets": ("amazon_reviews",), "seeds": (0,)} | changes
        return built.with_profile(budgets=built.profile.with_budget("prompt_tuning", **changes).budgets)

    return build


def cache(tmp_path: Path) -> Path:
    """A cache of the test's own, with the downloads that there are."""
    own = tmp_path / "cache"
    own.mkdir()
    for path in paths.CACHE.glob("*.zip"):
        (own / path.name).symlink_to(path)
    return own


# --------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "opt", "opt_350m", "gpt_neox", "gemma2", "mamba"])
@pytest.mark.parametrize("prompted", [False, True])
def test_scores_are_those_of_plain_forwards_whatever_the_batch(kind, prompted):
    model = prompts.first_blocks_of(tiny_models.build(kind), 2)
    if prompted:
        model = prompts.with_prompts(model, torch.tensor([5, 6, 7]))
    asked = examples(5, 17, 9, 12, 6)
    alone, together = (prompts.judge(model, asked, WORDS, tokens) for tokens in (1, 10_000))
    np.testing.assert_allclose(alone[1], together[1], atol=1e-5)
    assert alone[0].tolist() == together[0].tolist()
    for place, example in enumerate(asked):
        with torch.no_grad():
            logits = model(input_ids=example["input_ids"][None]).logits[0, -1, WORDS]
        gold = logits.log_softmax(-1)[example["label"]].item()
        assert together[1][place] == pytest.approx(gold, abs=1e-5)
        assert together[0][place] == (logits.argmax() == example["label"]).item()


def test_the_head_runs_on_one_position_a_text():
    model, seen = tiny_models.build("llama"), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    batch = classification_sets.collate(examples(5, 17, 9))
    assert prompts.label_logits(model, batch, WORDS).shape == (3, 2)
    assert seen == [(3, 1, 97)]
    assert model(input_ids=batch["input_ids"]).logits.shape[1] == 17, "the hook is gone"


def test_running_out_of_memory_halves_the_batch(monkeypatch):
    model, asked, sizes = tiny_models.build("llama"), examples(8, 8, 9, 9, 10), []
    real = prompts.label_logits

    def limited(model, batch, words):
        sizes.append(len(batch["label"]))
        if len(batch["label"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(model, batch, words)

    expected = prompts.judge(model, asked, WORDS, 10_000)
    monkeypatch.setattr(prompts, "label_logits", limited)
    found = prompts.judge(model, asked, WORDS, 10_000)
    assert sizes[0] == 5 and max(sizes[2:]) <= 2
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_nan_logits_are_one_line():
    model = tiny_models.build("llama")
    model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(StudyError, match="NaN or infinite logits"):
        prompts.judge(model, examples(5), WORDS, 100)


# --------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_prompt_tuning_trains_virtual_tokens_alone_and_learns(kind, tmp_path):
    """That all texts have the same label is learnt."""
    whole = tiny_models.build(kind, scale=2.0)
    before = {name: p.clone() for name, p in whole.named_parameters()}
    model = prompts.with_prompts(prompts.first_blocks_of(whole, 3), torch.tensor([5, 6, 7, 8]))
    virtual = model.get_prompt(batch_size=1)[0]
    with torch.no_grad():
        embedded_tokens = whole.get_input_embeddings()(torch.tensor([5, 6, 7, 8]))
    torch.testing.assert_close(virtual.detach(), embedded_tokens)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_encoder.default.embedding.weight"]
    asked = [example | {"label": torch.tensor(1)} for example in examples(*range(5, 13))]
    untuned = prompts.judge(model.eval(), asked, WORDS, 1000)[1].mean()
    learnt = training_loop.fit(
        model, asked, training_loop.Optimization(40, 8, 0.1), tmp_path,
        loss=lambda m, batch: prompts.label_loss(m, batch, WORDS), collate=classification_sets.collate,
    )  # fmt: skip
    assert prompts.judge(model, asked, WORDS, 1000)[1].mean() > untuned + 0.02
    assert learnt.trainable == virtual.numel() and len(learnt.curve()[0]) == 40
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, before[name])
    kept = dict(model.get_base_model().named_parameters())
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_the_first_blocks_are_a_copy_that_leaves_the_model_whole():
    whole = tiny_models.build("llama_tied")
    few = prompts.first_blocks_of(whole, 2)
    assert whole.config.num_hidden_layers == len(whole.model.layers) == 5
    assert few.config.num_hidden_layers == len(few.model.layers) == 2
    assert few.lm_head.weight is few.model.embed_tokens.weight
    assert few.lm_head.weight is not whole.lm_head.weight
    ids = tiny_models.tokens()
    with surgery.without_layers(whole, [2, 3, 4]) as cut, torch.no_grad():
        assert torch.equal(few(input_ids=ids).logits, cut(input_ids=ids).logits)


class Ungenerative(tf.LlamaForCausalLM):
    """A model without a method that peft asks for."""

    @property
    def prepare_inputs_for_generation(self):
        raise AttributeError("no such method")


def test_a_model_that_peft_cannot_prompt_is_one_line():
    with pytest.raises(NotApplicable, match="peft cannot tune prompts of Ungenerative") as error:
        prompts.with_prompts(Ungenerative(tiny_models.CONFIGS["llama"]()), torch.tensor([5]))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_runs_are_stored_and_a_second_study_loads_no_model(study):
    first = study()
    runs = prompt_tuning.every_run(first)
    assert [(run.method, run.kept) for run in runs] == [
        (UNTUNED, 1), (UNTUNED, 3), (PROMPTS, 1), (WEIGHTS, 1), (PROMPTS, 3), (WEIGHTS, 3)
    ]  # fmt: skip
    measured = prompt_tuning.measure(first)
    results, costs = measured.results, prompt_tuning.costs(first, measured)
    assert not list(paths.CACHE.glob("training-*")), "checkpoints of what is done are gone"
    second = study()
    remeasured = prompt_tuning.measure(second)
    again = remeasured.results
    assert "stack" not in vars(second)
    for run in runs:
        assert again[run].summary == results[run].summary
        assert np.array_equal(again[run].arrays["gold_logprob"], results[run].arrays["gold_logprob"])
    pd.testing.assert_frame_equal(prompt_tuning.costs(second, remeasured), costs)
    assert "stack" not in vars(second)
    other = study(weights_rate=1e-3)
    changed = prompt_tuning.results(other, runs[-2:])
    assert changed[runs[-2]].summary == results[runs[-2]].summary, "prompts' rate is the same"
    assert not np.array_equal(changed[runs[-1]].arrays["gold_logprob"], results[runs[-1]].arrays["gold_logprob"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(study, tmp_path):
    run = Run("amazon_reviews", WEIGHTS, 1, 0)
    built = study()
    one = prompt_tuning.results(built, [run])[run]
    built.store.close()
    (tmp_path / "store.sqlite").unlink()
    other = prompt_tuning.results(study(), [run])[run]
    assert np.array_equal(one.arrays["gold_logprob"], other.arrays["gold_logprob"])


def test_the_test_part_is_never_trained_on(study):
    built = study(demonstrations=1)
    for seed in (0, 1):
        asked = built.inputs.prompts_to_classify(prompt_tuning.budget_of(built).prompts("amazon_reviews", seed))
        data = classification_sets.load("amazon_reviews", prompt_tuning.budget_of(built).max_words)
        read = [built.tokenizer.decode(example["input_ids"]) for example in asked.train]
        assert len(read) == 2 * prompt_tuning.budget_of(built).shots
        assert not any(f"Review: {text}\n" in whole for whole in read for text in data.test.texts)
        shown = {whole.rpartition("Review:")[0] for whole in read}
        assert len(shown) == 1 and not any(whole.rpartition("Review:")[2] in shown.copy().pop() for whole in read)


def test_word_counts_see_the_very_shots(study, monkeypatch):
    built, seen = study(demonstrations=1), []
    monkeypatch.setattr(
        classification_sets, "bag_of_words", lambda train, judged: seen.append(train.texts) or np.zeros(len(judged))
    )
    prompt_tuning.bag_of_words(built, "amazon_reviews")
    choice = prompt_tuning.budget_of(built).prompts("amazon_reviews", 0)
    read = [built.tokenizer.decode(e["input_ids"]) for e in built.inputs.prompts_to_classify(choice).train]
    assert list(seen[0]) == [whole.rpartition("Review: ")[2].partition("\n")[0] for whole in read]


def test_too_long_a_prompt_is_one_line(study):
    built = study()
    identity = replace(built.identity, max_length=15)
    built = replace(built, identity=identity, inputs=replace(built.inputs, identity=identity))
    with pytest.raises(StudyError, match="takes 15 tokens, a prompt of amazon_reviews has"):
        prompt_tuning.results(built)


def test_lora_takes_the_place_of_all_weights_where_they_do_not_fit(study, monkeypatch):
    built = study()
    assert prompt_tuning.trained_weights(built) == "all"
    monkeypatch.setattr(prompt_tuning, "FITS", 1e-9)
    assert prompt_tuning.trained_weights(built) == "lora"
    run = Run("amazon_reviews", WEIGHTS, 1, 0)
    found = prompt_tuning.results(built, [run])[run]
    assert 0 < found.summary["trainable"] < 10_000
    assert "LoRA of rank 8" in prompt_tuning.note(built)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["all", "prompts", "lora"])
def test_weights_of_16_bits_are_tuned_too(study, monkeypatch, how):
    built = study()
    built = built.with_profile(dtype="bfloat16")
    if how == "lora":
        monkeypatch.setattr(prompt_tuning, "FITS", 1e-9)
    run = Run("amazon_reviews", PROMPTS if how == "prompts" else WEIGHTS, 1, 0)
    found = prompt_tuning.results(built, [run])[run]
    assert built.stack.model.dtype == torch.bfloat16
    assert np.isfinite(found.arrays["gold_logprob"]).all() and found.summary["trainable"] > 0


# --------------------------------------------------------------------------------------------- costs


@pytest.mark.slow
def test_more_blocks_cost_more(study):
    built = study()
    costs = prompt_tuning.costs(built, prompt_tuning.measure(built)).set_index(["method", "kept"])
    block = sum(p.numel() for p in built.stack.blocks[0].parameters())
    for method in (PROMPTS, WEIGHTS):
        few, whole = costs.loc[method, 1], costs.loc[method, 3]
        assert whole["parameters"] - few["parameters"] == 2 * block
        assert whole["inference_bytes"] - few["inference_bytes"] == pytest.approx(8 * block, rel=0.2)
        assert few["inference_bytes"] > 4 * few["parameters"]
        assert whole["training_bytes"] > few["training_bytes"]
    assert costs.loc[WEIGHTS, 1]["training_bytes"] > 16 * costs.loc[WEIGHTS, 1]["parameters"]
    assert costs.loc[PROMPTS, 1]["training_bytes"] < costs.loc[WEIGHTS, 1]["training_bytes"]


# --------------------------------------------------------------------------------------------- tables


def found(rates: dict[tuple[str, int], float], seeds: int = 3, items: int = 200, names=("one", "two")) -> dict:
    """Results in which runs of a (method, kept) get about so many of the items right, easy items first."""
    rng = np.random.default_rng(0)
    results = {}
    for name in names:
        ease = rng.random(items)
        for (method, kept), rate in rates.items():
            for seed in range(seeds):
                correct = ease + 0.05 * rng.standard_normal(items) < rate
                summary = {} if method == UNTUNED else {"train_accuracy": 1.0}
                results[Run(name, method, kept, seed)] = Result(summary, {"correct": correct, "gold_logprob": -ease})
    return results


def test_intervals_hold_seeds_and_items_and_differences_are_paired():
    accuracies = Accuracies(found({(WEIGHTS, 1): 0.6, (WEIGHTS, 4): 0.7}))
    table = prompt_tuning.by_depth(accuracies).set_index(["dataset", "kept"])
    assert (table["low"] < table["accuracy"]).all() and (table["accuracy"] < table["high"]).all()
    assert table.loc[(MEAN, 1), "accuracy"] == pytest.approx(
        (table.loc[("one", 1), "accuracy"] + table.loc[("two", 1), "accuracy"]) / 2
    )
    width = table["high"] - table["low"]
    assert (width[MEAN] < width["one"]).all() and table.loc[(MEAN, 1), "n"] == 400
    pair = prompt_tuning.against_whole(accuracies).set_index(["dataset", "kept"])
    assert pair.loc[("one", 1), "difference"] == pytest.approx(-10, abs=4)
    assert pair.loc[("one", 1), "high"] - pair.loc[("one", 1), "low"] < 100 * width["one", 1], "paired by item"


def test_data_sets_of_different_size_weigh_the_same():
    small, large = (found({(WEIGHTS, 1): 0.6}, items=n, names=(name,)) for n, name in ((20, "one"), (300, "two")))
    accuracies = Accuracies(small | large)
    means = [accuracies.values(name, WEIGHTS, 1).mean() for name in ("one", "two")]
    assert accuracies.values(MEAN, WEIGHTS, 1).mean() == pytest.approx(np.mean(means))


def test_intervals_are_wider_where_seeds_differ():
    same = found({(WEIGHTS, 1): 0.6}, names=("one",))
    other = {run: result for run, result in same.items()}
    for run in other:
        correct = np.arange(200) < (20, 120, 199)[run.seed]
        other[run] = Result({}, {"correct": correct, "gold_logprob": correct})
    one, two = (prompt_tuning.by_depth(Accuracies(f)).iloc[0] for f in (same, other))
    assert two["high"] - two["low"] > 3 * (one["high"] - one["low"])
    assert two["seed_low"] == 0.1 and two["seed_high"] == 0.995


@pytest.fixture
def judged(study, monkeypatch):
    """Results -> their verdicts by statement, beside word counts that get 0.4 of the texts right."""
    built = study(datasets=("amazon_reviews",))
    words = np.tile(np.random.default_rng(1).random(200) < 0.4, (5, 1))
    monkeypatch.setattr(prompt_tuning, "bag_of_words", lambda study, name: words)

    def verdicts(rates: dict[tuple[str, int], float], **changed: float) -> dict[str, str]:
        results = found(rates, seeds=5, names=("amazon_reviews",))
        for result in results.values():
            result.summary.update(changed)
        table = prompt_tuning.claim(built, results).set_index("statement")
        assert (table["matters"] == prompt_tuning.MATTERS).all() and (table["on"] == "accuracy").all()
        return table["verdict"].to_dict()

    return verdicts


def test_parts_that_are_as_good_as_all_are_told_from_parts_that_are_not(judged):
    one, few = (f"fine-tuning: the first {what} is at most 3 points behind all of them" for what in (
        "block alone", "quarter of the blocks"))  # fmt: skip
    assert few == prompt_tuning.PRIMARY
    learnt = ["fine-tuning: the first quarter of the blocks beats word counts"]
    learnt += ["fine-tuning: all blocks beat word counts of the same shots"]
    worse = judged({(WEIGHTS, 1): 0.6, (WEIGHTS, 2): 0.7, (WEIGHTS, 8): 0.95})
    assert worse == {few: "refuted", one: "refuted"} | dict.fromkeys(learnt, "supported")
    better = judged({(WEIGHTS, 1): 0.95, (WEIGHTS, 2): 0.95, (WEIGHTS, 8): 0.85})
    assert better == {few: "supported", one: "supported"} | dict.fromkeys(learnt, "supported")


def test_nothing_is_said_of_parts_that_did_not_learn(judged, study):
    learnt = ["fine-tuning: the first quarter of the blocks beats word counts"]
    learnt += ["fine-tuning: all blocks beat word counts of the same shots"]
    rates = {(WEIGHTS, 1): 0.45, (WEIGHTS, 2): 0.7, (WEIGHTS, 8): 0.95}
    assert list(judged(rates)) == [prompt_tuning.PRIMARY, *learnt], "one block is no better than word counts"
    assert list(judged(rates, train_accuracy=0.9)) == learnt

    results = found(rates, seeds=5, names=("amazon_reviews",))
    built = study()
    (line,) = prompt_tuning.unfair(built, results)
    assert "the first block alone" in line and line.endswith("not surely better than word counts of the same shots")
    results[Run("amazon_reviews", WEIGHTS, 8, 3)].summary["train_accuracy"] = 0.9
    assert [line.partition(": 8 blocks did not learn")[0] for line in prompt_tuning.unfair(built, results)] == [
        f"no verdict on '{prompt_tuning.PRIMARY}' (primary)",
        f"no verdict on '{prompt_tuning.as_good(WEIGHTS, prompt_tuning.ONE)}'",
    ], "nor of parts against a whole that did not"


def test_a_primary_statement_that_nothing_was_measured_for_is_named(judged, study):
    whole = found({(WEIGHTS, 8): 0.95}, seeds=5, names=("amazon_reviews",))
    (line,) = prompt_tuning.unfair(study(), whole)
    assert line == f"no verdict on '{prompt_tuning.PRIMARY}' (primary): no part of the model was fine-tuned"


def test_the_quarter_is_the_nearest_part():
    assert prompt_tuning.quarter([1, 8, 30], 30) == 8 and prompt_tuning.quarter([1, 2, 3], 3) == 1
    assert prompt_tuning.quarter([1, 3], 3) == 1 and prompt_tuning.quarter([4], 4) is None


def test_the_papers_numbers_stand_beside_ours(study):
    built = study()
    rates = {(UNTUNED, 1): 0.5, (UNTUNED, 3): 0.6, (WEIGHTS, 1): 0.6, (WEIGHTS, 3): 0.9}
    table = prompt_tuning.beside_paper(built, Accuracies(found(rates)))
    reported = table[table["source"] == "paper"].iloc[0]
    assert (reported["kept"], reported["accuracy"], reported["whole"]) == (2, 80.23, 77.04)
    assert reported["difference"] == pytest.approx(3.19)
    assert table[table["source"] == "measured"]["kept"].tolist() == [1]
    costs = pd.DataFrame({"kept": [1, 3], "method": WEIGHTS, "parameters": [2e6, 4e6], "inference_bytes": [3e6, 9e6]})
    sizes = prompt_tuning.sizes_beside_paper(built, costs).set_index("model")
    assert sizes.loc["GPT-2 XL", "fewer_weights"] == pytest.approx(93, abs=0.1)
    assert sizes.loc[built.identity.name, "fewer_weights"] == 50
    assert sizes.loc[built.identity.name, "less_memory"] == pytest.approx(100 * 2 / 3)


def test_a_rate_is_judged_on_the_validation_part_alone(study):
    built = study(seeds=(0, 1))
    (trial,) = prompt_tuning.trials(built)
    assert (trial.rate, trial.batch, trial.steps) == (prompt_tuning.budget_of(built).weights_rate, 4, 1)
    error = trial.loss(1e-3, 5)
    runs = [Run("amazon_reviews", WEIGHTS, kept, 5) for kept in (1, 3)]
    found = prompt_tuning.results(study(weights_rate=1e-3), runs, "validation")
    assert error == pytest.approx(1 - np.mean([result.arrays["correct"].mean() for result in found.values()]))


@pytest.mark.slow
def test_training_ends_when_the_shots_are_learnt(study):
    """By the loss of a whole epoch, and at the cap otherwise."""
    run = Run("amazon_reviews", WEIGHTS, 1, 0)
    easy, hard = (study(epochs=(9, 9), converged=loss) for loss in (9.0, 1e-9))
    ended, capped = (prompt_tuning.results(one, [run])[run] for one in (easy, hard))
    assert len(ended.arrays["loss"]) == 1 and len(capped.arrays["loss"]) == 9, "an epoch is one step here"
    assert capped.summary["train_loss"] == pytest.approx(capped.arrays["loss"][-1])
    assert np.array_equal(ended.arrays["loss"], capped.arrays["loss"][:1])


@pytest.mark.slow
def test_figures_are_drawn(study):
    built = study()
    measured = prompt_tuning.measure(built)
    results = measured.results
    accuracies = Accuracies(results)
    rows, levels = prompt_tuning.by_depth(accuracies), prompt_tuning.baselines(built)
    figure = draw.accuracy_by_kept_blocks(rows, levels)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "3"]
    costs = draw.tuning_costs(prompt_tuning.costs(built, measured))
    assert len(costs.axes) == 3
    table = prompt_tuning.run_table(built, results)
    assert (table["low"] <= table["accuracy"]).all() and table["trainable"].isna().sum() == 2
    assert table["train_accuracy"].isna().sum() == table["steps"].isna().sum() == 2


# --------------------------------------------------------------------------------------------- export


@pytest.mark.slow
@pytest.mark.parametrize("how", ["all", "prompts", "lora"])
def test_an_export_is_loaded_again_and_equal(study, tmp_path, monkeypatch, how):
    built = study()
    if how == "lora":
        monkeypatch.setattr(prompt_tuning, "FITS", 1e-9)
    run = Run("amazon_reviews", PROMPTS if how == "prompts" else WEIGHTS, 2, 0)
    target = prompt_tuning.export(built, run, tmp_path / "tuned")
    model = tf.AutoModelForCausalLM.from_pretrained(target / "model")
    assert model.config.num_hidden_layers == 2
    assert (target / "adapter").exists() == (how != "all")
    if how != "all":
        model = peft.PeftModel.from_pretrained(model, target / "adapter")
    asked = built.inputs.prompts_to_classify(prompt_tuning.budget_of(built).prompts(run.dataset, run.seed))
    gold = prompts.judge(model.eval(), asked.judged, asked.words, 1000)[1]
    np.testing.assert_allclose(gold, prompt_tuning.results(built, [run])[run].arrays["gold_logprob"], atol=1e-4)
    with pytest.raises(StudyError, match="exists: choose another folder"):
        prompt_tuning.export(built, run, target)


def test_every_profile_names_data_that_there_is():
    for profile in map(profiles.get, profiles.shipped()):
        budget = profile.budget(prompt_tuning.Budget)
        assert set(budget.datasets) <= set(classification_sets.SOURCES)
        assert prompt_tuning.depths(budget, 2)[-1] == 2 and prompt_tuning.depths(budget, 1) == [1]
