"""Semantic segmentation: a class for each pixel (NF-ResNets, appendix H.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Batch, DataConfig, Source
from ..data.contents import check_masks
from ..data.dense import IGNORE
from ..data.pairs import VOC_CLASSES
from .config import TaskConfig
from .dense import DenseTask


class Segmentation(DenseTask):
    """Images and masks of a source, cross-entropy over pixels, mean intersection over union.

    Args:
        source, data, options: as :class:`.DenseTask`.
    """

    score, score_label = "miou", "test mean IoU"

    def __init__(self, source: Source, config: TaskConfig, data: DataConfig, **options):
        super().__init__(source, data, **options)
        self.classes, self.label_smoothing = len(source.classes), config.label_smoothing
        self.only: str | None = None  # the class of all test masks, if it is known

    def look(self, data: DataConfig) -> list[str]:
        fixed = tuple(self.source.classes) == VOC_CLASSES
        told, only = check_masks(self.source, fixed=fixed, allow_missing=data.allow_missing_classes)
        if only is not None:
            self.only, self.score_label = only, f"test IoU of {only!r}"
        return told

    def remark(self, score: float) -> str | None:
        """Where the test masks hold one class: that there is no mean."""
        return only_class(self.only) if self.only is not None else None

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean over images of their mean cross-entropy over pixels that are not ignored; logits (N, C, H, W).

        By images, so that the gradient of a batch is the mean of its parts'; an image that is all ignored counts as 0.
        """
        return pixel_entropy(logits, batch.targets, self.label_smoothing).mean()

    @torch.no_grad()
    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """Fraction of pixels that are right, summed over images, on the device: for the progress bar."""
        return fraction_right(logits, batch.targets).sum()

    def metrics(self) -> "Overlap":
        return Overlap(self.classes)


class Overlap:
    """Intersection over union, from a confusion matrix over batches of (N, classes, H, W) logits."""

    def __init__(self, classes: int):
        self.classes, self.images, self.loss = classes, 0, 0.0
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)  # truth, answer

    @property
    def totals(self) -> list[float]:
        """What is added up over batches, and over processes."""
        return [self.images, self.loss, *self.confusion.flatten().tolist()]

    @totals.setter
    def totals(self, totals: list[float]) -> None:
        self.images, self.loss = int(totals[0]), totals[1]
        self.confusion = torch.tensor(totals[2:], dtype=torch.float64).long().view(self.classes, self.classes)

    def update(self, logits: Tensor, batch: Batch) -> None:
        valid = batch.targets != IGNORE
        pairs = batch.targets[valid] * self.classes + logits.argmax(1)[valid]
        counts = torch.bincount(pairs, minlength=self.classes**2)
        self.confusion += counts.cpu().view(self.classes, self.classes)
        self.images += len(batch)
        self.loss += pixel_entropy(logits, batch.targets).sum().item()

    def per_class(self) -> list[float]:
        """Intersection over union of each class; NaN of a class that is neither in the masks nor in the answers."""
        together = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        return torch.where(union > 0, together / union, math.nan).tolist()

    def present(self) -> list[int]:
        """The classes that are in the masks."""
        return self.confusion.sum(1).nonzero()[:, 0].tolist()

    def compute(self) -> dict[str, float]:
        """Mean over the classes that there are, fraction of pixels right, mean loss, and the number of images."""
        known = [value for value in self.per_class() if not math.isnan(value)]
        pixels = max(1, int(self.confusion.sum()))
        return dict(
            miou=sum(known) / max(1, len(known)),
            pixel_accuracy=int(self.confusion.diagonal().sum()) / pixels,
            loss=self.loss / max(1, self.images),
            images=self.images,
        )


def only_class(name: str) -> str:
    """What must be said about a score of one class."""
    return f"the test masks hold {name!r} alone: there is no mean over classes"


def pixel_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the pixels of each image that are not ignored: (N,), in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    entropy = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)
    return entropy.flatten(1).sum(1) / _counted(targets)


def fraction_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Of the pixels of each image that are not ignored, those that are right: (N,)."""
    return (logits.argmax(1) == targets).flatten(1).sum(1) / _counted(targets)


def _counted(targets: Tensor) -> Tensor:
    """Pixels of each image that are not ignored, at least 1: (N,)."""
    return (targets != IGNORE).flatten(1).sum(1).clamp(min=1)
