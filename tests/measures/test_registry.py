"""Every measure is declared once, and a new one is a single new entry."""

import numpy as np
import pytest

from direct_importance import made_up_sums
from layer_redundancy.config import paper_tables
from layer_redundancy.core.errors import StudyError
from layer_redundancy.experiments import depth_curves, healing, layer_importance
from layer_redundancy.measures import importance, registry, selections
from layer_redundancy.measures.registry import CURVES, REGISTRY, SCORES, SELECTIONS, Measure


def test_each_list_has_its_measures_in_the_order_of_its_tables():
    scored = ["block_influence", "relative_magnitude", "hidden_norm", "sequential", "reverse_order", "angular_distance"]
    assert list(importance.MEASURES) == scored
    assert list(registry.Listed(CURVES)) == [*scored[:-1], "greedy"]
    names = ["random", "perplexity", "taylor", "block_influence", "magnitude_l1", "magnitude_l2", "reverse_order"]
    assert list(selections.SELECTIONS) == names
    printed = paper_tables.table("reassessing_selections")
    assert set(names) <= set(printed.columns)


def test_entries_are_whole():
    for name, measure in REGISTRY.items():
        assert measure.name == name and measure.source and measure.lists
        assert measure.removed_first in ("smallest", "largest", "")
        assert set(measure.lists) <= {SCORES, CURVES, SELECTIONS}
        assert measure.from_sums or SCORES not in measure.lists, "notebook 01 has nothing but the sums"
        is_order = measure.kind in (registry.Random(), registry.Loss(step_by_step=True))
        assert measure.has_scores != is_order


def test_an_order_has_no_scores():
    with pytest.raises(StudyError, match="unknown importance measure 'greedy': choose one of perplexity, taylor"):
        importance.removal_order(np.zeros(3), "greedy")
    with pytest.raises(StudyError, match="unknown importance measure 'taylor': choose one of block_influence"):
        importance.scores(made_up_sums(), "taylor")
    assert "random" in selections.SELECTIONS and "random" not in importance.MEASURES
    with pytest.raises(KeyError):
        importance.MEASURES["taylor"]


def test_a_new_measure_from_activations_is_one_entry(monkeypatch):
    everywhere = (SCORES, CURVES, SELECTIONS)
    kind = registry.Activations(lambda s: s.norm[:, :-1], lambda s: s.first_norm[:, :-1])
    monkeypatch.setitem(REGISTRY, "input_norm", Measure("input_norm", "largest", "made up", kind, everywhere))
    sums = made_up_sums()
    score = importance.scores(sums, "input_norm")
    np.testing.assert_allclose(score, sums.norm[:, :-1].sum(0) / sums.tokens.sum())
    order = np.argsort(-score).tolist()
    assert importance.removal_order(score, "input_norm").tolist() == order
    table = layer_importance.importance_scores(sums, 5, seed=0)
    assert table[table["metric"] == "input_norm"]["first_token"].tolist() == ["included"] * 4 + ["excluded"] * 4
    assert table[["score", "low", "high"]].notna().all(axis=None)
    assert "input_norm" in set(layer_importance.strategies(table, 4, 0.25)["strategy"])
    assert depth_curves.removals_by_measure(sums, [1])["input_norm"] == {1: tuple(b for b in range(4) if b != order[0])}


def test_a_new_selection_is_one_entry_and_has_nothing_reported(monkeypatch):
    kind = registry.Weights(lambda blocks: np.arange(len(blocks), dtype=float))
    monkeypatch.setitem(REGISTRY, "made_up", Measure("made_up", "largest", "made up", kind, (SELECTIONS,)))
    assert list(selections.SELECTIONS)[-1] == "made_up" and "made_up" not in importance.MEASURES
    assert importance.removal_order(kind.score([None] * 4), "made_up").tolist() == [3, 2, 1, 0]
    loss = np.array([[2.0, 2.1]])
    found = [healing.Selected(name, [(1,)], loss, loss) for name in ("made_up", "taylor")]
    rows = healing.selection_table(found, dense=loss[0])
    assert rows["reported"].isna().tolist() == [True, False]
    assert "made_up" not in healing.reported_selections()
