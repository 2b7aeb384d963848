"""The ``data`` section of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError


@dataclass
class DataConfig:
    """Which images, and how they reach the network.

    Args:
        source: "digits" (scikit-learn's embedded handwritten digits); "imagefolder:PATH", which holds train/CLASS/* and
            val/CLASS/*; "wds:FOLDER" or "wds:TRAIN,VAL", tar shards; "synthetic:N", noise to measure speed with.
        image_size: side of the training images in pixels; null takes the model's.
        test_size: side of the evaluation images in pixels; null takes the model's.
        resize_margin: evaluation resizes to test_size + resize_margin squared and crops the centre; 32 in the papers.
        crop: "distorted" (8..100 % of the area, aspect 3/4..4/3, as in the papers), "shift" (by up to an eighth of the
            side, for small images) or "none".
        flip: mirror half of the training images.
        mixup: alpha of MixUp, which blends the images of the first half of a batch with others; 0.2 in the papers, 0:
            none. With mixing, an epoch reads every image twice.
        cutmix: alpha of CutMix, which does it to the second half by windows; 1 in the papers, 0: none.
        randaugment_layers: operations of RandAugment on every training image; 4 in the second paper, 0: none.
        randaugment_magnitude: their strength, 0 to 30; in the second paper 5 to 15.
        randaugment_ops: "released" for operations as the published networks saw them, "sane" without their oddities.
        channels: 3 (RGB) or 1 (grey).
        mean: per channel, on the 0..1 scale; null takes ImageNet's (0.5 for one channel).
        std: per channel, on the 0..1 scale; null takes ImageNet's (0.5 for one channel).
        workers: processes that decode images; 0 decodes in the main process.
        max_unreadable: so many unreadable images are named and skipped before the run stops.
    """

    source: str = "digits"
    image_size: int | None = None
    test_size: int | None = None
    resize_margin: int = 32
    crop: Literal["distorted", "shift", "none"] = "distorted"
    flip: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 5.0
    randaugment_ops: Literal["released", "sane"] = "released"
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 0
    max_unreadable: int = 10

    def __post_init__(self) -> None:
        least_of = dict(image_size=1, test_size=1, resize_margin=0, workers=0, max_unreadable=0)
        least_of |= dict(mixup=0, cutmix=0, randaugment_layers=0, randaugment_magnitude=0)
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"data.{name} (={value}) must be at least {least}")
        for name, most in dict(mixup=1e3, cutmix=1e3, randaugment_layers=100, randaugment_magnitude=30).items():
            if not getattr(self, name) <= most:
                raise UsageError(f"data.{name} (={getattr(self, name)}) must be at most {most:g}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.channels:
                raise UsageError(f"data.{name} (={list(value)}) must have data.channels (={self.channels}) entries")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"data.std (={list(self.std)}) must be above 0")
