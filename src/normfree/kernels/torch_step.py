"""The optimizer's step with torch's operations, parameter by parameter; and what all implementations share."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor
from torch.autograd.graph import increment_version

from ..errors import NotFinite
from ..functional import clip_coefficient, unitwise_norm

NOT_FINITE = "a gradient is not finite; parameters are as before the step"


Tensors = Sequence[Tensor | None] | None  # one for each parameter, or None; None: none at all


class Columns(TypedDict):
    """Numbers of the step, one for each parameter."""

    lr: list[float]
    weight_decay: list[float]
    clipping: list[float | None]
    first: list[bool]


class Settings(TypedDict):
    """Numbers of the step that are the same for all parameters; ``check``: gradients must be finite."""

    momentum: float
    dampening: float
    nesterov: bool
    eps: float
    ema_decay: float
    write_grads: bool
    check: bool


@dataclass(frozen=True)
class Update:
    """Statistics of one step, per parameter in the given order; 0 for one without a gradient.

    Attributes:
        clipped: units whose gradient was scaled down.
        units: units of the clipped parameters.
        ratio: the largest gradient norm over weight norm, ``|G_i| / max(|W_i|, eps)``, before clipping.
    """

    clipped: list[int]
    units: list[int]
    ratio: list[float]


@dataclass(frozen=True)
class DeviceUpdate:
    """An :class:`Update` on a GPU, where nothing waits for the device until ``clipped`` or ``ratio`` is read.

    Attributes:
        units: as in :class:`Update`.
        counts: units of each parameter with a gradient, 0 for the others.
        norms, ratios, flags: per unit in the order of ``counts``, (sum of counts,): the gradient's norm, its ratio to
            the weight's, whether it was scaled down.
    """

    units: list[int]
    counts: list[int]
    norms: Tensor
    ratios: Tensor
    flags: Tensor

    @functools.cached_property
    def clipped(self) -> list[int]:
        return [int(piece.sum()) for piece in self.flags.cpu().split(self.counts)]

    @functools.cached_property
    def ratio(self) -> list[float]:
        return [float(piece.max()) if len(piece) else 0.0 for piece in self.ratios.cpu().split(self.counts)]


def units(p: Tensor) -> int:
    """Units of a parameter; vectors and scalars are one."""
    return p.shape[0] if p.ndim > 1 else 1


def clipped_units(
    params: Sequence[Tensor], grads: Sequence[Tensor | None], clipping: Sequence[float | None]
) -> list[int]:
    """Units of each clipped parameter; 0 for the others, and without a gradient."""
    rows = zip(params, grads, clipping, strict=True)
    return [units(p) if g is not None and c is not None else 0 for p, g, c in rows]


def addresses(column: Sequence[Tensor | None] | None, count: int) -> list[int]:
    """Addresses of tensors; 0 for None."""
    return [0] * count if column is None else [0 if x is None else x.data_ptr() for x in column]


def written(params: Sequence[Tensor], grads: Tensors, buffers: Tensors, averages: Tensors, settings: Settings) -> None:
    """Tell autograd which tensors a kernel has changed."""
    changed = [*params, *(buffers or ()), *((grads or ()) if settings["write_grads"] else ()), *(averages or ())]
    increment_version([x for x in changed if x is not None])


def portable(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    buffers: Tensors,
    averages: Tensors,
    columns: Columns,
    settings: Settings,
) -> Update:
    """One step; arguments as :func:`normfree.kernels.agc_sgd_ema_` has prepared them."""
    norms = [None if g is None else unitwise_norm(g) for g in grads]
    if settings["check"] and not all(bool(n.isfinite().all()) for n in norms if n is not None):
        raise NotFinite(NOT_FINITE)
    clipped, ratio = [], []
    for i, (p, g, norm) in enumerate(zip(params, grads, norms, strict=True)):
        clipped.append(0)
        ratio.append(0.0)
        if g is not None and norm is not None and p.numel():
            weight_norm = unitwise_norm(p)
            ratio[i] = float((norm / weight_norm.clamp(min=settings["eps"])).max())
            clipping = columns["clipping"][i]
            if clipping is not None:
                coefficient = clip_coefficient(weight_norm, norm, clipping, settings["eps"])
                clipped[i] = int((coefficient < 1).sum())
                g = g.mul_(coefficient) if settings["write_grads"] else g * coefficient
            _portable_sgd(p, g, None if buffers is None else buffers[i], i, columns, settings)
        average = None if averages is None else averages[i]
        if average is not None:
            average.lerp_(p.to(average.dtype), 1.0 - settings["ema_decay"])
    return Update(clipped, clipped_units(params, grads, columns["clipping"]), ratio)


def _portable_sgd(p: Tensor, g: Tensor, buffer: Tensor | None, i: int, columns: Columns, settings: Settings) -> None:
    if columns["weight_decay"][i] != 0:
        g = g.add(p, alpha=columns["weight_decay"][i])
    if buffer is not None:
        if columns["first"][i]:
            buffer.copy_(g)
        else:
            buffer.mul_(settings["momentum"]).add_(g, alpha=1 - settings["dampening"])
        g = g.add(buffer, alpha=settings["momentum"]) if settings["nesterov"] else buffer
    p.add_(g, alpha=-columns["lr"][i])
