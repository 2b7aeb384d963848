"""The end of a training step in one pass over memory: clipping, weight decay, Nesterov momentum, moving average.

Compiled on the CPU, by Triton on a GPU (triton_step.py), with torch's operations elsewhere (torch_step.py).
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import NotFinite, UsageError
from .library import available, dense, eager, library, ordinary, same_layout, threads, turned_off
from .torch_step import (
    NOT_FINITE,
    Columns,
    DeviceUpdate,
    Settings,
    Tensors,
    Update,
    addresses,
    clipped_units,
    portable,
    units,
    written,
)

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

_MAX_COLUMNS = 1 << 20  # of a row, which one program of the GPU's kernel computes serially

Numbers = float | Sequence[float]
Step = Callable[
    [Sequence[Tensor], Sequence[Tensor | None], Tensors, Tensors, Columns, Settings], Update | DeviceUpdate
]  # as `portable`
Value = TypeVar("Value", float, float | None, bool)


def supported(params: Sequence[Tensor], *others: Sequence[Tensor | None] | None) -> bool:
    """Whether a fused step supports these: dense float32 on one device, each tensor laid out like its parameter."""
    return _path(params, *others) is not portable


def _path(params: Sequence[Tensor], *others: Sequence[Tensor | None] | None) -> Step:
    """The step for these tensors: the compiled one, Triton's, or the portable one."""
    if not (params and eager()):
        return portable
    device = params[0].device
    if device.type == "cpu":
        step = _compiled if available() else None
    else:
        step = _triton(device) if device.type == "cuda" and not torch.cuda.is_current_stream_capturing() else None
    if step is None or not all(_fits(p, device) and dense(p) for p in params):
        return portable
    if step is not _compiled and any(p.numel() > _MAX_COLUMNS * max(units(p), 1) for p in params):
        return portable
    alike = (
        x is None or (_fits(x, device) and x.shape == p.shape and same_layout(x, p))
        for column in others
        if column is not None
        for x, p in zip(column, params, strict=True)
    )
    return step if all(alike) else portable


def _fits(x: Tensor, device: torch.device) -> bool:
    return x.dtype is torch.float32 and x.device == device and ordinary(x)


@functools.cache
def _triton(device: torch.device) -> Step | None:
    """Triton's step, tested once on this device; None without Triton, or if the test fails."""
    if turned_off():
        return None
    try:
        from . import triton_step
    except ImportError:
        return None
    try:
        triton_step.check(device)
    except Exception as error:  # no compiler for the launcher, a GPU that Triton does not know, ...
        warnings.warn(f"the optimizer's step takes torch's operations on {device}: {error}", stacklevel=2)
        return None
    return triton_step.run


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
) -> Update | DeviceUpdate:
    """AGC (NFNets, eq. 3), then :class:`torch.optim.SGD`, then the moving average (NF-ResNets, appendix C), in place.

    The equations are :func:`normfree.functional.clip_gradient`, :func:`normfree.functional.momentum_step` and
    :func:`normfree.functional.moving_average`.

    Args:
        params: each tensor once; for its units see :func:`normfree.functional.unitwise_norm`.
        grads: like ``params``; a parameter with None is only averaged.
        momentum_buffers: like ``params``; None without a gradient, or with ``momentum=0``.
        averages: like ``params``; None averages nothing, an entry of None not that parameter.
        lr, weight_decay, clipping: one for all, or one per parameter; a clipping of None clips nothing.
        eps: lower bound of a unit's weight norm in the clipping.
        ema_decay: of this step, with :func:`normfree.optim.ema_decay` for a warm-up.
        first: the buffer has no value yet and becomes the gradient, without dampening; one for all, or per parameter.
        write_grads: write the clipped gradients to ``grads``; else these are not changed.
        error_if_nonfinite: first read every gradient, and raise if a norm is not finite; otherwise the parameters of
            such a unit become NaN.

    Returns:
        Statistics of the clipping.

    Raises:
        UsageError: sequences of different lengths; a clipping that is not above 0; Nesterov's form without momentum or
            with dampening, as in torch; a missing momentum buffer.
        NotFinite: see ``error_if_nonfinite``; nothing has changed then.

    Example:
        >>> weight, grad, buffer = torch.ones(2, 4), torch.ones(2, 4), torch.zeros(2, 4)
        >>> agc_sgd_ema_([weight], [grad], [buffer], lr=0.1, momentum=0.9, nesterov=True, clipping=0.01)
        Update(clipped=[2], units=[2], ratio=[1.0])
        >>> weight[0]
        tensor([0.9981, 0.9981, 0.9981, 0.9981])
    """
    buffers, count = None if momentum == 0 else momentum_buffers, len(params)
    _check(count, grads, buffers, averages, momentum, nesterov, dampening)
    columns = Columns(
        lr=_each("lr", lr, count),
        weight_decay=_each("weight_decay", weight_decay, count),
        clipping=_each("clipping", clipping, count),
        first=_each("first", first, count),
    )
    if any(c is not None and not c > 0 for c in columns["clipping"]):
        raise UsageError(f"clipping (={clipping}) must be above 0, or None for no clipping")
    settings = Settings(
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        eps=eps,
        ema_decay=ema_decay,
        write_grads=write_grads,
        check=error_if_nonfinite,
    )
    return _path(params, grads, buffers, averages)(params, grads, buffers, averages, columns, settings)


def _check(
    count: int,
    grads: Sequence[Tensor | None],
    buffers: Tensors,
    averages: Tensors,
    momentum: float,
    nesterov: bool,
    dampening: float,
) -> None:
    for name, column in (("grads", grads), ("momentum_buffers", buffers), ("averages", averages)):
        if column is not None and len(column) != count:
            raise UsageError(f"{name} has {len(column)} entries and params {count}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise UsageError(f"nesterov needs momentum (={momentum}) above 0 and dampening (={dampening}) of 0")
    columns = buffers or [None] * count
    if momentum != 0 and any(g is not None and b is None for g, b in zip(grads, columns, strict=True)):
        raise UsageError(f"momentum (={momentum}) needs a momentum buffer for every parameter with a gradient")


def _each(name: str, value: Value | Sequence[Value], count: int) -> list[Value]:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} has {len(value)} entries and params {count}")
    return list(value)


def _compiled(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    buffers: Tensors,
    averages: Tensors,
    columns: Columns,
    settings: Settings,
) -> Update:
    """One call for all parameters."""
    count = len(params)
    table = np.zeros(count, _PARAMETER)
    for name, column in dict(value=params, grad=grads, buffer=buffers, average=averages).items():
        table[name] = addresses(column, count)
    rows = [units(p) for p in params]
    table["rows"], table["columns"] = rows, [p.numel() // max(r, 1) for p, r in zip(params, rows, strict=True)]
    for name in ("lr", "weight_decay", "clipping", "first"):
        table[name] = [0 if value is None else value for value in columns[name]]
    call = np.zeros(1, _SETTINGS)
    for name in ("momentum", "dampening", "eps", "nesterov", "write_grads", "check"):
        call[name] = settings[name]
    call["ema_weight"] = 1.0 - settings["ema_decay"]
    elements = sum(p.numel() for p in params)
    outcome = library().nf_optimizer_step(table.ctypes.data, count, call.ctypes.data, threads(elements))
    if outcome == _NONFINITE:
        raise NotFinite(NOT_FINITE)
    if outcome == _NO_MEMORY:
        raise MemoryError("no memory for the gradients' norms")
    written(params, grads, buffers, averages, settings)
    return Update(table["clipped"].tolist(), clipped_units(params, grads, columns["clipping"]), table["ratio"].tolist())
