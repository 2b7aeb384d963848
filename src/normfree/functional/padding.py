"""TensorFlow's "SAME" padding, of convolutions and pooling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number for each of ``dims`` axes, from one number for all or one for each.

    Example:
        >>> per_axis(3, 2), per_axis((1, 3), 2)
        ((3, 3), (1, 3))
    """
    return (value,) * dims if isinstance(value, int) else tuple(value)


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


def pad_same(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    atrous: int | Sequence[int] = 1,
    dims: int = 2,
) -> tuple[Tensor, int]:
    """``x`` (N, C, *places), zero-padded for "SAME" if the sides differ, and the symmetric padding that is left to do.

    Args:
        x: with ``dims`` axes of places, the last ones.
        kernel_size, stride, dilation, atrous: of the convolution, one for all axes or one for each.

    Example:
        >>> padded, padding = pad_same(torch.randn(1, 3, 8, 8), kernel_size=3, stride=2)
        >>> padded.shape, padding
        (torch.Size([1, 3, 9, 9]), 0)
    """
    sizes = x.shape[-dims:]
    if isinstance(kernel_size, int) and isinstance(stride, int) and isinstance(dilation, int) and atrous == 1:
        pads = [same_padding(size, kernel_size, stride, dilation) for size in sizes]
    else:
        geometry = (per_axis(value, dims) for value in (kernel_size, stride, dilation, atrous))
        pads = [
            atrous_padding(size, k, d, a) if a > 1 else same_padding(size, k, s, d)
            for size, k, s, d, a in zip(sizes, *geometry, strict=True)
        ]
    if len({side for axis in pads for side in axis}) == 1:
        return x, pads[0][0]
    sides = (*pads[1], *pads[0]) if dims == 2 else [side for axis in reversed(pads) for side in axis]
    return F.pad(x, sides), 0


_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def max_pool_same(x: Tensor, dims: int = 2) -> Tensor:
    """Max pooling of 3 places a side and stride 2 with "SAME" padding: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    Args:
        x: with ``dims`` axes of places, the last ones: 1, 2 or 3.

    Example:
        >>> max_pool_same(torch.randn(1, 3, 7, 8)).shape
        torch.Size([1, 3, 4, 4])
        >>> max_pool_same(torch.randn(1, 3, 7, 8, 9), dims=3).shape
        torch.Size([1, 3, 4, 4, 5])
    """
    pool, pads = _MAX_POOLS[dims], [same_padding(size, 3, 2) for size in x.shape[-dims:]]
    if all(pad[0] == pads[0][0] for pad in pads):  # all odd: 1 on each side; all even: the last window hangs over
        return pool(x, 3, 2, padding=1) if pads[0][0] else pool(x, 3, 2, ceil_mode=True)
    return pool(F.pad(x, [side for axis in reversed(pads) for side in axis], value=float("-inf")), 3, 2)


def avg_pool_same(x: Tensor, dims: int = 2) -> Tensor:
    """Average pooling of 2 places a side and stride 2 with "SAME" padding, which is not counted.

    Args:
        x: with ``dims`` axes of places, the last ones: 1, 2 or 3.

    Example:
        >>> avg_pool_same(torch.ones(1, 1, 3, 3)).flatten()
        tensor([1., 1., 1., 1.])
    """
    return _AVG_POOLS[dims](x, 2, 2, ceil_mode=True, count_include_pad=False)


def avg_pool_atrous(x: Tensor, dilation: int = 1, dims: int = 2) -> Tensor:
    """2x2 average of places ``dilation`` apart, at every place: (N, C, H, W) -> (N, C, H, W).

    At every ``2 * dilation``-th place it equals :func:`avg_pool_same` of every ``dilation``-th place of ``x``.

    Args:
        x: with ``dims`` axes of places, the last ones.

    Example:
        >>> avg_pool_atrous(torch.randn(1, 3, 7, 7), dilation=2).shape
        torch.Size([1, 3, 7, 7])
    """
    for dim in range(-dims, 0):
        size = x.shape[dim]
        if size > dilation:  # at the edge the place itself, since there is nothing to average with
            inner, edge = x.narrow(dim, dilation, size - dilation), x.narrow(dim, size - dilation, dilation)
            x = (x + torch.cat([inner, edge], dim)) / 2
    return x
