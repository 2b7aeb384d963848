"""The description in an exported file: the network, the preprocessing of its images, the names of its classes."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..limits import MAX_BATCH_SIZE, MAX_INPUT_CHANNELS, MAX_INPUT_ELEMENTS, MAX_INPUT_SIDE
from ..models import DenseNet
from ..models.registry import test_crop
from ..words import as_json, shown

KEY, FORMAT = "normfree", 1  # the entry of a file's metadata, and the version of its content
# what the description says about each way to resize
RESIZE = dict(
    squash=dict(interpolation="bicubic", cubic_a=-0.5, antialias=False),  # of NFNets
    centre=dict(interpolation="bicubic", cubic_a=-0.5, antialias=False),  # of the first paper's networks
    short_side=dict(interpolation="bicubic", cubic_a=-0.5, antialias=True, outside="mean"),
    none=dict(outside="mean"),
    windows=dict(outside="mean"),  # of volumes
)
# names of the networks' outputs, by task; those of VECTORS are (N, outputs)
VECTORS = {"classification": "logits", "multi-label": "logits", "regression": "numbers"}
OUTPUTS = VECTORS | dict(segmentation="logits", depth="metres")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")  # int8: of ONNX files


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resized, cropped to its centre, (pixel / 255 - mean) / std per channel.

    With ``resize="squash"`` an image of any aspect ratio is resized to (size + margin) squared: bicubic with a = -0.5,
    not antialiased; NFNets are evaluated so. With "centre" the square of int(shorter side / (size + margin) * size)
    pixels, from (H - side + 1) // 2 and (W - side + 1) // 2, is resized to ``size`` by the same cubic; all other
    networks for classification are evaluated so. With "short_side" the shorter side gets ``short_side`` pixels
    (bicubic, antialiased) and the aspect stays, with "none" the image is as it is; where it is smaller than the crop
    then, it lies in the middle of pixels of the mean colour. With "windows" it is a volume, of which the network sees
    windows.

    Args:
        size: height of the network's input in pixels, and its width unless ``width`` says otherwise.
        channels: 3 for red, green, blue; 1 for grey; else what images have.
        resize_margin: of "squash" and "centre".
        value_range: of images that do not have 8 bits, the values that become 0 and 255; None: 16 bits become 8 by
            their upper half. Of volumes, the values that become 0 and 1 in place of ``pixel / 255``; or "zscore": each
            channel of a volume gets mean 0 and standard deviation 1, without ``mean`` and ``std``.
        depth: first side of the windows of volumes; None of images.
        spacing: of volumes, mm between voxels along each axis, to which they are resampled; None: not at all.

    Raises:
        UsageError: a number out of range; mean or std of another number of channels; an unknown resize, or one that
            does not go with the other numbers.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_margin: int = 32
    width: int | None = None
    resize: str = "squash"
    short_side: int | None = None
    value_range: tuple[float, float] | str | None = None
    depth: int | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        optional = ("width", "short_side", "depth")
        for name in ("size", "channels", "resize_margin", *optional):
            value, high = getattr(self, name), MAX_INPUT_CHANNELS if name == "channels" else MAX_INPUT_SIDE
            low = 0 if name == "resize_margin" else 1
            if value is None and name in optional:
                continue
            if type(value) is not int or not low <= value <= high:
                raise UsageError(f"{name} (={shown(value)}) must be an integer of {low} to {high}")
        if self.resize not in RESIZE:
            raise UsageError(f"resize (={shown(self.resize)}) must be one of {', '.join(RESIZE)}")
        if (self.resize == "short_side") != (self.short_side is not None):
            raise UsageError(
                f"short_side (={self.short_side}) belongs to resize 'short_side' alone; resize is {self.resize!r}"
            )
        if (self.resize == "windows") != (self.depth is not None):
            raise UsageError(f"depth (={self.depth}) belongs to resize 'windows' alone; resize is {self.resize!r}")
        if self.resize in ("squash", "centre") and self.width not in (None, self.size):
            raise UsageError(f"width (={self.width}) must be that of size (={self.size}) for resize {self.resize!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != self.channels:
                raise UsageError(
                    f"{name} (={getattr(self, name)}) must have a number for each of {self.channels} channels"
                )
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(map(float, self.spacing)))
            if len(self.spacing) != 3 or not all(0 < one < math.inf for one in self.spacing):
                raise UsageError(f"spacing (={self.spacing}) must be three numbers above 0, in mm")
        if self.value_range is not None and not (self.value_range == "zscore" and self.depth is not None):
            object.__setattr__(self, "value_range", tuple(map(float, self.value_range)))
            if len(levels := self.levels or ()) != 2 or not levels[0] < levels[1]:
                raise UsageError(f"value_range (={self.value_range}) must be two numbers, the smaller first")
        if not all(map(math.isfinite, (*self.mean, *self.std, *(self.levels or ())))):
            raise UsageError(f"mean (={self.mean}), std (={self.std}) and value_range must be finite")
        if min(self.std) <= 0:
            raise UsageError(f"std (={self.std}) must be above 0")

    @classmethod
    def of(cls, model: nn.Module, size: int | None = None) -> "Preprocessing":
        """The preprocessing in the ``default_cfg`` of a model of ``create_model``, at its test size or ``size``.

        Raises:
            UsageError: the model has none.
        """
        config = getattr(model, "default_cfg", None)
        if not isinstance(config, dict) or "mean" not in config:
            raise UsageError(f"{type(model).__name__} does not say how its images are prepared; give preprocessing=")
        channels, test_size = (config.get("test_input_size") or config["input_size"])[::2]
        size, mean, std = size or test_size, config["mean"], config["std"]
        if isinstance(model, DenseNet):
            return cls(size, channels, mean, std, resize="none", resize_margin=0)
        return cls(size, channels, mean, std, resize=test_crop(config))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the network's input, of volumes (C, D, H, W)."""
        depth = () if self.depth is None else (self.depth,)
        return self.channels, *depth, self.size, self.width or self.size

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The value range where it is two numbers, which that of images always is."""
        return None if isinstance(self.value_range, str) else self.value_range


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file.

    Attributes:
        model: name of the network.
        classes: their names in the order of the logits, so also by the class numbers of pixels; None where they have
            none.
        precision: of weights and arithmetic; inputs and logits are float32 at any.
        batch: images per call where that is fixed.
        opset: of an ONNX file.
        normfree, torch: versions that wrote the file.
        task: "classification"; "multi-label", whose logits are for a sigmoid each; "regression"; "segmentation" or
            "depth", whose output is of each pixel.
        output: what the output is called: "logits", the largest one's place is the class number, "numbers", or
            "metres".
        shape: of the output for one image: (outputs,) or (outputs, H, W).
        targets: how the true answers of images are stored, to evaluate the file: ``mask_values`` and ``mask_ignored``
            of segmentation, ``target_mean`` and ``target_std`` of regression; by the names that recipes have for them.
    """

    model: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    precision: str
    batch: int | None
    opset: int | None
    normfree: str
    torch: str
    task: str = "classification"
    output: str = "logits"
    shape: tuple[int, ...] = ()
    targets: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_batch(self.batch, self.preprocessing.shape)

    def to_json(self) -> str:
        """One line of JSON; ``preprocessing`` spells out the resize."""
        content = dataclasses.asdict(self)
        known = {name: value for name, value in content["preprocessing"].items() if value is not None}
        content["preprocessing"] = known | RESIZE[self.preprocessing.resize]
        if not self.targets:  # earlier versions do not read it
            del content["targets"]
        return as_json(dict(format=FORMAT, **content))

    @classmethod
    def from_json(cls, text: str, origin: str) -> "Description":
        """Read what :meth:`to_json` wrote.

        Raises:
            UsageError: invalid, or of a later version; the message names ``origin``.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("written by another version of normfree")
            preprocessing = content.pop("preprocessing")
            known = RESIZE[preprocessing["resize"]]
            if {name: preprocessing.pop(name) for name in known} != known:
                raise ValueError("images are prepared in another way than this version knows")
            classes, shape, task = content.pop("classes"), content.pop("shape"), content.get("task", "classification")
            if not isinstance(content.get("targets", {}), dict):
                raise ValueError("targets must be an object")
            if task not in OUTPUTS or not isinstance(content["model"], str):
                raise ValueError("its model and task are none of normfree's")
            if (task in VECTORS) != (preprocessing["resize"] in ("squash", "centre")):
                raise ValueError(f"resize {preprocessing['resize']!r} is for another task than {task}")
            if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
                raise ValueError("shape must be a list of sizes")
            if classes is not None and (not isinstance(classes, list) or [len(classes)] != shape[:1]):
                raise ValueError("classes must be a list with a name for each output")
            return cls(
                preprocessing=Preprocessing(**preprocessing),
                classes=None if classes is None else tuple(map(str, classes)),
                shape=tuple(shape),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"{origin} has a description {KEY!r} that cannot be used: {reason}") from error

    def check_input(self, shape: Sequence[Any], origin: str) -> None:
        """Refuse a file whose network takes other images than its description says.

        Args:
            shape: of the network's input; a dimension of any size is no integer.

        Raises:
            UsageError: the shapes differ; the message names ``origin``.
        """
        expected = (self.batch, *self.preprocessing.shape)
        actual = tuple(side if type(side) is int else None for side in shape)
        if actual != expected:
            sizes = (" x ".join("N" if side is None else str(side) for side in sides) for sides in (expected, actual))
            raise UsageError(f"{origin} is described as taking images of {' and takes images of '.join(sizes)}")


@dataclass(frozen=True)
class Deployed:
    """An open exported file.

    Attributes:
        run: its function (N, C, H, W) -> (N, *shape) in float32.
        sealed: whether it has a checksum, which was right; files of earlier versions have none.
    """

    description: Description
    run: Callable[[Tensor], Tensor]
    sealed: bool = True


def deployed(description: Description, run: Callable[[Tensor], Tensor], origin: str, sealed: bool) -> Deployed:
    """An open file whose function checks each output against the description.

    Args:
        run: the file's function.
        origin: the file.
        sealed: see :class:`Deployed`.
    """

    def checked(images: Tensor) -> Tensor:
        try:
            output = run(images)
        except Exception as error:  # runtimes may raise any class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UsageError(f"{origin} cannot be run: {reason}") from error
        expected = (len(images), *description.shape)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected or output.dtype != torch.float32:
            given = f"{tuple(output.shape)} of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            raise UsageError(f"{origin} gives {given}; it is described as giving {expected} of torch.float32")
        return output

    return Deployed(description, checked, sealed)


def check_batch(batch: Any, shape: Sequence[int]) -> None:
    """Refuse a fixed number of images per call that is invalid, or too large for the memory.

    Args:
        shape: (C, H, W) of an image.

    Raises:
        UsageError: it is; the message names its value and the limits.
    """
    if batch is None:
        return
    high = min(MAX_BATCH_SIZE, max(1, MAX_INPUT_ELEMENTS // math.prod(shape)))
    if type(batch) is not int or not 1 <= batch <= high:
        sides = " x ".join(map(str, shape))
        raise UsageError(f"batch (={shown(batch)}) must be 1 to {high} for images of {sides}, or None for any number")


def check_classes(classes: Sequence[str] | None, outputs: int) -> tuple[str, ...] | None:
    """The names as a tuple.

    Raises:
        UsageError: not one for each output, one of them twice, or a string in their place.
    """
    if isinstance(classes, str):
        raise UsageError(f"classes (={classes!r}) must be a list of names, not one string")
    repeated = [name for name, count in Counter(classes or ()).items() if count > 1]
    if repeated:
        raise UsageError(
            f"classes has {', '.join(map(repr, repeated[:3]))} more than once; each output needs its own name"
        )
    if classes is not None and len(classes) != outputs:
        raise UsageError(f"classes has {len(classes)} names, the network has {outputs} outputs")
    return None if classes is None else tuple(classes)
