"""What a program may hand the library, and the one line in which a mistake ends: blocks, budgets, schemes, numbers."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import tiny_models
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe, TaskBudget, TextBudget, TrainingBudget
from layer_redundancy.core import paths, stats, variants
from layer_redundancy.core.store import Store, settings_text
from layer_redundancy.data import benchmark_items, corpora
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.evaluate.generate import PromptLengths
from layer_redundancy.evaluate.scoring import Perplexity
from layer_redundancy.measures import gradients, greedy, importance
from layer_redundancy.models import surgery
from layer_redundancy.models.quantize import Scheme
from layer_redundancy.pruning.checkpoint import Order, ordered, prune
from layer_redundancy.pruning.choosing import removals
from layer_redundancy.pruning.how_many import HowMany
from layer_redundancy.study import Study
from made_up import checkpoint, sums
from one_line import refusal


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of a tiny Llama of five blocks that is never loaded: mistakes are told before."""
    folder = tmp_path_factory.mktemp("arguments")
    built = Study.open("smoke", str(checkpoint(folder / "model")), store=folder / "s.sqlite")
    yield built
    assert "stack" not in vars(built), "a mistake was told only after the model was loaded"


def rows(table):
    """A table of (what it is, input..., words) as parameters whose ids are sentences."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def blocks(count, length):
    return TokenBlocks(torch.ones(count, length, dtype=torch.long), "made up", "calibration", False)


def told(line, words):
    assert all(word in line for word in words.split("|")), line


# ------------------------------------------------------------------------------------------------ blocks

NO_BLOCKS = rows(
    [
        ("a single number", 3, "blocks must be a list such as [3, 4], not 3"),
        ("nothing", None, "blocks must be a list|not None"),
        ("a text", "12", "blocks must be a list|not '12'"),
        ("bytes", b"01", "blocks must be a list"),
        ("a mapping", {1: 2}, "blocks must be a list"),
        ("an array without dimensions", np.array(1), "blocks must be a list"),
        ("a fraction", [1.5], "block 1.5 is no index: give whole numbers, 0 for the first block"),
        ("a float that is whole", np.array([1.0]), "block 1.0 is no index"),
        ("a tensor of fractions", torch.tensor([0.5]), "block 0.5 is no index"),
        ("a mask", np.array([True, False]), "block True is no index"),
        ("a mask of torch", torch.tensor([True, False]), "block True is no index"),
        ("texts", ["1"], "block '1' is no index"),
        ("not a number", [np.nan], "block nan is no index"),
        ("a list of lists", [[0]], "block [0] is no index"),
        ("a block beyond the last", [5], "block 5 is out of range: the model has blocks 0 to 4"),
        ("one before the first", [-6], "block -6 is out of range"),
        ("a block twice, counted from both ends", [0, -5], "block 0 is to be removed twice"),
        ("all blocks", range(5), "all 5 blocks are to be removed: keep at least one"),
    ]
)
VERBS = {
    "without": lambda study, removed: variants.without(5, removed),
    "pruned": lambda study, removed: study.pruned(removed),
    "quantized": lambda study, removed: study.quantized(Scheme(8, "rtn"), removed=removed),
    "healed": lambda study, removed: study.healed(removed, RECIPE, BUDGET),
}
RECIPE, BUDGET = Recipe("partial", 1e-3), TrainingBudget("", block_length=16, steps=2, batch=1, held_out=1)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("removed", "words"), NO_BLOCKS)
def test_what_names_no_blocks_is_told_before_any_work(study, verb, removed, words):
    told(refusal(lambda: VERBS[verb](study, removed)), words)


@pytest.mark.parametrize(
    "removed",
    [
        pytest.param([np.int64(1), np.int64(3)], id="numpy integers"),
        pytest.param(np.array([3, 1], np.uint8), id="an array in the order of removal"),
        pytest.param(torch.tensor([1, 3]), id="a tensor"),
        pytest.param(pd.Series([1, 3]), id="a column of a table"),
        pytest.param({3, 1}, id="a set"),
        pytest.param(range(1, 4, 2), id="a range"),
        pytest.param((1, -2), id="one counted from the end"),
    ],
)
def test_blocks_may_be_named_by_whatever_holds_whole_numbers(study, removed):
    assert variants.without(5, removed) == (0, 2, 4)
    assert all(type(block) is int for block in variants.without(5, removed))
    ours, theirs = (study.healed(one, RECIPE, BUDGET) for one in ([1, 3], removed))
    assert json.dumps(ours.healing.settings) == json.dumps(theirs.healing.settings)
    assert ours.identity == theirs.identity


def test_blocks_may_come_from_an_iterator_once(study):
    assert study.healed(iter([1, 3]), RECIPE, BUDGET).num_blocks == 3
    assert Order("block_influence", iter([np.int64(3), np.int64(1)])).removed == (3, 1)


def test_settings_of_numpys_numbers_have_the_key_of_pythons():
    assert settings_text({"blocks": np.arange(2), "rate": np.float64(0.1)}) == settings_text(
        {"blocks": [0, 1], "rate": 0.1}
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    rows(
        [
            ("a run before the first block", (4, -1, 2), "first block of a run must be a whole number from 0 to 3"),
            ("a run of no block", (4, 0, 0), "number of blocks of a run must be a whole number from 1, not 0"),
            ("a run backwards", (4, 0, -1), "number of blocks of a run must be a whole number from 1, not -1"),
            ("a run of all blocks", (4, 0, 4), "all 4 blocks"),
            ("a run that ends behind the last", (4, 2, 3), "block 4 is out of range"),
            ("a run that begins in a fraction", (4, 1.0, 1), "must be a whole number|not 1.0"),
            ("a model of no blocks", (0, 0, 1), "must be a whole number"),
        ]
    ),
)
def test_runs_of_blocks(arguments, words):
    told(refusal(lambda: variants.block_removal(*arguments)), words)


@pytest.mark.parametrize(
    ("act", "words"),
    rows(
        [
            ("an order that names a block twice", lambda: variants.cumulative_removal(4, [1, 1]), "removed twice"),
            ("a whole order that is none", lambda: variants.cumulative_removal(4, [0, 1, 2, 9]), "name each of 0 to 3"),
            ("an order that is a number", lambda: variants.cumulative_removal(4, 3), "blocks must be a list"),
            ("a model whose blocks are a text", lambda: variants.dense("4"), "number of blocks must be a whole number"),
            (
                "a negative head",
                lambda: variants.without_head(4, 0, -1),
                "head of block 0 must be a whole number",
            ),
            (
                "a head that is a text",
                lambda: variants.without_head(4, 0, "1"),
                "a whole number from 0, not '1'",
            ),
            ("a head of no block", lambda: variants.without_head(4, 9, 0), "block 9 is out of range"),
            ("heads that are no pairs", lambda: variants.without_heads(4, [0, 1]), "[(block, head), ...], not of 0"),
            ("no step between blocks", lambda: variants.single_heads(4, 4, 0), "step from block to block must be"),
            (
                "no heads at all",
                lambda: variants.head_everywhere(4, 0),
                "heads must be a whole number from 1",
            ),
            ("no head to remove", lambda: variants.random_heads(4, 4, 0, 1, 0), "0 heads are to be removed"),
            ("half a head", lambda: variants.random_heads(4, 4, 1.5, 1, 0), "heads to remove must be a whole number"),
            ("a draw without a seed", lambda: variants.random_heads(4, 4, 1, 1, None), "a seed must be a whole number"),
        ]
    ),
)
def test_orders_and_heads(act, words):
    told(refusal(act), words)


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("changes", "words"),
    rows(
        [
            ("a way of training that is none", {"method": "frob"}, "method must be one of lora, qlora, full, partial"),
            ("layers that are none", {"targets": "x"}, "targets must be one of all, mlp, not 'x'"),
            ("a rate that is no number", {"learning_rate": float("nan")}, "learning_rate must be a finite number"),
            ("an infinite rate", {"learning_rate": float("inf")}, "learning_rate must be a finite number"),
            ("a rate beyond all floats", {"learning_rate": 10**400}, "learning_rate must be a finite number, not 1000"),
            ("a negative rate", {"learning_rate": -1.0}, "learning_rate must be above 0, not -1.0"),
            ("a rate of nothing", {"learning_rate": 0}, "learning_rate must be above 0, not 0"),
            ("a rate that is a text", {"learning_rate": "1e-3"}, "learning_rate must be a number, not '1e-3'"),
            ("a rank of nothing", {"rank": 0}, "rank must be at least 1, not 0"),
            ("a rank that is a fraction", {"rank": 1.5}, "rank must be a whole number, not 1.5"),
            ("all dropped out", {"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
            ("fewer blocks than none", {"last_blocks": -1}, "last_blocks must be at least 0, not -1"),
            ("no step", {"steps": 0}, "steps must be at least 1, not 0"),
            ("a flag for a number of steps", {"steps": True}, "steps must be a whole number, not True"),
            ("no examples", {"batch": 0}, "batch must be at least 1, not 0"),
            ("blocks of no token", {"block_length": 0}, "block_length must be at least 2, not 0"),
            ("blocks of one token", {"block_length": 1}, "block_length must be at least 2, not 1"),
            ("blocks longer than the model takes", {"block_length": 4096}, "takes 2048 tokens, the blocks to train on"),
            ("fewer held out than none", {"held_out": -1}, "held_out must be at least 0, not -1"),
            ("a warmup of less than none", {"warmup": -1}, "warmup must be at least 0, not -1"),
            ("a schedule that is none", {"schedule": "frob"}, "schedule must be one of linear, cosine"),
            ("a corpus that is none", {"corpus": None}, "corpus must be a text, not None"),
        ]
    ),
)
def test_trainings(study, changes, words):
    recipe = replace(RECIPE, **{k: v for k, v in changes.items() if hasattr(RECIPE, k)})
    budget = replace(BUDGET, **{k: v for k, v in changes.items() if hasattr(BUDGET, k)})
    told(refusal(lambda: study.healed([0], recipe, budget)), words)


@pytest.mark.parametrize(
    ("act", "words"),
    rows(
        [
            ("a recipe by name", lambda s: s.healed([0], "lora", BUDGET), "'lora' is no Recipe: give"),
            ("a budget in tokens", lambda s: s.healed([0], RECIPE, 4096), "4096 is no TrainingBudget"),
            ("a negative seed", lambda s: s.healed([0], RECIPE, BUDGET, -1), "a seed must be a whole number from 0"),
            ("a seed that numpy takes none of", lambda s: s.healed([0], RECIPE, BUDGET, 2**32), "from 0 to 4294967295"),
            ("a profile's seed alike", lambda s: s.with_profile(seed=2**32), "seed must be at most 4294967295"),
            ("a scheme in bits", lambda s: s.quantized(4), "4 is no Scheme"),
            ("the training of a model as it is", lambda s: s.training(), "was not trained here: ask the study that"),
            ("lengths of prompts by number", lambda s: s.continuations([s.dense], 4), "4 is no PromptLengths"),
            (
                "a prompt of 4.0 tokens",
                lambda s: s.continuations([s.dense], PromptLengths(1, 4.0, 6)),
                "prompt_tokens must be a whole number, not 4.0",
            ),
            ("a field that is none", lambda s: s.with_profile(sed=1), "unknown key sed: did you mean seed?"),
            ("a seed that is a text", lambda s: s.with_profile(seed="a"), "seed must be a whole number, not 'a'"),
            ("no threads", lambda s: s.with_profile(threads=0), "threads must be at least 1, not 0"),
            ("threads that no machine has", lambda s: s.with_profile(threads=2**31), "threads must be at most 1024"),
            (
                "another model by the way",
                lambda s: s.with_profile(model="x"),
                "model says which model is studied: open",
            ),
            ("a revision by the way", lambda s: s.with_profile(revision="x"), "revision says which model is studied"),
            (
                "leave by the way",
                lambda s: s.with_profile(trust_remote_code=True),
                "trust_remote_code says which model",
            ),
            ("another model of no name", lambda s: s.of_model(""), "model must be given, not empty"),
            ("settings that are paths", lambda s: s.key("x", 1, settings={"a": Path("x")}), "cannot be stored: give"),
            ("tasks by name", lambda s: s.with_profile(tasks="mmlu_dev"), "tasks must be a list"),
            ("a dtype of torch", lambda s: s.with_profile(dtype=torch.float32), "dtype must be a text"),
            ("a device that is none", lambda s: s.with_profile(device="gpu"), "device must be one of cpu, cuda, auto"),
            ("leave in words", lambda s: s.with_profile(trust_remote_code="no"), "must be True or False, not 'no'"),
            ("a budget of no notebook", lambda s: s.with_budget("heal", ratio=0.2), "did you mean healing?"),
            ("a budget of nothing", lambda s: s.with_budget(None, ratio=0.2), "unknown key budgets.None: choose from"),
            ("a budget's key that is none", lambda s: s.with_budget("healing", steps=1), "unknown key"),
            ("a share above all", lambda s: s.with_budget("healing", ratio=2), "must be above 0 and below 1, not 2"),
            ("a measure that is a list", lambda s: s.order(["taylor"]), "unknown importance measure ['taylor']"),
            ("a measure without scores", lambda s: s.scores("greedy"), "unknown importance measure 'greedy'"),
            ("a random order of no seed", lambda s: s.order("random", seed=1.5), "a seed must be a whole number"),
            (
                "removals counted in fractions",
                lambda s: removals(s, "taylor", [1.5]),
                "must be a whole number, not 1.5",
            ),
            ("removals that are one number", lambda s: removals(s, "taylor", 3), "must be a list such as [1, 2, 4]"),
        ]
    ),
)
def test_what_is_asked_of_a_study(study, act, words):
    told(refusal(lambda: act(study)), words)


def test_numpys_numbers_are_numbers_in_a_budget_too(study):
    recipe = replace(RECIPE, learning_rate=np.float64(1e-3), last_blocks=np.int64(3))
    found = study.healed([0], recipe, replace(BUDGET, steps=np.int64(2)), seed=np.int64(0))
    assert found.identity == study.healed([0], RECIPE, BUDGET).identity
    assert study.with_profile(seed=np.int64(3)).profile.seed == 3
    assert repr(Scheme(np.int64(4), group_size=np.int64(16))) == repr(Scheme(4, group_size=16))


@pytest.mark.parametrize(
    ("arguments", "words"),
    rows(
        [
            ("no bits", {"bits": 0}, "cannot quantize to 0 bits: choose one of 8, 4, 3"),
            ("bits as they are", {"bits": 16}, "cannot quantize to 16 bits"),
            ("negative bits", {"bits": -4}, "cannot quantize to -4 bits"),
            ("bits as a text", {"bits": "4"}, "bits must be a whole number, not '4'"),
            ("bits as a float", {"bits": 4.0}, "bits must be a whole number, not 4.0"),
            ("a method that is none", {"method": "frob"}, "unknown quantization method 'frob'"),
            ("a method that is a list", {"method": ["rtn"]}, "unknown quantization method ['rtn']"),
            ("groups of nothing", {"group_size": 0}, "group_size must be at least 1, not 0"),
            ("a flag for a group", {"group_size": True}, "group_size must be a whole number, not True"),
            ("symmetry in words", {"symmetric": "no"}, "symmetric must be True or False, not 'no'"),
        ]
    ),
)
def test_schemes(arguments, words):
    told(refusal(lambda: Scheme(**arguments)), words)


@pytest.mark.parametrize(
    ("budget", "words"),
    rows(
        [
            ("a name and no budget", "mmlu_dev", "'mmlu_dev' is no TaskBudget"),
            ("no item", TaskBudget("mmlu_dev", limit=0), "limit must be at least 1, not 0"),
            ("fewer items than none", TaskBudget("mmlu_dev", limit=-1), "limit must be at least 1, not -1"),
            ("items as a text", TaskBudget("mmlu_dev", limit="3"), "limit must be a whole number, not '3'"),
            ("half an item", TaskBudget("mmlu_dev", limit=2.5), "limit must be a whole number, not 2.5"),
            ("a flag for items", TaskBudget("mmlu_dev", limit=True), "limit must be a whole number, not True"),
            ("items that are no number", TaskBudget("mmlu_dev", limit=float("nan")), "limit must be a whole number"),
            ("examples below none", TaskBudget("mmlu_dev_fewshot", num_fewshot=-2), "num_fewshot must be at least 0"),
            (
                "more examples than there are",
                TaskBudget("mmlu_dev_fewshot", 1, 10**4),
                "10000 is too large",
            ),
            ("a task of no name", TaskBudget(None), "name must be a text, not None"),
            ("a task of an empty name", TaskBudget(""), "name must be given, not empty"),
        ]
    ),
)
def test_tasks(study, budget, words):
    told(refusal(lambda: benchmark_items.load(budget, study.tokenizer)), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    rows(
        [
            ("blocks of a float", {"block_length": 64.0}, "block_length must be a whole number, not 64.0"),
            ("no blocks", {"evaluation_blocks": 0}, "evaluation_blocks must be at least 1, not 0"),
            ("a corpus by number", {"corpus": 5}, "corpus must be a text, not 5"),
        ]
    ),
)
def test_texts(changes, words):
    budget = replace(TextBudget("wikipedia", 64, 1, 1), **changes)
    told(refusal(lambda: corpora.token_blocks(budget, None, "evaluation")), words)


# ------------------------------------------------------------------------------------------------ numbers

SUMS = sums(4, 4)
GRID = importance.angular_grid(SUMS)


@pytest.mark.parametrize(
    ("act", "words"),
    rows(
        [
            ("a measure of no name", lambda: importance.scores(SUMS, ""), "unknown importance measure ''"),
            ("a measure by number", lambda: importance.scores(SUMS, 5), "unknown importance measure 5"),
            (
                "an order of no scores",
                lambda: importance.removal_order([], "taylor"),
                "scores must be a number a block",
            ),
            ("an order of texts", lambda: importance.removal_order(["a"], "taylor"), "scores must be a number a block"),
            ("an order of nan", lambda: importance.removal_order([1, np.nan], "taylor"), "NaN or infinite"),
            ("angles of mean tokens", lambda: importance.angular_grid(SUMS, "mean"), "choose 'last' or 'all'"),
            ("a run of no block", lambda: importance.best_start(GRID, 0), "a run of 0 blocks is out of range"),
            ("a run longer than the model", lambda: importance.best_start(GRID, 5), "choose 1 to 4"),
            ("a run of a fraction", lambda: importance.best_start(GRID, 1.5), "must be a whole number, not 1.5"),
            ("no resample", lambda: importance.bootstrap_scores(SUMS, "block_influence", 0), "whole number from 1 to"),
            ("fewer than none", lambda: stats.bootstrap_means(np.ones((3, 4)), -1, 0), "number of resamples must be"),
            ("resamples beyond memory", lambda: stats.unit_counts(4, 10**13, 0), "number of resamples must be"),
            ("nothing to resample", lambda: stats.bootstrap_means(np.ones((0, 4)), 9, 0), "nothing to resample"),
            ("a resampling of no seed", lambda: stats.bootstrap_means(np.ones((3, 4)), 9, None), "a seed must be"),
            ("a proportion of nothing", lambda: stats.accuracy_interval(0, 0), "0 of 0 is no proportion"),
            ("more right than there are", lambda: stats.accuracy_interval(4, 3), "4 of 3 is no proportion"),
            ("a share in words", lambda: greedy.removal_order(4, list, "0.5"), "greedy shortlist must be a finite"),
            ("a ratio beyond all floats", lambda: HowMany(ratio=10**400), "--ratio must be a finite number"),
            ("a ratio in words", lambda: HowMany(ratio="0.25"), "--ratio must be a finite number, not '0.25'"),
            ("a ratio that is no number", lambda: HowMany(ratio=float("nan")), "--ratio must be a finite number"),
            ("a ratio above all", lambda: HowMany(ratio=2), "--ratio 2 is out of range"),
            ("a negative ratio", lambda: HowMany(ratio=-1), "--ratio -1 is out of range"),
            ("one block and a half", lambda: HowMany(remove=1.5), "--remove must be a whole number, not 1.5"),
            ("a loss in words", lambda: HowMany(max_loss="1"), "--max-loss must be a finite number, not '1'"),
        ]
    ),
)
def test_numbers(act, words):
    told(refusal(act), words)


# ------------------------------------------------------------------------------------------------ opening, saving


@pytest.mark.parametrize(
    ("profile", "words"),
    rows(
        [
            ("none", None, "unknown profile 'None'|choose one of smoke, embedded, paper"),
            ("a number", 5, "unknown profile '5'"),
            ("an empty name", "", "unknown profile '': choose one of smoke, embedded, paper"),
            ("another case", "Smoke", "unknown profile 'Smoke'"),
            ("a blank behind", "smoke ", "unknown profile 'smoke '"),
            ("a path that leads out", "../../etc", "unknown profile '../../etc'"),
            ("a list", ["smoke"], "unknown profile|['smoke']"),
        ]
    ),
)
def test_profiles(profile, words):
    told(refusal(lambda: Study.open(profile)), words)


def test_a_profile_may_be_named_by_a_path(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "smoke"\nseed = 7\n')
    assert profiles.get(tmp_path / "mine.toml").seed == 7
    assert profiles.get(Path("smoke")).name == "smoke"


@pytest.mark.parametrize("device", ["gpu", "CPU", " cpu", "cuda:0"])
def test_devices(device, monkeypatch):
    monkeypatch.setenv("LAYER_REDUNDANCY_DEVICE", device)
    told(refusal(lambda: Study.open("smoke")), f"unknown device {device!r}: choose cpu, cuda or auto")


@pytest.mark.parametrize("name", ["../escaped", "/absolute", "a/b", "", ".", "..", None, 5, "a\0b", "a\nb"])
def test_names_of_figures_and_tables_stay_in_their_folder(study, tmp_path, name):
    inside = replace(study, figures=tmp_path / "figures")
    table = pd.DataFrame({"a": [1]})
    told(refusal(lambda: inside.save_table(table, name)), "is no name of a figure or table: give one without a folder")
    told(refusal(lambda: inside.save(Figure(), table, name)), "is no name of a figure or table")
    assert not list(tmp_path.iterdir())


def test_only_figures_and_tables_are_saved(study, tmp_path):
    inside = replace(study, figures=tmp_path)
    told(refusal(lambda: inside.save_table({"a": 1}, "t")), "{'a': 1} is no table: give a pandas DataFrame")
    told(refusal(lambda: inside.save(None, pd.DataFrame(), "t")), "None cannot be saved: give a matplotlib Figure")


@pytest.mark.parametrize(
    ("act", "words"),
    rows(
        [
            ("a perplexity of no text", lambda s: Perplexity("wikipedia"), "'wikipedia' is no text in tokens"),
            ("a perplexity of no block", lambda s: Perplexity(blocks(0, 8)), "0 blocks of 8 tokens predict nothing"),
            ("a perplexity of one token", lambda s: Perplexity(blocks(2, 1)), "2 blocks of 1 tokens predict nothing"),
            ("a perplexity by number", lambda s: Perplexity(blocks(2, 8), 5), "name must be a text, not 5"),
            (
                "a folder for its study",
                lambda s: prune("model", Order("taylor", [1]), "x"),
                "'model' is no Study: open",
            ),
            ("a recipe by name", lambda s: Order("taylor", [1], "lora"), "'lora' is no Recipe"),
            ("a recipe without its budget", lambda s: Order("taylor", [1], RECIPE), "None is no TrainingBudget"),
            ("five bits", lambda s: Order("taylor", [1], bits=5), "cannot quantize to 5 bits"),
            ("a number of blocks", lambda s: ordered(s, "taylor", 3), "3 is no HowMany: give HowMany(remove=...)"),
            ("an order by name", lambda s: prune(s, "taylor", Path("x")), "'taylor' is no Order"),
            ("a folder of no name", lambda s: prune(s, Order("taylor", [1]), ""), "cannot write to '': give a folder"),
            ("a folder that is there", lambda s: prune(s, Order("taylor", [1]), "."), ". exists: choose another"),
        ]
    ),
)
def test_what_is_pruned_and_written(study, act, words):
    told(refusal(lambda: act(study)), words)


def test_an_export_names_blocks_as_everything_does(tmp_path):
    told(
        refusal(lambda: surgery.export(None, None, 3, tmp_path / "out")), "blocks must be a list such as [3, 4], not 3"
    )


@pytest.mark.parametrize(
    ("model", "tokenizer", "words"),
    rows(
        [
            ("a folder", "model", None, "'model' is no model of transformers: give one such as study.stack.model"),
            ("a list of blocks", nn.ModuleList(), None, "is no model of transformers"),
            ("a tokenizer by name", tiny_models.build("llama"), "gpt2", "'gpt2' is no tokenizer: give one such as"),
        ]
    ),
)
def test_only_models_are_exported(tmp_path, model, tokenizer, words):
    told(refusal(lambda: surgery.export(model, tokenizer, [1], tmp_path / "out")), words)


def test_gradients_of_tokens_that_the_model_does_not_have():
    text = replace(blocks(1, 4), input_ids=torch.tensor([[5, 6, 97, 8]]))
    told(refusal(lambda: gradients.taylor(tiny_models.build("llama"), text)), "token 97 is beyond the model's 97")


# ------------------------------------------------------------------------------------------------ what is made of it


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A study of the same model in a store of its own, which is loaded."""
    folder = tmp_path_factory.mktemp("made")
    return Study.open("smoke", str(checkpoint(folder / "model")), store=folder / "s.sqlite").with_profile(tasks=())


def loss(study, variant=None):
    variant = variant or study.dense
    return study.sweep([variant], [study.perplexity], progress=False)["perplexity"][variant].summary["nll"]


def test_another_dtype_is_another_model_in_the_store(other):
    half = other.with_profile(dtype="bfloat16")
    assert half.identity.fingerprint != other.identity.fingerprint
    assert half.with_profile(dtype="float32").identity == other.identity
    assert loss(half) != loss(other) == pytest.approx(loss(half), rel=1e-3)
    assert half.stack.model.dtype == torch.bfloat16


def test_what_is_pruned_of_a_trained_model_is_that_model_without_the_blocks(other):
    healed = other.healed([1], RECIPE, BUDGET)
    pruned = healed.pruned([0])
    assert loss(pruned) == pytest.approx(loss(healed, (1, 2, 3)), abs=1e-5)
    assert len(pruned.stack) == 3 and pruned.healing is None
    told(refusal(lambda: healed.with_profile(dtype="bfloat16")), "was made in float32: change the dtype of what it")


def test_a_sweep_of_a_model_that_lacks_blocks_would_go_by_the_names_of_others(other):
    whole = loss(other, (0, 1, 2, 3))
    with surgery.without_layers(other.stack.model, [0]):
        line = refusal(lambda: loss(other, (0, 1, 2)))
        told(line, "the model in memory has 4 of its 5 blocks|end the removal first (Study.unload loads it anew)")
    assert loss(other, (0, 1, 2)) != whole


def test_a_model_whose_folder_goes_away_meanwhile(tmp_path):
    gone = Study.open("smoke", str(checkpoint(tmp_path / "gone")), store=tmp_path / "s.sqlite")
    shutil.rmtree(tmp_path / "gone")
    for act in (lambda: gone.tokenizer, lambda: gone.stack, lambda: gone.healed([0], RECIPE, BUDGET)):
        told(refusal(act), "gone is gone since the study was opened: put it back")


@pytest.mark.parametrize("method", ["partial", "full"])
def test_quantized_weights_are_not_trained_themselves(other, method):
    quantized = other.quantized(Scheme(8, "rtn"))
    line = refusal(lambda: quantized.healed([0], Recipe(method, 1e-3), BUDGET))
    told(line, "has quantized weights (compressed-tensors), which take no gradient: train adapters (lora)")


def test_results_of_what_was_made_lie_beside_the_models_own(other, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert other.export_results() != other.pruned([0]).export_results()
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_can_be_drawn_where_results_cannot_be_written(study, tmp_path, monkeypatch, remarks):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "file")
    assert "cannot write" in refusal(study.export_results)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Store(study.store.path) as read_only:
        replace(study, store=read_only).export_results()
    assert "left out as CSV (cannot write" in remarks()
