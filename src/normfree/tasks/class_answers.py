"""What a network says about images whose answer is one vector: classes, or numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .answers import Answers, Asked
from .trained import ReadyNetwork, vector_view_of

LIKELY = 0.5  # a class of several is told where it has at least this probability
MOST_COUNTED = 24  # classes in the summary


class Classes(Answers):
    """The likeliest classes of each image.

    Args:
        network: from images to logits.
        top: how many classes.
        antialias: see :func:`.vector_view_of`.

    Raises:
        UsageError: a network of images with other channels than files have.
    """

    def __init__(self, network: ReadyNetwork, top: int = 5, *, antialias: bool = False):
        about = network.preprocessing
        assert about is not None  # every network with one answer for an image has it
        self.network, self.channels, self.value_range = network, about.channels, about.value_range
        self.transform = vector_view_of(about, antialias=antialias)
        self.top, self.counts = top, Counter()

    def view(self, image: Tensor) -> Tensor:
        return self.transform(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Tensor:
        logits = self.network.run(seen)
        more = range(2, 1 + min(self.top, logits.shape[1]))
        self.columns = ["class", "probability", *(f"{name}{n}" for n in more for name in ("class", "probability"))]
        return logits

    def tell(self, asked: Asked, answer: Tensor) -> dict[str, Any]:
        top = self.probabilities(answer)
        top = top.topk(min(self.top, len(top)))
        found = [
            dict(name=self.network.label(index), index=index, probability=probability)
            for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        self.count(found)
        return dict(classes=found)

    def probabilities(self, answer: Tensor) -> Tensor:
        """Of each class, (K,), from logits (K,)."""
        return answer.softmax(0)

    def count(self, found: Sequence[dict[str, Any]]) -> None:
        """Note for the summary what is said about an image."""
        self.counts[found[0]["name"]] += 1

    def lines(self, told: dict[str, Any]) -> list[str]:
        return [told["path"], *(f"  {c['probability']:7.2%}  {c['name']}" for c in told["classes"])]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [cell for one in told["classes"] for cell in (one["name"], round(one["probability"], 6))]

    def finish(self) -> list[str]:
        counted = self.counts.most_common(MOST_COUNTED)
        lines = [f"  {count:7} {name}" for name, count in counted]
        more = len(self.counts) - len(counted)
        return lines + ([f"  and {more} more classes"] if more else [])


class Labels(Classes):
    """The likeliest classes of each image with a probability each, whatever the others have."""

    def probabilities(self, answer: Tensor) -> Tensor:
        return answer.sigmoid()

    def count(self, found: Sequence[dict[str, Any]]) -> None:
        self.counts.update(one["name"] for one in found if one["probability"] >= LIKELY)


class Numbers(Classes):
    """The numbers of each image."""

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Tensor:
        said = self.network.run(seen)
        self.columns = [self.network.label(index) for index in range(said.shape[1])]
        return said

    def tell(self, asked: Any, answer: Tensor) -> dict[str, Any]:
        return dict(numbers=dict(zip(self.columns, answer.tolist(), strict=True)))

    def lines(self, told: dict[str, Any]) -> list[str]:
        return [told["path"], *(f"  {value:12.6g}  {name}" for name, value in told["numbers"].items())]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [float(f"{value:.7g}") for value in told["numbers"].values()]

    def finish(self) -> list[str]:
        return []
