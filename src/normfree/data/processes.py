"""The processes that decode images: which signals end them, what each is at, and how its batches reach the run."""

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
PREFETCH = 2  # batches that each process makes ahead
SHARED = "/dev/shm"
ROOM = 2  # times what the batches under way need must be there: an evaluation has processes of its own
MOST_FILES = 2**16  # open at once, if that is allowed; torch opens one for each tensor that goes through shared memory
SPACE, FILES = 1, 2
LACKING = {SPACE: f"shared memory ({SHARED}) is too small", FILES: "too few files may be open at once (ulimit -n)"}
WATCH = 5.0  # seconds between two looks at whether the run is still there
_HELD = {signal.SIGINT, signal.SIGTERM}
_HINTS = {
    signal.SIGKILL: "memory may have run out; a smaller --data.workers takes less",
    signal.SIGBUS: f"shared memory ({SHARED}) may be full",
}


class Places:
    """Which image each process is at, in memory that all of them share."""

    def __init__(self, processes: int):
        # of each process: its number, the image counted from 1 (0: none), and how often that changed; then what lacks
        self._numbers = multiprocessing.RawArray("q", 3 * processes + 1)
        self._seen: list[tuple[int, ...]] = [()] * processes
        self._since = [0.0] * processes

    def begin(self) -> None:
        """In a process, once."""
        info = get_worker_info()
        assert info is not None
        self._numbers[3 * info.id] = os.getpid()

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
    def lacks(self) -> str | None:
        """What there was too little of to send batches by shared memory; None: nothing."""
        return LACKING.get(self._numbers[-1])

    def set_lacks(self, what: int) -> None:
        self._numbers[-1] = what

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


class Guard:
    """Ends a wait that torch's own limit does not end: for a batch that is made already, and whose process cannot hand
    it over because the decoder that it runs by now never gives Python's lock back.

    Args:
        iterator: torch's, of a loader with processes.
        kill: ends these at once.
        timeout: seconds that one of them may be at one image; None or 0: no limit.
        patience: seconds between two looks; a wait that takes twice as long hangs.
        asked: whether a request to stop came, which such a wait may not hold up.

    Attributes:
        cut: whether a wait was ended.
        stuck: the number of the process that it was ended for; None: a request to stop came.
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
        """Around each wait for a batch."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None

    def _look(self) -> None:
        while not self._over.wait(self.patience):
            since = self._waits_since
            if since is None or time.monotonic() - since < 2 * self.patience:
                continue  # then the wait itself asks ``places``
            stuck = self.places.stuck(self.timeout) if self.timeout else None
            if stuck is not None or self.asked():
                self.cut, self.stuck = True, stuck
                self._end_wait()
                return

    def _end_wait(self) -> None:
        """Whoever reads from the processes meets the end of what they wrote: of sockets, and of the pipe for results,
        of which this process holds an end, too."""
        self.kill()
        iterator = self._iterator()
        writer = getattr(getattr(iterator, "_worker_result_queue", None), "_writer", None)
        if writer is not None:
            writer.close()


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
    run = multiprocessing.parent_process()  # which may be gone by now
    assert run is not None
    threading.Thread(target=_obey, args=(run.pid,), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process when its parent says so or is gone, whatever the process is at."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, WATCH)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(1)


def deaths_unnoticed(iterator: Any) -> None:
    """No error of torch for each process of its iterator that dies, wherever the run is by then: whoever waits for a
    batch looks at the processes."""
    if remove_worker_pids and getattr(iterator, "_worker_pids_set", False):
        iterator._worker_pids_set = False
        remove_worker_pids(id(iterator))


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
    """A batch as bytes, where shared memory does not serve."""

    content: bytes

    def unpacked(self) -> Any:
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        return self.unpacked().pin_memory()


@dataclass(frozen=True)
class Sent:
    """Makes batches, in a process such that they reach the run: by shared memory where that serves."""

    collate: Callable[[list[Any]], Any]
    places: Places

    def __call__(self, samples: list[Any]) -> Any:
        batch, info = self.collate(samples), get_worker_info()
        if info is None:
            return batch
        lacks = lacking(_storages(batch), info.num_workers, free_shared(), most_files())
        if not lacks:
            return batch
        self.places.set_lacks(lacks)
        return Piped(_packed(batch))


def lacking(sizes: Sequence[int], processes: int, free: float, files: float) -> int:
    """What is too little for all batches that may be under way at once, SPACE or FILES; 0: nothing.

    Args:
        sizes: bytes of each tensor of a batch.
        free: bytes of shared memory.
        files: that may be open.
    """
    batches = ROOM * (PREFETCH * processes + 2)
    if batches * sum(sizes) > free:
        return SPACE
    return FILES if batches * len(sizes) > files else 0


def free_shared() -> float:
    """Free bytes of shared memory for this process and its own."""
    if sys.platform != "linux":
        return math.inf  # no limit is known
    try:
        status = os.statvfs(SHARED)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def most_files() -> float:
    """How many files this process may open, as many as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


class _Storages(pickle.Pickler):
    """Finds the tensors in an object."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: dict[int, int] = {}  # bytes of each storage by its place

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        storage = value.untyped_storage()
        self.found[storage.data_ptr()] = storage.nbytes()
        return int, ()


class _Packer(pickle.Pickler):
    """Tensors by their values, not by shared memory."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _storages(batch: Any) -> list[int]:
    """Bytes of each."""
    pickler = _Storages()
    pickler.dump(batch)
    return list(pickler.found.values())


def _packed(batch: Any) -> bytes:
    file = io.BytesIO()
    _Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return file.getvalue()
