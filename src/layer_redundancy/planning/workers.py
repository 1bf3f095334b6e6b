"""What a plan's notebooks would take if several workers shared them.

A sweep is cut into pieces (`evaluate.cutting`), a text is written by one worker for each variant, and trainings,
quantizations and passes stay whole. A notebook waits for all of a request before it makes the next one; what it will
ask for whatever comes of that may be begun before, of which trainings are most (`apart`). Notebooks run beside each
other. What several of them ask for counts with the first, and the others are taken not to wait for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from layer_redundancy.core.wording import counted, duration
from layer_redundancy.evaluate import cutting
from layer_redundancy.evaluate.amounts import Sweep, Training, Work, Writing
from layer_redundancy.planning import schedule
from layer_redundancy.planning.dry import Ledger
from layer_redundancy.planning.schedule import Chain, Schedule, Step, Task

SPENT = ("work", "sharing that is lost", "loading models", "overhead of tasks", "waiting")
TASK_SECONDS = 0.02  # to send a piece to a worker and to take what it gave
ENOUGH = 0.8  # of the time, that one cause must explain to be named alone


@dataclass(frozen=True)
class Rates:
    """How long work takes on one worker.

    Attributes:
        sweep: block-tokens and head-tokens a second of a sweep.
        seconds: seconds of any other work.
        batch_tokens: tokens a forward holds.
    """

    sweep: Callable[[Sweep], tuple[float, float]]
    seconds: Callable[[Work], float]
    batch_tokens: int


@dataclass(frozen=True)
class Shared:
    """A notebook of a model, cut into pieces.

    Attributes:
        model: the model's name.
        notebook: the notebook's number.
        chain: its requests, and the pieces of each.
        again: seconds that pieces take longer than the uncut work.
        lost: block-tokens of its sweeps that run once more because variants were cut, as a share.
        swept: block-tokens of its uncut sweeps.
    """

    model: str
    notebook: str
    chain: Chain
    again: float
    lost: float
    swept: int

    @property
    def tasks(self) -> int:
        """Number of its pieces."""
        return sum(len(step.tasks) for step in self.chain.steps)


def share(
    model: str,
    notebook: str,
    page: Ledger,
    rates: Callable[[str], Rates],
    workers: int,
    start: Step,
    piece_seconds: float = 60.0,
) -> Shared:
    """Cuts the work of a notebook into pieces.

    Args:
        model: the notebook's own model.
        notebook: its number.
        page: the work that it asks for.
        rates: of each model in it, on one worker.
        workers: how many there are.
        start: what comes before its work: imports, and what it draws.
        piece_seconds: what a piece should take at most.
    """
    steps, again, lost, swept = [start], 0.0, 0.0, 0
    for request in page.steps():
        tasks, whole = [], []
        sweeps = sum(isinstance(work, Sweep) for _, work in request)
        for name, work in request:
            of = rates(name)
            if isinstance(work, Sweep):
                # Several measurements at once keep workers busy together.
                for_it, pace = -(-workers // sweeps), of.sweep(work)
                times, share_lost = cutting.pieces_of(work, pace, of.batch_tokens, piece_seconds, for_it)
                tasks += [Task(one, name) for one in times]
                again += sum(times) - work.block_tokens / pace[0] - work.head_tokens / pace[1]
                lost, swept = lost + share_lost * work.block_tokens, swept + work.block_tokens
            elif isinstance(work, Writing):
                tasks += [Task(of.seconds(replace(work, blocks=(blocks,))), name) for blocks in work.blocks]
            else:
                whole.append(Task(of.seconds(work), name))
        if whole and not tasks:  # one request computes it all, one thing after the other
            whole = [Task(sum(task.seconds for task in whole), whole[0].model)]
        steps.append(Step((*tasks, *whole)))
    chain = Chain(f"notebook {notebook} of {model}", tuple(steps))
    return Shared(model, notebook, chain, again, lost / swept if swept else 0.0, swept)


def ledger(requests: Sequence[Sequence[tuple[str, Work]]]) -> Ledger:
    """A ledger of some requests."""
    found = Ledger()
    for request in requests:
        found.requests.append(len(found.work))
        found.work += request
    return found


def apart(page: Ledger) -> list[Ledger]:
    """A notebook's requests, where trainings do not wait for each other: each with what is asked for after it."""
    parts: list[list[list[tuple[str, Work]]]] = [[]]
    for request in page.steps():
        if any(isinstance(work, Training) for _, work in request):
            parts.append([])
        parts[-1].append(request)
    return [ledger(part) for part in parts if part]


@dataclass(frozen=True)
class Together:
    """All notebooks on some workers.

    Attributes:
        found: the simulation.
        again: seconds, of all workers, that go into what runs once more because variants were cut.
        longest: the chain that takes longest with any number of workers, and its seconds.
    """

    found: Schedule
    again: float
    longest: tuple[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Where the workers' time goes, as shares: work, sharing that is lost, loading, overhead, waiting."""
        total = self.found.seconds * len(self.found.work)
        if not total:
            return dict.fromkeys(
                ("work", "sharing that is lost", "loading models", "overhead of tasks", "waiting"), 0.0
            )
        busy = sum(self.found.work)
        spent = {
            "work": busy - self.again,
            "sharing that is lost": self.again,
            "loading models": self.found.loading,
            "overhead of tasks": self.found.overhead,
        }
        return {what: one / total for what, one in spent.items()} | {"waiting": 1 - sum(spent.values()) / total}

    @property
    def cause(self) -> str:
        """What keeps it from being faster: "work" where that is most of the time, "chain", or one of `SPENT`."""
        shares = self.shares
        if shares.pop("work") >= ENOUGH:
            return "work"
        if self.longest[1] >= ENOUGH * self.found.seconds:
            return "chain"
        return max(shares, key=lambda what: shares[what])

    @property
    def limit(self) -> str:
        """The cause in words."""
        (name, least), cause = self.longest, self.cause
        if cause == "work":
            return "the number of workers"
        if cause == "chain":
            return f"the longest chain: {name} takes {duration(least)} on any number of workers"
        if cause == "waiting":
            return f"steps that wait for each other; the longest chain, {name}, takes {duration(least)}"
        return f"{cause}, {self.shares[cause]:.0%} of the workers' time"


def together(
    pages: Sequence[Shared], workers: int, loading: Mapping[str, float], overhead: float = TASK_SECONDS
) -> Together:
    """All notebooks at once on so many workers.

    Args:
        pages: the notebooks, cut for them.
        workers: how many there are.
        loading: seconds to load each model.
        overhead: seconds that a worker spends on each piece beside its own.
    """
    chains = [page.chain for page in pages]
    found = schedule.simulate(chains, workers, overhead, loading)
    return Together(found, sum(page.again for page in pages), schedule.longest(chains, overhead))


def lines(pages: Sequence[Shared], of: Together, waiting: float, alone: float, each: str) -> list[str]:
    """What is printed: each notebook's pieces, and the time of all.

    Args:
        pages: the notebooks.
        of: all of them together, trainings not waiting for each other.
        waiting: seconds that they take if each waits for the one before it.
        alone: seconds that they take without workers.
        each: what a worker has, in words.
    """
    workers, found = len(of.found.work), of.found
    said = [f"with {counted(workers, 'worker')}, {each} (a piece: what one worker does at a time):"]
    said += [
        f"  {page.notebook}  {page.model:<34} {counted(page.tasks, 'piece'):>14}, {page.lost:4.1%} of block-tokens run "
        "again"
        for page in pages
    ]
    times = f", {alone / found.seconds:.1f} times as fast as one process" if found.seconds else ""
    times += f" ({duration(waiting)} if trainings waited for each other)" if waiting > 1.05 * found.seconds else ""
    return [
        *said,
        f"all with {counted(workers, 'worker')}: about {duration(found.seconds)}{times}; workers are busy "
        f"{found.efficiency:.0%} of the time; limited by {of.limit}",
    ]
