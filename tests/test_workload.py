"""What is planned is counted by hand here; that it is what runs, `make rehearse` shows on every notebook."""

from dataclasses import replace

import pytest

from layer_redundancy import importance, profiles, sources, variants, workload
from layer_redundancy.profiles import PROFILES, TaskBudget
from layer_redundancy.sources import Amount
from layer_redundancy.workload import Planner, Shape

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
    for number in (f"{n:02}" for n in range(1, 10)):
        work = plans.work(number)
        assert 0 <= work.block_tokens <= work.block_tokens_naive
        for sweep in work.sweeps:
            assert all(len(variants.removed_blocks(blocks, v)) < blocks for v in sweep.variants if sweep.variants)


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
    from layer_redundancy.benchmarks import PAPER_BENCHMARKS

    for benchmark in PAPER_BENCHMARKS:
        assert sources.DATA[benchmark.task].amount.items == benchmark.items
    assert planner().task(TaskBudget("mmlu", limit=7)).items == 7
