"""What is planned is counted by hand here; that it is what runs, `make rehearse` shows on every notebook."""

from dataclasses import MISSING, fields, replace
from types import ModuleType

import pytest

from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import Profile, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate import amounts
from layer_redundancy.evaluate.amounts import Pass, Quantization, Sweep, Training, Writing
from layer_redundancy.evaluate.scoring import ChoiceTask, Perplexity
from layer_redundancy.experiments import block_pruning, healing, prompt_tuning, registry
from layer_redundancy.experiments.registry import Experiment
from layer_redundancy.inputs import first_blocks
from layer_redundancy.measures import importance
from layer_redundancy.methods import replace_me
from layer_redundancy.planning import dry, stand_ins
from layer_redundancy.planning.planner import Planner
from rehearsal import run

LLAMA = "meta-llama/Llama-2-7b-hf"
RWKV = "RWKV/v5-Eagle-7B-HF"
AMOUNTS = {name: data.amount for name, data in sources.DATA.items() if data.amount}


def pages(*notebooks: str, profile: str = "paper", model: str = LLAMA, count=None) -> dict[str, dry.Ledger]:
    """Notebook -> ledger, of the notebooks in this order."""
    planner = Planner(profiles.get(profile), count=count or (lambda model, budget: Amount(50, 200, 9000, 5000, 200)))
    return {number: study.ledger for number, study in planner.pages(model or planner.profile.model, notebooks)}


def test_single_removal_by_hand():
    ledger = pages("02")["02"]
    text, mmlu = ledger.of(Sweep)
    assert len({v for one in (text, mmlu) for v in one.variants}) == 33
    tokens = 128 * 1023
    assert text.block_tokens_naive == (32 + 32 * 31) * tokens
    # Removing block i runs blocks i+1.. anew: 31 + 30 + ... + 0, beside the dense model's 32.
    assert text.block_tokens == (32 + 31 * 32 // 2) * tokens
    assert text.head_tokens == 33 * tokens
    assert mmlu.block_tokens == (32 + 31 * 32 // 2) * 1_740_000 and mmlu.head_tokens == 33 * 14042
    # Plain forwards of the dense model and of every eleventh variant, on one block of text; the importance pass; and
    # text and questions with block 10 for the first token and for others, blocks 11 to 31 four times or twice.
    *plain, importance, of_text, of_questions = [one.block_tokens for one in ledger.of(Pass)]
    assert plain == [1023 * blocks for blocks in (32, 31, 31)] and importance == 32 * 256 * 1024
    assert of_text == 16 * 1024 * (11 + 4 * 21)
    assert of_questions / (11 + 2 * 21) == pytest.approx(200 / 14042 * mmlu.amount.tokens, rel=0.01)
    assert ledger.loads == {LLAMA: 1}


def test_without_a_cache_prompts_run_whole():
    planner = Planner(profiles.get("paper"))
    study = replace(planner.study(LLAMA), keeps_prefixes=False)
    registry.by_number("02").measure(study)
    assert study.ledger.of(Sweep)[1].block_tokens == (32 + 31 * 32 // 2) * 10_200_000


def test_what_is_stored_is_not_counted_again():
    planner = Planner(profiles.get("paper"))
    first, again, third = (study.ledger for _, study in planner.pages(LLAMA, ["02", "02", "03"]))
    assert first.of(Sweep) and not again.work and not again.loads
    # The dense model, and the first removed alone, are there.
    assert len({v for one in third.of(Sweep) for v in one.variants}) == 30


def test_text_and_items_that_are_part_of_what_ran_are_not_counted_again():
    planner = Planner(profiles.get("paper"), count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
    study = planner.study(LLAMA)
    pair = [variants.dense(32), variants.without(32, [3])]

    def asked(chosen, *measurements):
        study.ledger.work.clear()
        study.sweep(chosen, measurements)
        return [(one.measurement, one.amount.sequences, one.variants) for one in study.ledger.of(Sweep)]

    def text(blocks, name="perplexity"):
        return Perplexity(first_blocks(study.evaluation, blocks), name)

    few, more = (study.inputs.task(TaskBudget("mine", limit=n)) for n in (10, 40))
    assert asked(pair[:1], text(32), more) == [("perplexity", 32, (pair[0],)), ("task/mine", 160, (pair[0],))]
    assert asked(pair, text(8), few) == [("perplexity", 8, (pair[1],)), ("task/mine", 40, (pair[1],))]
    assert asked(pair, text(20, "other")) == [("other", 12, (pair[1],))]
    assert asked(pair, text(40)) == [("perplexity", 12, (pair[1],)), ("perplexity", 8, tuple(pair))]
    # The last five of these items are new.
    part = ChoiceTask(replace(few.items, first_item=35))
    assert asked(pair[:1], part) == [("task/mine", 20, (pair[0],))]
    loads = dict(study.ledger.loads)
    assert asked(pair, text(40, "again"), few) == [] and study.ledger.loads == loads


def test_maps_and_factors_are_counted_once_a_sweep_that_lacks_some():
    study = Planner(profiles.get("paper")).study(LLAMA)
    maps, factors = study.run_maps(), study.gap_factors()
    tokens, text = 256 * 1024, 128 * 1023

    def asked(chosen, changes):
        study.ledger.work.clear()
        study.sweep(chosen, [study.perplexity, study.tasks[0]], changes=changes)
        return [one.block_tokens for one in study.ledger.of(Pass)], [one.variants for one in study.ledger.of(Sweep)]

    # Of the whole text as deep as the last run reaches, and a tenth of a block a run.
    few = [maps.variant((20, n)) for n in range(1, 9)]
    assert asked([study.dense, *few], maps) == ([28 * tokens], [(study.dense, *few)] * 2)
    every = [maps.variant(run) for run in replace_me.every_run(32)]
    rest = tuple(v for v in every if v not in few)
    assert asked(every, maps) == ([(32 + 488 // 10) * tokens], [rest] * 2)
    assert asked(every, None) == ([], [])
    gaps = [factors.variant([i]) for i in range(32)]
    assert asked(gaps, factors) == ([], [tuple(gaps)] * 2), "the activations were counted when they were asked for"
    # Without block i, those after it run anew, the first of them with its factor.
    assert study.ledger.of(Sweep)[0].block_tokens == (31 + 31 * 32 // 2) * text
    with pytest.raises(StudyError, match="block 1 is to run with a change"):
        asked([study.run_maps(ridge=0.1).variant((2, 1))], None)


def test_the_papers_order_stands_in_and_the_ends_go_last():
    order = stand_ins.order(LLAMA, 32)
    assert order[:9] == (27, 26, 25, 28, 24, 29, 23, 21, 22)
    assert sorted(order) == list(range(32)) and set(order[-3:]) == {0, 1, 31}
    unknown = stand_ins.order("mine", 5)
    assert sorted(unknown) == list(range(5)) and unknown[-1] in (0, 4)


@pytest.mark.parametrize("blocks", [2, 4, 32])
def test_the_measures_own_code_finds_the_order_in_the_stand_ins(blocks):
    sums, order = stand_ins.activation_sums(LLAMA, blocks, 64), stand_ins.order(LLAMA, blocks)
    assert tuple(importance.removal_order(importance.scores(sums, "block_influence"), "block_influence")) == order
    near = importance.removal_order(importance.scores(sums, "relative_magnitude"), "relative_magnitude")
    assert sum(a != b for a, b in zip(near, order, strict=True)) in ((0,) if blocks < 4 else (2,))
    for name in importance.MEASURES:
        assert sorted(importance.removal_order(importance.scores(sums, name), name)) == list(range(blocks))
    if blocks > 8:
        assert [importance.best_start(importance.angular_grid(sums), n) for n in (1, 5)] == [29, 25]
        other = [importance.scores(text, "block_influence") for text in sums.resampled(4, 0)]
        orders = {tuple(importance.removal_order(score, "block_influence")) for score in other}
        assert len(orders) >= 3, "another text exchanges a few neighbours"


@pytest.mark.parametrize("profile", ["smoke", "embedded", "paper", "rehearsal/rehearsal.toml"])
@pytest.mark.parametrize("blocks", [2, 4, 30])
def test_every_notebook_of_every_profile_can_be_planned(profile, blocks, monkeypatch):
    of = profiles.get(profile)
    if len(of.studied) < 2:
        of = profiles.get(profile, models=(of.model, profiles.EMBEDDED_RWKV))  # one notebook compares several
    planner = Planner(of, count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
    study = planner.study(of.model)
    config = replace(study.identity, num_hidden_layers=blocks).config
    config.get_text_config().num_hidden_layers = blocks
    study = replace(study, identity=replace(study.identity, num_hidden_layers=blocks, config=config))
    monkeypatch.setattr(Planner, "study", lambda self, model, *_: study if model == of.model else planner_study(model))
    planner_study = lambda model: replace(study, shape_of=model)  # noqa: E731 - beside it, one of as many blocks
    ledger = study.ledger
    for experiment in registry.every():
        if experiment.number == "06":  # takes two kinds of model
            continue
        ledger = ledger.page()
        experiment.measure(replace(study, ledger=ledger))
        for one in ledger.of(Sweep):
            assert 0 < one.block_tokens <= one.block_tokens_naive
            assert all(variant for variant in one.variants)


def test_a_sweep_that_an_experiment_gains_is_in_the_plan(monkeypatch):
    """The plan is the experiment: what is added to one changes the other by exactly that."""
    before = pages("08")["08"].of(Sweep)
    (experiment,) = (one for one in registry.every() if one.number == "08")
    module = ModuleType("with_more")
    pair = variants.without(32, [3, 7])

    def measure(study):
        found = experiment.measure(study)
        study.sweep([study.dense, pair], [study.perplexity])
        return found

    module.NOTEBOOK, module.measure = experiment.notebook, measure
    changed = tuple(Experiment("08_benchmarks", module) if one is experiment else one for one in registry.every())
    monkeypatch.setattr(registry, "every", lambda: changed)
    more = [one for one in pages("08")["08"].of(Sweep) if one not in before]
    text = amounts.text_amount(128, 1024)
    assert more == [Sweep("perplexity", text, (pair,))], "the dense model was there"


def test_two_models_are_planned_on_the_same_passages():
    """Notebook 06 measures both on as many passages, and few of the variants on tasks."""
    ledger = pages("06", profile="embedded", model="")["06"]
    sweeps = {one: {w.measurement: w for w in ledger.of(Sweep, one)} for one in ("rwkv5-6.6m", "smollm2-135m-instruct")}
    recurrent, transformer = sweeps.values()
    assert recurrent["passages"].amount == transformer["perplexity"].amount
    assert len(recurrent["passages"].variants) == 1 + 12 + 10, "one less by Block Influence is a single removal"
    assert [len(of["task/agreement"].variants) for of in sweeps.values()] == [4, 4]


SMALL, RECURRENT = profiles.EMBEDDED_MODEL, profiles.EMBEDDED_RWKV


def planned_after_others(notebooks: set[str], **given) -> dict[tuple[str, str], dry.Ledger]:
    """Model and number -> ledger, of some of the notebooks of all models on the smoke profile, in the plan's order."""
    planner = Planner(profiles.get("smoke", **given), count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
    before, found = dry.Ledger(), {}
    for model, numbers in planner.runs():
        for number, study in planner.pages(model, [n for n in numbers if n in notebooks], before):
            found[model, number] = study.ledger
    return found


def test_models_are_compared_last_and_spared_what_others_stored():
    both, before = (SMALL, RECURRENT), {"01", "02", "03", "04"}
    found = planned_after_others({*before, "14"}, models=both)
    assert list(found) == [(model, n) for model in both for n in sorted(before)] + [(SMALL, "14")]
    last = found[SMALL, "14"]
    # A quarter by five measures, of which notebook 04 reads two of three blocks of text.
    (left,) = last.of(Sweep, SMALL)
    assert (left.amount.tokens, {len(variant) for variant in left.variants}) == (63, {22})
    # The other model reads the first one's passages: itself, single removals, two shares, and a quarter by measure.
    (left,) = last.of(Sweep, RECURRENT)
    assert (left.measurement, left.amount.tokens) == ("passages", 3 * 63)
    assert sorted(map(len, left.variants)) == [6, *[9] * 5, *[11] * 12, 12]
    alone = planned_after_others({"14"}, models=both)[SMALL, "14"]
    assert sum(one.block_tokens for one in alone.of(Sweep)) > 10 * sum(one.block_tokens for one in last.of(Sweep))


def test_a_single_model_is_compared_with_none():
    assert [number for _, number in planned_after_others({"02", "14"})] == ["02"]
    assert [number for _, number in planned_after_others({"02", "14"}, model=RECURRENT)] == ["02"]
    without = Planner(profiles.get("embedded", models=(profiles.EMBEDDED_GEMMA, RECURRENT)))
    assert [(model, of[-1]) for model, of in without.runs()] == [
        (profiles.EMBEDDED_GEMMA, "04"),
        (RECURRENT, profiles.BEFORE_ACROSS[-1]),
        (SMALL, "14"),
    ]


def test_a_further_model_is_planned_on_what_the_profile_says_of_it():
    of = profiles.get("embedded", models=(SMALL, profiles.EMBEDDED_GEMMA))
    planner = Planner(of, count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
    gemma, own = planner.study(profiles.EMBEDDED_GEMMA), planner.study(SMALL)
    assert (len(gemma.evaluation.input_ids), gemma.num_blocks) == (8, 18)
    assert len(own.evaluation.input_ids) == of.text.evaluation_blocks > 8

    def depths(of: Profile) -> int:
        planner = Planner(of, count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
        ((_, study),) = planner.pages(profiles.EMBEDDED_GEMMA, ["04"])
        return max(len(one.variants) for one in study.ledger.of(Sweep))

    assert depths(of) < depths(replace(of, further=())), "orders from no other calibration text"


def test_block_pruning_by_hand():
    ledger = pages("10")["10"]
    trainings = ledger.of(Training)
    # Depths 3, 6, 10, 13, 16 and 19 are healed after either rule, three also without the very last block, and the
    # whole model is trained too.
    assert sorted(one.blocks for one in trainings) == sorted([32, 29, *2 * [29, 26, 22, 19, 16, 13]])
    tokens = 5000 * 16 * 2048
    assert {one.tokens for one in trainings} == {tokens} == {one.scored for one in trainings}
    # QLoRA: a forward, and the gradients of its states.
    assert sum(one.block_tokens for one in trainings) == 2 * tokens * (32 + 29 + 2 * 125)
    assert sum(one.head_tokens for one in trainings) == 14 * 2 * tokens
    assert {s.measurement for s in ledger.of(Sweep)} == {"perplexity/c4", "task/mmlu"}
    texts = [s for s in ledger.of(Sweep) if s.measurement == "perplexity/c4"]
    # Dense; every n from 1 to 31 by three rules, which agree where hardly a block is left; and what is healed.
    chosen = set(texts[1].variants)
    assert texts[0].variants == (tuple(range(32)),) and 3 * 31 - 4 <= len(chosen) <= 3 * 31
    assert {tuple(range(n)) for n in range(1, 32)} < chosen  # the last blocks
    assert {(*range(31 - n), 31) for n in range(1, 32)} < chosen  # the simple rule
    healed = [s.variants for s in texts[2:]]
    assert sorted(len(variant) for (variant,) in healed) == sorted(one.blocks for one in trainings)
    text = 128 * 1023
    assert [s.block_tokens for s in texts[2:]] == [len(variant) * text for (variant,) in healed]
    assert ledger.loads[LLAMA] == 1 + 2 * len(trainings)
    whole = sum(s.block_tokens for s in ledger.of(Sweep))
    after = pages("04", "10")["10"]  # notebook 04 has measured MMLU on removal from the last block on
    assert sum(s.block_tokens for s in after.of(Sweep)) < whole
    (packed,) = ledger.texts.values()
    assert packed.num_tokens == (5000 * 16 + 32) * 2048 and packed.corpus == "c4"


def test_recipes_by_hand():
    ledger, budget = pages("11")["11"], profiles.get("paper").budget(healing.Budget)
    trainings = ledger.of(Training)
    methods = [one.recipe.method for one in trainings]
    # Seven selections after LoRA, three times each, of which the last blocks are a recipe's runs too.
    assert [methods.count(m) for m in ("lora", "qlora", "partial", "full")] == [3 * 7, 3, 3, 3]
    assert {one.blocks for one in trainings} == {24} and {one.length for one in trainings} == {256}
    assert {one.tokens for one in trainings} == {1555 * 64 * 256} == {budget.training.tokens}
    by = {one.recipe.method: one.block_tokens / one.tokens / 24 for one in trainings}
    assert by == {"lora": 2, "qlora": 2, "full": 3, "partial": (24 + 2 * 3) / 24}
    singles = next(s for s in ledger.of(Sweep) if len(s.variants) == 32)
    assert singles.amount.items == 64 and singles.variants == tuple(variants.single_removal(32))
    # Before: the last blocks, beside the whole model; then three random selections and the five others.
    both, others = (s for s in ledger.of(Sweep) if s.measurement == "perplexity" and 1 < len(s.variants) < 32)
    assert {len(variant) for variant in both.variants} == {24, 32}
    assert {len(variant) for variant in others.variants} == {24} and len(others.variants) == 8
    assert 3 * 64 * 1024 * 32 in [one.block_tokens for one in ledger.of(Pass)], "the Taylor measure's gradients"


def test_recipes_without_memory_are_left_out():
    planner = Planner(profiles.get("paper"), fits=lambda model, training: training.recipe.method != "full")
    ((_, study),) = planner.pages(LLAMA, ["11"])
    assert {one.recipe.method for one in study.ledger.of(Training)} == {"lora", "qlora", "partial"}
    assert study.ledger.left_out == ["all weights"]
    none = Planner(profiles.get("paper"), fits=lambda model, training: False)
    ((_, study),) = none.pages(LLAMA, ["10"])
    assert "does not fit" in study.ledger.left_out[-1] and not study.ledger.of(Training)


def test_prompt_tuning_by_hand():
    ledger, budget = pages("12")["12"], profiles.get("paper").budget(prompt_tuning.Budget)
    trainings, kept = ledger.of(Training), (1, 2, 4, 6, 8, 12, 16, 24, 32)
    assert len(trainings) == 2 * len(kept) * 4 * 3 and not ledger.of(Sweep)
    assert {one.blocks for one in trainings} == set(kept)
    virtual = [one for one in trainings if one.recipe.method == "prompts"]
    assert len(virtual) * 2 == len(trainings) and not any(one.kept for one in trainings)
    (sst2,) = {one.length for one in virtual if one.scored == prompt_tuning.USUAL_EPOCHS * 2 * 64}
    assert sst2 == 20 + 3 * (26 + dry.TEMPLATE_TOKENS)  # virtual tokens, two worked examples, the text
    assert budget.test_items == 1000


def test_quantization_by_hand():
    ledger = pages("07")["07"]
    tokens = 128 * 1024
    assert sorted((one.blocks, one.tokens) for one in ledger.of(Quantization)) == sorted(
        [(32, tokens)] * (1 + 3 + 3) + [(23, tokens)] * (3 + 3) + [(32, 0)] * 3
    ), "8 bits from one text, 4 and 3 from three, before and after removal; rounding reads none"


def test_what_is_written_is_counted():
    ledger = pages("09")["09"]
    written = ledger.of(Writing)
    # The dense model, without two and eight blocks, and at 8 bits.
    assert [one.blocks for one in written[:-1]] == [(32,), (30,), (24,), (32,)] and written[-1].what == "gsm8k_cot"
    assert written[-1].blocks == (32, 30, 24) and written[-1].amount.answers == 256


def test_a_part_keeps_the_examples():
    mmlu = AMOUNTS["mmlu"]
    few = amounts.part(mmlu, 1000)
    assert few.items == few.sequences == few.scored == 1000 and few.tokens == round(mmlu.tokens * 1000 / 14042)
    # Nearly all of the 57 subjects' examples (605 tokens each) and the thousand questions themselves.
    assert few.shared == pytest.approx(57 * 605 + 1_705_500 * 1000 / 14042, rel=0.01)
    pair = amounts.part(mmlu, 2)  # of two subjects, most likely: nothing to share
    assert pair.shared == pytest.approx(pair.tokens, rel=0.02)
    four = amounts.part(AMOUNTS["hellaswag"], 10)  # the four endings of a question share it, however few questions
    assert four.shared == pytest.approx(AMOUNTS["hellaswag"].shared * 10 / 10042, rel=0.01)
    assert amounts.part(mmlu, 14042) is mmlu and amounts.part(mmlu, 99999) is mmlu


def test_every_benchmark_that_is_downloaded_is_known():
    from layer_redundancy.data.paper_benchmarks import PAPER_BENCHMARKS
    from layer_redundancy.experiments import benchmarks, generation

    paper = profiles.get("paper")
    table1, written = paper.budget(benchmarks.Budget), paper.budget(generation.Budget)
    every = (*paper.tasks, *table1.tasks, *table1.generative_tasks, *written.tasks)
    assert {b.name for b in every} <= set(AMOUNTS)
    for benchmark in PAPER_BENCHMARKS:
        assert sources.DATA[benchmark.task].amount.items == benchmark.items
    study = Planner(paper).study(LLAMA)
    assert study.inputs.amount(TaskBudget("mmlu", limit=7)).items == 7
    with pytest.raises(StudyError, match="nothing is known of how long 'unheard_of' is"):
        study.inputs.amount(TaskBudget("unheard_of"))


def test_a_plan_loads_no_model():
    with pytest.raises(StudyError, match="a plan loads no model"):
        _ = Planner(profiles.get("paper")).study(LLAMA).stack


# Switches that the rehearsal must leave: why.
STAYS = {
    ("profile", "dtype"), ("profile", "device"), ("profile", "further"),  # the paper's are off the default
    ("profile", "compiled"),  # takes a compiler
    ("profile", "own_model"), ("profile", "revision"), ("profile", "trust_remote_code"),  # the user's
    ("profile", "trust_tasks"), ("benchmarks", "ratio"), ("healing", "ratio"),  # likewise
    ("profile", "name"), ("profile", "models"),  # its further models are compared all the same
    ("profile", "budgets"),
    ("quantization", "max_blocks"),  # fewer blocks would rule the ready checkpoint out
    ("prompt_tuning", "prompt_rate"), ("prompt_tuning", "demonstrations"), ("prompt_tuning", "seeds"),  # the paper's
    ("prompt_tuning", "methods"), ("prompt_tuning", "converged"),  # likewise
    ("prompt_tuning", "weights_rate"), ("prompt_tuning", "rate_power"), ("prompt_tuning", "lora_rate"),  # rates only
    ("prompt_tuning", "max_words"),  # made-up texts are of any length
    ("block_pruning", "evaluation_corpus"), ("quantization", "ready"),  # the paper's
    ("benchmarks", "generative_tasks"), ("generation", "tasks"), ("benchmarks", "tasks_of_few"),  # likewise
    ("generation", "fractions"),  # of the few blocks
}  # fmt: skip


def test_the_rehearsal_turns_every_switch_off_its_default():
    """So that a plan that forgets one differs from what runs."""
    rehearsed = profiles.get(run.PROFILE)
    kinds = {"profile": (Profile, rehearsed)} | {
        one.module.__name__.rpartition(".")[2]: (one.module.Budget, rehearsed.budget(one.module.Budget))
        for one in registry.every()
        if hasattr(one.module, "Budget")
    }
    unchanged = {
        (name, field.name)
        for name, (kind, values) in kinds.items()
        for field in fields(kind)
        if field.default is not MISSING and getattr(values, field.name) == field.default
    }
    assert unchanged <= STAYS, unchanged - STAYS


def test_experiments_and_notebooks_are_the_same():
    from layer_redundancy.core import paths

    assert [one.notebook for one in registry.every()] == sorted(p.stem for p in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    for one in registry.every():
        assert one.notebook.partition("_")[2] == one.module.__name__.rpartition(".")[2]
    assert registry.by_number("7").number == "07"
    with pytest.raises(StudyError, match="no notebook 42: choose from 01 02"):
        registry.by_number("42")
    assert block_pruning in [one.module for one in registry.every()]
