"""GELU's tanh form and SiLU at the speed of memory; torch's CPU GELU in that form takes several times its erf form."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import TYPES, available, dense, eager, laid_out, library, plain, threads

_GELU, _SILU = 0, 1  # as in cpu.cpp


def supported(x: Tensor) -> bool:
    """Whether the compiled kernels take ``x``: float32 or bfloat16, dense, on the CPU, nothing tracing."""
    # is_compiling is asked first, inside eager: what follows is not for a compiler to read
    return eager() and available() and plain(x) and x.dtype in (torch.float32, torch.bfloat16) and dense(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """``F.gelu(x, approximate="tanh")``, any shape; what the kernels do not support goes there.

    Computed in float32 as ``x * sigmoid(2u)``, which is ``x / 2 * (1 + tanh(u))`` without the cancellation for negative
    ``x``; bfloat16 is rounded once, at the end.
    """
    if not supported(x):
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x) if x.requires_grad and torch.is_grad_enabled() else _forward(_GELU, x)


def silu(x: Tensor) -> Tensor:
    """``F.silu(x)``, any shape; what the kernels do not support goes there. bfloat16 is rounded once, at the end."""
    if not supported(x):
        return F.silu(x)
    return _Silu.apply(x) if x.requires_grad and torch.is_grad_enabled() else _forward(_SILU, x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(_GELU, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if _differentiates_once(grad, x):
            return _backward(_GELU, grad, x)
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(_SILU, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if _differentiates_once(grad, x):
            return _backward(_SILU, grad, x)
        sigmoid = torch.sigmoid(x)  # aten's own gradient cannot be differentiated
        return grad * sigmoid * (1 + x * (1 - sigmoid))


def _differentiates_once(grad: Tensor, x: Tensor) -> bool:
    """Whether the compiled gradient will do; with ``create_graph`` it must be differentiable itself, as torch's is."""
    return not torch.is_grad_enabled() and eager() and plain(grad) and plain(x) and grad.dtype == x.dtype


def _forward(function: int, x: Tensor) -> Tensor:
    out, count = torch.empty_like(x), x.numel()
    library().nf_activation(function, TYPES[x.dtype], x.data_ptr(), out.data_ptr(), count, threads(count))
    return out


def _backward(function: int, grad: Tensor, x: Tensor) -> Tensor:
    grad, out, count = laid_out(grad, x), torch.empty_like(x), x.numel()
    library().nf_activation_backward(
        function, TYPES[x.dtype], grad.data_ptr(), x.data_ptr(), out.data_ptr(), count, threads(count)
    )
    return out
