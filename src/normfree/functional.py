"""The papers' equations as pure functions of tensors and numbers.

"NF-ResNets" is arXiv:2101.08692 and "NFNets" is arXiv:2102.06171; where paper and released code differ, the released
weights decide (see ``docs/facts.md``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def standardize_weight(
    weight: Tensor,
    gain: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    eps: float = 1e-4,
    add_eps: bool = False,
) -> Tensor:
    """Scaled Weight Standardization: zero mean and variance 1/N per output unit (NFNets, eq. 1).

    ``gain * scale * (W - mean) / sqrt(max(var * N, eps))`` with biased statistics over the fan-in N. The maximum (not
    a sum) is what the released weights were trained with.

    Args:
        weight: (out, in, ...) weights of a convolution or linear layer.
        gain: (out,) learnable gain per output unit, or None for 1.
        scale: a further factor, a number or a tensor of one element: constants in front of the layer or behind it,
            folded into its weight.
        eps: lower bound of ``var * N``.
        add_eps: add ``eps`` to ``var`` instead, as timm does; this is not the released function.

    Returns:
        A tensor like ``weight``. Statistics of bfloat16 and float16 weights are taken in float32.

    Example:
        >>> weight = standardize_weight(torch.randn(8, 4, 3, 3))
        >>> torch.allclose(weight.square().sum((1, 2, 3)), torch.ones(8))  # a variance of 1 / N, N times
        True
    """
    dtype = weight.dtype
    if dtype in (torch.bfloat16, torch.float16):
        weight = weight.float()
    unit = (-1,) + (1,) * (weight.ndim - 1)
    var, mean = torch.var_mean(weight, dim=tuple(range(1, weight.ndim)), correction=0, keepdim=True)
    fan_in = weight[0].numel()
    factor = torch.rsqrt((var + eps) * fan_in if add_eps else (var * fan_in).clamp(min=eps))
    if gain is not None:
        factor = factor * gain.view(unit)
    if scale is not None:
        factor = factor * scale
    return torch.addcmul(-mean * factor, weight, factor).to(dtype)


def normalize_weight(
    weight: Tensor, gain: Tensor | None = None, *, scale: float | Tensor | None = None, eps: float = 1e-4
) -> Tensor:
    """Weight normalization: norm 1 per output unit (Salimans & Kingma 2016; named in NF-ResNets, appendix G.1).

    ``gain * scale * W / sqrt(max(|W|^2, eps))``: a variance of 1/N as of :func:`standardize_weight`, around 0 instead
    of the unit's mean.

    Args:
        weight, gain, scale: as of :func:`standardize_weight`.
        eps: lower bound of the squared norm.

    Returns:
        A tensor like ``weight``. Norms of bfloat16 and float16 weights are taken in float32.

    Example:
        >>> normalize_weight(torch.tensor([[3.0, 4.0]]), gain=torch.tensor([2.0]))
        tensor([[1.2000, 1.6000]])
    """
    dtype = weight.dtype
    if dtype in (torch.bfloat16, torch.float16):
        weight = weight.float()
    factor = torch.rsqrt(weight.square().sum(tuple(range(1, weight.ndim)), keepdim=True).clamp(min=eps))
    if gain is not None:
        factor = factor * gain.view((-1,) + (1,) * (weight.ndim - 1))
    if scale is not None:
        factor = factor * scale
    return (weight * factor).to(dtype)


def pull_weight(weight: Tensor, strength: float = 1.0, *, eps: float = 1e-4) -> Tensor:
    """``W - strength * (W - standardized W)``, what follows an optimizer's update (NF-ResNets, appendix G.1).

    Strength 1 is Decoupled Weight Standardization, the standardized weight itself; less is Soft WS. Like decoupled
    weight decay it is added to the weight and not to the gradient; it is not multiplied by the learning rate, so that
    1 is its maximum.

    Args:
        weight, eps: as of :func:`standardize_weight`.
        strength: 0 to 1.

    Example:
        >>> weight = torch.tensor([[2.0, 0.0]])
        >>> pull_weight(weight, 0.5), pull_weight(weight)  # the standardized weight is +-sqrt(1/2)
        (tensor([[ 1.3536, -0.3536]]), tensor([[ 0.7071, -0.7071]]))
    """
    target = standardize_weight(weight, eps=eps)
    return target if strength == 1.0 else weight.lerp(target, strength)


def expected_variances(depths: Sequence[int], alpha: float = 0.2) -> list[list[float]]:
    """Predicted variance of each block's input, per stage, at initialization (NF-ResNets, section 4).

    The signal enters with variance 1; every block adds ``alpha ** 2``; after a stage's first block (the transition,
    whose shortcut takes the downscaled activation) the variance is ``1 + alpha ** 2`` again. The ``beta`` of a block is
    the square root of its entry.

    Example:
        >>> [[round(variance, 2) for variance in stage] for stage in expected_variances([1, 3])]
        [[1.0], [1.04, 1.04, 1.08]]
    """
    variance, stages = 1.0, []
    for depth in depths:
        stage = []
        for block in range(depth):
            stage.append(variance)
            variance = (1.0 if block == 0 else variance) + alpha**2
        stages.append(stage)
    return stages


def expected_skip_variances(skips: Sequence[bool], alpha: float = 0.2, first: float = 1.0) -> list[float]:
    """Predicted variance of each block's input, and of the last one's output, where some blocks have no skip.

    A block with a skip adds ``alpha ** 2``, as in :func:`expected_variances`. One without is all branch: it divides by
    the standard deviation of its input, and the variance is 1 again. So it is in NF-EfficientNets (NF-ResNets, section
    5.2, which does not state the reset). The first block's input has variance ``first``.

    Example:
        >>> [round(variance, 2) for variance in expected_skip_variances([False, True, True, False])]
        [1.0, 1.0, 1.04, 1.08, 1.0]
    """
    variances = [first]
    for skip in skips:
        variances.append(variances[-1] + alpha**2 if skip else 1.0)
    return variances


def residual_merge(shortcut: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """``shortcut + gate * branch`` in one pass over memory; ``gate`` is (N, C, 1, 1), (N, 1, 1, 1) or (1,).

    Example:
        >>> shortcut, branch = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> residual_merge(shortcut, branch, torch.tensor([0.5])).unique()
        tensor([1.5000])
    """
    return torch.addcmul(shortcut, branch, gate.to(branch.dtype))


def survival_mask(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth's mask: 0 or 1 per example, shape (N, 1, ..., 1).

    It is not divided by the survival rate, which would change the signal's variance (NF-ResNets, appendix B.2).

    Example:
        >>> survival_mask(torch.randn(4, 3, 8, 8), rate=0.5).shape
        torch.Size([4, 1, 1, 1])
    """
    keep = torch.rand(x.shape[0], device=x.device) >= rate
    return keep.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def same_padding(size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's "SAME" padding of one axis: (before, after); the output has ``ceil(size / stride)`` places.

    Example:
        >>> same_padding(224, kernel_size=3, stride=2)
        (0, 1)
    """
    # with the remainder, a symbolic size costs torch.compile one guard instead of nested divisions
    total = max((kernel_size - 1) * dilation + 1 - (size % stride or stride), 0)
    return total // 2, total - total // 2


def atrous_padding(size: int, kernel_size: int, dilation: int, atrous: int) -> tuple[int, int]:
    """Padding of one axis if dilation replaces a stride: (before, after); the output has ``size`` places.

    Every ``dilation``-th place of the input belongs to the network with strides; of the outputs at these places, every
    ``atrous``-th equals that of a "SAME" convolution with that stride.

    Example:
        >>> atrous_padding(14, kernel_size=3, dilation=1, atrous=2)
        (0, 2)
    """
    before = same_padding(-(-size // dilation), kernel_size, atrous)[0] * dilation
    return before, (kernel_size - 1) * dilation - before


def pad_same(x: Tensor, kernel_size: int, stride: int, dilation: int = 1, atrous: int = 1) -> tuple[Tensor, int]:
    """``x`` (N, C, H, W), zero-padded for "SAME" if the sides differ, and the symmetric padding that is left to do.

    Example:
        >>> padded, padding = pad_same(torch.randn(1, 3, 8, 8), kernel_size=3, stride=2)
        >>> padded.shape, padding
        (torch.Size([1, 3, 9, 9]), 0)
    """
    if atrous > 1:
        pads = [atrous_padding(size, kernel_size, dilation, atrous) for size in x.shape[-2:]]
    else:
        pads = [same_padding(size, kernel_size, stride, dilation) for size in x.shape[-2:]]
    if len({side for axis in pads for side in axis}) == 1:
        return x, pads[0][0]
    return F.pad(x, (*pads[1], *pads[0])), 0


def max_pool_same(x: Tensor) -> Tensor:
    """3x3 max pooling of stride 2 with "SAME" padding: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    Example:
        >>> max_pool_same(torch.randn(1, 3, 7, 8)).shape
        torch.Size([1, 3, 4, 4])
    """
    pads = [same_padding(size, 3, 2) for size in x.shape[-2:]]
    if pads[0][0] == pads[1][0]:  # both odd: pad 1 on each side; both even: the last window hangs over the edge
        return F.max_pool2d(x, 3, 2, padding=1) if pads[0][0] else F.max_pool2d(x, 3, 2, ceil_mode=True)
    x = F.pad(x, (*pads[1], *pads[0]), value=float("-inf"))
    return F.max_pool2d(x, 3, 2)


def avg_pool_same(x: Tensor) -> Tensor:
    """2x2 average pooling of stride 2 with "SAME" padding that does not count the padding.

    Example:
        >>> avg_pool_same(torch.ones(1, 1, 3, 3)).flatten()
        tensor([1., 1., 1., 1.])
    """
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def avg_pool_atrous(x: Tensor, dilation: int = 1) -> Tensor:
    """2x2 average of places ``dilation`` apart, at every place: (N, C, H, W) -> (N, C, H, W).

    At every ``2 * dilation``-th place it equals :func:`avg_pool_same` of every ``dilation``-th place of ``x``.

    Example:
        >>> avg_pool_atrous(torch.randn(1, 3, 7, 7), dilation=2).shape
        torch.Size([1, 3, 7, 7])
    """
    for dim in (2, 3):
        size = x.shape[dim]
        if size > dilation:  # at the edge the place itself, since there is nothing to average with
            inner, edge = x.narrow(dim, dilation, size - dilation), x.narrow(dim, size - dilation, dilation)
            x = (x + torch.cat([inner, edge], dim)) / 2
    return x


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
