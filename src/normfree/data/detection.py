"""Targets of detection (boxes, classes and masks of objects), and transforms of an image with its objects."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixels import recolored
from .resize import normalize
from .scenes import SceneSplit

MIN_SIDE = 1.0  # pixel: narrower boxes are left out in training


@dataclass(frozen=True)
class Objects:
    """The objects in an image.

    Attributes:
        boxes: (K, 4) float32, left, top, right, bottom in pixels.
        labels: (K,) int64, class indices.
        crowd: (K,) bool: a group of objects, which is ignored in training and in evaluation.
        areas: (K,) float32, visible area in square pixels.
        masks: (K, H, W) bool, or None.
        size: (height, width) of the image in its tensor, where it is at the upper left.
        original: (height, width) of the file. In evaluation boxes, areas and masks are in its pixels.
        seed: for random sampling in the loss.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor
    masks: Tensor | None
    size: tuple[int, int]
    original: tuple[int, int]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(
        cls,
        boxes: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        masks: Tensor | None = None,
        crowd: Tensor | None = None,
        areas: Tensor | None = None,
    ) -> "Objects":
        """Objects of an image of this size; by default none is a crowd, and areas are those of masks or boxes."""
        if areas is None:
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) if masks is None else masks.flatten(1).sum(1).float()
        crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else crowd
        return cls(boxes, labels, crowd, areas, masks, size, size)

    @classmethod
    def none(cls, size: tuple[int, int], original: tuple[int, int]) -> "Objects":
        """No objects, for an image without targets."""
        return replace(cls.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), original), size=size)

    def chosen(self, which: Tensor) -> "Objects":
        """The objects for which a (K,) bool tensor is true."""
        return self._each(lambda x: x[which])

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Objects":
        names = ("boxes", "labels", "crowd", "areas", "masks")
        return replace(self, **{n: function(x) for n in names if (x := getattr(self, n)) is not None})

    def to(self, device: torch.device, non_blocking: bool = False) -> "Objects":
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Objects":
        return self._each(Tensor.pin_memory)


class ObjectList(Sequence[Objects]):
    """The objects of each image of a batch, with slicing, ``to`` and ``pin_memory`` as a tensor has them."""

    def __init__(self, items: Sequence[Objects]):
        self.items = tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Objects: ...
    @overload
    def __getitem__(self, place: slice) -> "ObjectList": ...
    def __getitem__(self, place: int | slice) -> "Objects | ObjectList":
        return ObjectList(self.items[place]) if isinstance(place, slice) else self.items[place]

    def __iter__(self) -> Iterator[Objects]:
        return iter(self.items)

    def to(self, device: torch.device, non_blocking: bool = False) -> "ObjectList":
        return ObjectList([item.to(device, non_blocking) for item in self.items])

    def pin_memory(self) -> "ObjectList":
        return ObjectList([item.pin_memory() for item in self.items])


@dataclass(frozen=True)
class SceneObjects(SceneSplit):
    """Scenes with their visible shapes as objects; ``kind`` is "masks" or "boxes"."""

    def pair(self, index: int) -> tuple[Tensor, Objects]:
        scene = self.scene(index)
        numbers = torch.arange(1, len(scene.labels) + 1)[:, None, None]
        masks = torch.from_numpy(scene.instances)[None] == numbers
        labels = torch.from_numpy(scene.labels) - 1  # without the background
        objects = Objects.of(torch.from_numpy(scene.boxes), labels, (self.side, self.side), masks)
        return self.pixels(scene), objects if self.kind == "masks" else replace(objects, masks=None)


@dataclass(frozen=True)
class ObjectTransform:
    """Image (C, H, W) uint8 and Objects -> (C, height, width) normalized float32 and Objects.

    The image is resized bicubically with antialiasing, masks with nearest neighbours. It is at the upper left of the
    tensor; the rest is the mean colour. In training boxes are clipped to the image, and crowds and boxes narrower than
    a pixel are left out. In evaluation objects stay as they are.

    Args:
        height, width: of the tensor; larger images are resized to fit.
        short_side: length that the shorter side of the image is resized to first; None: not resized.
        scale: range of a random factor of the size.
        flip: mirror half of the images.
        color: random colours, see :func:`.pixels.recolored`.
        train: whether objects are transformed with their image.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    color: bool = False
    train: bool = False

    def __call__(
        self, image: Tensor, objects: Objects, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Objects]:
        generator = generator or torch.Generator().manual_seed(0)
        scale, mirror = torch.rand(2, generator=generator).tolist()
        low, high = self.scale
        size = self.size_of(image.shape[-2:], low + (high - low) * scale)
        image = resized(image, size)
        if self.train:
            objects = moved(objects, size)
            if self.flip and mirror < 0.5:
                image, objects = image.flip(-1), flipped(objects)
        if self.color:
            image = recolored(image, generator)
        padding = (0, self.width - size[1], 0, self.height - size[0])
        image = F.pad(normalize(image, self.mean, self.std), padding)  # the mean colour is 0
        return image, replace(objects, size=size, seed=generator.initial_seed())

    def size_of(self, shape: Sequence[int], factor: float = 1.0) -> tuple[int, int]:
        """(height, width) that an image of (height, width) is resized to."""
        height, width = shape
        if self.short_side is not None:
            factor *= self.short_side / min(height, width)
        factor = min(factor, self.height / height, self.width / width)
        return max(1, min(self.height, round(height * factor))), max(1, min(self.width, round(width * factor)))

    def view(self, image: Tensor) -> Tensor:
        """An image without objects, as in evaluation: (C, height, width) normalized float32."""
        height, width = image.shape[-2:]
        return self(image, Objects.none((height, width), (height, width)))[0]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size) float32 on the 0..255 scale, bicubic with antialiasing."""
    image = image.float()
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp_(0, 255)


def moved(objects: Objects, size: tuple[int, int]) -> Objects:
    """The objects after a resize of the image to (height, width): clipped, without crowds and too narrow boxes."""
    (height, width), (tall, wide) = objects.original, size
    boxes = objects.boxes * torch.tensor([wide / width, tall / height] * 2)
    boxes = torch.stack([boxes[:, i].clamp(0, (wide, tall)[i % 2]) for i in range(4)], 1)
    kept = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= MIN_SIDE) & ~objects.crowd
    areas = objects.areas * (tall * wide / (height * width))
    objects = replace(objects, boxes=boxes, areas=areas, size=size).chosen(kept)
    if objects.masks is None or size == objects.original:
        return objects
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(size, objects.original, strict=True)
    )
    return replace(objects, masks=objects.masks[:, rows[:, None], columns[None]])


def flipped(objects: Objects) -> Objects:
    """The objects of the mirrored image."""
    left, top, right, bottom = objects.boxes.unbind(1)
    wide = objects.size[1]
    masks = None if objects.masks is None else objects.masks.flip(-1)
    return replace(objects, boxes=torch.stack([wide - right, top, wide - left, bottom], 1), masks=masks)
