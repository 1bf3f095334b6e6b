"""Where the main thread of a process spends its time, from looks at its stack. Standard library only."""

import atexit
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

VARIABLE = "LAYER_REDUNDANCY_SAMPLES"  # the folder that samples go to; a notebook's kernel is not watched without it
INTERVAL = 0.02  # seconds between two looks


def start(name: str) -> None:
    """Watches this thread from now to the end of the process, if `VARIABLE` names a folder.

    Then <name>.txt in it has a line for each stack that was seen: places from the outermost call to the innermost,
    each file:function, with semicolons between them, and the milliseconds spent there. Programs that draw flame graphs
    read that.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        watched, seen, end = threading.get_ident(), Counter[str](), threading.Event()
        thread = threading.Thread(target=_watch, args=(watched, seen, end), daemon=True)
        thread.start()
        atexit.register(_write, Path(folder) / f"{name}.txt", seen, thread, end)


def _watch(thread: int, seen: Counter[str], end: threading.Event) -> None:
    looked = time.monotonic()
    while not end.wait(INTERVAL):
        frame = sys._current_frames().get(thread)
        now = time.monotonic()
        # By the clock: where the interpreter is not let go of, looks are late.
        seen[_stack(frame)] += round(1000 * (now - looked))
        looked = now


def _stack(frame: FrameType | None) -> str:
    places = []
    while frame is not None:
        places.append(f"{frame.f_code.co_filename.replace(';', ',')}:{frame.f_code.co_name}")
        frame = frame.f_back
    return ";".join(reversed(places))


def _write(file: Path, seen: Counter[str], thread: threading.Thread, end: threading.Event) -> None:
    end.set()
    thread.join()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{stack} {spent}\n" for stack, spent in seen.most_common()), encoding="utf-8")
