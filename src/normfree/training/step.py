"""One optimizer step: forward and backward in pieces, clipping, momentum, averaging."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch
from ..errors import NotFinite, RunFailed, UsageError
from ..nn import BATCH_NORM
from ..optim import AGC, EMA, SAM, ClipStatistics, FusedStep
from ..optim.optimizers import kept_tensors
from ..optim.sharded import is_sharded, local
from .distributed import Replicas, exchange_gradients, gathered
from .memory import largest_micro_batch

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_SKIPPED = 20  # steps in a row whose float16 gradients overflow; the loss scale halves each time

NEEDS_TWO = "optim.sam_ascent (='next') needs train.micro_batch: two micro-batches in each step"


class Losses(Protocol):
    """What a training step needs of a task."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor: ...
    def correct(self, output: Tensor, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class StepResult:
    """Mean loss, number of right answers, images of all processes, and the fraction of units clipped (None without).

    With an answer for every pixel, an image counts as the fraction of its pixels that are right.

    ``left_out``: why the update was left out.
    """

    loss: float
    correct: float
    images: int
    clipped: float | None
    left_out: str | None = None


class TrainStep:
    """One optimizer step on a batch.

    The gradient of a batch is exactly the mean of its micro-batches' gradients if no example depends on others;
    BatchNorm normalizes over each micro-batch. If a gradient is not finite, the step stops before parameters, momentum
    or average change, and BatchNorm's running statistics are restored.

    Args:
        model: in training mode.
        optimizer: over groups of :func:`normfree.optim.param_groups`.
        sam: of the model's parameters; each micro-batch of each process moves by its own ascent gradient.
        micro_batch: images per backward pass; None: all; "auto": as many as fit, see :mod:`.memory`.
        precision: "float32", or autocast to "bfloat16" or "float16" (with a loss scale; a step whose gradients
            overflow is left out).
        replicas: the processes that share the batch.
        compiled: whether forward and backward pass go through torch.compile.
        skip_nonfinite: how many steps in a row may be skipped because their loss or a gradient is not finite; the
            next such step raises.
    """

    takes_empty = False  # whether a batch without images is a step

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        optimizer: torch.optim.Optimizer,
        *,
        ema: EMA | None = None,
        sam: SAM | None = None,
        clipping_eps: float = 1e-3,
        clip_on: str = "gradient",
        micro_batch: int | Literal["auto"] | None = None,
        precision: str = "float32",
        replicas: Replicas | None = None,
        compiled: bool = False,
        skip_nonfinite: int = 0,
    ):
        self.model, self.losses, self.optimizer, self.ema, self.sam = model, losses, optimizer, ema, sam
        self.replicas = replicas or Replicas()
        self.device = next(model.parameters()).device
        self.replicated = self._replicate()
        self.network, self.replica = (torch.compile(m) if compiled else m for m in (model, self.replicated))
        self.sharded = any(is_sharded(p) for p in model.parameters())
        if sam is not None and micro_batch == "auto":
            raise UsageError(
                "train.micro_batch (='auto') must be a number with optim.sam_rho: each micro-batch has its own ascent"
            )
        if sam is not None and sam.ascent == "next" and micro_batch is None:
            raise UsageError(NEEDS_TWO)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        scaled = self.scaler.is_enabled()
        self.groups_at_start = [dict(group) for group in optimizer.param_groups]  # some optimizers count in them
        self.agc = AGC(optimizer, on=clip_on, eps=clipping_eps, scaler=self.scaler, error_if_nonfinite=not scaled)
        self.fused = FusedStep(optimizer, ema, clipping_eps)
        norms = [module for module in model.modules() if isinstance(module, BATCH_NORM)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]  # a forward pass changes them
        self.micro_batch, self.precision, self.skipped, self.max_skipped = micro_batch, precision, 0, skip_nonfinite

    def _replicate(self) -> nn.Module:
        """The network whose backward pass exchanges gradients between processes."""
        return self.replicas.replicate(self.model, self.device)

    def __call__(self, batch: Batch, lr: float, images: int | None = None) -> StepResult:
        """Update the model on a batch, or this process's share of one, that is on its device.

        Args:
            images: number of images in the whole batch, over all processes; None: ``batch`` is the whole batch.

        Raises:
            NotFinite: the loss or a gradient is not finite; raised in every process.
        """
        images = len(batch) if images is None else images
        if self.micro_batch == "auto":
            self.micro_batch = self._largest_micro_batch(batch)
        before = [(buffer, buffer.clone()) for buffer in self.statistics]
        try:
            result = self._step(batch, lr, images)
        except NotFinite as error:
            self.skipped += 1
            _restore(before)
            if self.skipped > self.max_skipped:
                raise
            return StepResult(float("nan"), 0, images, None, left_out=str(error))
        if self.skipped:  # float16 gradients have overflowed
            _restore(before)
        return result

    def _step(self, batch: Batch, lr: float, images: int) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss = correct = torch.zeros((), device=self.device)
        pieces = self._pieces(batch)
        for piece, ascent, last in zip(pieces, self._ascents(pieces), _lasts(pieces), strict=True):
            part, right = self._backward(piece, images, last, ascent)
            loss, correct = loss + part, correct + right
        value, correct = self.replicas.sum(torch.stack([loss.double(), correct.double()]).tolist())  # one wait
        if not torch.isfinite(torch.tensor(value)):
            raise NotFinite(f"the loss is {value}{self._culprit(batch)}")
        correct = int(correct) if float(correct).is_integer() else correct  # a count, or a sum of fractions
        return StepResult(value, correct, images, self._fraction(self._update()))

    def _pieces(self, batch: Batch) -> list[Batch]:
        """The micro-batches; with a sharded network, which is gathered for each, every process has as many."""
        size = self.micro_batch if isinstance(self.micro_batch, int) else None
        pieces = list(batch.pieces(size or max(1, len(batch))))
        if self.sharded:
            count = max(self.replicas.gather(len(pieces)))
            pieces += [batch.part(slice(0, 0))] * (count - len(pieces))
        return pieces

    def _ascents(self, pieces: list[Batch]) -> list[Batch]:
        """The micro-batch whose gradient moves the weights for each one, see :class:`SAM`."""
        if self.sam is None or self.sam.ascent == "same":
            return pieces
        if len(pieces) < 2:
            raise UsageError(NEEDS_TWO)
        return [*pieces[1:], pieces[0]]

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients between processes only in the backward pass of the last micro-batch."""
        if self.sharded:
            exchange_gradients(self.model, last)
        elif not last and self.replicated is not self.model and isinstance(self.replicated, DistributedDataParallel):
            return self.replicated.no_sync()
        return contextlib.nullcontext()

    def _fraction(self, statistics: ClipStatistics) -> float | None:
        """Fraction of units clipped; each process knows only the units of its part of sharded parameters."""
        if not self.sharded:
            return statistics.total_fraction if statistics.units else None
        units = sum(statistics.units.values())
        clipped, units = self.replicas.sum([statistics.total_fraction * units, units])
        return round(clipped) / units if units else None

    def _largest_micro_batch(self, batch: Batch) -> int:
        """Measured with images of this batch; random state, buffers and gradients are unchanged afterwards."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

        def run(size: int) -> None:
            self._backward(batch.part(slice(0, size)), size, last=True)
            self.optimizer.zero_grad(set_to_none=True)

        own = sum(local(p).nbytes for p in self.model.parameters() if p.requires_grad)
        later = 0 if self.optimizer.state else kept_tensors(self.optimizer)  # momentum, before the first step
        reserved = own * (1 + later)  # gradients
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            size = largest_micro_batch(len(batch), run, self.device, self.replicas, reserved=reserved)
        _restore(buffers)
        return size

    def _backward(self, piece: Batch, images: int, last: bool, ascent: Batch | None = None) -> tuple[Tensor, Tensor]:
        """Add a micro-batch's gradients to the parameters'; returns its share of the mean loss, and right answers.

        Args:
            ascent: the micro-batch of the ascent; None: ``piece``.
        """
        weight = len(piece) / images
        with contextlib.ExitStack() as stack:
            if self.sam is not None:
                self._ascend(self.sam, piece if ascent is None else ascent, stack)
            stack.enter_context(self._exchange(last))
            output = self._output(self.replica, piece)
            # a process without images takes part in the exchange of gradients, with zeros
            loss = self.losses.loss(output, piece) * weight if len(piece) else output.sum() * 0.0
            self.scaler.scale(loss * self.replicas.world).backward()  # the exchange takes the mean
        return loss.detach(), self.losses.correct(output, piece)

    def _ascend(self, sam: SAM, piece: Batch, stack: contextlib.ExitStack) -> None:
        """Move the weights of this process until the end of ``stack``."""
        params = None
        if self.sharded:
            stack.enter_context(gathered(self.model))
            exchange_gradients(self.model, False)  # each process has an ascent of its own
            params = list(self.model.parameters())
        if len(piece):
            ascent = piece.part(sam.part(len(piece)))
            stack.enter_context(sam.moved(self.losses.loss(self._output(self.network, ascent), ascent), params))

    def _output(self, model: Callable[..., Tensor], piece: Batch) -> Tensor:
        with autocast(self.device, self.precision):
            return model(*piece.inputs)

    def _update(self) -> ClipStatistics:
        """Clip, step, average; with float16, all of them or none."""
        if not self.scaler.is_enabled() and self.agc.on == "gradient" and self.fused.possible():
            self.agc.statistics, self.skipped = self.fused.step(), 0
            return self.agc.statistics
        before = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer) if self.scaler.is_enabled() else None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < before:
            self.skipped += 1
            if self.skipped > _MAX_SKIPPED:
                raise RunFailed(f"float16 gradients were not finite in {self.skipped} steps in a row")
            return self.agc.statistics
        self.skipped = 0
        if self.ema is not None:
            self.ema.update()
        return self.agc.statistics

    def _culprit(self, batch: Batch) -> str:
        """For a message: the first output that is not finite, and its process."""
        culprit = None
        if not self.sharded and len(batch):  # a sharded network runs in all processes or in none
            culprit = first_nonfinite(self.model, batch, self.device, self.precision)
        for rank, name in enumerate(self.replicas.gather(culprit)):
            if name is not None:
                where = f" in process {rank}" if self.replicas.world > 1 else ""
                return f"; the first output that is not finite{where} is that of {name}"
        return ""


@torch.no_grad()
def first_nonfinite(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> str | None:
    """Name and type of the first module whose output on a batch is not finite; None if all are."""
    if not batch.images.isfinite().all():
        return "the images"
    names: list[str] = []

    def look(name: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if not names and isinstance(output, Tensor) and not output.isfinite().all():
                names.append(f"{name or 'the network'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(look(name, module)) for name, module in model.named_modules()]
    try:
        with autocast(device, precision):
            model(*batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return names[0] if names else None


@torch.no_grad()
def _restore(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Restore each buffer."""
    for buffer, before in buffers:
        buffer.copy_(before)


def _lasts(pieces: list[Batch]) -> list[bool]:
    """Of each piece, whether it is the last."""
    return [number == len(pieces) for number in range(1, len(pieces) + 1)]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 or float16, or nothing for float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])
