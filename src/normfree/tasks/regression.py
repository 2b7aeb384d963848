"""Regression: numbers of an image."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch, DataConfig, Source
from ..data.target_checks import check_numbers
from ..errors import UsageError
from ..recipes import Recipe
from ..recipes.task import TaskConfig
from ..words import counted
from .answers import Answers, PredictOptions
from .class_answers import Numbers
from .classification import VectorTask
from .furthest import furthest_from_truth, numbers_of
from .gallery import Gallery, Look
from .measured import Measured
from .multilabel import refuse_sampler
from .trained import ReadyNetwork, Trained

NEAR_STD = 0.5  # standard deviations


class Regression(VectorTask):
    """Images with numbers of a source: squared error of standardized numbers, R2.

    The network learns ``(number - mean) / std`` with mean and standard deviation of the training numbers, which are in
    the recipe of the run; :func:`in_units` makes it say the numbers themselves.

    Args:
        source, config, data, options: as :class:`.VectorTask`; the source's splits have ``target(index)``, (K,)
            float32, and ``classes`` are the names of the numbers.
    """

    name = kind = "regression"
    purpose = "is for regression"
    answers_by = "numbers"
    targets = "vectors"
    output = "numbers"
    options = frozenset({"antialias"})
    score, score_label, score_format = "r2", "test R2", ".4f"

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        if data.mixup or data.cutmix:
            name = "mixup" if data.mixup else "cutmix"
            raise UsageError(f"data.{name} (={getattr(data, name)}) must be 0 for regression")
        check_numbers(source.test)
        refuse_sampler(data)
        super().__init__(source, config, data, **options)
        mean, std = resolved_units(config, source)
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        shown = zip(source.classes[:8], mean, std, strict=False)
        self.notes.append("numbers to learn: " + ", ".join(f"{n} (mean {m:.4g}, std {s:.4g})" for n, m, s in shown))

    @classmethod
    def resolve(cls, recipe: Recipe, source: Source[Any]) -> None:
        recipe.task.target_mean, recipe.task.target_std = resolved_units(recipe.task, source)

    @classmethod
    def describe_classes(cls, classes: Sequence[str]) -> str:
        return f" with {counted(len(classes), 'number')} each"

    @classmethod
    def after_loading(cls, model: nn.Module, recipe: Recipe, classes: Sequence[str], file: str) -> None:
        mean, std = recipe.task.target_mean, recipe.task.target_std
        if mean is None or std is None or len(mean) != len(classes):
            raise UsageError(f"{file}: task.target_mean (={mean!s:.60}) must have {len(classes)} numbers")
        in_units(classifier_of(model), torch.tensor(mean), torch.tensor(std))

    @classmethod
    def metrics_of(cls, trained: Trained) -> "RegressionErrors":
        task = trained.recipe.task
        return RegressionErrors(torch.tensor(task.target_mean), torch.tensor(task.target_std), in_units=True)

    @classmethod
    def measured(cls, metrics: "RegressionErrors", names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        mean = "" if len(names) == 1 else f" (mean of {len(names)})"
        error = f"   mean absolute error {scores['mae']:.5g}" if len(names) == 1 else ""  # else units differ
        undefined = math.isnan(scores["r2"])
        r2 = "R2 not defined" if undefined else f"R2 {scores['r2']:.4f}{mean}"
        notes = ["R2 is not defined: it needs at least 2 test images"] if undefined else []
        rows = [dict(name=n) | _defined(per_number) for n, per_number in zip(names, metrics.per_number(), strict=True)]
        line = f"{r2}{error}   loss {scores['loss']:.4f}"
        return Measured([line], _defined(scores), rows, notes=notes, of="numbers")

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return Numbers(network, antialias=options.antialias)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        names, std = look.trained.names, torch.tensor(look.trained.recipe.task.target_std)
        words = (lambda predicted: numbers_of(predicted, names), lambda true: numbers_of(true, names))
        what = "by the largest error in standard deviations: the true numbers \N{RIGHTWARDS ARROW} what it says."
        return furthest_from_truth(look, lambda output, true: ((output - true).abs() / std).max(1).values, words, what)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Squared error, a mean over numbers and images, in float32 at least; output (N, K), standardized."""
        output = output if output.dtype == torch.float64 else output.float()
        return (output - self._standardized(batch.target_tensor).to(output.dtype)).square().mean(1).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Fraction of the numbers within half a standard deviation, summed over images: for the progress bar."""
        return ((output - self._standardized(batch.target_tensor)).abs() < NEAR_STD).float().mean(1).sum()

    def metrics(self) -> "RegressionErrors":
        return RegressionErrors(self.mean, self.std)

    def score_note(self, score: float) -> str | None:
        return "no better than always saying the mean of the test images" if score <= 0 else None

    def _standardized(self, targets: Tensor) -> Tensor:
        return (targets - self.mean.to(targets)) / self.std.to(targets)


class RegressionErrors:
    """MAE and R2 of each number over batches of (N, K) outputs.

    Args:
        mean, std: (K,) of the training numbers.
        in_units: whether outputs are the numbers themselves, else standardized ones.
    """

    def __init__(self, mean: Tensor, std: Tensor, in_units: bool = False):
        self.mean, self.std, self.in_units, self.images = mean.double(), std.double(), in_units, 0
        # per number: absolute errors, squared errors, the numbers, their squares; all standardized
        self.sums = torch.zeros(4, len(mean), dtype=torch.float64)

    @property
    def totals(self) -> list[float]:
        """What is added up over batches, and over processes."""
        return [self.images, *self.sums.flatten().tolist()]

    @totals.setter
    def totals(self, totals: list[float]) -> None:
        self.images = int(totals[0])
        self.sums = torch.tensor(totals[1:], dtype=torch.float64).view_as(self.sums)

    def update(self, output: Tensor, batch: Batch) -> None:
        output, true = output.double().cpu(), (batch.target_tensor.double().cpu() - self.mean) / self.std
        if self.in_units:
            output = (output - self.mean) / self.std
        error = output - true
        self.sums += torch.stack([part.sum(0) for part in (error.abs(), error.square(), true, true.square())])
        self.images += len(batch)

    def per_number(self) -> list[dict[str, float]]:
        """``mae``, in the number's own unit, and ``r2`` of each.

        R2 of numbers that are all the same is 1 where every answer is right, else 0, as scikit-learn has it; of one
        image it is not defined: NaN.
        """
        images = max(1, self.images)
        absolute, squared, total, squares = self.sums
        spread = (squares - total.square() / images).clamp(min=0)
        flat = spread <= 1e-12 * squares.clamp(min=1e-300)
        r2 = torch.where(flat, (squared == 0).double(), 1 - squared / torch.where(flat, 1.0, spread))
        if self.images == 1:
            r2 = torch.full_like(r2, math.nan)
        return [dict(mae=m, r2=r) for m, r in zip((absolute / images * self.std).tolist(), r2.tolist(), strict=True)]

    def compute(self) -> dict[str, float]:
        """Means over the numbers of ``r2`` and ``mae``, the mean loss, and the number of images."""
        per_number = self.per_number()
        means = {name: sum(one[name] for one in per_number) / len(per_number) for name in ("r2", "mae")}
        return means | dict(loss=float(self.sums[1].mean() / max(1, self.images)), images=self.images)


def resolved_units(config: TaskConfig, source: Source[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each number: those of the recipe, else of the training images.

    Raises:
        UsageError: not one for each number; a number is the same for all training images.
    """
    count = len(source.classes)
    if config.target_mean is not None and config.target_std is not None:
        for name in ("target_mean", "target_std"):
            if len(getattr(config, name)) != count:
                raise UsageError(f"task.{name} has {len(getattr(config, name))} numbers; the images have {count}")
        return tuple(config.target_mean), tuple(config.target_std)
    targets = torch.stack([source.train.target(index) for index in range(len(source.train))]).double()
    std, mean = torch.std_mean(targets, 0, correction=0)
    for name, value, spread in zip(source.classes, mean.tolist(), std.tolist(), strict=True):
        if spread <= 1e-7 * abs(value):  # float32 does not tell such numbers apart
            low, high = targets.min(0).values, targets.max(0).values
            place = source.classes.index(name)
            if low[place] < high[place]:
                raise UsageError(
                    f"the training images' {name} ({low[place]:.9g} to {high[place]:.9g}) differ too little for their "
                    "size; subtract a constant from them"
                )
            raise UsageError(f"all training images have the same {name} (={value:g}); there is nothing to learn")
    return tuple(mean.tolist()), tuple(std.tolist())


@torch.no_grad()
def in_units(classifier: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Have a network that says standardized numbers say the numbers themselves; in place, exact to float rounding."""
    mean, std = mean.to(classifier.bias.dtype), std.to(classifier.bias.dtype)
    classifier.weight.mul_(std[:, None])
    classifier.bias.mul_(std).add_(mean)


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last layer of a network for numbers."""
    classifier = getattr(model, "get_classifier")()  # noqa: B009 - which nn.Module declares as a tensor or a module
    assert isinstance(classifier, nn.Linear)
    return classifier


def _defined(scores: dict[str, float]) -> dict[str, float | None]:
    """None in the place of NaN, which JSON does not have."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
