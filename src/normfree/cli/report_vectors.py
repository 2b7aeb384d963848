"""Test images that a network for several classes, or for numbers, is furthest from."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .trained import Trained
from .vectors import LIKELY

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

    def __init__(self, count: int, distance: Callable[[Tensor, Tensor], Tensor], words: Sequence[Callable]):
        self.count, self.distance, self.words, self.images = count, distance, words, 0
        self.kept = list[Far]()

    def update(self, output: Tensor, batch: Any) -> None:
        output, targets = output.float().cpu(), batch.targets.cpu()
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


def furthest(trained: Trained, count: int) -> tuple[Furthest, str]:
    """The metric for a trained network, and the sentence about what it keeps."""
    if trained.task == "multi-label":
        words = (lambda logits: _listed(logits.sigmoid() >= LIKELY, trained), lambda true: _listed(true > 0.5, trained))
        metric = Furthest(count, lambda logits, true: (logits.sigmoid() - true).abs().max(1).values, words)
        what = f"those of a probability of {LIKELY} or more"
        return metric, f"by the class it is most wrong about: the true classes \N{RIGHTWARDS ARROW} {what}."
    std = torch.tensor(trained.recipe.task.target_std)
    words = (lambda said: _numbers(said, trained), lambda true: _numbers(true, trained))
    metric = Furthest(count, lambda said, true: ((said - true).abs() / std).max(1).values, words)
    what = "by the largest error in standard deviations"
    return metric, f"{what}: the true numbers \N{RIGHTWARDS ARROW} what it says."


def _listed(there: Tensor, trained: Trained) -> str:
    names = [trained.names[index] for index in there.nonzero().flatten().tolist()]
    return (", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")) or "none"


def _numbers(values: Tensor, trained: Trained) -> str:
    shown = values.tolist()[:SHOWN]
    if len(trained.names) == 1:
        return f"{shown[0]:.4g}"
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(trained.names, shown, strict=False))
