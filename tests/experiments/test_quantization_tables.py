"""Table 2 and what is said of it, on numbers made by hand; the notebook itself runs in test_study."""

import numpy as np
import pytest

from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.experiments import quantization as table2
from layer_redundancy.experiments.quantization import Precision
from layer_redundancy.models import quantize
from layer_redundancy.models.quantize import WeightBytes
from layer_redundancy.study import Study
from made_up import nll_result, sums
from models.test_quantize import CALIBRATION, ROUNDED, checkpoint

L, N, K = 6, 5, 2
ORDER = [3, 2, 4, 1, 0, 5]
PLAN = {k: variants.without(L, ORDER[:k]) for k in range(L)}
TEXT = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])  # blocks of text are not equally hard


def task_result(right: int, items: int = 10) -> Result:
    answers = np.array([1.0] * right + [0.0] * (items - right))
    return Result({"acc": right / items, "chance": 0.25}, {"acc": answers, "gold_logprob": -np.ones(items)})


def precision(
    name, bits, quantization=0.0, interaction=0.0, pruning=0.1, noise=0.0, complete=True, first=None, right=8
):
    """Removing k blocks costs pruning * k nats, having few bits `quantization`, and both k * interaction more."""
    chosen = PLAN if complete else {k: PLAN[k] for k in (0, K)}
    extra = noise * np.array([1, -1, 1, -1, 0])
    nll = {v: nll_result(3 + TEXT + quantization + k * (pruning + interaction + extra)) for k, v in chosen.items()}
    tasks = {v: task_result(max(0, right - k)) for k, v in chosen.items()}
    weights = WeightBytes((bits * 1_000_000,) * L, 2_000_000)
    more = {}
    if first is not None:
        more["pruned_first"] = {"perplexity": nll_result(3 + TEXT + first), "task/t": task_result(5)}
        more["pruned_first_bytes"] = (10_000_000, 10_000_001)
    disk = {PLAN[k]: weights.of(PLAN[k]) + 9 for k in (0, K)}
    return Precision(name, {"perplexity": nll, "task/t": tasks}, weights, disk, **more)


FULL = precision(table2.FULL, 16)


def test_blocks_removed_in_the_table_are_the_papers_share():
    assert [table2.removed_in_table(num) for num in (32, 30, 40, 5, 2)] == [9, 8, 11, 1, 1]


def test_interaction_by_hand():
    found = table2.interaction([FULL, precision("a", 4, 0.3), precision("b", 3, 1.0, interaction=-0.05)], PLAN)
    by_name = found.set_index(["weights", "count"])
    assert found[found.weights == "a"].interaction.abs().max() < 1e-12
    row = by_name.loc["b", 4]
    assert row["pruning"] == pytest.approx(0.4) and row["quantization"] == pytest.approx(1.0)
    assert row["sum"] == pytest.approx(1.4) and row["both"] == pytest.approx(1.2)
    assert row["interaction"] == pytest.approx(-0.2) and row["relative"] == pytest.approx(-0.2 / 1.4)
    assert row["low"] == pytest.approx(-0.2) and row["high"] == pytest.approx(-0.2), "paired: the text cancels"
    assert row["share"] == pytest.approx(100 * 4 / 6)
    noisy = table2.interaction([FULL, precision("c", 4, 0.3, noise=0.1)], PLAN).set_index("count").loc[4]
    half = 2.776 * np.std([0.4, -0.4, 0.4, -0.4, 0], ddof=1) / np.sqrt(N)
    assert (noisy["low"], noisy["high"]) == pytest.approx((-half, half), abs=1e-3)


def test_claim_can_hold_and_fail():
    claim = table2.claim([FULL, precision("a", 4, 0.3), precision("b", 3, 0.3, interaction=0.2)], PLAN, 50, 0)
    assert list(claim.holds) == [True] * 3 + [False] * 3 and list(claim.certainty) == [1.0] * 3 + [0.0] * 3
    assert claim.measured[3:].tolist() == pytest.approx([k * 0.2 / (0.3 + k * 0.1) for k in (1, 2, 3)])
    assert claim.statement[0] == "a, 1 of 6 blocks removed: the damages add up to within 10%"
    harmless = table2.claim([FULL, precision("d", 8, -1.0)], PLAN, 50, 0)
    assert not harmless.holds.any() and harmless.measured.isna().all(), "no damage: nothing that could add up"
    unsure = table2.claim([FULL, precision("c", 4, 0.3, noise=0.5)], PLAN, 200, 0)
    assert 0 < unsure.certainty[2] < 1


def test_best_mix_is_the_cheapest_that_fits():
    few = precision("4 bits", 4, 0.15)
    best = table2.best_mix([FULL, few, precision("3 bits", 3, 5.0)], PLAN, 50, 0).set_index("at most (%)")
    whole = 6 * 16 + 2  # MB
    row = best.loc[90]  # 88.2 MB: one block less, or all at 4 bits
    assert (row["weights"], row["removed"]) == (table2.FULL, 1) and row["megabytes"] == 82
    assert row["next"] == "4 bits, 0 removed" and row["certainty"] == 1
    assert row["perplexity"] == pytest.approx(np.exp(3.1)) and row["next perplexity"] == pytest.approx(np.exp(3.15))
    row = best.loc[75]  # 73.5 MB: two blocks less
    assert (row["weights"], row["removed"], row["megabytes"]) == ("4 bits", 0, 26)
    assert best.loc[25, "weights"] == "4 bits" and best.loc[25, "removed"] == 1  # 24.5 MB
    assert (best["megabytes"] <= best["at most (MB)"]).all() and best.loc[75, "at most (MB)"] == 0.75 * whole
    alone = table2.best_mix([FULL], PLAN, 50, 0)
    assert "next" not in alone and alone["at most (%)"].min() >= 100 * 18 / whole, "what nothing fits in is left out"


def test_table_has_the_papers_rows_and_both_orders():
    found = [FULL, precision("a", 4, 0.3, first=0.45), precision("ready", 4, 0.2, complete=False)]
    table = table2.table(found, PLAN, K)
    paper, measured = table[table.source == "paper"], table[table.source == "measured"]
    assert paper[["setting", "blocks", "perplexity", "MMLU"]].to_numpy().tolist() == [
        ["dense", 32, 8.4999, 37.99],
        ["ShortGPT", 23, 42.6951, 36.69],
    ]
    assert list(measured.setting) == ["dense", "ShortGPT", "dense", "ShortGPT", "removed first", "dense", "ShortGPT"]
    assert list(measured.blocks) == [6, 4, 6, 4, 4, 6, 4]
    assert measured.perplexity.tolist() == pytest.approx(np.exp([3, 3.2, 3.3, 3.5, 3.45, 3.2, 3.4]).tolist())
    assert measured["t (n=10)"].tolist() == [80, 60, 80, 60, 50, 80, 60]
    assert measured["in memory (MB)"].tolist() == [98, 66, 26, 18, 10, 26, 18]
    assert measured["on disk (MB)"].iloc[4] == pytest.approx(10.000001)
    assert table2.points(found, PLAN).weights.unique().tolist() == [table2.FULL, "a"], "two depths make no curve"


def test_points_have_perplexity_and_each_task():
    points = table2.points([FULL], PLAN)
    text, task = points[points.task.isna()], points[points.task == "t"]
    assert len(text) == len(task) == L
    assert list(text.megabytes) == list(task.megabytes) == [98 - 16 * k for k in range(L)]
    assert task.accuracy.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert (task.low < task.accuracy).all() and set(task.n) == {10} and set(task.chance) == {0.25}


def test_order_of_steps_is_paired():
    steps = table2.order_of_steps([FULL, precision("a", 4, 0.3, first=0.45)], PLAN, K)
    (row,) = steps.to_dict("records")
    assert row["difference (nats)"] == pytest.approx(-0.05) and row["high"] == pytest.approx(-0.05)
    assert row["perplexity, quantized first"] == pytest.approx(np.exp(3.5))
    assert row["perplexity, removed first"] == pytest.approx(np.exp(3.45))


def test_reported_losses_stand_beside_the_papers():
    table = table2.reported([FULL, precision("a", 4, 0.3, right=9)], PLAN, K)
    first, second = table.to_dict("records")
    assert first["loss, full precision"] == pytest.approx(45.39 - 43.96)
    assert first["loss, quantized"] == pytest.approx(37.99 - 36.69)
    assert first["interaction"] == pytest.approx(-0.13) and np.isnan(first["low"])
    assert second["loss, full precision"] == 20 and second["interaction"] == pytest.approx(0)
    assert second["n"] == 10 and second["low"] < 0 < second["high"]
    alike = table2.reported([FULL, precision("a", 4, 0.3)], PLAN, K).iloc[1]
    assert alike["interaction"] == 0 and np.isnan(alike["low"]), "no item differs: no interval"


def test_order_after_quantization():
    kept = sums(8, L)
    found = [
        Precision(p.name, p.results, p.weights, p.disk, sums=of, own=PLAN[K + 1] if p.name == "other" else PLAN[K])
        for p, of in ((FULL, kept), (precision("same", 4), kept.first(6)), (precision("other", 3), sums(6, L, seed=1)))
    ]
    table = table2.order_after(found, PLAN, K, 30, 0).set_index("weights")
    assert (
        table.loc["same", ["tau", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
        and table.loc["same", "same"] == K
    )
    assert table.loc["other", "tau"] < 1
    assert table.loc["same", "difference (nats)"] == 0
    assert list(table["difference 95 %"]) == ["the same blocks", "0.100 to 0.100"]
    assert table.loc["other", "difference (nats)"] == pytest.approx(0.1), "one block more"
    assert table.loc["other", "perplexity, own order"] == pytest.approx(np.exp(3.3))
    assert table.loc["other", "perplexity, full precision's order"] == pytest.approx(np.exp(3.2))
    scores = table2.influence(found)
    assert scores[scores.weights == table2.FULL].score.tolist() == scores[scores.weights == "same"].score.tolist()


def test_a_quantized_model_has_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    folder = quantize.quantized(checkpoint(tmp_path / "dense"), ROUNDED, CALIBRATION)
    with pytest.raises(NotApplicable, match=r"is quantized already \(compressed-tensors\): give its full-precision"):
        table2.measure(Study.open("smoke", str(folder)))


def test_a_ready_checkpoint_is_looked_at_before_anything_is_computed(tmp_path):
    study = Study.open("smoke", checkpoint(tmp_path / "dense").source)
    with pytest.raises(StudyError, match=r"ready=nobody/nothing: .*the hub cannot be reached"):
        table2.measure(study, "nobody/nothing")
    other = tmp_path / "other"
    checkpoint(other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"num_hidden_layers": 5', '"num_hidden_layers": 4'))
    with pytest.raises(StudyError, match=r"it has 4 blocks, .* has 5"):
        table2.measure(study, str(other))
    assert "stack" not in vars(study)


def test_the_profiles_own_ready_checkpoint_is_left_out_where_it_cannot_be_had(tmp_path, remarks):
    study = Study.open("smoke", checkpoint(tmp_path / "dense").source)
    ready = "nobody/nothing"
    assert table2._opened_ready(study, ready, must_be_there=False) is None
    assert "nobody/nothing left out: " in remarks()


def test_items_are_as_many_as_the_profile_affords():
    whole = Study.open("embedded")
    budget = whole.profile.budget(table2.Budget)
    (task,) = table2.reduced(whole, budget).profile.tasks
    assert task.limit == budget.items < whole.profile.tasks[0].limit
