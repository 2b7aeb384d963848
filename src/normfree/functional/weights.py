"""What a layer makes of its weight: Scaled Weight Standardization and its kin.

"NF-ResNets" is arXiv:2101.08692 and "NFNets" is arXiv:2102.06171.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .padding import per_axis


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


def standardize_transposed(
    weight: Tensor,
    gain: Tensor | None = None,
    *,
    stride: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    scale: float | Tensor | None = None,
    eps: float = 1e-4,
    add_eps: bool = False,
) -> Tensor:
    """Scaled Weight Standardization of a transposed convolution: each output place keeps the variance of the input.

    A transposed convolution of stride s is s ordinary ones per axis whose outputs are interleaved: of the taps of an
    output channel, only those reach a place that lie s apart, on average ``prod(kernel) / prod(stride)`` of them. Each
    such set is standardized as :func:`standardize_weight` does a unit (NFNets, eq. 1). Standardized as one unit, each
    set keeps a mean of its own, and behind an activation, whose mean is not 0, the variance grows by
    ``mean**2 * (1 - 1 / prod(stride))``: by a third behind a ReLU with stride 2 in two dimensions. Where the stride is
    larger than the kernel, some places have no taps; a further factor then keeps the mean over all places.

    Args:
        weight: (out, in / groups, *kernel), the output channel first: :func:`swap_channels` of torch's layout.
        gain, scale, eps, add_eps: as of :func:`standardize_weight`, for each set.
        stride, dilation: of the convolution, one for all axes or one for each.

    Example:
        >>> weight = standardize_transposed(torch.randn(8, 4, 2, 2), stride=2)
        >>> torch.allclose(weight.square().sum(1), torch.ones(8, 2, 2)), weight.mean(1).abs().max() < 1e-6
        (True, tensor(True))
    """
    dtype, kernel = weight.dtype, weight.shape[2:]
    weight = weight.float() if dtype in (torch.bfloat16, torch.float16) else weight
    sets, spread = _tap_sets(kernel, per_axis(stride, len(kernel)), per_axis(dilation, len(kernel)), weight)
    flat = weight.flatten(2)
    counts = sets.sum(0) * weight.shape[1]
    centred = flat - (flat.sum(1) @ sets / counts @ sets.T).unsqueeze(1)
    square = centred.square().sum(1) @ sets
    factor = torch.rsqrt(square + eps * counts if add_eps else square.clamp(min=eps)) * spread
    if gain is not None:
        factor = factor * gain.unsqueeze(1)
    if scale is not None:
        factor = factor * scale
    return (centred * (factor @ sets.T).unsqueeze(1)).view_as(weight).to(dtype)


def _tap_sets(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], like: Tensor
) -> tuple[Tensor, float]:
    """Which taps of a transposed convolution reach the same places, (taps, sets) of 0 and 1, and the factor for places
    that none reaches."""
    number, count, spread = torch.zeros(1, dtype=torch.int64, device=like.device), 1, 1.0
    for size, step, apart in zip(kernel, stride, dilation, strict=True):
        period = step // math.gcd(step, apart)
        sets = min(size, period)
        number = (number[:, None] * sets + torch.arange(size, device=like.device) % period).flatten()
        count, spread = count * sets, spread * step / sets
    return (number[:, None] == torch.arange(count, device=like.device)).to(like.dtype), math.sqrt(spread)


def swap_channels(weight: Tensor, groups: int = 1) -> Tensor:
    """A transposed convolution's weight from torch's layout (in, out / groups, ...) to ours, or back.

    Ours is (out, in / groups, ...), as of other convolutions: the first dimension counts units.

    Example:
        >>> weight = torch.randn(6, 4, 3, 3)  # 6 inputs and 8 outputs in 2 groups
        >>> swap_channels(weight, groups=2).shape
        torch.Size([8, 3, 3, 3])
        >>> torch.equal(swap_channels(swap_channels(weight, 2), 2), weight)
        True
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


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
