"""MixUp and CutMix of pairs of images, as NFNets and NF-RegNets were trained with.

Sources: NFNets, appendix A.3 (MixUp with alpha 0.2 on half of the batch, CutMix on the other half, then RandAugment on
all of it); NF-ResNets, table 3 (both for NF-RegNets, without RandAugment); Zhang et al., arXiv:1710.09412; Yun et al.,
arXiv:1905.04899.

Order, as released: crop, flip and resize to float32, mix, :func:`to_uint8`, RandAugment, normalize. Bicubic resizing
overshoots 0..255 a little; the overshoot is mixed too, and only :func:`to_uint8` cuts it off. Without RandAugment
images stay float32. A batch of B takes 2B images, and each pair has a ratio of its own.

The released CutMix pastes the first image's window into the second one and calls the window's share the ratio; here, as
in CutMix's paper, the second image's window is pasted into the first. Pairs are random, so it is the same training; the
first label, which training accuracy counts, is mostly the one with more pixels here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

Window = tuple[int, int, int, int]  # top, left, height, width in pixels


def mixup(first: Tensor, second: Tensor, ratio: float) -> Tensor:
    """``ratio * first + (1 - ratio) * second``, float32; both (C, H, W)."""
    return ratio * first.float() + (1 - ratio) * second.float()


def cutmix(first: Tensor, second: Tensor, window: Window) -> Tensor:
    """The first (C, H, W) image with the second one's pixels inside of the window."""
    top, left, height, width = window
    mixed, inside = first.clone(), (slice(None), slice(top, top + height), slice(left, left + width))
    mixed[inside] = second[inside]
    return mixed


def draw_ratio(alpha: float, generator: torch.Generator | None = None) -> float:
    """A ratio from Beta(alpha, alpha): near 0 or 1 for a small alpha, uniform for 1."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))  # torch's Beta takes no generator
    return float(np.float32(np.random.default_rng(seed).beta(alpha, alpha)))


def cutmix_window(height: int, width: int, ratio: float, generator: torch.Generator | None = None) -> Window:
    """A window of sides sqrt(1 - ratio) times the image's, about a uniform pixel, clipped at the border.

    As released: the half sides are rounded down to pixels. Clipping leaves the first image more than ``ratio``:
    :func:`kept` of the window is its true share.
    """
    y, x = torch.rand(2, generator=generator).tolist()
    y, x = int(y * height), int(x * width)
    side = math.sqrt(1 - ratio)
    half_height, half_width = int(side * height) // 2, int(side * width) // 2
    top, left = max(0, y - half_height), max(0, x - half_width)
    return top, left, min(height, y + half_height) - top, min(width, x + half_width) - left


def kept(height: int, width: int, window: Window) -> float:
    """The fraction of the image outside of the window."""
    return 1 - window[2] * window[3] / (height * width)


def to_uint8(image: Tensor) -> Tensor:
    """Clip to 0..255 and drop the fraction, as the released code does before RandAugment; uint8."""
    return image if image.dtype == torch.uint8 else image.clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Mixing:
    """How the images of a batch are mixed; with both, MixUp for its first half and CutMix for its second.

    Args:
        mixup: alpha of MixUp's Beta distribution, 0.2 in the paper; 0: off.
        cutmix: alpha of CutMix's, 1 (uniform) in the released code; 0: off.
    """

    mixup: float = 0.2
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} (={getattr(self, name)}) must be at least 0: the alpha of Beta(alpha, alpha)")

    def kind(self, position: int, batch_size: int) -> str | None:
        """What is done to the image at a position (0-based) of a batch: "mixup", "cutmix" or None."""
        kinds = [name for name in ("mixup", "cutmix") if getattr(self, name)]
        return None if not kinds else kinds[0] if position < batch_size // 2 else kinds[-1]

    def __call__(
        self, first: Tensor, second: Tensor, position: int, batch_size: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, float]:
        """The image at a position of a batch, and the first label's ratio in it.

        Args:
            first, second: (C, H, W) on the 0..255 scale, float32 as resized, or uint8.

        Returns:
            Image (C, H, W), float32 after MixUp and otherwise of the first's type; ratio 0..1.
        """
        kind, (height, width) = self.kind(position, batch_size), first.shape[-2:]
        if kind == "mixup":
            ratio = draw_ratio(self.mixup, generator)
            return mixup(first, second, ratio), ratio
        if kind == "cutmix":
            window = cutmix_window(height, width, draw_ratio(self.cutmix, generator), generator)
            return cutmix(first, second, window), kept(height, width, window)
        return first, 1.0


def soft_labels(
    labels: Tensor, partners: Tensor, ratio: Tensor, num_classes: int, label_smoothing: float = 0.0
) -> Tensor:
    """Targets of mixed images for ``cross_entropy``: (N, num_classes) float32, rows of sum 1.

    ``(1 - s) * (ratio * onehot(label) + (1 - ratio) * onehot(partner)) + s / num_classes``, s the smoothing.

    >>> soft_labels(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75]), num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500]])

    Args:
        labels, partners: (N,) int64.
        ratio: (N,) share of the label.
    """
    ratio = ratio.to(torch.float32)[:, None]
    first, second = (F.one_hot(classes, num_classes).to(torch.float32) for classes in (labels, partners))
    return (1 - label_smoothing) * (ratio * first + (1 - ratio) * second) + label_smoothing / num_classes
