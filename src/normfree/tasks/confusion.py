"""Metrics of classifiers: accuracy, and for each class precision, recall, F1 and confusion."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Batch
from .majority import majority_result


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; a score is None if it is not defined.

    Attributes:
        images: number of images of this class.
        precision: fraction of the images predicted as this class that are of it; None if there are none.
        recall: fraction of the images of this class that are predicted as it; None if there are none.
        f1: harmonic mean of both, 0 if nothing is correct; None if there are no images of this class.
    """

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


class Accuracy:
    """Top-1, top-5 and cross-entropy over batches of (N, num_classes) logits.

    Args:
        classes: their number, 0 if it is unknown; with up to five there is no top-5, which would always be 100 %.
    """

    def __init__(self, classes: int = 0) -> None:
        self.classes = classes
        self.count = self.top1 = self.top5 = 0
        self.loss = 0.0

    @property
    def totals(self) -> list[float]:
        """What is added up over batches, and over processes."""
        return [self.count, self.top1, self.top5, self.loss]

    @totals.setter
    def totals(self, totals: list[float]) -> None:
        self.count, self.top1, self.top5 = map(int, totals[:3])
        self.loss = totals[3]

    def update(self, logits: Tensor, batch: Batch) -> None:
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        self.count += len(batch.labels)
        self.top1 += int(ranked[:, 0].sum())
        self.top5 += int(ranked.any(1).sum())
        self.loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()

    def compute(self) -> dict[str, float]:
        """Fractions, the mean loss, and the number of images they are over."""
        n = max(self.count, 1)
        top5 = {} if 0 < self.classes <= 5 else dict(top5=self.top5 / n)
        return dict(top1=self.top1 / n, **top5, loss=self.loss / n, images=self.count)


class Confusion(Accuracy):
    """Accuracy, and how often each class is predicted for each true class, over batches of (N, classes) logits.

    Args:
        classes: their number.
    """

    def __init__(self, classes: int):
        super().__init__(classes)
        self.counts: Counter[tuple[int, int]] = Counter()  # by (true class, predicted class)

    def update(self, logits: Tensor, batch: Batch) -> None:
        super().update(logits, batch)
        self.counts.update(zip(batch.labels.tolist(), logits.argmax(1).tolist(), strict=True))

    @property
    def parts(self) -> dict[str, Any]:
        """What this process holds."""
        return dict(totals=self.totals, counts=self.counts)

    def join(self, parts: Sequence[dict[str, Any]]) -> None:
        """Take what all processes hold."""
        self.totals = [sum(column) for column in zip(*(part["totals"] for part in parts), strict=True)]
        self.counts = sum((part["counts"] for part in parts), Counter())

    def compute(self) -> dict[str, float]:
        """As :class:`.Accuracy`, and ``balanced_accuracy``: the mean recall of the classes that there are images of."""
        recalls = [scores.recall for scores in self.per_class() if scores.recall is not None]
        return super().compute() | dict(balanced_accuracy=sum(recalls) / max(1, len(recalls)))

    def per_class(self) -> list[ClassScores]:
        """Scores of each class."""
        from sklearn.metrics import precision_recall_fscore_support  # a second to import

        if not self.counts:
            return [ClassScores(0, None, None, None)] * self.classes
        true, predicted = np.array(list(self.counts)).T
        options: dict[str, Any] = dict(
            labels=range(self.classes), sample_weight=list(self.counts.values()), zero_division=0
        )
        columns: Any = precision_recall_fscore_support(true, predicted, **options)
        rows, predicted_labels = [], set(predicted.tolist())
        columns_by_class = zip(*(column.tolist() for column in columns), strict=True)
        for label, (precision, recall, f1, images) in enumerate(columns_by_class):
            present = images > 0
            precision = precision if label in predicted_labels else None
            rows.append(ClassScores(int(images), precision, recall if present else None, f1 if present else None))
        return rows

    def matrix(self) -> Tensor:
        """(classes, classes) int64: number of images by true class and predicted class."""
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        for (true, predicted), count in self.counts.items():
            matrix[true, predicted] = count
        return matrix

    def without_images(self) -> list[int]:
        """The classes without images."""
        return sorted(set(range(self.classes)) - {true for true, _ in self.counts})

    def majority(self, names: Sequence[str]) -> str | None:
        """A sentence if the network is no better than always predicting the most frequent class, else None."""
        images, predictions = Counter[int](), Counter[int]()
        for (true, predicted), count in self.counts.items():
            images[true] += count
            predictions[predicted] += count
        if len(images) < 2:
            return None
        return majority_result(images, names, self.top1, next(iter(predictions)) if len(predictions) == 1 else None)
