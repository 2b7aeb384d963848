"""Pooling with TensorFlow's "SAME" padding."""

from torch import Tensor, nn

from ..functional import avg_pool_atrous, avg_pool_same, max_pool_same


class MaxPoolSame(nn.Module):
    """3x3 max pooling of stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    Example:
        >>> MaxPoolSame()(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 3, 4, 4])
    """

    stride = 2

    def forward(self, x: Tensor) -> Tensor:
        return max_pool_same(x)


class AvgPoolSame(nn.Module):
    """2x2 average pooling of stride 2, the padding not counted: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    With ``dilation``: stride 1, over places ``dilation`` apart: (N, C, H, W) -> (N, C, H, W).

    Example:
        >>> AvgPoolSame()(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, dilation: int | None = None):
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool_same(x) if self.dilation is None else avg_pool_atrous(x, self.dilation)

    def extra_repr(self) -> str:
        return "" if self.dilation is None else f"dilation={self.dilation}"
