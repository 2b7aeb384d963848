"""Adaptive Gradient Clipping (NFNets, section 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from ..errors import NotFinite, UsageError
from ..functional import clip_coefficient, unitwise_norm
from .clip_statistics import ClippedGroup, ClipStatistics
from .sharded import first_part, is_sharded, local, sum_over_parts


@torch.no_grad()
def agc_(
    groups_or_params: Iterable[dict[str, Any]] | Iterable[Tensor] | Tensor,
    clipping: float | None = None,
    eps: float = 1e-3,
    *,
    error_if_nonfinite: bool = False,
) -> ClipStatistics:
    """Scale gradients in place, per unit, to at most ``clipping * max(|W_i|, eps)`` (NFNets, eq. 3).

    Args:
        groups_or_params: groups with a ``clipping`` each (:func:`param_groups`, or an optimizer's ``param_groups``), or
            parameters, all clipped with ``clipping``. Parameters without a gradient are passed over.
        clipping: threshold lambda; for groups, the value of those that do not name one.
        eps: lower bound of a unit's weight norm, so that parameters that start at zero can move.
        error_if_nonfinite: look at every gradient norm first and raise, gradients untouched, if one is not finite
            (waits for the device).

    Returns:
        What was clipped.

    Raises:
        UsageError: parameters without a ``clipping``; a sparse gradient.
        NotFinite: see ``error_if_nonfinite``.
    """
    measured = [_measure(group, clipping, eps) for group in as_groups(groups_or_params, clipping)]
    measured = [group for group in measured if group is not None]
    if error_if_nonfinite:
        _refuse_nonfinite(measured)
    return _clip(measured)


@dataclass(frozen=True)
class _Measured:
    """A group's gradients and the norms of its units, in one row; weights' norms only where it is clipped."""

    name: str
    clipping: float | None
    eps: float
    params: list[Tensor]
    shapes: list[torch.Size]  # of the norms of each tensor, broadcastable to it
    grad_norm: Tensor
    param_norm: Tensor | None

    @property
    def counts(self) -> list[int]:
        """Units of each parameter that are counted here: a vector that is split over processes, in the first one."""
        pairs = zip(self.params, self.shapes, strict=True)
        return [shape.numel() if p.ndim > 1 or first_part(p) else 0 for p, shape in pairs]

    def counted(self, flat: Tensor) -> Tensor:
        if not any(is_sharded(p) for p in self.params):
            return flat
        pieces = flat.split([shape.numel() for shape in self.shapes])
        return torch.cat([piece[:count] for piece, count in zip(pieces, self.counts, strict=True)])


def _measure(group: dict[str, Any], clipping: float | None, eps: float) -> _Measured | None:
    """None where nothing has a gradient."""
    threshold, name = group.get("clipping", clipping), group.get("name", "params")
    params = [p for p in group["params"] if p.grad is not None]
    if not params:
        return None
    grads = [p.grad for p in params]
    if any(g.is_sparse for g in grads):
        raise UsageError(f"group {name!r} has sparse gradients; AGC needs dense ones")
    norms = _norms(grads)
    flat = torch.cat([n.flatten() for n in norms])
    weights = None if threshold is None else torch.cat([n.flatten() for n in _norms(params)]).to(flat.dtype)
    return _Measured(name, threshold, eps, params, [n.shape for n in norms], flat, weights)


def _clip(groups: list[_Measured]) -> ClipStatistics:
    """Scale the gradients; the formula itself runs once over all units of a group."""
    if not groups:
        return ClipStatistics()
    every = torch.cat([group.counted(group.grad_norm).float() for group in groups])
    statistics = ClipStatistics(torch.linalg.vector_norm(every))
    for group in groups:
        if group.clipping is None:
            continue
        coefficients = clip_coefficient(group.param_norm, group.grad_norm, group.clipping, group.eps)
        pieces = coefficients.split([shape.numel() for shape in group.shapes])
        pieces = [piece.view(shape) for piece, shape in zip(pieces, group.shapes, strict=True)]
        torch._foreach_mul_([local(p.grad) for p in group.params], pieces)
        ratios = group.grad_norm / group.param_norm.clamp(min=group.eps)
        flats = group.counted(ratios), group.counted(coefficients < 1)
        statistics.groups.append(ClippedGroup(group.name, group.params, group.counts, *flats))
    return statistics


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Norm of each unit that is here. Rows are never cut by sharding; vectors are, and are one unit as a whole."""
    norms = [unitwise_norm(local(t)) for t in tensors]
    cut = [i for i, t in enumerate(tensors) if t.ndim <= 1 and is_sharded(t)]
    if cut:
        squares = torch.stack([norms[i].square().sum() for i in cut])
        for i, total in zip(cut, sum_over_parts(squares, tensors).sqrt(), strict=True):
            norms[i] = total.view(norms[i].shape)
    return norms


def as_groups(groups_or_params: Any, clipping: float | None) -> list[dict[str, Any]]:
    """Groups with a ``clipping`` each, from groups, parameters or one parameter."""
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
        NotFinite: in ``step``, see ``error_if_nonfinite``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        eps: float = 1e-3,
        scaler: GradScaler | None = None,
        error_if_nonfinite: bool = False,
    ):
        as_groups(optimizer.param_groups, None)
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
        groups = self.optimizer.param_groups
        self.statistics = agc_(groups, eps=self.eps, error_if_nonfinite=self.error_if_nonfinite)
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
            scaled |= not _unscaled(self.scaler, self.optimizer)
        if scaled:
            raise UsageError("gradients are still multiplied by the loss scale; call scaler.unscale_(optimizer) before")


def _unscaled(scaler: GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler has divided the optimizer's gradients by the loss scale since its last step."""
    states = getattr(scaler, "_per_optimizer_states", None)
    if states is None:  # renamed: better refused than clipped by a norm that may be 65536 times too large
        raise UsageError(
            f"torch {torch.__version__} does not say whether gradients are still multiplied by the loss scale "
            "(GradScaler._per_optimizer_states is gone): leave out scaler= and call scaler.unscale_(optimizer) before"
        )
    return states[id(optimizer)]["stage"].name != "READY"


def _refuse_nonfinite(measured: list[_Measured]) -> None:
    if not measured:
        return
    bad = torch.stack([(~group.grad_norm.isfinite()).sum() for group in measured]).sum()
    if sum_over_parts(bad, [p for group in measured for p in group.params]) > 0:
        raise NotFinite("a gradient is not finite; parameters are as before the step")
