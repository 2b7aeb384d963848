"""Test images whose answers are furthest from the truth, for the page of ``normfree report``."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .gallery import Gallery, Look, example

SHOWN = 6  # classes or numbers in a caption


@dataclass(frozen=True, order=True)
class Far:
    """An image, ordered by how far the answer is from the truth.

    Attributes:
        index: of the image in its split.
        said, true: in words.
    """

    distance: float
    index: int
    said: str
    true: str


class Furthest:
    """A metric for :func:`normfree.training.evaluate`: keeps the images whose answers are furthest from the truth.

    Args:
        count: images to keep.
        distance: from outputs and targets (N, K) to (N,).
        words: of an output, and of a target, (K,).
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
        for distance, index, one, true in zip(distances, batch.indices.tolist(), output, targets, strict=True):
            if self.count:
                heapq.heappush(self.kept, Far(distance, index, self.words[0](one), self.words[1](true)))
                if len(self.kept) > self.count:
                    heapq.heappop(self.kept)

    def compute(self) -> dict[str, int]:
        """Images seen."""
        return dict(images=self.images)

    @property
    def worst(self) -> list[Far]:
        """The furthest first."""
        return sorted(self.kept, reverse=True)


def furthest_from_truth(
    look: Look, distance: Callable[[Tensor, Tensor], Tensor], words: Sequence[Callable[[Tensor], str]], what: str
) -> Gallery:
    """The images that a network is furthest from.

    Args:
        distance, words: as of :class:`Furthest`.
        what: the end of the sentence about them.
    """
    metric = Furthest(look.count, distance, words)
    measured, unreadable = look.evaluate(metric)
    captions = ((one.index, f"{one.true} \N{RIGHTWARDS ARROW} {one.said}") for one in metric.worst)
    shown = [one for index, caption in captions if (one := example(look.split, index, caption))]
    said = f"Of {measured['images']:,} test images, the {len(shown)} that the {look.weights} are furthest from, {what}"
    return Gallery(shown, said if shown else "", int(measured["images"]), unreadable)


def names_of(there: Tensor, names: Sequence[str]) -> str:
    """The first classes of (K,) bool."""
    places: list[int] = there.nonzero().flatten().tolist()
    listed = [names[index] for index in places]
    return (", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")) or "none"


def numbers_of(values: Tensor, names: Sequence[str]) -> str:
    """The first of (K,) numbers."""
    shown = values.tolist()[:SHOWN]
    if len(names) == 1:
        return f"{shown[0]:.4g}"
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, shown, strict=False))
