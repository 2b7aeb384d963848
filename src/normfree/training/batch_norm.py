"""BatchNorm with micro-batches and several processes: it normalizes over a part of the batch."""

from torch import nn

from ..errors import UsageError
from ..nn import batch_norms
from ..optim import OptimConfig
from .config import TrainConfig


def seen_by_batch_norm(model: nn.Module, train: TrainConfig, optim: OptimConfig, processes: int) -> str | None:
    """A note if a network's BatchNorm does not normalize over the whole batch; else None.

    Raises:
        UsageError: ``train.micro_batch`` is "auto": the result would depend on the free memory.
    """
    names = batch_norms(model)
    if not names:
        return None
    if train.micro_batch == "auto":
        raise UsageError(
            f"train.micro_batch (='auto') must be a number for a network with BatchNorm ({names[0]}): it normalizes "
            "over each micro-batch, so the result would depend on the memory that is free"
        )
    share = -(-train.batch_size // processes)
    seen = min(train.micro_batch or share, share)
    notes = []
    if seen < train.batch_size:
        notes.append(f"BatchNorm normalizes over {seen} images at a time, not over the batch of {train.batch_size}")
    if optim.sam_rho is not None or train.activation_checkpointing is not None:
        cause = "optim.sam_rho" if optim.sam_rho is not None else "train.activation_checkpointing"
        notes.append(f"BatchNorm's running statistics are updated twice in each step, because of {cause}")
    return "; ".join(notes) or None
