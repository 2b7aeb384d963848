"""Depth from one image: metres for each pixel (NF-ResNets, appendix H.2)."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch, DataConfig, HeldOut, Source
from ..data.pixels import INVALID
from ..data.target_checks import check_depths
from ..models import depth_estimator
from ..pictures.drawing import depth_colors, draw_depth
from ..recipes import Recipe
from ..report import Overlay, Overlays, Range
from .answers import Answers, PredictOptions
from .gallery import Gallery, Look, from_worst_to_best
from .measured import Measured
from .pairs import PixelTask
from .pixel_answers import MIN_DEPTH, DepthAnswers, pixels_of_network
from .pixel_gallery import AnsweredImage, answered, overlay
from .task import refuse_masks
from .trained import ReadyNetwork, Trained

RATIO = 1.25
DELTAS = ("delta1", "delta2", "delta3")  # within a factor of 1.25, 1.25**2, 1.25**3


class Depth(PixelTask):
    """Images and depth maps of a source, reverse Huber loss, the five metrics.

    Args:
        source, data, options: as :class:`.PairTask`.
    """

    name = kind = "depth"
    purpose = "is for depth"
    named_outputs, output = False, "metres"
    options = frozenset({"depths", "out"})
    score, score_label = "delta1", "test pixels within a factor of 1.25"

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        refuse_masks(recipe)
        return super().open(recipe, source, held_out=held_out, known=known)

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        return depth_estimator(cls.build_backbone(recipe), width=recipe.task.head_width)

    @classmethod
    def metrics_of(cls, trained: Trained) -> "DepthErrors":
        return DepthErrors()

    @classmethod
    def missing_targets(cls, metrics: "DepthErrors") -> str | None:
        return None if metrics.pixels else "a pixel whose depth is known"

    @classmethod
    def measured(cls, metrics: "DepthErrors", names: Sequence[str]) -> Measured:
        scores = metrics.compute()
        lines = [
            f"within a factor of 1.25 {scores['delta1']:.2%}   of 1.25^2 {scores['delta2']:.2%}   "
            f"of 1.25^3 {scores['delta3']:.2%}",
            f"rms {scores['rms']:.4f} m   rel {scores['rel']:.4f}   loss {scores['loss']:.4f}",
        ]
        return Measured(lines, scores)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return DepthAnswers(pixels_of_network(network, options), options)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        """Depths in colours."""

        def draw(chosen: list[tuple[float, int]], metrics: DepthErrors) -> Overlays:
            return Overlays(*_depths(answered(look, chosen)))

        def score(output: Tensor, batch: Batch) -> list[float]:
            return fraction_near(output, batch.target_tensor).tolist()

        return from_worst_to_best(look, score, draw, "the share of the pixels within a factor of 1.25")

    def check_target_files(self, data: DataConfig) -> list[str]:
        return check_depths(self.source)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Reverse Huber loss in metres, a mean over images of their means over measured pixels; output (N, 1, H, W)."""
        return reverse_huber(output[:, 0], batch.target_tensor).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Fraction of measured pixels within a factor of 1.25, summed over images: for the progress bar."""
        return fraction_near(output, batch.target_tensor).sum()

    def metrics(self) -> "DepthErrors":
        return DepthErrors()


class DepthErrors:
    """The five metrics over all measured pixels of batches of (N, 1, H, W) metres."""

    def __init__(self) -> None:
        self.images, self.loss, self.pixels = 0, 0.0, 0
        self.sums = torch.zeros(5, dtype=torch.float64)  # within the three factors, squared and relative errors

    @property
    def totals(self) -> list[float]:
        """What is added up over batches, and over processes."""
        return [self.images, self.loss, self.pixels, *self.sums.tolist()]

    @totals.setter
    def totals(self, totals: list[float]) -> None:
        self.images, self.loss, self.pixels = int(totals[0]), totals[1], int(totals[2])
        self.sums = torch.tensor(totals[3:], dtype=torch.float64)

    def update(self, output: Tensor, batch: Batch) -> None:
        output = output[:, 0].float()
        targets = batch.target_tensor
        valid = targets.ne(INVALID)
        predicted, true = output[valid].clamp(min=MIN_DEPTH), targets[valid]
        ratio, error = _ratio(predicted, true), (predicted - true).abs()
        within = [torch.lt(ratio, RATIO**power).sum() for power in (1, 2, 3)]
        sums = [*within, error.double().square().sum(), (error / true).double().sum()]
        self.sums += torch.stack([s.double() for s in sums]).cpu()
        self.pixels += int(valid.sum())
        self.images += len(batch)
        self.loss += reverse_huber(output, targets).sum().item()

    def compute(self) -> dict[str, float]:
        """Fractions within the factors, root of the mean square (metres), mean relative error, loss, images.

        The loss depends on the batches: its threshold is a part of the largest error in one.
        """
        n = max(1, self.pixels)
        means = (self.sums / n).tolist()
        measured = dict(zip(DELTAS, means, strict=False))
        return measured | dict(
            rms=means[3] ** 0.5, rel=means[4], loss=self.loss / max(1, self.images), images=self.images
        )


def reverse_huber(output: Tensor, targets: Tensor) -> Tensor:
    """The reverse Huber loss of each image, a mean over its measured pixels: (N, H, W) metres twice -> (N,).

    |e| up to c, (e**2 + c**2) / (2 c) beyond, where c is a fifth of the largest |e| of the batch's measured pixels
    (Laina et al., arXiv:1606.00373, eq. 3). No gradient flows through c. An image without measured pixels counts as 0.
    """
    output = output if output.dtype == torch.float64 else output.float()
    valid = targets != INVALID
    error = torch.where(valid, output - targets, 0.0).abs()
    c = (0.2 * error.detach().amax()).clamp(min=1e-6) if error.numel() else error.new_ones(())
    loss = torch.where(error <= c, error, (error.square() + c * c) / (2 * c))
    return loss.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def fraction_near(output: Tensor, targets: Tensor) -> Tensor:
    """Of the measured pixels of each image, those within a factor of 1.25: (N, 1, H, W) and (N, H, W) -> (N,)."""
    valid = targets != INVALID
    near = (_ratio(output[:, 0].float(), targets) < RATIO) & valid
    return near.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def _ratio(predicted: Tensor, true: Tensor) -> Tensor:
    """The larger over the smaller of two depths in metres, at least 1."""
    predicted, true = predicted.clamp(min=MIN_DEPTH), true.clamp(min=MIN_DEPTH)
    return torch.maximum(predicted / true, true / predicted)


def _depths(images: Sequence[AnsweredImage]) -> tuple[list[Overlay], Range]:
    """Depth in the same colours in all pictures: those of the range of what was measured in them."""
    measured = [item.truth[item.truth > 0] for item in images if (item.truth > 0).any()]
    low = min((values.min().item() for values in measured), default=0.0)
    high = max((values.max().item() for values in measured), default=1.0)
    draw = functools.partial(draw_depth, low=low, high=high)
    overlays = []
    for item in images:
        predicted = item.answer[0].clamp(min=MIN_DEPTH)
        depths = (item.truth[item.truth > 0], predicted)
        ends = [f"{values.min():.2f} to {values.max():.2f} m" for values in depths if len(values)]
        more = f"{ends[0]}; network {ends[1]}\n" if len(ends) > 1 else ""
        overlays.append(overlay(item, draw(item.truth), draw(predicted), more))
    return overlays, Range(low, high, "m", depth_colors())
