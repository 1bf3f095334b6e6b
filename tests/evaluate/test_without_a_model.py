"""Rules that read nothing: by hand on a few items, and at chance on the study's own tasks."""

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import TaskBudget
from layer_redundancy.data import benchmark_items
from layer_redundancy.evaluate import without_a_model
from layer_redundancy.evaluate.scoring import ChoiceTask
from layer_redundancy.models import smollm2

TASKS = ("agreement", "copying", "last_word")
TEXT = "The river is long, and rivers of the country are longer than a river"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.folder())


@pytest.mark.parametrize(
    ("rule", "choices", "taken"),
    [
        ("most like the text before (TF-IDF)", ["river", "mountain"], "river"),
        ("least like the text before (TF-IDF)", ["river", "mountain"], "mountain"),
        ("most like the text before in parts of words (TF-IDF)", ["riverside", "mountain"], "riverside"),
        ("most frequent words", ["the", "heptane"], "the"),
        ("rarest words", ["the", "heptane"], "heptane"),
        ("longest", ["the", "heptane"], "heptane"),
        ("shortest", ["the", "heptane"], "the"),
        ("stands most often in the text before", ["country", "river"], "river"),
        ("stands last in the text before", ["long", "country"], "country"),
        ("stands first in the text before", ["long", "country"], "long"),
    ],
)
def test_what_a_rule_takes(rule, choices, taken):
    scores = without_a_model.RULES[rule](TEXT, choices)
    assert choices[scores.argmax()] == taken and scores.min() < scores.max()
    turned = without_a_model.RULES[rule](TEXT, choices[::-1])
    assert choices[::-1][turned.argmax()] == taken


def test_a_plural_verb_after_a_word_in_s():
    rule = without_a_model.OF_ONE_TASK["agreement"]["plural after a word in -s"]
    assert rule("The rivers", ["is", "are"]).argmax() == 1 and rule("The river", ["is", "are"]).argmax() == 0


def test_an_item_on_which_a_rule_is_of_two_minds_counts_in_part(tokenizer):
    task = ChoiceTask(benchmark_items.load(TaskBudget("mmlu_dev", limit=40), tokenizer))
    found = without_a_model.table([task]).set_index("rule")
    assert (found.n == 40).all() and (found.chance == 0.25).all() and (found.task == "mmlu_dev").all()
    assert found.loc["longest"].accuracy == found.loc["shortest"].accuracy == 0.25  # letters are of one length
    answers = [item.gold for item in task.items.items]
    place = found.loc[without_a_model.MOST_OFTEN]
    assert place.accuracy == max(map(answers.count, range(4))) / 40
    assert np.isnan([place.low, place.high]).all(), "the right answers picked it"


def test_the_largest_of_several_rules_has_no_interval():
    rules = pd.DataFrame(
        [("b", "x", 0.2), ("b", "y", 0.3), ("a", "x", 0.5)], columns=["task", "rule", "accuracy"]
    ).assign(low=0.1, high=0.6, n=10, chance=0.25)
    found = without_a_model.largest(rules)
    assert found[["task", "rule", "accuracy", "rules"]].to_numpy().tolist() == [["b", "y", 0.3, 2], ["a", "x", 0.5, 1]]
    assert found[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("name", TASKS)
def test_no_rule_beats_guessing_on_the_studys_own_tasks(tokenizer, name):
    """On the items that the embedded notebooks take, and on twice as many, or all there are."""
    (limit,) = {one.limit for one in profiles.get("embedded").budgets["benchmarks"]["tasks"] if one.name == name}
    for budget in (TaskBudget(name, limit=limit), TaskBudget(name, limit=2 * limit)):
        items = benchmark_items.load(budget, tokenizer)
        found = without_a_model.table([ChoiceTask(items)])
        assert set(without_a_model.ALWAYS) <= set(found.rule) and (found.n == min(budget.limit, items.total)).all()
        better = found[found.low > found.chance]
        assert better.empty, better
