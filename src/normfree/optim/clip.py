"""Clipping gradients: adaptively, per unit or per layer (NFNets, eq. 3), or by the norm of the whole (eq. 2)."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotFinite, UsageError
from ..functional import clip_coefficient, norm_coefficient, unitwise_norm
from .clip_statistics import ClippedGroup, ClipStatistics
from .foreach import foreach_mul_
from .sharded import FLAT, add_parts, counts_units, is_flat, is_sharded, local, norm_of_all, sum_over_parts

KINDS = ("unit", "layer", "norm")


@torch.no_grad()
def agc_(
    groups_or_params: Iterable[dict[str, Any]] | Iterable[Tensor] | Tensor,
    clipping: float | None = None,
    eps: float = 1e-3,
    *,
    kind: str = "unit",
    error_if_nonfinite: bool = False,
) -> ClipStatistics:
    """Scale gradients in place, per unit, to at most ``clipping * max(|W_i|, eps)`` (NFNets, eq. 3).

    ==========  ==============================================================================================
    ``kind``    what is scaled down, and to which norm
    ==========  ==============================================================================================
    ``unit``    Adaptive Gradient Clipping: a row of a weight, a vector; to ``clipping * max(|W_i|, eps)``
    ``layer``   the same of a whole tensor, with one ratio of Frobenius norms; worse in the paper (section 4)
    ``norm``    the gradients of all clipped parameters together, to ``clipping`` (eq. 2)
    ==========  ==============================================================================================

    Args:
        groups_or_params: groups with a ``clipping`` each (:func:`param_groups`, or an optimizer's ``param_groups``), or
            parameters, all clipped with ``clipping``. Parameters without a gradient are skipped. In a group with
            ``one_unit=True`` each tensor is one unit, whatever its shape; with ``transposed=G`` tensors are weights of
            :class:`torch.nn.ConvTranspose2d` in G groups, (in, out / G, ...), and a unit is an output channel.
        clipping: threshold lambda; for groups, the default of those without one.
        eps: lower bound of a unit's weight norm, so that parameters that start at zero can move.
        kind: see the table; for groups, the default of those without ``clipping_kind``.
        error_if_nonfinite: first check every gradient norm; raise and change nothing if one is not finite (waits for
            the device).

    Returns:
        Statistics of the clipping.

    Raises:
        UsageError: parameters without a ``clipping``, or one that is not above 0; an unknown kind; groups of kind
            ``norm`` with different thresholds; a sparse gradient; parameters of FullyShardedDataParallel (FSDP1), whose
            units are cut.
        NotFinite: see ``error_if_nonfinite``.

    Example:
        >>> weight = torch.ones(2, 4, requires_grad=True)
        >>> weight.grad = torch.ones(2, 4)
        >>> agc_(weight, clipping=0.01)
        ClipStatistics(params: 2 of 2 units clipped, gradient norm 2.828)
        >>> weight.grad[0]
        tensor([0.0100, 0.0100, 0.0100, 0.0100])
    """
    measured = [_measure(group, clipping, eps, kind) for group in as_groups(groups_or_params, clipping, kind)]
    measured = [group for group in measured if group is not None]
    if error_if_nonfinite:
        _check_finite(measured)
    return _clip(measured)


@dataclass(frozen=True)
class _Measured:
    """A group's gradients and the norms of its units, flat; the weights' norms only if they bound it."""

    name: str
    clipping: float | None
    eps: float
    kind: str
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


def _measure(group: dict[str, Any], clipping: float | None, eps: float, kind: str) -> _Measured | None:
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
    kind = group.get("clipping_kind", kind)
    one_unit = kind != "unit" or bool(group.get("one_unit"))
    if threshold is not None and not one_unit and (groups := group.get("transposed")):
        if any(is_sharded(p) for p in params):
            raise UsageError(
                f"group {name!r} has sharded weights of transposed convolutions, whose units are cut; take "
                "normfree.nn.WSConvTranspose2d, or leave these layers whole"
            )
        grads = [g.unflatten(0, (groups, -1)) for g in grads]  # views: they are scaled in place
    else:
        groups = 0
    norms = _norms(grads, one_unit, bool(groups))
    flat = torch.cat([n.flatten() for n in norms])
    weights = None
    if threshold is not None and kind != "norm":
        values = [p.unflatten(0, (groups, -1)) for p in params] if groups else params
        weights = torch.cat([n.flatten() for n in _norms(values, one_unit, bool(groups))]).to(flat.dtype)
    return _Measured(name, threshold, eps, kind, one_unit, params, grads, [n.shape for n in norms], flat, weights)


def _clip(groups: list[_Measured]) -> ClipStatistics:
    """Scale the gradients; the coefficients are computed at once for all units of a group."""
    if not groups:
        return ClipStatistics()
    norms = torch.cat([group.counted(group.grad_norm).float() for group in groups])
    statistics = ClipStatistics(torch.linalg.vector_norm(norms))
    together = [group for group in groups if group.clipping is not None and group.kind == "norm"]
    whole = _norm_of_groups(together) if together else None
    for group in groups:
        if group.clipping is None:
            continue
        if group.param_norm is not None:
            coefficients = clip_coefficient(group.param_norm, group.grad_norm, group.clipping, group.eps)
            ratios = group.grad_norm / group.param_norm.clamp(min=group.eps)
        elif whole is not None:
            coefficients = norm_coefficient(whole, group.clipping).to(group.grad_norm).expand_as(group.grad_norm)
            ratios = group.grad_norm
        else:
            continue
        pieces = coefficients.split([shape.numel() for shape in group.shapes])
        pieces = [piece.view(shape) for piece, shape in zip(pieces, group.shapes, strict=True)]
        foreach_mul_([local(g) for g in group.grads], pieces)
        units = group.counted(ratios), group.counted(coefficients < 1)
        statistics.groups.append(ClippedGroup(group.name, group.params, group.counts, *units))
    return statistics


def _norm_of_groups(groups: list[_Measured]) -> Tensor:
    """L2 norm of the gradients of all groups, each of whose tensors is one unit."""
    return norm_of_all(torch.cat([group.grad_norm for group in groups]), [p for group in groups for p in group.params])


def _norms(tensors: list[Tensor], one_unit: bool, transposed: bool = False) -> list[Tensor]:
    """Norm of each unit of which this process has a part, over all parts.

    Of ``transposed`` convolutions, tensors are (groups, in / groups, out / groups, ...).
    """
    if transposed:
        return [
            unitwise_norm(t.transpose(1, 2).flatten(0, 1)).view(len(t), 1, t.shape[2], *(1,) * (t.ndim - 3))
            for t in tensors
        ]
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


def as_groups(groups_or_params: Any, clipping: float | None, kind: str = "unit") -> list[dict[str, Any]]:
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
        _check_group(group.get("name", number), group, clipping, kind)
    _check_one_threshold(groups, clipping, kind)
    return groups


def _as_list(params: Any) -> list[Any]:
    """A list, as torch's optimizers accept it: from one parameter or any iterable."""
    return [params] if isinstance(params, Tensor) else list(params)


def check_threshold(clipping: Any, of: str = "") -> None:
    """A threshold must be a number above 0 or None; a tensor's value is not read, which would wait for the device."""
    if clipping is None or isinstance(clipping, Tensor):
        return
    number = _is_number(clipping)
    if not number or not clipping > 0:
        expected = "above 0" if number else "a number above 0"
        raise UsageError(f"clipping (={clipping!r}){of} must be {expected}, or None for no clipping")


def check_kind(kind: Any, of: str = "") -> None:
    """A kind of clipping must be one of those that there are."""
    if kind not in KINDS:
        raise UsageError(f"clipping_kind (={kind!r}){of} must be one of {', '.join(KINDS)}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_group(name: str | int, group: dict[str, Any], clipping: float | None, kind: str) -> None:
    check_kind(group.get("clipping_kind", kind), f" of group {name}")
    threshold = group.get("clipping", clipping)
    if threshold is None:
        return
    check_threshold(threshold, f" of group {name}")
    if any(is_flat(p) for p in group["params"]):
        raise UsageError(f"group {name} has {FLAT}")


def _check_one_threshold(groups: list[dict[str, Any]], clipping: float | None, kind: str) -> None:
    """The norm of the whole gradient is held against one threshold."""
    thresholds = [g.get("clipping", clipping) for g in groups if g.get("clipping_kind", kind) == "norm"]
    numbers = {threshold for threshold in thresholds if threshold is not None}  # tensors are alike if they are the same
    if len(numbers) > 1:
        shown = ", ".join(sorted(map(str, numbers)))
        raise UsageError(f"clipping (={shown}) of groups with clipping_kind norm must be one threshold for all")
