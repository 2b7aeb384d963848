"""Depth from one image: metres for each pixel (NF-ResNets, appendix H.2)."""

import torch
from torch import Tensor

from ..data import Batch, DataConfig, Source
from ..data.contents import check_depths
from ..data.dense import INVALID
from .config import TaskConfig
from .dense import DenseTask

NEAREST = 1e-3  # metres: what an answer counts as at least, in the metrics
RATIO = 1.25
DELTAS = ("delta1", "delta2", "delta3")  # within a factor of 1.25, 1.25**2, 1.25**3


class Depth(DenseTask):
    """Images and depth maps of a source, reverse Huber loss, the five metrics.

    Args:
        source, data, options: as :class:`.DenseTask`.
    """

    score, score_label = "delta1", "test pixels within a factor of 1.25"

    def __init__(self, source: Source, config: TaskConfig, data: DataConfig, **options):
        super().__init__(source, data, **options)

    def look(self, data: DataConfig) -> list[str]:
        return check_depths(self.source)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Reverse Huber loss in metres, a mean over images of their means over measured pixels; output (N, 1, H, W)."""
        return reverse_huber(output[:, 0], batch.targets).mean()

    @torch.no_grad()
    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        """Fraction of measured pixels within a factor of 1.25, summed over images: for the progress bar."""
        return fraction_near(output, batch.targets).sum()

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
        valid = batch.targets != INVALID
        said, true = output[valid].clamp(min=NEAREST), batch.targets[valid]
        ratio, error = _ratio(said, true), (said - true).abs()
        within = [(ratio < RATIO**power).sum() for power in (1, 2, 3)]
        sums = [*within, error.double().square().sum(), (error / true).double().sum()]
        self.sums += torch.stack([s.double() for s in sums]).cpu()
        self.pixels += int(valid.sum())
        self.images += len(batch)
        self.loss += reverse_huber(output, batch.targets).sum().item()

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


def _ratio(said: Tensor, true: Tensor) -> Tensor:
    """The larger over the smaller of two depths in metres, at least 1."""
    said, true = said.clamp(min=NEAREST), true.clamp(min=NEAREST)
    return torch.maximum(said / true, true / said)
