"""Batches of transformed images, in an order that depends on the seed alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .decode import Unreadable, UnreadableImage
from .mixing import Mixing
from .objects import ObjectList, Objects
from .sampling import balanced_order
from .sources import Split
from .transforms import Transform


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
class _Key:
    """One sample of an epoch: an image and the seed of its augmentation; with mixing, its partner and its place."""

    index: int
    seed: int
    partner: int | None = None
    position: int = 0
    batch_size: int = 0


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

    def __init__(self, split: Split, transform: Transform, mixing: Mixing | None):
        self.split, self.transform, self.mixing = split, transform, mixing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: _Key) -> _Sample:
        generator, index = torch.Generator().manual_seed(key.seed), key.index
        try:
            image = self.split.image(index)
            if key.partner is None:
                return _Sample(self.transform(image, generator), self.split.label(index), index)
            index = key.partner
            other = self.split.image(index)
        except UnreadableImage as error:
            return _Sample(None, -1, key.index, error=Unreadable.of(self.split.name(index), error))
        views = [self.transform.view(one, generator) for one in (image, other)]
        mixed, ratio = self.mixing(*views, key.position, key.batch_size, generator)
        labels = self.split.label(key.index), self.split.label(key.partner)
        return _Sample(self.transform.finish(mixed, generator), labels[0], key.index, labels[1], ratio)


class _TransformedVectors(_Transformed):
    """The same with a vector for each image; of mixed images the vectors are mixed."""

    def __getitem__(self, key: _Key) -> _Sample:
        sample = super().__getitem__(key)
        if sample.image is None:
            return sample
        target = self.split.target(key.index)
        if key.partner is not None:
            target = torch.lerp(self.split.target(key.partner), target, sample.ratio)
        return replace(sample, target=target)


class _TransformedPairs(_Transformed):
    """The same of pairs of an image and what each of its pixels is, or its objects; their label is 0."""

    def __getitem__(self, key: _Key) -> _Sample:
        generator = torch.Generator().manual_seed(key.seed)
        try:
            image, target = self.transform(*self.split.pair(key.index), generator)
        except UnreadableImage as error:
            return _Sample(None, -1, key.index, error=Unreadable.of(self.split.name(key.index), error))
        return _Sample(image, 0, key.index, target=target)


class _SeededBatches(Sampler):
    """Lists of keys: a permutation per epoch, or in order; the last, smaller batch is kept, dropped or filled up.

    With ``labels``, the permutation is an order in which all classes come equally often. With ``pairs``, partners are a
    second permutation, so that an epoch has every image once as first and once as second. Of several ranks, each takes
    its share of every batch: together they have the batches of one. With ``across``, batches are cut from the epochs
    one after the other: an epoch has those that begin in it, and the last one is filled up with the first images of the
    next epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        share: "Share",
        pairs: bool,
        across: bool = False,
        labels: Tensor | None = None,
    ):
        self.length, self.batch_size, self.seed, self.share, self.pairs = length, batch_size, seed, share, pairs
        self.shuffle, self.drop_last, self.across, self.epoch, self.start = shuffle, drop_last, across, 0, 0
        self.labels = labels

    def __len__(self) -> int:
        begin, end = self._places()
        return self.length // self.batch_size if self.drop_last else -(-(end - begin) // self.batch_size)

    def _places(self) -> tuple[int, int]:
        """Where the first batch of the epoch begins, counted from the epoch's first image, and where the last ends."""
        if not self.across:
            return 0, self.length
        before = self.epoch * self.length
        return -before % self.batch_size, self.length + -(before + self.length) % self.batch_size

    def _drawn(self, epoch: int) -> list[Tensor]:
        """The images of an epoch in their order, the seeds of their augmentation, and with ``pairs`` their partners."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = self._shuffled(generator) if self.shuffle else torch.arange(self.length)
        columns = [order, torch.randint(2**62, (self.length,), generator=generator)]
        columns += [self._shuffled(generator)] if self.pairs else []
        return columns

    def __iter__(self) -> Iterator[list[_Key]]:
        first, last = self._places()
        columns, following = self._drawn(self.epoch), self.epoch
        while len(columns[0]) < last:
            following += 1
            columns = [torch.cat(both) for both in zip(columns, self._drawn(following), strict=True)]
        for batch in range(self.start, len(self)):
            begin = first + batch * self.batch_size
            end = min(begin + self.batch_size, last)
            part = self.share.of(begin, end)
            keys = zip(*(column[part].tolist() for column in columns), strict=True)
            if self.pairs:
                places = zip(keys, range(part.start - begin, part.stop - begin), strict=True)
                yield [_Key(*key, place, end - begin) for key, place in places]
            else:
                yield [_Key(*key) for key in keys]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        if self.labels is not None:
            return balanced_order(self.labels, generator)
        return torch.randperm(self.length, generator=generator)


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of each batch."""

    rank: int = 0
    world: int = 1

    def of(self, begin: int, end: int) -> slice:
        """Its part of the places ``begin .. end``: consecutive, sizes apart by at most one, perhaps none."""
        count = end - begin
        return slice(begin + count * self.rank // self.world, begin + count * (self.rank + 1) // self.world)


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
        share: Share = Share(),
        mixing: Mixing | None = None,
        pairs: bool = False,
        vectors: bool = False,
    ):
        labels = torch.tensor([split.label(i) for i in range(len(split))]) if balanced else None
        dropped = drop_last and not across
        self.batches = _SeededBatches(
            len(split), batch_size, seed, shuffle, dropped, share, mixing is not None, across, labels
        )
        made = _TransformedPairs if pairs else _TransformedVectors if vectors else _Transformed
        self._new = partial(
            DataLoader,
            made(split, transform, mixing),
            batch_sampler=self.batches,
            collate_fn=_Collate(shape, mixing is not None, _target_shape(split, shape, pairs, vectors)),
            num_workers=workers or 0,
            persistent_workers=bool(workers),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iterator takes a number from the global one
        )
        self.loader = self._new()

    def close(self) -> None:
        """End the processes that decode; another iteration would start them again.

        Left to the garbage collector, the queues of torch's loader go before it, and it waits 5 seconds for each.
        """
        self.loader = self._new()

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
        return iter(self.loader)


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


def _target_shape(split: Split, shape: tuple[int, ...], pairs: bool, vectors: bool) -> tuple[int, ...] | None:
    if vectors and len(split):
        return tuple(split.target(0).shape)
    return shape[1:] if pairs or vectors else None
