"""Scaled Weight Standardization with each row in the cache, and its handwritten gradient."""

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .library import TYPES, available, dense, eager, laid_out, library, plain, threads


def supported(weight: Tensor, gain: Tensor | None, scale: float | Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the compiled kernels support these: a dense float32 weight on the CPU, gain and scale like it."""
    if not (eager() and available() and weight.dtype is torch.float32 and plain(weight) and dense(weight)):
        return False
    if weight.ndim < 2 or not weight.numel() or not (dtype is torch.float32 or dtype is torch.bfloat16):
        return False
    if gain is not None:
        if not (gain.dtype is torch.float32 and plain(gain) and dense(gain)):
            return False
        if gain.ndim != 1 or gain.numel() != weight.shape[0]:
            return False
    if scale is None or type(scale) is float or type(scale) is int:
        return True
    return (
        isinstance(scale, Tensor)
        and scale.dtype is torch.float32
        and plain(scale)
        and scale.numel() == 1
        and scale.ndim <= weight.ndim
    )


def fused_standardize_weight(
    weight: Tensor,
    gain: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    eps: float = 1e-4,
    add_eps: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """:func:`normfree.functional.standardize_weight`, by a compiled kernel if it supports this (NFNets, eq. 1).

    Args:
        weight, gain, scale, eps, add_eps: as there.
        dtype: of the result, float32 or bfloat16, for autocast without an intermediate tensor. None: the weight's.

    Returns:
        (out, in, ...) in the weight's memory layout.

    Example:
        >>> weight = torch.randn(8, 4, 3, 3)
        >>> torch.allclose(fused_standardize_weight(weight), functional.standardize_weight(weight), atol=1e-6)
        True
    """
    dtype = dtype or weight.dtype
    if not supported(weight, gain, scale, dtype):
        return functional.standardize_weight(weight, gain, scale=scale, eps=eps, add_eps=add_eps).to(dtype)
    if torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in (weight, gain, scale)):
        return _Standardize.apply(weight, gain, scale, eps, add_eps, dtype)
    return _forward(weight, gain, scale, eps, add_eps, dtype)[0]


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        gain: Tensor | None,
        scale: float | Tensor | None,
        eps: float,
        add_eps: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        out, statistics = _forward(weight, gain, scale, eps, add_eps, dtype)
        tensor = scale if isinstance(scale, Tensor) else None
        ctx.save_for_backward(weight, gain, tensor, statistics)
        ctx.scale, ctx.eps, ctx.add_eps = None if tensor is not None else scale, eps, add_eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, gain, tensor, statistics = ctx.saved_tensors
        scale = tensor if tensor is not None else ctx.scale
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not (eager() and plain(grad)):
            gradients = _portable_backward(grad, weight, gain, scale, ctx.eps, ctx.add_eps, wanted)
        else:
            gradients = _backward(grad, weight, gain, scale, statistics, wanted)
        return *gradients, None, None, None


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _number(scale: float | Tensor | None) -> float:
    return 1.0 if scale is None else scale.item() if isinstance(scale, Tensor) else float(scale)


def _forward(
    weight: Tensor, gain: Tensor | None, scale: Any, eps: float, add_eps: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The standardized weight, and (3, out): mean, its rest, 1 / sqrt(var * N), negative if ``eps`` bounds it."""
    rows, count = weight.shape[0], weight.numel()
    out, statistics = torch.empty_like(weight, dtype=dtype), weight.new_empty(3, rows)
    library().nf_standardize(
        TYPES[dtype],
        weight.data_ptr(),
        _pointer(gain),
        _number(scale),
        eps,
        add_eps,
        rows,
        count // rows,
        out.data_ptr(),
        statistics.data_ptr(),
        threads(count),
    )
    return out, statistics


def _backward(
    grad: Tensor, weight: Tensor, gain: Tensor | None, scale: Any, statistics: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    rows, count = weight.shape[0], weight.numel()
    grad = laid_out(grad, weight)
    grad_weight = torch.empty_like(weight) if wanted[0] else None
    grad_gain = torch.empty_like(gain) if gain is not None and wanted[1] else None
    dots = torch.empty(rows, dtype=torch.float64)
    grad_scale = library().nf_standardize_backward(
        TYPES[grad.dtype],
        grad.data_ptr(),
        weight.data_ptr(),
        _pointer(gain),
        _number(scale),
        rows,
        count // rows,
        statistics.data_ptr(),
        _pointer(grad_weight),
        _pointer(grad_gain),
        dots.data_ptr(),
        threads(count),
    )
    return grad_weight, grad_gain, torch.full_like(scale, grad_scale) if wanted[2] else None


def _portable_backward(
    grad: Tensor, weight: Tensor, gain: Tensor | None, scale: Any, eps: float, add_eps: bool, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """The same by autograd, for a second derivative, or a gradient that is no plain tensor."""
    again = torch.is_grad_enabled()
    inputs = [x if want else None for x, want in zip((weight, gain, scale), wanted, strict=True)]
    with torch.enable_grad():
        out = functional.standardize_weight(weight, gain, scale=scale, eps=eps, add_eps=add_eps).to(grad.dtype)
        gradients = iter(torch.autograd.grad(out, [x for x in inputs if x is not None], grad, create_graph=again))
    return [None if x is None else next(gradients) for x in inputs]
