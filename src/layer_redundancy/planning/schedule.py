"""How long notebooks take on many workers: simulated, piece by piece.

Notebooks run beside each other, each a chain of steps; the pieces of a step run in any order on any worker, and the
next step begins when all of them are done. A worker that is free takes the largest piece there is, where one of a model
that it has yet to load counts as so much smaller: so workers stay with a model while there is enough to do for it.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Task:
    """A piece of work that one worker does.

    Attributes:
        seconds: how long it takes.
        model: the model that it needs; "" for none, whatever the worker has loaded.
    """

    seconds: float
    model: str = ""


@dataclass(frozen=True)
class Step:
    """Pieces that may run at the same time.

    Attributes:
        tasks: the pieces.
        alone: seconds that pass before them without a worker, such as those in which a notebook starts.
    """

    tasks: tuple[Task, ...] = ()
    alone: float = 0.0


@dataclass(frozen=True)
class Chain:
    """Steps that run one after the other.

    Attributes:
        name: what a notebook is called.
        steps: its steps.
    """

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Link:
    """A piece of which the end of all waits.

    Attributes:
        chain: name of its chain.
        step: place of its step in the chain.
        task: the piece.
        start: seconds after the beginning at which a worker took it.
        end: seconds after the beginning at which it was done.
        waited_for_worker: whether it waited for a worker; else for the step before it, or for nothing.
    """

    chain: str
    step: int
    task: Task
    start: float
    end: float
    waited_for_worker: bool


@dataclass(frozen=True)
class Schedule:
    """How a simulation went.

    Attributes:
        seconds: from the beginning to the end of the last step.
        work: seconds that each worker spends on pieces themselves.
        loading: seconds that all workers load models.
        overhead: seconds that all workers spend on the overhead of tasks.
        critical: the pieces of which the end waits, first to last.
    """

    seconds: float
    work: tuple[float, ...]
    loading: float
    overhead: float
    critical: tuple[Link, ...]

    @property
    def busy(self) -> tuple[float, ...]:
        """Share of the time that each worker spends on pieces themselves."""
        return tuple(one / self.seconds if self.seconds else 0.0 for one in self.work)

    @property
    def efficiency(self) -> float:
        """Share of all workers' time that is spent on pieces themselves."""
        return sum(self.busy) / len(self.busy)


def longest(chains: Sequence[Chain], overhead: float = 0.0) -> tuple[str, float]:
    """The chain that takes longest on as many workers as there are pieces, and its seconds, models being loaded."""
    found = [(chain.name, sum(_least(step, overhead) for step in chain.steps)) for chain in chains]
    return max(found, key=lambda one: one[1], default=("", 0.0))


def _least(step: Step, overhead: float) -> float:
    return step.alone + max((overhead + task.seconds for task in step.tasks), default=0.0)


def simulate(
    chains: Sequence[Chain], workers: int, overhead: float = 0.0, loading: Mapping[str, float] | None = None
) -> Schedule:
    """What happens when so many workers share all chains; the same arguments give the same schedule.

    Args:
        chains: the notebooks.
        workers: how many there are.
        overhead: seconds that a worker spends on each piece beside its own: to fetch it, and to hand in what it gave.
        loading: model -> seconds to load it, spent whenever a worker goes over to it; 0 for any that is not named.
    """
    return _Simulation(chains, workers, overhead, loading or {}).run()


@dataclass
class _Ran:
    """A piece that a worker has taken, and the one before it that it waited for; None where it waited for nothing."""

    place: tuple[int, int]  # which chain, and which of its steps
    task: Task
    start: float
    end: float
    before: "_Ran | None"
    waited_for_worker: bool


Place = tuple[int, int]  # of a step: which chain, and which of its steps


class _Simulation:
    """The state of a simulation at one time; arguments as `simulate`.

    Attributes:
        now: seconds after the beginning.
        free: model -> workers that have it loaded and nothing to do; None for those that have none.
        ready: model -> its pieces that may run, largest first: (-seconds, number, place of the step).
        events: (time, number, step, worker): a worker ends a piece; without one, the pieces of a step may run.
    """

    def __init__(self, chains: Sequence[Chain], workers: int, overhead: float, loading: Mapping[str, float]):
        self.chains, self.overhead, self.loading, self.now = chains, overhead, loading, 0.0
        self.free: dict[str | None, list[int]] = {None: list(range(workers))}
        self.ready: dict[str, list[tuple[float, int, Place]]] = {}
        self.events: list[tuple[float, int, Place, int | None]] = []
        self._numbers = count()  # what is told apart by nothing else goes in the order in which it came
        self._work, self._loaded, self._fetched = [0.0] * workers, 0.0, 0.0
        self._model: list[str | None] = [None] * workers
        self._last_of: list[_Ran | None] = [None] * workers
        self._before: dict[Place, _Ran | None] = {}  # what ended the step before each
        self._since: dict[Place, float] = {}  # when the pieces of each step might run
        self._left: dict[Place, int] = {}  # pieces of each step that are not done

    def run(self) -> Schedule:
        """Runs it to its end."""
        for number in range(len(self.chains)):
            self._begin((number, 0), None)
        last: _Ran | None = None
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, _, place, worker = heapq.heappop(self.events)
                if worker is None:
                    self._offer(place)
                    continue
                last = self._last_of[worker]
                heapq.heappush(self.free.setdefault(self._model[worker], []), worker)
                self._left[place] -= 1
                if not self._left[place]:
                    self._begin((place[0], place[1] + 1), last)
            while self._assign():
                pass
        return Schedule(self.now, tuple(self._work), self._loaded, self._fetched, tuple(self._critical(last)))

    def _begin(self, place: Place, before: _Ran | None) -> None:
        """A step begins, if there is one."""
        chain, number = place
        if number < len(self.chains[chain].steps):
            self._before[place] = before
            step = self.chains[chain].steps[number]
            heapq.heappush(self.events, (self.now + step.alone, next(self._numbers), place, None))

    def _offer(self, place: Place) -> None:
        """The pieces of a step may run."""
        tasks = self.chains[place[0]].steps[place[1]].tasks
        self._left[place], self._since[place] = len(tasks), self.now
        for task in tasks:
            heapq.heappush(self.ready.setdefault(task.model, []), (-task.seconds, next(self._numbers), place))
        if not tasks:
            self._begin((place[0], place[1] + 1), self._before[place])

    def _assign(self) -> bool:
        """A free worker takes a piece; whether there are both."""
        best: tuple[float, int, str, str | None] | None = None
        for model, pieces in self.ready.items():
            if pieces:
                for loaded, idle in self.free.items():
                    if idle:
                        # Of workers with another model, one that has none gives nothing up.
                        cost = 0.0 if loaded == model or not model else self.loading.get(model, 0.0)
                        found = (pieces[0][0] + cost, (loaded != model) + (loaded not in (None, model)), model, loaded)
                        if best is None or found[:2] < best[:2]:
                            best = found
        if best is None:
            return False
        _, _, model, loaded = best
        seconds, _, place = heapq.heappop(self.ready[model])
        self._take(heapq.heappop(self.free[loaded]), Task(-seconds, model), place)
        return True

    def _take(self, worker: int, task: Task, place: Place) -> None:
        """A worker takes a piece now."""
        load = 0.0
        if task.model and self._model[worker] != task.model:
            load, self._model[worker] = self.loading.get(task.model, 0.0), task.model
        self._loaded, self._fetched = self._loaded + load, self._fetched + self.overhead
        self._work[worker] += task.seconds
        waited = self.now > self._since[place]
        before = self._last_of[worker] if waited else self._before[place]
        end = self.now + load + self.overhead + task.seconds
        self._last_of[worker] = _Ran(place, task, self.now, end, before, waited)
        heapq.heappush(self.events, (end, next(self._numbers), place, worker))

    def _critical(self, last: _Ran | None) -> Iterator[Link]:
        """The chain of what waited for what, first to last."""
        found = []
        while last is not None:
            found.append(last)
            last = last.before
        for one in reversed(found):
            name = self.chains[one.place[0]].name
            yield Link(name, one.place[1], one.task, one.start, one.end, one.waited_for_worker)
