"""The processes that decode images: which signals end them, what each is at, and how its batches reach the run."""

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCH = 2  # batches that each process makes ahead
SHARED = "/dev/shm"
ROOM = 2  # times the bytes of the batches under way must be free: an evaluation has processes of its own
WATCH = 5.0  # seconds between two looks at whether the run is still there
_HELD = {signal.SIGINT, signal.SIGTERM}
_HINTS = {
    signal.SIGKILL: "memory may have run out; a smaller --data.workers takes less",
    signal.SIGBUS: f"shared memory ({SHARED}) may be full",
}


class Places:
    """Which image each process is at, in memory that all of them share."""

    def __init__(self, processes: int):
        # of each process: its number, the image counted from 1 (0: none), and how often that changed; then a mark
        self._numbers = multiprocessing.RawArray("q", 3 * processes + 1)
        self._seen, self._since = [()] * processes, [0.0] * processes

    def begin(self) -> None:
        """In a process, once."""
        self._numbers[3 * get_worker_info().id] = os.getpid()

    def set(self, index: int | None) -> None:
        """Note the image that this process is at; None: at none. In the run's own process, nothing."""
        info = get_worker_info()
        if info is not None:
            self._numbers[3 * info.id + 1] = 0 if index is None else index + 1
            self._numbers[3 * info.id + 2] += 1

    def of(self, process: int) -> int | None:
        """The image that the process of this number is at."""
        for place in range(len(self._seen)):
            if self._numbers[3 * place] == process:
                return self._numbers[3 * place + 1] - 1 if self._numbers[3 * place + 1] else None
        return None

    @property
    def piped(self) -> bool:
        """Whether any batch found too little shared memory."""
        return bool(self._numbers[-1])

    def set_piped(self) -> None:
        self._numbers[-1] = 1

    def forget(self) -> None:
        """A batch has come: what :meth:`stuck` saw before counts no more."""
        self._seen = [()] * len(self._seen)

    def stuck(self, limit: float, clock: Callable[[], float] = time.monotonic) -> int | None:
        """The number of a process that has been at one image for ``limit`` seconds, as far as earlier calls saw; of any
        process if all of them have done nothing for so long. To be called again and again while a batch is waited for.
        """
        now, still = clock(), []
        for place, seen in enumerate(self._seen):
            current = tuple(self._numbers[3 * place : 3 * place + 3])
            if current != seen:
                self._seen[place], self._since[place] = current, now
            elif now - self._since[place] >= limit:
                still.append(current)
        at_work = [number for number, image, _ in still if image]
        return at_work[0] if at_work else still[0][0] if len(still) == len(self._seen) else None


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end; processes that begin inside never see them but by :func:`begin`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(places: Places, worker: int) -> None:
    """What a process does first. Only its parent can end it: what reaches all of a job's processes is for the run to
    answer, which still needs its batches to save."""
    places.begin()
    if not hasattr(signal, "sigtimedwait"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process when its parent says so or is gone, whatever the process is at."""
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, WATCH)
        if told is not None and told.si_pid == parent:
            break
    os._exit(1)


@contextlib.contextmanager
def deaths_unnoticed() -> Iterator[None]:
    """No error for the processes that are ended inside, which torch would raise."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def how_it_ended(code: int) -> str:
    """The exit code of a process in words."""
    if code > 0:
        return f"ended with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    hint = _HINTS.get(number)
    return f"was ended by {number.name}{f' ({hint})' if hint else ''}"


@dataclass(frozen=True)
class Piped:
    """A batch as bytes, where shared memory is too small."""

    content: bytes

    def unpacked(self) -> Any:
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        return self.unpacked().pin_memory()


@dataclass(frozen=True)
class Sent:
    """Makes batches, in a process such that they reach the run: by shared memory where that is large enough."""

    collate: Callable[[list], Any]
    places: Places

    def __call__(self, samples: list) -> Any:
        batch, info = self.collate(samples), get_worker_info()
        if info is None or fits(_bytes(batch), info.num_workers, free_shared()):
            return batch
        self.places.set_piped()
        return Piped(_packed(batch))


def fits(size: int, processes: int, free: int | None) -> bool:
    """Whether shared memory takes all batches of so many bytes that may be under way at once.

    Args:
        free: bytes; None: no limit is known.
    """
    return free is None or ROOM * (PREFETCH * processes + 2) * size <= free


def free_shared() -> int | None:
    """Free bytes of shared memory for this process and its own; None where it has no limit of its own."""
    if sys.platform != "linux":
        return None
    try:
        status = os.statvfs(SHARED)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class _Counter(pickle.Pickler):
    """Adds up the bytes of the tensors in an object."""

    bytes = 0

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        self.bytes += value.nbytes
        return int, ()


class _Packer(pickle.Pickler):
    """Tensors by their values, not by shared memory."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _bytes(batch: Any) -> int:
    counter = _Counter(io.BytesIO())
    counter.dump(batch)
    return counter.bytes


def _packed(batch: Any) -> bytes:
    file = io.BytesIO()
    _Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return file.getvalue()
