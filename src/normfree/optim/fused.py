"""The end of a training step in one pass over memory, compiled or by Triton: clipping, SGD, moving average."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import kernels
from ..errors import UsageError
from ..kernels.library import dense
from ..kernels.optimizer import supported
from .agc import keep_clipping, own_optimizer
from .clip import as_groups
from .clip_statistics import ClippedGroup, ClipStatistics
from .ema import EMA
from .pull import pull_of


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
        kind: of the groups without ``clipping_kind``, see :func:`agc_`; with ``norm`` no step is possible, since the
            factor is known only when every gradient has been read.

    Raises:
        UsageError: not an optimizer; a group has no ``clipping``; parameters that :func:`agc_` refuses.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None = None,
        eps: float = 1e-3,
        clipping: float | None = None,
        kind: str = "unit",
    ):
        as_groups(own_optimizer(optimizer).param_groups, clipping, kind)
        self.optimizer, self.ema, self.eps, self.clipping, self.kind = optimizer, ema, eps, clipping, kind
        self.averages = {} if ema is None else ema.by_parameter()
        keep_clipping(own_optimizer(optimizer))

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy: torch's copy of an optimizer has no hooks
        self.__dict__.update(state)
        keep_clipping(own_optimizer(self.optimizer))

    def possible(self) -> bool:
        """Whether a kernel supports this step: plain SGD of dense float32 parameters on one device, without a
        :class:`~normfree.optim.WeightPull`, which stands between the step and the average, and without clipped weights
        of torch's transposed convolutions, whose units are not rows.

        Clipping is per unit or per layer. On a GPU, a unit or layer has 1,048,576 elements at most.
        """
        groups = self.optimizer.param_groups
        if (
            type(self.optimizer) is not torch.optim.SGD
            or pull_of(self.optimizer) is not None
            or any(
                group.get("maximize")
                or group.get("differentiable")
                or self._clipped_together(group)
                or self._of_columns(group)
                or group["momentum"] == 0
                or isinstance(group["lr"], Tensor)  # on a GPU, its value is not known here
                for group in groups
            )
        ):
            return False
        if len({(g["momentum"], g["nesterov"], g["dampening"]) for g in groups}) != 1:
            return False
        rows = [(self._one_unit(group), p) for group in groups for p in group["params"]]
        params = [p for _, p in rows]
        buffers = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in params]
        others = [p.grad for p in params], buffers, [self.averages.get(p) for p in params]
        if not supported(params, *others):
            return False
        flat = [one_unit for one_unit, _ in rows]
        return not any(flat) or supported(_flattened(params, flat), *(_flattened(column, flat) for column in others))

    def _clipped_together(self, group: dict[str, Any]) -> bool:
        return group.get("clipping_kind", self.kind) == "norm" and self._threshold(group) is not None

    def _of_columns(self, group: dict[str, Any]) -> bool:
        """Whether units are clipped that are not rows."""
        clipped = self._threshold(group) is not None and not self._one_unit(group)
        return clipped and bool(group.get("transposed"))

    def _one_unit(self, group: dict[str, Any]) -> bool:
        """Whether each tensor of the group is one unit."""
        return bool(group.get("one_unit")) or group.get("clipping_kind", self.kind) == "layer"

    @torch.no_grad()
    def step(self) -> ClipStatistics:
        """Clip, update, average. On a GPU it waits once, to know whether gradients are finite.

        Raises:
            NotFinite: a gradient is not finite; nothing has changed then.
            UsageError: it is not possible because of the clipping.
        """
        groups = self.optimizer.param_groups
        if any(self._clipped_together(group) for group in groups):
            raise UsageError("clipping_kind (='norm') has no fused step (possible() is false); take the step of AGC")
        if any(self._of_columns(group) for group in groups):
            raise UsageError(
                "weights of transposed convolutions have no fused step (possible() is false); take the step of AGC"
            )
        rows = [(group, p) for group in groups for p in group["params"]]
        params = [p for _, p in rows]
        buffers, first = zip(*(self._buffer(p) for p in params), strict=True)
        averages, flat = [self.averages.get(p) for p in params], [self._one_unit(group) for group, _ in rows]
        update = kernels.agc_sgd_ema_(
            _flattened(params, flat),
            _flattened([p.grad for p in params], flat),
            _flattened(buffers, flat),
            _flattened(averages, flat) if self.ema is not None else None,
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


Some = TypeVar("Some", Tensor, Tensor | None)


@torch.no_grad()
def _flattened(tensors: Sequence[Some], flat: Sequence[bool]) -> list[Some]:
    """The tensors, some of them as vectors in their own memory: to a kernel, a vector is one unit."""
    if not any(flat):
        return list(tensors)
    vectors = []
    for x, vector in zip(tensors, flat, strict=True):
        if x is not None and vector and not dense(x):
            raise UsageError(f"a tensor of shape {tuple(x.shape)} is not dense (possible() is false); take AGC's step")
        vectors.append(x.as_strided((x.numel(),), (1,)) if x is not None and vector else x)
    return vectors


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
