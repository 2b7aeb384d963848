"""Test images on the page of ``normfree report``: run the network over all, draw some."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..data import Batch, Split, Unreadable, UnreadableImage
from ..pictures.drawing import rgb_picture
from ..report import Confusion, Example, Overlays
from ..training import evaluate
from .trained import Trained

T = TypeVar("T")
BATCH = 64  # images
BATCH_OF_MAPS = 8  # maps of many classes are large


@dataclass(frozen=True)
class Look:
    """The test images of a run, and how many of them to show.

    Attributes:
        split: of the kind that the task has, see :mod:`normfree.data.splits`.
        weights: which of the run's weights the network has, in words.
        bar: around the batches, to show progress.
    """

    trained: Trained
    split: Any
    device: torch.device
    count: int
    workers: int = 0
    weights: str = "weights"
    bar: Callable[[Iterable[Batch]], Iterable[Batch]] = iter

    def evaluate(self, metrics: Any, batch: int = BATCH) -> tuple[dict[str, float], list[Unreadable]]:
        """What ``metrics`` finds over all images, and those that cannot be read."""
        trained = self.trained
        loader = trained.task.loader(self.split, trained.transform, batch, workers=self.workers)
        return evaluate(trained.model, self.bar(loader), metrics, self.device)


@dataclass(frozen=True)
class Gallery:
    """What stands on the page.

    Attributes:
        introduction: the sentence in front of it.
        images: how many were looked at.
        unreadable: images that could not be read.
        confusion: of a classifier, which classes it takes for which.
    """

    shown: list[Example] | Overlays
    introduction: str
    images: int
    unreadable: list[Unreadable] = field(default_factory=list)
    confusion: Confusion | None = None


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


def from_worst_to_best(
    look: Look,
    score: Callable[[Any, Batch], Iterable[float]],
    draw: Callable[[list[tuple[float, int]], Any], Overlays],
    words: str,
) -> Gallery:
    """Images with pictures of the network's answers, evenly from the worst to the best.

    Args:
        score: from outputs and a batch to a number for each image.
        draw: from (score, index) of images and the metrics to what is shown; images that cannot be read any more are
            left out.
        words: what the scores are.
    """
    scored = Scored(look.trained.task.metrics_of(look.trained), score)
    measured, unreadable = look.evaluate(scored, BATCH_OF_MAPS)
    overlays, images = draw(spread(sorted(scored.images), look.count), scored.metrics), int(measured["images"])
    return Gallery(overlays, _introduction(len(overlays.shown), images, words), images, unreadable)


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many of them at even distances, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count < 2:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def example(split: Split, index: int, caption: str, detail: str = "") -> Example | None:
    """An image with its picture, as it is stored, above its name; None if it cannot be read any more."""
    try:
        picture = _picture(split.image(index))
    except UnreadableImage:
        return None
    name = split.name(index)
    return Example(picture, caption, detail + "/".join(PurePath(name).parts[-2:]), name)


def _picture(image: Tensor) -> Image.Image:
    return rgb_picture(image).convert("L") if len(image) == 1 else rgb_picture(image)


def _introduction(shown: int, images: int, words: str) -> str:
    if not shown:
        return ""
    which = f"{shown} of {images:,} test images, evenly from the worst to the best" if shown < images else "All images"
    return f"{which}, with {words}."
