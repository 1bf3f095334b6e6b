"""Memory: going on with a smaller batch when there is too little, and not giving back what is needed again at once."""

import ctypes
import sys

import psutil
import torch

from layer_redundancy.core.errors import DoesNotFit


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
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return batch // 2


def available(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


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
