"""Adaptive Gradient Clipping (NFNets, section 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

from ..errors import RunFailed, UsageError
from ..functional import clip_coefficient, unitwise_norm
from .sharded import first_part, is_sharded, local, sum_over_parts


@dataclass
class ClipStatistics:
    """What one clipping did. Nothing waits for the device until a number is read.

    Attributes:
        units: units per group name.
        clipped_units: clipped units per group name, tensors without dimensions.
    """

    units: dict[str, int] = field(default_factory=dict)
    clipped_units: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fraction(self) -> dict[str, float]:
        """Fraction of units clipped, per group that is clipped at all."""
        return {name: count / self.units[name] for name, count in zip(self.units, self._counts(), strict=True)}

    @property
    def total_fraction(self) -> float:
        """Fraction of all units clipped; 0.0 where no group is."""
        return sum(self._counts()) / sum(self.units.values()) if self.units else 0.0

    def _counts(self) -> list[int]:
        """Clipped units per group: the one place that waits for the device."""
        return torch.stack(list(self.clipped_units.values())).tolist() if self.units else []

    def add(self, name: str, coefficients: list[Tensor]) -> None:
        if not coefficients:
            return
        flat = torch.cat([c.flatten() for c in coefficients])
        count = (flat < 1).sum()
        self.units[name] = self.units.get(name, 0) + flat.numel()
        self.clipped_units[name] = self.clipped_units[name] + count if name in self.clipped_units else count


@torch.no_grad()
def agc_(
    groups_or_params: Iterable[dict[str, Any]] | Iterable[Tensor] | Tensor,
    clipping: float | None = None,
    eps: float = 1e-3,
) -> ClipStatistics:
    """Scale gradients in place, per unit, to at most ``clipping * max(|W_i|, eps)`` (NFNets, eq. 3).

    Args:
        groups_or_params: groups with a ``clipping`` each (:func:`param_groups`, or an optimizer's ``param_groups``), or
            parameters, all clipped with ``clipping``. Parameters without a gradient are passed over.
        clipping: threshold lambda; for groups, the value of those that do not name one.
        eps: lower bound of a unit's weight norm, so that parameters that start at zero can move.

    Returns:
        What was clipped.

    Raises:
        UsageError: parameters without a ``clipping``; a sparse gradient.
    """
    statistics = ClipStatistics()
    for group in _as_groups(groups_or_params, clipping):
        threshold = group.get("clipping", clipping)
        params = [p for p in group["params"] if p.grad is not None]
        if threshold is None or not params:
            continue
        if any(p.grad.is_sparse for p in params):
            raise UsageError(f"group {group.get('name', 'params')!r} has sparse gradients; AGC needs dense ones")
        grads = [p.grad for p in params]
        coefficients = _coefficients(params, grads, threshold, eps)
        torch._foreach_mul_([local(g) for g in grads], coefficients)
        counted = [c for c, p in zip(coefficients, params, strict=True) if p.ndim > 1 or first_part(p)]
        statistics.add(group.get("name", "params"), counted)
    return statistics


def _coefficients(params: list[Tensor], grads: list[Tensor], clipping: float, eps: float) -> list[Tensor]:
    """One tensor of coefficients per parameter; the formula itself runs once, over all units of the group."""
    norms = [_norms(tensors) for tensors in (params, grads)]
    param_norm, grad_norm = (torch.cat([n.flatten() for n in column]) for column in norms)
    flat = clip_coefficient(param_norm.to(grad_norm.dtype), grad_norm, clipping, eps)
    pieces = flat.split([n.numel() for n in norms[1]])
    return [piece.view(norm.shape) for piece, norm in zip(pieces, norms[1], strict=True)]


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Norm of each unit that is here. Rows are never cut by sharding; vectors are, and are one unit as a whole."""
    norms = [unitwise_norm(local(t)) for t in tensors]
    cut = [i for i, t in enumerate(tensors) if t.ndim <= 1 and is_sharded(t)]
    if cut:
        squares = torch.stack([norms[i].square().sum() for i in cut])
        for i, total in zip(cut, sum_over_parts(squares, tensors).sqrt(), strict=True):
            norms[i] = total.view(norms[i].shape)
    return norms


def _as_groups(groups_or_params: Any, clipping: float | None) -> list[dict[str, Any]]:
    items = [groups_or_params] if isinstance(groups_or_params, Tensor) else list(groups_or_params)
    if items and isinstance(items[0], dict):
        without = [group.get("name", number) for number, group in enumerate(items) if "clipping" not in group]
        if clipping is None and without:
            raise UsageError(
                f"group {without[0]} has no 'clipping' (None: not clipped); "
                "take groups from normfree.optim.param_groups or pass clipping="
            )
        return items
    if clipping is None:
        raise UsageError("parameters were given without clipping=; 0.01 is the papers' value for batch 4096")
    return [dict(params=items)]


class AGC:
    """Clips inside ``step`` of any torch optimizer.

    >>> optimizer = torch.optim.SGD(param_groups(model, weight_decay=2e-5, clipping=0.01), lr=0.1, momentum=0.9)
    >>> agc = AGC(optimizer)
    >>> loss.backward()
    >>> statistics = agc.step()  # optimizer.step() and scaler.step(optimizer) clip, too

    A hook in front of the optimizer's own step: weight decay and momentum see clipped gradients, as released. A closure
    is followed: its gradients are clipped, too.

    Args:
        optimizer: its groups name their ``clipping``, see :func:`param_groups`.
        eps: see :func:`agc_`.
        scaler: the GradScaler in use, if any; gradients that it has not unscaled are refused.
        error_if_nonfinite: look at every gradient norm first and raise, parameters untouched, if one is not finite
            (waits for the device once per step).

    Attributes:
        statistics: of the last step.

    Raises:
        UsageError: a group names no ``clipping``; in ``step``, gradients still multiplied by the loss scale.
        RunFailed: in ``step``, see ``error_if_nonfinite``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        eps: float = 1e-3,
        scaler: GradScaler | None = None,
        error_if_nonfinite: bool = False,
    ):
        _as_groups(optimizer.param_groups, None)
        self.optimizer, self.eps, self.scaler = optimizer, eps, scaler
        self.error_if_nonfinite = error_if_nonfinite
        self.statistics = ClipStatistics()
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def step(self, closure: Callable[[], Any] | None = None) -> ClipStatistics:
        """The optimizer's step, gradients clipped first; returns what was clipped."""
        self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        return self.statistics

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def remove(self) -> None:
        """Take the hook off: the optimizer steps without clipping again."""
        self._hook.remove()

    def clip(self) -> ClipStatistics:
        """Clip the gradients as they are, without a step."""
        self._refuse_scaled()
        if self.error_if_nonfinite:
            self._refuse_nonfinite()
        self.statistics = agc_(self.optimizer.param_groups, eps=self.eps)
        return self.statistics

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            self.clip()
            return None

        def clipped() -> Any:
            with torch.enable_grad():
                loss = closure()
            self.clip()
            return loss

        return (args[0], clipped), {k: v for k, v in kwargs.items() if k != "closure"}

    def _refuse_scaled(self) -> None:
        scaled = getattr(self.optimizer, "grad_scale", None) is not None  # a fused optimizer would unscale later
        if self.scaler is not None and self.scaler.is_enabled():
            scaled |= self.scaler._per_optimizer_states[id(self.optimizer)]["stage"] is OptState.READY
        if scaled:
            raise UsageError("gradients are still multiplied by the loss scale; call scaler.unscale_(optimizer) before")

    def _refuse_nonfinite(self) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm([local(g) for g in grads])
        if grads and not sum_over_parts(torch.stack(norms), grads).isfinite().all():
            raise RunFailed("a gradient is not finite; parameters are as before the step")
