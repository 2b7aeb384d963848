"""Test images on the page of ``normfree report``: the network is run on all of them, and some are drawn."""

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
BATCH_SIZE = 64
PIXEL_BATCH_SIZE = 8  # for outputs per pixel, which are large for many classes


@dataclass(frozen=True)
class Look:
    """The test images of a run, and how many of them to show.

    Attributes:
        split: of the protocol that the task needs, see :mod:`normfree.data.splits`.
        weights: which of the run's weights the network has, as text.
        bar: wraps the batches to show progress.
    """

    trained: Trained
    split: Any
    device: torch.device
    count: int
    workers: int = 0
    weights: str = "weights"
    bar: Callable[[Iterable[Batch]], Iterable[Batch]] = iter

    def evaluate(self, metrics: Any, batch_size: int = BATCH_SIZE) -> tuple[dict[str, float], list[Unreadable]]:
        """The results of ``metrics`` over all images, and the images that cannot be read."""
        trained = self.trained
        loader = trained.task.loader(self.split, trained.transform, batch_size, workers=self.workers)
        return evaluate(trained.model, self.bar(loader), metrics, self.device)


@dataclass(frozen=True)
class Gallery:
    """The part of the page about test images.

    Attributes:
        introduction: the sentence in front of it.
        images: number of images that were evaluated.
        unreadable: images that could not be read.
        confusion: which classes are predicted for which, for classifiers.
    """

    shown: list[Example] | Overlays
    introduction: str
    images: int
    unreadable: list[Unreadable] = field(default_factory=list)
    confusion: Confusion | None = None


class Scored:
    """The metrics of a task, and a list of (score, index) with the score of each image."""

    def __init__(self, metrics: Any, score: Callable[[Any, Batch], Iterable[float]]):
        self.metrics, self.score = metrics, score
        self.images: list[tuple[float, int]] = []
        if hasattr(metrics, "answer"):
            self.answer = metrics.answer

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
    """Images with pictures of their predictions, at even distances from the worst to the best score.

    Args:
        score: from outputs and a batch to a number for each image.
        draw: from (score, index) of images and the metrics to pictures; images that have become unreadable are left
            out.
        words: what the scores are, as text.
    """
    scored = Scored(look.trained.task.metrics_of(look.trained), score)
    measured, unreadable = look.evaluate(scored, PIXEL_BATCH_SIZE)
    overlays, images = draw(spread(sorted(scored.images), look.count), scored.metrics), int(measured["images"])
    return Gallery(overlays, _introduction(len(overlays.shown), images, words), images, unreadable)


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items at even distances, including the first and the last."""
    if count >= len(items):
        return list(items)
    if count < 2:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def example(split: Split, index: int, caption: str, detail: str = "") -> Example | None:
    """The picture of an image with caption and name; None if it has become unreadable."""
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
