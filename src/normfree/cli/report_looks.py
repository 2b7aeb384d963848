"""Test images that a network is shown for the page of ``normfree report``: the worst, the best, and some in between."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Batch, Loader, Split, Unreadable
from ..report import Overlays
from ..training import evaluate
from .eval import metrics_of
from .trained import Trained, evaluation_transform

BATCH = 8  # images; maps of many classes are large


@dataclass(frozen=True)
class Looked:
    """What stands on the page, the line in front of it, images that were looked at, and those that are unreadable."""

    shown: Overlays
    introduction: str
    images: int
    unreadable: list[Unreadable]


@dataclass(frozen=True)
class Way:
    """How images of a task are looked at.

    Attributes:
        score: from outputs and a batch to a number for each image.
        draw: from (score, index) of images and the metrics to what is shown; images that cannot be read any more are
            left out.
        words: what the scores are.
    """

    score: Callable[[Any, Batch], Iterable[float]]
    draw: Callable[[list[tuple[float, int]], Any], Overlays]
    words: str


class Scored:
    """The metrics of a task, and a score of each image by itself: (score, index)."""

    def __init__(self, metrics: Any, score: Callable[[Any, Batch], Iterable[float]]):
        self.metrics, self.score = metrics, score
        self.images: list[tuple[float, int]] = []

    def update(self, output: Any, batch: Batch) -> None:
        self.metrics.update(output, batch)
        self.images += zip(self.score(output, batch), batch.indices.tolist(), strict=True)

    def compute(self) -> dict[str, float]:
        return self.metrics.compute()


def look(
    trained: Trained,
    split: Split,
    device: torch.device,
    count: int,
    workers: int,
    bar: Callable[[Iterable], Iterable],
    way: Way,
) -> Looked:
    """Run a network over test images; draw some of them, evenly from the worst to the best.

    Args:
        count: images to draw.
        bar: around the batches.
    """
    scored = Scored(metrics_of(trained), way.score)
    loader = Loader(split, evaluation_transform(trained), BATCH, workers=workers, pairs=True)
    measured, unreadable = evaluate(trained.model, bar(loader), scored, device)
    overlays, images = way.draw(spread(sorted(scored.images), count), scored.metrics), measured["images"]
    return Looked(overlays, _said(len(overlays.shown), images, way.words), images, unreadable)


def spread(items: Sequence, count: int) -> list:
    """So many of them at even distances, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count < 2:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _said(shown: int, images: int, words: str) -> str:
    if not shown:
        return ""
    which = f"{shown} of {images:,} test images, evenly from the worst to the best" if shown < images else "All images"
    return f"{which}, with {words}."
