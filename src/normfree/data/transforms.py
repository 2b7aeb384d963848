"""From a decoded image to what the network sees, in training and in evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .autoaugment import AutoAugment
from .mixing import Window, to_uint8
from .randaugment import RandAugment
from .resize import centre_view, evaluation_view, normalize, padded_centre_window, resize_bicubic

PaddingMode = Literal["constant", "reflect"]
Transform = Callable[[Tensor, torch.Generator | None], Tensor]


@runtime_checkable
class MixableTransform(Protocol):
    """A transform in two halves, between which images are mixed."""

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    def view(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    def finish(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
MIN_COVERED = 0.1  # of the image, which is the object that a window must show so much of


def training_window(height: int, width: int, size: int, margin: int, generator: torch.Generator | None) -> Window:
    """The window of an image that is resized to ``size`` squared in training: random, or the padded centre.

    As released: the centre also takes the place of a random window that is the whole image.
    """
    window = distorted_crop_window(height, width, generator)
    return window if window != (0, 0, height, width) else padded_centre_window(height, width, size, margin)


def distorted_crop_window(height: int, width: int, generator: torch.Generator | None) -> Window:
    """A random window: aspect uniform in 3/4..4/3, area 10..100 %; the whole image if ten attempts fail.

    The distribution of TensorFlow's ``sample_distorted_bounding_box`` with an area range of 8..100 % and
    ``min_object_covered=0.1`` of the whole image (tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc):
    after the aspect, the *height* is uniform over the whole numbers between the smallest and the largest area's, so
    small areas are more frequent than if the area were uniform. Halves are rounded to even; the last place at the right
    and at the bottom is not drawn, as there.
    """
    for _ in range(ATTEMPTS):
        aspect, tall, y, x = torch.rand(4, generator=generator).tolist()
        aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * aspect
        h, w = _window_size(height, width, aspect, tall)
        if 0 < h <= height and 0 < w <= width and h * w / (height * width) >= MIN_COVERED:
            return int(y * (height - h)), int(x * (width - w)), h, w
    return 0, 0, height, width


def _window_size(height: int, width: int, aspect: float, tall: float) -> tuple[int, int]:
    """Height and width of a window of that aspect, ``tall`` (0..1) of the way from the smallest to the largest.

    (0, 0) where rounding to pixels leaves the range of areas.
    """
    smallest, largest = (area * height * width for area in AREA)
    lowest, highest = (round(math.sqrt(area / aspect)) for area in (smallest, largest))
    if round(highest * aspect) > width:
        highest = int((width + 0.5 - 1e-7) / aspect)
    highest = min(highest, height)
    lowest = min(lowest, highest)
    h = lowest + int(tall * (highest - lowest + 1))
    if h * round(h * aspect) < smallest:
        h += 1
    if h * round(h * aspect) > largest:
        h -= 1
    w = round(h * aspect)
    return (h, w) if smallest <= h * w <= largest else (0, 0)


def random_shift(
    image: Tensor, reach: int, generator: torch.Generator | None, mode: PaddingMode = "constant"
) -> Tensor:
    """Move a (C, H, W) image by up to ``reach`` pixels along each axis: pad it, and crop it at random.

    Args:
        mode: what fills the gap: "constant", black, or "reflect", the image mirrored at its border, whose pixels are
            not repeated; ``reach`` must be below both sides then.
    """
    y, x = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(image[None].float(), (reach,) * 4, mode)[0]
    return padded[:, y : y + image.shape[1], x : x + image.shape[2]]


def cutout_window(height: int, width: int, side: int, generator: torch.Generator | None) -> Window:
    """A square around a random pixel, as far as it lies in the image (DeVries & Taylor, arXiv:1708.04552).

    >>> cutout_window(32, 32, 8, torch.Generator().manual_seed(0))
    (11, 20, 8, 8)
    """
    y, x = torch.rand(2, generator=generator).tolist()
    y, x = int(y * height) - side // 2, int(x * width) - side // 2
    top, left = max(0, y), max(0, x)
    return top, left, min(height, y + side) - top, min(width, x + side) - left


@dataclass(frozen=True)
class TrainTransform:
    """(C, H, W) uint8 -> (C, size, size) normalized float32, random by the given generator.

    Args:
        crop: "distorted", "shift" or "none"; as ``padding``, ``padding_mode`` and ``cutout`` it is explained by
            :class:`.DataConfig`.
        margin: of the centre crop where no random window fits: it is ``size / (size + margin)`` of the shorter side.

    Raises:
        UsageError: a padding or a cutout that is too large for the size.
    """

    size: int
    crop: str
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    randaugment: RandAugment | None = None
    margin: int = 32
    padding: int | None = None
    padding_mode: PaddingMode = "constant"
    cutout: int = 0
    autoaugment: AutoAugment | None = None

    def __post_init__(self) -> None:
        if self.padding is not None and self.padding >= self.size:
            raise UsageError(f"data.padding (={self.padding}) must be below the side of the images (={self.size})")
        if self.padding_mode == "reflect" and self.size < 2:
            raise UsageError("data.padding_mode (='reflect') needs images of 2 pixels at least")
        if self.cutout > self.size:
            raise UsageError(f"data.cutout (={self.cutout}) must be at most the side of the images (={self.size})")

    @property
    def reach(self) -> int:
        """Pixels by which "shift" pads."""
        return self.padding or max(1, self.size // 8)

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.finish(self.view(image, generator), generator)

    def view(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop, resize, flip: (C, size, size) on the 0..255 scale, float32 where it was resized."""
        height, width = image.shape[-2:]
        window = None
        if self.crop == "distorted":
            window = training_window(height, width, self.size, self.margin, generator)
        if window is not None or (height, width) != (self.size, self.size):
            image = resize_bicubic(image, self.size, self.size, window)
        if self.crop == "shift":
            image = random_shift(image, self.reach, generator, self.padding_mode)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            image = image.flip(-1)
        return image

    def finish(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """RandAugment or AutoAugment, on uint8, normalization, and cutout: after normalization the mean is 0."""
        for augment in (self.randaugment, self.autoaugment):
            if augment is not None:
                image = augment(to_uint8(image), generator)
        image = normalize(image, self.mean, self.std)
        if self.cutout:
            top, left, height, width = cutout_window(self.size, self.size, self.cutout, generator)
            image[:, top : top + height, left : left + width] = 0
        return image


@dataclass(frozen=True)
class EvalTransform:
    """(C, H, W) on the 0..255 scale -> (C, size, size) normalized float32, as the papers evaluate.

    Args:
        crop: "squash", see :func:`.evaluation_view`, or "centre", see :func:`.centre_view`.
    """

    size: int
    margin: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: str = "squash"

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.margin or tuple(image.shape[-2:]) != (self.size, self.size):
            view = centre_view if self.crop == "centre" else evaluation_view
            image = view(image, self.size, self.margin)
        return normalize(image, self.mean, self.std)
