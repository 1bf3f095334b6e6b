"""Who is at a piece of work, as text that other processes and machines read, and whether that process still lives."""

import os
import platform
from contextlib import suppress
from functools import cache

import psutil

SAME_START = 2.0  # seconds by which two looks at a process's start may differ, where the clock was set between them


def this() -> str:
    """This process: its machine, when it started, since numbers are given again, and its number."""
    return _named(os.getpid())


def cores() -> int:
    """Cores that this process may use; two threads of one core count as one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


@cache
def _named(pid: int) -> str:  # by the number: a fork is another process
    return f"{platform.node()} {psutil.Process(pid).create_time():.2f} {pid}"


def _read(owner: str) -> tuple[str, int, float | None] | None:
    """Machine, number and start of a process; the start is None in older text, all is None in any other."""
    parts = str(owner).split(" ")
    with suppress(ValueError):
        if len(parts) == 3:
            return parts[0], int(parts[2]), float(parts[1])
        if len(parts) == 2:
            return parts[0], int(parts[1]), None
    return None


def may_live(owner: str) -> bool:
    """Whether a process that `this` named may still be at work; only of this machine's can it be told that it is not.

    A process that has ended and waits to be collected by its parent is not at work.
    """
    found = _read(owner)
    if found is None or found[0] != platform.node():
        return True
    _, pid, start = found
    try:
        process = psutil.Process(pid)
        same = start is None or abs(process.create_time() - start) < SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def shown(owner: str) -> str:
    """A process in a message."""
    found = _read(owner)
    if found is None:
        return f"an unknown process ({str(owner)[:40]!r})"
    machine, pid, _ = found
    return f"process {pid} on {'this machine' if machine == platform.node() else machine}"
