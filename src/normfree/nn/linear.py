"""The linear layer of a standardized weight: a convolution of no dimension."""

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folded import PLAIN
from .weight_schemes import GainOptions, WSConv


class WSLinear(WSConv):
    """Linear layer of a standardized weight, with a gain and a bias per output (NFNets, eq. 1).

    ``(..., in_features) -> (..., out_features)``. Parameters: ``weight`` (out, in), ``gain`` (out,), ``bias`` (out,).
    A unit is a row of the weight.

    Args:
        bias, gain, input_scale, eps, add_eps: as in :class:`.WSConv`.

    Raises:
        UsageError: a size below 1, a number that is not finite, one input feature, whose standardized weight is 0.

    Example:
        >>> layer = WSLinear(64, 10)
        >>> layer(torch.randn(2, 5, 64)).shape
        torch.Size([2, 5, 10])
    """

    dims = 0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        add_eps: bool = False,
        **options: Unpack[GainOptions],
    ):
        super().__init__(in_features, out_features, 1, bias=bias, add_eps=add_eps, **options)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale`` (a tensor of one element) multiplies the output, folded into weight and bias."""
        bias = self.bias if scale is None or self.bias is None else self.bias * scale
        return self._apply_weight(lambda w: F.linear(x, w, bias), scale)

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: type[nn.Module] | None = None) -> Any:
        """The same function as :class:`torch.nn.Linear` of the standardized weight, with the same hooks."""
        kind: Any = plain_type or PLAIN[0]
        plain = kind(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return self._filled(plain, self.effective_weight(scale), scale)

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        text += "" if self.input_scale == 1.0 else f", input_scale={self.input_scale:.4g}"
        text += "" if self.bias is not None else ", bias=False"
        return text + ("" if self.gain is not None else ", gain=False")
