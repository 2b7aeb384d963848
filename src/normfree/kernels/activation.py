"""GELU in both forms and SiLU at the speed of memory; torch's gradients and tanh take two to four times as long."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import TYPES, available, dense, eager, laid_out, library, plain, threads

_GELU_TANH, _SILU, _GELU = 0, 1, 2  # as in cpu.cpp
FUNCTIONS = {"gelu": _GELU_TANH, "silu": _SILU, "gelu_erf": _GELU, "relu": 3}  # by the models' names, for merges


def supported(x: Tensor) -> bool:
    """Whether the compiled kernels support ``x``: float32 or bfloat16, dense, on the CPU, nothing tracing."""
    # eager() comes first, and in it is_compiling(): a compiler must not trace the rest
    return eager() and available() and plain(x) and x.dtype in (torch.float32, torch.bfloat16) and dense(x)


def gelu(x: Tensor) -> Tensor:
    """``F.gelu(x)``, any shape; torch's own where the kernels do not support ``x``.

    The values are torch's, to the bit, at its speed for contiguous tensors; the gradient is computed from
    the normal distribution's tail, fitted to 4e-8 of its value (5e-6 for bfloat16, which is rounded once, at the end).

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.allclose(gelu(x), F.gelu(x))
        True
    """
    return _applied(_GELU, x) if supported(x) else F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """``F.gelu(x, approximate="tanh")``, any shape; torch's own where the kernels do not support ``x``.

    Computed in float32 as ``x * sigmoid(2u)``, which is ``x / 2 * (1 + tanh(u))`` without the cancellation for negative
    ``x``; bfloat16 is rounded once, at the end.

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.allclose(gelu_tanh(x), F.gelu(x, approximate="tanh"), atol=1e-6)
        True
    """
    return _applied(_GELU_TANH, x) if supported(x) else F.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """``F.silu(x)``, any shape; torch's own where the kernels do not support ``x``. bfloat16 is rounded once.

    Example:
        >>> x = torch.randn(2, 3)
        >>> torch.allclose(silu(x), F.silu(x), atol=1e-6)
        True
    """
    return _applied(_SILU, x) if supported(x) else F.silu(x)


def _applied(function: int, x: Tensor) -> Tensor:
    return _Apply.apply(x, function) if x.requires_grad and torch.is_grad_enabled() else _forward(function, x)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return _forward(function, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        if _differentiates_once(grad, x):
            return _backward(ctx.function, grad, x), None
        if ctx.function == _SILU:
            sigmoid = torch.sigmoid(x)  # aten's own gradient cannot be differentiated
            return grad * sigmoid * (1 + x * (1 - sigmoid)), None
        form = "tanh" if ctx.function == _GELU_TANH else "none"
        return torch.ops.aten.gelu_backward(grad, x, approximate=form), None


def _differentiates_once(grad: Tensor, x: Tensor) -> bool:
    """Whether the compiled gradient suffices; with ``create_graph`` it must be differentiable, as torch's is."""
    return not torch.is_grad_enabled() and eager() and plain(grad) and plain(x) and grad.dtype == x.dtype


def _forward(function: int, x: Tensor) -> Tensor:
    if function == _GELU:  # torch computes channels-last tensors element by element
        return F.gelu(x) if x.is_contiguous() else F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return computed(function, x)


def computed(function: int, x: Tensor) -> Tensor:
    """A function by the compiled kernels, of a tensor that they support."""
    out, count = torch.empty_like(x), x.numel()
    library().nf_activation(function, TYPES[x.dtype], x.data_ptr(), out.data_ptr(), count, threads(count))
    return out


def _backward(function: int, grad: Tensor, x: Tensor) -> Tensor:
    grad, out, count = laid_out(grad, x), torch.empty_like(x), x.numel()
    library().nf_activation_backward(
        function, TYPES[x.dtype], grad.data_ptr(), x.data_ptr(), out.data_ptr(), count, threads(count)
    )
    return out
