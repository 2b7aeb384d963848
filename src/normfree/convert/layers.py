"""The layers that a conversion puts in place of others."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import nn as ours
from ..errors import UsageError
from ..functional import swap_channels


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


_CONVOLUTIONS = {nn.Conv1d: ours.WSConv1d, nn.Conv2d: ours.WSConv2d, nn.Conv3d: ours.WSConv3d}
_TRANSPOSED = {
    nn.ConvTranspose1d: ours.WSConvTranspose1d,
    nn.ConvTranspose2d: ours.WSConvTranspose2d,
    nn.ConvTranspose3d: ours.WSConvTranspose3d,
}
_WITH_GAIN = {nn.Conv1d: ours.GainConv1d, nn.Conv2d: ours.GainConv2d, nn.Conv3d: ours.GainConv3d}
_SAME = ("Conv2dSame", "StdConv2dSame")  # timm's, padded as TensorFlow does
_PLAIN = ("StdConv2d", *_SAME)  # classes of others that compute what their arguments say, but for the weight


def why_not(layer: nn.Module) -> str | None:
    """Why a layer cannot be replaced by a standardized one; None: it can."""
    kind = type(layer)
    if parametrize.is_parametrized(layer) or hasattr(layer, "weight_g"):
        return "its weight is parametrized"
    if kind not in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear) and kind.__name__ not in _PLAIN:
        return f"there is no standardized layer for {kind.__name__}"
    if not isinstance(layer, nn.Linear) and layer.padding_mode != "zeros":
        return f"its padding_mode is {layer.padding_mode!r}"
    if not isinstance(layer, nn.Linear) and kind.__name__ not in _SAME and _padding(layer) is None:
        return f"its padding (={layer.padding}) is not the same on both sides"
    try:
        _like(layer, "meta")
    except UsageError as error:
        return str(error)
    return None


def is_plain(layer: nn.Module) -> bool:
    """A convolution or linear layer of torch, or a padded one of timm: it computes with the weight that it has."""
    known = type(layer) in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear) or type(layer).__name__ == "Conv2dSame"
    return known and not parametrize.is_parametrized(layer) and not hasattr(layer, "weight_g")


def has_gain(layer: nn.Module) -> bool:
    """Whether there is a layer of the same weight with a gain: for plain convolutions, if :func:`why_not` allows."""
    return is_plain(layer) and why_not(layer) is None and isinstance(layer, tuple(_WITH_GAIN))


def _padding(conv: Any) -> tuple[int, ...] | None:
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    if conv.padding == "same":
        reaches = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        return tuple(reach // 2 for reach in reaches) if not any(reach % 2 for reach in reaches) else None
    return tuple(conv.padding)


def standardized(layer: nn.Module, *, init: bool) -> Any:
    """The layer with a standardized weight, gain and bias in place of one that :func:`why_not` allows.

    Args:
        init: draw weights anew; else the layer's are standardized.
    """
    new = _like(layer)
    with torch.no_grad():
        if not init:
            transposed = isinstance(layer, tuple(_TRANSPOSED))
            weight = layer.weight
            assert isinstance(weight, Tensor)
            new.weight.copy_(swap_channels(weight, cast(int, layer.groups)) if transposed else weight)
            if isinstance(layer.bias, Tensor):
                new.bias.copy_(layer.bias)
    new.train(layer.training)
    return new


def with_gain(conv: nn.Module) -> Any:
    """The layer of the same weight, and bias, with a gain per channel; of one that :func:`has_gain` allows."""
    kind = next(kind for torch_kind, kind in _WITH_GAIN.items() if isinstance(conv, torch_kind))
    new = _made(kind, conv)
    with torch.no_grad():
        new.weight.copy_(conv.weight)
        if isinstance(conv.bias, Tensor):
            new.bias.copy_(conv.bias)
    new.train(conv.training)
    return new


def _like(layer: nn.Module, device: str | None = None) -> Any:
    """The standardized layer of the same sizes."""
    if isinstance(layer, nn.Linear):
        where: Any = dict(device=device or layer.weight.device, dtype=layer.weight.dtype)
        return ours.WSLinear(layer.in_features, layer.out_features, **where)
    table: dict[Any, Any] = {**_CONVOLUTIONS, **_TRANSPOSED}
    kind = next(kind for torch_kind, kind in table.items() if isinstance(layer, torch_kind))
    return _made(kind, layer, device)


def _made(kind: Any, conv: Any, device: str | None = None) -> Any:
    more = dict(output_padding=conv.output_padding) if isinstance(conv, tuple(_TRANSPOSED)) else {}
    return kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        "same" if type(conv).__name__ in _SAME else _padding(conv),
        conv.dilation,
        conv.groups,
        **more,
        device=device or conv.weight.device,
        dtype=conv.weight.dtype,
    )
