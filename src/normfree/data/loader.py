"""Batches of transformed images, in an order that depends on the seed alone."""

import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import RunFailed
from .batch import Batch
from .mixing import Mixing
from .poisson import Poisson, PoissonBatches
from .processes import (
    PREFETCH,
    Guard,
    Piped,
    Places,
    Sent,
    begin,
    deaths_unnoticed,
    how_it_ended,
    most_files,
    signals_held,
)
from .samples import Collate, LabelledSamples, PairSamples, PairTransform, Sample, VectorSamples
from .sampling import SeededBatches, Share
from .splits import ObjectSplit, PairSplit, Split, VectorSplit
from .transforms import Transform

TIMEOUT = 600.0  # seconds that a process may work on one image
POLL = 1.0  # seconds between two checks of the processes while waiting for a batch
PATIENCE = 5.0  # seconds between two checks of a wait that should have ended after POLL
GRACE = 5.0  # seconds until a process that does not end is killed


class Loader:
    """Batches of one split. Call :meth:`set_epoch` and iterate, once for each epoch; :meth:`close` it at the end.

    >>> source = normfree.data.digits()
    >>> view = normfree.data.EvalTransform(8, 0, mean=(0.5,), std=(0.5,))
    >>> loader = Loader(source.test, view, batch_size=100)
    >>> [len(batch) for batch in loader]
    [100, 100, 100, 60]

    Args:
        shape: (C, H, W) of the transformed images, for batches in which no image could be read.
        shuffle: take the images in a new random order each epoch.
        balanced: shuffle such that all classes come equally often, see :func:`.sampling.balanced_order`.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        across: fill this batch with images of the next epoch instead, so that all batches have the same size.
        share: the part of each batch that this process loads.
        mixing: how each image is mixed with another one; needs a ``transform`` with ``view`` and ``finish``.
        pairs: load ``split.pair(index)``, an image with its mask, depth map or objects; ``transform`` takes both.
        vectors: load ``split.target(index)``, (K,) float32, with each image.
        poisson: draw batches by Poisson sampling instead of ``shuffle``, see :class:`.PoissonBatches`.
        timeout: how many seconds one of the ``workers`` may spend on one image; None or 0: no limit.

    Attributes:
        asked: says whether a request to stop came. If a stop is requested while a batch is late, the loader yields an
            empty batch.
        say: called with each line that the user should see.
    """

    def __init__(
        self,
        split: Split | VectorSplit | PairSplit | ObjectSplit,
        transform: Transform | PairTransform,
        batch_size: int,
        *,
        shape: tuple[int, ...] = (0,),
        seed: int = 0,
        shuffle: bool = False,
        balanced: bool = False,
        drop_last: bool = False,
        across: bool = False,
        workers: int | None = 0,
        share: Share = Share(),  # noqa: B008 - immutable
        mixing: Mixing | None = None,
        pairs: bool = False,
        vectors: bool = False,
        poisson: Poisson | None = None,
        timeout: float | None = TIMEOUT,
    ):
        labels = _labels(split) if balanced else None
        dropped = drop_last and not across
        self.batches: SeededBatches | PoissonBatches
        if poisson is not None:
            self.batches = PoissonBatches(len(split), batch_size, seed, share, poisson.views)
        else:
            self.batches = SeededBatches(
                len(split), batch_size, seed, shuffle, dropped, share, mixing is not None, across, labels
            )
        self.collate = Collate(shape, mixing is not None, _target_shape(split, shape, pairs, vectors))
        self.split, self.timeout = split, timeout
        self.asked: Callable[[], bool] = lambda: False
        self.say: Callable[[str], None] = lambda line: None
        self.places = Places(workers) if workers else None
        options: dict[str, Any] = {}
        if self.places is not None:
            options = dict(persistent_workers=True, prefetch_factor=PREFETCH, timeout=POLL)
            options |= dict(worker_init_fn=partial(begin, self.places))
        self._new = partial(
            DataLoader,
            _samples(split, transform, mixing, self.places, pairs, vectors),
            batch_sampler=self.batches,
            collate_fn=self.collate if self.places is None else Sent(self.collate, self.places),
            num_workers=workers or 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iterator takes a number from the global one
            **options,
        )
        self.loader = self._new()
        self._processes: list[BaseProcess] = []
        self._unfinished = self._said = False

    def close(self) -> None:
        """End the worker processes, whatever they do; another iteration would start new ones.

        If the garbage collector did it, torch's loader would wait 5 seconds for each of them.
        """
        if not self._processes:
            return
        timer = threading.Timer(GRACE, self._kill)
        timer.start()
        self.loader = self._new()  # torch waits for the processes of the old one
        timer.cancel()
        timer.join()
        self._kill()
        for process in self._processes:
            process.join(GRACE)
        self._processes, self._unfinished = [], False

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of the next iteration, and its first batch."""
        self.batches.epoch, self.batches.start = epoch, start

    def __len__(self) -> int:
        """Number of batches of the epoch; with ``across`` epochs may differ by one."""
        return len(self.batches)

    @property
    def steps_per_epoch(self) -> Fraction:
        """Number of batches of an epoch; with ``across``, the mean over all epochs."""
        batches = self.batches
        return Fraction(batches.length, batches.batch_size) if batches.across else Fraction(len(batches))

    @property
    def rate(self) -> float:
        """The probability with which an image is in a batch; with Poisson sampling, whatever else is in it."""
        return min(1.0, self.batches.batch_size / max(1, self.batches.length))

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the epoch.

        Raises:
            RunFailed: a worker process has died or is stuck; the message names the image.
        """
        return iter(self.loader) if self.places is None else self._watched(self._begun())

    def _begun(self) -> Iterator[Batch | Piped]:
        """torch's iterator; the first one starts the processes."""
        if self._unfinished:
            self.close()  # the processes work on batches of an iteration that was left early
        most_files()  # raises the limit of this process, too
        before = set(multiprocessing.active_children())
        try:
            with signals_held():
                iterator = iter(self.loader)
            deaths_unnoticed(iterator)
        except OSError as error:
            failed = f"{self.loader.num_workers} processes for decoding images cannot be started"
            raise RunFailed(f"{failed} ({error.strerror or error}); --data.workers 0 does without") from error
        except RuntimeError as error:  # a process has died, or does not answer
            self._processes += _new_processes(before)
            failure = self.lost() or _died(error)
            if failure is None and not self._processes:
                raise
            self._fail(error, failure)
            return self._begun()
        self._processes += _new_processes(before)
        self._unfinished = True
        return iterator

    def _watched(self, iterator: Iterator[Batch | Piped]) -> Iterator[Batch]:
        """The batches, with checks of the processes while waiting for one."""
        places = self.places
        assert places is not None
        with Guard(iterator, places, self._kill, self.timeout, PATIENCE, lambda: self.asked()) as guard:
            while True:
                places.forget()
                while True:
                    try:
                        with guard.waiting():
                            batch = next(iterator)  # pyright: ignore[reportPossiblyUnboundVariable] - it is deleted before the loop ends
                        break
                    except StopIteration:
                        self._unfinished = False
                        return
                    except (RuntimeError, OSError, EOFError) as error:
                        failure = self._failure(error, guard)
                        if guard.cut or failure is not None:
                            del iterator  # pyright: ignore[reportPossiblyUnboundVariable]
                            self._fail(error, failure)
                    if self.asked():
                        yield self.collate([])
                    if guard.cut:
                        return
                if (shortage := places.shortage) is not None and not self._said:
                    self._said = True
                    self.say(f"{shortage} for some batches, which go through pipes instead")
                yield batch.unpacked() if isinstance(batch, Piped) else batch

    def _failure(self, error: Exception, guard: Guard) -> str | None:
        """Why a batch did not arrive; None: it may still arrive, or ``guard`` ended the wait because of a request."""
        if guard.cut:
            return None if guard.stuck is None else self._stuck_at(guard.stuck)
        failure = self.lost() or _died(error) or self._stuck()
        if failure is None and not str(error).startswith("DataLoader timed out"):
            raise error
        return failure

    def _fail(self, error: Exception, failure: str | None) -> None:
        """End the processes; raise if there is a failure."""
        traceback.clear_frames(error.__traceback__)  # they hold torch's iterator
        self.close()
        if failure is not None:
            raise RunFailed(failure) from None

    def lost(self) -> str | None:
        """Which process has died, how, and at which image; None: none has."""
        for process in self._processes:
            if process.exitcode:
                return f"{self._named(process.pid)} {how_it_ended(process.exitcode)}{self._at(process.pid)}"
        return None

    def _stuck(self) -> str | None:
        process = self.places.stuck(self.timeout) if self.places is not None and self.timeout else None
        return None if process is None else self._stuck_at(process)

    def _stuck_at(self, process: int) -> str:
        at = self._at(process) or " and has sent no batch"
        return f"{self._named(process)} is stuck{at} for more than {self.timeout:g} s (data.timeout)"

    def _named(self, process: int | None) -> str:
        return f"process {process}, which decodes images,"

    def _at(self, process: int | None) -> str:
        index = None if self.places is None or process is None else self.places.of(process)
        return "" if index is None else f" at image {self.split.name(index)}"


def _new_processes(before: set[BaseProcess]) -> list[BaseProcess]:
    return [process for process in multiprocessing.active_children() if process not in before]


def _died(error: Exception) -> str | None:
    """torch's message about a process that died at its start, before this loader knew of it."""
    reason = str(error).partition(". ")[0]
    return f"a process that decodes images has died: {reason}" if reason.startswith("DataLoader worker (") else None


def _samples(
    split: Any, transform: Any, mixing: Mixing | None, places: Places | None, pairs: bool, vectors: bool
) -> Dataset[Sample]:
    if pairs:
        return PairSamples(split, transform, places)
    return (VectorSamples if vectors else LabelledSamples)(split, transform, mixing, places)


def _labels(split: Any) -> Tensor:
    """Of all images, (N,) int64."""
    return torch.tensor([split.label(index) for index in range(len(split))])


def _target_shape(split: Any, shape: tuple[int, ...], pairs: bool, vectors: bool) -> tuple[int, ...] | None:
    if vectors and len(split):
        return tuple(split.target(0).shape)
    return shape[1:] if pairs or vectors else None
