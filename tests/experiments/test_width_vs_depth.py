import numpy as np
import pandas as pd
import pytest

from layer_redundancy.core import variants
from layer_redundancy.experiments import width_vs_depth
from layer_redundancy.experiments.width_vs_depth import Measured
from made_up import nll_result, task_result

L, H = 4, 3
DENSE = variants.dense(L)


def results(damage):
    """Perplexity of all variants from a function of the removed (block, head)s and blocks."""
    heads = variants.single_heads(L, H)
    plan = [DENSE, *heads.values(), *variants.head_everywhere(L, H), *variants.single_removal(L)]
    plan += variants.random_heads(L, H, 2, 5, seed=0)
    return {v: nll_result(2 + damage(v) + np.array([0.0, 0.1, 0.2])) for v in plan}


def lost(variant):
    return [(e[0], h) for e in variant if isinstance(e, tuple) for h in e[1:]]


def test_changes_and_ids_by_hand():
    nll = results(lambda v: sum(0.1 * (h + 1) for _, h in lost(v)) + len(variants.removed_blocks(L, v)))
    right = {v: task_result([1, 1, 1, 1]) if v == DENSE else task_result([1, 1, 0, 0]) for v in nll}
    measured = {"perplexity": nll, "task/t": right}
    heads = variants.single_heads(L, H)
    tried = {
        name.removeprefix("task/"): {p: (of[v], of[DENSE]) for p, v in heads.items()} for name, of in measured.items()
    }
    single = width_vs_depth.changes(tried)
    assert len(single) == 2 * L * H and set(single["n"]) == {3, 4}
    nats = single[single["measurement"] == "perplexity"].set_index(["block", "head"])["change"]
    assert nats[2, 1] == pytest.approx(0.2)
    assert (single[single["measurement"] == "t"]["change"] == -0.5).all()
    by_id = width_vs_depth.by_id(measured, variants.head_everywhere(L, H), DENSE)
    of = by_id[by_id["measurement"] == "perplexity"]
    assert list(of["head"]) == [0, 1, 2]
    assert np.log(of["value"] / of["dense"]).tolist() == pytest.approx([0.4, 0.8, 1.2])
    assert of["low"].tolist() == pytest.approx(of["value"].tolist()), "the same in every block of text: no doubt"
    tasks = by_id[by_id["measurement"] == "t"]
    assert (tasks["value"] == 0.5).all() and (tasks["dense"] == 1).all() and (tasks["n"] == 4).all()


def test_equal_weights_scales_single_heads():
    nll = results(lambda v: 0.1 * len(lost(v)) + len(variants.removed_blocks(L, v)))
    single = variants.single_heads(L, H)
    heads, blocks = list(single.values()), variants.single_removal(L)
    sets = variants.random_heads(L, H, 2, 5, seed=0)
    table = width_vs_depth.equal_weights(nll, blocks, sets, heads, DENSE, size=2)
    assert table.groupby("what", sort=False)["damage"].mean().tolist() == pytest.approx([1, 0.2, 0.2])
    found = Measured(None, 0, 0, 2, single, [], sets, blocks, nll, {}, {})
    claim = width_vs_depth.width_claim(found, DENSE, 50, seed=0).set_index("statement")
    assert claim["holds"].tolist() == [False, True, False]  # each head costs 10 %; sets cost less than blocks do
    assert claim["measured"].tolist() == pytest.approx([0, 0.2, 1])


def square(change):
    rows = [(b, h, change(b, h)) for b in range(12) for h in range(8)]
    return pd.DataFrame(rows, columns=["block", "head", "change"])


def test_a_pattern_by_head_is_told_from_none():
    rng = np.random.default_rng(0)
    stripes = width_vs_depth.variance_shares(square(lambda b, h: h + 0.1 * rng.normal()), 200, seed=0).set_index(
        "factor"
    )
    assert stripes.loc["head id", "share"] > 0.95 and stripes.loc["head id", "p"] < 0.01
    by_depth = width_vs_depth.variance_shares(square(lambda b, h: b + 0.1 * rng.normal()), 200, seed=0).set_index(
        "factor"
    )
    assert by_depth.loc["block", "share"] > 0.95 and by_depth.loc["block", "p"] < 0.01
    assert by_depth.loc["head id", "p"] > 0.05
    none = width_vs_depth.variance_shares(square(lambda b, h: rng.normal()), 200, seed=0).set_index("factor")
    assert (none["p"] > 0.05).all() and none["share"].to_numpy() == pytest.approx(none["by_chance"].to_numpy(), abs=0.1)
