"""Notebook 10's tables, on made-up sums and results whose answers are known."""

from dataclasses import replace

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
    assert sure["start"].iloc[1] == 2 and sure["same"].iloc[1] == 1
    assert sure["distance"].iloc[1] == pytest.approx(0.02) and sure["second"].iloc[1] == pytest.approx(0.11)
    assert sure["simple"].tolist() == [4, 3, 2, 1, 0]
    unsure = block_pruning.best_starts(sums(noise=0.5), 200, seed=0)
    assert unsure["same"].min() < 0.9 and (unsure["high"] > unsure["low"]).any()
    for end in ("low", "high"):  # places in the model
        assert (unsure[end] == unsure[end].round()).all() and unsure[end].between(0, 6 - unsure["n"]).all()
    again = block_pruning.best_starts(sums(noise=0.5), 200, seed=0)
    assert again.equals(unsure)


def result(rule, healed, count, losses, right, seed=0, items=200) -> Pruned:
    """A model's results: losses of two blocks of text, and a share of items that is right."""
    nll = np.array(losses) + 0.01 * seed
    loss = Result({"perplexity": float(np.exp(nll.mean()))}, {"nll": nll * 7, "tokens": np.full(2, 7)})
    acc = (np.arange(items) < right * items).astype(float)
    start = {"whole model": 0, "simple rule": L - 1 - count}.get(rule, L - count)
    steps = {"held_out_step": np.array([0, 4]), "held_out": np.array([9.0, 3.0 + seed])}
    took = Result({"seconds": 1.0, "peak_bytes": 10, "trainable": 5}, steps) if healed else None
    tasks = {} if seed or (healed and rule in ("whole model", "last blocks")) else {"copying": task(acc)}
    return Pruned(rule, healed, count, tuple(range(start, start + count)), loss, tasks, took, seed)


def task(acc) -> Result:
    return Result({"acc": acc.mean(), "chance": 0.25}, {"acc": acc})


def found(items: int = 200) -> list[Pruned]:
    """Healing takes most of the damage away, and leaves the rules 0.02 nats apart; copying falls at two blocks."""
    parts = [
        result("whole model", False, 0, [2.0, 2.2], 0.9, items=items),
        result("whole model", True, 0, [1.9, 2.1], 0.9, items=items),
    ]
    for rule, extra in (("similarity", 1.0), ("simple rule", 3.0), ("last blocks", 5.0)):
        for n in (1, 2):
            right = 0.6 if n == 1 else 0.3
            parts.append(result(rule, False, n, [2 + extra * n, 2.2 + extra * n], right, items=items))
            if n == 1:
                healed = 0.02 + 0.01 * extra
                parts += [result(rule, True, n, [2 + healed, 2.2 + healed], 0.88, s, items) for s in (0, 1, 2)]
    return parts


def test_the_table_has_damages_paired_with_the_whole_model_over_seeds():
    table = block_pruning.table(found(), L, 1000).set_index(["rule", "healed", "count"])
    row = table.loc[("simple rule", True, 1)]
    assert row["seeds"] == 3 and row["damage"] == pytest.approx(0.06) and row["share"] == pytest.approx(100 / 6)
    assert row["low"] < row["damage"] < row["high"] and row["trainable"] == 5
    assert row["normalized"] == pytest.approx(2.16 / np.log(1000)) and row["removed"] == (4,)
    assert table.loc[("similarity", False, 2), "damage"] == pytest.approx(2)
    assert table.loc[("whole model", False, 0), "damage"] == 0


def test_accuracies_have_intervals_and_are_drawn_on_many_items_only():
    table = block_pruning.accuracy_table(found(), L)
    row = table[(table["rule"] == "similarity") & table["healed"]].iloc[0]
    assert (row["accuracy"], row["n"], row["chance"], row["task"]) == (0.88, 200, 0.25, "copying")
    assert row["low"] < 0.88 < row["high"] and len(block_pruning.drawn(table)) == len(table)
    assert block_pruning.drawn(block_pruning.accuracy_table(found(items=199), L)).empty


def test_curves_have_a_row_a_seed():
    curves = block_pruning.curve_table(found(), tokens_a_step=512)
    mine = curves[(curves["rule"] == "similarity") & (curves["tokens"] == 2048)]
    assert mine["held_out"].tolist() == [3, 4, 5] and mine["seed"].tolist() == [0, 1, 2]


def test_the_transition_lies_between_the_last_depth_above_and_the_first_below():
    falls = block_pruning.transitions(found(), L)
    np.testing.assert_allclose(falls[["before", "after"]], [[100 / 6, 100 / 3]] * 2)
    assert falls["known"].all()
    never = [one for one in found() if one.count != 2]
    assert block_pruning.transitions(never, L)["after"].isna().all()


def test_the_last_block_is_set_beside_the_simple_rule():
    ends = block_pruning.last_block_table(found())
    assert ends[["count", "healed"]].to_numpy().tolist() == [[1, False], [2, False], [1, True]]
    assert ends["difference"].tolist() == pytest.approx([2, 4, 0.02])


def test_the_claim_says_what_is_supported():
    claim = block_pruning.claim(found(), L, 100, seed=0).set_index("statement")
    assert claim.index[0] == block_pruning.PRIMARY and claim["role"].iloc[0] == "primary"
    assert claim.loc[block_pruning.PRIMARY, "measured"] == pytest.approx(0.02)
    assert set(claim["verdict"]) == {"supported"} and claim["matters"].notna().all()
    last = "losing the last block too costs more once healed, 1 block gone (nats)"
    assert claim.loc[last, "measured"] == pytest.approx(0.02)
    assert (claim["on"] == "copying").sum() == 1
    few = block_pruning.claim(found(items=199), L, 100, seed=0)
    assert (few["on"] == "perplexity").all()
    kept = [replace(one, tasks={name: task(np.ones(200)) for name in one.tasks}) for one in found()]
    assert (block_pruning.claim(kept, L, 100, seed=0)["on"] == "perplexity").all(), "nothing was lost"
    once = [one for one in found() if one.seed == 0]
    assert len(block_pruning.claim(once, L, 100, seed=0)) == len(claim), "of one seed the text alone varies"
