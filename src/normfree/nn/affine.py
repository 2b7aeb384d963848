"""The gains and biases of a network's convolutions: beside the weights, none, or in front of the activations."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError, check_count
from .conv import SameConv
from .roles import Role
from .weight_schemes import GainConv, WSConv2d

Affine = Literal["conv", "gain", "bias", "none", "activation"]


class ChannelAffine(nn.Module):
    """``gain * x + bias`` with a gain, 1 at first, and a bias, 0 at first, per channel.

    ``(N, channels, *places) -> (N, channels, *places)``. In front of an activation it is the affine transform that the
    paper moved next to the convolution's weight (NF-ResNets, appendix B.1).

    Raises:
        UsageError: channels below 1.

    Example:
        >>> x = torch.randn(1, 3, 4, 4)
        >>> torch.equal(ChannelAffine(3)(x), x)
        True
    """

    parameter_roles = {"gain": Role.GAIN, "bias": Role.BIAS}

    def __init__(self, channels: int):
        super().__init__()
        check_count("channels", channels)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        channels = (-1, *(1,) * (x.ndim - 2))
        return x * self.gain.view(channels) + self.bias.view(channels)

    def extra_repr(self) -> str:
        return str(self.gain.numel())


def affine_conv(affine: Affine, kind: type[SameConv] = WSConv2d) -> Callable[..., Any]:
    """The kind of a network's convolutions, with the learnable gains and biases that ``affine`` leaves them.

    Args:
        affine: "conv": a gain and a bias per output channel (NF-ResNets, appendix B.1); "gain" or "bias": one of them;
            "none": neither, purely standardized weights (appendix A.1); "activation": neither, since a
            :class:`ChannelAffine` stands in front of each activation.
        kind: :class:`.WSConv2d`, the layer of another weight scheme, or :class:`.SameConv2d`, which never has a gain;
            or one of another dimension.

    Raises:
        UsageError: another ``affine``.

    Example:
        >>> conv = affine_conv("none")(3, 8, 3)
        >>> [name for name, _ in conv.named_parameters()]
        ['weight']
    """
    if affine not in ("conv", "gain", "bias", "none", "activation"):
        raise UsageError(f'affine (={affine!r}) must be "conv", "gain", "bias", "none" or "activation"')
    if affine == "conv":
        return kind
    bias = affine == "bias"
    if issubclass(kind, GainConv):
        return functools.partial(kind, gain=affine == "gain", bias=bias)
    return functools.partial(kind, bias=bias)
