"""What stops a run from outside: Ctrl-C, the end of a batch job, a terminal that is closed. Standard library only.

A program calls `end_at_once` before it imports what takes seconds, and `interrupt` where it has something to put away.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

STATUS = 130  # the exit status of a program that was interrupted
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_taken: list[int] = []  # signals that this program handles


def end_at_once() -> None:
    """From now on a signal ends the process with a word, also amid an import, which a KeyboardInterrupt might break."""
    # Not those that nohup, or a shell that starts a job in the background, has them ignore.
    _taken[:] = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    _handle(_end)


def interrupt() -> None:
    """From now on each signal is a KeyboardInterrupt, so that all of them leave no more behind than Ctrl-C does.

    Where `end_at_once` was not called, the process is somebody else's, and so are its signals.
    """
    _handle(signal.default_int_handler)


def hush() -> None:
    """Nothing more is said: of what an interrupt leaves half made, libraries and Python itself would complain."""
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None


def _end(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(STATUS)


def _handle(handler: Callable[..., Any]) -> None:
    for one in _taken:
        signal.signal(one, handler)
