"""The search for learning rates, on losses whose best rate is known; and that profiles have what it found."""

import math

import pytest

from layer_redundancy.experiments import learning_rates
from layer_redundancy.experiments.learning_rates import Trial
from tools import rates


def trial(name, best, seen=None):
    """Something whose loss is lowest at a rate, in both seeds, and breaks down far above it."""

    def loss(rate, seed):
        if seen is not None:
            seen.append((name, rate, seed))
        return math.nan if rate > 100 * best else 3 + 0.01 * seed + abs(math.log10(rate / best))

    return Trial("healing", name, "LoRA", 16, 4, best, loss)


def run(trials):
    return lambda asked: [trials[place].loss(rate, seed) for place, rate, seed in asked]


def test_every_trial_is_tried_on_one_grid_and_beyond_its_end_where_the_best_lies_there():
    seen = []
    trials = [trial("inside", 1e-3, seen), trial("above", 3e-2, seen), trial("below", 3e-5, seen)]
    table = learning_rates.search(trials, run(trials), grid=(3e-4, 1e-3, 3e-3), seeds=2)
    chosen = table[table["best"]].set_index("subject")["rate"].to_dict()
    assert chosen == {"inside": 1e-3, "above": 3e-2, "below": 3e-5}
    tried = table.groupby("subject")["rate"].agg(list).to_dict()
    assert tried["inside"] == [3e-4, 1e-3, 3e-3]
    assert tried["above"] == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert tried["below"] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert len(seen) == len(set(seen)) == 2 * len(table), "each rate with each seed, once"
    assert table.loc[table["subject"] == "inside", "loss"].iloc[1] == pytest.approx(3.005)


def test_a_training_that_broke_down_is_never_best():
    assert learning_rates.best({1e-3: math.nan, 3e-3: 5.0, 1e-2: 5.0}) == 3e-3


def test_the_embedded_profile_has_the_rates_that_were_best():
    table = learning_rates.table("embedded")
    best = table[table["best"]].set_index(["experiment", "subject", "trained"])
    tried = rates.trials("embedded", "")
    assert {one.experiment for one in tried} - set(table["experiment"]) == {"prompt_tuning"}, "its rate is an older one"
    for one in [one for one in tried if one.experiment != "prompt_tuning"]:
        row = best.loc[one.name]
        assert (row["rate"], row["steps"], row["batch"]) == (one.rate, one.steps, one.batch), one.name
        losses = table.set_index(["experiment", "subject", "trained"]).loc[[one.name]].set_index("rate")["loss"]
        assert learning_rates.best(losses.to_dict()) == one.rate
        assert losses.index.min() < one.rate < losses.index.max(), f"{one.name}: the best lies on the grid's end"
