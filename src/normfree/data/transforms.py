"""From a decoded image to what the network sees, in training and in evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import to_uint8
from .randaugment import RandAugment
from .resize import evaluation_view, normalize, resize_bicubic

Transform = Callable[[Tensor, torch.Generator | None], Tensor]


def distorted_crop_window(height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random window: 8..100 % of the area, aspect 3/4..4/3; all of it if none fits."""
    for _ in range(10):
        area, aspect, y, x = torch.rand(4, generator=generator).tolist()
        area = height * width * (0.08 + 0.92 * area)
        aspect = 3 / 4 + (4 / 3 - 3 / 4) * aspect
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    return 0, 0, height, width


def random_shift(image: Tensor, reach: int, generator: torch.Generator | None) -> Tensor:
    """Move a (C, H, W) image by up to ``reach`` pixels along each axis; black fills the gap."""
    y, x = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(image[None].float(), (reach,) * 4)[0]
    return padded[:, y : y + image.shape[1], x : x + image.shape[2]]


@dataclass(frozen=True)
class TrainTransform:
    """(C, H, W) uint8 -> (C, size, size) normalized float32, random by the given generator."""

    size: int
    crop: str
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    randaugment: RandAugment | None = None

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.finish(self.view(image, generator), generator)

    def view(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop, resize, flip: (C, size, size) on the 0..255 scale, float32 where it was resized."""
        height, width = image.shape[-2:]
        window = distorted_crop_window(height, width, generator) if self.crop == "distorted" else None
        if window is not None or (height, width) != (self.size, self.size):
            image = resize_bicubic(image, self.size, self.size, window)
        if self.crop == "shift":
            image = random_shift(image, max(1, self.size // 8), generator)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            image = image.flip(-1)
        return image

    def finish(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """RandAugment, on uint8, and normalization."""
        if self.randaugment is not None:
            image = self.randaugment(to_uint8(image), generator)
        return normalize(image, self.mean, self.std)


@dataclass(frozen=True)
class EvalTransform:
    """(C, H, W) uint8 -> (C, size, size) normalized float32, as the papers evaluate."""

    size: int
    margin: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.margin or tuple(image.shape[-2:]) != (self.size, self.size):
            image = evaluation_view(image, self.size, self.margin)
        return normalize(image, self.mean, self.std)
