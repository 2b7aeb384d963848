"""Detection and instance segmentation: boxes, classes and masks of objects."""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Batch, DataConfig, HeldOut, Share, Source, UnreadableImage
from ..data.detection import ObjectTransform
from ..data.objects import open_objects
from ..data.target_checks import check_objects
from ..errors import UsageError
from ..models import Detections, detector
from ..models.detection import LOSSES
from ..pictures.drawing import class_colors, draw_objects, rgb_picture
from ..recipes import Recipe
from ..recipes.task import DETECTION, TaskConfig
from ..report import Colors, Overlay, Overlays, Table, percent
from ..words import counted
from .answers import Answers, PredictOptions
from .average_precision import AveragePrecision, needed_for_ap, share_found
from .gallery import Gallery, Look, from_worst_to_best
from .measured import Measured, named_rows
from .object_answers import ObjectAnswers
from .pairs import PairTask, refuse_mixing
from .statistics import image_statistics
from .task import refuse_masks, shape_of
from .trained import ReadyNetwork, Trained

MIN_SCORE = 0.5  # score


class Detection(PairTask):
    """Images with objects of a source, the losses of Faster and Mask R-CNN, COCO's average precision.

    Args:
        source, data, options: as :class:`.PairTask`; the source's targets are :class:`normfree.data.Objects`.
    """

    name = kind = "detection"
    purpose = "is for detection"
    options = frozenset({"score", "boxes", "annotations", "out"})
    score, score_label = "ap", "test box AP"

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        needed_for_ap()
        super().__init__(source, config, data, **options)
        self.masks = config.masks

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        refuse_masks(recipe)
        cls.refuse_held_out(recipe)
        data = recipe.data
        options: dict[str, Any] = dict(
            masks=recipe.task.masks, test_only=known is not None, value_range=data.value_range
        )
        return open_objects(source, data.channels, **options)

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        fields = {name: getattr(recipe.task, name) for name in DETECTION}
        backbone = recipe.model.build(num_classes=0, in_chans=recipe.data.channels)
        return detector(backbone, len(classes), width=recipe.task.head_width, **fields)

    @classmethod
    def from_recipe(cls, recipe: Recipe, source: Source[Any], share: Share = Share()) -> "Detection":  # noqa: B008 - immutable
        if recipe.train.compile:
            raise UsageError("train.compile (=True) is not for detection: the number of regions changes")
        return super().from_recipe(recipe, source, share)

    @classmethod
    def train_transform(cls, data: DataConfig) -> ObjectTransform:
        if data.crop != "none":
            raise UsageError(f"data.crop (={data.crop!r}) must be 'none' for detection: images are padded, not cropped")
        refuse_mixing(data, "detection")
        _, height, width = shape_of(data, data.image_size, data.image_width)
        options: dict[str, Any] = dict(scale=data.scale, flip=data.flip, color=data.color, train=True)
        return ObjectTransform(height, width, *image_statistics(data), data.short_side, **options)

    @classmethod
    def test_transform(cls, data: DataConfig) -> ObjectTransform:
        _, height, width = shape_of(data, data.test_size, data.test_width)
        return ObjectTransform(height, width, *image_statistics(data), data.short_side)

    @classmethod
    def metrics_of(cls, trained: Trained) -> AveragePrecision:
        return AveragePrecision(len(trained.classes), trained.recipe.task.masks)

    @classmethod
    def missing_targets(cls, metrics: AveragePrecision) -> str | None:
        return None if sum(metrics.objects()) else "an object"

    @classmethod
    def measured(cls, metrics: AveragePrecision, names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        return Measured(_lines(metrics, scores), scores, named_rows(names, "ap", metrics.per_class()))

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        if network.trained is None:
            raise UsageError(f"{options.network} is no run and no checkpoint, which networks for detection are")
        data = network.trained.recipe.data
        if options.size is not None:
            data.test_size, data.test_width = options.size, None
        return ObjectAnswers(network.trained, options)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        """Objects that are there beside those that are found, and how well each class is found."""
        names = look.trained.names
        palette = class_colors(len(names) + 1)[1:]

        def score(output: Sequence[Detections], batch: Batch) -> list[float]:
            pairs = zip(output, batch.target_objects, strict=True)
            return [
                share_found(item.without_masks().placed(true.size, true.original), true, min_score=MIN_SCORE)
                for item, true in pairs
            ]

        def draw(chosen: list[tuple[float, int]], metrics: AveragePrecision) -> Overlays:
            overlays = [item for score, index in chosen if (item := _overlay(look, index, score, palette))]
            key = Colors(list(names), palette) if overlays else None
            return Overlays(overlays, key, [_by_class(metrics, names, palette)])

        words = (
            "the objects found as a share of those found, missed and seen where there are none "
            f"(score of at least {MIN_SCORE:g}, overlap of at least half)"
        )
        return from_worst_to_best(look, score, draw, words)

    def check_target_files(self, data: DataConfig) -> list[str]:
        return check_objects(self.source)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over images of the sum of their losses, each a mean within the image; output (N, 6) of a detector."""
        return output[:, : len(LOSSES)].sum(1).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Share of the drawn regions whose class is right, summed over images: for the progress bar."""
        return output[:, -1].sum()

    def metrics(self) -> AveragePrecision:
        return AveragePrecision(self.classes, self.masks)


def _lines(metrics: AveragePrecision, scores: dict[str, float]) -> list[str]:
    """Boxes and masks."""
    words = dict(ap="AP", ap50="at overlap 0.5", ap75="0.75", ap_small="small", ap_medium="medium", ap_large="large")
    lines = []
    for kind, prefix in (("boxes", ""), ("masks", "mask_")) if metrics.masks else (("boxes", ""),):
        scores_text = [f"{word} {scores[prefix + name]:.2%}" for name, word in words.items() if prefix + name in scores]
        lines.append(f"{kind} {'   '.join(scores_text)}")
    return lines


def _overlay(look: Look, index: int, score: float, palette: np.ndarray) -> Overlay | None:
    """None if it cannot be read any more."""
    view, trained = look.trained.transform, look.trained
    try:
        image, true = look.split.pair(index)
        seen, target = view(image, true)
    except UnreadableImage:
        return None
    with torch.inference_mode():
        detections = trained.model(seen[None].to(look.device), [target])[0]
    detections = detections.chosen(detections.scores >= MIN_SCORE).placed(target.size, target.original)
    panels = [
        ("image", rgb_picture(image)),
        ("truth", draw_objects(image, target.boxes, target.labels, target.masks, palette)),
        ("network", draw_objects(image, detections.boxes, detections.labels, detections.masks, palette)),
    ]
    name = look.split.name(index)
    detail = f"{counted(len(target), 'object')}, {counted(len(detections), 'detection')}\n" + "/".join(
        PurePath(name).parts[-2:]
    )
    return Overlay(panels, percent(score, 1), detail, name)


def _by_class(metrics: AveragePrecision, names: Sequence[str], palette: np.ndarray) -> Table:
    """How well each class is found."""
    columns, objects = [metrics.per_class()], metrics.objects()
    if metrics.masks:
        columns.append(metrics.per_class("segm"))
    rows = []
    for i, name in enumerate(names):
        values = [percent(None if math.isnan(column[i]) else column[i], 1) for column in columns]
        rows.append([name, f"{objects[i]:,}", *values])
    headings = ["class", "objects", "AP of boxes", *(["AP of masks"] if metrics.masks else [])]
    note = "AP: COCO's average precision, a mean over overlaps of 0.5 to 0.95."
    return Table("Each class, over all test images", headings, rows, palette, note)
