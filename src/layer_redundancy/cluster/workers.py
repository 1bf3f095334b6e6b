"""Where the workers are: processes of this machine, or a cluster that somebody else has started."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security
from distributed.utils import get_mp_context

from layer_redundancy.config import cluster
from layer_redundancy.core import devices, doors, processes
from layer_redundancy.core.errors import StudyError

logger = logging.getLogger(__name__)

WAIT = 60.0  # seconds in which a scheduler must answer
# What a worker's process is a fork of has imported these: a worker that was killed is there again within a second.
PRELOAD = (
    "layer_redundancy.cluster.worker",
    "layer_redundancy.experiments.registry",
    "transformers.models.llama.modeling_llama",
)

# How often Dask looks at itself, for pages of the dashboard that say little here: every 10, 20 and 500 ms in each
# process otherwise, which is a percent or two of a small machine.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
}


@contextlib.contextmanager
def connected(address: str, trust_network: bool = False) -> Iterator[Client]:
    """A client of a scheduler that is there.

    Raises:
        StudyError: the address is none or not to be trusted; nobody answers there.
    """
    cluster.check_address(address, trust_network)
    _hush()
    security = Security() if address.startswith("tls") else None
    if security is not None:
        _check_certificates(address)
    try:
        client = Client(address, timeout=WAIT / 6, security=security, set_as_default=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise StudyError(
            f"no scheduler answers at {address} ({type(error).__name__}: {reason}): start one with `dask scheduler`, "
            "or give the address that it prints"
        ) from error
    with client:
        yield client


def _check_certificates(address: str) -> None:
    """Raises StudyError where Dask's settings name no certificates, or such as are not there."""
    for setting in ("ca-file", "client.cert", "client.key"):
        variable = f"DASK_DISTRIBUTED__COMM__TLS__{setting.upper().replace('.', '__').replace('-', '_')}"
        file = dask.config.get(f"distributed.comm.tls.{setting}")
        if not file or not Path(file).is_file():
            which = f"{variable} names {file}, which is not there" if file else f"{variable} is not set"
            raise StudyError(f"{doors.setting('scheduler', address)}: {which} (docs/clusters.md says how)")


@contextlib.contextmanager
def local(workers: int, memory_limit: int | None = None) -> Iterator[Client]:
    """A client of so many worker processes of this machine, each with its share of the cores or of the GPUs.

    They end with this process, however it ends; one that dies is started anew.

    Raises:
        StudyError: a number that makes no sense; more workers than GPUs.
    """
    cluster.check_number(workers)
    _hush()
    shares = _gpus(workers)
    threads = threads_of(workers)
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    dask.config.set({"distributed.scheduler.allowed-failures": 1000})
    dask.config.set(QUIET)
    get_mp_context().set_forkserver_preload(list(PRELOAD))
    with tempfile.TemporaryDirectory(prefix="layer-redundancy-workers-") as folder:
        specs = {}
        for number in range(workers):
            # Dask's nanny would set them to 1.
            env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
            if shares:
                env["CUDA_VISIBLE_DEVICES"] = shares[number]
            options = {
                "nthreads": 1,
                "memory_limit": memory_limit,
                "env": env,
                "host": "127.0.0.1",
                "name": number,
                "local_directory": folder,
                "silence_logs": logging.CRITICAL,
                "dashboard": False,
            }
            specs[number] = {"cls": Nanny, "options": options}
        scheduler = {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0", "dashboard": True},
        }
        with (
            SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL) as started,
            Client(started, set_as_default=False) as client,
        ):
            yield client


def threads_of(workers: int) -> int:
    """Threads of the processor of each of so many workers of this machine."""
    return max(1, processes.cores() // workers)


def _gpus(workers: int) -> list[str]:
    """The GPUs of each worker as CUDA_VISIBLE_DEVICES has them; [] where there are none.

    A worker with several lays a model that is larger than one over them.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asked otherwise, CUDA would start in this process
    if devices.found(os.environ.get("LAYER_REDUNDANCY_DEVICE", "auto")) == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    every = visible.split(",") if visible else [str(n) for n in range(len(devices.every("cuda")))]
    if workers > len(every):
        raise StudyError(
            f"{doors.setting('workers', str(workers))}: there are {len(every)} GPUs here, and a worker takes one at "
            f"least: give {len(every)} or fewer"
        )
    each = len(every) // workers
    return [",".join(every[n * each : (n + 1) * each]) for n in range(workers)]


def _hush() -> None:
    """Dask tells of each worker that comes and goes: the pool says what matters of it."""
    ours = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    for name in ("distributed", "tornado.application", "asyncio", *ours):  # some have a level of their own
        logging.getLogger(name).setLevel(logging.CRITICAL)


def wait_for_one(client: Client, seconds: float = WAIT) -> None:
    """Waits for the first worker.

    Raises:
        StudyError: none has come.
    """
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise StudyError(
            f"the scheduler {client.scheduler.address} has no workers: start some with `dask worker` (docs/clusters.md)"
        ) from error
