"""What a network for detection finds in test images, for the page of ``normfree report``."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath

import torch
from torch import Tensor

from ..data import Batch, Loader, Objects, Split, UnreadableImage
from ..models import Detections
from ..report import Colors, Overlay, Overlays, Table, percent
from ..report.drawing import class_colors, draw_objects, rgb_picture
from ..tasks.detection import AveragePrecision, share_found
from ..training import evaluate
from .eval import metrics_of
from .report_pixels import Looked, spread
from .trained import Trained, evaluation_transform

BATCH = 8  # images
LEAST = 0.5  # score of what is drawn


class Scored:
    """The metrics, and the share of objects found of each image by itself."""

    def __init__(self, metrics: AveragePrecision):
        self.metrics, self.images = metrics, []
        self.objects = torch.zeros(metrics.classes, dtype=torch.int64)

    def update(self, output: Sequence[Detections], batch: Batch) -> None:
        self.metrics.update(output, batch)
        for found, true, index in zip(output, batch.targets, batch.indices.tolist(), strict=True):
            placed = found.chosen(slice(None)).placed(true.size, true.original)
            self.images.append((share_found(placed, _here(true), least=LEAST), index))
            self.objects += torch.bincount(true.labels[~true.crowd].cpu(), minlength=len(self.objects))

    def compute(self) -> dict[str, float]:
        return self.metrics.compute()


def look_at_objects(
    trained: Trained,
    split: Split,
    device: torch.device,
    count: int,
    workers: int,
    shown: Callable[[Iterable], Iterable],
) -> Looked:
    """Run a network over test images; draw some of them, evenly from the worst to the best.

    Args:
        count: images to draw.
        shown: a bar around the batches.
    """
    scored = Scored(metrics_of(trained))
    loader = Loader(split, evaluation_transform(trained), BATCH, workers=workers, pairs=True)
    measured, unreadable = evaluate(trained.model, shown(loader), scored, device)
    palette = class_colors(len(trained.names) + 1)[1:]
    drawn = [
        _drawn(trained, split, index, score, device, palette) for score, index in spread(sorted(scored.images), count)
    ]
    drawn = [one for one in drawn if one is not None]
    key = Colors(list(trained.names), palette) if drawn else None
    images = measured["images"]
    return Looked(
        Overlays(drawn, key, [_by_class(scored, trained.names)]), _said(len(drawn), images), images, unreadable
    )


def _here(true: Objects) -> Objects:
    """Without masks, on the CPU: boxes are matched."""
    return Objects(
        true.boxes.cpu(), true.labels.cpu(), true.crowd.cpu(), true.areas.cpu(), None, true.size, true.original
    )


def _said(shown: int, images: int) -> str:
    if not shown:
        return ""
    which = f"{shown} of {images:,} test images, evenly from the worst to the best" if shown < images else "All images"
    return (
        f"{which}, with the objects found as a share of those found, missed and seen where there are none "
        f"(score of at least {LEAST:g}, overlap of at least half)."
    )


def _drawn(
    trained: Trained, split: Split, index: int, score: float, device: torch.device, palette: Tensor
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
    detail = f"{len(target)} objects, {len(found)} found\n" + "/".join(PurePath(name).parts[-2:])
    return Overlay(panels, percent(score, 1), detail, name)


def _by_class(scored: Scored, names: Sequence[str]) -> Table:
    """How well each class is found."""
    metrics = scored.metrics
    columns = [metrics.per_class(), *([metrics.per_class("segm")] if metrics.masks else [])]
    rows = []
    for i, name in enumerate(names):
        values = [percent(None if math.isnan(column[i]) else column[i], 1) for column in columns]
        rows.append([name, f"{int(scored.objects[i]):,}", *values])
    headings = ["class", "objects", "AP of boxes", *(["AP of masks"] if metrics.masks else [])]
    note = "AP: COCO's average precision, a mean over overlaps of 0.5 to 0.95."
    return Table("Each class, over all test images", headings, rows, class_colors(len(names) + 1)[1:], note)
