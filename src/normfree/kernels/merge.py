"""The merge behind Squeeze-Excite, with a handwritten gradient of two passes over memory instead of eight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import residual_merge
from .library import TYPES, available, dense, eager, laid_out, library, plain, same_layout, threads


def supported(shortcut: Tensor, branch: Tensor) -> bool:
    """Whether the compiled kernels support these: maps of one type and layout on the CPU, nothing tracing."""
    if not (eager() and available() and plain(branch) and plain(shortcut)):
        return False
    if branch.dtype not in TYPES or shortcut.dtype is not branch.dtype or branch.ndim != 4 or not branch.numel():
        return False
    return shortcut.shape == branch.shape and dense(branch) and dense(shortcut) and same_layout(shortcut, branch)


def gated_merge(shortcut: Tensor, branch: Tensor, gate_of: Callable[[Tensor], Tensor]) -> Tensor:
    """``shortcut + gate_of(branch.mean((2, 3))) * branch`` (NFNets, appendix C): (N, C, H, W) twice -> (N, C, H, W).

    Of maps of other dimensions likewise. Computed by torch's operations; the compiled kernels compute the gradient if
    they support it.

    Args:
        gate_of: from (N, C) means over places to a gate (N, C, 1, 1), differentiable.

    Example:
        >>> shortcut, branch = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> gated_merge(shortcut, branch, lambda mean: mean.sigmoid()[:, :, None, None]).shape
        torch.Size([2, 4, 8, 8])
    """
    if not (torch.is_grad_enabled() and supported(shortcut, branch)):
        return residual_merge(shortcut, branch, gate_of(branch.mean(tuple(range(2, branch.ndim)))))
    link = _Link()
    branch, mean = _Squeeze.apply(branch, link)
    return _Merge.apply(shortcut, branch, gate_of(mean), link)


class _Link:
    """Passes grad and gate from the merge's gradient to that of the mean, so that their product is not stored."""

    def __init__(self) -> None:
        self.pending: tuple[Tensor, Tensor] | None = None

    def take(self) -> tuple[Tensor, Tensor] | None:
        pending, self.pending = self.pending, None
        return pending


class _Squeeze(torch.autograd.Function):
    """A branch and its mean over places; its gradient completes that of :class:`_Merge`."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, link: _Link) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.link, ctx.places, ctx.like = link, branch.shape[2:], branch.stride()
        return branch.view_as(branch), branch.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        grad, grad_mean = grads
        pending = ctx.link.take()
        if pending is None:
            if grad_mean is None:
                return grad, None
            spread = (grad_mean / ctx.places.numel())[:, :, None, None].expand(*grad_mean.shape, *ctx.places)
            return spread if grad is None else grad + spread, None
        merged, gate = pending
        plus = torch.zeros_like(gate) if grad_mean is None else _numbers(grad_mean / ctx.places.numel(), merged)
        total = _gated(merged, gate, plus)
        return total if grad is None else total + grad, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, branch: Tensor, gate: Tensor, link: _Link) -> Tensor:
        ctx.save_for_backward(branch, gate)
        ctx.link = link
        return residual_merge(shortcut, branch, gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        branch, gate = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or not supported(branch, grad := laid_out(grad, branch)):
            of_branch = grad * gate.to(grad.dtype) if wanted[1] else None
            of_gate = (grad * branch).sum((2, 3), keepdim=True).to(gate.dtype) if wanted[2] else None
            return grad, of_branch, of_gate, None
        of_gate = _summed(grad, branch).to(gate.dtype).view(gate.shape) if wanted[2] else None
        if wanted[1]:
            ctx.link.pending = grad, _numbers(gate, grad)
        return grad, None, of_gate, None


def _numbers(x: Tensor, like: Tensor) -> Tensor:
    """Values per image and channel in the kernels' format: float32, or float64 if ``like`` is."""
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    return x.detach().to(dtype).reshape(like.shape[:2]).contiguous()


def geometry(x: Tensor) -> tuple[int, int, int, int, int]:
    """Of (N, C, H, W) for the kernels: type, images, channels, places, whether channels are last in memory."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not (x.shape[1] == 1 and x.is_contiguous())
    return TYPES[x.dtype], x.shape[0], x.shape[1], x.shape[2] * x.shape[3], int(last)


def _summed(x: Tensor, y: Tensor) -> Tensor:
    """Sums over places of ``x * y``: (N, C), in float32 at least."""
    sums = torch.empty(x.shape[:2], dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    library().nf_sum_places(*geometry(x), x.data_ptr(), y.data_ptr(), sums.data_ptr(), threads(x.numel()))
    return sums


def _gated(x: Tensor, gate: Tensor, plus: Tensor) -> Tensor:
    """``plus + gate * x`` with two numbers per image and channel."""
    out = torch.empty_like(x)
    memory = (t.data_ptr() for t in (x, gate, plus, out))
    library().nf_gated(*geometry(x), *memory, threads(x.numel()))
    return out
