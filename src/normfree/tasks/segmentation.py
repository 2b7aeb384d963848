"""Semantic segmentation: a class for each pixel (NF-ResNets, appendix H.1)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, DataConfig, Source
from ..data.masks import MaskValues
from ..data.pairs import VOC_CLASSES
from ..data.pixels import IGNORE
from ..data.target_checks import check_masks, check_test_masks
from ..errors import UsageError
from ..models import UNet, segmenter
from ..pictures.drawing import class_colors, draw_mask
from ..recipes import Recipe
from ..recipes.task import TaskConfig
from ..report import Colors, Overlay, Overlays, Table, percent
from .answers import Answers, PredictOptions
from .gallery import Gallery, Look, from_worst_to_best
from .measured import Measured, named_rows
from .pairs import PixelTask
from .pixel_answers import MaskAnswers, pixels_of_network
from .pixel_gallery import AnsweredImage, answered, overlay
from .trained import ReadyNetwork, Trained


class Segmentation(PixelTask):
    """Images and masks of a source, cross-entropy over pixels, mean intersection over union.

    Args:
        source, data, options: as :class:`.PairTask`.
    """

    name = kind = "segmentation"
    purpose = "is for segmentation"
    output = "logits"
    options = frozenset({"masks", "out"})
    score, score_label = "miou", "test mean IoU"

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        super().__init__(source, config, data, **options)
        self.label_smoothing = config.label_smoothing
        self.only: str | None = None  # the class of all test masks, if it is known

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        if recipe.model.is_unet:
            return unet_of(recipe, classes, 2)
        return segmenter(cls.build_backbone(recipe), len(classes), width=recipe.task.head_width)

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        if not data.allow_missing_classes:
            check_test_masks(source)

    @classmethod
    def metrics_of(cls, trained: Trained) -> "Overlap":
        return Overlap(len(trained.classes))

    @classmethod
    def missing_targets(cls, metrics: "Overlap") -> str | None:
        return None if metrics.confusion.any() else "a pixel of a class"

    @classmethod
    def measured(cls, metrics: "Overlap", names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        rows, notes, what, value = named_rows(names, "iou", metrics.per_class()), [], "mean IoU", scores["miou"]
        if len(metrics.present()) == 1:
            (only_class,) = metrics.present()
            what, value = f"IoU of {names[only_class]!r}", metrics.per_class()[only_class]
            notes = [only_class_note(names[only_class])]
        line = f"{what} {value:.2%}   pixels {scores['pixel_accuracy']:.2%}   loss {scores['loss']:.4f}"
        return Measured([line], scores, rows, notes=notes)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        values = MaskValues(len(network.classes or ()))
        if network.trained is not None:
            data = network.trained.recipe.data
            values = MaskValues(len(network.trained.classes), data.mask_values, data.mask_ignored)
        return MaskAnswers(pixels_of_network(network, options), values, options)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        """Masks over their images, and how well each class is found."""
        names = look.trained.names

        def draw(chosen: list[tuple[float, int]], metrics: Overlap) -> Overlays:
            return Overlays(*_masks(answered(look, chosen), names), [_by_class(metrics, names)])

        def score(output: Tensor, batch: Batch) -> list[float]:
            return fraction_right(output, batch.target_tensor).tolist()

        return from_worst_to_best(look, score, draw, "the share of the pixels right")

    def check_target_files(self, data: DataConfig) -> list[str]:
        fixed = tuple(self.source.classes) == VOC_CLASSES
        notes, only_class = check_masks(self.source, fixed=fixed, allow_missing=data.allow_missing_classes)
        if only_class is not None:
            self.only, self.score_label = only_class, f"test IoU of {only_class!r}"
        return notes

    def score_note(self, score: float) -> str | None:
        """Where the test masks hold one class: that there is no mean."""
        return only_class_note(self.only) if self.only is not None else None

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over images of their mean cross-entropy over pixels that are not ignored; output (N, C, H, W).

        By images, so that the gradient of a batch is the mean of its parts'; an image that is all ignored counts as 0.
        """
        return pixel_entropy(output, batch.target_tensor, self.label_smoothing).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Fraction of pixels that are right, summed over images, on the device: for the progress bar."""
        return fraction_right(output, batch.target_tensor).sum()

    def metrics(self) -> "Overlap":
        return Overlap(self.classes)


def unet_of(recipe: Recipe, classes: Sequence[str], dims: int) -> UNet:
    """The U-Net of a recipe for these classes.

    Raises:
        UsageError: a head's width, which U-Nets do not have; a network of other dimensions.
    """
    if recipe.task.head_width is not None:
        raise UsageError(f"task.head_width (={recipe.task.head_width}) must be null for {recipe.model.name}, a U-Net")
    model = recipe.model.build_unet(num_classes=len(classes), in_chans=recipe.data.channels)
    if model.dims != dims:
        what = "images" if dims == 2 else "volumes"
        raise UsageError(f"{recipe.model.name} has {model.dims} dimensions; task.name {recipe.task.name} has {what}")
    return model


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
        targets = batch.target_tensor
        valid = targets.ne(IGNORE)
        pairs = targets[valid] * self.classes + logits.argmax(1)[valid]
        counts = torch.bincount(pairs, minlength=self.classes**2)
        self.confusion += counts.cpu().view(self.classes, self.classes)
        self.images += len(batch)
        self.loss += pixel_entropy(logits, targets).sum().item()

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


def only_class_note(name: str) -> str:
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


def _masks(images: Sequence[AnsweredImage], names: Sequence[str]) -> tuple[list[Overlay], Colors]:
    """Masks over their images, and the colours of the classes that are in any."""
    palette = class_colors(len(names))
    overlays, present = [], torch.zeros(len(names), dtype=torch.bool)
    for item in images:
        answer = item.answer.argmax(0)
        for mask in (item.truth, answer):
            present[mask[mask < len(names)]] = True
        truth, predicted = (draw_mask(item.image, mask, palette) for mask in (item.truth, answer))
        overlays.append(overlay(item, truth, predicted))
    known: list[int] = present.nonzero()[:, 0].tolist()
    return overlays, Colors([names[i] for i in known], palette[known])


def _by_class(metrics: Overlap, names: Sequence[str]) -> Table:
    """How well each class is found, and what it is taken for."""
    confusion = metrics.confusion.double()
    true, predicted, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    rows = []
    for i, (name, value) in enumerate(zip(names, metrics.per_class(), strict=True)):
        wrong = confusion[i].clone()
        wrong[i] = 0
        other = f"{names[int(wrong.argmax())]} {percent((wrong.max() / true[i]).item(), 1)}" if wrong.any() else ""
        parts = [_share(true[i], confusion.sum()), _share(right[i], true[i]), _share(right[i], predicted[i])]
        rows.append([name, percent(None if math.isnan(value) else value, 1), *parts, other])
    headings = ["class", "IoU", "of all pixels", "found", "right where said", "taken for most"]
    note = "IoU: pixels that are the class and are said to be, of those that are one or the other."
    return Table("Each class, over all test images", headings, rows, class_colors(len(names)), note)


def _share(part: Tensor, whole: Tensor) -> str:
    return percent((part / whole).item() if whole > 0 else None, 1)
