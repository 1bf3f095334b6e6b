"""What is planned is counted by hand here; that it is what runs, `make rehearse` shows on every notebook."""

from dataclasses import replace

import pytest

from layer_redundancy.config import profiles, sources
from layer_redundancy.config.profiles import PROFILES, TaskBudget
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import variants
from layer_redundancy.measures import importance
from layer_redundancy.planning import estimate, workload
from layer_redundancy.planning.workload import Planner, Shape

LLAMA = Shape("meta-llama/Llama-2-7b-hf", 32, 32, 97, True)
AMOUNTS = {name: data.amount for name, data in sources.DATA.items() if data.amount}


def planner(shape=LLAMA, profile="paper", beside=None):
    return Planner(PROFILES[profile], shape, beside, AMOUNTS)


def test_single_removal_by_hand():
    work = planner().work("02")
    text, mmlu = work.sweeps
    assert work.num_variants == 33
    tokens = 128 * 1023
    assert text.block_tokens_naive == (32 + 32 * 31) * tokens
    # Removing block i runs blocks i+1.. anew: 31 + 30 + ... + 0, beside the dense model's 32.
    assert text.block_tokens == (32 + 31 * 32 // 2) * tokens
    assert text.head_tokens == 33 * tokens
    assert mmlu.block_tokens == (32 + 31 * 32 // 2) * 1_740_000 and mmlu.head_tokens == 33 * 14042


def test_without_a_cache_prompts_run_whole():
    work = planner(replace(LLAMA, keeps_prefixes=False)).work("02")
    assert work.sweeps[1].block_tokens == (32 + 31 * 32 // 2) * 10_200_000


def test_what_is_stored_is_not_counted_again():
    plans = planner()
    first, again = plans.work("02"), plans.work("02")
    assert first.sweeps and not again.sweeps
    assert plans.work("03").num_variants == 30  # dense, and the first removed alone, are there


def test_the_papers_order_stands_in_and_the_ends_go_last():
    order = planner().order()
    assert tuple(order[:9]) == (27, 26, 25, 28, 24, 29, 23, 21, 22)
    assert sorted(order) == list(range(32)) and set(order[-3:]) == {0, 1, 31}
    unknown = planner(replace(LLAMA, name="mine", blocks=5)).order()
    assert sorted(unknown) == list(range(5)) and unknown[-1] in (0, 4)


def test_every_measure_of_the_comparison_is_counted():
    counts = [0, 3]
    plans = list(planner()._plans(counts))
    orders = set(importance.MEASURES) - {"angular_distance"}
    assert len(plans) == len(orders) * len(counts) + 1  # and one run of blocks a depth, but for depth 0


@pytest.mark.parametrize("profile", ["smoke", "embedded", "paper", "rehearsal"])
@pytest.mark.parametrize("blocks", [2, 4, 30])
def test_every_notebook_of_every_profile_can_be_planned(profile, blocks):
    shape = Shape("some/model", blocks, 4, 3, True)
    beside = Shape("some/other", 3, 0, 1, False)
    of = PROFILES[profile]
    amounts = AMOUNTS | {b.name: Amount(50, 200, 9000, 5000, 200) for b in (*of.tasks, *of.benchmarks)}
    plans = Planner(of, shape, beside, amounts)
    for number in estimate.NOTEBOOKS:
        work = plans.work(number)
        assert 0 <= work.block_tokens <= work.block_tokens_naive
        for sweep in work.sweeps:
            assert all(len(variants.removed_blocks(blocks, v)) < blocks for v in sweep.variants if sweep.variants)


def test_block_pruning_by_hand():
    work = planner().work("10")
    # Depths 3, 6, 10, 13, 16 and 19 are healed after either rule, and the whole model is trained too.
    assert sorted(one.blocks for one in work.trainings) == sorted([32, *2 * [29, 26, 22, 19, 16, 13]])
    tokens = 5000 * 16 * 2048
    assert {one.tokens for one in work.trainings} == {tokens} == {one.scored for one in work.trainings}
    # QLoRA: a forward, and the gradients of its states.
    assert sum(one.block_tokens for one in work.trainings) == 2 * tokens * (32 + 2 * 125)
    assert sum(one.head_tokens for one in work.trainings) == 13 * 2 * tokens
    assert {s.measurement for s in work.sweeps} == {"perplexity/c4", "mmlu"}
    texts = [s for s in work.sweeps if s.measurement == "perplexity/c4"]
    # Dense; every n from 1 to 31 by three rules, which agree where hardly a block is left; and what is healed.
    plan = set(texts[1].variants)
    assert texts[0].variants == (tuple(range(32)),) and 3 * 31 - 4 <= len(plan) <= 3 * 31
    assert {tuple(range(n)) for n in range(1, 32)} < plan  # the last blocks
    assert {(*range(31 - n), 31) for n in range(1, 32)} < plan  # the simple rule
    healed = [s.variants for s in texts[2:]]
    assert sorted(len(variant) for (variant,) in healed) == sorted(one.blocks for one in work.trainings)
    text = 128 * 1023
    assert [s.block_tokens for s in texts[2:]] == [len(variant) * text for (variant,) in healed]
    whole = planner().work("10").block_tokens
    after = planner()
    after.work("04")  # which has measured MMLU on removal from the last block on
    assert after.work("10").block_tokens < whole


def test_recipes_by_hand():
    work, budget = planner().work("11"), PROFILES["paper"].healing
    methods = [one.recipe.method for one in work.trainings]
    # Nine selections after LoRA, of which the last blocks at the first seed are a recipe's run too.
    assert [methods.count(m) for m in ("lora", "qlora", "partial", "full")] == [3 + 8, 3, 3, 3]
    assert {one.blocks for one in work.trainings} == {24} and {one.length for one in work.trainings} == {256}
    assert {one.tokens for one in work.trainings} == {1555 * 64 * 256} == {budget.tuning.tokens}
    by = {one.recipe.method: one.block_tokens / one.tokens / 24 for one in work.trainings}
    assert by == {"lora": 2, "qlora": 2, "full": 3, "partial": (24 + 2 * 3) / 24}
    chosen, *_ = work.sweeps
    assert chosen.amount.items == 64 and chosen.variants == tuple(variants.single_removal(32))
    unhealed = next(s for s in work.sweeps if s.measurement == "perplexity")
    assert {len(variant) for variant in unhealed.variants} == {24} and len(unhealed.variants) == 9
    assert work.passes > 3 * chosen.amount.tokens * 32 and work.models == 1 + 2 * len(work.trainings)


def test_prompt_tuning_by_hand():
    work, budget = planner().work("12"), PROFILES["paper"].classification
    kept = (1, 2, 4, 6, 8, 12, 16, 24, 32)
    assert len(work.trainings) == 2 * len(kept) * 4 * 3 and not work.sweeps
    assert {one.blocks for one in work.trainings} == set(kept)
    prompts = [one for one in work.trainings if one.recipe.method == "prompts"]
    assert len(prompts) * 2 == len(work.trainings)
    (sst2,) = {one.length for one in prompts if one.scored == 5 * 2 * 64}
    assert sst2 == 20 + 3 * (26 + workload.TEMPLATE_TOKENS)  # virtual tokens, two worked examples, the text
    assert all(one.instead.method == "lora" for one in work.trainings if one.recipe.method == "full")
    assert budget.test_items == 1000
    small = planner(profile="smoke")
    small.profile = replace(small.profile, classification=replace(small.profile.classification, test_items=None))
    assert small.work("12").passes > planner(profile="smoke").work("12").passes > 0


def test_a_part_keeps_the_examples():
    mmlu = AMOUNTS["mmlu"]
    few = workload.part(mmlu, 1000)
    assert few.items == few.sequences == few.scored == 1000 and few.tokens == round(mmlu.tokens * 1000 / 14042)
    # Nearly all of the 57 subjects' examples (605 tokens each) and the thousand questions themselves.
    assert few.shared == pytest.approx(57 * 605 + 1_705_500 * 1000 / 14042, rel=0.01)
    pair = workload.part(mmlu, 2)  # of two subjects, most likely: nothing to share
    assert pair.shared == pytest.approx(pair.tokens, rel=0.02)
    four = workload.part(AMOUNTS["hellaswag"], 10)  # the four endings of a question share it, however few questions
    assert four.shared == pytest.approx(AMOUNTS["hellaswag"].shared * 10 / 10042, rel=0.01)
    assert workload.part(mmlu, 14042) is mmlu and workload.part(mmlu, 99999) is mmlu


def test_every_benchmark_that_is_downloaded_is_known():
    paper = profiles.PROFILES["paper"]
    every = (*paper.tasks, *paper.benchmarks, *paper.generative_benchmarks, *paper.generation.tasks)
    assert {b.name for b in every} <= set(AMOUNTS)
    from layer_redundancy.data.paper_benchmarks import PAPER_BENCHMARKS

    for benchmark in PAPER_BENCHMARKS:
        assert sources.DATA[benchmark.task].amount.items == benchmark.items
    assert planner().task(TaskBudget("mmlu", limit=7)).items == 7
