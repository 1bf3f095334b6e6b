"""Notebook 10's tables, on made-up sums and results whose answers are known."""

import numpy as np
import pytest

from layer_redundancy.core.store import Result
from layer_redundancy.experiments import block_pruning
from layer_redundancy.experiments.block_pruning import Pruned
from layer_redundancy.measures import importance
from layer_redundancy.measures.activations import ActivationSums

L, S = 6, 20


def sums(noise: float = 0.0) -> ActivationSums:
    """Angles of S sequences that grow with the distance, but for blocks 2 and 3, which hardly turn anything."""
    rng = np.random.default_rng(0)
    turn = np.array([0.2, 0.1, 0.01, 0.01, 0.1, 0.15])
    place = np.concatenate([[0], turn.cumsum()])
    angle = np.abs(place[None, :] - place[:, None])
    each = angle + noise * rng.standard_normal((S, L + 1, L + 1)) * (angle > 0)
    fields = {name: np.zeros((S, L + 1, L + 1)) for name in ActivationSums.__dataclass_fields__}
    return ActivationSums(**fields | {"last_angle": each, "tokens": np.full(S, 9)})


def test_rules_remove_runs_and_only_one_takes_the_last_block():
    chosen = block_pruning.runs(sums(), [0, 1, 2, 5])
    whole = tuple(range(L))
    assert {rule: plan[0] for rule, plan in chosen.items()} == dict.fromkeys(chosen, whole)
    assert chosen["similarity"][2] == (0, 1, 4, 5)
    assert chosen["simple rule"] == {0: whole, 1: (0, 1, 2, 3, 5), 2: (0, 1, 2, 5), 5: (5,)}
    assert chosen["last blocks"] == {0: whole, 1: (0, 1, 2, 3, 4), 2: (0, 1, 2, 3), 5: (0,)}


def test_best_starts_say_how_certain_they_are():
    sure = block_pruning.best_starts(sums(), 50, seed=0)
    grid = importance.angular_grid(sums())
    assert sure["n"].tolist() == [1, 2, 3, 4, 5]
    assert sure["start"].tolist() == [importance.best_start(grid, n) for n in sure["n"]]
    assert sure["start"].iloc[1] == 2 and sure["certainty"].iloc[1] == 1
    assert sure["distance"].iloc[1] == pytest.approx(0.02) and sure["second"].iloc[1] == pytest.approx(0.11)
    assert sure["simple"].tolist() == [4, 3, 2, 1, 0]
    unsure = block_pruning.best_starts(sums(noise=0.5), 200, seed=0)
    assert unsure["certainty"].min() < 0.9 and (unsure["low"] <= unsure["high"]).all()
    again = block_pruning.best_starts(sums(noise=0.5), 200, seed=0)
    assert again.equals(unsure)


def result(nll, right) -> Pruned:
    def make(rule, healed, count):
        loss = Result(
            {"perplexity": float(np.exp(np.mean(nll)))}, {"nll": np.array(nll) * 7, "tokens": np.full(len(nll), 7)}
        )
        task = Result({"acc": float(np.mean(right)), "chance": 0.25}, {"acc": np.array(right, dtype=float)})
        start = {"": 0, "simple rule": L - 1 - count}.get(rule, L - count)
        return Pruned(rule, healed, count, tuple(range(start, start + count)), loss, {"t": task})

    return make


def found() -> list[Pruned]:
    """Healing takes most of the damage away; accuracy falls at half of the blocks, healed or not."""
    good, bad = [1] * 8 + [0] * 2, [1] * 3 + [0] * 7
    parts = [result([2.0, 2.2], good)("", False, 0), result([1.9, 2.1], good)("", True, 0)]
    for rule, extra in (("similarity", 1.0), ("simple rule", 3.0), ("last blocks", 5.0)):
        for n in (2, 3):
            parts.append(result([2 + extra * n, 2.2 + extra * n], good if n == 2 else bad)(rule, False, n))
            if rule != "last blocks":
                parts.append(
                    result([2 + 0.05 * extra * n, 2.2 + 0.05 * extra * n], good if n == 2 else bad)(rule, True, n)
                )
    return parts


def test_the_table_has_losses_and_accuracies_with_intervals():
    table = block_pruning.table(found(), L, 1000)
    row = table[(table["rule"] == "simple rule") & table["healed"] & (table["count"] == 3)].iloc[0]
    assert row["loss"] == pytest.approx(2.55) and row["share"] == 50
    assert row["normalized"] == pytest.approx(2.55 / np.log(1000))
    assert (
        row["low"] < row["loss"] < row["high"] and row["accuracy_low"] < row["accuracy"] == 0.3 < row["accuracy_high"]
    )
    assert (row["n"], row["chance"], row["removed"]) == (10, 0.25, (2, 3, 4))


def test_the_transition_is_where_accuracy_comes_nearer_to_chance():
    falls = block_pruning.transitions(found(), L, 200, seed=0)
    assert len(falls) == 4 and set(falls["share"]) == {50.0} and falls["known"].all()
    assert ((falls["low"] <= 50) & (falls["high"] >= 50)).all()
    never = [one for one in found() if one.count != 3]
    assert block_pruning.transitions(never, L, 50, seed=0)["share"].isna().all()


def test_the_claim_says_which_statements_hold():
    claim = block_pruning.claim(found(), L, 100, seed=0)
    assert claim["holds"].tolist() == [True, True, True, True, True, True, True]
    assert (claim["certainty"] == 1).all()
    assert claim["measured"].iloc[0] == pytest.approx(0.95 * 2) and claim["measured"].iloc[2] == pytest.approx(5)
    worse = [
        one if one.rule != "similarity" or one.healed else result([99, 99.2], [1])(*("similarity", False, one.count))
        for one in found()
    ]
    again = block_pruning.claim(worse, L, 100, seed=0)
    assert not again["holds"].iloc[2]
