"""Schedule-free optimizers (Defazio et al. 2024, arXiv:2405.15682), of the package schedulefree."""

import importlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .ema import EMA
from .sharded import local


def build_schedule_free(kind: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """``SGDScheduleFree`` or ``AdamWScheduleFree`` over groups, with learning rate 0, in its mode of training.

    Raises:
        UsageError: the package is missing, or refuses an option.
    """
    try:
        package = importlib.import_module("schedulefree")
    except ImportError as error:
        raise UsageError(
            f"{kind} needs the package schedulefree: pip install 'normfree[schedulefree]' ({error})"
        ) from error
    try:
        optimizer = getattr(package, kind)(groups, lr=0.0, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    optimizer.train()
    return optimizer


class ScheduleFreeAverage(EMA):
    """The average ``x`` of a schedule-free optimizer, which is what the training is for.

    The network's own weights are ``y = (1 - beta) * z + beta * x``, at which gradients are taken, and the optimizer
    keeps ``z``; so ``x = y + (1 - 1 / beta) * (z - y)``. Here ``x`` stands beside the weights, as a moving average
    does, and the optimizer stays in its mode of training: switching to ``x`` in place and back would round the weights,
    and a run that saves or evaluates more often would end elsewhere. Buffers are those of the network.

    Args:
        model: over whose parameters the optimizer is.
        optimizer: of :func:`build_schedule_free`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__(model, decay=0.0)
        self.optimizer, self.averages = optimizer, self.by_parameter()

    @torch.no_grad()
    def update(self, updated: Collection[Tensor] = ()) -> None:
        """Compute the averages; call after each step of the optimizer."""
        for group in self.optimizer.param_groups:
            beta = group["momentum"] if "momentum" in group else group["betas"][0]
            for p in group["params"]:
                average, kept = local(self.averages[p]), self.optimizer.state.get(p, {}).get("z")
                average.copy_(local(p))
                if kept is not None:
                    average.lerp_(local(kept).to(average.dtype), 1 - 1 / beta)
        for average, live in self._pairs(list(self.averages.values())):
            average.copy_(live)
        self.steps += 1
