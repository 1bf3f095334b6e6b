"""The driver's side of a cluster: hands orders to workers, stores what they answer, and copes with those that are lost.

One thread does all of it, and is the only one that writes the store. The threads of experiments, of which one at a time
computes, ask it for tasks and wait.
"""

import heapq
import json
import logging
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from tqdm import tqdm

from layer_redundancy.cluster import files, worker
from layer_redundancy.cluster.tasks import Answer
from layer_redundancy.core import paths
from layer_redundancy.core.errors import StudyError
from layer_redundancy.core.store import Contents, Producer, Store
from layer_redundancy.core.waiting import Wait
from layer_redundancy.core.wording import counted

logger = logging.getLogger(__name__)

TICK = 0.2  # seconds after which the pool's thread goes on although nothing has happened
LOOK = 1.0  # seconds between two looks at what does not report itself
RENEW = 15.0  # seconds after which claims are renewed
AHEAD = 2  # orders that a worker has or is about to get
TRIES = 20  # times that an order is handed out anew after its worker was lost
PATIENCE = 600.0  # seconds without a worker after which a run gives up
SLOW = 3.0  # times the expected seconds after which an idle worker is given the same order
LEAST_SLOW = 30.0  # seconds before which nothing is slow
LONG = 2.0  # orders of so many pieces' length cannot be cut, and go first
PIECE = 60.0  # seconds that a piece of a sweep should take

# What distributed raises where a worker or the scheduler went away while a result was fetched.
LOST = (KilledWorker, FutureCancelledError, CancelledError, CommClosedError, TimeoutError)

_number = count()


class SchedulerLost(StudyError):
    """The scheduler does not answer any more; stated in one line."""


@dataclass(eq=False)
class Task:
    """Something to be done on a worker.

    Attributes:
        what: in a message.
        key: what it computes; tasks of one key are one.
        order: what is sent: a packed `Order`.
        seconds: how long it should take.
        block_tokens: for the progress bar.
        rank: those of a lower rank go first; a model's pieces are of one rank, so that workers load it once.
        producers: name of a variant -> what makes the outputs that are answered by that name.
        claims: what is claimed in the store while it runs.
        there: whether the store has what it computes, from another driver.
        makes: (model, variant) of the outputs that it makes, of each of its sequences.
        sequences: digests of these.
        done: set when it has been answered, and that is stored.
        value: what was returned.
        error: what was raised.
    """

    what: str
    key: str
    order: bytes
    seconds: float = 0.0
    block_tokens: int = 0
    rank: int = 0
    producers: Mapping[str, Producer] = field(default_factory=dict)
    claims: Sequence[str] = ()
    there: Callable[[Store], bool] = lambda store: False
    makes: Sequence[tuple[str, str]] = ()
    sequences: frozenset[bytes] = frozenset()
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None
    tries: int = 0
    started: float = 0.0
    at: dict[Future, str] = field(default_factory=dict)  # the workers that are at it

    def __lt__(self, other: "Task") -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple:
        return self.seconds < LONG * PIECE, self.rank, -self.seconds


@dataclass
class Done:
    """What a worker has done so far."""

    orders: int = 0
    block_tokens: int = 0
    seconds: float = 0.0


class Pool:
    """Hands out tasks.

    Args:
        client: of the scheduler.
        store: path of the results store.
        progress: draw a progress bar.

    Attributes:
        lock: held by the experiment that computes; let go of while it waits.
        workers: what each has done, by its address.
    """

    def __init__(self, client: Client, store: Path, progress: bool = True) -> None:
        self.client, self.store_path = client, store
        self.lock = threading.RLock()
        self.workers: dict[str, Done] = defaultdict(Done)
        self.kinds: dict[Any, Any] = {}  # what sweeps found out of models, for the next ones
        self._makes: dict[tuple[str, str], list[Task]] = defaultdict(list)
        self.bytes_sent = 0
        self._ranks: dict[str, int] = {}
        self._ranks_at: dict[str, int] = {}  # of the model that a worker was last given an order of
        self._events: queue.Queue[tuple] = queue.Queue()
        self._waiting: list[Task] = []  # a heap
        self._running: dict[str, Task] = {}
        self._finished: dict[str, Any] = {}  # what tasks returned, by key
        self._held: list[Task] = []  # claimed by another driver
        self._refused: dict[str, str] = {}
        self._remarks: set[str] = set()
        self._transfers: dict[tuple[str, str], Any] = {}
        self._helpers = ThreadPoolExecutor(16, thread_name_prefix="cluster")
        self._lost: Exception | None = None
        self._idle: Wait | None = None
        self._alive: dict[str, int] = {}
        self._bar = tqdm(
            total=0, unit="block-token", unit_scale=True, disable=not progress, file=sys.stderr, mininterval=1.0
        )
        self._thread = threading.Thread(target=self._loop, name="cluster", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and the bar; orders that are under way are left to themselves."""
        self._events.put(("close",))
        self._thread.join()
        self._helpers.shutdown(wait=False, cancel_futures=True)
        self._bar.close()

    def expect(self, block_tokens: int) -> None:
        """Tells the progress bar of so much work to come."""
        self._events.put(("expect", block_tokens))

    def rank(self, model: str) -> int:
        """The place of a model among those that were asked for so far."""
        return self._ranks.setdefault(model, len(self._ranks))

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do, and there is nothing for it."""
        return not self._waiting and len(self._running) < len(self._usable())

    def alive(self) -> list[str]:
        """Addresses of the workers that can be used."""
        return self._usable()

    # ------------------------------------------------------------------------------------------------ for experiments

    def run(self, tasks: Sequence[Task]) -> None:
        """Waits until tasks are done; the lock is let go of meanwhile.

        Raises:
            StudyError: what the first of them raised that failed. The others were done, and are stored.
        """
        for task in self.start(tasks):
            self.wait(task)
        for task in tasks:
            if task.error is not None:
                raise task.error

    def start(self, tasks: Sequence[Task]) -> list[Task]:
        """Has tasks done; of each key one, which is returned in the place of the others."""
        with self.lock:
            for task in tasks:
                for one in task.makes:
                    self._makes[one].append(task)
            self._events.put(("start", list(tasks)))
        return list(tasks)

    def at_work(self, model: str, variant: str) -> list[Task]:
        """Tasks that make outputs of a variant, and are not done; called with the lock."""
        known = self._makes[model, variant]
        known[:] = [task for task in known if not task.done.is_set()]
        return known

    def wait(self, task: Task) -> None:
        """Waits until a task is done, whatever comes of it."""
        with self.unlocked():
            while not task.done.wait(1.0):
                if not self._thread.is_alive():
                    raise StudyError("the driver's own thread has ended: run again, what is stored is kept")

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Inside, another experiment may compute."""
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    # ------------------------------------------------------------------------------------------------ the thread

    def _loop(self) -> None:
        with Store(self.store_path) as self._store:
            self._renewed, self._looked = time.monotonic(), -LOOK
            going = True
            while going:
                try:
                    going = self._turn()
                except Exception as error:  # such as a store that cannot be written
                    self._give_up(error)

    def _turn(self) -> bool:
        """Takes note of what has happened, looks at what does not report itself, hands out orders; False at the end."""
        with suppress(queue.Empty):
            event, *arguments = self._events.get(timeout=TICK)
            if event == "close":
                return False
            getattr(self, f"_on_{event}")(*arguments)
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            self._look()
        if now - self._renewed > RENEW:
            self._renewed = now
            for task in self._running.values():
                self._claim(task)
        self._hand_out()
        return True

    def _on_expect(self, block_tokens: int) -> None:
        self._bar.total = max(self._bar.total or 0, self._bar.n + block_tokens)
        self._bar.refresh()

    def _on_start(self, tasks: list[Task]) -> None:
        for task in tasks:
            if self._lost is not None:
                self._finish(task, error=self._lost)
            else:
                heapq.heappush(self._waiting, task)

    def _on_again(self, task: Task) -> None:
        """Hands a task out anew, unless it was given up meanwhile."""
        if not task.done.is_set():
            self._running.pop(task.key, None)
            heapq.heappush(self._waiting, task)

    def _on_answer(self, task: Task, future: Future, found: Answer | BaseException) -> None:
        if task.at.pop(future, None) is None or task.done.is_set():
            return  # it was given up meanwhile
        if isinstance(found, Answer):
            self._answered(task, found)
        elif isinstance(found, LOST):
            self._on_lost(task)
        else:
            self._finish(task, error=_told(found, task))

    def _answered(self, task: Task, answer: Answer) -> None:
        for remark in answer.remarks:
            if remark not in self._remarks:
                self._remarks.add(remark)
                logger.warning(remark)
        if answer.refused:
            if answer.worker not in self._refused:
                logger.warning(f"worker {answer.worker} is left out: {answer.refused}")
            self._refused[answer.worker] = answer.refused
            self._on_again(task)
        elif answer.lacks is not None:
            lacks = answer.lacks
            self._transfer(task, answer.worker, lacks.name, lambda: self._sent(answer.worker, lacks.folder, lacks.name))
        elif absent := [name for name in answer.made if not (paths.CACHE / name).is_dir()]:
            self._fetch(task, answer, absent)
        else:
            self._store_answer(task, answer)

    def _fetch(self, task: Task, answer: Answer, names: list[str]) -> None:
        """Fetches what was made on a worker that shares no disk with the driver, before its answer counts."""

        def work() -> None:
            try:
                for name in names:
                    self.bytes_sent += files.fetch(self.client, answer.worker, name)
                self._events.put(("kept", task, answer))
            except Exception:  # the worker is lost, and what it made with it
                self._events.put(("lost", task))

        self._helpers.submit(work)

    def _on_kept(self, task: Task, answer: Answer) -> None:
        if not task.done.is_set():
            self._store_answer(task, answer)

    def _sent(self, address: str, folder: str, name: str) -> None:
        start = time.monotonic()
        sent = files.send(self.client, address, folder, name)
        self.bytes_sent += sent
        if sent:
            seconds = time.monotonic() - start
            logger.info(f"{name} sent to worker {address}: {sent / 1e6:.0f} MB in {seconds:.1f} s")

    def _transfer(self, task: Task, address: str, name: str, work: Callable[[], None]) -> None:
        """Sends a worker what it lacks, once, and hands the task out anew."""
        known = address, name
        if known not in self._transfers:
            self._transfers[known] = self._helpers.submit(work)

        def after(future: Any) -> None:
            error = future.exception()
            if isinstance(error, OSError) and error.errno is not None:  # of a disk, there or here
                error = StudyError(f"{name} cannot be sent to worker {address}: {error.strerror}")
            if isinstance(error, StudyError):
                self._events.put(("failed", task, error))
            elif error is not None:  # the worker was lost meanwhile
                self._events.put(("lost", task))
            else:
                self._events.put(("again", task))
            self._events.put(("transferred", known, future))

        self._transfers[known].add_done_callback(after)

    def _on_transferred(self, known: tuple[str, str], transfer: Any) -> None:
        if self._transfers.get(known) is transfer:
            del self._transfers[known]

    def _on_failed(self, task: Task, error: StudyError) -> None:
        self._finish(task, error=error)

    def _store_answer(self, task: Task, answer: Answer) -> None:
        value, outputs, error = answer.value, dict[Producer, Mapping[bytes, bytes]](), answer.error
        if task.producers and value is not None:
            found, failed = value
            outputs, value = {task.producers[name]: of for name, of in found.items()}, None
            error = error or failed
        stored = answer.stored if not task.producers else Contents(work=answer.stored.work)
        self._store.take_over(stored, outputs, task.claims)
        done = self.workers[answer.worker]
        done.orders, done.seconds = done.orders + 1, done.seconds + answer.seconds
        done.block_tokens += task.block_tokens
        self._bar.update(task.block_tokens)
        if (self._bar.total or 0) < self._bar.n:
            self._bar.total = self._bar.n
        self._bar.set_postfix_str(self._rates(), refresh=False)
        if error is None:
            self._finished[task.key] = value
        task.claims = ()  # taken back with that
        self._finish(task, value=value, error=error)

    def _rates(self) -> str:
        """Block-tokens a second of each worker, or of the slowest and the fastest of many."""
        rates = [one.block_tokens / one.seconds for one in self.workers.values() if one.seconds and one.block_tokens]
        shown = [f"{rate / 1e3:.3g}k" for rate in sorted(rates)]
        return f"{' '.join(shown)}/s" if len(shown) <= 8 else f"{len(shown)} workers, {shown[0]} to {shown[-1]}/s"

    def _forget_lost(self, task: Task, known: Mapping[str, Any]) -> None:
        """Lets go of the workers at a task that are no more; where none is left it is handed out anew.

        Dask would keep an order for a worker of that very address.
        """
        for future, address in list(task.at.items()):
            if address not in known:
                del task.at[future]
                with suppress(Exception):
                    future.cancel(force=True)
                if not task.at:
                    self._on_lost(task)

    def _on_lost(self, task: Task) -> None:
        """Hands a task out anew whose worker was lost, a number of times."""
        if task.done.is_set() or self._scheduler_gone():
            return
        task.tries += 1
        if task.tries > TRIES:
            self._finish(
                task, error=StudyError(f"{task.what}: {task.tries} workers were lost at it: is there memory for it?")
            )
        else:
            logger.info(f"{task.what}: its worker was lost; it is handed out again")
            self._on_again(task)

    def _finish(self, task: Task, value: Any = None, error: BaseException | None = None) -> None:
        task.value, task.error = value, error
        self._running.pop(task.key, None)
        for future in task.at:
            with suppress(Exception):
                future.cancel(force=True)
        task.at.clear()
        for claim in task.claims:
            with suppress(StudyError):
                self._store.release(claim)
        task.done.set()

    def _give_up(self, error: Exception) -> None:
        """Nothing more can be done: whoever waits is told."""
        self._lost = error
        for task in [*self._waiting, *self._held, *self._running.values()]:
            self._finish(task, error=error)
        self._waiting.clear()
        self._held.clear()

    # ------------------------------------------------------------------------------------------------ handing out

    def _scheduler_gone(self) -> bool:
        if self._lost is None and self.client.status not in ("running", "closing"):
            address = getattr(self.client.scheduler, "address", "") if self.client.scheduler else ""
            self._give_up(
                SchedulerLost(
                    f"the scheduler {address} does not answer any more: what was finished is stored; start it again "
                    "and run the same command, which goes on from there"
                )
            )
        return self._lost is not None

    def _look(self) -> None:
        """Looks at the scheduler, at the workers, and at what other drivers have done."""
        if self._scheduler_gone():
            return
        try:
            # Not `scheduler_info`: another thread of the client may just have replaced what that returns, by none.
            known = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        except Exception:
            return
        with_gpu = {address: one for address, one in known.items() if one.get("resources", {}).get("GPU")}
        self._resources = {"GPU": 1} if with_gpu else None
        self._alive = {address: 1 for address in (with_gpu or known)}
        for task in list(self._running.values()):
            self._forget_lost(task, known)
        if not self._usable() and (self._waiting or self._running):
            self._idle = self._idle or Wait()
            if self._refused and set(self._alive) <= set(self._refused) and self._alive:
                address, why = next(iter(self._refused.items()))
                self._give_up(StudyError(f"no worker can be used: {address} has {why}: install the same on all"))
                return
            self._idle.say(lambda: f"no worker is there: waiting for one, up to {PATIENCE / 60:.0f} minutes")
            if self._idle.seconds > PATIENCE:
                self._give_up(
                    StudyError(f"no worker has come for {PATIENCE / 60:.0f} minutes: start some and run again")
                )
        else:
            self._idle = None
        if self._held and self._store.changed():
            for task in [one for one in self._held if one.there(self._store)]:
                self._held.remove(task)
                self._done_elsewhere(task)
        for task in list(self._held):
            if self._claim(task):
                self._held.remove(task)
                heapq.heappush(self._waiting, task)
        self._help_the_slow()

    _resources: dict[str, int] | None = None

    def _usable(self) -> list[str]:
        return [address for address in self._alive if address not in self._refused]

    def _claim(self, task: Task) -> bool:
        """Claims a task in the store, or renews the claim; False if another driver has it."""
        claimed: list[str] = []
        for claim in task.claims:
            if not self._store.claim(claim):
                for one in claimed:
                    self._store.release(one)
                return False
            claimed.append(claim)
        return True

    def _hand_out(self) -> None:
        """Gives each worker that has fewer than AHEAD orders the next ones.

        Dask itself would leave some workers without any, where others have several waiting.
        """
        if not self._waiting:
            return
        usable = self._usable()
        load = dict.fromkeys(usable, 0)
        for task in self._running.values():
            for address in task.at.values():
                if address in load:
                    load[address] += 1
        while self._waiting:
            # The last ones go to whoever is free first.
            most = AHEAD if len(self._waiting) > len(usable) else 1
            if min(load.values(), default=most) >= most:
                return
            task = heapq.heappop(self._waiting)
            if task.done.is_set():
                continue
            if task.key in self._finished:  # two experiments have asked for it
                self._finish(task, value=self._finished[task.key])
            elif (same := self._running.get(task.key)) is not None and same is not task:
                self._follow(task, same)
            elif not self._claim(task):
                self._held.append(task)
            elif task.there(self._store):  # another driver has finished it since it was asked for
                self._done_elsewhere(task)
            else:
                # With a worker that has the model, of those that have least to do.
                address = min(load, key=lambda one: (load[one], self._ranks_at.get(one) != task.rank))
                load[address] += 1
                self._ranks_at[address] = task.rank
                self._submit(task, address)

    def _done_elsewhere(self, task: Task) -> None:
        self._bar.update(task.block_tokens)
        self._finish(task)

    def _follow(self, task: Task, same: Task) -> None:
        """Lets a task end with another of its key."""

        def work() -> None:
            same.done.wait()
            self._events.put(("followed", task, same))

        self._helpers.submit(work)

    def _on_followed(self, task: Task, same: Task) -> None:
        if not task.done.is_set():
            task.value, task.error = same.value, same.error
            task.done.set()

    def _submit(self, task: Task, address: str) -> None:
        try:
            future = self.client.submit(
                worker.run,
                task.order,
                key=f"{task.key}-{next(_number)}",
                pure=False,
                priority=task.seconds,
                resources=self._resources,
                workers=[address],
            )
        except Exception as error:
            if not self._scheduler_gone():
                self._finish(task, error=_told(error, task))
            return
        task.at[future] = address
        task.started = task.started or time.monotonic()
        self._running[task.key] = task

        def fetch() -> None:
            try:
                found: Answer | BaseException = future.result()
            except BaseException as error:
                found = error
            self._events.put(("answer", task, future, found))

        future.add_done_callback(lambda _: self._helpers.submit(fetch) if self._thread.is_alive() else None)

    def _help_the_slow(self) -> None:
        """Gives an idle worker a piece of a sweep that another has been at for far longer than it should take.

        Of nothing else is it known so well beforehand how long it takes.
        """
        busy = {address for task in self._running.values() for address in task.at.values()}
        idle = [address for address in self._usable() if address not in busy]
        if self._waiting or not idle:
            return
        now = time.monotonic()
        slow = [
            task
            for task in self._running.values()
            if task.producers and len(task.at) == 1 and now - task.started > max(LEAST_SLOW, SLOW * task.seconds)
        ]
        for task, address in zip(slow, idle, strict=False):
            logger.info(f"{task.what} takes long on its worker; another one tries as well")
            self._submit(task, address)


def _told(error: BaseException, task: Task) -> BaseException:
    """An error of a worker, as a line where it says how the worker was set up."""
    if isinstance(error, ImportError | AttributeError) and "layer_redundancy" in str(error):
        return StudyError(f"a worker cannot run this: {error}: install the same version of layer-redundancy there")
    return error


def key_of(*parts: Any) -> str:
    """A key that no other work has."""
    import hashlib

    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]


def told(pool: Pool) -> str:
    """What the workers have done, in a line."""
    done = [one for one in pool.workers.values() if one.orders]
    orders = sum(one.orders for one in done)
    return f"{counted(orders, 'order')} on {counted(len(done), 'worker')}"
