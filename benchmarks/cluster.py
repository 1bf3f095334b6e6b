"""`make bench`, third part: what it costs to have Dask's workers do an experiment's work.

A sweep by two workers of one thread, in turns with the same by one process of two; what passes between two tasks of a
worker, by tasks that sleep as long as the plan's pieces would take, in small; how fast a folder is sent to a worker.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import cloudpickle
import numpy as np
import pandas as pd
import typer
from distributed import Client, Scheduler, SpecCluster
from tqdm import tqdm

from benchmarks import cluster_workers
from layer_redundancy.cluster import files, worker, workers
from layer_redundancy.cluster.pool import Pool, Task
from layer_redundancy.cluster.study import Cutting, DistributedStudy
from layer_redundancy.cluster.tasks import Answer, Order
from layer_redundancy.config import profiles
from layer_redundancy.config.profiles import Profile
from layer_redundancy.core import devices, paths, variants
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Producer, Result, Store
from layer_redundancy.core.variants import Variant
from layer_redundancy.core.wording import counted
from layer_redundancy.evaluate import cutting
from layer_redundancy.evaluate.amounts import Sweep
from layer_redundancy.evaluate.trie import num_block_runs, trie
from layer_redundancy.planning import stand_ins
from layer_redundancy.planning.planner import Planner, count_here
from layer_redundancy.study import Study

PROFILE = "embedded"
NOTEBOOKS = ("02", "03", "06")  # whose sweeps are cut for the tasks' lengths
RATES = (40e3, 4e3)  # block-tokens and head-tokens a second of about one core, for the cut
BATCH_TOKENS = 2048
WORKERS = (1, 4, 16, 64)
SHORTEST, MEAN, LONGEST = 0.6, 3.0, 6.0  # seconds that tasks sleep
SECONDS = 50.0  # of each number of workers
BLOCKS = 32  # of text, for the sweep: four batches
DEPTHS = 8  # for the sweep
ROUNDS = 3
MEGABYTES = 100  # of the folder that is sent

# (step, what is measured) -> what it may be at most.
TARGETS = {
    **{("overhead", f"a task, {counted(number, 'worker')}"): 0.020 for number in WORKERS},
    ("two workers", "their time over one process's"): 1.10,
}

Measured = Iterator[tuple[str, float, str]]  # what, its value, and the unit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Load:
    """What passes between the driver and a worker for a piece of a sweep, beside what it takes to compute.

    Attributes:
        order: bytes that are sent.
        variants: how many it runs.
        sequences: on how many.
        size: bytes of the outputs of a variant on one of them.
    """

    order: int
    variants: int
    sequences: int
    size: int


class Watched(Pool):
    """A pool that keeps all that it sends and is told.

    Attributes:
        told: tasks, and their answers.
    """

    def __init__(self, client: Client, store: Path) -> None:
        self.told: list[tuple[Task, Answer]] = []
        super().__init__(client, store, progress=False)

    def _answered(self, task: Task, answer: Answer) -> None:
        self.told.append((task, answer))
        super()._answered(task, answer)

    @classmethod
    @contextmanager
    def of(cls, client: Client, number: int) -> Iterator["Watched"]:
        """One with an empty store, once it knows of so many workers."""
        with tempfile.TemporaryDirectory() as folder:
            pool = cls(client, Path(folder) / "results.sqlite")
            try:
                client.wait_for_workers(number, timeout=workers.WAIT)
                while len(pool.alive()) < number:
                    time.sleep(0.01)
                yield pool
            finally:
                pool.close()


# ------------------------------------------------------------------------------------------------ overhead


@contextmanager
def sleepers(number: int, folder: Path) -> Iterator[Client]:
    """A client of so many workers that have no model: in one process of their own, with a folder for what they write.

    The scheduler is in this process, as `workers.local` has it.
    """
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    workers._hush()
    with (
        SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}) as started,
        Client(started, set_as_default=False) as client,
        (folder / "workers.log").open("w") as log,
    ):
        command = [sys.executable, "-m", "benchmarks.cluster_workers"]
        process = subprocess.Popen(
            [*command, client.scheduler.address, str(number), str(folder)],
            env=os.environ | {"LAYER_REDUNDANCY_WORK": str(folder)}, cwd=paths.ROOT, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            try:
                client.wait_for_workers(number, timeout=workers.WAIT)
            except TimeoutError as error:
                last = (folder / "workers.log").read_text().strip().splitlines()[-1:] or ["no output"]
                raise StudyError(f"the benchmark's {number} workers did not start: {last[0][:300]}") from error
            yield client
        finally:
            process.kill()
            process.wait()


def sweeps_of(profile: Profile) -> list[Sweep]:
    """The sweeps that the plan of a profile has."""
    pages = Planner(profile, count=partial(count_here, profile)).pages(profile.model, NOTEBOOKS)
    return [sweep for _, page in pages for sweep in page.ledger.of(Sweep)]


def lengths(sweeps: Sequence[Sweep], number: int, seconds: float) -> list[float]:
    """Seconds that tasks sleep: spread as those of sweeps' pieces, in small.

    Args:
        sweeps: what is cut into pieces.
        number: of workers.
        seconds: how long these are to be at all of the tasks, about.
    """
    pieces = [piece for sweep in sweeps for piece in cutting.pieces_of(sweep, RATES, BATCH_TOKENS, workers=number)[0]]
    scaled = np.clip(np.array(pieces) / np.mean(pieces) * MEAN, SHORTEST, LONGEST)
    # Three for each at least: with fewer there would be nothing but the beginning and the end.
    count = max(3 * number, round(number * seconds / scaled.mean()))
    return np.quantile(scaled, (np.arange(count) + 0.5) / count).tolist()


def sleeping(seconds: Sequence[float], load: Load, title: str = "piece") -> list[Task]:
    """Tasks that sleep, each as large as a piece of a sweep, there and back."""
    names = [f"variant {n}" for n in range(load.variants)]
    digests = [n.to_bytes(32, "big") for n in range(load.sequences)]
    tasks = []
    for number, length in enumerate(seconds):
        act = partial(cluster_workers.sleep, length, names, digests, load.size, os.urandom(load.order))
        producers = {name: Producer(f"model {number}", name) for name in names}
        order, key = Order(act).packed(), f"{title} {number}"
        tasks.append(Task(key, key, order, length, producers=producers, claims=[key]))
    return tasks


def idle(spans: Sequence[tuple[float, float]], starts: Sequence[float]) -> tuple[float, float]:
    """Seconds a task in which a worker does not sleep: while no fewer tasks are left than workers, and until all end.

    Args:
        spans: when each task began and ended.
        starts: when each worker began its first one.
    """
    number = len(starts)
    ends = sorted(end for _, end in spans)

    def until(last: float, count: int) -> float:
        slept = sum(max(0.0, min(end, last) - began) for began, end in spans)
        return (sum(last - start for start in starts) - slept) / count

    # From this one on there is nothing left to begin for the worker that has ended.
    full = len(spans) - number
    return until(ends[full - 1], full), until(ends[-1], len(spans))


def spans_of(told: Sequence[tuple[Task, Answer]]) -> list[list[tuple[float, float]]]:
    """When the tasks of each worker began and ended, in their order."""
    found = defaultdict(list)
    for _, answer in told:
        outputs = next(iter(answer.value[0].values()))
        found[answer.worker].append(cluster_workers.TIMES.unpack_from(next(iter(outputs.values()))))
    return [sorted(spans) for spans in found.values()]


def overhead(profile: Profile, load: Load, numbers: Sequence[int], seconds: float) -> Measured:
    """What passes between two tasks of a worker, for several numbers of workers."""
    sweeps = sweeps_of(profile)
    for number in numbers:
        with (
            tempfile.TemporaryDirectory() as folder,
            sleepers(number, Path(folder)) as client,
            Watched.of(client, number) as pool,
        ):
            with pool.lock:  # the first task of a worker imports what the others find
                pool.run(sleeping([0.0] * 2 * number, replace(load, order=0, variants=1, sequences=1), "first"))
            pool.told.clear()
            tasks = sleeping(lengths(sweeps, number, seconds), load)
            start, processor = time.time(), time.process_time()
            with pool.lock:
                pool.run(tasks)
            processor = time.process_time() - processor
            of_workers = spans_of(pool.told)
        spans = [span for of_worker in of_workers for span in of_worker]
        steady, whole = idle(spans, [of_worker[0][0] for of_worker in of_workers])
        what = counted(number, "worker")
        yield f"a task, {what}", steady, "s"
        yield f"a task, {what}, with the last that some wait for", whole, "s"
        gaps = [later[0] - earlier[1] for of_worker in of_workers for earlier, later in pairwise(of_worker)]
        yield f"between two tasks of a worker, {what}, median", statistics.median(gaps), "s"
        yield f"between two tasks of a worker, {what}, 95%", float(np.quantile(gaps, 0.95)), "s"
        yield f"before the first of a worker, {what}", statistics.fmean(one[0][0] - start for one in of_workers), "s"
        yield f"of the driver's processor a task, {what}", processor / len(tasks), "s"
        yield f"tasks, {what}", len(tasks), ""
        yield f"a task sleeps, {what}", statistics.fmean(end - began for began, end in spans), "s"
    yield "order of a task", load.order / 1e3, "kB"
    yield "outputs of a task", load.variants * load.sequences * load.size / 1e3, "kB"


# ------------------------------------------------------------------------------------------------ two workers


def chosen(num_blocks: int) -> list[Variant]:
    """The whole model, and removal of more and more blocks in an order that has been published."""
    order = [b for b in stand_ins.order("meta-llama/Llama-2-7b-hf", max(num_blocks, 32)) if b < num_blocks]
    ladder = variants.cumulative_removal(num_blocks, order)
    return list(ladder)[: DEPTHS + 1]


def _alone(study: Study, plan: Sequence[Variant]) -> tuple[float, dict[Variant, Result]]:
    """Seconds of a sweep by this process, from an empty store, and its results."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "results.sqlite") as store:
        again = replace(study, store=store)
        vars(again)["stack"] = study.stack  # loaded once
        begun = time.perf_counter()
        found = again.sweep(plan, [study.perplexity], progress=False)
        return time.perf_counter() - begun, found[study.perplexity.name]


def _shared(
    study: Study, plan: Sequence[Variant], client: Client, number: int, known: Mapping[Any, Any], cut: Cutting
) -> tuple[float, dict[Variant, Result], Watched]:
    """Seconds of a sweep by so many workers, from an empty store, its results, and the pool.

    Args:
        study: what is swept.
        plan: the variants.
        client: of the scheduler.
        number: of workers.
        known: what an earlier pool found out of the model.
        cut: how it is cut.
    """
    with Watched.of(client, number) as pool, Store(pool.store_path) as store:
        pool.kinds.update(known)
        on_cluster = DistributedStudy.on(replace(study, store=store), pool, cutting=cut, threads=1)
        begun = time.perf_counter()
        with pool.lock:
            found = on_cluster.sweep(plan, [study.perplexity], progress=False)
        return time.perf_counter() - begun, found[study.perplexity.name], pool


def _warm(study: Study, client: Client, number: int) -> None:
    """Has each of so many workers load the model."""
    with Watched.of(client, number) as pool, Store(pool.store_path) as store, pool.lock:
        on_cluster = DistributedStudy.on(replace(study, store=store), pool, threads=1)
        look = partial(worker.kind, on_cluster)
        pool.run([on_cluster._task("a look", ["look", place], look) for place in range(number)])
        assert len({answer.worker for _, answer in pool.told}) == number


def two_workers(profile: Profile, blocks: int, rounds: int) -> Iterator[tuple[str, float, str] | Load]:
    """The same sweep by two workers of one thread and by one process of two, in turns; and what a piece of it is."""
    profile = replace(profile, text=replace(profile.text, evaluation_blocks=blocks), threads=None)
    number = 2
    with tempfile.TemporaryDirectory() as folder, workers.local(number) as client, devices.threads(number):
        study = Study.of(profile, Path(folder) / "results.sqlite")
        plan = chosen(study.num_blocks)
        _alone(study, plan[:2])
        begun = time.perf_counter()
        *_, pool = _shared(study, plan[:2], client, number, {}, Cutting())
        yield "start: the model is loaded, timed and swept a little", time.perf_counter() - begun, "s"
        known, name = pool.kinds, study.perplexity.name
        # Those that were timed, so that the cut is the same in each turn, and is one, however fast the model is.
        cut = Cutting(rates=next(rates for what, rates in known.items() if name in what), workers=number)
        _warm(study, client, number)
        alone, shared, ratios, apart = [], [], [], 0.0
        for turn in range(rounds):
            sides: dict[str, tuple[float, dict[Variant, Result]]] = {}
            for side in ("alone", "shared")[:: 1 if turn % 2 else -1]:
                if side == "alone":
                    sides[side] = _alone(study, plan)
                else:
                    seconds, results, pool = _shared(study, plan, client, number, known, cut)
                    sides[side] = seconds, results
            alone.append(sides["alone"][0])
            shared.append(sides["shared"][0])
            ratios.append(shared[-1] / alone[-1])
            apart = max(apart, _apart(sides["alone"][1], sides["shared"][1]))
    yield "their time over one process's", statistics.median(ratios), ""
    yield "their time over one process's, least", min(ratios), ""
    yield "their time over one process's, most", max(ratios), ""
    yield "two workers of one thread", statistics.median(shared), "s"
    yield "one process of two threads", statistics.median(alone), "s"
    yield "results apart at most", apart, "nats a token"
    pieces = [(task, answer) for task, answer in pool.told if task.producers]
    if not pieces:
        raise StudyError("the sweep was not cut into pieces")
    spent = sum(answer.seconds for _, answer in pieces)
    yield "pieces", len(pieces), ""
    yield "of both workers' time in orders", spent / number / shared[-1], ""
    yield "of it run twice, since variants were cut", _twice(pieces, study, plan), ""
    yield "order of a piece, median", statistics.median(len(task.order) for task, _ in pieces) / 1e3, "kB"
    yield "order of a piece, most", max(len(task.order) for task, _ in pieces) / 1e3, "kB"
    sizes = [len(cloudpickle.dumps(answer)) for _, answer in pieces]
    yield "answer of a piece, median", statistics.median(sizes) / 1e3, "kB"
    yield "answer of a piece, most", max(sizes) / 1e3, "kB"
    yield _load(pieces)


def _apart(one: Mapping[Variant, Result], other: Mapping[Variant, Result]) -> float:
    """The largest difference between the losses that two sweeps found, nats a token."""
    return max(abs(one[variant].summary["nll"] - other[variant].summary["nll"]) for variant in one)


def _twice(pieces: Sequence[tuple[Task, Answer]], study: Study, plan: Sequence[Variant]) -> float:
    """Block-tokens that ran once more because variants were cut, as a share of those of the uncut sweep."""
    tokens = sum(len(sequence.input_ids) for sequence in study.perplexity.sequences)
    uncut = num_block_runs(trie(variants.plan(study.num_blocks, plan))) * tokens
    return sum(task.block_tokens for task, _ in pieces) / uncut - 1


def _load(pieces: Sequence[tuple[Task, Answer]]) -> Load:
    """What the largest piece sends and answers."""
    task, answer = max(pieces, key=lambda piece: len(piece[0].order))
    of_variants = answer.value[0]
    outputs = next(iter(of_variants.values()))
    return Load(len(task.order), len(of_variants), len(outputs), max(map(len, outputs.values())))


# ------------------------------------------------------------------------------------------------ a folder


def sending(megabytes: float, rounds: int) -> Measured:
    """How fast a folder of random bytes is sent to a worker's cache, sums and all."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for number in range(4):
            (source / f"weights-{number}").write_bytes(os.urandom(round(megabytes * 1e6 / 4)))
        rates = []
        with sleepers(1, Path(folder)) as client:
            (address,) = client.scheduler_info()["workers"]
            for number in range(rounds):
                begun = time.perf_counter()
                sent = files.send(client, address, str(source), f"received-{number}")
                rates.append(sent / (time.perf_counter() - begun))
    yield "to a worker of this machine", statistics.median(rates), "bytes/s"
    yield "to a worker of this machine, least", min(rates), "bytes/s"
    yield "sent each time", sent / 1e6, "MB"


# ------------------------------------------------------------------------------------------------ the table


def versions() -> str:
    """What decides these numbers, beside the machine and this library."""
    return ", ".join([f"python {platform.python_version()}", *(f"{n} {version(n)}" for n in ("torch", "distributed"))])


def table(found: Sequence[tuple[str, str, float, str]]) -> pd.DataFrame:
    """One row a measurement: step, what, value, unit, target, met, machine, versions."""
    rows = []
    for step, what, value, unit in found:
        target = TARGETS.get((step, what))
        met = "" if target is None else "yes" if value <= target else "no"
        rows.append((step, what, value, unit, "" if target is None else f"<= {target:g}", met))
    frame = pd.DataFrame(rows, columns=["step", "what", "value", "unit", "target", "met"])
    return frame.assign(machine=devices.name("cpu"), versions=versions())


def measure(
    profile: Profile, numbers: Sequence[int], seconds: float, blocks: int, rounds: int, megabytes: float
) -> pd.DataFrame:
    """Measures everything.

    Args:
        profile: whose sweeps are cut and run.
        numbers: numbers of workers of which the overhead is measured.
        seconds: how long each of these takes, about.
        blocks: of text, for the sweep by two workers.
        rounds: turns of each side, and times that the folder is sent.
        megabytes: of the folder.

    Returns:
        As `table`.
    """
    found: list[tuple[str, str, float, str]] = []
    load = Load(0, 1, 1, cluster_workers.TIMES.size)
    with tqdm(total=3, unit="step") as bar:
        bar.set_description("two workers")
        for one in two_workers(profile, blocks, rounds):
            if isinstance(one, Load):
                load = one  # tasks that sleep are then as large as these pieces
            else:
                found.append(("two workers", *one))
        bar.update()
        for step, measured in {
            "overhead": overhead(profile, load, numbers, seconds),
            "sending": sending(megabytes, rounds),
        }.items():
            bar.set_description(step)
            found += [(step, *one) for one in measured]
            bar.update()
    return table(found)


@app.command()
def main(rounds: Annotated[int, typer.Option(help="turns of each side", min=1)] = ROUNDS) -> None:
    """Times what a cluster costs beside the work itself, on this machine; writes figures/bench/cluster.csv."""
    try:
        rows = measure(profiles.get(PROFILE), WORKERS, SECONDS, BLOCKS, rounds, MEGABYTES)
    except StudyError as error:
        raise SystemExit(str(error)) from None
    folder = paths.FIGURES / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "cluster.csv", index=False, float_format="%.6g")
    print(rows.drop(columns=["machine", "versions"]).to_string(index=False, float_format=lambda x: f"{x:.4g}"))


if __name__ == "__main__":
    app()
