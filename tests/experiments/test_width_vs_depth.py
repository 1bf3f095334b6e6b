import numpy as np
import pytest

from layer_redundancy.core import paths, variants
from layer_redundancy.core.verdicts import NOT_TESTABLE, REFUTED, SUPPORTED
from layer_redundancy.experiments import result_tables, width_vs_depth
from layer_redundancy.experiments.width_vs_depth import Damage, Measured
from layer_redundancy.study import Study
from made_up import checkpoint, nll_result, task_result

L, H, N = 12, 8, 32


def heads(damage, spread=0.0):
    """(block, head) -> damage on 8 blocks of text, from a function of block and head."""
    rng = np.random.default_rng(0)
    return {(b, h): damage(b, h) + spread * rng.normal(size=8) for b in range(L) for h in range(H)}


def removals(depth, width, chosen, seed=0):
    """Damage on N texts of L blocks, of 8 random sets a text, and of chosen heads and block."""
    rng = np.random.default_rng(seed)
    blocks = depth + 0.05 * rng.normal(size=(N, 1)) + 0.02 * rng.normal(size=(N, L))
    return Damage(blocks, width + 0.3 * rng.normal(size=(N, 8)), chosen + 0.03 * rng.normal(size=(N, 2)))


def measured(of_heads, damage=None, chosen=None, tasks=None):
    return Measured(0, 0, 2, None, None, None, of_heads, {}, chosen or {}, tasks or {}, damage)


def test_heads_by_number_are_paired_with_the_dense_model():
    text, task = np.array([0.0, 0.1, 0.5]), task_result([1] * 60 + [0] * 40)
    everywhere = {
        "perplexity": [nll_result(2 + text), nll_result(2.4 + text), nll_result(2.1 + 2 * text)],
        "task/t": [task, task_result([1] * 50 + [0] * 50), task],
    }
    table = width_vs_depth.by_number(everywhere).set_index(["measurement", "head"])
    assert table.loc[("perplexity", 0), ["value", "low", "high", "dense"]].tolist() == pytest.approx([0.4, 0.4, 0.4, 0])
    assert table.loc[("perplexity", 1), "value"] == pytest.approx(0.3)
    assert table.loc[("perplexity", 1), "low"] < 0 < table.loc[("perplexity", 1), "high"]
    assert table.loc[("t", 0), ["value", "dense", "n", "chance"]].tolist() == [0.5, 0.6, 100, 0.25]
    assert table.loc[("t", 0), "low"] == pytest.approx(0.404, abs=1e-3), "Wilson's"
    assert set(width_vs_depth.drawn(table.reset_index())["measurement"]) == {"perplexity"}, "100 items are too few"


def test_what_is_chosen_is_paired_with_the_dense_model():
    dense, without = variants.dense(L), {"2 chosen heads": ((0, 1, 2), *range(1, L)), "the chosen block": (0,)}
    results = {v: task_result([1, 1, 1, 0]) for v in [dense, *without.values()]} | {(0,): task_result([1, 0, 0, 0])}
    damage = Damage(np.ones((3, L)), np.ones((3, 2)), np.array([[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]]))
    found = measured(heads(lambda b, h: 0.0), damage, without, {"t": results})
    table = width_vs_depth.chosen_table(found, dense).set_index(["removed", "measurement"])
    assert table["changed_by"].tolist() == pytest.approx([2, 0, 0.2, -0.5])
    assert table.loc[("the chosen block", "accuracy, t"), ["dense", "n"]].tolist() == [0.75, 4]
    equal = width_vs_depth.equal_weights(found)
    assert equal.groupby("what", sort=False)["damage"].agg(["size", "mean"]).to_numpy().tolist() == [
        [L, 1], [6, 1], [1, 2], [1, pytest.approx(0.2)],
    ]  # fmt: skip


def test_equal_weights_are_comparable_within_a_margin():
    """Depth as dear as width on average, by one block of the twelve; half of it in the median."""
    depth = np.array([3.0] + [0.3] * (L - 1))  # mean 0.525
    found = width_vs_depth.claim(measured(heads(lambda b, h: 0.0), removals(depth, 0.525, [0.06, 0.05])), 400, 0)
    table = found.set_index("statement")
    assert found["statement"][0] == width_vs_depth.PRIMARY and found["role"][0] == "primary"
    assert table.loc[width_vs_depth.PRIMARY, "threshold"] == 0.05
    assert table.loc[width_vs_depth.ON_AVERAGE, "measured"] == pytest.approx(0, abs=0.1)
    assert table.loc[width_vs_depth.IN_THE_MEDIAN, "measured"] == pytest.approx(np.log(0.525 / 0.3), abs=0.15)
    assert (table.loc[[width_vs_depth.ON_AVERAGE, width_vs_depth.IN_THE_MEDIAN], "threshold"] == np.log(1.25)).all()
    assert table["verdict"].to_dict() == {
        width_vs_depth.PRIMARY: SUPPORTED,
        width_vs_depth.ON_AVERAGE: SUPPORTED,
        width_vs_depth.IN_THE_MEDIAN: REFUTED,
        width_vs_depth.CHEAP: SUPPORTED,
        width_vs_depth.BY_NUMBER: SUPPORTED,
    }
    dearer = width_vs_depth.claim(measured(heads(lambda b, h: 0.1), removals(depth, 0.9, [0.4, 0.05])), 400, 0)
    verdicts = dearer.set_index("statement")["verdict"]
    assert (verdicts[[width_vs_depth.PRIMARY, width_vs_depth.ON_AVERAGE, width_vs_depth.CHEAP]] == REFUTED).all()
    few = removals(depth, 0.55, [0.06, 0.05])
    few = Damage(few.blocks[:3], few.random[:3, :1], few.chosen[:3])
    verdicts = width_vs_depth.claim(measured(heads(lambda b, h: 0.0), few), 400, 0).set_index("statement")["verdict"]
    assert verdicts[width_vs_depth.ON_AVERAGE] == NOT_TESTABLE, "three sets of heads cannot say"


def test_sets_of_heads_are_resampled_with_their_text():
    """The interval is that of a mean over sets drawn for each text, which the text alone would make too narrow; and of
    the blocks' damage, which is no more known than the heads' is."""
    damage = removals(np.full(L, 0.5), 0.5, [0.1, 0.1])
    raw = width_vs_depth.random_compared(damage, 2000, 0).set_index("statement")
    of_text = damage.random.mean(1) / damage.random.mean() - damage.blocks.mean(1) / damage.blocks.mean()
    assert raw.loc[width_vs_depth.ON_AVERAGE, "error"] == pytest.approx(of_text.std(ddof=1) / np.sqrt(N), rel=0.06)
    assert raw.loc[width_vs_depth.ON_AVERAGE, "degrees"] == N - 1


def test_no_ratio_is_taken_of_damage_that_is_none():
    raw = width_vs_depth.random_compared(removals(np.full(L, -0.5), 0.5, [0.1, 0.1]), 50, 0)
    assert raw.empty


def test_a_pattern_by_number_is_told_from_none():
    rng = np.random.default_rng(0)
    striped = np.add.outer(np.zeros(L), np.arange(H)) + 0.1 * rng.normal(size=(L, H))
    assert width_vs_depth.pattern(striped) > 0.95
    none = [width_vs_depth.pattern(rng.normal(size=(L, H))) for _ in range(300)]
    assert abs(np.mean(none)) < 0.01, "chance is taken off"
    by_depth = [width_vs_depth.pattern(np.arange(L)[:, None] + rng.normal(size=(L, H))) for _ in range(300)]
    assert abs(np.mean(by_depth)) < 0.01
    for damage, verdict in ((lambda b, h: float(h), REFUTED), (lambda b, h: float(b), SUPPORTED)):
        claim = width_vs_depth.claim(measured(heads(damage, 0.1)), 200, 0).set_index("statement")
        assert claim.loc[width_vs_depth.BY_NUMBER, "verdict"] == verdict


def test_what_helps_on_one_text_by_chance_is_not_chosen():
    by_chance, harmless = np.array([-9.0, 1, 1, 1, 1, 1, 1, 1]), np.full(8, 0.01)
    assert by_chance.mean() < harmless.mean() and width_vs_depth.at_most(by_chance) > width_vs_depth.at_most(harmless)
    assert width_vs_depth.at_most(np.array([0.5])) == 0.5


def test_the_damage_of_a_text_is_that_of_its_own_sets(tmp_path, monkeypatch):
    """Each block of text has random sets of its own; all is less the dense model's loss on that very block."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    study = Study.open("smoke", str(checkpoint(tmp_path / "llama", "llama"))).with_profile(tasks=())
    study = study.with_budget("width_vs_depth", block_step=1)
    found = width_vs_depth.measure(study)
    num, count = study.num_blocks, len(study.evaluation.input_ids)
    assert found.damage.blocks.shape == (count, num) and found.damage.random.shape == (count, 2)
    sets = variants.random_heads(num, study.identity.num_attention_heads, found.set_size, 2 * count, study.profile.seed)
    variants_run = [study.dense, sets[3], *found.chosen.values()]
    results = study.sweep(variants_run, [study.perplexity])["perplexity"]
    damage = [result_tables.cost(results[v]) - result_tables.cost(results[study.dense]) for v in variants_run[1:]]
    assert found.damage.random[1, 1] == pytest.approx(damage[0][1], abs=1e-5), "the fourth set, on the second text"
    np.testing.assert_allclose(found.damage.chosen.T, damage[1:], atol=1e-5)
    kept, best = found.chosen.values()
    lost = {(e[0], h) for e in kept if isinstance(e, tuple) for h in e[1:]}
    cheapest = sorted(found.heads, key=lambda pair: width_vs_depth.at_most(found.heads[pair]))
    assert lost == set(cheapest[: found.set_size]) and len(best) == num - 1
    claim = width_vs_depth.claim(found, 50, 0)
    assert width_vs_depth.PRIMARY in set(claim["statement"]) and len(claim) == 5
