"""The ``data`` section of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..limits import MAX_INPUT_CHANNELS, MAX_INPUT_SIDE
from .masks import check_values

MAX_WORKERS, MAX_TIMEOUT = 1024, 1e9  # the timeout in seconds
MIN_SPACING, MAX_SPACING = 1e-3, 1e3  # mm between voxels


@dataclass
class DataConfig:
    """Which images are used, and how they are prepared for the network.

    Args:
        source: "digits" (scikit-learn's embedded handwritten digits); "imagefolder:PATH", which holds train/CLASS/* and
            val/CLASS/*, or CLASS/*, or labels.csv; "csv:FILE" or "csv:TRAIN_FILE,VAL_FILE", tables of files and labels;
            "wds:FOLDER" or "wds:TRAIN,VAL", tar shards; "arrays:FILE.npz", arrays; "torchvision:NAME" or
            "torchvision:NAME:FOLDER", a data set of torchvision; "hf:NAME", "hf:NAME:CONFIG" or "hf:PATH", one of the
            Hugging Face hub; "synthetic:N", noise to measure speed with. For segmentation "scenes:N" (embedded),
            "voc:PATH", "masks:PATH", "torchvision:NAME"; for volumes "volumes:N" (embedded) and "volumes:PATH"; for
            depth "scenes:N", "nyu:FILE.mat", "depth:PATH"; for detection "scenes:N", "coco:PATH", "torchvision:NAME".
        image_size: side of the training images in pixels; null takes the model's.
        test_size: side of the evaluation images in pixels; null takes the model's.
        image_width: width of the training images where it is not the height (segmentation, depth, detection, volumes).
        test_width: width of the evaluation images where it is not the height (segmentation, depth, detection, volumes).
        image_depth: of volumes, the first side of the training patches where it is not the second, image_size.
        test_depth: of volumes, the first side of the windows in evaluation where it is not the second, test_size.
        test_crop: how test images are cropped in classification. "squash", for NFNets, resizes to a square of
            test_size + resize_margin, whatever the aspect, and crops the centre. "centre", for all other networks,
            crops the middle square, test_size / (test_size + resize_margin) of the shorter side, and resizes it. null
            takes the model's.
        resize_margin: see test_crop; 32 pixels in the papers.
        crop: how training images are cropped. For classification and regression: "distorted" (8..100 % of the area,
            aspect 3/4..4/3, as in the papers), "shift" (pad and crop: the image is padded by data.padding, and a square
            of its own size is cut anywhere from that; for small images) or "none".
            For segmentation, depth and volumes: "random" (any position; smaller images are padded) or "none" (the
            centre). For detection: "none" (images are resized to fit, and padded).
        padding: pixels on each side of an image for "shift"; null: an eighth of the side, which is 4 at 32 pixels.
        padding_mode: what the padding of "shift" shows: "constant", black, or "reflect", mirrored at the border.
        short_side: pixels that the shorter side of images is resized to first (segmentation, depth, detection); null:
            not resized.
        scale: range of a random factor by which training images are then resized (segmentation, depth, detection);
            [0.5, 2] in the papers' segmentation. Depth is divided by the factor, as if the camera were nearer.
        color: random grey, brightness, saturation and hue in training, as in the papers' depth (segmentation, depth,
            detection).
        flip: mirror half of the training images; of volumes, along each axis.
        foreground: of volumes, the part of the random patches that are centred on a voxel of a class other than the
            first, each of them as often as the others; 0: patches lie anywhere.
        spacing: of volumes in files, mm between voxels along each axis, [a, b, c], to which they are resampled; null:
            voxels are used as they are.
        mixup: alpha of MixUp, which blends pairs of images; 0.2 for NFNets; 0: off. It acts on the whole batch, or on
            its first half if CutMix is on too. With MixUp or CutMix, an epoch reads every image twice.
        cutmix: alpha of CutMix, which pastes a window of one image into another; 1 as released; 0: off. It acts on the
            whole batch, or on its second half if MixUp is on too.
        randaugment_layers: number of RandAugment operations on every training image; 4 in the second paper, 2 by
            default in the released code; 0: off.
        randaugment_magnitude: their strength, 0 to 30; in the second paper 5 to 15.
        randaugment_ops: "released": the operations exactly as in the released training code; "sane": the same without
            its oddities.
        autoaugment: "v0": AutoAugment with its released policy, in the place of RandAugment; null: off.
        cutout: side in pixels of a square that is set to the mean (data.mean) in every training image, as the last step
            (DeVries & Taylor, arXiv:1708.04552). Its centre is any pixel, so the border may cut it off; 0: off.
        channels: 3 (RGB), 1 (grey), or as many as the images have: bands of a TIFF file, channels of a NumPy array
            (.npy) or of a PNG file with transparency.
        value_range: the values that become black and white in images that do not have 8 bits: [a, b] maps a to 0 and b
            to 255. "auto" finds the two numbers from a sample of the training images: for integers from their number
            of bits; for floating-point numbers 0..1, 0..255, or the smallest and largest value. The run stores them.
            Of volumes in files, [a, b] is a window of all values, as of CT in HU, and "auto" becomes "zscore": each
            channel of each volume gets mean 0 and standard deviation 1, as for MR.
            null does what versions without this field did: of 16 bits the upper 8 are used, and all other values are
            taken as 0..255.
        mean: of each channel, on the 0..1 scale; null takes ImageNet's, or 0.5 if channels is not 3.
        std: of each channel, on the 0..1 scale; null takes ImageNet's, or 0.5 if channels is not 3.
        val_fraction: fraction of the images of each class that is held out for testing if the source has no test split
            (imagefolder:, csv:, arrays:, volumes:PATH, some of torchvision: and hf:). The run lists these images in
            held_out.json.
        val_seed: seed of the choice of the images that are held out.
        train_fraction: fraction of the training images of each class that is used, to see what fewer labels give
            (classification and regression); null: all of them.
        train_seed: seed of the choice of these images.
        sampler: "shuffled": an epoch has every training image once; "balanced": an epoch has as many images, but all
            classes equally often (classification).
        mask_values: the value of each class in the masks of "masks:PATH", in the order of the classes: [0, 255], or
            colours [[0, 0, 0], [128, 0, 0]]; null: the index of the class.
        mask_ignored: the value of pixels that are ignored in the loss and the metrics; null: 255 if no class has this
            value; with colours, none.
        allow_missing_classes: train even if a class is in no training mask, or the test masks have one class only.
        decides: fields that follow from the training images (how many, how large) where neither the recipe nor the
            command line gives them: see docs/training.md. A run stores the values, and an empty list.
        cache: keep all decoded images in memory. null: in training for more than one epoch, if they take 1 GiB at most;
            true: always in training; false: never. It changes the speed only, not the results.
        workers: number of processes that decode images; 0 decodes in the main process. null: one per core, up to 8; 0
            for fewer than 100 images, or if there is nothing to decode: also for images of at most 96 pixels a side
            that are kept in memory. It changes the speed only, not the results.
        timeout: seconds that a worker process may take for one image, for example on a network file system that does
            not answer; then the run stops with an error that names both. null or 0: no limit. There is none without
            worker processes.
        max_unreadable: number of unreadable images that are reported and skipped before the run stops.
    """

    source: str = "digits"
    image_size: int | None = None
    test_size: int | None = None
    test_crop: Literal["squash", "centre"] | None = None
    resize_margin: int = 32
    image_width: int | None = None
    test_width: int | None = None
    image_depth: int | None = None
    test_depth: int | None = None
    crop: Literal["distorted", "shift", "random", "none"] = "distorted"
    padding: int | None = None
    padding_mode: Literal["constant", "reflect"] = "constant"
    short_side: int | None = None
    scale: tuple[float, ...] = (1.0, 1.0)
    color: bool = False
    flip: bool = True
    foreground: float = 0.0
    spacing: tuple[float, ...] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 5.0
    randaugment_ops: Literal["released", "sane"] = "released"
    autoaugment: Literal["v0"] | None = None
    cutout: int = 0
    channels: int = 3
    value_range: Literal["auto", "zscore"] | tuple[float, ...] | None = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    val_fraction: float | None = None
    val_seed: int = 0
    train_fraction: float | None = None
    train_seed: int = 0
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    mask_values: tuple[int | tuple[int, ...], ...] | None = None
    mask_ignored: int | tuple[int, ...] | None = None
    allow_missing_classes: bool = False
    decides: tuple[str, ...] = ()
    cache: bool | None = None
    workers: int | None = None
    timeout: float | None = 600.0
    max_unreadable: int = 10

    def __post_init__(self) -> None:
        sides = ("image_size", "test_size", "image_width", "test_width", "image_depth", "test_depth", "short_side")
        minima = dict.fromkeys((*sides, "padding"), 1) | dict(resize_margin=0, workers=0, timeout=0, max_unreadable=0)
        minima |= dict(mixup=0, cutmix=0, randaugment_layers=0, randaugment_magnitude=0, cutout=0)
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UsageError(f"data.{name} (={value}) must be at least {minimum}")
        maxima = dict(mixup=1e3, cutmix=1e3, randaugment_layers=100, randaugment_magnitude=30)
        maxima |= dict(workers=MAX_WORKERS, timeout=MAX_TIMEOUT)
        maxima |= dict.fromkeys((*sides, "resize_margin", "padding", "cutout"), MAX_INPUT_SIDE)
        for name, maximum in maxima.items():
            value = getattr(self, name)
            if value is not None and not value <= maximum:
                raise UsageError(f"data.{name} (={value}) must be at most {maximum:g}")
        if self.crop != "shift":
            for name, default in dict(padding=None, padding_mode="constant").items():
                if (value := getattr(self, name)) != default:
                    raise UsageError(f"data.{name} (={value}) is for data.crop shift; data.crop is {self.crop}")
        if not 1 <= self.channels <= MAX_INPUT_CHANNELS:
            raise UsageError(f"data.channels (={self.channels}) must be from 1 to {MAX_INPUT_CHANNELS}")
        if self.autoaugment is not None and self.randaugment_layers:
            raise UsageError(
                f"data.autoaugment (={self.autoaugment}) takes the place of RandAugment; data.randaugment_layers "
                f"(={self.randaugment_layers}) must be 0"
            )
        for name in ("randaugment_layers", "autoaugment", "color"):
            if getattr(self, name) and self.channels not in (1, 3):
                needed = f"images of 1 or 3 channels (data.channels), not for {self.channels}"
                raise UsageError(f"data.{name} (={getattr(self, name)}) is for {needed}")
        _check_range(self.value_range)
        _check_volumes(self.foreground, self.spacing)
        if len(self.scale) != 2 or not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise UsageError(f"data.scale (={list(self.scale)!s:.80}) must be two numbers from 0.1 to 10, in order")
        check_values(self.mask_values, self.mask_ignored)
        for name in ("val_fraction", "train_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"data.{name} (={value}) must be above 0 and below 1")
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


def _check_volumes(foreground: float, spacing: tuple[float, ...] | None) -> None:
    if not 0 <= foreground <= 1:
        raise UsageError(f"data.foreground (={foreground}) must be from 0 to 1")
    if spacing is not None and (len(spacing) != 3 or not all(MIN_SPACING <= one < MAX_SPACING for one in spacing)):
        wanted = f"three numbers of mm, from {MIN_SPACING:g} to {MAX_SPACING:g}"
        raise UsageError(f"data.spacing (={list(spacing)!s:.80}) must be {wanted}")


def _check_range(value: str | tuple[float, ...] | None) -> None:
    if value is None or isinstance(value, str):
        return
    if len(value) != 2 or not all(map(math.isfinite, value)) or not value[0] < value[1]:
        raise UsageError(
            f"data.value_range (={list(value)!s:.80}) must be auto or two finite numbers, the smaller first"
        )
