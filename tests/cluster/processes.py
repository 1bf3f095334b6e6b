"""Schedulers, workers and drivers as processes of their own, which can be killed.

They are forks of one that has imported what they need, so that each is there within a fraction of a second.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler, Worker

PRELOAD = ["layer_redundancy.cluster.worker", "layer_redundancy.cluster.driver", "tiny_models", "cluster.processes"]


def context() -> Any:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOAD)
    return found


class Process:
    """A process that runs a function.

    Args:
        target: the function.
        arguments: what it is given.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self.process = context().Process(target=target, args=arguments, daemon=True)
        self.process.start()

    def kill(self) -> None:
        """As kill -9, unless it has ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()


def run_scheduler(path: Path, port: int) -> None:
    """A scheduler, whose address goes to a file."""
    # A worker that is killed takes the tasks that it has with it; nobody is to be blamed for that.
    import dask

    dask.config.set({"distributed.scheduler.allowed-failures": 3})

    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=port, dashboard=False) as scheduler:
            path.with_suffix(".tmp").write_text(scheduler.address)
            path.with_suffix(".tmp").rename(path)
            await scheduler.finished()

    asyncio.run(serve())


def run_worker(address: str, folder: Path, prepare: Callable[[], None] | None) -> None:
    """A worker; `prepare` makes it another one than the rest before it begins."""
    import torch

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()

    async def serve() -> None:
        options = {"memory_limit": 0, "dashboard": False, "heartbeat_interval": "200ms"}
        async with Worker(address, nthreads=1, local_directory=str(folder), **options) as worker:
            await worker.finished()

    asyncio.run(serve())


class Cluster:
    """A scheduler and workers on this machine.

    Args:
        folder: where they keep what they have.
        workers: number of workers to begin with.
    """

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder, self.workers = folder, list[Process]()
        self.port = 0
        self.start_scheduler()
        self.add(workers)

    def start_scheduler(self) -> None:
        path = self.folder / f"scheduler-{time.monotonic_ns()}"
        self.scheduler = Process(run_scheduler, path, self.port)
        wait_until(path.exists)
        self.address = path.read_text()
        self.port = int(self.address.rpartition(":")[2])

    def add(self, workers: int = 1, prepare: Callable[[], None] | None = None) -> list[Process]:
        """Starts workers."""
        new = [Process(run_worker, self.address, self.folder, prepare) for _ in range(workers)]
        self.workers += new
        return new

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.address, set_as_default=False, timeout=10) as client:
            client.wait_for_workers(len([one for one in self.workers if one.alive]), timeout=60)
            yield client

    def close(self) -> None:
        for one in [*self.workers, self.scheduler]:
            if one.alive:
                one.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true within {seconds} s"
        time.sleep(0.02)
