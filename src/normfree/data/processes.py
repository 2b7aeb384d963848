"""Worker processes that decode images: signals, the image that each works on, and the transfer of batches."""

import contextlib
import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..internals import private

remove_worker_pids = private("torch.utils.data._utils.signal_handling._remove_worker_pids")
PREFETCH = 2  # batches that each process prepares in advance
SHARED = "/dev/shm"
HEADROOM = 2  # times what the batches in transfer need: an evaluation has more processes
MAX_FILES = 2**16  # open files, if the system allows it; torch opens one for each tensor in shared memory
SPACE, FILES = 1, 2
SHORTAGES = {SPACE: f"shared memory ({SHARED}) is too small", FILES: "too few files may be open at once (ulimit -n)"}
PARENT_POLL = 5.0  # seconds between two checks whether the parent process is still there
_HELD = {signal.SIGINT, signal.SIGTERM}
_HINTS = {
    signal.SIGKILL: "memory may have run out; a smaller --data.workers takes less",
    signal.SIGBUS: f"shared memory ({SHARED}) may be full",
}


class Places:
    """The image that each process works on, in memory that all of them share."""

    def __init__(self, processes: int):
        # of each process: its id, the image counted from 1 (0: none), and how often it changed; then the shortage
        self._numbers = multiprocessing.RawArray("q", 3 * processes + 1)
        self._seen: list[tuple[int, ...]] = [()] * processes
        self._since = [0.0] * processes

    def begin(self) -> None:
        """Called once in each process."""
        info = get_worker_info()
        assert info is not None
        self._numbers[3 * info.id] = os.getpid()

    def set(self, index: int | None) -> None:
        """Note the image that this process works on, or None. Does nothing in the main process."""
        info = get_worker_info()
        if info is not None:
            self._numbers[3 * info.id + 1] = 0 if index is None else index + 1
            self._numbers[3 * info.id + 2] += 1

    def of(self, process: int) -> int | None:
        """The image that the process with this id works on."""
        for place in range(len(self._seen)):
            if self._numbers[3 * place] == process:
                return self._numbers[3 * place + 1] - 1 if self._numbers[3 * place + 1] else None
        return None

    @property
    def shortage(self) -> str | None:
        """Why batches could not be sent through shared memory; None: they could."""
        return SHORTAGES.get(self._numbers[-1])

    def set_shortage(self, what: int) -> None:
        self._numbers[-1] = what

    def forget(self) -> None:
        """Forget what :meth:`stuck` saw; called when a batch has arrived."""
        self._seen = [()] * len(self._seen)

    def stuck(self, limit: float, clock: Callable[[], float] = time.monotonic) -> int | None:
        """The id of a process that has worked on one image for ``limit`` seconds, or of any process if none has done
        anything for so long. Call it repeatedly while waiting for a batch: times count from earlier calls.
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


class Guard:
    """Ends a wait that torch's timeout does not end: the batch is ready, but its process cannot send it, because the
    decoder that it runs now does not release the GIL.

    Args:
        iterator: torch's iterator of a loader with processes.
        kill: ends the processes at once.
        timeout: seconds that a process may work on one image; None or 0: no limit.
        patience: seconds between two checks; a wait that takes twice as long hangs.
        asked: whether a request to stop came, which must not be delayed by such a wait.

    Attributes:
        cut: whether a wait was ended.
        stuck: id of the process because of which it was ended; None: because of a request to stop.
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        places: Places,
        kill: Callable[[], None],
        timeout: float | None,
        patience: float,
        asked: Callable[[], bool],
    ):
        self.places, self.kill, self.timeout, self.patience, self.asked = places, kill, timeout, patience, asked
        self.cut = False
        self.stuck: int | None = None
        self._iterator = weakref.ref(iterator)
        self._waits_since: float | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Guard":
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Use it around each wait for a batch."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None

    def _look(self) -> None:
        while not self._over.wait(self.patience):
            since = self._waits_since
            if since is None or time.monotonic() - since < 2 * self.patience:
                continue  # the wait checks ``places`` itself
            stuck = self.places.stuck(self.timeout) if self.timeout else None
            if stuck is not None or self.asked():
                self.cut, self.stuck = True, stuck
                self._end_wait()
                return

    def _end_wait(self) -> None:
        """Close sockets and the result pipe, so that a read from the processes ends; this process has the pipe open
        for writing too."""
        self.kill()
        iterator = self._iterator()
        writer = getattr(getattr(iterator, "_worker_result_queue", None), "_writer", None)
        if writer is not None:
            writer.close()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM; processes that are started inside never receive them, except in :func:`begin`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(places: Places, worker: int) -> None:
    """Called first in each process. Only its parent can end it: a signal to all processes of a job is handled by the
    run, which still needs batches until it has saved."""
    places.begin()
    if not hasattr(signal, "sigtimedwait"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    run = multiprocessing.parent_process()  # it may have ended already
    assert run is not None
    threading.Thread(target=_end_with_parent, args=(run.pid,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this process when its parent sends SIGTERM or has ended, whatever the process does."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(1)


def deaths_unnoticed(iterator: Any) -> None:
    """Turn off torch's error for a process that dies, which may interrupt the run anywhere; the loader checks its
    processes while it waits for a batch."""
    if remove_worker_pids and getattr(iterator, "_worker_pids_set", False):
        iterator._worker_pids_set = False
        remove_worker_pids(id(iterator))


def how_it_ended(code: int) -> str:
    """The exit code of a process as text."""
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
    """A batch as bytes, for when shared memory cannot be used."""

    content: bytes

    def unpacked(self) -> Any:
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        return self.unpacked().pin_memory()


@dataclass(frozen=True)
class Sent:
    """Makes batches; in a process, so that they are sent through shared memory if there is enough, else as bytes."""

    collate: Callable[[list[Any]], Any]
    places: Places

    def __call__(self, samples: list[Any]) -> Any:
        batch, info = self.collate(samples), get_worker_info()
        if info is None:
            return batch
        missing = shortage(_storages(batch), info.num_workers, free_shared(), most_files())
        if not missing:
            return batch
        self.places.set_shortage(missing)
        return Piped(_packed(batch))


def shortage(sizes: Sequence[int], processes: int, free: float, files: float) -> int:
    """What is not enough for all batches that may be in transfer at once: SPACE, FILES, or 0 for neither.

    Args:
        sizes: bytes of each tensor of a batch.
        free: free bytes of shared memory.
        files: number of files that may be open.
    """
    batches = HEADROOM * (PREFETCH * processes + 2)
    if batches * sum(sizes) > free:
        return SPACE
    return FILES if batches * len(sizes) > files else 0


def free_shared() -> float:
    """Free bytes of shared memory for this process and its workers."""
    if sys.platform != "linux":
        return math.inf  # no limit is known
    try:
        status = os.statvfs(SHARED)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def most_files() -> float:
    """How many files this process may open; the limit is raised as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


class _Storages(pickle.Pickler):
    """Finds the tensors in an object."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.sizes: dict[int, int] = {}  # bytes of each storage by its place

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        storage = value.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return int, ()


class _Packer(pickle.Pickler):
    """Pickles tensors by value, not through shared memory."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _storages(batch: Any) -> list[int]:
    """Bytes of each storage of a batch."""
    pickler = _Storages()
    pickler.dump(batch)
    return list(pickler.sizes.values())


def _packed(batch: Any) -> bytes:
    file = io.BytesIO()
    _Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return file.getvalue()
