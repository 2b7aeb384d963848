"""Collects a classifier's mistakes while it is evaluated."""

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, order=True)
class Mistake:
    """An image whose predicted class is not its label; ordered by the probability of that class.

    Attributes:
        probability: of the predicted class; of_truth: of the true one.
        said: the predicted class.
        index: of the image in its split.
    """

    probability: float
    index: int
    true: int
    said: int
    of_truth: float


class Mistakes:
    """A metric for :func:`normfree.training.evaluate`: counts all confusions, keeps the most confident mistakes.

    Args:
        count: mistakes to keep.
    """

    def __init__(self, count: int):
        self.count, self.kept = count, list[Mistake]()
        self.confusions: Counter[tuple[int, int]] = Counter()

    def update(self, logits: Tensor, batch: Any) -> None:
        """Take a batch with ``labels`` and ``indices`` (N,); logits (N, num_classes)."""
        probabilities = logits.float().softmax(1).nan_to_num()
        likeliest, said = probabilities.max(1)
        of_truth = probabilities.gather(1, batch.labels[:, None])[:, 0]
        columns = (likeliest, batch.indices, batch.labels, said, of_truth)
        for values in zip(*(column.tolist() for column in columns), strict=True):
            mistake = Mistake(*values)
            self.confusions[mistake.true, mistake.said] += 1
            if mistake.true != mistake.said and self.count:
                heapq.heappush(self.kept, mistake)
                if len(self.kept) > self.count:
                    heapq.heappop(self.kept)

    def compute(self) -> dict[str, int]:
        """Images seen, and how many of them are wrong."""
        wrong = sum(count for (true, said), count in self.confusions.items() if true != said)
        return dict(images=self.confusions.total(), wrong=wrong)

    @property
    def worst(self) -> list[Mistake]:
        """The mistakes that are kept, the most confident first."""
        return sorted(self.kept, reverse=True)
