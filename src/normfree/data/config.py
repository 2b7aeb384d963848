"""The ``data`` section of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..limits import MAX_INPUT_CHANNELS, MAX_INPUT_SIDE
from .masks import check_values

MOST_WORKERS = 1024
MOST_SECONDS = 1e9


@dataclass
class DataConfig:
    """Which images, and how they reach the network.

    Args:
        source: "digits" (scikit-learn's embedded handwritten digits); "imagefolder:PATH", which holds train/CLASS/* and
            val/CLASS/*, or CLASS/*, or labels.csv; "csv:FILE" or "csv:TRAIN_FILE,VAL_FILE", tables of files and labels;
            "wds:FOLDER" or "wds:TRAIN,VAL", tar shards; "synthetic:N", noise to measure speed with. For
            segmentation "scenes:N" (embedded), "voc:PATH", "masks:PATH"; for depth "scenes:N", "nyu:FILE.mat",
            "depth:PATH"; for detection "scenes:N", "coco:PATH".
        image_size: side of the training images in pixels; null takes the model's.
        test_size: side of the evaluation images in pixels; null takes the model's.
        image_width: width of the training images where it is not the height (segmentation, depth, detection).
        test_width: width of the evaluation images where it is not the height (segmentation, depth, detection).
        test_crop: how classification looks at test images. "squash" resizes to test_size + resize_margin squared,
            whatever the aspect, and cuts out the centre: NFNets. "centre" cuts out the middle square, test_size /
            (test_size + resize_margin) of the shorter side, and resizes it: all other networks. null takes the model's.
        resize_margin: see test_crop; 32 pixels in the papers.
        crop: "distorted" (8..100 % of the area, aspect 3/4..4/3, as in the papers), "shift" (by up to an eighth of the
            side, for small images) or "none". Of segmentation and depth "random" (any place, padded where the image is
            smaller) or "none", the centre. Of detection "none": images shrink to the size and are padded to it.
        short_side: pixels that the shorter side of images is resized to first (segmentation, depth, detection); null:
            not resized.
        scale: training images are then resized by a random factor in this range (segmentation, depth, detection);
            [0.5, 2] in the papers' segmentation. Depth is divided by it, as if the camera were nearer.
        color: random grey, brightness, saturation and hue in training, as in the papers' depth (segmentation, depth,
            detection).
        flip: mirror half of the training images.
        mixup: alpha of MixUp, which blends images with others; 0.2 for NFNets, 0: none. It acts on the whole batch; if
            CutMix is on, too, on its first half. With mixing, an epoch reads every image twice.
        cutmix: alpha of CutMix, which pastes windows of others into images; 1 as released, 0: none. It acts on the
            whole batch; if MixUp is on, too, on its second half.
        randaugment_layers: operations of RandAugment on every training image; 4 in the second paper, 0: none.
        randaugment_magnitude: their strength, 0 to 30; in the second paper 5 to 15.
        randaugment_ops: "released" for operations as the published networks saw them, "sane" without their oddities.
        channels: 3 (RGB), 1 (grey), or as many as the images have: bands of a TIFF file, channels of a NumPy array
            (.npy) or of a PNG file with transparency.
        value_range: values that become black and white where images are not of 8 bits: [a, b] maps a to 0 and b to 255.
            auto takes the number of bits of integers, and 0..1, 0..255 or their own range of numbers with a point, by a
            sample of the training images; the run stores the two numbers. null is what versions without this field
            did: 16 bits become 8 by their upper half, all else is taken for 0..255.
        mean: per channel, on the 0..1 scale; null takes ImageNet's, or 0.5 where channels are not 3.
        std: per channel, on the 0..1 scale; null takes ImageNet's, or 0.5 where channels are not 3.
        val_fraction: of the images of each class, so many are held out for testing, where the source has no test split
            (imagefolder:, csv:); they are listed in the run's held_out.json.
        val_seed: of the choice of images that are held out.
        sampler: "shuffled", every training image once an epoch; "balanced", as many images an epoch, but all classes
            equally often (classification).
        mask_values: the value of each class in the masks of "masks:PATH", in the order of the classes: [0, 255], or
            colours [[0, 0, 0], [128, 0, 0]]; null: a class's own number.
        mask_ignored: the value of pixels that count for nothing; null: 255 where it is not the value of a class, of
            colours none.
        allow_missing_classes: train although a class occurs in no training mask, or one class alone in the test masks.
        workers: processes that decode images; 0 decodes in the main process. null: one for each core, up to 8; none for
            fewer than 100 images, or where there is nothing to decode. They change nothing but the time it takes.
        timeout: seconds that one of these processes may be at one image; then the run stops and names both, as on a
            network file system that does not answer. null or 0: no limit. Without such processes there is none.
        max_unreadable: so many unreadable images are named and skipped before the run stops.
    """

    source: str = "digits"
    image_size: int | None = None
    test_size: int | None = None
    test_crop: Literal["squash", "centre"] | None = None
    resize_margin: int = 32
    image_width: int | None = None
    test_width: int | None = None
    crop: Literal["distorted", "shift", "random", "none"] = "distorted"
    short_side: int | None = None
    scale: tuple[float, ...] = (1.0, 1.0)
    color: bool = False
    flip: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 5.0
    randaugment_ops: Literal["released", "sane"] = "released"
    channels: int = 3
    value_range: Literal["auto"] | tuple[float, ...] | None = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    val_fraction: float | None = None
    val_seed: int = 0
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    mask_values: tuple[int | tuple[int, ...], ...] | None = None
    mask_ignored: int | tuple[int, ...] | None = None
    allow_missing_classes: bool = False
    workers: int | None = None
    timeout: float | None = 600.0
    max_unreadable: int = 10

    def __post_init__(self) -> None:
        sides = ("image_size", "test_size", "image_width", "test_width", "short_side")
        least_of = dict.fromkeys(sides, 1) | dict(resize_margin=0, workers=0, timeout=0, max_unreadable=0)
        least_of |= dict(mixup=0, cutmix=0, randaugment_layers=0, randaugment_magnitude=0)
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"data.{name} (={value}) must be at least {least}")
        most_of = dict(mixup=1e3, cutmix=1e3, randaugment_layers=100, randaugment_magnitude=30, workers=MOST_WORKERS)
        most_of |= dict(timeout=MOST_SECONDS)
        most_of |= dict.fromkeys((*sides, "resize_margin"), MAX_INPUT_SIDE)
        for name, most in most_of.items():
            value = getattr(self, name)
            if value is not None and not value <= most:
                raise UsageError(f"data.{name} (={value}) must be at most {most:g}")
        if not 1 <= self.channels <= MAX_INPUT_CHANNELS:
            raise UsageError(f"data.channels (={self.channels}) must be from 1 to {MAX_INPUT_CHANNELS}")
        for name in ("randaugment_layers", "color"):
            if getattr(self, name) and self.channels not in (1, 3):
                value, whose = getattr(self, name), "images of 1 or 3 channels (data.channels)"
                raise UsageError(f"data.{name} (={value}) is for {whose}, not for {self.channels}")
        _check_range(self.value_range)
        if len(self.scale) != 2 or not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise UsageError(f"data.scale (={list(self.scale)!s:.80}) must be two numbers from 0.1 to 10, in order")
        check_values(self.mask_values, self.mask_ignored)
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UsageError(f"data.val_fraction (={self.val_fraction}) must be above 0 and below 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.channels:
                raise UsageError(
                    f"data.{name} (={list(value)!s:.80}) must have data.channels (={self.channels}) entries"
                )
            if value is not None and not all(map(math.isfinite, value)):
                raise UsageError(f"data.{name} (={list(value)}) must be finite")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise UsageError(f"data.std (={list(self.std)}) must be above 0")


def _check_range(value: Literal["auto"] | tuple[float, ...] | None) -> None:
    if value is None or value == "auto":
        return
    if len(value) != 2 or not all(map(math.isfinite, value)) or not value[0] < value[1]:
        raise UsageError(
            f"data.value_range (={list(value)!s:.80}) must be auto or two finite numbers, the smaller first"
        )
