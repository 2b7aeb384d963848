"""The layers that a conversion puts in place of others."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..nn import GainConv2d, WSConv2d


class Rescale(nn.Module):
    """A constant factor: ``factor * x``; where a normalization stood that followed no convolution.

    Example:
        >>> Rescale(2.0)(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:.6g}"


_PLAIN = ("Conv2d", "Conv2dSame", "StdConv2d", "StdConv2dSame")  # classes that compute what their arguments say
_SAME = ("Conv2dSame", "StdConv2dSame")  # timm's, padded as TensorFlow does


def why_not(conv: nn.Module) -> str | None:
    """Why a layer cannot be replaced by one of ours; None: it can."""
    kind = type(conv).__name__
    if parametrize.is_parametrized(conv) or hasattr(conv, "weight_g"):
        return "its weight is parametrized"
    if kind not in _PLAIN or not isinstance(conv, nn.Conv2d):
        return f"there is no standardized layer for {kind}"
    for name in ("kernel_size", "stride", "dilation"):
        if len(set(getattr(conv, name))) > 1:
            return f"its {name} (={getattr(conv, name)}) is not square"
    if conv.padding_mode != "zeros":
        return f"its padding_mode is {conv.padding_mode!r}"
    if kind not in _SAME and _padding(conv) is None:
        return f"its padding (={conv.padding}) is not the same on all sides"
    return None


def _padding(conv: nn.Conv2d) -> int | None:
    if conv.padding == "valid":
        return 0
    if conv.padding == "same":
        reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
        return reach // 2 if reach % 2 == 0 else None
    return int(conv.padding[0]) if len(set(conv.padding)) == 1 else None


def standardized(conv: nn.Module, *, init: bool) -> WSConv2d:
    """The layer with a standardized weight, gain and bias in place of a convolution that :func:`why_not` allows.

    Args:
        init: draw weights anew; else the convolution's are standardized.
    """
    assert isinstance(conv, nn.Conv2d)
    layer = WSConv2d(*_sizes(conv), device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        if not init:
            layer.weight.copy_(conv.weight)
            if conv.bias is not None and layer.bias is not None:
                layer.bias.copy_(conv.bias)
    layer.train(conv.training)
    return layer


def with_gain(conv: nn.Module) -> GainConv2d:
    """The layer of the same weight, and bias, with a gain per channel."""
    assert isinstance(conv, nn.Conv2d)
    layer = GainConv2d(*_sizes(conv), device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(conv.weight)
        if conv.bias is not None and layer.bias is not None:
            layer.bias.copy_(conv.bias)
    layer.train(conv.training)
    return layer


def _sizes(conv: nn.Conv2d) -> tuple[int, int, int, int, str | int, int, int]:
    padding = "same" if type(conv).__name__ in _SAME else _padding(conv) or 0
    return (
        *(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]),
        *(padding, conv.dilation[0], conv.groups),
    )
