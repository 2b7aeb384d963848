"""Image classification."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import (
    AutoAugment,
    Batch,
    DataConfig,
    EvalTransform,
    HeldOut,
    Mixing,
    RandAugment,
    Source,
    TrainTransform,
    open_source,
    open_test,
    soft_labels,
)
from ..errors import UsageError
from ..recipes import Recipe
from ..recipes.task import TaskConfig
from ..report import Confusion as ConfusionTable
from ..report import Example, Mistake, Mistakes, percent
from ..words import counted
from .answers import Answers, PredictOptions
from .class_answers import Classes
from .confusion import Accuracy, Confusion
from .gallery import Gallery, Look, example
from .majority import majority_result
from .measured import Measured, over_classes
from .statistics import image_statistics
from .task import Task, refuse_fields, refuse_masks, shape_of
from .trained import ReadyNetwork, Trained

# fields of the data section that are for pixels, as they are left alone
PAIR_FIELDS = dict(image_width=None, test_width=None, short_side=None, scale=(1.0, 1.0), color=False)


class VectorTask(Task):
    """What the tasks share whose answer is one vector for an image: classes or numbers.

    Args:
        source: the images, see :func:`normfree.data.open_source`.
        image_size, test_size: side of the network's inputs in training and evaluation; None: those of ``data``.
        options: as of :class:`.Task`.
    """

    answers_by: ClassVar[str]  # what images are labelled with, one of :data:`normfree.data.folders.ANSWERS`

    def __init__(
        self,
        source: Source[Any],
        config: TaskConfig,
        data: DataConfig,
        *,
        image_size: int | None = None,
        test_size: int | None = None,
        **options: Any,
    ):
        if data.crop == "random":
            raise UsageError("data.crop (='random') is for segmentation and depth")
        refuse_fields(data, PAIR_FIELDS, "segmentation and depth")
        sizes = dict(image_size=image_size or data.image_size, test_size=test_size or data.test_size)
        super().__init__(source, config, dataclasses.replace(data, **sizes), **options)

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        refuse_masks(recipe)
        _check_kind(recipe, source)
        data = recipe.data
        if held_out is None and data.val_fraction is not None:
            held_out = HeldOut(data.val_fraction, data.val_seed)
        return open_source(source, data.channels, answers=cls.answers_by, held_out=held_out)

    @classmethod
    def open_test(cls, recipe: Recipe, source: str, classes: Sequence[str], network: str) -> Source[Any]:
        _check_kind(recipe, source)
        return open_test(source, list(classes), recipe.data.channels, answers=cls.answers_by, network=network)

    @classmethod
    def describe_classes(cls, classes: Sequence[str]) -> str:
        return f" of {counted(len(classes), 'class', 'classes')}" if classes else ""

    @classmethod
    def train_transform(cls, data: DataConfig) -> TrainTransform:
        how = data.crop, data.flip, *image_statistics(data), randaugment(data), data.resize_margin
        _, size, _ = shape_of(data, data.image_size, None)
        autoaugment = AutoAugment(data.autoaugment) if data.autoaugment else None
        return TrainTransform(size, *how, data.padding, data.padding_mode, data.cutout, autoaugment)

    @classmethod
    def test_transform(cls, data: DataConfig) -> EvalTransform:
        _, size, _ = shape_of(data, data.test_size, None)
        return EvalTransform(size, data.resize_margin, *image_statistics(data), data.test_crop or "squash")

    @classmethod
    def train_options(cls, data: DataConfig) -> dict[str, Any]:
        mixing = Mixing(data.mixup, data.cutmix) if data.mixup or data.cutmix else None
        return dict(balanced=data.sampler == "balanced", mixing=mixing)


class Classification(VectorTask):
    """Images and labels of a source, cross-entropy, top-1 and top-5.

    Args:
        source, options: as :class:`.VectorTask`.
    """

    name = kind = "classification"
    purpose = "classifies images"
    answers_by = "class"
    output = "logits"
    options = frozenset({"top", "antialias"})
    score = "top1"
    score_label = "test accuracy"

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        super().__init__(source, config, data, **options)
        self.label_smoothing, self.loss_kind = config.label_smoothing, config.loss
        self.weights: Tensor | None = None
        if config.class_weights is not None:
            self.weights = torch.tensor(resolved_weights(config.class_weights, source))
            shown = zip(source.classes[:8], self.weights.tolist(), strict=False)
            more = ", ..." if self.classes > 8 else ""
            self.notes.append(f"class weights: {', '.join(f'{name} {weight:.4g}' for name, weight in shown)}{more}")

    @classmethod
    def resolve(cls, recipe: Recipe, source: Source[Any]) -> None:
        if recipe.task.class_weights is not None:
            recipe.task.class_weights = resolved_weights(recipe.task.class_weights, source)

    @classmethod
    def metrics_of(cls, trained: Trained) -> Confusion:
        return Confusion(len(trained.classes))

    @classmethod
    def measured(cls, metrics: Confusion, names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        top5 = f"   top-5 {scores['top5']:.2%}" if "top5" in scores else ""
        lines = [f"top-1 {scores['top1']:.2%}{top5}   loss {scores['loss']:.4f}"]
        lines.append(f"balanced accuracy {scores['balanced_accuracy']:.2%}")
        rows = [dict(name=name) | vars(found) for name, found in zip(names, metrics.per_class(), strict=True)]
        notes = [over_classes([names[label] for label in metrics.without_images()], len(names))]
        notes.append(metrics.majority(names))
        return Measured(lines, scores, rows, metrics, [note for note in notes if note])

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return Classes(network, options.top or 5, antialias=options.antialias)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        """The images that it is wrong about, the surest first."""
        mistakes, trained = Mistakes(look.count), look.trained
        measured, unreadable = look.evaluate(mistakes)
        wrong, images = int(measured["wrong"]), int(measured["images"])
        shown = [entry for mistake in mistakes.worst if (entry := _mistake(mistake, look))]
        if not images:
            return Gallery(shown, "", 0, unreadable)
        text = f"{wrong:,} of {counted(images, 'test image')} ({percent(wrong / images)}) "
        text += f"{'is' if wrong == 1 else 'are'} classified wrongly by the {look.weights}."
        if shown:
            text += (
                f" The {len(shown)} it is surest of: the true class \N{RIGHTWARDS ARROW} what it says, with the "
                "probability it gives that, and the one it gives the truth."
            )
        return Gallery(shown, text, images, unreadable, ConfusionTable(trained.names, mistakes.confusions))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy, in float32 at least, with label smoothing; output (N, num_classes).

        Of mixed images, the mix of the cross-entropies with both labels: that with the mixed label. With
        ``loss="sigmoid"``, the binary cross-entropies with the same targets, summed over classes. With class weights,
        each image's loss is times the weight of its label; the mean stays one over images, not over weights, so that
        the gradient of a batch is the mean of its parts'.
        """
        output = output if output.dtype == torch.float64 else output.float()
        if self.loss_kind == "sigmoid":
            partners = batch.labels if batch.partners is None else batch.partners
            ratios = torch.ones_like(output[:, 0]) if batch.ratios is None else batch.ratios
            targets = soft_labels(batch.labels, partners, ratios, output.shape[1], self.label_smoothing)
            entropies = F.binary_cross_entropy_with_logits(output, targets.to(output.dtype), reduction="none")
            first, second = (self._weighted(torch.ones_like(ratios), labels) for labels in (batch.labels, partners))
            return (entropies.sum(1) * torch.lerp(second, first, ratios).to(output.dtype)).mean()
        entropy = functools.partial(F.cross_entropy, output, label_smoothing=self.label_smoothing)
        if batch.partners is None and self.weights is None:
            return entropy(batch.labels)
        first = self._weighted(entropy(batch.labels, reduction="none"), batch.labels)
        if batch.partners is None or batch.ratios is None:
            return first.mean()
        second = self._weighted(entropy(batch.partners, reduction="none"), batch.partners)
        return torch.lerp(second, first, batch.ratios.to(first.dtype)).mean()

    def _weighted(self, losses: Tensor, labels: Tensor) -> Tensor:
        """(N,), each times the weight of its label."""
        return losses if self.weights is None else losses * self.weights.to(losses)[labels]

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """How many of the batch are right, on the device: for the progress bar."""
        return (output.argmax(1) == batch.labels).sum()

    def metrics(self) -> Accuracy:
        return Accuracy(self.classes)

    def score_note(self, score: float) -> str | None:
        """What must be said about an accuracy on the test images, if anything."""
        split, names = self.source.test, self.source.classes
        images = Counter(split.label(index) for index in range(len(split)))
        if len(images) < 2:
            return f"all test images are of {names[next(iter(images))]}" if images else None
        return majority_result(images, names, round(score * images.total()))


def _mistake(mistake: Mistake, look: Look) -> Example | None:
    names = look.trained.names
    probability, of_truth = percent(mistake.probability, 1), percent(mistake.of_truth, 1)
    caption = f"{names[mistake.true]} \N{RIGHTWARDS ARROW} {names[mistake.said]}"
    return example(look.split, mistake.index, caption, f"{probability}, truth {of_truth}\n")


def _check_kind(recipe: Recipe, source: str) -> None:
    if source.partition(":")[0] in ("scenes", "voc", "masks", "nyu", "depth", "coco"):
        other = "detection" if source.startswith("coco") else "segmentation or depth"
        raise UsageError(f"data.source (={source!r}) is for {other}; task.name is {recipe.task.name}")


def resolved_weights(weights: Literal["auto"] | Sequence[float], source: Source[Any]) -> tuple[float, ...]:
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
