"""A store that was filled once is good for ever: today's code asks it for the keys of version 1.

Whoever has computed for days and then updates the package must not compute again. So the keys under which results lie
in a store, and the names of folders with models that were made, are written down here as the first version had them.
Nothing is measured: a store that has an answer to everything says what it was asked for.

A key may change on purpose, where a number's meaning changes. Then a version goes up, and its key here with it.
"""

import importlib.metadata
from dataclasses import asdict, replace
from types import SimpleNamespace

import lm_eval
import numpy as np
import pytest
import torch
import transformers as tf

import every_architecture
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Profile, Recipe, TaskBudget, TextBudget, TrainingBudget
from layer_redundancy.core import cache, paths, variants
from layer_redundancy.core.store import Key, Result, Store
from layer_redundancy.data import classification_sets, corpora
from layer_redundancy.data.classification_sets import LabelledPrompts
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate import generative_tasks, sweep
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity, RandomSequences
from layer_redundancy.experiments import healing as healing_experiment
from layer_redundancy.experiments import prompt_tuning, quantization, rivals
from layer_redundancy.experiments.prompt_tuning import Run
from layer_redundancy.inputs import Inputs, first_blocks
from layer_redundancy.methods.method import Plan
from layer_redundancy.models import checkpoints
from layer_redundancy.models.checkpoints import ModelIdentity
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.study import Study
from layer_redundancy.train import healing, training_loop
from made_up import sums

BLOCKS = 6
WHOLE = "0,1,2,3,4,5"
RECIPE = Recipe("lora", 1e-3)
TRAINING = TrainingBudget("", block_length=8, steps=3, batch=2, held_out=1)

# sha256 of the made-up texts, prompts and items below.
CALIBRATION = "f7c0ca38ab4e43c75faed2a748882cdfb9765ac4bbeb58ea1cf687f34d3372c9"
CALIBRATION_2_BLOCKS = "116f8d874c2ebbad0f028fd1694e3cd97952355070cc4be900a9284f39470df1"
CALIBRATION_1_BLOCK = "ff7ca192be3cd4006181bf70e22846592ae124590a977d0c2d1edaab1702c974"
EVALUATION = "4800562c824243a876a68c96fe4467f252dcd8bc33dc4fd084d91c970096c238"
EVALUATION_2_BY_5 = "11bd19a45931742b6af664566b04e24b051f0176eab79a378c203a71a7b7346f"
PROMPTS_2_BY_7 = "2bf4424f81a7a64996ea283fda38b8808126a768c8bec76a46c6a8dd34f01106"
DENSE_TOKENS = "045f76c84f35d22ec50dd40501d65c4dd30fa0a16fee3c7a37b64bf53238caa9"
LABELLED = "b6cda41fbde0a577099551a7b639696667a2b0519cdaf659d623bf45fdb41313"
MADE = "449adba4a928e3da35eb7c622e67814af5e8824156938ea770a04f9992c44047"
HEALED = "cd32facaf2476a26259f821181a0d5f9db991e71902403b2f45257dfae9b6307"
# Versions of packages are part of some keys, rightly so; these tests are to outlive them.
PACKAGES = "1.0"
LM_EVAL = "0.4.13"  # with which the real tasks' keys below were made


class AnsweringStore(Store):
    """Has every result, and remembers what it was asked for."""

    def __init__(self, path):
        super().__init__(path)
        self.asked = []

    def get(self, key):
        self.asked.append(key)
        if key.measurement == "activations":
            return Result({}, sums(num_sequences=3, num_blocks=BLOCKS).arrays())
        tokens = np.arange(1, 7).reshape(2, 3) if key.measurement == "continuations" else np.ones(2)
        arrays = {"nll": np.ones(2), "tokens": tokens, "score": np.zeros(BLOCKS), "seconds": np.ones(1)}
        return Result({"nll": 1.0, "bytes": 1, "seconds": 1.0, "reading": 1.0, "writing": 1.0}, arrays)

    def keys(self):
        """As they were asked for, each once."""
        return list(dict.fromkeys(self.asked))


def made_up_text(corpus, split, length, count):
    """Tokens in the order of their ids; the two splits have none in common."""
    start = {"calibration": 0, "evaluation": 5000}[split]
    return TokenBlocks(torch.arange(start, start + count * length).view(count, length), corpus, split, bos=False)


def made_up_prompts(choice, tokenizer, seed):
    """20 texts to train on, of which two are judged."""
    train = [{"input_ids": torch.tensor([1, 2, 3]), "label": torch.tensor(0)}] * 20
    words = torch.tensor([7, 8])
    fingerprint = classification_sets.fingerprint(train, train[:2], words=words)
    return LabelledPrompts(train, train[:2], words, fingerprint)


def made_anew(purpose):
    """In place of the folder in which a model is made."""
    pytest.fail(f"a {purpose} model that is there was not found")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of a model of six blocks that is not there, on made-up texts."""

    def token_blocks(budget, tokenizer, split, least=None):
        count = budget.calibration_blocks if split == "calibration" else budget.evaluation_blocks
        return made_up_text(budget.corpus, split, budget.block_length, count)

    def packed_blocks(corpus, tokenizer, split, length, count):
        return made_up_text(corpus, split, length, count)

    def training_blocks(self, corpus, length, count, held_out, seed):
        return made_up_text(corpus, "calibration", length, count + held_out)

    monkeypatch.setattr(corpora, "token_blocks", token_blocks)
    monkeypatch.setattr(corpora, "packed_blocks", packed_blocks)
    monkeypatch.setattr(Inputs, "_training_blocks", training_blocks)
    monkeypatch.setattr(classification_sets, "labelled_prompts", made_up_prompts)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "scratch_folder", made_anew)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: PACKAGES)
    monkeypatch.setattr(healing, "version", lambda name: PACKAGES)
    profile = Profile(
        name="made up",
        model="a model",
        text=TextBudget("texts", block_length=8, calibration_blocks=4, evaluation_blocks=3),
        tasks=(),
        greedy_blocks=1,
        quantization_blocks=3,
        budgets={
            "healing": {
                "training": asdict(TRAINING),
                "recipes": [asdict(RECIPE)],
                "selection_recipe": asdict(RECIPE),
                "loss_blocks": 2,
            },
            "prompt_tuning": {
                "datasets": ["movie_reviews"],
                "kept": [2],
                "shots": 4,
                "test_items": 8,
                "rate_power": 1.0,
            },
        },
    )
    identity = ModelIdentity("a model", "nowhere", "first", "model", BLOCKS, max_length=64, config=tf.LlamaConfig())
    inputs = Inputs(profile, identity)
    vars(inputs)["tokenizer"] = None
    with AnsweringStore(tmp_path / "results.sqlite") as store:
        yield Study(profile, identity, store, inputs, tmp_path / "figures")


# ------------------------------------------------------------------------------------------------ keys of results


def test_activations(study):
    study.activation_sums()
    assert study.store.keys() == [Key("model", WHOLE, "activations", CALIBRATION, "{}", 1)]


def test_perplexity_of_variants(study):
    lacks_heads_in_another_order = (0, 1, (3, 2, 0), 5)
    study.sweep([study.dense, lacks_heads_in_another_order])
    assert study.store.keys() == [
        Key("model", WHOLE, "perplexity", EVALUATION, "{}", 1),
        Key("model", "0,1,3-2-0,5", "perplexity", EVALUATION, "{}", 1),
    ]


def test_perplexity_of_a_part_and_of_another_corpus(study):
    part = Perplexity(first_blocks(study.evaluation, 2, 5))
    study.sweep([study.dense], [part, study.inputs.perplexity_on("c4")])
    assert study.store.keys() == [
        Key("model", WHOLE, "perplexity", EVALUATION_2_BY_5, "{}", 1),
        Key("model", WHOLE, "perplexity/c4", EVALUATION, "{}", 1),
    ]


def test_tasks(study):
    items = SimpleNamespace(name="quiz", fingerprint="items", num_fewshot=5, items=(), requests=(), num_items=0)
    study.sweep([study.dense], [ChoiceTask(items)])
    assert study.store.keys() == [Key("model", WHOLE, "task/quiz", "items", '{"num_fewshot": 5}', 1)]


def test_plain_forwards(study):
    study.deviation([study.dense])
    assert study.store.keys() == [
        Key("model", WHOLE, "perplexity", EVALUATION, "{}", 1),
        Key("model", WHOLE, "plain_forward", EVALUATION, "{}", 1),
    ]


def test_greedy_order(study):
    study.greedy_order()
    asked = study.store.keys()
    assert set(asked) == {Key("model", key.variant, "perplexity", CALIBRATION_1_BLOCK, "{}", 1) for key in asked}
    singles = ["1,2,3,4,5", "0,2,3,4,5", "0,1,3,4,5", "0,1,2,4,5", "0,1,2,3,5", "0,1,2,3,4"]
    assert [key.variant for key in asked[: 1 + BLOCKS]] == [WHOLE, *singles]


def test_continuations(study):
    study.continuations([study.dense, (0, 1, 2)], PromptLengths(prompts=2, prompt_tokens=3, new_tokens=4))
    lengths = '{"new_tokens": 4, "prompt_tokens": 3, "prompts": 2'
    assert study.store.keys() == [
        Key("model", WHOLE, "continuations", PROMPTS_2_BY_7, lengths + "}", 1),
        Key("model", "0,1,2", "continuations", PROMPTS_2_BY_7, f'{lengths}, "reference": "{DENSE_TOKENS}"}}', 1),
    ]


def test_continuations_by_another_model(study):
    other = replace(study, identity=replace(study.identity, fingerprint="other"))
    study.continuations_by(other, PromptLengths(prompts=2, prompt_tokens=3, new_tokens=4))
    settings = f'{{"judge": "model", "new_tokens": 4, "prompt_tokens": 3, "prompts": 2, "reference": "{DENSE_TOKENS}"}}'
    assert study.store.keys()[1:] == [Key("other", WHOLE, "continuations", PROMPTS_2_BY_7, settings, 1)]


def test_generative_tasks(study, monkeypatch):
    monkeypatch.setattr(lm_eval, "__version__", PACKAGES)
    task = generative_tasks.GenerativeTask(
        "sums", TaskBudget("sums", limit=8, num_fewshot=2), None, (0,), "prompts", "a", 4, runs_code=False, seed=0
    )

    def tokenizer(text):
        return SimpleNamespace(input_ids=[1])

    generative_tasks.evaluate(study.identity, lambda: study.stack, tokenizer, [study.dense], task, study.store)
    settings = '{"lm_eval": "1.0", "num_fewshot": 2}'
    assert study.store.keys() == [Key("model", WHOLE, "generative/sums", "prompts", settings, 1)]


def test_scores_of_selections(study):
    healing_experiment.orders(study)
    singles = ["1,2,3,4,5", "0,2,3,4,5", "0,1,3,4,5", "0,1,2,4,5", "0,1,2,3,5", "0,1,2,3,4"]
    assert set(study.store.keys()) == {
        Key("model", WHOLE, "activations", CALIBRATION, "{}", 1),
        *(Key("model", kept, "perplexity", CALIBRATION_2_BLOCKS, "{}", 1) for kept in singles),
        Key("model", WHOLE, "taylor", CALIBRATION_2_BLOCKS, "{}", 1),
        Key("model", WHOLE, "magnitude_l1", "", "{}", 1),
        Key("model", WHOLE, "magnitude_l2", "", "{}", 1),
    }


def test_bytes_of_checkpoints(study):
    quantization.disk_bytes(study, (0, 1, 2))
    assert study.store.keys() == [Key("model", "0,1,2", "disk_bytes", "", "{}", 1)]


def test_trainings(study):
    study.healed([4], RECIPE, TRAINING, seed=2).training()
    assert study.store.keys() == [Key(HEALED, "0,1,2,3,4", "training", "", "{}", 1)]


def test_models_that_methods_make(study):
    made = study.made("shortgpt", Plan({"blocks": 2}, 0.2, 0.3, 2))
    made.making_seconds()
    made.sweep([made.dense], [made.perplexity])
    rivals._speed(study, made, study.evaluation, rivals.Budget(TRAINING, RECIPE, speed_texts=2, written=5))
    quantization.disk_bytes(made, made.dense)
    made.making_bytes()
    speed = '{"device": "cpu", "texts": 2, "tokens": 8, "written": 5}'
    assert study.store.keys() == [
        Key(MADE, "0,1,2,3", "making_seconds", "", "{}", 1),
        Key(MADE, "0,1,2,3", "perplexity", EVALUATION, "{}", 1),
        Key(MADE, "0,1,2,3", "tokens_a_second", "", speed, 1),
        Key(MADE, "0,1,2,3", "disk_bytes", "", "{}", 1),
        Key(MADE, "0,1,2,3", "making_bytes", "", "{}", 1),
    ]


TUNED = '{"batch": 16, "converged": 0.05, "dataset": "movie_reviews", "dtype": "float32", "learning_rate": %s, \
"part": "test", "schedule": "constant_with_warmup", "seed": 1, "steps": 25, "trained": "%s", %s"warmup": 2, \
"weight_decay": 0.0}'


@pytest.mark.parametrize(
    "method, trained, settings",
    [
        ("untuned", "all", '{"dataset": "movie_reviews", "dtype": "float32", "part": "test"}'),
        ("prompt tuning", "all", TUNED % ("0.03", "prompts", '"virtual_tokens": 10, ')),
        ("fine-tuning", "all", TUNED % ("0.00015000000000000001", "all", "")),
        ("fine-tuning", "lora", TUNED % ("0.003", "lora", "")),
    ],
)
def test_classification(study, monkeypatch, method, trained, settings):
    monkeypatch.setattr(prompt_tuning, "trained_weights", lambda study: trained)
    prompt_tuning.results(study, [Run("movie_reviews", method, kept=2, seed=1)])
    assert study.store.keys() == [Key("model", "0,1", f"classification/{method}", LABELLED, settings, 1)]


def test_classification_of_the_validation_part(study):
    prompt_tuning.results(study, [Run("movie_reviews", "untuned", kept=2, seed=1)], "validation")
    settings = '{"dataset": "movie_reviews", "dtype": "float32", "part": "validation"}'
    assert study.store.keys() == [Key("model", "0,1", "classification/untuned", LABELLED, settings, 1)]


def test_cost_of_classification(study):
    prompt_tuning.timings(study)
    settings = '{"batch_tokens": 2048, "device": "cpu", "items": 64, "repeats": 3, "virtual_tokens": %d}'
    assert study.store.keys() == [
        Key("model", kept, "classification_cost", LABELLED, settings % virtual, 1)
        for kept in ("0,1", WHOLE)
        for virtual in (10, 0)
    ]


# ------------------------------------------------------------------------------------------------ folders of models


def made(name):
    """A finished folder in the cache."""
    folder = paths.CACHE / name
    folder.mkdir(parents=True)
    tf.LlamaConfig(num_hidden_layers=BLOCKS - 1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("removed, name", [([], "pruned-a46e80af6cef"), ([4], "pruned-dcfd98c7788b")])
def test_pruned_models(study, removed, name):
    folder = made(name)
    assert study.pruned(removed).identity.source == str(folder)


@pytest.mark.parametrize(
    "scheme, name",
    [
        (Scheme(4), "quantized-gptq-4-ce6ffc98691b"),
        (Scheme(3, "rtn"), "quantized-rtn-3-b8bf67b682b4"),
        (Scheme(8, group_size=32, symmetric=False), "quantized-gptq-8-ae5aa2b2a3cf"),
    ],
)
def test_quantized_models(study, scheme, name):
    folder = made(name)
    assert study.quantized(scheme, removed=[2]).identity.source == str(folder)


@pytest.mark.parametrize(
    "recipe, fingerprint",
    [
        (RECIPE, HEALED),
        (
            Recipe("partial", 2e-3, last_blocks=1),
            "2765717d5124cf83c3d60b1725c69f0e6537d7a6c48a9b382a5a57c2918834be",
        ),
        (
            Recipe("qlora", 1e-3, targets="mlp", rank=4, alpha=4, dropout=0.0),
            "4e21f86ec0a44435b670504f676764a3d2130b88638849bf3d48ac0ccb776745",
        ),
        (Recipe("full", 1e-4), "2151a78ea4408ba1b4827ca54289ae1363df455a408dd512e7337e5bf87afd78"),
    ],
)
def test_healed_models(study, recipe, fingerprint):
    healed = study.healed([4], recipe, TRAINING, seed=2)
    assert healed.identity.fingerprint == fingerprint
    folder = made(f"healed-{fingerprint[:12]}")
    assert healing.heal(healed.healing) == folder


def test_settings_that_are_part_of_those_names():
    """All but the last, which came later: as they are here they are left out."""
    assert asdict(Recipe("lora", 1e-3)) == {
        "method": "lora",
        "learning_rate": 1e-3,
        "targets": "all",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.05,
        "last_blocks": 3,
        "head": "trained",
    }
    assert asdict(TrainingBudget("", block_length=8, steps=3, batch=2)) == {
        "corpus": "",
        "block_length": 8,
        "steps": 3,
        "batch": 2,
        "warmup": 0,
        "schedule": "cosine",
        "held_out": 8,
        "validations": 10,
    }
    assert asdict(Scheme(4)) == {"bits": 4, "method": "gptq", "group_size": None, "symmetric": True}


def test_trainings_that_were_stopped(study, monkeypatch):
    """Their checkpoints lie in a folder that the next run must find."""
    with training_loop.workplace({"a": [1, None, "b"]}) as folder:
        assert folder.name == "training-25b3b2130850a4d5"
    asked = []

    def tuned(study, run, prompts, folder, label, weights):
        asked.append(folder.name)
        return Result({})

    monkeypatch.setattr(prompt_tuning, "_result", tuned)
    monkeypatch.setattr(study.store, "get", lambda key: None)
    prompt_tuning.results(study, [Run("movie_reviews", "prompt tuning", kept=2, seed=1)])
    assert asked == ["training-a2eeaabe77dbe1ba"]


def test_texts_of_the_hub_in_tokens(tmp_path, monkeypatch):
    class LetterTokenizer:
        bos_token_id = None

        def get_vocab(self):
            return {"b": 1, "a": 0}

    monkeypatch.setattr(paths, "CACHE", tmp_path)
    folder = tmp_path / "tokens-7786d5d4ee8d"
    folder.mkdir()
    np.save(folder / "tokens.npy", np.ones((7, 8), dtype=np.int64))
    assert corpora.packed_blocks("c4", LetterTokenizer(), "calibration", 8, 7).num_tokens == 7 * 8


# ------------------------------------------------------------------------------------------------ models, real inputs


@pytest.mark.parametrize(
    "dtype, fingerprint",
    [
        ("float32", "e0c4870122f2f03f87161f9f09a62825cbd6ea11b67da96f2b05fa0db0bda4e6"),
        ("bfloat16", "96b6bbc4025e2c01e7ae36f4d9a4c0c16d506f36068882ec9d50a09b247af4f6"),
    ],
)
def test_a_folders_model(tmp_path, dtype, fingerprint):
    files = {"config.json": '{"model_type": "llama", "num_hidden_layers": 3}', "model.safetensors": "weights"}
    for name, content in (files | {"README.md": "x", "tokenizer.json": "{}"}).items():
        (tmp_path / name).write_text(content)
    profile = replace(profiles.get("smoke"), model=str(tmp_path), dtype=dtype)
    assert checkpoints.identify(profile).fingerprint == fingerprint


def test_a_model_of_the_hub(monkeypatch):
    monkeypatch.setattr(checkpoints, "_hub_commit", lambda model, revision: "0123abc")
    monkeypatch.setattr(checkpoints, "_config", lambda *_: tf.LlamaConfig(num_hidden_layers=3))
    found = checkpoints.identify(replace(profiles.get("smoke"), model="someone/model"))
    assert found.fingerprint == "c5466ca31899134070c5b7ecbe2df13f649ebe0057e495ad39fe923a1eb852a1"


def test_the_models_that_need_no_hub():
    smollm2 = checkpoints.identify(replace(profiles.get("smoke"), model="smollm2-135m-instruct"))
    assert smollm2.fingerprint == "3c78b06746f6ca0fd28a19a8d68eb38123e2975e4dd805b832e17ecf9c68461d"
    rwkv = checkpoints.identify(replace(profiles.get("smoke"), model="rwkv5-6.6m"))
    assert rwkv.fingerprint == "f5f95f823b45e3014509299017604a0ad4b5950fc15b109d9708a8b2a365c774"


PROMPTS = {
    "test": "734ea145471c99b8f2a270aa9f0cd0b3bdbf7bbfd99dbd406ba6f83932b40e31",
    "validation": "d157a2a9920adcd47b79c6e58aab4500dfd2c869c31f9be4ed7241893c22541f",
}


@pytest.fixture(scope="module")
def inputs():
    """Of the embedded model and what the first version's default profile read."""
    profile = replace(
        profiles.get("embedded"),
        text=TextBudget("wikipedia", block_length=256, calibration_blocks=64, evaluation_blocks=8),
        seed=0,
    )
    return Inputs(profile, checkpoints.identify(profile))


def test_texts(inputs):
    assert inputs.calibration.fingerprint == "ae61948d9b93d151a2172ee5f1eedab08b7f644e31fd14c3114e4b95260465dd"
    assert inputs.evaluation.fingerprint == "0000ddfe87358bb3125d60ca71cf2d792104f60b1916c5563524d0625b6d0a89"
    training = inputs.training_text(TrainingBudget("", block_length=128, steps=24, batch=2, held_out=3), 0)
    assert training.fingerprint == "7ab66481b3907855f71599822df3acbe15e8604015f16899de2acdaf6b6ee46c"


@pytest.mark.parametrize(
    "budget, fingerprint",
    [
        (TaskBudget("agreement", limit=200), "e4a10604bfa5dcb5d3de4e059fb31c1f1a3c6681bfd7497b131012ee35908e14"),
        (TaskBudget("copying", limit=200), "5e8748b702c58d7b32906273c4d06b1836216abac8c091d34c22764931f18954"),
        (TaskBudget("last_word", limit=200), "565009242f06df5ffe6aa8e4652e38a9a33a7c8fed4b34724ca776936e108a35"),
        (
            TaskBudget("mmlu_dev_continuation", limit=60),
            "c6878bf19d2ee7fcb65d7eae39bbefce92620b1b0e6b8ec615276ba74e612a08",
        ),
        (TaskBudget("mmlu_dev", limit=60), "54da3855b9c97ef3cd0e2d5e2a75218903fa357929446e08ae575d765bd08508"),
        (TaskBudget("mmlu_dev_fewshot"), "d6d7b07591166e8523caadef8fcec0a59f5b57311eef59f5fa52a5c4b4cfaedc"),
    ],
)
def test_items_of_tasks(inputs, monkeypatch, budget, fingerprint):
    monkeypatch.setattr(lm_eval, "__version__", LM_EVAL)
    assert inputs.task(budget).data == fingerprint


def test_a_part_of_a_tasks_items(inputs, monkeypatch):
    monkeypatch.setattr(lm_eval, "__version__", LM_EVAL)
    parts = inputs.task(TaskBudget("copying", limit=24)).items.parts(3)
    assert parts[1].fingerprint == "c6362c2aee9a4dd27d4411dc2370d993c7c86f940a46453c654e8d1131128977"


def test_prompts_to_classify(inputs):
    budget = prompt_tuning.Budget(("movie_reviews",), kept=(1,), shots=40, test_items=200, max_words=12)
    found = {part: inputs.prompts_to_classify(budget.prompts("movie_reviews", 0, part)) for part in PROMPTS}
    assert {part: prompts.fingerprint for part, prompts in found.items()} == PROMPTS


SUMS = """
task: sums
custom_dataset: !function sums.data
test_split: test
fewshot_split: train
output_type: generate_until
fewshot_config: {sampler: first_n}
doc_to_text: "{{question}} ="
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
filter_list: [{name: first, filter: [{function: take_first}]}]
metadata: {version: 1.0}
"""
DATA = """
import datasets
def data(**_):
    rows = [{"question": f"{i} + 70", "answer": str(70 + i)} for i in range(9)]
    return {"train": datasets.Dataset.from_list(rows[:2]), "test": datasets.Dataset.from_list(rows[2:])}
"""


def test_items_of_generative_tasks(tmp_path):
    (tmp_path / "sums.yaml").write_text(SUMS)
    (tmp_path / "sums.py").write_text(DATA)
    task = generative_tasks.load(TaskBudget("sums", limit=4, num_fewshot=1), seed=3, folder=tmp_path)
    assert task.fingerprint == "d1c9284e274b8a3a3287329a340232d5f5c0addc8f949bcc9841ae48d234bb40"


@pytest.mark.parametrize(
    ("name", "prefix", "length", "heads", "version"),
    [
        ("llama", 20, 30, True, 1),
        ("gpt2", 0, 30, True, 1),
        ("gpt_bigcode", 0, 30, False, 1),
        ("gpt_bigcode", 0, 30, True, 2),  # its projection was read as GPT-2's
        ("llama:dynamic_rope", 0, 10, False, 1),
        ("llama:dynamic_rope", 0, 30, False, 2),  # a value was that of the longest text of the batch
        ("phi3:longrope", 0, 30, False, 2),
        ("bart", 0, 30, False, 1),
        ("bart", 20, 10, False, 2),  # prefixes were shared
    ],
)
def test_values_that_were_wrong_have_a_new_version_and_no_others(name, prefix, length, heads, version):
    config = every_architecture.CONFIGS[name]()
    identity = checkpoints.identity_of(config, profiles.get("smoke", model=name), "", "", "")
    variant = variants.without_head(6, 2, 1) if heads else variants.dense(6)
    assert sweep.key(identity, variant, RandomSequences(97, 2, prefix, length, 4)).version == version


@pytest.mark.parametrize("settings", ["{}", '{"num_fewshot": 5}'])
def test_results_of_compiled_blocks_have_a_mark_and_others_none(settings):
    measurement, identity = RandomSequences(97, 2, 0, 10, 4), SimpleNamespace(fingerprint="model", config=None)
    measurement.settings = settings
    plain, marked = (sweep.key(identity, (0, 1), measurement, compiled) for compiled in (False, True))
    assert plain == sweep.key(identity, (0, 1), measurement) and plain.settings == settings
    assert marked == replace(plain, settings='{"compiled": true' + settings[1:].replace('"num', ', "num'))
