"""Test images whose predictions are furthest from the truth, for the page of ``normfree report``."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .gallery import Gallery, Look, example

MAX_SHOWN = 6  # classes or numbers in a caption


@dataclass(frozen=True, order=True)
class Far:
    """An image and its prediction, ordered by the distance of the prediction from the truth.

    Attributes:
        index: of the image in its split.
        predicted, true: as text.
    """

    distance: float
    index: int
    predicted: str
    true: str


class Furthest:
    """A metric for :func:`normfree.training.evaluate`: keeps the images whose predictions are furthest from the truth.

    Args:
        count: number of images to keep.
        distance: from outputs and targets (N, K) to (N,).
        words: two functions, from an output (K,) and from a target (K,) to text.
    """

    def __init__(
        self, count: int, distance: Callable[[Tensor, Tensor], Tensor], words: Sequence[Callable[[Tensor], str]]
    ):
        self.count, self.distance, self.words, self.images = count, distance, words, 0
        self.kept = list[Far]()

    def update(self, output: Tensor, batch: Any) -> None:
        output, targets = output.float().cpu(), batch.target_tensor.cpu()
        distances = self.distance(output, targets).nan_to_num().tolist()
        self.images += len(batch)
        for distance, index, predicted, true in zip(distances, batch.indices.tolist(), output, targets, strict=True):
            if self.count:
                heapq.heappush(self.kept, Far(distance, index, self.words[0](predicted), self.words[1](true)))
                if len(self.kept) > self.count:
                    heapq.heappop(self.kept)

    def compute(self) -> dict[str, int]:
        """The number of images."""
        return dict(images=self.images)

    @property
    def worst(self) -> list[Far]:
        """The furthest first."""
        return sorted(self.kept, reverse=True)


def furthest_from_truth(
    look: Look, distance: Callable[[Tensor, Tensor], Tensor], words: Sequence[Callable[[Tensor], str]], what: str
) -> Gallery:
    """The images with the largest distance between prediction and truth.

    Args:
        distance, words: as for :class:`Furthest`.
        what: the end of the sentence about them.
    """
    metric = Furthest(look.count, distance, words)
    measured, unreadable = look.evaluate(metric)
    captions = ((one.index, f"{one.true} \N{RIGHTWARDS ARROW} {one.predicted}") for one in metric.worst)
    shown = [one for index, caption in captions if (one := example(look.split, index, caption))]
    text = f"Of {measured['images']:,} test images, the {len(shown)} that the {look.weights} are furthest from, {what}"
    return Gallery(shown, text if shown else "", int(measured["images"]), unreadable)


def names_of(present: Tensor, names: Sequence[str]) -> str:
    """The names of the classes in (K,) bool, at most ``MAX_SHOWN``, as text."""
    labels: list[int] = present.nonzero().flatten().tolist()
    shown = ", ".join(names[label] for label in labels[:MAX_SHOWN])
    return shown + (", ..." if len(labels) > MAX_SHOWN else "") or "none"


def numbers_of(values: Tensor, names: Sequence[str]) -> str:
    """(K,) numbers with their names, at most ``MAX_SHOWN``, as text."""
    shown = values.tolist()[:MAX_SHOWN]
    if len(names) == 1:
        return f"{shown[0]:.4g}"
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, shown, strict=False))
