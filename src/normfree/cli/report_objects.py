"""What a network for detection finds in test images, for the page of ``normfree report``."""

import math
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch

from ..data import Batch, Split, UnreadableImage
from ..models import Detections
from ..report import Colors, Overlay, Overlays, Table, percent
from ..report.drawing import class_colors, draw_objects, rgb_picture
from ..tasks.detection import AveragePrecision, share_found
from ..words import counted
from .report_looks import Way
from .trained import Trained, evaluation_transform

LEAST = 0.5  # score of what is drawn


def objects(trained: Trained, split: Split, device: torch.device) -> Way:
    """Of detection."""
    palette = class_colors(len(trained.names) + 1)[1:]

    def score(output: Sequence[Detections], batch: Batch) -> list[float]:
        pairs = zip(output, batch.targets, strict=True)
        return [
            share_found(found.without_masks().placed(true.size, true.original), true, least=LEAST)
            for found, true in pairs
        ]

    def draw(chosen: list[tuple[float, int]], metrics: AveragePrecision) -> Overlays:
        drawn = [_drawn(trained, split, index, score, device, palette) for score, index in chosen]
        drawn = [one for one in drawn if one is not None]
        key = Colors(list(trained.names), palette) if drawn else None
        return Overlays(drawn, key, [_by_class(metrics, trained.names, palette)])

    words = (
        "the objects found as a share of those found, missed and seen where there are none "
        f"(score of at least {LEAST:g}, overlap of at least half)"
    )
    return Way(score, draw, words)


def _drawn(
    trained: Trained, split: Split, index: int, score: float, device: torch.device, palette: np.ndarray
) -> Overlay | None:
    """None if it cannot be read any more."""
    view = evaluation_transform(trained)
    try:
        image, true = split.pair(index)
        seen, target = view(image, true)
    except UnreadableImage:
        return None
    with torch.inference_mode():
        found = trained.model(seen[None].to(device), [target])[0]
    found = found.chosen(found.scores >= LEAST).placed(target.size, target.original)
    panels = [
        ("image", rgb_picture(image)),
        ("truth", draw_objects(image, target.boxes, target.labels, target.masks, palette)),
        ("network", draw_objects(image, found.boxes, found.labels, found.masks, palette)),
    ]
    name = split.name(index)
    detail = f"{counted(len(target), 'object')}, {counted(len(found), 'detection')}\n" + "/".join(
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
