"""The layers between the images and the first stage: of the papers, and for images of 32 and 64 px."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from ..errors import UsageError
from ..nn import Activated, Activation, ChannelAffine, MaxPoolSame, SameConv2d

DEEP = "4x 3x3"
DEEP_STRIDES = (2, 1, 1, 2)
_STEMS = {  # kernel, stride, pooling
    "7x7": (7, 2, True),
    "7x7-nopool": (7, 2, False),
    "3x3": (3, 1, False),
    "3x3-stride2": (3, 2, False),
}
ResNetStem = Literal["7x7", "7x7-nopool", "3x3", "3x3-stride2"]
NFNetStem = Literal["4x 3x3", "3x3", "3x3-stride2"]
RegNetStem = Literal["3x3", "3x3-stride2"]
AnyStem = Literal["4x 3x3", "7x7", "7x7-nopool", "3x3", "3x3-stride2"]


def conv_stem(
    kind: str,
    conv: Callable[..., SameConv2d],
    in_chans: int,
    channels: int,
    *,
    pool: Callable[[], nn.Module] = MaxPoolSame,
    **between: nn.Module,
) -> nn.Sequential:
    """One convolution, the layers ``between`` by their names and, for "7x7", max pooling of stride 2.

    Args:
        kind: "7x7" of stride 2, the same without pooling ("7x7-nopool"), "3x3" of stride 1 for images of 32 px, or
            "3x3-stride2" for 64 px.

    Raises:
        UsageError: another kind.
    """
    if kind not in _STEMS:
        raise UsageError(f"stem (={kind!r}) must be one of {', '.join(_STEMS)}")
    kernel_size, stride, pooled = _STEMS[kind]
    layers = nn.Sequential()
    layers.add_module("conv", conv(in_chans, channels, kernel_size, stride))
    for name, layer in between.items():
        layers.add_module(name, layer)
    if pooled:
        layers.add_module("pool", pool())
    return layers


def deep_stem(
    in_chans: int,
    widths: Sequence[int],
    conv: Callable[..., SameConv2d],
    act: Activation,
    input_scale: float = 1.0,
    *,
    affine: bool = False,
) -> Activated:
    """Four 3x3 convolutions with activations between them, whose gamma is folded into the next convolution ("4x 3x3").

    Args:
        widths: output channels of the convolutions.
        input_scale: of the first convolution.
        affine: a :class:`.ChannelAffine` stands in front of each activation.
    """
    stem, channels = Activated(), in_chans
    for i, (width, stride) in enumerate(zip(widths, DEEP_STRIDES, strict=True)):
        if i and affine:
            stem.add_module(f"affine{i - 1}", ChannelAffine(channels))
        if i:
            stem.add_module(f"act{i - 1}", act.clone())
        stem.add_module(f"conv{i}", conv(channels, width, 3, stride, input_scale=act.gamma if i else input_scale))
        channels = width
    return stem
