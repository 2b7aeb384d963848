"""Batches of transformed images, in an order that depends on the seed alone."""

import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import RunFailed
from .decode import Unreadable, UnreadableImage
from .mixing import Mixing
from .objects import ObjectList, Objects
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
from .sampling import Key, SeededBatches, Share
from .sources import Split
from .transforms import Transform

TIMEOUT = 600.0  # seconds that a process may be at one image
POLL = 1.0  # seconds between two looks at the processes while a batch is waited for
GRACE = 5.0  # seconds until a process that does not end is killed


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) float32, labels and indices (N,) int64; and what could not be read, left out of the rest.

    Of mixed images, ``partners`` (N,) int64 are the labels of the second images, and ``ratios`` (N,) float32 the shares
    of the first. Where every pixel has an answer, ``targets`` are these: (N, H, W) int64 classes or float32 metres.
    Where images hold objects, ``targets`` are these; where an image has a vector, they are (N, K) float32.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)
    partners: Tensor | None = None
    ratios: Tensor | None = None
    targets: Tensor | ObjectList | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> tuple:
        """What a network is called with: images, and for one that finds objects the sizes of these and the objects."""
        return (self.images, self.targets) if isinstance(self.targets, ObjectList) else (self.images,)

    def _each(self, function: Callable[[Tensor], Tensor], *names: str) -> dict[str, Tensor]:
        """``function`` of the tensors ``names`` that there are."""
        return {name: function(value) for name in names if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> "Batch":
        images = self.images.to(device, memory_format=memory_format, non_blocking=True)
        moved = self._each(lambda x: x.to(device, non_blocking=True), "labels", "partners", "ratios", "targets")
        return replace(self, images=images, **moved)

    def pin_memory(self) -> "Batch":
        return replace(
            self, **self._each(lambda x: x.pin_memory(), "images", "labels", "partners", "ratios", "targets")
        )

    def pieces(self, size: int) -> "Iterator[Batch]":
        """The batch in micro-batches of at most ``size`` images; an empty batch in one."""
        for start in range(0, max(1, len(self)), size):
            yield self.part(slice(start, start + size))

    def part(self, places: slice) -> "Batch":
        """Some of its images."""
        names = "images", "labels", "indices", "partners", "ratios", "targets"
        return Batch(**self._each(lambda x: x[places], *names))


@dataclass(frozen=True)
class _Sample:
    image: Tensor | None
    label: int
    index: int
    partner: int = 0
    ratio: float = 1.0
    error: Unreadable | None = None
    target: Tensor | Objects | None = None


class _Transformed(Dataset):
    """Samples by key: a sample's augmentation depends on its seed, not on the worker that makes it."""

    def __init__(self, split: Split, transform: Transform, mixing: Mixing | None, places: Places | None):
        self.split, self.transform, self.mixing, self.places = split, transform, mixing, places

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> _Sample:
        if self.places is None:
            return self.sample(key)
        self.places.set(key.index)
        try:
            return self.sample(key)
        finally:
            self.places.set(None)

    def sample(self, key: Key) -> _Sample:
        generator, index = torch.Generator().manual_seed(key.seed), key.index
        try:
            image = self.split.image(index)
            if key.partner is None:
                return _Sample(self.transform(image, generator), self.split.label(index), index)
            index = key.partner
            if self.places is not None:
                self.places.set(index)
            other = self.split.image(index)
        except UnreadableImage as error:
            return _Sample(None, -1, key.index, error=Unreadable.of(self.split.name(index), error))
        views = [self.transform.view(one, generator) for one in (image, other)]
        mixed, ratio = self.mixing(*views, key.position, key.batch_size, generator)
        labels = self.split.label(key.index), self.split.label(key.partner)
        return _Sample(self.transform.finish(mixed, generator), labels[0], key.index, labels[1], ratio)


class _TransformedVectors(_Transformed):
    """The same with a vector for each image; of mixed images the vectors are mixed."""

    def sample(self, key: Key) -> _Sample:
        sample = super().sample(key)
        if sample.image is None:
            return sample
        target = self.split.target(key.index)
        if key.partner is not None:
            target = torch.lerp(self.split.target(key.partner), target, sample.ratio)
        return replace(sample, target=target)


class _TransformedPairs(_Transformed):
    """The same of pairs of an image and what each of its pixels is, or its objects; their label is 0."""

    def sample(self, key: Key) -> _Sample:
        generator = torch.Generator().manual_seed(key.seed)
        try:
            image, target = self.transform(*self.split.pair(key.index), generator)
        except UnreadableImage as error:
            return _Sample(None, -1, key.index, error=Unreadable.of(self.split.name(key.index), error))
        return _Sample(image, 0, key.index, target=target)


class Loader:
    """Batches of one split, epoch by epoch: iterate after :meth:`set_epoch`, and :meth:`close` at the end.

    Args:
        shape: (C, H, W) of the transformed images, for batches in which none could be read.
        shuffle: a new order each epoch.
        balanced: shuffle such that all classes come equally often, see :func:`.sampling.balanced_order`.
        drop_last: leave the last, smaller batch of an epoch out (other samples each epoch).
        across: fill it up with images of the next epoch instead, so that all batches are whole.
        share: which part of each batch to load.
        mixing: mix each image with another one; ``transform`` has ``view`` and ``finish`` then.
        pairs: ``split`` has ``pair(index)``, an image and what each pixel is, or its objects; ``transform`` takes both.
        vectors: ``split`` has ``target(index)``, (K,) float32.
        timeout: seconds that one of the ``workers`` may be at one image; None or 0: no limit.

    Attributes:
        asked: whether a request to stop came; an empty batch answers it where one that is waited for does not come.
        say: told what a user should know.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
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
        timeout: float | None = TIMEOUT,
    ):
        labels = torch.tensor([split.label(i) for i in range(len(split))]) if balanced else None
        dropped = drop_last and not across
        self.batches = SeededBatches(
            len(split), batch_size, seed, shuffle, dropped, share, mixing is not None, across, labels
        )
        made = _TransformedPairs if pairs else _TransformedVectors if vectors else _Transformed
        collate = _Collate(shape, mixing is not None, _target_shape(split, shape, pairs, vectors))
        self.split, self.timeout, self.collate = split, timeout, collate
        self.asked: Callable[[], bool] = lambda: False
        self.say: Callable[[str], None] = lambda line: None
        self.places, options = None, {}
        if workers:
            self.places = Places(workers)
            options = dict(persistent_workers=True, prefetch_factor=PREFETCH, timeout=POLL)
            options |= dict(worker_init_fn=partial(begin, self.places))
            collate = Sent(collate, self.places)
        self._new = partial(
            DataLoader,
            made(split, transform, mixing, self.places),
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=workers or 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iterator takes a number from the global one
            **options,
        )
        self.loader = self._new()
        self._processes: list[multiprocessing.Process] = []
        self._unfinished = self._said = False

    def close(self) -> None:
        """End the processes that decode, whatever they are at; another iteration would start them again.

        Left to the garbage collector, the queues of torch's loader go before it, and it waits 5 seconds for each.
        """
        if not self._processes:
            return
        timer = threading.Timer(GRACE, self._kill)
        timer.start()
        self.loader = self._new()  # torch waits for those of the one before
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
        """Batches of the epoch; with ``across`` epochs differ by one."""
        return len(self.batches)

    @property
    def steps_per_epoch(self) -> Fraction:
        """Batches of an epoch, with ``across`` the mean over all epochs."""
        batches = self.batches
        return Fraction(batches.length, batches.batch_size) if batches.across else Fraction(len(batches))

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the epoch.

        Raises:
            RunFailed: a process that decodes has died or is stuck; the message names the image.
        """
        return iter(self.loader) if self.places is None else self._watched(self._begun())

    def _begun(self) -> Iterator[Batch | Piped]:
        """torch's iterator; its processes, if this is the first one."""
        if self._unfinished:
            self.close()  # they are at work on batches that nobody waits for any more
        most_files()  # its own limit counts here, too
        before = set(multiprocessing.active_children())
        try:
            with signals_held():
                iterator = iter(self.loader)
            deaths_unnoticed(iterator)
        except OSError as error:
            told = f"{self.loader.num_workers} processes for decoding images cannot be started"
            raise RunFailed(f"{told} ({error.strerror or error}); --data.workers 0 does without") from error
        except RuntimeError as error:  # one has died, or those of the last epoch do not answer
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
        """The batches, with a look at the processes while one is waited for."""
        with Guard(iterator, self.places, self._kill, self.timeout, POLL, lambda: self.asked()) as guard:
            while True:
                self.places.forget()
                while True:
                    try:
                        with guard.waiting():
                            batch = next(iterator)
                        break
                    except StopIteration:
                        self._unfinished = False
                        return
                    except (RuntimeError, OSError, EOFError) as error:
                        failure = self._failure(error, guard)
                        if guard.cut or failure is not None:
                            del iterator
                            self._fail(error, failure)
                    if self.asked():
                        yield self.collate([])
                    if guard.cut:
                        return
                if (lacks := self.places.lacks) is not None and not self._said:
                    self._said = True
                    self.say(f"{lacks} for some batches, which go through pipes instead")
                yield batch.unpacked() if isinstance(batch, Piped) else batch

    def _failure(self, error: Exception, guard: Guard) -> str | None:
        """Why a batch did not come; None: it may come yet, or ``guard`` has ended the wait because of a request."""
        if guard.cut:
            return None if guard.stuck is None else self._stuck_at(guard.stuck)
        failure = self.lost() or _died(error) or self._stuck()
        if failure is None and not str(error).startswith("DataLoader timed out"):
            raise error
        return failure

    def _fail(self, error: Exception, failure: str | None) -> None:
        """End the processes, and the run if there is a reason."""
        traceback.clear_frames(error.__traceback__)  # which hold torch's iterator
        self.close()
        if failure is not None:
            raise RunFailed(failure) from None

    def lost(self) -> str | None:
        """Which of the processes has died, how, and at which image; None: none has."""
        for process in self._processes:
            if process.exitcode:
                return f"{self._named(process.pid)} {how_it_ended(process.exitcode)}{self._at(process.pid)}"
        return None

    def _stuck(self) -> str | None:
        process = self.places.stuck(self.timeout) if self.timeout else None
        return None if process is None else self._stuck_at(process)

    def _stuck_at(self, process: int) -> str:
        at = self._at(process) or " and has sent no batch"
        return f"{self._named(process)} is stuck{at} for more than {self.timeout:g} s (data.timeout)"

    def _named(self, process: int) -> str:
        return f"process {process}, which decodes images,"

    def _at(self, process: int) -> str:
        index = self.places.of(process)
        return "" if index is None else f" at image {self.split.name(index)}"


@dataclass(frozen=True)
class _Collate:
    shape: tuple[int, ...]
    mixed: bool
    target_shape: tuple[int, ...] | None = None  # of images with targets

    def __call__(self, samples: list[_Sample]) -> Batch:
        read = [sample for sample in samples if sample.image is not None]
        images = torch.stack([sample.image for sample in read]) if read else torch.empty(0, *self.shape)
        columns = {name: torch.tensor([getattr(s, name) for s in read]) for name in ("label", "index", "partner")}
        labels, indices, partners = (column.long() for column in columns.values())
        batch = Batch(images, labels, indices, [sample.error for sample in samples if sample.error is not None])
        if self.target_shape is not None:
            targets = [sample.target for sample in read]
            if read and isinstance(targets[0], Objects):
                return replace(batch, targets=ObjectList(targets))
            return replace(batch, targets=torch.stack(targets) if read else torch.empty(0, *self.target_shape))
        if not self.mixed:
            return batch
        return replace(batch, partners=partners, ratios=torch.tensor([sample.ratio for sample in read]))


def _new_processes(before: set) -> list[multiprocessing.Process]:
    return [process for process in multiprocessing.active_children() if process not in before]


def _died(error: Exception) -> str | None:
    """What torch says of a process that died as it began, before this loader knew of it."""
    said = str(error).partition(". ")[0]
    return f"a process that decodes images has died: {said}" if said.startswith("DataLoader worker (") else None


def _target_shape(split: Split, shape: tuple[int, ...], pairs: bool, vectors: bool) -> tuple[int, ...] | None:
    if vectors and len(split):
        return tuple(split.target(0).shape)
    return shape[1:] if pairs or vectors else None
