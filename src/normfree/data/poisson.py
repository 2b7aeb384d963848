"""Poisson sampling: every image is in every batch with the same probability, whatever else is in it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from .sampling import Key, Share


@dataclass(frozen=True)
class Poisson:
    """That batches are drawn by Poisson sampling, as the accounting of private training requires.

    Attributes:
        views: how often each drawn image comes, one after the other, each time augmented anew.
    """

    views: int = 1


class PoissonBatches(Sampler[list[Key]]):
    """Lists of keys, each image in each with probability ``batch_size / length``; their sizes differ and may be 0.

    An epoch has ``length // batch_size`` batches. Each depends on the seed and its own number alone. Of several ranks,
    each takes its share of every batch.

    Example:
        >>> batches = PoissonBatches(1000, 100, seed=0, share=Share(), views=1)
        >>> len(batches), [len(keys) for keys in batches][:3]
        (10, [88, 118, 79])
    """

    across = False

    def __init__(self, length: int, batch_size: int, seed: int, share: Share, views: int):
        self.length, self.batch_size, self.seed, self.share, self.views = length, batch_size, seed, share, views
        self.rate = min(1.0, batch_size / max(1, length))
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return max(1, self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in range(self.start, len(self)):
            generator = torch.Generator().manual_seed(seed_of("batch", self.seed, self.epoch, batch))
            # float32 would round the rate
            drawn = torch.rand(self.length, generator=generator, dtype=torch.float64) < self.rate
            chosen = drawn.nonzero().flatten()
            seeds = torch.randint(2**62, (len(chosen), self.views), generator=generator)
            part = self.share.of(0, len(chosen))
            rows = zip(chosen[part].tolist(), seeds[part].tolist(), strict=True)
            yield [Key(index, seed) for index, views in rows for seed in views]


def seed_of(*parts: object) -> int:
    """A seed for one purpose, such as a step's noise: parts that differ give seeds that have nothing in common.

    Example:
        >>> seed_of("noise", 0, 1) == seed_of("noise", 0, 1), seed_of("noise", 0, 1) == seed_of("noise", 1, 0)
        (True, False)
    """
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
