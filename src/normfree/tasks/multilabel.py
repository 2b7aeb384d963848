"""Classification where an image has several classes, or none."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Batch, DataConfig, Source
from ..data.target_checks import check_labels
from ..errors import UsageError
from ..recipes.task import TaskConfig
from .answers import Answers, PredictOptions
from .class_answers import LIKELY, Labels
from .classification import VectorTask
from .furthest import furthest_from_truth, names_of
from .gallery import Gallery, Look
from .measured import Measured, named_rows, over_classes
from .trained import ReadyNetwork, Trained


class MultiLabel(VectorTask):
    """Images with several classes of a source: binary cross-entropies, mean average precision.

    Args:
        source, config, data, options: as :class:`.VectorTask`; the source's splits have ``target(index)``, (K,)
            float32 of 0 and 1.
    """

    name, kind = "classification", "multi-label"
    purpose = "classifies images"
    answers_by = "classes"
    targets = "vectors"
    output = "logits"
    options = frozenset({"top", "antialias"})
    score, score_label = "map", "test mean average precision"

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        check_labels(source.test)
        refuse_sampler(data)
        super().__init__(source, config, data, **options)
        self.label_smoothing = config.label_smoothing

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        check_labels(source.test)

    @classmethod
    def metrics_of(cls, trained: Trained) -> "LabelPrecision":
        return LabelPrecision(len(trained.classes))

    @classmethod
    def missing_targets(cls, metrics: "LabelPrecision") -> str | None:
        return None if any(metrics.images()) else "a class"

    @classmethod
    def measured(cls, metrics: "LabelPrecision", names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        line = f"mean average precision {scores['map']:.2%}   loss {scores['loss']:.4f}"
        images = metrics.images()
        rows = zip(named_rows(names, "ap", metrics.per_class()), images, strict=True)
        missing = [name for name, count in zip(names, images, strict=True) if not count]
        notes = [note] if (note := over_classes(missing, len(names))) else []
        rows = [dict(name=row["name"], images=count, ap=row["ap"]) for row, count in rows]
        return Measured([line], scores, rows, notes=notes)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return Labels(network, options.top or 5, antialias=options.antialias)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        names = look.trained.names
        words = (lambda logits: names_of(logits.sigmoid() >= LIKELY, names), lambda true: names_of(true > 0.5, names))
        what = "by the class it is most wrong about: the true classes \N{RIGHTWARDS ARROW} those of a probability of "
        return furthest_from_truth(
            look, lambda logits, true: (logits.sigmoid() - true).abs().max(1).values, words, f"{what}{LIKELY} or more."
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropies summed over classes, a mean over images, in float32 at least; output (N, K).

        Of mixed images the targets are mixed. Label smoothing s makes them ``(1 - s) * target + s / K``.
        """
        output = output if output.dtype == torch.float64 else output.float()
        targets = (1 - self.label_smoothing) * batch.target_tensor + self.label_smoothing / output.shape[1]
        return F.binary_cross_entropy_with_logits(output, targets.to(output.dtype), reduction="none").sum(1).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Fraction of the classes that are right at a probability of 0.5, summed over images: for the progress bar."""
        return ((output > 0) == (batch.target_tensor > 0.5)).float().mean(1).sum()

    def metrics(self) -> "LabelPrecision":
        return LabelPrecision(self.classes)


def refuse_sampler(data: DataConfig) -> None:
    """Refuse ``data.sampler``, which is for classification with one class per image."""
    if data.sampler != "shuffled":
        raise UsageError(f"data.sampler (={data.sampler!r}) is for classification with one class per image")


class LabelPrecision:
    """Average precision of each class over batches of (N, classes) logits, as scikit-learn computes it."""

    def __init__(self, classes: int):
        self.classes, self.loss = classes, 0.0
        self.order, self.scores, self.targets = list[int](), list[Tensor](), list[Tensor]()

    def update(self, logits: Tensor, batch: Batch) -> None:
        logits = logits.float()
        entropies = F.binary_cross_entropy_with_logits(logits.double(), batch.target_tensor.double(), reduction="sum")
        self.loss += entropies.item()
        self.order += batch.indices.tolist()
        self.scores.append(logits.cpu())
        self.targets.append(batch.target_tensor.bool().cpu())

    @property
    def parts(self) -> dict[str, Any]:
        """What this process holds."""
        return dict(order=self.order, scores=self.scores, targets=self.targets, loss=self.loss)

    def join(self, parts: Sequence[dict[str, Any]]) -> None:
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
