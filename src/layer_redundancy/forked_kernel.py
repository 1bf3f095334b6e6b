"""A notebook's kernel as a fork of the process that executes it, which has imported what the kernel would."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from layer_redundancy.core import interrupts, sampling
from layer_redundancy.run_notebook import ThisPython


@contextmanager
def forked() -> Iterator[type[AsyncKernelManager]]:
    """A fork of this process as it is now, which waits to become a kernel; ends it where none is asked for.

    Yields:
        The class that manages it, for one kernel.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_become_kernel, args=(receiver, sender))
    process.start()
    receiver.close()

    class Fork(ThisPython):
        """Manages the fork."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.provisioner = _Provisioner(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self, fork=process, sender=sender
            )

    try:
        yield Fork
    finally:
        sender.close()
        process.kill()  # one that was a kernel has been shut down
        process.join()


class _Process:
    """A fork as `subprocess.Popen` would have it, whose pipes there are none of."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid
        self.terminate, self.kill = process.terminate, process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.pid is not None and self._process.is_alive():
            os.kill(self.pid, signum)


class _Provisioner(LocalProvisioner):
    """Starts a kernel by telling the waiting fork its command line."""

    def __init__(self, fork: BaseProcess, sender: Connection, **settings: Any) -> None:
        super().__init__(**settings)
        self._fork, self._sender = fork, sender

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        self.cwd = kwargs.get("cwd") or Path.cwd()
        self._sender.send((cmd, kwargs["env"], str(self.cwd)))
        self.process = _Process(self._fork)  # type: ignore[assignment]  # stands for a Popen
        self.pid = self.pgid = self._fork.pid
        return self.connection_info


def _become_kernel(receiver: Connection, sender: Connection) -> None:
    sender.close()  # so that it is heard when the parent closes its own
    os.setsid()  # as any kernel: a terminal's signals are its parent's
    for one in interrupts.SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    try:
        command, environment, folder = receiver.recv()
    except EOFError:
        return
    receiver.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sampling.start(os.environ["LAYER_REDUNDANCY_NOTEBOOK"])
    start = command.index("-m")
    sys.argv = command[start + 1 :]
    try:
        IPKernelApp.launch_instance(command[start + 2 :], parent_handle=os.getppid())
    finally:
        atexit._run_exitfuncs()  # a fork ends without them
