"""The end of a training step: clipping, momentum, the moving average of the weights.

"NF-ResNets" is arXiv:2101.08692 and "NFNets" is arXiv:2102.06171.
"""

import torch
from torch import Tensor


def unitwise_norm(x: Tensor) -> Tensor:
    """L2 norm of each unit (NFNets, eq. 3), broadcastable to ``x``.

    A unit is one output channel of a convolution (over its whole fan-in) or one output row of a linear layer: every
    dimension but the first is summed. A vector or a scalar (gain, bias, skip gain) is one unit. The norm of half types
    is float32, since theirs could overflow.

    Example:
        >>> unitwise_norm(torch.ones(2, 9)).flatten()
        tensor([3., 3.])
        >>> unitwise_norm(torch.ones(4))  # a vector is one unit
        tensor([2.])
    """
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)


def clip_coefficient(param_norm: Tensor, grad_norm: Tensor, clipping: float, eps: float = 1e-3) -> Tensor:
    """Factor of Adaptive Gradient Clipping per unit: ``min(1, clipping * max(|W|, eps) / |G|)`` (NFNets, eq. 3).

    Norms of any one shape; a unit without gradient gets 1. A gradient whose norm is not finite gets NaN: it stays not
    finite, where a factor of 0 would make finite elements 0.

    Example:
        >>> clip_coefficient(torch.tensor([1.0, 1.0]), torch.tensor([0.1, 0.001]), clipping=0.01)
        tensor([0.1000, 1.0000])
    """
    bounded = (param_norm.clamp(min=eps) * clipping / grad_norm).clamp(max=1.0)
    return torch.where(grad_norm.isfinite(), bounded, torch.nan)


def norm_coefficient(grad_norm: Tensor, clipping: float) -> Tensor:
    """Factor of clipping by the norm of the whole gradient: ``min(1, clipping / |G|)`` (NFNets, eq. 2).

    A norm that is not finite gets NaN, as in :func:`clip_coefficient`.

    Example:
        >>> norm_coefficient(torch.tensor([4.0, 0.5, 0.0]), clipping=1.0)
        tensor([0.2500, 1.0000, 1.0000])
    """
    return torch.where(grad_norm.isfinite(), (clipping / grad_norm).clamp(max=1.0), torch.nan)


def clip_gradient(weight: Tensor, grad: Tensor, clipping: float | None, eps: float = 1e-3) -> Tensor:
    """Adaptive Gradient Clipping: each unit's gradient is at most ``clipping * max(|W|, eps)`` long (NFNets, eq. 3).

    Args:
        weight, grad: of one shape; see :func:`unitwise_norm` for what a unit is.
        clipping: the threshold lambda; None: the gradient as it is.

    Example:
        >>> clip_gradient(torch.ones(1, 4), torch.ones(1, 4), clipping=0.01)
        tensor([[0.0100, 0.0100, 0.0100, 0.0100]])
    """
    if clipping is None:
        return grad
    return grad * clip_coefficient(unitwise_norm(weight), unitwise_norm(grad), clipping, eps)


def momentum_step(
    weight: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step of SGD with momentum, as :class:`torch.optim.SGD` takes it.

    ``g = grad + weight_decay * weight``; ``buffer = momentum * buffer + (1 - dampening) * g``;
    ``weight - lr * (g + momentum * buffer)`` in Nesterov's form, else ``weight - lr * buffer``.

    Args:
        buffer: the momentum; None in the first step, where it becomes ``g``.

    Returns:
        The new weight and the new momentum.

    Example:
        >>> weight, buffer = momentum_step(torch.ones(1), torch.ones(1), None, lr=0.1)
        >>> weight, buffer
        (tensor([0.8100]), tensor([1.]))
    """
    grad = grad + weight_decay * weight
    buffer = grad if buffer is None else momentum * buffer + (1 - dampening) * grad
    return weight - lr * (grad + momentum * buffer if nesterov else buffer), buffer


def moving_average(average: Tensor, weight: Tensor, decay: float) -> Tensor:
    """Exponential moving average: ``decay * average + (1 - decay) * weight`` (NF-ResNets, appendix C).

    Example:
        >>> moving_average(torch.zeros(1), torch.ones(1), decay=0.9)
        tensor([0.1000])
    """
    return decay * average + (1 - decay) * weight
