"""The ``task`` section of a recipe."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UsageError

# names of tasks; `normfree.tasks.register` adds to them
NAMES = ["classification", "segmentation", "depth", "detection", "regression", "volumes"]
MAX_WIDTH, MAX_REGIONS, MAX_RATIOS = 16384, 10_000, 16
# fields that are for detection only, with their defaults
DETECTION = dict(masks=True, anchor_scale=8.0, anchor_ratios=(0.5, 1.0, 2.0), proposals=1000, regions=512)


@dataclass
class TaskConfig:
    """What the network is trained for.

    Args:
        name: "classification"; "regression", numbers for each image, from a labels.csv; "segmentation", a class for
            each pixel; "volumes", a class for each voxel; "depth", metres for each pixel; "detection", boxes and masks
            of objects.
        labels: of classification, "single": one class per image; "multi": any number of classes per image, from a
            labels.csv (binary cross-entropy, summed over classes).
        label_smoothing: probability mass spread evenly over all classes; 0.1 in the papers' classification.
        loss: "softmax" is cross-entropy between classes; "sigmoid" is binary cross-entropy for each class, summed over
            classes, for many classes that overlap; classification only.
        class_weights: weight of the training loss of an image, by its class: "auto" is the inverse of the number of
            training images of the class, scaled to a mean of 1 over the training images; or a number per class, in
            the order of the classes; null: all 1. Evaluation uses no weights. Classification only.
        target_mean: of regression, mean of each number over the training images; null: computed, and stored in the run.
        target_std: of regression, their standard deviations; the network learns (number - mean) / std.
        head_width: channels of the head of segmentation (null: 256), of depth (null: half of the network's), of the
            pyramid and heads of detection (null: 256).
        masks: of detection, whether to predict a mask for each object (Mask R-CNN) or boxes only (Faster R-CNN).
        anchor_scale: of detection, side of a square anchor over the stride of its level; 8 in the papers.
        anchor_ratios: of detection, heights over widths of the anchors.
        proposals: of detection, number of regions per image that the second stage processes.
        regions: of detection, how many of them are sampled per image in training.
    """

    name: str = field(default="classification", metadata={"one_of": NAMES})
    labels: Literal["single", "multi"] = "single"
    label_smoothing: float = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    class_weights: Literal["auto"] | tuple[float, ...] | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None
    head_width: int | None = None
    masks: bool = True
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = 1000
    regions: int = 512

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UsageError(f"task.name (={self.name!r}) must be one of {', '.join(NAMES)}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"task.label_smoothing (={self.label_smoothing}) must be at least 0 and below 1")
        if self.head_width is not None and not 1 <= self.head_width <= MAX_WIDTH:
            raise UsageError(f"task.head_width (={self.head_width}) must be at least 1 and at most {MAX_WIDTH}")
        if self.loss != "softmax" and self.name != "classification":
            raise UsageError(f"task.loss (={self.loss!r}) is for classification; task.name is {self.name}")
        if self.label_smoothing and self.name in ("regression", "depth", "detection"):
            raise UsageError(f"task.label_smoothing (={self.label_smoothing}) must be 0 for {self.name}")
        if self.labels != "single" and self.name != "classification":
            raise UsageError(f"task.labels (={self.labels!r}) is for classification; task.name is {self.name}")
        self._check_class_weights()
        self._check_targets()
        self._check_detection()

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        if self.name != "classification":
            raise UsageError(f"task.class_weights (={weights!s:.80}) is for classification; task.name is {self.name}")
        if self.labels != "single":
            raise UsageError(f"task.class_weights (={weights!s:.80}) is for one class per image; task.labels is multi")
        if weights != "auto" and not all(0 < weight < math.inf for weight in weights):
            raise UsageError(f"task.class_weights (={list(weights)!s:.80}) must be numbers above 0")

    def _check_targets(self) -> None:
        mean, std = self.target_mean, self.target_std
        if (mean is None) != (std is None):
            raise UsageError("task.target_mean and task.target_std must both be set, or both be null")
        if mean is None or std is None:
            return
        if self.name != "regression":
            raise UsageError(f"task.target_mean (={list(mean)!s:.80}) is for regression; task.name is {self.name}")
        if len(mean) != len(std) or not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
            raise UsageError(
                f"task.target_std (={list(std)!s:.80}) must be numbers above 0, as many as task.target_mean has"
            )

    def _check_detection(self) -> None:
        for name in ("proposals", "regions"):
            if not 1 <= getattr(self, name) <= MAX_REGIONS:
                raise UsageError(f"task.{name} (={getattr(self, name)}) must be at least 1 and at most {MAX_REGIONS}")
        if not 0.1 <= self.anchor_scale <= 100:
            raise UsageError(f"task.anchor_scale (={self.anchor_scale}) must be from 0.1 to 100")
        ratios = self.anchor_ratios
        if not 1 <= len(ratios) <= MAX_RATIOS or not all(0.01 <= ratio <= 100 for ratio in ratios):
            raise UsageError(
                f"task.anchor_ratios (={list(ratios)!s:.80}) must be 1 to {MAX_RATIOS} numbers from 0.01 to 100"
            )
        for name, default in DETECTION.items():
            value = getattr(self, name)
            if self.name != "detection" and (tuple(value) if isinstance(value, list) else value) != default:
                raise UsageError(f"task.{name} (={value!s:.80}) is for detection; task.name is {self.name}")
