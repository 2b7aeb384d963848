"""Exponential moving average of the weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError


def ema_decay(step: int, decay: float) -> float:
    """Decay at ``step`` (0-based): ``min(decay, (1 + t) / (10 + t))``, so that the first averages forget the start."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """Moving average of a model's parameters and floating-point buffers (NF-ResNets, appendix C).

    ``update`` after each optimizer step: ``average = d * average + (1 - d) * parameter`` with ``d`` of
    :func:`ema_decay`. In-place, by ``_foreach_lerp_``, without parameter-sized temporaries.

    Args:
        model: averages start at its present values.
        decay: 0.99999 for the papers' 360 epochs.
        warmup: False uses ``decay`` from the first step on.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99999, *, warmup: bool = True):
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"EMA decay (={decay}) must be at least 0 and below 1")
        self.model, self.decay, self.warmup, self.steps = model, decay, warmup, 0
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present values in; call once after each optimizer step."""
        decay = ema_decay(self.steps, self.decay) if self.warmup else self.decay
        live = self._live()
        moving = [k for k, v in self.average.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in moving], [live[k] for k in moving], 1.0 - decay)
        for key in self.average.keys() - set(moving):  # integer buffers (counters) are taken over
            self.average[key].copy_(live[key])
        self.steps += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with averaged weights inside the ``with`` block; values are exchanged in place, then back."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for key, live in self._live().items():
            held = live.clone()
            live.copy_(self.average[key])
            self.average[key].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return dict(average=self.average, steps=self.steps, decay=self.decay)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            UsageError: names differ from the model's.
        """
        differing = sorted(state["average"].keys() ^ self.average.keys())
        if differing:
            raise UsageError(f"EMA state and model differ in {', '.join(differing[:8])}")
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.steps, self.decay = state["steps"], state["decay"]
