"""All that depends on the device at hand: which there is, its memory, its name, its speed, and waiting for it.

Another kind of device is added here, and its name in `device_names`. A device is either the processor, whose memory the
operating system gives, or a GPU, whose allocator counts what is held.
"""

import ctypes
import platform
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layer_redundancy.core.device_names import CHOICES as CHOICES
from layer_redundancy.core.device_names import check_choice as check_choice
from layer_redundancy.core.errors import DoesNotFit, StudyError

SLOW = 2.0  # seconds of one run: a device so slow gains nothing from larger batches, and its time is dear

# ---------------------------------------------------------------------------------------------------------------------
# Which


def use_threads(threads: int | None) -> None:
    """Lets torch compute on so many threads of the processor; None leaves it as it is."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Lets torch compute on so many threads of the processor for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def found(choice: str) -> str:
    """The kind of device that a choice comes to here: "cuda" where it allows a GPU and there is one, else "cpu"."""
    return "cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu"


def resolve(choice: str) -> str:
    """A choice, or the name of a torch device, as a device that is there; "cuda" stands for all of them.

    Raises:
        StudyError: a GPU is asked for where there is none.
    """
    if choice == "auto":
        return found(choice)
    if choice.startswith("cuda") and not torch.cuda.is_available():
        raise StudyError("device 'cuda' was asked for, but torch sees no CUDA device: use device='cpu'")
    return choice


def every(kind: str) -> list[torch.device]:
    """All devices of a kind from `found` or `resolve`; a single one for "cuda:1" or "cpu"."""
    if kind == "cuda":
        return [torch.device(kind, place) for place in range(torch.cuda.device_count())]
    return [torch.device(kind)]


def is_gpu(device: torch.device | str) -> bool:
    """Whether it is a GPU: it has memory of its own, and works on while the program goes on."""
    return torch.device(device).type == "cuda"


def name(device: torch.device | str) -> str:
    """What people call it: the GPU's name, or the processor's and how many threads of it are used."""
    if is_gpu(device):
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        processor = lines[0] if lines else processor
    return f"{processor}, {torch.get_num_threads()} threads"


# ---------------------------------------------------------------------------------------------------------------------
# Time


def synchronize(device: torch.device | str) -> None:
    """Waits until everything that was asked of the device is done."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def sent(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Arrays as tensors on a device; those for a GPU are under way while the program goes on."""
    tensors = tuple(map(torch.from_numpy, arrays))
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors) if is_gpu(device) else tensors


def fetched(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Asks for tensors of one device on the processor.

    Returns:
        A function that gives them there: it waits for them, but not for what the device is asked for meanwhile.
    """
    device = tensors[0].device
    if not is_gpu(device):
        return lambda: tensors
    copies = tuple(x.to("cpu", non_blocking=True) for x in tensors)
    done = torch.cuda.Event(blocking=True)
    done.record(torch.cuda.current_stream(device))

    def wait() -> tuple[Tensor, ...]:
        done.synchronize()
        return copies

    return wait


def seconds(call: Callable[[], object], device: torch.device, at_least: float = 0.2) -> float:
    """Shortest time of several runs, since the first pays for what later ones find ready; a slow call runs once."""
    times: list[float] = []
    while (len(times) < 2 and sum(times) < SLOW) or (len(times) < 5 and sum(times) < at_least):
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def steady_seconds(call: Callable[[], object], device: torch.device, during: float = 0.5) -> float:
    """Time of one of many runs, one after the other, as a long computation has it; on a processor as `seconds`.

    A GPU is never waited for in between, and becomes slower as it draws all the power that it may.
    """
    one = seconds(call, device)
    if not is_gpu(device):
        return one
    runs = max(2, round(during / one))
    start = time.perf_counter()
    for _ in range(runs):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / runs


def matmul_rate(
    dtype: torch.dtype,
    device: torch.device | str,
    sustained: float = 0.0,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> float:
    """Floating-point operations a second of a large square matrix product.

    Args:
        dtype: of both matrices.
        device: where it is computed.
        sustained: 0 for the best of several products; else their mean over so many seconds, in which a GPU becomes
            slower as it draws all the power that it may.
        product: what multiplies the two matrices.
    """
    size = 8192 if is_gpu(device) else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 8 or sum(times) < sustained:
        start = time.perf_counter()
        product(a, b)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / (sum(times) / len(times) if sustained else min(times))


# ---------------------------------------------------------------------------------------------------------------------
# Memory that there is


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halved(batch: int, error: BaseException, what: str) -> int:
    """Half the batch if `error` is a lack of memory that a smaller batch may avoid; otherwise raises.

    Args:
        batch: sequences in the batch that failed.
        error: what was raised.
        what: the smallest thing that has to fit, for the message.

    Raises:
        DoesNotFit: the batch cannot be halved any more.
        BaseException: `error` itself, if it is something else.
    """
    if not lacks_memory(error):
        raise error
    if batch <= 1:
        raise DoesNotFit(
            f"out of memory: {what} does not fit; use shorter blocks, another dtype or a smaller model"
        ) from error
    empty_cache()
    return batch // 2


def empty_cache() -> None:
    """Gives memory that GPUs' allocators keep for later back to them; does nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if is_gpu(device):
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def total_memory(device: torch.device | str) -> int:
    """Bytes that a device has, taken or not."""
    if is_gpu(device):
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next tensor. Does nothing elsewhere.

    By default every activation of more than a few megabytes is mapped from the kernel and given back: its pages are
    then faulted in and zeroed again at every operation, which took up to three quarters of a forward's time on CPU.
    """
    if sys.platform != "linux":
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    mallopt(mmap_threshold, 2**31 - 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)


# ---------------------------------------------------------------------------------------------------------------------
# Memory that is held


def allocated(device: torch.device | str) -> int:
    """Bytes that tensors hold on a GPU now; 0 on the processor, where nothing counts them."""
    return torch.cuda.memory_allocated(device) if is_gpu(device) else 0


def reset_peak(device: torch.device | str) -> None:
    """Lets a GPU's `peak_bytes` count from now; the processor's counts from the start of the process."""
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device | str) -> int:
    """The most bytes held so far: by tensors on a GPU since `reset_peak`, by the process on the processor."""
    if is_gpu(device):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent had when it made this process
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Where the tensors' storages lie -> their bytes; what several tensors share is there once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@contextmanager
def tensor_peak(model: nn.Module) -> Iterator[Callable[[], int]]:
    """The most bytes of tensors held at once while a model runs, its own weights included.

    On a GPU its allocator counts them; elsewhere they are counted operation by operation, which takes time.

    Yields:
        A function that gives the number when the block has ended.
    """
    device = next(model.parameters()).device
    if is_gpu(device):
        reset_peak(device)
        yield lambda: peak_bytes(device)
        return
    weights = storages((*model.parameters(), *model.buffers()))
    with _LiveStorages(sum(weights.values())) as counted:
        yield lambda: counted.peak


@contextmanager
def saved_for_backward() -> Iterator[dict[int, int]]:
    """Yields `storages` of the tensors that forwards inside keep for their backward, weights among them."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update(storages((tensor,)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they are held."""

    def __init__(self, held: int):
        super().__init__()
        self.now = self.peak = held
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inside = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in inside | self._known:  # views and what is changed in place are not new
                    self._known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size
