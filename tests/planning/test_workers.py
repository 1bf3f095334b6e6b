from dataclasses import replace

import pytest

import tiny_models
from layer_redundancy import cli
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Recipe
from layer_redundancy.config.sources import Amount
from layer_redundancy.core import doors, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.evaluate import cutting
from layer_redundancy.evaluate.amounts import Pass, Sweep, Training, Writing
from layer_redundancy.planning import plan, rates, workers
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.planning.planner import Planner
from layer_redundancy.planning.schedule import Step, Task

TEXT = Amount(40, 40, 4000, 4000, 4000)
SWEEP = Sweep("perplexity", TEXT, tuple(variants.single_removal(30)))
WRITING = Writing("continuations", Amount(2, 2, 20, 0, 0, 5), (5, 4, 3))
TRAINING = Training(Recipe("lora", 1e-4), 4096, 64, 4096, 5)
OF = workers.Rates(lambda sweep: (1000.0, 1e9), lambda work: work.block_tokens / 1000, 500)


def share(ledger, number=1):
    return workers.share("m", "02", ledger, lambda model: OF, number, Step(alone=3))


def test_a_notebook_waits_for_each_request():
    ledger = Ledger(work=[("m", SWEEP), ("m", WRITING), ("m", Pass(2000)), ("m", TRAINING)], requests=[0, 1, 3])
    assert ledger.steps() == [ledger.work[:1], ledger.work[1:3], ledger.work[3:]]
    assert Ledger(work=ledger.work).steps() == [[one] for one in ledger.work] and Ledger().steps() == []
    found = share(ledger)
    start, swept, written, trained = found.chain.steps
    assert start == Step(alone=3) and found.tasks == len(swept.tasks) + 5
    # 464 block-runs on 4000 tokens take 1856 seconds; a batch of 500 tokens 232, in pieces of no more than 60.
    assert len(swept.tasks) >= 1856 / 60 and sum(t.seconds for t in swept.tasks) == pytest.approx(1856 + found.again)
    assert max(t.seconds for t in swept.tasks) <= 60.01 and found.again == pytest.approx(found.lost * 1856)
    assert 0 < found.lost <= 0.1
    texts = [Task((10 + 5) * 2 * blocks / 1000, "m") for blocks in (5, 4, 3)]
    assert [t.seconds for t in written.tasks] == pytest.approx([t.seconds for t in texts] + [2.0])
    assert [t.seconds for t in trained.tasks] == [TRAINING.block_tokens / 1000], "a training is not cut"


def test_what_one_request_computes_one_after_the_other_is_one_piece():
    found = share(Ledger(work=[("m", TRAINING), ("m", Pass(2000))], requests=[0]))
    assert [t.seconds for t in found.chain.steps[1].tasks] == [TRAINING.block_tokens / 1000 + 2]
    assert found.lost == found.again == 0


def test_trainings_need_not_wait_for_each_other():
    page = Ledger(work=[("m", SWEEP), ("m", TRAINING), ("m", Pass(9)), ("m", TRAINING)], requests=[0, 1, 2, 3])
    assert [part.work for part in workers.apart(page)] == [page.work[:1], page.work[1:3], page.work[3:]]
    assert workers.apart(Ledger()) == []


def test_measurements_of_one_request_keep_workers_busy_together():
    small = Sweep("perplexity", Amount(1, 1, 250, 250, 250), SWEEP.variants)
    alone = share(Ledger(work=[("m", small)], requests=[0]), 4)
    both = share(Ledger(work=[("m", small)] * 2, requests=[0]), 4)
    expected = len(cutting.pieces_of(small, (1000.0, 1e9), 500, workers=2)[0])
    assert both.tasks == 2 * expected < 2 * alone.tasks


def test_what_limits_the_time_is_said():
    one = share(Ledger(work=[("m", SWEEP)], requests=[0]))
    found = workers.together([one], 1, {"m": 7.0}, overhead=0.0)
    assert found.found.seconds == pytest.approx(3 + 7 + 1856 + one.again)
    assert sum(found.shares.values()) == pytest.approx(1) and found.limit == "the number of workers"
    assert found.shares["loading models"] == pytest.approx(7 / found.found.seconds)
    assert found.shares["sharing that is lost"] == pytest.approx(one.again / found.found.seconds)
    many = workers.together([one], 1000, {}, overhead=0.0)
    assert many.limit.startswith("the longest chain: notebook 02 of m takes ") and many.shares["waiting"] > 0.9
    assert workers.together([one], 2, {"m": 1e4}).limit.startswith("loading models, ")
    slow = workers.together([one], 2, {}, overhead=600)
    assert slow.limit.startswith("overhead of tasks, ")
    nothing = workers.together([], 3, {})
    assert set(nothing.shares.values()) == {0.0}
    told = workers.lines([one], found, 3600, 2000, "each with a GPU")
    assert told[0] == "with 1 worker, each with a GPU (a piece: what one worker does at a time):"
    assert f"{one.tasks} pieces, {one.lost:4.1%} of block-tokens run again" in told[1] and len(told) == 3
    assert (
        "times as fast as one process (60.0 min if trainings waited for each other); workers are busy 100%" in told[2]
    )
    same = workers.lines([one], found, found.found.seconds, 2000, "")[2]
    assert "times as fast as one process; workers are busy 100% of the time" in same
    assert "times as fast" not in workers.lines([], nothing, 0.0, 0.0, "")[-1]


def test_workers_of_a_computer_share_its_threads(monkeypatch):
    monkeypatch.setattr(plan.torch, "get_num_threads", lambda: 4)
    smoke = replace(profiles.get("smoke"), device="cpu")
    assert plan.Divided(smoke, 2).each == "each with 2 threads"
    crowded = plan.Divided(smoke, 8)
    assert crowded.each == "each with 1 thread, which 2 share"
    assert crowded.lines(0.0)[-1] == "this device has 4 threads: more workers than that gain nothing"
    speed = rates.Speed(rates.probe(tiny_models.CONFIGS["llama"](), "float32", "cpu"), blocks=5, batch_tokens=256)
    monkeypatch.undo()
    divided = plan.Divided(smoke, 1)
    page = Ledger(work=[("m", Sweep("perplexity", TEXT, ((0, 1), (0, 2)))), ("m", Pass(1000))], requests=[0, 1])
    divided.add("m", "02", page, {"m": speed})
    together = plan.seconds(page, {"m": speed}, plan.text_amount(8, 64))
    (shared,) = divided.pages
    assert shared.tasks == 3 and shared.lost == 0  # with what the notebook itself does
    ran = sum(task.seconds for step in shared.chain.steps for task in step.tasks)
    assert ran == pytest.approx(together, rel=0.5)
    assert "all with 1 worker: about" in divided.lines(together)[-1]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1e3", "70000", "²"])
def test_a_number_of_workers_that_is_none_is_one_line(text, monkeypatch):
    from typer.testing import CliRunner

    for door, name in ((doors.MAKE, "WORKERS="), (doors.COMMAND, "--workers ")):
        monkeypatch.setenv(doors.VARIABLE, door)
        done = CliRunner().invoke(cli.app, ["plan", "smoke", "--workers", text])
        assert isinstance(done.exception, StudyError) and not done.output
        assert str(done.exception) == f"{name}{text}: give the number of processes, from 1 to 256"
    for number in (0, 1.5):
        with pytest.raises(StudyError):
            plan.report(profiles.get("smoke"), workers=number)


def test_requests_of_an_experiment_are_its_steps():
    planner = Planner(profiles.get("paper"), count=lambda model, budget: Amount(50, 200, 9000, 5000, 200))
    (page,) = (study.ledger for _, study in planner.pages(planner.profile.model, ["02"]))
    assert [one for step in page.steps() for one in step] == page.work
    swept = [[work.measurement for _, work in step if isinstance(work, Sweep)] for step in page.steps()]
    assert ["perplexity", "task/mmlu"] in swept, "text and questions are one request"


@pytest.mark.slow
def test_a_plan_says_what_several_workers_take(capsys):
    plan.report(profiles.get("smoke"), "02", workers=2)
    said = capsys.readouterr().out
    assert "with 2 workers, each with " in said and "all with 2 workers: about " in said
