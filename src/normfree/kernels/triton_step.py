"""The optimizer's step on a GPU, by Triton: all parameters in one launch, a program per unit.

A table on the device has the addresses of each parameter's tensors and its numbers. So a step is one small copy and two
launches for any number of parameters, and nothing is compiled again when a learning rate changes. The computation is
that of ``optimizer.h``. This module is imported only if Triton is needed.
"""

# pyright: reportArgumentType=false, reportMissingParameterType=false, reportUnknownParameterType=false
# (parameters of Triton's kernels that are declared as constexpr take plain numbers, and the others have no annotation)

import contextlib
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotFinite
from .torch_step import (
    NOT_FINITE,
    Columns,
    DeviceUpdate,
    Settings,
    Tensors,
    addresses,
    clipped_units,
    portable,
    units,
    written,
)

BLOCK, WARPS = 1024, 4  # columns at a time, and warps for them: two loads of 16 bytes per thread
COMPILED = dict(num_warps=WARPS, enable_fp_fusion=False)  # rounded as torch's operations, one after the other

# One parameter in the table; every field has eight bytes. An address of 0: no such tensor.
_FIELDS = (
    [(name, np.uint64) for name in ("value", "grad", "buffer", "average")]
    + [(name, np.int64) for name in ("columns", "unit", "first", "aligned")]
    + [(name, np.float64) for name in ("lr", "weight_decay", "clipping")]  # clipping 0: none
)
_ENTRY = np.dtype(_FIELDS)
WORDS = tl.constexpr(len(_FIELDS))
VALUE, GRAD, BUFFER, AVERAGE, COLUMNS, UNIT, FIRST, ALIGNED, LR, WEIGHT_DECAY, CLIPPING = map(
    tl.constexpr, range(len(_FIELDS))
)


@triton.jit
def _row(address, offset, BYTES: tl.constexpr):
    """Pointer to the float32 at `offset` from an address; the caller guarantees that it is a multiple of BYTES."""
    return tl.multiple_of((address + 4 * offset).to(tl.pointer_type(tl.float32)), BYTES)


@triton.jit
def _norm(address, offset, columns, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """L2 norm of a row, summed in float32."""
    x = _row(address, offset, BYTES)
    sums = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, columns, BLOCK):
        index = at + tl.arange(0, BLOCK)
        values = tl.load(x + index, mask=index < columns, other=0.0)
        sums += values * values
    return tl.sqrt_rn(tl.sum(sums, axis=0))


@triton.jit
def _norm_of(entry, FIELD: tl.constexpr, row, BLOCK: tl.constexpr):
    """Norm of a parameter's row; four floats at a time if they are aligned."""
    columns, address = tl.load(entry + COLUMNS), tl.load(entry + FIELD)
    offset, columns = row * columns, columns.to(tl.int32)
    if tl.load(entry + ALIGNED) != 0:
        norm = _norm(address, offset, tl.multiple_of(columns, 4), 16, BLOCK)
    else:
        norm = _norm(address, offset, columns, 4, BLOCK)
    return norm


@triton.jit
def gradient_norms(table, owners, norms, bad, BLOCK: tl.constexpr):
    """The norm of each unit's gradient; `bad` becomes 1 where one is not finite."""
    program = tl.program_id(0)
    entry = table + tl.load(owners + 2 * program) * WORDS
    row = tl.load(owners + 2 * program + 1)
    if tl.load(entry + GRAD) != 0:
        norm = _norm_of(entry, GRAD, row, BLOCK)
        tl.store(norms + tl.load(entry + UNIT) + row, norm)
        if not (norm < float("inf")):  # NaN, too
            tl.store(bad, 1)


@triton.jit
def _update(
    entry, numbers, row, columns, coefficient, momentum, undamped, moving,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, WRITE: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row, block by block: torch.optim.SGD's operations in its order, and lerp's two forms as in torch."""
    has_grad, has_average = tl.load(entry + GRAD) != 0, tl.load(entry + AVERAGE) != 0
    offset = row * tl.load(entry + COLUMNS)
    value, grad = _row(tl.load(entry + VALUE), offset, BYTES), _row(tl.load(entry + GRAD), offset, BYTES)
    buffer, average = _row(tl.load(entry + BUFFER), offset, BYTES), _row(tl.load(entry + AVERAGE), offset, BYTES)
    lr, decay = tl.load(numbers + LR).to(tl.float32), tl.load(numbers + WEIGHT_DECAY).to(tl.float32)
    has_momentum = tl.load(entry + FIRST) == 0  # else the buffer has no value yet
    undamped = tl.where(has_momentum, undamped, 1.0)
    for at in range(0, columns, BLOCK):
        index = at + tl.arange(0, BLOCK)
        inside = index < columns
        w = tl.load(value + index, mask=inside, other=0.0)
        if has_grad:
            g = tl.load(grad + index, mask=inside, other=0.0) * coefficient
            if WRITE:
                tl.store(grad + index, g, mask=inside)
            step = g + decay * w
            if MOMENTUM:
                before = tl.where(has_momentum, tl.load(buffer + index, mask=inside, other=0.0), 0.0)
                after = momentum * before + undamped * step
                tl.store(buffer + index, after, mask=inside)
                step = step + momentum * after if NESTEROV else after
            w = w - lr * step
            tl.store(value + index, w, mask=inside)
        if has_average:
            mean = tl.load(average + index, mask=inside, other=0.0)
            move = w - mean
            mean = tl.where(moving < 0.5, mean + moving * move, w - move * (1.0 - moving))
            tl.store(average + index, mean, mask=inside)


@triton.jit
def step_all(
    table, numbers, owners, norms, ratios, clipped, bad, momentum, undamped, eps, moving,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, WRITE: tl.constexpr, CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One unit: its coefficient, then its update. With CHECK its gradient's norm is known; nothing changes if `bad`.

    numbers: the table's words as float64. moving: 1 - decay of the average.
    """
    if CHECK:  # noqa: SIM102 (decided at compile time)
        if tl.load(bad) != 0:
            return
    program = tl.program_id(0)
    owner = tl.load(owners + 2 * program)
    row = tl.load(owners + 2 * program + 1)
    entry, numbers = table + owner * WORDS, numbers + owner * WORDS
    coefficient = 1.0
    if tl.load(entry + GRAD) != 0:
        unit = tl.load(entry + UNIT) + row
        if CHECK:
            norm = tl.load(norms + unit)
        else:
            norm = _norm_of(entry, GRAD, row, BLOCK)
            tl.store(norms + unit, norm)
        bound = _norm_of(entry, VALUE, row, BLOCK)
        bound = tl.where(bound < eps, eps, bound)  # a NaN stays, as with torch's clamp
        threshold = tl.load(numbers + CLIPPING).to(tl.float32)
        wanted = tl.div_rn(bound * threshold, norm)
        wanted = tl.where(norm < float("inf"), wanted, float("nan"))  # not 0, where a norm is too large for float32
        down = (threshold > 0) & (wanted < 1)
        coefficient = tl.where((threshold > 0) & ~(wanted > 1), wanted, 1.0)
        tl.store(ratios + unit, tl.div_rn(norm, bound))
        tl.store(clipped + unit, down)
    columns = tl.load(entry + COLUMNS).to(tl.int32)
    if tl.load(entry + ALIGNED) != 0:
        _update(
            entry, numbers, row, tl.multiple_of(columns, 4), coefficient, momentum, undamped, moving,
            MOMENTUM, NESTEROV, WRITE, 16, BLOCK,
        )  # fmt: skip
    else:
        _update(
            entry, numbers, row, columns, coefficient, momentum, undamped, moving, MOMENTUM, NESTEROV, WRITE, 4, BLOCK
        )


@functools.lru_cache(maxsize=8)
def _plan(sizes: tuple[tuple[int, int, bool], ...], device: torch.device) -> tuple[Tensor, list[int]]:
    """The work of each program, for (rows, columns, whether there is a gradient) of each parameter.

    Returns:
        Parameter and row of each program, (programs, 2), and of each parameter the number of units with a gradient.
    """
    rows = np.array([rows if columns else 0 for rows, columns, _ in sizes])
    order = np.argsort([-columns for _, columns, _ in sizes], kind="stable")  # the longest rows must not come last
    owners = np.repeat(order, rows[order])
    inside = np.concatenate([np.arange(count) for count in rows[order]])
    programs = np.stack([owners, inside], axis=1).astype(np.int32)
    return torch.from_numpy(programs).to(device), [
        int(count) if has_grad else 0 for count, (_, _, has_grad) in zip(rows, sizes, strict=True)
    ]


def _table(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    buffers: Tensors,
    averages: Tensors,
    columns: Columns,
    sizes: Sequence[tuple[int, int, bool]],
    counts: Sequence[int],
) -> np.ndarray:
    table = np.zeros(len(params), _ENTRY)
    for name, column in dict(value=params, grad=grads, buffer=buffers, average=averages).items():
        table[name] = addresses(column, len(params))
    table["columns"] = [count for _, count, _ in sizes]
    table["unit"][1:] = np.cumsum(counts)[:-1]
    together = table["value"] | table["grad"] | table["buffer"] | table["average"]
    table["aligned"] = (together % 16 == 0) & (table["columns"] % 4 == 0)
    for name in ("lr", "weight_decay", "clipping", "first"):
        table[name] = [0 if value is None else value for value in columns[name]]
    return table


def _upload(table: np.ndarray, device: torch.device) -> Tensor:
    """The table's words, int64; the host does not wait, and torch keeps the pinned memory until it has been read."""
    words = torch.from_numpy(table.view(np.int64))
    return words.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else words


def run(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    buffers: Sequence[Tensor | None] | None,
    averages: Sequence[Tensor | None] | None,
    columns: Columns,
    settings: Settings,
) -> DeviceUpdate:
    """One step; arguments as :func:`normfree.kernels.agc_sgd_ema_` has prepared them. Waits only for the check.

    Raises:
        NotFinite: with ``settings["check"]``, after waiting for the device; nothing has changed then.
    """
    device = params[0].device
    sizes = tuple(
        (count := units(p), p.numel() // max(count, 1), g is not None) for p, g in zip(params, grads, strict=True)
    )
    owners, counts = _plan(sizes, device)
    total, check = sum(counts), bool(settings["check"])
    norms, ratios = (torch.empty(total, device=device) for _ in range(2))
    clipped, bad = torch.empty(total, dtype=torch.bool, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    if len(owners):
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            table = _upload(_table(params, grads, buffers, averages, columns, sizes, counts), device)
            if check:
                gradient_norms[(len(owners),)](table, owners, norms, bad, BLOCK=BLOCK, **COMPILED)
            rule = float(settings["momentum"]), 1.0 - settings["dampening"], float(settings["eps"])
            step_all[(len(owners),)](
                table, table.view(torch.float64), owners, norms, ratios, clipped, bad,
                *rule, 1.0 - settings["ema_decay"],
                MOMENTUM=buffers is not None, NESTEROV=bool(settings["nesterov"]),
                WRITE=bool(settings["write_grads"]), CHECK=check, BLOCK=BLOCK, **COMPILED,
            )  # fmt: skip
    if check and bad.item():
        raise NotFinite(NOT_FINITE)
    written(params, grads, buffers, averages, settings)
    return DeviceUpdate(clipped_units(params, grads, columns["clipping"]), counts, norms, ratios, clipped)


def check(device: torch.device) -> None:
    """Two steps of a few tensors on a device, compared with the portable path.

    Raises:
        RuntimeError: the numbers differ; whatever Triton raises where it cannot compile or launch.
    """
    shapes, clipped, after = [(3, 2 * BLOCK + 12), (40, 27), (70,), ()], [], []
    settings = Settings(
        momentum=0.9, dampening=0.0, nesterov=True, eps=1e-3, ema_decay=0.9, write_grads=False, check=True
    )
    for step in (run, portable):
        # not random, so that the program's random numbers do not change
        params, first, second, buffers, averages = (
            [torch.arange(i, i + math.prod(shape), device=device).sin().view(shape) for shape in shapes]
            for i in range(5)
        )
        for grads, fresh in ((first, True), (second, False)):
            columns = Columns(
                lr=[0.1] * 4, weight_decay=[0.01] * 4, clipping=[0.01, 0.3, None, 0.01], first=[fresh] * 4
            )
            clipped.append(step(params, grads, buffers, averages, columns, settings).clipped)
        after.append(params + buffers + averages)
    same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*after, strict=True))
    if not same or clipped[:2] != clipped[2:]:
        raise RuntimeError("the step's numbers differ from those of torch's operations")
