"""Splits of images that lie in arrays in memory, and their labels: one class each, several, or numbers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..limits import MAX_IMAGE_SIDE, MAX_TARGETS
from ..words import counted
from .arrays import with_channels
from .decode import decode_image
from .shards import MAX_LABEL
from .sources import ArraySplit, TargetSplit

LABELS_AS = dict(
    classes="(N, K) of 0 and 1, a column per class (task.labels multi)",
    numbers="(N,) or (N, K) numbers (task.name regression)",
)


@dataclass(frozen=True)
class DeepArraySplit:
    """Images in memory that are no bytes: (N, H, W), (N, H, W, C) or (N, C, H, W); each is read as a file of it is."""

    images: np.ndarray
    labels: Tensor
    prefix: str
    channels: int
    value_range: tuple[float, ...] | None = None  # see decode_image

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, index: int) -> bytes:
        """The content of a .npy file of the image."""
        content = io.BytesIO()
        np.lib.format.write_array(content, self.images[index], allow_pickle=False)
        return content.getvalue()

    def image(self, index: int) -> Tensor:
        return decode_image(self.file(index), self.channels, self.name(index), self.value_range)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.prefix}[{index}]"


@dataclass(frozen=True)
class Labels:
    """What images are labelled with, see :data:`.folders.ANSWERS`: ``labels`` (N,) int64, or ``targets`` (N, K)."""

    labels: Tensor
    targets: Tensor | None = None

    @property
    def count(self) -> int:
        """Classes or numbers that there must be at least."""
        if self.targets is not None:
            return self.targets.shape[1]
        return int(self.labels.max()) + 1


def array_split(images: np.ndarray, said: Labels, prefix: str, channels: int) -> Any:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) with their labels, as a split of (C, H, W) images.

    Grey and RGB become each other, as of files. Bytes stay bytes.

    Args:
        prefix: what the images are called: the first is ``prefix[0]``.

    Raises:
        UsageError: another shape or type, another number of channels, or another number of labels than of images.
    """
    check_images(images.shape, images.dtype, prefix)
    if len(images) != len(said.labels):
        raise UsageError(f"data.source: {prefix} are {len(images):,} images with {len(said.labels):,} labels")
    if images.dtype == bool:
        images = images.astype(np.uint8) * 255
    last = _channels_last(images, channels, prefix)
    split = DeepArraySplit(images, said.labels, prefix, channels)
    if images.dtype == np.uint8:
        split = ArraySplit(_with_channels(last, channels), said.labels, prefix)
    return split if said.targets is None else TargetSplit(split, said.targets)


def check_images(shape: Sequence[int], dtype: Any, prefix: str) -> None:
    """Refuse arrays that are no images, by what their file says of them.

    Raises:
        UsageError: they are not.
    """
    if len(shape) not in (3, 4) or dtype.kind not in "buif" or not all(shape) or max(shape[1:]) > MAX_IMAGE_SIDE:
        what = f"an array of shape {tuple(shape)} of {dtype!s:.40}"
        raise UsageError(
            f"data.source: {prefix} is {what}; images are (N, H, W), (N, H, W, C) or (N, C, H, W) numbers, at most "
            f"{MAX_IMAGE_SIDE:,} pixels a side"
        )


def labels_of(values: np.ndarray, prefix: str, answers: str) -> Labels:
    """Labels from the array that a file has of them.

    Raises:
        UsageError: another shape or type than ``answers`` need, or values that are none.
    """
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 and answers == "class" else values
    if answers == "class":
        return Labels(_classes(values, prefix))
    values = values[:, None] if values.ndim == 1 and answers == "numbers" else values
    if values.ndim != 2 or not values.size or values.dtype.kind not in "buif":
        raise UsageError(f"data.source: {_shape(values, prefix)}; it must be {LABELS_AS[answers]}")
    targets = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if answers == "classes" and not bool(((targets == 0) | (targets == 1)).all()):
        raise UsageError(f"data.source: {prefix} holds other values than 0 and 1; it must be {LABELS_AS['classes']}")
    if not bool(targets.isfinite().all()):
        raise UsageError(f"data.source: {prefix} holds values that are not finite")
    return Labels(torch.zeros(len(targets), dtype=torch.int64), targets)


def _classes(values: np.ndarray, prefix: str) -> Tensor:
    """(N,) int64."""
    if values.ndim != 1:
        hint = "; for several classes per image: --task.labels multi" if values.ndim == 2 else ""
        raise UsageError(f"data.source: {_shape(values, prefix)}; labels are (N,) or (N, 1) integers{hint}")
    if values.dtype.kind not in "bui":
        hint = "; --task.name regression learns numbers" if values.dtype.kind == "f" else ""
        raise UsageError(f"data.source: {_shape(values, prefix)}; labels are integers from 0{hint}")
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= MAX_LABEL:
        raise UsageError(
            f"data.source: {prefix} holds {values.min()} to {values.max()}; labels are integers from 0 to {MAX_LABEL:,}"
        )
    return torch.from_numpy(values.astype(np.int64))


def check_count(said: Labels, prefix: str, classes: Sequence[str]) -> None:
    """Refuse labels beyond the classes, or other numbers of columns.

    Raises:
        UsageError: there are such.
    """
    count = len(classes)
    if said.targets is not None and said.count != count:
        raise UsageError(f"data.source: {prefix} has {said.count} columns for {count} names")
    if said.targets is None and said.count > count:
        raise UsageError(f"data.source: {prefix} has a label {said.count - 1}; {count} classes end at {count - 1}")
    if said.targets is not None and said.targets.numel() > MAX_TARGETS:
        raise UsageError(f"data.source: {prefix} holds more than {MAX_TARGETS:,} values")


def _shape(values: np.ndarray, prefix: str) -> str:
    return f"{prefix} is an array of shape {values.shape} of {values.dtype!s:.40}"


def _channels_last(images: np.ndarray, channels: int, prefix: str) -> np.ndarray:
    """(N, H, W, C) of as many channels as the images have, by the rule of :func:`.arrays.with_channels`."""
    known = (channels, 1, 3) if channels in (1, 3) else (channels,)
    if images.ndim == 3:
        images = images[:, :, :, None]
    elif images.shape[-1] not in known and images.shape[1] in known:
        images = np.moveaxis(images, 1, -1)
    if images.shape[-1] not in known:
        count = min(images.shape[-1], images.shape[1])
        raise UsageError(f"data.source: {prefix} have {counted(count, 'channel')}; data.channels is {channels}")
    return images


def _with_channels(images: np.ndarray, channels: int) -> Tensor:
    """(N, channels, H, W) of (N, H, W, C) uint8; a view where that can be."""
    if images.shape[-1] == 3 and channels == 1:
        grey = np.empty((*images.shape[:3], 1), np.uint8)
        for place, image in enumerate(images):
            grey[place] = with_channels(image, 1)
        images = grey
    return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, channels, -1, -1)
