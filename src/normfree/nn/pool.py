"""Pooling with TensorFlow's "SAME" padding, of one to three dimensions."""

from torch import Tensor, nn

from ..errors import UsageError
from ..functional import avg_pool_atrous, avg_pool_same, max_pool_same


class MaxPoolSame(nn.Module):
    """3x3 max pooling of stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    Args:
        dims: axes of places, 1 to 3; 3 places a side in each.

    Raises:
        UsageError: another number of axes.

    Example:
        >>> MaxPoolSame()(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 3, 4, 4])
        >>> MaxPoolSame(dims=1)(torch.randn(1, 3, 7)).shape
        torch.Size([1, 3, 4])
    """

    stride = 2

    def __init__(self, dims: int = 2):
        super().__init__()
        check_dims(dims)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return max_pool_same(x, self.dims)

    def extra_repr(self) -> str:
        return "" if self.dims == 2 else f"dims={self.dims}"


class AvgPoolSame(nn.Module):
    """2x2 average pooling of stride 2, the padding not counted: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    With ``dilation``: stride 1, over places ``dilation`` apart: (N, C, H, W) -> (N, C, H, W).

    Args:
        dims: axes of places, 1 to 3; 2 places a side in each.

    Raises:
        UsageError: another number of axes.

    Example:
        >>> AvgPoolSame()(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 3, 4, 4])
        >>> AvgPoolSame(dims=3)(torch.randn(1, 3, 7, 7, 4)).shape
        torch.Size([1, 3, 4, 4, 2])
    """

    def __init__(self, dilation: int | None = None, dims: int = 2):
        super().__init__()
        check_dims(dims)
        self.dilation, self.dims = dilation, dims

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool_same(x, self.dims) if self.dilation is None else avg_pool_atrous(x, self.dilation, self.dims)

    def extra_repr(self) -> str:
        parts = [] if self.dilation is None else [f"dilation={self.dilation}"]
        return ", ".join(parts + ([] if self.dims == 2 else [f"dims={self.dims}"]))


def check_dims(dims: object) -> None:
    """Refuse what is not 1, 2 or 3; raises UsageError.

    Example:
        >>> check_dims(3)
    """
    if dims not in (1, 2, 3) or isinstance(dims, bool):
        raise UsageError(f"dims (={dims!r}) must be 1, 2 or 3")
