"""Adaptive Gradient Clipping (NFNets, section 4)."""

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.hooks import RemovableHandle

from ..errors import NotFinite, UsageError
from ..functional import clip_coefficient, unitwise_norm
from .clip_statistics import ClippedGroup, ClipStatistics
from .foreach import foreach_mul_
from .sharded import FLAT, add_parts, counts_units, is_flat, is_sharded, local, sum_over_parts

_OWN_KEYS = ("name", "clipping", "one_unit")  # entries of a group that only AGC uses


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
            parameters, all clipped with ``clipping``. Parameters without a gradient are skipped. In a group with
            ``one_unit=True`` each tensor is one unit, whatever its shape.
        clipping: threshold lambda; for groups, the default of those without one.
        eps: lower bound of a unit's weight norm, so that parameters that start at zero can move.
        error_if_nonfinite: first check every gradient norm; raise and change nothing if one is not finite (waits for
            the device).

    Returns:
        Statistics of the clipping.

    Raises:
        UsageError: parameters without a ``clipping``, or one that is not above 0; a sparse gradient; parameters of
            FullyShardedDataParallel (FSDP1), whose units are cut.
        NotFinite: see ``error_if_nonfinite``.

    Example:
        >>> weight = torch.ones(2, 4, requires_grad=True)
        >>> weight.grad = torch.ones(2, 4)
        >>> agc_(weight, clipping=0.01)
        ClipStatistics(params: 2 of 2 units clipped, gradient norm 2.828)
        >>> weight.grad[0]
        tensor([0.0100, 0.0100, 0.0100, 0.0100])
    """
    measured = [_measure(group, clipping, eps) for group in as_groups(groups_or_params, clipping)]
    measured = [group for group in measured if group is not None]
    if error_if_nonfinite:
        _check_finite(measured)
    return _clip(measured)


@dataclass(frozen=True)
class _Measured:
    """A group's gradients and the norms of its units, flat; the weights' norms only if it is clipped."""

    name: str
    clipping: float | None
    eps: float
    one_unit: bool
    params: list[Tensor]
    grads: list[Tensor]
    shapes: list[torch.Size]  # of each tensor's norms, broadcastable to it
    grad_norm: Tensor
    param_norm: Tensor | None

    @property
    def counts(self) -> list[int]:
        """Units of each parameter that this process counts: the first one counts a unit that several processes have."""
        pairs = zip(self.params, self.shapes, strict=True)
        return [shape.numel() if counts_units(p, self.one_unit) else 0 for p, shape in pairs]

    def counted(self, flat: Tensor) -> Tensor:
        """The values of the units that this process counts."""
        if not any(is_sharded(p) for p in self.params):
            return flat
        pieces = flat.split([shape.numel() for shape in self.shapes])
        return torch.cat([piece[:count] for piece, count in zip(pieces, self.counts, strict=True)])


def _measure(group: dict[str, Any], clipping: float | None, eps: float) -> _Measured | None:
    """None if no parameter has a gradient."""
    threshold, name = group.get("clipping", clipping), group.get("name", "params")
    pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
    if not pairs:
        return None
    params, grads = [p for p, _ in pairs], [g for _, g in pairs]
    if any(g.is_sparse for g in grads):
        raise UsageError(f"group {name!r} has sparse gradients; AGC needs dense ones")
    if any(is_sharded(p) and p.placements != g.placements for p, g in pairs):
        raise UsageError(
            f"group {name!r} has gradients that are split over processes in another way than their weights"
        )
    one_unit = bool(group.get("one_unit"))
    norms = _norms(grads, one_unit)
    flat = torch.cat([n.flatten() for n in norms])
    weights = None if threshold is None else torch.cat([n.flatten() for n in _norms(params, one_unit)]).to(flat.dtype)
    return _Measured(name, threshold, eps, one_unit, params, grads, [n.shape for n in norms], flat, weights)


def _clip(groups: list[_Measured]) -> ClipStatistics:
    """Scale the gradients; the coefficients are computed at once for all units of a group."""
    if not groups:
        return ClipStatistics()
    norms = torch.cat([group.counted(group.grad_norm).float() for group in groups])
    statistics = ClipStatistics(torch.linalg.vector_norm(norms))
    for group in groups:
        if group.clipping is None or group.param_norm is None:
            continue
        coefficients = clip_coefficient(group.param_norm, group.grad_norm, group.clipping, group.eps)
        pieces = coefficients.split([shape.numel() for shape in group.shapes])
        pieces = [piece.view(shape) for piece, shape in zip(pieces, group.shapes, strict=True)]
        foreach_mul_([local(g) for g in group.grads], pieces)
        ratios = group.grad_norm / group.param_norm.clamp(min=group.eps)
        units = group.counted(ratios), group.counted(coefficients < 1)
        statistics.groups.append(ClippedGroup(group.name, group.params, group.counts, *units))
    return statistics


def _norms(tensors: list[Tensor], one_unit: bool) -> list[Tensor]:
    """Norm of each unit of which this process has a part, over all parts."""
    norms = [unitwise_norm(local(t)) for t in tensors]
    if one_unit:
        norms = [torch.linalg.vector_norm(n).view((1,) * n.ndim) for n in norms]
    return add_parts(norms, tensors, one_unit)


def _check_finite(measured: list[_Measured]) -> None:
    if not measured:
        return
    bad = torch.stack([(~group.grad_norm.isfinite()).sum() for group in measured]).sum()
    if sum_over_parts(bad, [p for group in measured for p in group.params]) > 0:
        raise NotFinite("a gradient is not finite; parameters are as before the step")


def as_groups(groups_or_params: Any, clipping: float | None) -> list[dict[str, Any]]:
    """Groups with a ``clipping`` each, from groups, parameters or one parameter."""
    if isinstance(groups_or_params, nn.Module | torch.optim.Optimizer):
        name = type(groups_or_params).__name__
        raise UsageError(
            f"parameters or groups are needed, not {name}; take normfree.optim.param_groups(model, clipping=0.01)"
        )
    items: list[Any] = [groups_or_params] if isinstance(groups_or_params, Tensor) else list(groups_or_params)
    groups: list[dict[str, Any]]
    if items and isinstance(items[0], dict):
        missing = [group.get("name", number) for number, group in enumerate(items) if "clipping" not in group]
        if clipping is None and missing:
            raise UsageError(
                f"group {missing[0]} has no 'clipping' (None: not clipped); "
                "take groups from normfree.optim.param_groups or pass clipping="
            )
        groups = [group | dict(params=_as_list(group["params"])) for group in items]
    elif clipping is None:
        raise UsageError("parameters were given without clipping=; 0.01 is the papers' value for batch 4096")
    else:
        groups = [dict(params=items)]
    other = next((p for group in groups for p in group["params"] if not isinstance(p, Tensor)), None)
    if other is not None:
        raise UsageError(
            f"parameters are needed, not {type(other).__name__}; model.parameters() has them without names"
        )
    for number, group in enumerate(groups):
        _check_group(group.get("name", number), group.get("clipping", clipping), group["params"])
    return groups


def _as_list(params: Any) -> list[Any]:
    """A list, as torch's optimizers accept it: from one parameter or any iterable."""
    return [params] if isinstance(params, Tensor) else list(params)


def check_clipping(clipping: Any, of: str = "") -> None:
    """A threshold must be a number above 0 or None; a tensor's value is not read, which would wait for the device."""
    if clipping is None or isinstance(clipping, Tensor):
        return
    number = _is_number(clipping)
    if not number or not clipping > 0:
        expected = "above 0" if number else "a number above 0"
        raise UsageError(f"clipping (={clipping!r}){of} must be {expected}, or None for no clipping")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_group(name: str | int, clipping: float | None, params: list[Tensor]) -> None:
    if clipping is None:
        return
    check_clipping(clipping, f" of group {name}")
    if any(is_flat(p) for p in params):
        raise UsageError(f"group {name} has {FLAT}")


class AGC:
    """Clips inside ``step`` of any torch optimizer.

    >>> model = nn.Linear(4, 2)
    >>> groups = param_groups(model, weight_decay=2e-5, clipping=0.01, roles={"weight": "weight"})
    >>> agc = AGC(torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True))
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> statistics = agc.step()  # optimizer.step() and scaler.step(optimizer) clip, too
    >>> statistics.fraction
    {'weight': 1.0, 'bias': 1.0}

    A hook before the optimizer's own step: weight decay and momentum see clipped gradients, as in the released code.
    The gradients of a closure are clipped, too.

    The threshold of a step is ``group["clipping"]``, which may be changed at any time. Once this object exists,
    ``optimizer.load_state_dict`` does not change the thresholds and names of the groups. Without it, torch takes both
    from the state, like ``lr``. So create this object first, then load.

    An optimizer has one AGC. A second one replaces the first, with a warning.

    A deep copy of the optimizer or of this object clips as the original does, and so does this object after pickling.
    An optimizer that is pickled alone comes back without its hooks; wrap it again.

    Args:
        optimizer: its groups have a ``clipping``, see :func:`param_groups`. It may be a wrapper with the attribute
            ``optimizer``, as Accelerate's.
        clipping: threshold of the groups without one.
        eps: see :func:`agc_`.
        scaler: the GradScaler in use, if any; gradients that it has not unscaled are refused.
        error_if_nonfinite: first check every gradient norm; raise and change nothing if one is not finite (waits for
            the device once per step).

    Attributes:
        statistics: of the last step; a step that the GradScaler skips does not change them.

    Raises:
        UsageError: not an optimizer; parameters that :func:`agc_` refuses; in ``step``, gradients still multiplied by
            the loss scale.
        NotFinite: in ``step``, see ``error_if_nonfinite``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipping: float | None = None,
        *,
        eps: float = 1e-3,
        scaler: GradScaler | None = None,
        error_if_nonfinite: bool = False,
    ):
        as_groups(own_optimizer(optimizer).param_groups, clipping)
        self.optimizer, self.clipping, self.eps, self.scaler = optimizer, clipping, eps, scaler
        self.error_if_nonfinite = error_if_nonfinite
        self.statistics = ClipStatistics()
        self._attach()

    def step(self, closure: Callable[[], Any] | None = None) -> ClipStatistics:
        """Clip the gradients, then step; returns statistics of the clipping."""
        self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        return self.statistics

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def remove(self) -> None:
        """Remove the hooks; the optimizer then steps without clipping."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            own_optimizer(self.optimizer).__dict__.pop("__deepcopy__", None)
        self._hooks, self.statistics = [], ClipStatistics()

    def clip(self) -> ClipStatistics:
        """Clip the gradients without a step."""
        self._check_unscaled()
        groups, nonfinite = self.optimizer.param_groups, self.error_if_nonfinite
        self.statistics = agc_(groups, self.clipping, self.eps, error_if_nonfinite=nonfinite)
        return self.statistics

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        target, *others = args  # the optimizer, and perhaps the closure
        closure = others[0] if others else kwargs.get("closure")
        if closure is None:
            self.clip()
            return None

        def clipped() -> Any:
            with torch.enable_grad():
                loss = closure()
            self.clip()
            return loss

        return (target, clipped), {k: v for k, v in kwargs.items() if k != "closure"}

    def _check_unscaled(self) -> None:
        optimizer = own_optimizer(self.optimizer)
        scaled = getattr(optimizer, "grad_scale", None) is not None  # a fused optimizer would unscale later
        if self.scaler is not None and self.scaler.is_enabled():
            scaled |= not _unscaled(self.scaler, optimizer)
        if scaled:
            raise UsageError("gradients are still multiplied by the loss scale; call scaler.unscale_(optimizer) before")

    def _attach(self) -> None:
        optimizer = own_optimizer(self.optimizer)
        previous = getattr(optimizer.__dict__.get("__deepcopy__"), "__self__", None)
        if isinstance(previous, AGC):
            warnings.warn(
                "the optimizer had an AGC already; the new one replaces it, and the old one no longer clips",
                stacklevel=3,
            )
            previous.remove()
        self._hooks = [optimizer.register_step_pre_hook(self._before_step), *keep_clipping(optimizer)]
        optimizer.__dict__["__deepcopy__"] = self._copy_optimizer  # torch's copy of an optimizer has no hooks

    def _copy_optimizer(self, memo: dict[int, Any]) -> torch.optim.Optimizer:
        optimizer = own_optimizer(self.optimizer)
        del optimizer.__dict__["__deepcopy__"]
        try:
            copied = copy.deepcopy(optimizer, memo)
        finally:
            optimizer.__dict__["__deepcopy__"] = self._copy_optimizer
        memo[id(optimizer)] = copied
        memo[id(self)] = other = AGC.__new__(AGC)
        other.__setstate__(self.__getstate__() | dict(optimizer=copied, scaler=copy.deepcopy(self.scaler, memo)))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "AGC":
        optimizer = copy.deepcopy(self.optimizer, memo)  # puts a copy of this object into ``memo``, if it is attached
        if id(self) not in memo:
            memo[id(self)] = other = AGC.__new__(AGC)
            other.__dict__.update(self.__getstate__() | dict(scaler=copy.deepcopy(self.scaler, memo), _hooks=[]))
        memo[id(self)].optimizer = optimizer
        return memo[id(self)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_hooks=bool(self._hooks), statistics=ClipStatistics())

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state["_hooks"]
        self.__dict__.update(state | dict(_hooks=[]))
        if attached:
            self._attach()


def _unscaled(scaler: GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler has divided the optimizer's gradients by the loss scale since its last step."""
    states = getattr(scaler, "_per_optimizer_states", None)
    if states is None:  # without this check, norms might be 65536 times too large
        raise UsageError(
            f"torch {torch.__version__} does not say whether gradients are still multiplied by the loss scale "
            "(GradScaler._per_optimizer_states is gone): leave out scaler= and call scaler.unscale_(optimizer) before"
        )
    return states[id(optimizer)]["stage"].name != "READY"


def own_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside a wrapper, for example of Accelerate or Lightning.

    Raises:
        UsageError: there is none.
    """
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise UsageError(
            f"an optimizer is needed, not {type(optimizer).__name__}; "
            "for example torch.optim.SGD(param_groups(model, clipping=0.01), lr=0.1)"
        )
    return inner


def keep_clipping(optimizer: torch.optim.Optimizer) -> list[RemovableHandle]:
    """From now on, ``load_state_dict`` does not change the name, clipping and one_unit of a group."""
    kept: list[dict[str, Any]] = []

    def before(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        kept[:] = [{key: group[key] for key in _OWN_KEYS if key in group} for group in optimizer.param_groups]

    def after(optimizer: torch.optim.Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, kept, strict=True):
            for key in _OWN_KEYS:
                group.pop(key, None)
            group.update(own)

    hooks = optimizer.register_load_state_dict_pre_hook(before), optimizer.register_load_state_dict_post_hook(after)
    return list(hooks)
