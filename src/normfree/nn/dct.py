"""The discrete cosine transform of an image's blocks, as a fixed first layer."""

import math

import torch
from torch import Tensor, nn

from ..errors import check_count
from ..functional import pad_same


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix: row k holds ``sqrt(2 / size) * cos(pi * k * (2 * n + 1) / (2 * size))``.

    (``size``, ``size``), float64. Row 0 is divided by ``sqrt(2)``, so that the transpose is the inverse.

    Example:
        >>> matrix = dct_matrix(8)
        >>> torch.allclose(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))
        True
    """
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class BlockDCT2d(nn.Module):
    """The coefficients of an image's blocks of ``size`` x ``size`` pixels, as channels (NFNets, appendix E).

    ``(N, in_channels, H, W) -> (N, in_channels * size ** 2, ceil(H / size), ceil(W / size))``. Channel
    ``(c * size + u) * size + v`` holds the vertical frequency u and the horizontal frequency v of channel c. The
    transform is the orthonormal DCT-II: it keeps the sum of squares of each block, so that no information is lost and
    noise of variance 1 leaves it with variance 1. A side that ``size`` does not divide is padded with zeros. The layer
    has no parameters, and its weight is not saved.

    Args:
        in_channels: of the images.
        size: side of the blocks, in pixels.

    Raises:
        UsageError: channels or size below 1.

    Example:
        >>> layer, image = BlockDCT2d(3), torch.randn(1, 3, 32, 32)
        >>> layer(image).shape, bool((layer(image).square().sum() / image.square().sum() - 1).abs() < 1e-5)
        (torch.Size([1, 192, 4, 4]), True)
    """

    weight: Tensor

    def __init__(self, in_channels: int, size: int = 8):
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("size", size)
        self.in_channels, self.out_channels, self.stride = in_channels, in_channels * size**2, size
        self.register_buffer("weight", torch.empty(self.out_channels, 1, size, size), persistent=False)
        self.reset_constants()

    @torch.no_grad()
    def reset_constants(self) -> None:
        """Write the transform into the weight, whose memory may hold anything."""
        matrix = dct_matrix(self.stride)
        basis = torch.einsum("uy,vx->uvyx", matrix, matrix).flatten(0, 1)[:, None]
        self.weight.copy_(basis.repeat(self.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, padding = pad_same(x, self.stride, self.stride)
        return nn.functional.conv2d(x, self.weight, None, self.stride, padding, groups=self.in_channels)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, size={self.stride}"
