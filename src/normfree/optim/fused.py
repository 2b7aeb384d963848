"""The end of a training step in one pass over memory, compiled or by Triton: clipping, SGD, moving average."""

from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels.optimizer import supported
from .agc import as_groups, keep_clipping, own_optimizer
from .clip_statistics import ClippedGroup, ClipStatistics
from .ema import EMA


class FusedStep:
    """The same numbers as :class:`~normfree.optim.AGC` of ``torch.optim.SGD``, and :meth:`EMA.update`, in less time.

    >>> model = nn.Linear(4, 2)
    >>> groups = param_groups(model, weight_decay=2e-5, clipping=0.01, roles={"weight": "weight"})
    >>> fused = FusedStep(torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True), EMA(model))
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> statistics = fused.step()  # if fused.possible(); else AGC's step, and the average's update
    >>> statistics.fraction
    {'weight': 1.0, 'bias': 1.0}

    The optimizer keeps its state (momentum) as torch does, so that both ways of stepping may alternate. Gradients are
    not changed: the clipped ones are not written.

    Args:
        optimizer: plain SGD; its groups have a ``clipping``, see :func:`param_groups`.
            ``load_state_dict`` does not change that, see :class:`~normfree.optim.AGC`.
        ema: of the same parameters; updated with the step.
        eps: see :func:`agc_`.
        clipping: threshold of the groups without one.

    Raises:
        UsageError: not an optimizer; a group has no ``clipping``; parameters that :func:`agc_` refuses.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, ema: EMA | None = None, eps: float = 1e-3, clipping: float | None = None
    ):
        as_groups(own_optimizer(optimizer).param_groups, clipping)
        self.optimizer, self.ema, self.eps, self.clipping = optimizer, ema, eps, clipping
        self.averages = {} if ema is None else ema.by_parameter()
        keep_clipping(own_optimizer(optimizer))

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy: torch's copy of an optimizer has no hooks
        self.__dict__.update(state)
        keep_clipping(own_optimizer(self.optimizer))

    def possible(self) -> bool:
        """Whether a kernel supports this step: SGD of dense float32 parameters, with gradients, on one device."""
        groups = self.optimizer.param_groups
        if type(self.optimizer) is not torch.optim.SGD or any(
            group.get("maximize")
            or group.get("differentiable")
            or group.get("one_unit")
            or group["momentum"] == 0
            or isinstance(group["lr"], Tensor)  # on a GPU, its value is not known here
            for group in groups
        ):
            return False
        if len({(g["momentum"], g["nesterov"], g["dampening"]) for g in groups}) != 1:
            return False
        params = [p for group in groups for p in group["params"]]
        buffers = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in params]
        return supported(params, [p.grad for p in params], buffers, [self.averages.get(p) for p in params])

    @torch.no_grad()
    def step(self) -> ClipStatistics:
        """Clip, update, average. On a GPU it waits once, to know whether gradients are finite.

        Raises:
            NotFinite: a gradient is not finite; nothing has changed then.
        """
        groups = self.optimizer.param_groups
        rows = [(group, p) for group in groups for p in group["params"]]
        params = [p for _, p in rows]
        buffers, first = zip(*(self._buffer(p) for p in params), strict=True)
        averages = [self.averages.get(p) for p in params]
        update = kernels.agc_sgd_ema_(
            params,
            [p.grad for p in params],
            list(buffers),
            averages if self.ema is not None else None,
            lr=[group["lr"] for group, _ in rows],
            momentum=groups[0]["momentum"],
            nesterov=groups[0]["nesterov"],
            dampening=groups[0]["dampening"],
            weight_decay=[group["weight_decay"] for group, _ in rows],
            clipping=[self._threshold(group) for group, _ in rows],
            eps=self.eps,
            ema_decay=0.0 if self.ema is None else self.ema.next_decay(),
            first=list(first),
        )
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self.optimizer.state[p]["momentum_buffer"] = buffer
        if self.ema is not None:
            self.ema.update(updated=[average for average in averages if average is not None])
        if isinstance(update, kernels.DeviceUpdate):
            return _on_device([group | dict(clipping=self._threshold(group)) for group in groups], update)
        return _on_cpu(rows, update)

    def _threshold(self, group: dict[str, Any]) -> float | None:
        return group.get("clipping", self.clipping)

    def _buffer(self, p: Tensor) -> tuple[Tensor | None, bool]:
        """The momentum buffer of a parameter, and whether it has no value yet."""
        buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
        if buffer is not None or p.grad is None:
            return buffer, False
        return torch.empty_like(p, requires_grad=False), True


def _on_cpu(rows: list[tuple[dict[str, Any], Tensor]], update: kernels.Update) -> ClipStatistics:
    """From counts per parameter; its first units stand for the clipped ones."""
    groups: dict[str, list[tuple[Tensor, int, int, float]]] = {}
    for (group, p), clipped, units, ratio in zip(rows, update.clipped, update.units, update.ratio, strict=True):
        if units:
            groups.setdefault(group.get("name", "params"), []).append((p, clipped, units, ratio))
    statistics = ClipStatistics()
    for name, tensors in groups.items():
        flags = torch.cat([torch.arange(units) < clipped for _, clipped, units, _ in tensors])
        ratios = torch.repeat_interleave(
            torch.tensor([ratio for *_, ratio in tensors]), torch.tensor([units for _, _, units, _ in tensors])
        )
        params, counts = [p for p, *_ in tensors], [units for _, _, units, _ in tensors]
        statistics.groups.append(ClippedGroup(name, params, counts, ratios, flags))
    return statistics


def _on_device(groups: list[dict[str, Any]], update: kernels.DeviceUpdate) -> ClipStatistics:
    """From values per unit on the device, a slice for each clipped group."""
    if not len(update.norms):
        return ClipStatistics()
    statistics, counts, end = ClipStatistics(torch.linalg.vector_norm(update.norms)), iter(update.counts), 0
    for group in groups:
        present = [(p, count) for p, count in zip(group["params"], counts, strict=False) if count]
        begin, end = end, end + sum(count for _, count in present)
        if group["clipping"] is not None and present:
            params, group_counts = zip(*present, strict=True)
            units = update.ratios[begin:end], update.flags[begin:end]
            statistics.groups.append(ClippedGroup(group.get("name", "params"), params, group_counts, *units))
    return statistics
