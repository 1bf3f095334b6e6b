"""Notebook 13's tables and statements on made-up numbers whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from layer_redundancy.config import paper_tables
from layer_redundancy.core.errors import NotApplicable
from layer_redundancy.core.verdicts import REFUTED, SUPPORTED
from layer_redundancy.data.corpora import TokenBlocks
from layer_redundancy.experiments import rivals
from layer_redundancy.experiments.rivals import REMOVED, REPLACED, Cost, Measured, Outcome, Runs
from layer_redundancy.methods.method import NEAR, Plan
from layer_redundancy.study import Study
from made_up import checkpoint, task_result
from one_line import refusal

TEXT = TokenBlocks(torch.arange(120).reshape(6, 20), "made up", "evaluation", False)
DENSE = np.array([2.0, 2.5, 3.0, 2.2, 2.4, 2.9])
READ = np.array([1.0, 3.0])
PLAN = Plan({"blocks": 2}, 0.25, 0.4, 2)
# Nats a token that each method costs, the least of three texts first; text and block move it by a little.
DAMAGES = {
    "shortgpt": 1.0, "sleb": 0.2, "llm_pruner": 2.5, "slice_gpt": 3.0, "slice_gpt_tied": 3.5, "laco": 2.4,
    "laco_code": 1.4, "replace_me": 0.2, "magnitude_compensation": 0.1,
}  # fmt: skip
OF_BLOCK = np.array([-0.02, 0.01, 0.0, 0.02, -0.01, 0.0])
OF_DRAW = np.array([-0.03, 0.0, 0.03])
RIGHT = {"whole": 180, "shortgpt": 150, "llm_pruner": 60, "slice_gpt": 50}  # of 200; all others guess


def items(right: int):
    return task_result([1] * right + [0] * (200 - right))


def outcomes(method: str, damage: float, draws: int = 3) -> list[Outcome]:
    """What a method made of so many texts; those of a text are further from each other than those of a block."""
    found = []
    for draw in range(draws):
        nll = DENSE + damage + OF_BLOCK + OF_DRAW[draw]
        read, tasks = None, {}
        if draw == 0:
            read, tasks = READ + damage / 2, {"copying": items(RIGHT.get(method, 50))}
        found.append(Outcome(method, PLAN, nll, read, 1.0 + draw**2, tasks))
    return found


def measured(study, damages=DAMAGES, draws: int = 3, **changes) -> Measured:
    """All that notebook 13 measures, of methods that cost so much."""
    at_ratio = {method: outcomes(method, damage, draws) for method, damage in damages.items()}
    small = Plan({"blocks": 1}, 0.12, 0.2, 1)
    less = {m: Outcome(m, small, DENSE + d / 4 + OF_BLOCK, None, 1.0) for m, d in damages.items()}
    found = {
        "study": study,
        "text": TEXT,
        "target": 0.25,
        "dense": DENSE,
        "dense_read": READ,
        "dense_tasks": {"copying": items(RIGHT["whole"])},
        "tasks": [],
        "at_ratio": at_ratio,
        "by_share": {method: {0.25: of[0], 0.1: less[method]} for method, of in at_ratio.items()},
        "costs": {"shortgpt": Cost(640, 3_000, 750, 1.5, 1.25)},
        "dense_disk": 1000,
        "healed": {"shortgpt": DENSE + 0.3 + OF_BLOCK, "slice_gpt": DENSE + 1.5 - OF_BLOCK},
        "left_out": {},
        "runs": [],
        "factors": [],
    }
    return Measured(**found | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    return Study.open("smoke", str(checkpoint(folder / "model")), store=folder / "store.sqlite")


# ------------------------------------------------------------------------------------------------ tables


def test_quality_has_intervals_over_texts_and_blocks_and_the_best_first(study):
    table = rivals.quality(measured(study)).set_index("method")
    assert list(table.index) == sorted(DAMAGES, key=DAMAGES.__getitem__)
    row = table.loc["shortgpt"]
    assert row[["removed", "removed_of_blocks", "draws"]].tolist() == [25, 40, 3]
    assert row[["damage", "least", "most", "read", "healed"]].tolist() == pytest.approx([1.0, 0.97, 1.03, 0.5, 0.3])
    assert row["perplexity"] == pytest.approx(np.exp(2.5 + 1.0))
    # Variances of the means over blocks and over texts, added; degrees of freedom by Welch and Satterthwaite.
    of_draws, of_blocks = 0.03**2 / 3, (2 * 0.02**2 + 2 * 0.01**2) / 5 / 6
    degrees = (of_draws + of_blocks) ** 2 / (of_draws**2 / 2 + of_blocks**2 / 5)
    half = student_t.ppf(0.975, degrees) * np.sqrt(of_draws + of_blocks)
    assert row[["low", "high"]].tolist() == pytest.approx([1 - half, 1 + half])
    half = student_t.ppf(0.975, 5) * np.sqrt(of_blocks)
    assert row[["healed_low", "healed_high"]].tolist() == pytest.approx([0.3 - half, 0.3 + half])
    assert table.loc["laco", ["healed", "healed_low", "healed_high"]].isna().all()


def test_of_a_single_text_the_interval_is_over_blocks_alone(study):
    row = rivals.quality(measured(study, {"sleb": 0.5}, draws=1)).iloc[0]
    half = student_t.ppf(0.975, 5) * OF_BLOCK.std(ddof=1) / np.sqrt(6)
    assert row[["draws", "least", "most", "damage"]].tolist() == pytest.approx([1, 0.47, 0.47, 0.47])
    assert row[["low", "high"]].tolist() == pytest.approx([0.47 - half, 0.47 + half])


def test_accuracies_are_the_whole_models_and_those_of_the_first_text(study):
    table = rivals.accuracy(measured(study)).set_index("method")
    assert list(table.index) == ["whole model", *DAMAGES]
    assert table["accuracy"].iloc[:4].tolist() == [0.9, 0.75, 0.25, 0.3]
    assert (table["n"] == 200).all() and (table["chance"] == 0.25).all() and (table["task"] == "copying").all()
    # Wilson's interval of 150 of 200.
    middle, z = 0.75, 1.959964
    centre = (middle + z**2 / 400) / (1 + z**2 / 200)
    half = z / (1 + z**2 / 200) * np.sqrt(middle * (1 - middle) / 200 + z**2 / (4 * 200**2))
    assert table.loc["shortgpt", ["low", "high"]].tolist() == pytest.approx([centre - half, centre + half])


def test_sizes_go_up_and_are_paired_with_the_whole_model(study):
    table = rivals.by_share(measured(study, {"shortgpt": 1.0, "laco": 2.0}))
    assert table["method"].tolist() == ["shortgpt"] * 3 + ["laco"] * 3
    sizes = table[["asked", "removed", "removed_of_blocks"]].iloc[:3].to_numpy().tolist()
    assert sizes == [[0, 0, 0], [10, 12, 20], [25, 25, 40]]
    assert table["damage"].tolist() == pytest.approx([0, 0.25, 0.97, 0, 0.5, 1.97])
    half = student_t.ppf(0.975, 5) * OF_BLOCK.std(ddof=1) / np.sqrt(6)
    assert (table["high"] - table["damage"]).tolist() == pytest.approx([0, half, half] * 2)
    assert (table["damage"] - table["low"]).tolist() == pytest.approx([0, half, half] * 2)


def test_a_method_that_makes_the_whole_model_larger_begins_there(study):
    table = rivals.by_share(measured(study, {"slice_gpt": 1.0}))
    start = study.plans("slice_gpt")[0]
    assert table["removed"].iloc[0] == 100 * start.removed < 0 and table["damage"].iloc[0] == 0


def test_costs_are_medians_and_parts_of_the_whole_model(study):
    (row,) = rivals.costs(measured(study)).itertuples(index=False)
    assert tuple(row) == ("shortgpt", 640, 2.0, 3000, 750, 75.0, 150.0, 125.0), "seconds were 1, 2 and 5"


def runs_of_two(**judged) -> Runs:
    """Four runs of two blocks; the second is the best when it is replaced, the third when it is removed."""
    choosing = {REMOVED: np.array([[5.0, 7.0], [4.0, 6.0], [3.0, 4.0], [9.0, 9.0]])}
    choosing[REPLACED] = choosing[REMOVED] - np.array([[0.5], [3.5], [0.5], [1.0]])
    nothing = np.full(6, np.nan)
    known = {
        REMOVED: np.stack([DENSE + 4, DENSE + 3, DENSE + 1.5, nothing]),
        REPLACED: np.stack([DENSE + 2 + OF_BLOCK, DENSE + 1 - OF_BLOCK, DENSE + 1.2, nothing]),
    }
    chosen = {
        rivals.BY_INFLUENCE: 0,
        rivals.BY_COSINE: 0,
        rivals.BEST_REMOVED: 2,
        rivals.BEST_REPLACED: 1,
    }
    return Runs(2, np.arange(1, 5), chosen, choosing, np.array([1.0, 2.0]), known | judged)


def test_every_run_is_there_and_those_that_a_rule_chose_are_judged(study):
    table = rivals.runs(measured(study, runs=[runs_of_two()])).set_index(["kind", "start"])
    assert len(table) == 8 and (table["length"] == 2).all()
    assert table.loc[REMOVED, "choosing"].tolist() == [4.5, 3.5, 2.0, 7.5]
    assert table.loc[REPLACED, "choosing"].tolist() == [4.0, 0.0, 1.5, 6.5]
    of_rules = ["least Block Influence, least cosine distance", "best replaced", "best removed", ""]
    assert table.loc[REMOVED, "chosen_by"].tolist() == table.loc[REPLACED, "chosen_by"].tolist() == of_rules
    assert table.loc[REMOVED, "damage"].iloc[:3].tolist() == pytest.approx([4, 3, 1.5])
    assert table.loc[[(REMOVED, 4), (REPLACED, 4)], ["damage", "low", "high"]].isna().all(axis=None)


def test_regret_is_what_a_rules_run_costs_above_the_best(study):
    table = rivals.chosen_runs(measured(study, runs=[runs_of_two()])).set_index("rule")
    row = table.loc[rivals.BY_INFLUENCE]
    assert row[["length", "first", "last"]].tolist() == [2, 1, 2]
    assert row[["removed", "replaced", "regret"]].tolist() == pytest.approx([4, 2, 1])
    half = student_t.ppf(0.975, 5) * 2 * OF_BLOCK.std(ddof=1) / np.sqrt(6)  # paired: both move, to either side
    assert row[["low", "high"]].tolist() == pytest.approx([1 - half, 1 + half])
    assert table.loc[rivals.BEST_REPLACED, ["regret", "low", "high"]].tolist() == [0, 0, 0]
    assert table.loc[rivals.BEST_REMOVED, "regret"] == pytest.approx(0.2)


def test_factors_give_back_a_difference(study):
    factors = [(2, DENSE + 1.0, DENSE + 0.6 + OF_BLOCK)]
    (row,) = rivals.factors(measured(study, factors=factors)).itertuples()
    assert (row.blocks, row.removed) == (2, pytest.approx(100 * study.plans("shortgpt")[2].removed))
    assert (row.damage, row.compensated, row.difference) == pytest.approx((1.0, 0.6, -0.4))
    half = student_t.ppf(0.975, 5) * OF_BLOCK.std(ddof=1) / np.sqrt(6)
    assert (row.low, row.high) == pytest.approx((-0.4 - half, -0.4 + half))


def test_sizes_are_read_as_text(study):
    (row,) = rivals.sizes(measured(study, {"shortgpt": 1.0})).to_dict("records")
    quality = rivals.quality(measured(study, {"shortgpt": 1.0})).iloc[0]
    assert row["method"] == "ShortGPT" and row["by text"] == "0.97 to 1.03"
    assert row["loss (95 %)"] == f"1.00 ({quality.low:.2f} to {quality.high:.2f})"
    assert (row["of all weights (%)"], row["of the blocks' (%)"]) == (25, 40)
    assert (row["on its text's first blocks"], row["after training"]) == pytest.approx((0.5, 0.3))


def test_other_sources_stand_beside_what_is_measured_here(study):
    table = rivals.reported(measured(study, {"shortgpt": 1.0})).set_index(["method", "metric"])
    assert table.drop(columns="here").reset_index().equals(paper_tables.sources_of_methods())
    assert table["here"].dropna().to_dict() == {
        ("shortgpt", metric): pytest.approx(np.e) for metric in ("wikitext2_perplexity", "c4_perplexity")
    }
    shown = rivals.contradicted(rivals.reported(measured(study)))
    assert (shown["sources"] > 1).all() and "dense" not in set(shown["method"])
    assert set(shown["measured"]) <= {"WikiText-2 perplexity", "C4 perplexity", "MMLU (%)"}
    row = shown[(shown["method"] == "ShortGPT") & (shown["measured"] == "WikiText-2 perplexity")].iloc[0]
    assert (
        row["cannot both be"] == "8.89 at 25 % is below 18.45 at 22 %"
        and row["most over least, each over its dense"] > 3
    )


def test_what_is_left_out_has_its_card_and_its_reason(study):
    found = measured(study, {"shortgpt": 1.0}, left_out={"slice_gpt": "SliceGPT cannot"})
    table = rivals.cards(found).set_index("method")
    assert table["left_out"].to_dict() == {"ShortGPT": "", "SliceGPT": "SliceGPT cannot"}
    assert "2403.03853" in table.loc["ShortGPT", "paper"]


def test_tables_of_a_study_without_a_method_are_empty(study):
    nothing = measured(study, {}, healed={}, costs={}, dense_tasks={})
    tables = (rivals.accuracy, rivals.by_share, rivals.costs, rivals.runs, rivals.chosen_runs, rivals.factors)
    assert nothing.draws == 0 and all(table(nothing).empty for table in (*tables, rivals.sizes, rivals.claim))


# ------------------------------------------------------------------------------------------------ statements

NARROWER = "after training, removal by Block Influence costs less than the better method that makes the model narrower"


def verdicts_of(found: Measured) -> dict[str, str]:
    return rivals.claim(found).set_index("statement")["verdict"].to_dict()


def test_the_claim_says_who_costs_less(study):
    claim = rivals.claim(measured(study, runs=[runs_of_two()]))
    assert claim["statement"][0] == rivals.PRIMARY and claim["role"].tolist() == ["primary", *[""] * (len(claim) - 1)]
    rows = claim.set_index("statement")
    expected = {
        rivals.PRIMARY: 1.5,  # of LLM-Pruner, the better one
        "removal by Block Influence costs less than LLM-Pruner": 1.5,
        "removal by Block Influence costs less than the better SliceGPT": 2.0,
        "LaCo as printed costs more than removal by Block Influence": 1.4,
        "LaCo as printed costs more than as its code does it": 1.0,
        "greedy removal costs less than removal by Block Influence": -0.8,
        "compensated removal costs less than removal alone": -0.9,
        "ReplaceMe costs less than removal by Block Influence": -0.8,
        NARROWER: 1.2,
        "removal by Block Influence keeps more than LLM-Pruner": 0.45,
        "removal by Block Influence keeps more than SliceGPT": 0.5,
        "runs of 2 blocks with linear maps: Block Influence chooses one as good as the best": 0.75,
        "runs of 2 blocks with linear maps: that of least cosine distance costs less than its removal": -2.0,
    }
    assert rows["difference"].to_dict() == {name: pytest.approx(value, abs=1e-9) for name, value in expected.items()}
    refuted = {"runs of 2 blocks with linear maps: Block Influence chooses one as good as the best"}
    assert set(rows.index[rows["verdict"] == SUPPORTED]) == set(expected) - refuted
    assert set(rows.index[rows["verdict"] == REFUTED]) == refuted
    assert set(rows.loc[rows["on"] == "copying"].index) == {n for n in expected if "keeps more" in n}


PAIRS = {
    rivals.PRIMARY: ("shortgpt", "llm_pruner"),
    "removal by Block Influence costs less than LLM-Pruner": ("shortgpt", "llm_pruner"),
    "LaCo as printed costs more than removal by Block Influence": ("shortgpt", "laco"),
    "LaCo as printed costs more than as its code does it": ("laco", "laco_code"),
    "greedy removal costs less than removal by Block Influence": ("shortgpt", "sleb"),
    "compensated removal costs less than removal alone": ("shortgpt", "magnitude_compensation"),
    "ReplaceMe costs less than removal by Block Influence": ("shortgpt", "replace_me"),
}


@pytest.mark.parametrize("statement", PAIRS)
def test_two_methods_that_change_places_turn_the_verdict(study, statement):
    one, other = PAIRS[statement]
    swapped = DAMAGES | {one: DAMAGES[other], other: DAMAGES[one]}
    found = verdicts_of(measured(study)), verdicts_of(measured(study, swapped))
    assert [of[statement] for of in found] == [SUPPORTED, REFUTED]


def test_slices_that_change_places_with_removal_turn_their_verdicts(study):
    swapped = DAMAGES | {"slice_gpt_tied": 1.0, "slice_gpt": 2.8, "shortgpt": 3.0}
    found = verdicts_of(measured(study, swapped))
    name = "removal by Block Influence costs less than the better SliceGPT"
    assert (found[rivals.PRIMARY], found[name]) == (REFUTED, REFUTED), "the better of two heads counts"
    healed = {"shortgpt": DENSE + 1.5 - OF_BLOCK, "slice_gpt": DENSE + 0.3 + OF_BLOCK}
    assert verdicts_of(measured(study, healed=healed))[NARROWER] == REFUTED
    assert verdicts_of(measured(study))[NARROWER] == SUPPORTED


def test_tasks_that_change_places_turn_their_verdicts(study, monkeypatch):
    name = "removal by Block Influence keeps more than LLM-Pruner"
    assert verdicts_of(measured(study))[name] == SUPPORTED
    monkeypatch.setattr("test_rivals_tables.RIGHT", RIGHT | {"shortgpt": 60, "llm_pruner": 150})
    assert verdicts_of(measured(study))[name] == REFUTED


@pytest.mark.parametrize("missing", DAMAGES)
def test_of_a_method_that_is_left_out_nothing_is_claimed(study, missing):
    others = {method: damage for method, damage in DAMAGES.items() if method != missing}
    healed = {name: loss for name, loss in measured(study).healed.items() if name != missing}
    claim = set(verdicts_of(measured(study, others, healed=healed)))
    everything = set(verdicts_of(measured(study)))
    gone = everything - claim
    assert claim <= everything
    needs = {
        "shortgpt": everything - {"LaCo as printed costs more than as its code does it"},
        "sleb": {"greedy removal costs less than removal by Block Influence"},
        "llm_pruner": {name for name in everything if name.endswith("than LLM-Pruner")},
        "slice_gpt": {NARROWER},  # of text and tasks the other one is left
        "slice_gpt_tied": set(),
        "laco": {name for name in everything if name.startswith("LaCo as printed")},
        "laco_code": {"LaCo as printed costs more than as its code does it"},
        "replace_me": {"ReplaceMe costs less than removal by Block Influence"},
        "magnitude_compensation": {"compensated removal costs less than removal alone"},
    }
    assert gone == needs[missing]


def test_of_a_task_that_the_whole_model_does_not_solve_nothing_is_claimed(study):
    guessed = {"copying": items(55)}  # of 200, a quarter by chance
    claim = rivals.claim(measured(study, dense_tasks=guessed))
    assert (claim["on"] == "text").all() and len(claim) == 9
    solved = rivals.claim(measured(study, dense_tasks={"copying": items(70)}))
    assert (solved["on"] == "copying").sum() == 2


def test_of_a_single_text_blocks_alone_are_drawn(study):
    claim = rivals.claim(measured(study, draws=1)).set_index("statement")
    assert claim.loc[rivals.PRIMARY, "difference"] == pytest.approx(1.5)
    assert claim.loc[rivals.PRIMARY, "low"] == pytest.approx(1.5), "all methods move alike by block"


# ------------------------------------------------------------------------------------------------ before work


def test_methods_that_read_again_and_again_get_less_text(study):
    budget = replace(study.profile.budget(rivals.Budget), few_blocks=2, few_tokens=7)
    for method in DAMAGES:
        shape = tuple(rivals._text_of(method, TEXT, budget).input_ids.shape)
        assert shape == ((2, 7) if method in rivals.FEW else (6, 20))


def test_the_size_is_the_nearest_that_whole_blocks_reach(study):
    model = study.stack.model
    whole = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in study.stack.blocks[0].parameters())
    shares = [n * block / whole for n in range(1, 5)]
    assert rivals.share_removed(study) == pytest.approx(shares[-1]), "at least one stays: 27.1 % are not reached"
    assert rivals.share_removed(study, 0.0) == pytest.approx(shares[0]), "at least one goes"
    assert rivals.share_removed(study, 2.4 * block / whole) == pytest.approx(shares[1])


def test_sizes_that_are_not_reached_are_no_points_and_methods_that_do_not_fit_are_left_out(study, remarks):
    target = rivals.share_removed(study)
    budget = replace(study.profile.budget(rivals.Budget), methods=(), shares=(0.5, target / 2))
    found, left_out = rivals._plans(study, budget, target)
    assert 0.5 not in found["shortgpt"] and list(found["shortgpt"]) == [target, target / 2]
    assert all(abs(plan.removed - share) <= NEAR for of in found.values() for share, plan in of.items())
    assert "head is not the embedding" in left_out["slice_gpt_tied"] and set(found).isdisjoint(left_out)
    assert set(found) | set(left_out) == set(DAMAGES)
    assert f"is left out: {left_out['slice_gpt_tied']}" in remarks()
    shortlists = {method: of[target].settings.get("shortlist") for method, of in found.items()}
    assert shortlists.pop("sleb") == budget.shortlist and set(shortlists.values()) == {None}


@pytest.mark.parametrize("field", ["methods", "healed"])
def test_a_method_that_there_is_none_of_is_said_before_any_work(study, field):
    study.unload()
    one = study.with_budget("rivals", **{field: ("shortgpt", "shortgbt")})
    assert "unknown method 'shortgbt': choose one of shortgpt" in refusal(lambda: rivals.measure(one))
    assert "stack" not in vars(one), "not loaded for it"


def test_where_no_method_can_be_used_nothing_is_measured(tmp_path):
    gpt2 = Study.open("smoke", str(checkpoint(tmp_path / "model", "gpt2")), store=tmp_path / "store.sqlite")
    gpt2 = gpt2.with_budget("rivals", methods=("slice_gpt", "laco"))
    with pytest.raises(NotApplicable, match=r"no method can be used: SliceGPT .* GPT2LMHeadModel is none of these"):
        rivals.measure(gpt2)
    assert "stack" not in vars(gpt2)
