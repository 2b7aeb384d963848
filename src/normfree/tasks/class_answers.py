"""Predictions of one vector for each image: classes or numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .answers import Answers, Asked
from .trained import ReadyNetwork, vector_view_of

LIKELY = 0.5  # minimum probability of a predicted class in multi-label classification
MAX_COUNTED = 24  # classes in the summary


class Classes(Answers):
    """The most likely classes of each image.

    Args:
        network: from images to logits.
        top: how many classes.
        antialias: see :func:`.vector_view_of`.

    Raises:
        UsageError: the network needs another number of channels than image files have.
    """

    def __init__(self, network: ReadyNetwork, top: int = 5, *, antialias: bool = False):
        about = network.preprocessing
        assert about is not None  # every network with one output per image has it
        self.network, self.channels, self.value_range = network, about.channels, about.levels
        self.transform = vector_view_of(about, antialias=antialias)
        self.top, self.counts = top, Counter()

    def view(self, image: Tensor) -> Tensor:
        return self.transform(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Tensor:
        logits = self.network.run(seen)
        more = range(2, 1 + min(self.top, logits.shape[1]))
        self.columns = ["class", "probability", *(f"{name}{n}" for n in more for name in ("class", "probability"))]
        return logits

    def tell(self, item: Asked, answer: Tensor) -> dict[str, Any]:
        top = self.probabilities(answer)
        top = top.topk(min(self.top, len(top)))
        classes = [
            dict(name=self.network.label(index), index=index, probability=probability)
            for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        self.count(classes)
        return dict(classes=classes)

    def probabilities(self, answer: Tensor) -> Tensor:
        """Probability of each class, (K,), from logits (K,)."""
        return answer.softmax(0)

    def count(self, classes: Sequence[dict[str, Any]]) -> None:
        """Count the predictions for an image for the summary."""
        self.counts[classes[0]["name"]] += 1

    def lines(self, result: dict[str, Any]) -> list[str]:
        return [result["path"], *(f"  {c['probability']:7.2%}  {c['name']}" for c in result["classes"])]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [cell for one in result["classes"] for cell in (one["name"], round(one["probability"], 6))]

    def finish(self) -> list[str]:
        most_common = self.counts.most_common(MAX_COUNTED)
        lines = [f"  {count:7} {name}" for name, count in most_common]
        more = len(self.counts) - len(most_common)
        return lines + ([f"  and {more} more classes"] if more else [])


class Labels(Classes):
    """The most likely classes of each image, with independent probabilities (multi-label)."""

    def probabilities(self, answer: Tensor) -> Tensor:
        return answer.sigmoid()

    def count(self, classes: Sequence[dict[str, Any]]) -> None:
        self.counts.update(one["name"] for one in classes if one["probability"] >= LIKELY)


class Numbers(Classes):
    """The numbers of each image."""

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Tensor:
        numbers = self.network.run(seen)
        self.columns = [self.network.label(index) for index in range(numbers.shape[1])]
        return numbers

    def tell(self, item: Any, answer: Tensor) -> dict[str, Any]:
        return dict(numbers=dict(zip(self.columns, answer.tolist(), strict=True)))

    def lines(self, result: dict[str, Any]) -> list[str]:
        return [result["path"], *(f"  {value:12.6g}  {name}" for name, value in result["numbers"].items())]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [float(f"{value:.7g}") for value in result["numbers"].values()]

    def finish(self) -> list[str]:
        return []
