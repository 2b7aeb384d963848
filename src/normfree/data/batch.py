"""A batch: images with their labels and targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .decode import Unreadable
from .detection import ObjectList


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) float32, labels and indices (N,) int64; ``unreadable`` images are left out of these.

    For mixed images, ``partners`` (N,) int64 are labels of the second images, and ``ratios`` (N,) float32 the shares of
    the first. ``targets`` are (N, H, W) int64 classes or float32 metres for targets per pixel, (N, K) float32 for
    target vectors, or the objects of each image.
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
    def inputs(self) -> tuple[Any, ...]:
        """The arguments of the network: the images, and for detection their objects."""
        return (self.images, self.targets) if isinstance(self.targets, ObjectList) else (self.images,)

    @property
    def target_tensor(self) -> Tensor:
        """``targets``, if they are a tensor: per pixel, or a vector for each image."""
        assert isinstance(self.targets, Tensor), "the batch has no tensor of targets"
        return self.targets

    @property
    def target_objects(self) -> ObjectList:
        """``targets``, if they are objects."""
        assert isinstance(self.targets, ObjectList), "the batch has no objects"
        return self.targets

    def _each(self, function: Callable[[Tensor], Tensor], *names: str) -> dict[str, Tensor]:
        """``function`` applied to those of the fields ``names`` that are not None."""
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
        return replace(self, unreadable=[], **self._each(lambda x: x[places], *names))

    def chosen(self, places: Tensor) -> "Batch":
        """The images at these places, (n,) int64; not of a batch with objects."""
        names = "images", "labels", "indices", "partners", "ratios", "targets"
        return replace(self, unreadable=[], **self._each(lambda x: x[places.to(x.device)], *names))
