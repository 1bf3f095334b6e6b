"""Table 2 and what is said of it, on numbers made by hand; the notebook itself runs in test_study."""

import gc
import weakref

import numpy as np
import pytest

import made_up
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import NotApplicable, StudyError
from layer_redundancy.core.store import Result
from layer_redundancy.experiments import quantization as table2
from layer_redundancy.experiments.quantization import Precision
from layer_redundancy.models import quantize
from layer_redundancy.models.quantize import WeightBytes
from layer_redundancy.study import Study
from made_up import sums
from models.test_quantize import CALIBRATION, ROUNDED, checkpoint

L, N, K = 6, 12, 2
ORDER = np.array([3, 2, 4, 1, 0, 5])
PLAN = {k: variants.without(L, ORDER[:k]) for k in range(L)}
TEXT = np.linspace(-0.5, 0.5, N)  # blocks of text are not equally hard
UNEVEN = np.resize([1.0, -1.0], N)
DRAWS = np.array([-1.0, -0.5, 0, 0.5, 1.0])  # nor are all calibration texts equally good


def task_result(right: int, items: int = 10) -> Result:
    answers = np.array([1.0] * right + [0.0] * (items - right))
    return Result({"acc": right / items, "chance": 0.25}, {"acc": answers, "gold_logprob": -np.ones(items)})


def precision(name, bits, cost=0.0, extra=0.0, spread=0.0, noise=0.0, first=None, right=8, ready=False):
    """Removing k blocks costs 0.1 k nats, having few bits `cost`, and both k * extra more.

    Args:
        spread: nats by which the extra of a block differs between draws; there are five unless it is None.
        noise: nats by which it differs between blocks of text.
        first: what removing the table's blocks before quantization costs.
    """
    drawn = np.zeros(1) if spread is None else DRAWS * spread
    nll = {
        variant: 3 + TEXT + cost + k * (0.1 + extra + drawn[:, None] + noise * UNEVEN) for k, variant in PLAN.items()
    }
    weights = WeightBytes((bits * 1_000_000,) * L, 2_000_000)
    more, tasks = {"bits": None if ready else bits}, {"task/t": {PLAN[k]: task_result(right - k) for k in (0, K)}}
    if first is not None:
        more |= {"first": 3 + TEXT + first + 0 * drawn[:, None], "first_bytes": (10_000_000, 10_000_001)}
    disk = {PLAN[k]: weights.of(PLAN[k]) + 9 for k in (0, K)}
    return Precision(name, nll, weights, disk, tasks, **more)


FULL = precision(table2.FULL, 16, spread=None)


def claim(*others, steps=()):
    return table2.claim([FULL, *others], PLAN, K, steps, 300, 0).set_index("statement")


def test_blocks_removed_in_the_table_are_the_papers_share():
    assert [table2.removed_in_table(num) for num in (32, 30, 40, 5, 2)] == [9, 8, 11, 1, 1]


def test_interaction_by_hand():
    found = table2.interaction([FULL, precision("a", 4, 0.3), precision("b", 3, 1.0, extra=-0.05)], PLAN)
    by_name = found.set_index(["weights", "count"])
    assert found[found.weights == "a"].interaction.abs().max() < 1e-12 and 0 not in set(found["count"])
    row = by_name.loc["b", 4]
    assert row["pruning"] == pytest.approx(0.4) and row["quantization"] == pytest.approx(1.0)
    assert row["sum"] == pytest.approx(1.4) and row["both"] == pytest.approx(1.2)
    assert row["interaction"] == pytest.approx(-0.2) and row["relative"] == pytest.approx(-0.2 / 0.4), "of the smaller"
    assert row["low"] == pytest.approx(-0.2) and row["high"] == pytest.approx(-0.2), "paired: the text cancels"
    assert row["share"] == pytest.approx(100 * 4 / 6) and row["draws"] == 5


def test_the_interval_of_an_interaction_holds_the_spread_of_draws_and_of_text():
    def at(k=4, **options):
        return table2.interaction([FULL, precision("c", 4, 0.3, **options)], PLAN).set_index("count").loc[k]

    drawn = at(spread=0.1)
    half = 2.776 * np.std(0.4 * DRAWS, ddof=1) / np.sqrt(5)
    assert (drawn["low"], drawn["high"]) == pytest.approx((-half, half), abs=1e-3)
    assert (drawn["least"], drawn["most"]) == pytest.approx((-0.4, 0.4))
    single = at(spread=None, noise=0.1)
    half = 2.201 * np.std(0.4 * UNEVEN, ddof=1) / np.sqrt(N)
    assert (single["low"], single["high"]) == pytest.approx((-half, half), abs=1e-3)
    both = at(spread=0.1, noise=0.1)
    assert both["high"] > max(drawn["high"], single["high"]) and both["draws"] == 5 and single["draws"] == 1


def test_each_draw_is_told_apart():
    found = table2.draws_of_gptq([FULL, precision("a", 4, 0.3, spread=0.1), precision("b", 8, spread=None)], PLAN)
    assert set(found.weights) == {"a"}, "of one draw there is no spread"
    of_two = found[found["count"] == 2]
    assert of_two.draw.tolist() == [1, 2, 3, 4, 5] and of_two.interaction.tolist() == pytest.approx(0.2 * DRAWS)
    assert of_two.pruning.tolist() == pytest.approx([0.2] * 5) and of_two.quantization.tolist() == pytest.approx(
        [0.3] * 5
    )


def test_damages_add_up_against_the_smaller_one_and_the_spread_of_draws():
    held = claim(precision("4", 4, 0.3, spread=0.002), precision("3", 3, 1.0, extra=0.05, spread=0.002))
    assert held.loc[table2.PRIMARY, ["role", "verdict"]].tolist() == ["primary", "supported"]
    assert len(held) == 3, "whether they add up is asked at one number of bits"
    more = held.loc[[table2.COSTS_MORE.format(bits) for bits in (4, 3)]]
    assert more.verdict.tolist() == ["undecided", "supported"]
    refuted = claim(precision("4", 4, 1.0, extra=0.05, spread=0.002)).loc[table2.PRIMARY]
    assert refuted.verdict == "refuted" and refuted.measured == pytest.approx(0.5), "of the smaller 0.2, not of 1.2"
    # The same mean, from texts that differ more than the margin.
    unsure = claim(precision("4", 4, 0.3, spread=0.1)).loc[table2.PRIMARY]
    assert unsure.verdict == "not testable here" and unsure.power < 0.8
    none = claim(precision("4", 4, -1.0))
    assert none.empty, "no damage: nothing that could add up"


def test_eight_bits_are_judged_by_what_they_cost():
    (row,) = claim(precision("8", 8, 0.001, spread=None, noise=0.001)).reset_index().to_dict("records")
    assert row["statement"].startswith("GPTQ at 8 bits costs less") and row["verdict"] == "supported"
    assert claim(precision("8", 8, 0.05, spread=None)).verdict.tolist() == ["refuted"]


def test_the_order_of_the_two_steps_is_judged():
    def verdict(first):
        found = claim(precision("4", 4, 0.3, spread=0.002, first=first))
        (name,) = [name for name in found.index if "before GPTQ at 4 bits" in name]
        return found.loc[name, "verdict"]

    assert verdict(0.5) == "supported" and verdict(0.7) == "refuted"


def test_fewer_bits_are_compared_with_fewer_blocks_of_the_same_size():
    weights = {16: FULL.weights, 4: precision("4", 4).weights, 3: precision("3", 3).weights}
    # All at 4 bits weigh 26 MB, which two blocks at 16 bits do not fit in and one does; 20 at 3 bits, four at 4.
    steps = table2._steps(weights, ORDER)
    assert steps == [(16, 4, 5), (4, 3, 2)]
    found = claim(precision("4", 4, 0.3, spread=0.001), precision("3", 3, 1.0, spread=0.001), steps=steps)
    first, second = (
        found.loc[next(name for name in found.index if f"at {bits} bits are better" in name)] for bits in (4, 3)
    )
    assert first.measured == pytest.approx(0.3 - 0.5) and first.verdict == "supported"
    assert second.measured == pytest.approx(1.0 - 0.5) and second.verdict == "refuted", "blocks go first there"
    assert table2._steps({16: WeightBytes((1,) * L, 90), 4: WeightBytes((1,) * L, 10)}, ORDER) == [], "never as small"


def test_the_front_is_what_nothing_else_beats():
    points = table2.points([FULL, precision("4", 4, 0.15), precision("3", 3, 5.0)], PLAN)
    best = points[points.front]
    # 16 bits whole (98 MB, 3.0 nats), one block less (82, 3.1), then 4 bits from 26 MB (3.15) downwards.
    assert best[best.weights == table2.FULL]["count"].tolist() == [0, 1]
    assert best[best.weights == "4"]["count"].tolist() == list(range(L))
    assert best[best.weights == "3"]["count"].tolist() == [5], "the smallest of all"
    assert points.megabytes.tolist()[:2] == [98, 82] and points.draws.tolist()[::L] == [1, 5, 5]
    assert points.perplexity.tolist()[:2] == pytest.approx(np.exp([3, 3.1]).tolist())


def test_table_has_the_papers_rows_and_both_orders():
    found = [FULL, precision("a", 4, 0.3, first=0.45), precision("ready", 4, 0.2, spread=None, ready=True)]
    table = table2.table(found, PLAN, K)
    paper, measured = table[table.source == "paper"], table[table.source == "measured"]
    assert paper[["setting", "blocks", "perplexity", "MMLU"]].to_numpy().tolist() == [
        ["dense", 32, 8.4999, 37.99],
        ["ShortGPT", 23, 42.6951, 36.69],
    ]
    assert list(measured.setting) == ["dense", "ShortGPT", "dense", "ShortGPT", "removed first", "dense", "ShortGPT"]
    assert list(measured.blocks) == [6, 4, 6, 4, 4, 6, 4] and list(measured.draws) == [1, 1, 5, 5, 5, 1, 1]
    assert measured.perplexity.tolist() == pytest.approx(np.exp([3, 3.2, 3.3, 3.5, 3.45, 3.2, 3.4]).tolist())
    assert measured["t (n=10)"].iloc[:2].tolist() == ["80.0 (49.0 to 94.3)", "60.0 (31.3 to 83.2)"]
    assert measured["t (n=10)"].isna().tolist() == [False] * 4 + [True, False, False], "not scored if removed first"
    assert measured["in memory (MB)"].tolist() == [98, 66, 26, 18, 10, 26, 18]
    assert measured["on disk (MB)"].iloc[4] == pytest.approx(10.000001)
    assert table2.points(found, PLAN).weights.unique().tolist() == [table2.FULL, "a"], "two depths make no curve"


def test_order_of_steps_is_paired():
    steps = table2.order_of_steps([FULL, precision("a", 4, 0.3, spread=0.01, first=0.45)], PLAN, K)
    (row,) = steps.to_dict("records")
    assert row["difference (nats)"] == pytest.approx(-0.05) and row["draws"] == 5
    assert (row["least"], row["most"]) == pytest.approx((-0.07, -0.03)) and row["low"] < row["least"] + 0.01
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
    assert alike["interaction"] == 0 and alike["low"] == pytest.approx(-22.6, abs=0.1), "as if one item had differed"


def test_order_after_quantization():
    kept = sums(8, L)

    def with_sums(one, *of):
        return Precision(one.name, one.nll, one.weights, one.disk, sums=of)

    found = [
        with_sums(FULL, kept),
        with_sums(precision("same", 4, spread=None), kept.first(6)),
        with_sums(precision("other", 3), sums(6, L, seed=1), kept),
    ]
    table = table2.order_after(found, PLAN, K, 30, 0).set_index("weights")
    # By the six sequences that all have, drawn alike for both orders: the same model has the same order in each.
    assert table.loc["same", ["tau", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
    assert (table.sequences == 6).all()
    assert table.loc["same", "draws with the same blocks"] == 1 == table.loc["other", "draws with the same blocks"]
    assert table.loc["other", "low"] < table.loc["other", "tau"] < table.loc["other", "high"] <= 1
    assert table.loc["other", "draws"] == 2
    scores = table2.influence(found).set_index("weights")
    assert scores.loc[table2.FULL].score.tolist() == scores.loc["same"].score.tolist()
    assert (scores.loc["same"].low == scores.loc["same"].high).all()
    assert (scores.loc["other"].low < scores.loc["other"].high).all()


def test_one_model_at_a_time_is_held(tmp_path, monkeypatch):
    folders = [str(made_up.checkpoint(tmp_path / str(blocks), blocks=blocks)) for blocks in (5, 4)]
    study = Study.open("smoke", folders[0], store=tmp_path / "results.sqlite")
    study = study.with_budget("quantization", scored=())
    # As good as a model that was made from another, and in no time.
    monkeypatch.setattr(
        Study, "quantized", lambda self, _scheme, removed=(), text=None: self.of_model(folders[len(removed)])
    )
    loaded, stacks, held = Study._loaded, [], []

    def counted(self):
        gc.collect()
        held.append(sum(stack() is not None for stack in stacks))
        stacks.append(weakref.ref(stack := loaded(self)))
        return stack

    monkeypatch.setattr(Study, "_loaded", counted)
    found = table2.measure(study)
    assert [one.name for one in found.precisions] == [table2.FULL, "GPTQ, 4 bits", "rounded, 4 bits"]
    assert len(held) > 1 and set(held) == {0}


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
