"""Protocols of splits; a split follows the one that its task needs.

All of these may raise UnreadableImage for an image or its target, but not for its label or name.
"""

from collections import Counter
from typing import Protocol

from torch import Tensor

from .detection import Objects


class ImageSplit(Protocol):
    """Images by index: ``image(i)`` is (C, H, W) on the 0..255 scale, ``name(i)`` its name in messages.

    Splits of files also have ``file(i)``, a path or the content, and a ``value_range``, see :func:`.decode_image`.
    """

    def __len__(self) -> int: ...
    def image(self, index: int) -> Tensor: ...
    def name(self, index: int) -> str: ...


class Split(ImageSplit, Protocol):
    """Images with a class each: ``label(i)`` is the index of the class."""

    def label(self, index: int) -> int: ...


class VectorSplit(Split, Protocol):
    """Images with a vector each: ``target(i)`` is (K,) float32, 0 or 1 for each class, or numbers; the label is 0."""

    def target(self, index: int) -> Tensor: ...


class PairSplit(ImageSplit, Protocol):
    """Images with a target for each pixel: ``pair(i)`` is an image and its target (H, W).

    The image is uint8 unless its file has more bits; the target is int64 classes or float32 metres.
    """

    def pair(self, index: int) -> tuple[Tensor, Tensor]: ...


class ObjectSplit(ImageSplit, Protocol):
    """Images with objects: ``pair(i)`` is an image and its :class:`.Objects`."""

    def pair(self, index: int) -> tuple[Tensor, Objects]: ...


class MapSplit(PairSplit, Protocol):
    """Pairs whose masks or depth maps can be read without their images: ``target(i)``."""

    def target(self, index: int) -> Tensor: ...


class CountedSplit(ObjectSplit, Protocol):
    """Images with objects, whose number for each class is known without reading an image."""

    def counts(self) -> Counter[int]: ...
