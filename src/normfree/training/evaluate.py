"""Metrics of a network on a split."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..data import Batch
from .step import autocast


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], metrics: Any, device: torch.device, precision: str = "float32"
) -> tuple[dict[str, float], list[str]]:
    """Run a network over batches in evaluation mode.

    Args:
        metrics: has ``update(output, batch)`` and ``compute()``.

    Returns:
        What ``metrics`` computes, and the images that could not be read (``PATH: reason``).
    """
    training, unreadable = model.training, []
    model.eval()
    try:
        for batch in loader:
            unreadable += batch.unreadable
            if len(batch):
                batch = batch.to(device)
                with autocast(device, precision):
                    output = model(batch.images)
                metrics.update(output, batch)
    finally:
        model.train(training)
    return metrics.compute(), unreadable
