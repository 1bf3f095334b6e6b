"""Models of one, two and three blocks, and budgets at their least: what does not apply is left out in a line."""

import ast
import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import notebook_cells
from layer_redundancy.config import paper_tables, profiles
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import paths, variants
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.data import corpora
from layer_redundancy.evaluate.amounts import Quantization, Training
from layer_redundancy.experiments import (
    benchmarks,
    block_pruning,
    generation,
    healing,
    layer_importance,
    metric_comparison,
    prompt_tuning,
    prune_ratio,
    quantization,
    registry,
    result_tables,
    rwkv_redundancy,
    single_layer_removal,
    width_vs_depth,
)
from layer_redundancy.figures import layer_importance as draw_importance
from layer_redundancy.figures import width_vs_depth as draw_width
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.planning.planner import Planner
from layer_redundancy.pruning import card, choosing, effects
from layer_redundancy.pruning import checkpoint as pruned_checkpoint
from layer_redundancy.pruning.how_many import HowMany
from layer_redundancy.study import Study
from made_up import checkpoint, nll_result, sums, task_result
from one_line import refusal

SINGLE = "has a single block, and at least one stays"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder of a tiny model of so many blocks."""
    made = {}

    def of(blocks):
        if blocks not in made:
            made[blocks] = checkpoint(tmp_path_factory.mktemp("model") / str(blocks), blocks=blocks)
        return made[blocks]

    return of


@pytest.fixture(scope="module")
def study(folder, tmp_path_factory):
    """Gives the study of a tiny model of so many blocks on the smoke profile, always the same."""
    opened, store = {}, tmp_path_factory.mktemp("store") / "store.sqlite"

    def of(blocks):
        if blocks not in opened:
            opened[blocks] = Study.open("smoke", str(folder(blocks)), store=store)
        return opened[blocks]

    return of


@pytest.fixture(scope="module")
def plan(folder):
    """Gives the dry study of a tiny model of so many blocks on the smoke profile: shapes as of a run, in no time."""
    opened = {}

    def of(blocks):
        if blocks not in opened:
            profile = profiles.get("smoke", model=str(folder(blocks)))
            planner = Planner(profile, count=lambda model, budget: Amount(8, 32, 900, 500, 32))
            opened[blocks] = planner.study(profile.model)
        return opened[blocks]

    return of


# ------------------------------------------------------------------------------------------- notebooks left out whole


LEFT_OUT = {
    "02": "nothing to remove in turn",
    "03": "there is no share of the blocks to remove",
    "04": "measures have nothing to choose from",
    "06": "cannot be compared",
    "10": "no run of blocks can go",
    "11": "nothing to select, nor to heal",
    "13": "no method has anything to remove",
}


@pytest.mark.parametrize("kind", ["run", "planned"])
@pytest.mark.parametrize("number", LEFT_OUT)
def test_a_notebook_of_which_nothing_applies_to_a_single_block_says_why(study, plan, number, kind):
    one = study(1) if kind == "run" else plan(1)
    with pytest.raises(NotApplicable):
        registry.by_number(number).measure(one)
    line = refusal(lambda: registry.by_number(number).measure(one))
    assert SINGLE in line and LEFT_OUT[number] in line
    assert "stack" not in vars(one), "not loaded for it"


@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_accuracy_beside_perplexity_needs_a_task(plan, number):
    one = plan(3).with_profile(tasks=())
    with pytest.raises(NotApplicable):
        registry.by_number(number).measure(one)
    assert "the smoke profile has no task" in refusal(lambda: registry.by_number(number).measure(one))


@pytest.mark.parametrize("number", ["05", "06", "07", "09", "10", "11", "13", "15"])
def test_what_needs_no_task_is_measured_without_one(plan, number):
    assert registry.by_number(number).measure(plan(3).with_profile(tasks=())) is not None


# --------------------------------------------------------------------------------------------- what the others remark


@pytest.mark.parametrize(
    "number, blocks, said",
    [
        pytest.param("01", 1, [SINGLE], id="01 on one block removes nothing"),
        pytest.param("01", 2, ["of 2 blocks, 25 % come to none", "which is 50 %"], id="01: a quarter of two is none"),
        pytest.param("01", 3, [], id="01 on three blocks has nothing to remark"),
        pytest.param("03", 2, ["25 % come to none"], id="03: a quarter of two is none"),
        pytest.param("03", 3, [], id="03 on three blocks has nothing to remark"),
        pytest.param("04", 2, ["10 % and 25 % come to none"], id="04: a tenth and a quarter of two are none"),
        pytest.param("04", 3, ["10 % come to none", "which is 33.3 %"], id="04: a tenth of three is none"),
        pytest.param("05", 1, [SINGLE, "not compared at equal weights"], id="05 on one block removes heads alone"),
        pytest.param("05", 2, ["not compared at equal weights"], id="05: a block outweighs all heads of two"),
        pytest.param("06", 2, ["rank correlations of orders of 2 blocks are left out"], id="06: two have no ranks"),
        pytest.param("06", 3, ["10 % come to none"], id="06: a tenth of three is none"),
        pytest.param("07", 1, [SINGLE], id="07 on one block quantizes alone"),
        pytest.param("07", 2, ["rank correlations of orders of 2 blocks are left out"], id="07: two have no ranks"),
        pytest.param("07", 3, [], id="07 on three blocks has nothing to remark"),
        pytest.param("08", 1, [SINGLE], id="08 on one block scores the dense model"),
        pytest.param("08", 2, [], id="08: the paper's share of two is one"),
        pytest.param("09", 1, [SINGLE], id="09 on one block lets the dense model write"),
        pytest.param("09", 2, ["25 % come to none"], id="09: a quarter of two is none"),
        pytest.param("10", 2, ["10 % and 25 % come to none"], id="10: a tenth and a quarter of two are none"),
        pytest.param("11", 2, ["25 % come to none"], id="11: a quarter of two is none"),
        pytest.param("11", 3, [], id="11 on three blocks has nothing to remark"),
        pytest.param("12", 1, ["the whole model of 1 block is tuned, and no part of it"], id="12 on one tunes all"),
        pytest.param("12", 2, [], id="12 on two blocks has nothing to remark"),
        pytest.param("15", 1, [SINGLE], id="15 on one block has activations alone"),
        pytest.param("15", 2, [], id="15 on two blocks has nothing to remark"),
    ],
)
def test_what_a_small_model_cannot_tell_is_said(plan, remarks, number, blocks, said):
    registry.by_number(number).measure(plan(blocks))
    lines = remarks()
    assert all(words in lines for words in said), lines
    if not said:
        assert not any(words in lines for words in ("come to none", "single block", "left out:", "no part")), lines


# ------------------------------------------------------------------------------------------------ what tables then hold


def strategies(study):
    scores = layer_importance.importance_scores(sums(num_blocks=study.num_blocks), 20, 0)
    return layer_importance.strategies(scores, study.num_blocks, 0.25)


def table4(study):
    order = study.order()
    return layer_importance.removed_layers(order, paper_tables.table("table4"))


def single_claim(study):
    return single_layer_removal.claim(study, single_layer_removal.measure(study))


def ratio_claim(study):
    return prune_ratio.claim(study, prune_ratio.measure(study))


def left(study):
    return prune_ratio.left(study, prune_ratio.measure(study))


def capability_orders(study):
    return single_layer_removal.orders(study, single_layer_removal.measure(study))


def best(study):
    return metric_comparison.best(study, metric_comparison.measure(study))


def metric_claim(study):
    return metric_comparison.claim(study, metric_comparison.measure(study))


def rank_correlation(study):
    return metric_comparison.agreement(study, metric_comparison.measure(study))


def equal_weights(study):
    return width_vs_depth.equal_weights(width_vs_depth.measure(study))


def width_claim(study):
    return width_vs_depth.claim(width_vs_depth.measure(study), 20, 0)


def methods(study):
    found = benchmarks.measure(study)
    return benchmarks.models_table(found, benchmarks.table(found.scores(), found.chance()))


def benchmark_claim(study):
    return benchmarks.claim(benchmarks.measure(study), 20, 0)


def generation_claim(study):
    return generation.claim(study, generation.measure(study))


def generation_compared(study):
    return generation.compared(generation.measure(study), "mine", study.num_blocks)


@pytest.mark.parametrize(
    "table, blocks, rows",
    [
        pytest.param(strategies, 1, 0, id="01: no strategy removes a single block"),
        pytest.param(strategies, 2, 6, id="01: each strategy names the one of two that goes"),
        pytest.param(table4, 1, 0, id="01: a single block has no depth to compare"),
        pytest.param(table4, 2, 4, id="01: two blocks are compared with the paper's models"),
        pytest.param(single_claim, 2, 1, id="02: two blocks have no inner one, but a first token"),
        pytest.param(single_claim, 3, 3, id="02: three blocks have one between first and last"),
        pytest.param(capability_orders, 2, 0, id="02: orders of two have no rank correlation"),
        pytest.param(capability_orders, 3, 5, id="02: orders of three have; some measures give the same"),
        pytest.param(ratio_claim, 2, 0, id="03: a single step has no steadiness"),
        pytest.param(ratio_claim, 3, 1, id="03: two steps have"),
        pytest.param(left, 2, 4, id="03: of two blocks one can go"),
        pytest.param(left, 3, 8, id="03: of three a quarter and a half"),
        pytest.param(best, 2, 4, id="04: of two blocks a half, and the area up to it"),
        pytest.param(best, 3, 8, id="04: of three a quarter too, but no tenth, and the means to a third and a half"),
        pytest.param(rank_correlation, 2, 0, id="04: orders of two have no rank correlation"),
        pytest.param(rank_correlation, 3, 25, id="04: orders of three have, equal ones together"),
        pytest.param(equal_weights, 1, 0, id="05: heads are not compared with a block that stays"),
        pytest.param(equal_weights, 2, 0, id="05: no set of heads weighs as much as one of two blocks"),
        pytest.param(width_claim, 1, 1, id="05: of one block single heads alone are judged, and no pattern"),
        pytest.param(width_claim, 2, 1, id="05: of two blocks too, where no heads weigh as much"),
        pytest.param(methods, 1, 1, id="08: of one block the dense model alone is scored"),
        pytest.param(methods, 2, 3, id="08: of two blocks the pruned ones too"),
        pytest.param(benchmark_claim, 1, 0, id="08: nothing is claimed of a model from which nothing goes"),
        pytest.param(generation_claim, 1, 0, id="09: nothing is claimed where the dense model writes alone"),
        pytest.param(generation_compared, 1, 0, id="09: nothing removed is not compared with the paper's quarter"),
    ],
)
def test_tables_hold_what_applies_and_no_more(plan, table, blocks, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of divisions by zero, and of statistics of too few
        found = table(plan(blocks))
    assert len(found) == rows, found
    for column in set(found) & {
        "value",
        "tau",
        "area",
        "measured",
        "damage",
        "share",
        "average",
        "mean depth, measured",
    }:
        assert np.isfinite(found[column].astype(float)).all(), found


@pytest.mark.parametrize(("blocks", "statements"), [(1, 0), (2, 0), (3, 5), (5, 8)])
def test_of_an_order_of_few_blocks_less_is_said(blocks, statements):
    claim = layer_importance.claim(sums(num_blocks=blocks), 20, 0)
    assert len(claim) == statements and claim[["measured", "threshold", "p"]].notna().all(axis=None)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_quantization_without_a_block_that_can_go_stands_alone(plan, blocks):
    found = quantization.measure(plan(blocks))
    of, removals, k = found.precisions, found.removals, found.k
    table = quantization.table(of, removals, k)
    settings = set(table[table.source == "measured"].setting)
    assert settings == ({"dense"} if blocks == 1 else {"dense", "ShortGPT", "removed first"})
    assert k == (blocks > 1) and all(len(variant) for one in of for variant in one.nll)
    others = [
        quantization.reported(of, removals, k),
        quantization.interaction(of, removals),
        quantization.draws_of_gptq(of, removals),
        quantization.order_of_steps(of, removals, k),
        after := quantization.order_after(of, removals, k, 20, 0),
    ]
    assert all(one.empty == (blocks == 1) for one in others)
    assert ("tau" in after) == (blocks == 3)
    assert len(quantization.points(of, removals)) == 2 * min(blocks, 2), "full precision and 4 bits at every depth"
    # In a plan quantization costs nothing, of which no share can be told, and all sizes are zero.
    claim = quantization.claim(of, removals, k, found.steps, 20, 0)
    assert ["of the same size" in one for one in claim.statement] == [True] * (blocks > 1)


@pytest.mark.parametrize("blocks, ratios, statements", [(1, 0, 3), (2, 1, 4), (3, 2, 6), (6, 3, 6)])
def test_two_models_are_compared_at_ratios_that_are_blocks_of_both(blocks, ratios, statements):
    rng = np.random.default_rng(0)
    counts = sorted({0, 1, *range(blocks), blocks // 2})
    few, many = (
        rwkv_redundancy.summary(rng.uniform(2, 3, (n, 4)), np.ones(4), rng.uniform(2, 3, (12, 4)), ks)
        for n, ks in ((blocks, counts), (12, range(12)))
    )
    assert np.isfinite(few[0, -3:]).sum() == ratios
    found = rwkv_redundancy.claim(many, few, 20, 0)
    assert len(found) == statements and found.measured.notna().all() and found.threshold.notna().all()


@pytest.mark.parametrize("blocks, deep", [(2, [1]), (3, [1]), (6, [2])], ids=["two", "three", "six"])
def test_runs_of_blocks_leave_at_least_one(plan, blocks, deep):
    ns, healed = block_pruning.counts(plan(blocks))
    assert healed == deep and max(ns) == blocks - 1
    chosen = block_pruning.runs(sums(num_blocks=blocks), ns)
    assert all(len(variant) == blocks - n for of in chosen.values() for n, variant in of.items())
    assert len(block_pruning.best_starts(sums(num_blocks=blocks), 20, 0)) == blocks - 1
    assert 1 <= healing.num_removed(plan(blocks)) < blocks


@pytest.mark.parametrize("depths, per_method", [([1], 1), ([2], 1), ([1, 2], 3), ([1, 2, 3], 3)], ids=str)
def test_parts_of_a_model_are_judged_against_the_whole_where_there_are_any(plan, depths, per_method, monkeypatch):
    run = prompt_tuning.Run
    results = {
        run(name, method, kept, 0): task_result([1, 0, 1, 0, 1, 0, 1, 1])
        for name in ("movie_reviews", "amazon_reviews")
        for method in (prompt_tuning.PROMPTS, prompt_tuning.WEIGHTS)
        for kept in depths
    }
    for result in results.values():
        result.arrays["correct"] = result.arrays["acc"].astype(bool)
        result.summary["train_accuracy"] = 1.0
    monkeypatch.setattr(prompt_tuning, "bag_of_words", lambda study, name: np.zeros((1, 8), bool))
    accuracies = prompt_tuning.Accuracies(results)
    claim = prompt_tuning.claim(plan(3), results)
    assert len(claim) == 2 * per_method
    assert (claim.verdict == "not testable here").all(), "one seed tells nothing of others"
    assert (claim.statement == prompt_tuning.PRIMARY).sum() == (len(depths) > 1)
    compared = prompt_tuning.against_whole(accuracies)
    assert len(compared) == 2 * 3 * (len(depths) - 1) and "difference" in compared
    assert (prompt_tuning.beside_paper(plan(3), accuracies).source == "measured").any() == (len(depths) > 1)


# ----------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("blocks, coloured", [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2)], ids=str)
def test_a_quarter_is_coloured_but_never_all(blocks, coloured):
    scores = pd.DataFrame({"block": range(blocks), "score": np.linspace(0.1, 0.2, blocks)})
    axes = draw_importance.removal_order(scores, list(range(blocks)), layer_importance.quarter(blocks)).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert (f"the {coloured} removed first" in labels) == bool(coloured)
    axes.figure.draw_without_rendering()
    assert all(tick == round(tick) for tick in axes.get_xticks()), "no half of a block"


def test_a_single_head_has_a_whole_number():
    everywhere = pd.DataFrame(
        {"head": [0], "measurement": "perplexity", "value": 0.1, "low": 0.0, "high": 0.2, "dense": 0.0, "n": 3}
    )
    figure = draw_width.head_removal(everywhere.assign(chance=np.nan))
    figure.draw_without_rendering()
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks())


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda one: choosing.chosen(one, "block_influence", HowMany(remove=1)), id="one of one"),
        pytest.param(lambda one: choosing.chosen(one, "block_influence", HowMany(ratio=0.5)), id="half of one"),
        pytest.param(lambda one: choosing.chosen(one, "block_influence", HowMany(max_loss=9.0)), id="any loss"),
        pytest.param(lambda one: choosing.chosen(one, "greedy", HowMany(remove=0)), id="none of one"),
        pytest.param(lambda one: choosing.chosen(one, "angular_distance", HowMany(remove=1)), id="a run of one"),
        pytest.param(lambda one: effects.sweep(one, "block_influence", [0, 1]), id="a sweep of one"),
    ],
)
def test_a_single_block_is_never_removed(study, ask):
    assert "nothing to remove" in refusal(lambda: ask(study(1)))


@pytest.mark.parametrize(
    "ask, words",
    [
        pytest.param(lambda one: choosing.chosen(one, "sequential", HowMany(remove=2)), "give 0 to 1", id="two of two"),
        pytest.param(
            lambda one: choosing.chosen(one, "sequential", HowMany(remove=0)), "give 1 to 1", id="none of two"
        ),
        pytest.param(lambda one: choosing.chosen(one, "sequential", HowMany(remove=-1)), "give 0 to 1", id="minus one"),
        pytest.param(lambda one: variants.single_removal(1), "only block", id="each of one in turn"),
        pytest.param(lambda one: variants.without(2, [0, 1]), "all 2 blocks", id="both of two"),
    ],
)
def test_at_least_one_of_two_blocks_stays(study, ask, words):
    assert words in refusal(lambda: ask(study(2)))


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.99])
def test_any_share_of_two_blocks_is_one_of_them(study, remarks, ratio):
    assert choosing.chosen(study(2), "reverse_order", HowMany(ratio=ratio)) == (1,)
    assert ("come to none" in remarks()) == (ratio <= 0.25)


@pytest.mark.parametrize("blocks, words", [(1, "no order of removal"), (2, "the same block goes first")], ids=str)
def test_ranks_of_few_blocks_are_given(study, blocks, words):
    assert list(effects.ranking(study(blocks), "block_influence")["rank"]) == list(range(1, blocks + 1))
    assert words in effects.certainty(study(blocks), "block_influence")


def test_a_dry_run_counts_a_model_that_is_healed_and_then_quantized(plan):
    one = replace(plan(2), ledger=Ledger())
    order = pruned_checkpoint.ordered(one, "reverse_order", HowMany(remove=1), "lora", 4)
    pruned_checkpoint.measured(one, order)
    assert len(one.ledger.of(Training)) == len(one.ledger.of(Quantization)) == 1


def test_of_several_recipes_of_a_method_the_command_takes_the_first(plan):
    recipes = profiles.get("embedded").budget(healing.Budget).recipes
    assert [one.head for one in recipes if one.method == "partial"] == ["trained", "kept"]
    one = plan(2).with_budget("healing", recipes=recipes)
    order = pruned_checkpoint.ordered(one, "reverse_order", HowMany(remove=1), "partial")
    assert order.heal is not None and order.heal.head == "trained"


# --------------------------------------------------------------------------------------- one item, one block of text


@pytest.mark.parametrize("low, cell", [(np.nan, "| 3.00 |"), (2.5, "| 3.00 (2.50 to 3.50) |")], ids=["one", "several"])
def test_a_card_has_intervals_where_there_are_any(low, cell):
    ends = {f"{name}low": low for name in ("", "increase_")} | {f"{name}high": low + 1 for name in ("", "increase_")}
    text = {"corpus": "wikipedia", "split": "evaluation", "blocks": 1, "tokens_a_block": 8}
    found = {
        "base_model": "mine", "base_licence": "mit", "base_revision": "main", "layer_redundancy": "0", "num_blocks": 2,
        "removed_blocks": [1], "measure": "taylor", "healed": None, "quantized_to_bits": None, "calibration": text,
        "evaluation": text, "needs_import": [],
        "cost": {"perplexity": {"dense": 2.0, "pruned": 3.0, "increase": 0.4, "n": 1} | ends, "tasks": []},
    }  # fmt: skip
    written = card.text(found)
    assert cell in written and "nan" not in written


def test_one_block_of_text_has_a_perplexity_and_no_interval():
    found = result_tables.perplexity({(0, 1): nll_result([2]), (1,): nll_result([3])}, (0, 1))[0]
    assert found.perplexity.to_numpy() == pytest.approx(np.exp([2, 3])) and found.low.isna().all()


# ------------------------------------------------------------------------------------------------------ the notebooks


@pytest.mark.parametrize("notebook", sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
def test_every_assert_of_a_notebook_says_what_was_expected_and_what_was_found(notebook):
    cells = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert found, "a notebook checks what it shows"
    for one in found:
        message = ast.unparse(one.msg) if one.msg else ""
        assert "expected" in message and "found" in message, ast.unparse(one)


@pytest.mark.slow
def test_a_notebook_runs_on_a_single_block(folder, tmp_path):
    cache = tmp_path / "root" / "data" / "cache"
    cache.mkdir(parents=True)
    corpora.articles("wikipedia", "evaluation")  # so that they are in the cache and not prepared for each test
    for path in paths.CACHE.iterdir():
        (cache / path.name).symlink_to(path)
    code, said = notebook_cells.run("09_generation", tmp_path / "root", profile="smoke", model=str(folder(1)))
    assert code == 0 and SINGLE in said, said
    assert "Warning" not in said, said
