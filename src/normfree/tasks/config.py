"""The ``task`` section of a recipe."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

MOST_WIDTH = 16384


@dataclass
class TaskConfig:
    """What the network is trained for.

    Args:
        name: "classification"; "segmentation", a class for each pixel; "depth", metres for each pixel.
        label_smoothing: probability mass spread evenly over all classes; 0.1 in the papers' classification.
        loss: "softmax" is cross-entropy between classes; "sigmoid" asks about each class by itself (binary
            cross-entropy, summed over classes), for many classes that overlap; classification only.
        head_width: channels of the head of segmentation (null: 256) or depth (null: half of the network's).
    """

    name: Literal["classification", "segmentation", "depth"] = "classification"
    label_smoothing: float = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    head_width: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"task.label_smoothing (={self.label_smoothing}) must be at least 0 and below 1")
        if self.head_width is not None and not 1 <= self.head_width <= MOST_WIDTH:
            raise UsageError(f"task.head_width (={self.head_width}) must be at least 1 and at most {MOST_WIDTH}")
        if self.loss != "softmax" and self.name != "classification":
            raise UsageError(f"task.loss (={self.loss!r}) is for classification; task.name is {self.name}")
        if self.label_smoothing and self.name == "depth":
            raise UsageError(f"task.label_smoothing (={self.label_smoothing}) must be 0 for depth")
