"""The order of the images in an epoch, and their batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Key:
    """One sample of an epoch: an image and its augmentation seed; with mixing, partner and position in the batch."""

    index: int
    seed: int
    partner: int | None = None
    position: int = 0
    batch_size: int = 0


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes loads."""

    rank: int = 0
    world: int = 1

    def of(self, begin: int, end: int) -> slice:
        """Its part of positions ``begin .. end``: consecutive; sizes differ by at most one and may be 0."""
        count = end - begin
        return slice(begin + count * self.rank // self.world, begin + count * (self.rank + 1) // self.world)


class SeededBatches(Sampler[list[Key]]):
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
        share: Share,
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

    def _epoch_columns(self, epoch: int) -> list[Tensor]:
        """The images of an epoch in their order, the seeds of their augmentation, and with ``pairs`` their partners."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = self._shuffled(generator) if self.shuffle else torch.arange(self.length)
        columns = [order, torch.randint(2**62, (self.length,), generator=generator)]
        columns += [self._shuffled(generator)] if self.pairs else []
        return columns

    def __iter__(self) -> Iterator[list[Key]]:
        first, last = self._places()
        columns, following = self._epoch_columns(self.epoch), self.epoch
        while len(columns[0]) < last:
            following += 1
            columns = [torch.cat(both) for both in zip(columns, self._epoch_columns(following), strict=True)]
        for batch in range(self.start, len(self)):
            begin = first + batch * self.batch_size
            end = min(begin + self.batch_size, last)
            part = self.share.of(begin, end)
            keys: Iterator[tuple[int, ...]] = zip(*(column[part].tolist() for column in columns), strict=True)
            if self.pairs:
                places = zip(keys, range(part.start - begin, part.stop - begin), strict=True)
                yield [Key(index, seed, partner, place, end - begin) for (index, seed, partner), place in places]
            else:
                yield [Key(index, seed) for index, seed in keys]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        if self.labels is not None:
            return balanced_order(self.labels, generator)
        return torch.randperm(self.length, generator=generator)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many indices as there are images, every class equally often: (N,) int64, in random order.

    Counts of two classes differ by at most one, and so do those of two images of a class: images of a rare class come
    several times, and of a frequent class each epoch has other images.

    Args:
        labels: (N,) int64 of the images.
    """
    grouped = torch.argsort(labels, stable=True)
    counts = labels[grouped].unique_consecutive(return_counts=True)[1].tolist()
    wanted = torch.full((len(counts),), len(labels) // len(counts))
    wanted[torch.randperm(len(counts), generator=generator)[: len(labels) % len(counts)]] += 1
    chosen = []
    for indices, number in zip(grouped.split(counts), wanted.tolist(), strict=True):
        rounds = -(-number // len(indices))
        orders = [torch.randperm(len(indices), generator=generator) for _ in range(rounds)]
        chosen.append(indices[torch.cat(orders)[:number]] if orders else indices[:0])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
