"""Image classification."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import (
    Batch,
    DataConfig,
    EvalTransform,
    Loader,
    Mixing,
    RandAugment,
    Share,
    Source,
    TrainTransform,
    soft_labels,
)
from ..errors import UsageError
from .config import TaskConfig
from .majority import majority_result
from .statistics import image_statistics

# fields of the data section that are for pixels, as they are left alone
DENSE_FIELDS = dict(image_width=None, test_width=None, short_side=None, scale=(1.0, 1.0), color=False)


class Accuracy:
    """Top-1, top-5 and cross-entropy over batches of (N, num_classes) logits.

    Args:
        classes: their number; of up to five there is no top-5, which would be 100 % whatever the network says.
    """

    def __init__(self, classes: int | None = None) -> None:
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
        top5 = {} if self.classes is not None and self.classes <= 5 else dict(top5=self.top5 / n)
        return dict(top1=self.top1 / n, **top5, loss=self.loss / n, images=self.count)


class Classification:
    """Images and labels of a source, cross-entropy, top-1 and top-5.

    Args:
        source: the images, see :func:`normfree.data.open_source`.
        image_size, test_size: side of the network's inputs in training and evaluation.
        batch_size: images per training step.
        seed: of the order and the augmentation.
        share: which part of each batch this process loads.
        across_epochs: whether training batches run across the ends of epochs.
    """

    score = "top1"  # the metric a better network has more of
    score_label = "test accuracy"
    score_format = ".2%"
    vectors = False  # whether images have a vector each instead of a label

    def __init__(
        self,
        source: Source,
        config: TaskConfig,
        data: DataConfig,
        *,
        image_size: int,
        test_size: int,
        batch_size: int,
        seed: int = 0,
        share: Share = Share(),  # noqa: B008 - immutable
        across_epochs: bool = False,
    ):
        if data.crop == "random":
            raise UsageError("data.crop (='random') is for segmentation and depth")
        for name, default in DENSE_FIELDS.items():
            if getattr(data, name) != default:
                raise UsageError(f"data.{name} (={getattr(data, name)!s:.80}) is for segmentation and depth")
        self.label_smoothing, self.kind, self.classes = config.label_smoothing, config.loss, len(source.classes)
        self.weights, self.notes = None, list[str]()  # the latter is what a user should know
        if config.class_weights is not None:
            self.weights = torch.tensor(resolved_weights(config.class_weights, source))
            shown = zip(source.classes[:8], self.weights.tolist(), strict=False)
            more = ", ..." if self.classes > 8 else ""
            self.notes.append(f"class weights: {', '.join(f'{name} {weight:.4g}' for name, weight in shown)}{more}")
        if self.vectors and data.sampler != "shuffled":
            raise UsageError(f"data.sampler (={data.sampler!r}) is for classification with one class per image")
        self.source = source
        mean, std = image_statistics(data)
        self.train = Loader(
            source.train,
            TrainTransform(image_size, data.crop, data.flip, mean, std, randaugment(data), data.resize_margin),
            batch_size,
            shape=(data.channels, image_size, image_size),
            seed=seed,
            shuffle=True,
            balanced=data.sampler == "balanced",
            drop_last=len(source.train) >= batch_size,
            across=across_epochs,
            workers=data.workers,
            timeout=data.timeout,
            share=share,
            vectors=self.vectors,
            mixing=Mixing(data.mixup, data.cutmix) if data.mixup or data.cutmix else None,
        )
        self.test = Loader(
            source.test,
            EvalTransform(test_size, data.resize_margin, mean, std, data.test_crop or "squash"),
            batch_size,
            shape=(data.channels, test_size, test_size),
            workers=data.workers,
            timeout=data.timeout,
            share=share,
            vectors=self.vectors,
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy, in float32 at least, with label smoothing; logits (N, num_classes).

        Of mixed images, the mix of the cross-entropies with both labels: that with the mixed label. With
        ``loss="sigmoid"``, the binary cross-entropies with the same targets, summed over classes. With class weights,
        each image's loss is times the weight of its label; the mean stays one over images, not over weights, so that
        the gradient of a batch is the mean of its parts'.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.kind == "sigmoid":
            partners = batch.labels if batch.partners is None else batch.partners
            ratios = torch.ones_like(logits[:, 0]) if batch.ratios is None else batch.ratios
            targets = soft_labels(batch.labels, partners, ratios, logits.shape[1], self.label_smoothing)
            entropies = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
            first, second = (self._weighted(torch.ones_like(ratios), labels) for labels in (batch.labels, partners))
            return (entropies.sum(1) * torch.lerp(second, first, ratios).to(logits.dtype)).mean()
        entropy = functools.partial(F.cross_entropy, logits, label_smoothing=self.label_smoothing)
        if batch.partners is None and self.weights is None:
            return entropy(batch.labels)
        first = self._weighted(entropy(batch.labels, reduction="none"), batch.labels)
        if batch.partners is None:
            return first.mean()
        second = self._weighted(entropy(batch.partners, reduction="none"), batch.partners)
        return torch.lerp(second, first, batch.ratios.to(first.dtype)).mean()

    def _weighted(self, losses: Tensor, labels: Tensor) -> Tensor:
        """(N,), each times the weight of its label."""
        return losses if self.weights is None else losses * self.weights.to(losses)[labels]

    @torch.no_grad()
    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """How many of the batch are right, on the device: for the progress bar."""
        return (logits.argmax(1) == batch.labels).sum()

    def metrics(self) -> Accuracy:
        return Accuracy(self.classes)

    def remark(self, accuracy: float) -> str | None:
        """What must be said about an accuracy on the test images, if anything."""
        split, names = self.source.test, self.source.classes
        images = Counter(split.label(index) for index in range(len(split)))
        if len(images) < 2:
            return f"all test images are of {names[next(iter(images))]}" if images else None
        return majority_result(images, names, round(accuracy * images.total()))


def resolved_weights(weights: Literal["auto"] | Sequence[float], source: Source) -> tuple[float, ...]:
    """Class weights as numbers; a class that there are no training images of counts 1.

    Raises:
        UsageError: not one for each class.
    """
    classes = len(source.classes)
    if weights != "auto":
        if len(weights) != classes:
            raise UsageError(
                f"task.class_weights (={list(weights)!s:.80}) has {len(weights)} numbers for {classes} classes; it "
                "must have one per class"
            )
        return tuple(weights)
    labels = torch.tensor([source.train.label(i) for i in range(len(source.train))])
    counts = labels.bincount(minlength=classes).tolist()
    there = sum(count > 0 for count in counts)
    return tuple(len(labels) / (there * count) if count else 1.0 for count in counts)


def randaugment(data: DataConfig) -> RandAugment | None:
    """The RandAugment that a recipe asks for."""
    if not data.randaugment_layers:
        return None
    return RandAugment(data.randaugment_layers, data.randaugment_magnitude, data.randaugment_ops)
