"""Classification where an image has several classes, or none."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Batch, DataConfig, Source
from ..data.contents import check_labels
from .classification import Classification
from .config import TaskConfig


class MultiLabel(Classification):
    """Images with several classes of a source: binary cross-entropies, mean average precision.

    Args:
        source, config, data, options: as :class:`.Classification`; the source's splits have ``target(index)``, (K,)
            float32 of 0 and 1.
    """

    score, score_label = "map", "test mean average precision"
    vectors = True

    def __init__(self, source: Source, config: TaskConfig, data: DataConfig, **options):
        check_labels(source.test)
        super().__init__(source, config, data, **options)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropies summed over classes, a mean over images, in float32 at least; logits (N, K).

        Of mixed images the targets are mixed. Label smoothing s makes them ``(1 - s) * target + s / K``.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = (1 - self.label_smoothing) * batch.targets + self.label_smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1).mean()

    @torch.no_grad()
    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """Fraction of the classes that are right at a probability of 0.5, summed over images: for the progress bar."""
        return ((logits > 0) == (batch.targets > 0.5)).float().mean(1).sum()

    def metrics(self) -> "LabelPrecision":
        return LabelPrecision(self.classes)

    def remark(self, score: float) -> str | None:
        return None


class LabelPrecision:
    """Average precision of each class over batches of (N, classes) logits, as scikit-learn computes it."""

    def __init__(self, classes: int):
        self.classes, self.loss = classes, 0.0
        self.order, self.scores, self.targets = list[int](), list[Tensor](), list[Tensor]()

    def update(self, logits: Tensor, batch: Batch) -> None:
        logits = logits.float()
        entropies = F.binary_cross_entropy_with_logits(logits.double(), batch.targets.double(), reduction="sum")
        self.loss += entropies.item()
        self.order += batch.indices.tolist()
        self.scores.append(logits.cpu())
        self.targets.append(batch.targets.bool().cpu())

    @property
    def parts(self) -> dict[str, list | float]:
        """What this process holds."""
        return dict(order=self.order, scores=self.scores, targets=self.targets, loss=self.loss)

    def join(self, parts: Sequence[dict[str, list | float]]) -> None:
        """Take what all processes hold."""
        for name in ("order", "scores", "targets"):
            setattr(self, name, [entry for part in parts for entry in part[name]])
        self.loss = sum(part["loss"] for part in parts)

    def compute(self) -> dict[str, float]:
        """Mean over the classes that occur, mean loss, and the number of images."""
        known = [value for value in self.per_class() if not math.isnan(value)]
        images = len(self.order)
        return dict(map=sum(known) / max(1, len(known)), loss=self.loss / max(1, images), images=images)

    def images(self) -> list[int]:
        """How many there are of each class."""
        return torch.cat(self.targets).sum(0).tolist() if self.targets else [0] * self.classes

    def per_class(self) -> list[float]:
        """Average precision of each class; NaN of one that no image has."""
        from sklearn.metrics import average_precision_score  # a second to import

        if not self.order:
            return [math.nan] * self.classes
        scores, targets = torch.cat(self.scores).numpy(), torch.cat(self.targets).numpy()
        columns = zip(targets.T, scores.T, strict=True)
        return [float(average_precision_score(*both)) if both[0].any() else math.nan for both in columns]
