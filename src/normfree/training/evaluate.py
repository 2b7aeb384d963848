"""Metrics of a network on a split."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..data import Batch, Unreadable
from .distributed import Replicas
from .step import autocast


class Stopped(Exception):
    """A request to stop ended an evaluation early."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    metrics: Any,
    device: torch.device,
    precision: str = "float32",
    replicas: Replicas | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], list[Unreadable]]:
    """Run a network over batches in evaluation mode.

    >>> model, batch = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), normfree.bench.image_batch(4, 2, classes=5)
    >>> class Count:
    ...     images = 0
    ...     def update(self, output, batch):
    ...         self.images += len(batch)
    ...     def compute(self): return dict(images=self.images)
    >>> evaluate(model, [batch, batch], Count(), torch.device("cpu"))
    ({'images': 8}, [])

    Args:
        metrics: has ``update(output, batch)`` and ``compute()``. With several processes it also has ``totals``, a list
            of sums, or both ``parts``, its contents, and ``join(parts)``, which takes the contents of all processes. It
            may have ``answer(model, batch)``, which says how outputs are computed.
        replicas: the processes that share the batches; the result is over all of them.
        stop_requested: whether this process should stop; called before each batch.

    Returns:
        The result of ``metrics.compute()``, and the images that could not be read, each listed once.

    Raises:
        Stopped: any process should stop; raised in all of them.
    """
    training, unreadable, replicas = model.training, [], replicas or Replicas()
    answer = getattr(metrics, "answer", _answer)
    model.eval()
    try:
        for batch in loader:
            if replicas.sum([stop_requested()])[0]:
                raise Stopped
            unreadable += batch.unreadable
            if len(batch) or replicas.world > 1:  # sharded networks run in all processes or in none
                batch = batch.to(device)
                with autocast(device, precision):
                    output = answer(model, batch)
                if len(batch):
                    metrics.update(output, batch)
    finally:
        model.train(training)
    _join(metrics, replicas)
    by_image = {one.image: one for one in itertools.chain(*replicas.gather(unreadable))}
    return metrics.compute(), list(by_image.values())


def _answer(model: nn.Module, batch: Batch) -> Any:
    return model(*batch.inputs)


def _join(metrics: Any, replicas: Replicas) -> None:
    """Give ``metrics`` the values of all processes."""
    if replicas.world == 1:
        return
    if hasattr(metrics, "join"):
        metrics.join(replicas.gather(metrics.parts))
    else:
        metrics.totals = replicas.sum(metrics.totals)
