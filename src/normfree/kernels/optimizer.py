"""A training step's tail in one pass over memory: clipping, weight decay, Nesterov momentum, moving average."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..errors import NotFinite, UsageError
from ..functional import clip_coefficient, unitwise_norm
from .library import available, dense, eager, library, plain, same_layout, threads

# Parameter and Settings of optimizer.h
_PARAMETER = np.dtype(
    [(name, np.uint64) for name in ("value", "grad", "buffer", "average")]
    + [(name, np.int64) for name in ("rows", "columns")]
    + [(name, np.float64) for name in ("lr", "weight_decay", "clipping")]
    + [(name, np.int64) for name in ("first", "clipped")]
    + [("ratio", np.float64)]
    + [(name, np.int64) for name in ("nonfinite", "block", "unit")]
)
_SETTINGS = np.dtype(
    [(name, np.float64) for name in ("momentum", "dampening", "eps", "ema_weight")]
    + [(name, np.int64) for name in ("nesterov", "write_grads", "check")]
)
_NONFINITE, _NO_MEMORY = 1, 2  # as in cpu.cpp

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Update:
    """What one step did, per parameter in the order given; 0 for one without a gradient.

    Attributes:
        clipped: units whose gradient was scaled down.
        units: units of the parameters that are clipped at all.
        ratio: the largest gradient norm over weight norm, ``|G_i| / max(|W_i|, eps)``, before clipping.
    """

    clipped: list[int]
    units: list[int]
    ratio: list[float]


def supported(params: Sequence[Tensor], *others: Sequence[Tensor | None] | None) -> bool:
    """Whether the compiled step takes these: dense float32 on the CPU, each tensor laid out like its parameter."""
    if not (eager() and available() and all(_rows_in_order(p) for p in params)):
        return False
    return all(
        x is None or (_float32(x) and x.shape == p.shape and same_layout(x, p))
        for column in others
        if column is not None
        for x, p in zip(column, params, strict=True)
    )


def _float32(x: Tensor) -> bool:
    return x.dtype is torch.float32 and plain(x)


def _rows_in_order(p: Tensor) -> bool:
    return _float32(p) and dense(p)


@torch.no_grad()
def agc_sgd_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor | None] | None,
    averages: Sequence[Tensor | None] | None = None,
    *,
    lr: Numbers,
    momentum: float = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
    weight_decay: Numbers = 0.0,
    clipping: float | Sequence[float | None] | None = None,
    eps: float = 1e-3,
    ema_decay: float = 0.0,
    first: bool | Sequence[bool] = False,
    write_grads: bool = False,
    error_if_nonfinite: bool = True,
) -> Update:
    """AGC (NFNets, eq. 3), then :class:`torch.optim.SGD`, then the moving average (NF-ResNets, appendix C), in place.

    Per unit, in torch's order: ``g *= clip_coefficient(|w|, |g|)``; ``g += weight_decay * w``;
    ``buffer = momentum * buffer + (1 - dampening) * g``; ``w -= lr * (g + momentum * buffer)`` with Nesterov, else
    ``w -= lr * buffer``; ``average = ema_decay * average + (1 - ema_decay) * w``.

    Args:
        params: each tensor once; several units if it has more than one dimension, see
            :func:`normfree.functional.unitwise_norm`.
        grads: like ``params``; where None, a parameter is only averaged.
        momentum_buffers: like ``params``; None where there is no gradient, or with ``momentum=0``, which uses none.
        averages: like ``params``; None averages nothing, an entry of None not that parameter.
        lr, weight_decay, clipping: one for all, or one per parameter; a clipping of None clips nothing.
        eps: lower bound of a unit's weight norm in the clipping.
        ema_decay: of this step, :func:`normfree.optim.ema_decay`'s for a warm-up.
        first: the buffer has no value yet and becomes the gradient, without dampening; one for all, or per parameter.
        write_grads: leave the clipped gradients in ``grads``; else these stay as they are.
        error_if_nonfinite: read every gradient once before, and raise if a norm is not finite. Without, such a unit's
            parameters become NaN.

    Returns:
        What was clipped.

    Raises:
        UsageError: sequences of different lengths; a clipping that is not above 0; Nesterov's form without momentum or
            with dampening, as in torch; a momentum buffer that is missing.
        NotFinite: see ``error_if_nonfinite``; nothing has changed then.
    """
    buffers = None if momentum == 0 else momentum_buffers
    _refuse(len(params), grads, buffers, averages, momentum, nesterov, dampening)
    columns = dict(lr=lr, weight_decay=weight_decay, clipping=clipping, first=first)
    columns = {name: _each(name, value, len(params)) for name, value in columns.items()}
    if any(c is not None and not c > 0 for c in columns["clipping"]):
        raise UsageError(f"clipping (={clipping}) must be above 0, or None for no clipping")
    settings = dict(momentum=momentum, dampening=dampening, nesterov=nesterov, eps=eps, ema_decay=ema_decay)
    settings |= dict(write_grads=write_grads, check=error_if_nonfinite)
    run = _compiled if supported(params, grads, buffers, averages) else _portable
    clipped, ratio = run(params, grads, buffers, averages, columns, settings)
    which = zip(params, grads, columns["clipping"], strict=True)
    return Update(clipped, [_units(p) if g is not None and c is not None else 0 for p, g, c in which], ratio)


def _refuse(count, grads, buffers, averages, momentum, nesterov, dampening) -> None:
    for name, column in (("grads", grads), ("momentum_buffers", buffers), ("averages", averages)):
        if column is not None and len(column) != count:
            raise UsageError(f"{name} has {len(column)} entries and params {count}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise UsageError(f"nesterov needs momentum (={momentum}) above 0 and dampening (={dampening}) of 0")
    held = buffers or [None] * count
    if momentum != 0 and any(g is not None and b is None for g, b in zip(grads, held, strict=True)):
        raise UsageError(f"momentum (={momentum}) needs a momentum buffer for every parameter with a gradient")


def _each(name: str, value: object, count: int) -> list:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} has {len(value)} entries and params {count}")
    return list(value)


def _units(p: Tensor) -> int:
    return p.shape[0] if p.ndim > 1 else 1


def _pointers(column: Sequence[Tensor | None] | None, count: int) -> list[int]:
    return [0] * count if column is None else [0 if x is None else x.data_ptr() for x in column]


def _compiled(params, grads, buffers, averages, columns, settings) -> tuple[list[int], list[float]]:
    """One call for all parameters. Vectors and scalars are one row."""
    count = len(params)
    table = np.zeros(count, _PARAMETER)
    for name, column in dict(value=params, grad=grads, buffer=buffers, average=averages).items():
        table[name] = _pointers(column, count)
    rows = [_units(p) for p in params]
    table["rows"], table["columns"] = rows, [p.numel() // max(r, 1) for p, r in zip(params, rows, strict=True)]
    for name, column in columns.items():
        table[name] = [0 if value is None else value for value in column]
    call = np.zeros(1, _SETTINGS)
    for name in ("momentum", "dampening", "eps", "nesterov", "write_grads", "check"):
        call[name] = settings[name]
    call["ema_weight"] = 1.0 - settings["ema_decay"]
    elements = sum(p.numel() for p in params)
    outcome = library().nf_optimizer_step(table.ctypes.data, count, call.ctypes.data, threads(elements))
    if outcome == _NONFINITE:
        raise NotFinite("a gradient is not finite; parameters are as before the step")
    if outcome == _NO_MEMORY:
        raise MemoryError("no memory for the gradients' norms")
    written = [*params, *(buffers or ()), *(grads if settings["write_grads"] else ()), *(averages or ())]
    increment_version([x for x in written if x is not None])
    return table["clipped"].tolist(), table["ratio"].tolist()


def _portable(params, grads, buffers, averages, columns, settings) -> tuple[list[int], list[float]]:
    """The same with torch's operations, a parameter at a time."""
    norms = [None if g is None else unitwise_norm(g) for g in grads]
    if settings["check"] and not all(bool(n.isfinite().all()) for n in norms if n is not None):
        raise NotFinite("a gradient is not finite; parameters are as before the step")
    clipped, ratio = [], []
    for i, (p, g, norm) in enumerate(zip(params, grads, norms, strict=True)):
        its = {name: column[i] for name, column in columns.items()}
        clipped.append(0)
        ratio.append(0.0)
        if g is not None and p.numel():
            weight_norm = unitwise_norm(p)
            ratio[i] = float((norm / weight_norm.clamp(min=settings["eps"])).max())
            if its["clipping"] is not None:
                coefficient = clip_coefficient(weight_norm, norm, its["clipping"], settings["eps"])
                clipped[i] = int((coefficient < 1).sum())
                g = g.mul_(coefficient) if settings["write_grads"] else g * coefficient
            _portable_sgd(p, g, None if buffers is None else buffers[i], its, settings)
        if averages is not None and averages[i] is not None:
            averages[i].lerp_(p, 1.0 - settings["ema_decay"])
    return clipped, ratio


def _portable_sgd(p: Tensor, g: Tensor, buffer: Tensor | None, its: dict, settings: dict) -> None:
    if its["weight_decay"] != 0:
        g = g.add(p, alpha=its["weight_decay"])
    if buffer is not None:
        if its["first"]:
            buffer.copy_(g)
        else:
            buffer.mul_(settings["momentum"]).add_(g, alpha=1 - settings["dampening"])
        g = g.add(buffer, alpha=settings["momentum"]) if settings["nesterov"] else buffer
    p.add_(g, alpha=-its["lr"])
