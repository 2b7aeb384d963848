"""Exponential moving average of the weights."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .foreach import foreach_lerp_
from .sharded import fill, local


def ema_decay(step: int, decay: float) -> float:
    """Decay at ``step`` (0-based): ``min(decay, (1 + t) / (10 + t))``, so that the first averages forget the start.

    Example:
        >>> ema_decay(0, decay=0.999), ema_decay(10**6, decay=0.999)
        (0.1, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


_EXTRA_STATE = "_extra_state"  # torch's key for what a module's get_extra_state() returns


def _wide(tensor: Tensor) -> Tensor:
    """A copy, of half types in float32."""
    narrow = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if narrow else tensor.clone()


def _moves(average: Tensor) -> bool:
    return average.is_floating_point() or average.is_complex()


class EMA:
    """Moving average of a model's parameters and floating-point buffers (NF-ResNets, appendix C).

    ``update`` after each optimizer step: ``average = d * average + (1 - d) * parameter`` with ``d`` of
    :func:`ema_decay`. In-place, by ``_foreach_lerp_``, without parameter-sized temporaries. Averages of half types are
    float32, since steps of ``1 - d`` would be lost in rounding. The result of ``get_extra_state`` is not averaged.

    Args:
        model: the averages start at its current values.
        decay: 0.99999 for the papers' 360 epochs.
        warmup: False uses ``decay`` from the first step on.

    Raises:
        UsageError: not a module; a decay out of range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, decay=0.99)
        >>> ema.update()  # after each step of the optimizer
        >>> with ema.applied():
        ...     out = model(torch.ones(1, 2))
    """

    def __init__(self, model: nn.Module, decay: float = 0.99999, *, warmup: bool = True):
        if not isinstance(model, nn.Module):
            raise UsageError(f"EMA takes a network (torch.nn.Module), not {type(model).__name__}")
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"EMA decay (={decay}) must be at least 0 and below 1")
        self.model, self.decay, self.warmup, self.steps = model, decay, warmup, 0
        clones: dict[tuple[Any, ...], Tensor] = {}  # a shared tensor has one average under its several names
        self.average: dict[str, Tensor] = {
            k: clones.setdefault((local(v).data_ptr() or k, v.shape), _wide(v.detach()))
            for k, v in self._live().items()
        }

    def _live(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {k: v for k, v in state.items() if isinstance(v, Tensor) and k.rpartition(".")[2] != _EXTRA_STATE}

    def _pairs(self, without: Collection[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """Average and current value of each tensor, once; of sharded ones the local rows."""
        excluded = {id(average) for average in without}
        keys = {id(average): key for key, average in self.average.items() if id(average) not in excluded}
        if not keys:
            return []  # a state_dict of hundreds of tensors takes as long as a GPU's whole update
        live = self._live()
        pairs = {number: (self.average[key], live[key]) for number, key in keys.items()}
        return [(local(average), local(now)) for average, now in pairs.values()]

    def next_decay(self) -> float:
        """The decay of the next update."""
        return ema_decay(self.steps, self.decay) if self.warmup else self.decay

    def by_parameter(self) -> dict[Tensor, Tensor]:
        """The average of each of the model's parameters."""
        return {p: self.average[name] for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def update(self, updated: Collection[Tensor] = ()) -> None:
        """Update the averages with the model's current values; call once after each optimizer step.

        Args:
            updated: averages that already have this step's update, from :class:`FusedStep` for example.
        """
        decay = self.next_decay()
        pairs = self._pairs(updated)
        moving = [(average, live.to(average.dtype)) for average, live in pairs if _moves(average)]
        if moving:
            foreach_lerp_([average for average, _ in moving], [live for _, live in moving], 1.0 - decay)
        for average, live in pairs:
            if not _moves(average):  # integer buffers (counters) are copied
                average.copy_(live)
        self.steps += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with averaged weights inside the ``with`` block; values are exchanged in place, then back."""
        narrow = self._swap()
        try:
            yield self.model
        finally:
            self._swap(narrow)

    @torch.no_grad()
    def _swap(self, narrow: dict[int, Tensor] | None = None) -> dict[int, Tensor]:
        """Exchange values. If an average is wider than the model, it stays, and the model's value is returned.

        Args:
            narrow: values that an earlier call returned, to be restored.
        """
        narrow_values = {}
        for number, (average, live) in enumerate(self._pairs()):
            before = live.clone()
            live.copy_(narrow[number] if narrow and number in narrow else average)
            if average.dtype == live.dtype:
                average.copy_(before)
            else:
                narrow_values[number] = before
        return narrow_values

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
        wrong = [key for key, value in state["average"].items() if value.shape != self.average[key].shape]
        if wrong:
            raise UsageError(f"EMA state and model differ in the shape of {', '.join(wrong[:8])}")
        for key, value in state["average"].items():
            fill(self.average[key], value)
        self.steps, self.decay = state["steps"], state["decay"]
