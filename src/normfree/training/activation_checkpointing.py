"""Activation checkpointing: a stage keeps only the inputs of its blocks and computes the rest again."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from ..errors import UsageError


@runtime_checkable
class SupportsCheckpointing(Protocol):
    """A network that can keep only the inputs of its blocks for the backward pass, in some stages or in all."""

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None: ...


def set_checkpointing(model: nn.Module, stages: Sequence[int] | str | None) -> None:
    """Keep only block inputs in these stages, or in "all".

    >>> set_checkpointing(normfree.create_model("nf_resnet50"), "all")
    >>> set_checkpointing(nn.Linear(1, 1), "all")
    Traceback (most recent call last):
    normfree.errors.UsageError: train.activation_checkpointing needs a network with set_grad_checkpointing; it has none

    Raises:
        UsageError: no such stage, or a network without stages.
    """
    if stages is None:
        return
    if not isinstance(model, SupportsCheckpointing):
        raise UsageError("train.activation_checkpointing needs a network with set_grad_checkpointing; it has none")
    try:
        model.set_grad_checkpointing(True, None if isinstance(stages, str) else stages)
    except UsageError as error:
        raise UsageError(f"train.activation_checkpointing (={list(stages)}): {error}") from error
