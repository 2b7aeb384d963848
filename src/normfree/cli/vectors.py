"""What a network says about images that have several classes, or numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .classes import Classes

LIKELY = 0.5  # a class of at least this probability is said


class Labels(Classes):
    """The likeliest classes of each image with a probability each, whatever the others have."""

    def probabilities(self, answer: Tensor) -> Tensor:
        return answer.sigmoid()

    def count(self, found: Sequence[dict[str, Any]]) -> None:
        self.counts.update(one["name"] for one in found if one["probability"] >= LIKELY)


class Numbers(Classes):
    """The numbers of each image."""

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[Tensor]:
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
