"""Datasets of samples and their collation into batches, which torch's loader calls in any process."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .batch import Batch
from .decode import Unreadable, UnreadableImage
from .detection import ObjectList, Objects
from .mixing import Mixing
from .processes import Places
from .sampling import Key
from .splits import ImageSplit, ObjectSplit, PairSplit, Split, VectorSplit
from .transforms import MixableTransform, Transform

PairTransform = Callable[[Tensor, Any, torch.Generator], tuple[Tensor, Any]]
S = TypeVar("S", bound=ImageSplit)
L = TypeVar("L", bound=Split)


@dataclass(frozen=True)
class Sample:
    """One image for a batch, or the error if it cannot be read."""

    image: Tensor | None
    label: int
    index: int
    partner: int = 0
    ratio: float = 1.0
    error: Unreadable | None = None
    target: Tensor | Objects | None = None


class Samples(Dataset[Sample], Generic[S]):
    """Samples by key: the augmentation depends on the seed in the key, not on the worker process."""

    def __init__(self, split: S, places: Places | None):
        self.split, self.places = split, places

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Sample:
        if self.places is None:
            return self.sample(key)
        self.places.set(key.index)
        try:
            return self.sample(key)
        finally:
            self.places.set(None)

    def sample(self, key: Key) -> Sample:
        raise NotImplementedError


class LabelledSamples(Samples[L]):
    """Images with a class each; with ``mixing``, mixed with others."""

    def __init__(self, split: L, transform: Transform, mixing: Mixing | None, places: Places | None):
        super().__init__(split, places)
        self.transform, self.mixing = transform, mixing
        self.halves = transform if isinstance(transform, MixableTransform) else None
        if mixing is not None and self.halves is None:
            raise TypeError(f"mixing needs a transform with view and finish; {type(transform).__name__} lacks them")

    def sample(self, key: Key) -> Sample:
        generator, index = torch.Generator().manual_seed(key.seed), key.index
        try:
            image = self.split.image(index)
            if key.partner is None or self.mixing is None or self.halves is None:
                return Sample(self.transform(image, generator), self.split.label(index), index)
            index = key.partner
            if self.places is not None:
                self.places.set(index)
            other = self.split.image(index)
        except UnreadableImage as error:
            return Sample(None, -1, key.index, error=Unreadable.of(self.split.name(index), error))
        first, second = (self.halves.view(one, generator) for one in (image, other))
        mixed, ratio = self.mixing(first, second, key.position, key.batch_size, generator)
        labels = self.split.label(key.index), self.split.label(key.partner)
        return Sample(self.halves.finish(mixed, generator), labels[0], key.index, labels[1], ratio)


class VectorSamples(LabelledSamples[VectorSplit]):
    """The same with a target vector for each image; for mixed images the vectors are mixed, too."""

    def sample(self, key: Key) -> Sample:
        sample = super().sample(key)
        if sample.image is None:
            return sample
        target = self.split.target(key.index)
        if key.partner is not None:
            target = torch.lerp(self.split.target(key.partner), target, sample.ratio)
        return replace(sample, target=target)


class PairSamples(Samples[PairSplit | ObjectSplit]):
    """Pairs of an image and its mask, depth map or objects; the label is 0."""

    def __init__(self, split: PairSplit | ObjectSplit, transform: PairTransform, places: Places | None):
        super().__init__(split, places)
        self.transform = transform

    def sample(self, key: Key) -> Sample:
        generator = torch.Generator().manual_seed(key.seed)
        try:
            image, target = self.transform(*self.split.pair(key.index), generator)
        except UnreadableImage as error:
            return Sample(None, -1, key.index, error=Unreadable.of(self.split.name(key.index), error))
        return Sample(image, 0, key.index, target=target)


@dataclass(frozen=True)
class Collate:
    """Makes a batch of samples; an empty batch of the same shapes if no image could be read."""

    shape: tuple[int, ...]
    mixed: bool
    target_shape: tuple[int, ...] | None = None  # of images with targets

    def __call__(self, samples: list[Sample]) -> Batch:
        read = [sample for sample in samples if sample.image is not None]
        images = [sample.image for sample in read if sample.image is not None]
        columns = {name: torch.tensor([getattr(s, name) for s in read]) for name in ("label", "index", "partner")}
        labels, indices, partners = (column.long() for column in columns.values())
        stacked = torch.stack(images) if images else torch.empty(0, *self.shape)
        batch = Batch(stacked, labels, indices, [sample.error for sample in samples if sample.error is not None])
        if self.target_shape is not None:
            objects = [sample.target for sample in read if isinstance(sample.target, Objects)]
            if objects:
                return replace(batch, targets=ObjectList(objects))
            targets = [sample.target for sample in read if isinstance(sample.target, Tensor)]
            return replace(batch, targets=torch.stack(targets) if targets else torch.empty(0, *self.target_shape))
        if not self.mixed:
            return batch
        return replace(batch, partners=partners, ratios=torch.tensor([sample.ratio for sample in read]))
