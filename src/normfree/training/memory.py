"""The largest micro-batch that fits (``micro_batch: auto``), and memory that is kept between steps."""

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RunFailed
from ..internals import private
from .distributed import Replicas

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # mallopt's, as in malloc.h
_MAX_THRESHOLD = 32 << 20  # bytes: the largest threshold that glibc takes
# messages of RuntimeError if the CPU's memory is too small, which has no type of its own: torch (Linux, Windows), C++
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")
_MARGIN = 0.85  # fraction of the free memory to use: the rest is for fragmentation and convolutions' workspaces


def no_memory(error: Exception) -> bool:
    """Whether an error says that the memory of a GPU or of this machine was too small."""
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def largest_micro_batch(
    count: int, run: Callable[[int], None], device: torch.device, replicas: Replicas, *, reserved: int = 0
) -> int:
    """The largest equal pieces of ``count`` images that fit into free memory.

    Memory grows linearly with the images: it is measured for one and for two.

    Args:
        count: images of this process's share of a batch.
        run: forward and backward pass of a number of images.
        reserved: bytes to leave free.

    Returns:
        The same for all processes: the smallest of theirs.

    Raises:
        RunFailed: not even two images fit into a GPU.
    """
    fitting = 0
    if min(replicas.gather(count)) >= 2:  # all run the same: a sharded network runs in all processes or in none
        one, two = (_bytes(run, size, device) for size in (1, 2))
        slope = max(two - one, 1)
        fitting = int((_free(device) * _MARGIN - reserved - max(one - slope, 0)) // slope)
    fits = min(replicas.gather(max(1, fitting)))
    largest = max(1, *replicas.gather(count))
    pieces = -(-largest // min(fits, largest))
    return -(-largest // pieces)


def keep_freed_memory() -> bool:
    """Make glibc keep the memory that this process frees; returns whether it does.

    Otherwise tensors of some megabytes go back to the system when they are freed, and every step allocates their pages
    again: a twentieth of a training step on a CPU. In return, the process stays as large as its peak.

    >>> keep_freed_memory() in (True, False)
    True
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - others have a mallopt with other numbers
        return all(
            libc.mallopt(name, value)
            for name, value in ((_MMAP_THRESHOLD, _MAX_THRESHOLD), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 0))
        )
    except (OSError, AttributeError):
        return False


def _bytes(run: Callable[[int], None], size: int, device: torch.device) -> int:
    """Peak memory of a pass of ``size`` images, in bytes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            run(size)
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"{size} images do not fit into {device}; lower data.image_size, or name train.micro_batch"
            ) from error
        return torch.cuda.max_memory_allocated(device) - before
    with Allocated() as allocated:
        run(size)
    return allocated.most


class Allocated(private("torch.utils._python_dispatch.TorchDispatchMode")):
    """Counts the bytes of the tensors that operations create inside, while they live; for devices without a counter.

    Views of earlier tensors are not counted.

    Attributes:
        now, most: bytes at present, and their maximum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._storages:
            self._storages.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._discard, place, size)

    def _discard(self, place: int, size: int) -> None:
        self._storages.discard(place)
        self.now -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an operation's arguments, also in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _free(device: torch.device) -> int:
    """Bytes that this process can still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # a container's limit; there is none, or it is "max"
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
