import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_redundancy.planning import schedule
from layer_redundancy.planning.schedule import Chain, Step, Task, simulate


def step(*seconds, model="", alone=0.0):
    return Step(tuple(Task(s, model) for s in seconds), alone)


def chain(*steps, name="02"):
    return Chain(name, steps)


def test_the_largest_pieces_go_first():
    found = simulate([chain(step(2, 2, 3, 5))], 2)
    assert found.seconds == 7 and found.work == (5 + 2, 3 + 2)  # 5 | 3, 2, then 2 on the first that is free
    assert found.busy == (1.0, 5 / 7) and found.efficiency == pytest.approx(12 / 14)
    assert [(link.task.seconds, link.start, link.waited_for_worker) for link in found.critical] == [
        (5, 0, False),
        (2, 5, True),
    ]


def test_a_step_waits_for_the_one_before_it_and_notebooks_do_not_wait_for_each_other():
    one, other = chain(step(4, 1), step(2, 2), name="02"), chain(step(3), name="03")
    found = simulate([one, other], 2)
    # 4 on the first; 3, then 1 on the second; at 4 both are free.
    assert found.seconds == 6 and found.efficiency == 1
    assert schedule.longest([one, other]) == ("02", 6)
    many = simulate([one, other], 100)
    assert many.seconds == 6 and many.efficiency == pytest.approx(12 / 600)
    assert [(link.chain, link.step, link.end) for link in many.critical] == [("02", 0, 4), ("02", 1, 6)]


def test_a_notebook_takes_its_own_time_to_start():
    one = chain(step(1, alone=25), Step(alone=3), step(alone=2))
    assert simulate([one], 1).seconds == 31 and schedule.longest([one]) == ("02", 31)
    assert simulate([one], 1).work == (1,)
    assert [link.waited_for_worker for link in simulate([one], 1).critical] == [False]


def test_every_task_has_its_overhead():
    found = simulate([chain(step(1, 1, 1))], 1, overhead=0.5)
    assert found.seconds == 4.5 and found.overhead == 1.5 and found.work == (3,)
    assert schedule.longest([chain(step(1, 1, 1))], 0.5) == ("02", 1.5)


def test_a_model_is_loaded_when_a_worker_changes_to_it():
    small, large = step(5, 5, model="7b"), step(6, 6, model="13b")
    loading = {"7b": 2.0, "13b": 3.0}
    alone = simulate([chain(small), chain(large)], 1, loading=loading)
    # 5 - 2 is as much as 6 - 3, so the first that was asked for; its neighbour needs no loading, 6 - 3 < 5.
    assert alone.seconds == 2 + 10 + 3 + 12 and alone.loading == 5
    two = simulate([chain(small), chain(large)], 2, loading=loading)  # each does one of either
    assert two.seconds == 2 + 5 + 3 + 6 and two.loading == 10 and two.work == (11, 11)
    # One that is so much larger is worth a change.
    found = simulate(
        [chain(step(5, 5, model="7b"), step(1, model="7b")), chain(step(9, 9, model="13b"))], 1, 0, loading
    )
    assert found.loading == 5 and found.seconds == 3 + 18 + 2 + 11
    # What needs no model leaves the one that is loaded where it is.
    between = chain(step(5, model="7b"), step(2), step(5, model="7b"))
    assert simulate([between], 1, 0, loading).seconds == 2 + 5 + 2 + 5


def test_nothing_takes_no_time():
    assert simulate([], 3).seconds == 0 and simulate([], 3).efficiency == 0 and not simulate([], 3).critical
    assert simulate([chain()], 1).busy == (0.0,) and schedule.longest([]) == ("", 0.0)


chains = st.lists(
    st.lists(st.lists(st.integers(1, 9), max_size=5).map(lambda times: step(*times)), max_size=4), max_size=4
).map(lambda found: [chain(*steps, name=str(n)) for n, steps in enumerate(found)])


@given(chains, st.integers(1, 5))
def test_it_takes_no_less_than_its_longest_chain_and_its_work_and_no_more_than_one_worker(plan, workers):
    found = simulate(plan, workers)
    work = sum(task.seconds for one in plan for s in one.steps for task in s.tasks)
    floor = schedule.longest(plan)[1]
    assert max(floor, work / workers) <= found.seconds <= work
    assert sum(found.work) == work and found == simulate(plan, workers)
    assert workers > 1 or found.seconds == work
    ends = [0.0, *(link.end for link in found.critical)]
    assert all(a <= link.start for a, link in zip(ends, found.critical, strict=False))
    assert ends[-1] == found.seconds


def test_a_large_plan_is_simulated_in_seconds():
    plan = [
        chain(*(step(*(10 + (k * n) % 7 for k in range(1000)), model=str(n % 4)) for _ in range(10)), name=str(n))
        for n in range(10)
    ]
    begun = time.perf_counter()
    found = simulate(plan, 1024, 0.02, {str(n): 20.0 for n in range(4)})
    assert time.perf_counter() - begun < 20 and 0.5 < found.efficiency < 1
