"""What an exported file says about itself: which network, how its images are prepared, what its classes are called."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError

KEY, FORMAT = "normfree", 1  # the entry of a file's metadata, and the version of its content
RESIZE = dict(resize="squash", interpolation="bicubic", cubic_a=-0.5, antialias=False)  # the papers', for every file
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: squashed to (size + margin) squared, cropped to its centre, normalized.

    The resize is bicubic with a = -0.5, not antialiased, and ignores the aspect: the papers' evaluation. Then
    (pixel / 255 - mean) / std per channel.

    Args:
        size: side of the network's input in pixels.
        channels: 3 for red, green, blue; 1 for grey.
        resize_margin: pixels that the resized image is larger than ``size``.

    Raises:
        UsageError: a number out of range; mean or std of another number of channels.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_margin: int = 32

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("channels", 1), ("resize_margin", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name} (={value!r}) must be an integer of at least {least}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != self.channels:
                raise UsageError(
                    f"{name} (={getattr(self, name)}) must have a number for each of {self.channels} channels"
                )
        if min(self.std) <= 0:
            raise UsageError(f"std (={self.std}) must be above 0")

    @classmethod
    def of(cls, model: nn.Module, size: int | None = None) -> "Preprocessing":
        """From what a model of :func:`normfree.create_model` keeps about itself, at its test size or another.

        Raises:
            UsageError: the model keeps nothing about itself.
        """
        config = getattr(model, "default_cfg", None)
        if not isinstance(config, dict) or "mean" not in config:
            raise UsageError(f"{type(model).__name__} does not say how its images are prepared; give preprocessing=")
        channels, test_size = (config.get("test_input_size") or config["input_size"])[::2]
        return cls(size or test_size, channels, config["mean"], config["std"])


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file.

    Attributes:
        model: name of the network.
        classes: their names in the order of the logits; None where they have none.
        precision: of weights and arithmetic; inputs and logits are float32 at any.
        batch: images per call where that is fixed.
        opset: of an ONNX file.
        normfree, torch: versions that wrote the file.
    """

    model: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    precision: str
    batch: int | None
    opset: int | None
    normfree: str
    torch: str

    def to_json(self) -> str:
        """One line of JSON; ``preprocessing`` spells out the resize."""
        content = dataclasses.asdict(self)
        content["preprocessing"] |= RESIZE
        return json.dumps(dict(format=FORMAT, **content), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> "Description":
        """What :meth:`to_json` wrote.

        Raises:
            UsageError: not that, or of a later version; names ``origin``.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("written by another version of normfree")
            preprocessing = content.pop("preprocessing")
            if {name: preprocessing.pop(name) for name in RESIZE} != RESIZE:
                raise ValueError("images are prepared in another way than this version knows")
            classes = content.pop("classes")
            return cls(
                preprocessing=Preprocessing(**preprocessing),
                classes=None if classes is None else tuple(map(str, classes)),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{origin} has a description {KEY!r} that cannot be used: {error}") from error


@dataclass(frozen=True)
class Deployed:
    """An exported file, opened: its description, and its function (N, C, size, size) -> (N, outputs) in float32."""

    description: Description
    run: Callable[[Tensor], Tensor]


def check_classes(classes: Sequence[str] | None, outputs: int) -> tuple[str, ...] | None:
    """The names as a tuple.

    Raises:
        UsageError: not one for each output.
    """
    if classes is not None and len(classes) != outputs:
        raise UsageError(f"classes has {len(classes)} names, the network has {outputs} outputs")
    return None if classes is None else tuple(classes)
