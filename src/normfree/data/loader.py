"""Batches of transformed images, in an order that depends on the seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .decode import UnreadableImage
from .sources import Split
from .transforms import Transform


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) float32, labels and indices (N,) int64; and what could not be read, left out of the rest."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> "Batch":
        images = self.images.to(device, memory_format=memory_format, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def pieces(self, size: int) -> "Iterator[Batch]":
        """The batch in micro-batches of at most ``size`` images."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Batch(self.images[part], self.labels[part], self.indices[part])


class _Transformed(Dataset):
    """Samples by (index, seed): a sample's augmentation depends on its seed, not on the worker that makes it."""

    def __init__(self, split: Split, transform: Transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | str, int, int]:
        index, seed = key
        try:
            image = self.split.image(index)
        except UnreadableImage as error:
            return str(error), -1, index
        generator = torch.Generator().manual_seed(seed)
        return self.transform(image, generator), self.split.label(index), index


class _SeededBatches(Sampler):
    """Lists of (index, seed): a permutation per epoch, or in order; the last, smaller batch is kept or dropped."""

    def __init__(self, length: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.shuffle, self.drop_last, self.epoch = shuffle, drop_last, 0

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        seeds = torch.randint(2**62, (self.length,), generator=generator)
        keys = list(zip(order.tolist(), seeds.tolist(), strict=True))
        for batch in range(len(self)):
            yield keys[batch * self.batch_size : (batch + 1) * self.batch_size]


class Loader:
    """Batches of one split, epoch by epoch: iterate after :meth:`set_epoch`.

    Args:
        shuffle: a new order each epoch.
        drop_last: leave the last, smaller batch of an epoch out (other samples each epoch).
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        workers: int = 0,
    ):
        self.batches = _SeededBatches(len(split), batch_size, seed, shuffle, drop_last)
        self.loader = DataLoader(
            _Transformed(split, transform),
            batch_sampler=self.batches,
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def set_epoch(self, epoch: int) -> None:
        self.batches.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def _collate(samples: list[tuple[Tensor | str, int, int]]) -> Batch:
    read = [sample for sample in samples if not isinstance(sample[0], str)]
    images = torch.stack([image for image, _, _ in read]) if read else torch.empty(0)
    labels, indices = (torch.tensor([sample[i] for sample in read], dtype=torch.long) for i in (1, 2))
    return Batch(images, labels, indices, [error for error, _, _ in samples if isinstance(error, str)])
