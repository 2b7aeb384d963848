"""One optimizer step: forward and backward in pieces, clipping, momentum, averaging."""

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..data import Batch
from ..errors import RunFailed
from ..optim import AGC, EMA


class Losses(Protocol):
    """The part of a task that a step needs."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor: ...
    def correct(self, output: Tensor, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class StepResult:
    """Mean loss, number of right answers, images, and the fraction of units clipped (None without clipping)."""

    loss: float
    correct: int
    images: int
    clipped: float | None


class TrainStep:
    """Turns a batch into an update.

    The gradient of a batch is the mean of its micro-batches' gradients, exactly: nothing in the networks depends on
    other examples. Gradients that are not finite stop the step before parameters, momentum or average change.

    Args:
        model: in training mode.
        optimizer: over groups of :func:`normfree.optim.param_groups`.
        micro_batch: images per backward pass; None is all.
        precision: "float32" or "bfloat16" (autocast).
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        optimizer: torch.optim.Optimizer,
        *,
        ema: EMA | None = None,
        clipping_eps: float = 1e-3,
        micro_batch: int | None = None,
        precision: str = "float32",
    ):
        self.model, self.losses, self.optimizer, self.ema = model, losses, optimizer, ema
        self.agc = AGC(optimizer, eps=clipping_eps, error_if_nonfinite=True)
        self.micro_batch, self.precision = micro_batch, precision

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Update the model on a batch that is on its device.

        Raises:
            RunFailed: the loss or a gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        count = len(batch)
        loss = correct = torch.zeros((), device=batch.images.device)
        for piece in batch.pieces(self.micro_batch or count):
            with autocast(batch.images.device, self.precision):
                output = self.model(piece.images)
            part = self.losses.loss(output, piece) * (len(piece) / count)
            part.backward()
            loss, correct = loss + part.detach(), correct + self.losses.correct(output, piece)
        value = loss.item()
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss is {value}")
        statistics = self.agc.step()
        if self.ema is not None:
            self.ema.update()
        clipped = statistics.total_fraction if statistics.units else None
        return StepResult(value, int(correct), count, clipped)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bfloat16 autocast, or nothing for float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
