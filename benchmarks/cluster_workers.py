"""Many of Dask's workers in one process, for what the cluster itself costs: `python -m benchmarks.cluster_workers`.

They run orders as any worker does, but for one thing: they share a process, and must not wait for each other.
"""

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import Sequence

import dask
from distributed import Worker

from layer_redundancy.cluster import worker

TIMES = struct.Struct("<dd")  # when a task began and ended, seconds since the epoch

Found = tuple[dict[str, dict[bytes, bytes]], None]  # as `worker.run_piece` returns it


def sleep(seconds: float, names: Sequence[str], digests: Sequence[bytes], size: int, ballast: bytes) -> Found:
    """Does what a piece of a sweep does, to all but the processor.

    Args:
        seconds: how long it takes.
        names: of the variants that it runs.
        digests: of the sequences that they run on.
        size: bytes of the outputs of one sequence; its times are the first of them.
        ballast: what makes the order as large as that of a piece.
    """
    began = time.time()
    time.sleep(seconds)
    outputs = TIMES.pack(began, time.time()).ljust(size, b"\0")
    return {name: dict.fromkeys(digests, outputs) for name in names}, None


async def _serve(scheduler: str, number: int, folder: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        options = {"nthreads": 1, "host": "127.0.0.1", "local_directory": folder, "dashboard": False}
        started = [Worker(scheduler, name=n, memory_limit=0, **options) for n in range(number)]
        await asyncio.gather(*map(stack.enter_async_context, started))
        await asyncio.gather(*(one.finished() for one in started))  # they end with the scheduler


def main(scheduler: str, number: int, folder: str) -> None:
    """Serves so many workers until the scheduler ends; what they write goes to a folder."""
    # What Dask looks at many times a second is next to nothing for one worker, and much for 64 of one process.
    dask.config.set({"distributed.worker.profile.enabled": False})
    dask.config.set({"distributed.admin.system-monitor.interval": "10s"})
    worker._one_at_a_time = contextlib.nullcontext()  # there is no model that they would share
    asyncio.run(_serve(scheduler, number, folder))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
