"""The layers between the images and the first stage: of the papers, and for images of 32 and 64 px."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from ..errors import UsageError
from ..nn import Activated, Activation, BlockDCT2d, ChannelAffine, MaxPoolSame, SameConv2d

DEEP = "4x 3x3"
DEEP_POOLED = "3x 3x3"
DEEP_STRIDES = (2, 1, 1, 2)
DCT = "dct"
_STEMS = {  # kernel, stride, pooling
    "7x7": (7, 2, True),
    "7x7-nopool": (7, 2, False),
    "3x3": (3, 1, False),
    "3x3-stride2": (3, 2, False),
    DCT: (1, 1, False),
}
ResNetStem = Literal["7x7", "7x7-nopool", "3x3", "3x3-stride2"]
NFNetStem = Literal["4x 3x3", "3x 3x3", "7x7", "7x7-nopool", "3x3", "3x3-stride2", "dct"]
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
        kind: "7x7" of stride 2, the same without pooling ("7x7-nopool"), "3x3" of stride 1 for images of 32 px,
            "3x3-stride2" for 64 px, or "dct": a 1x1 convolution of the coefficients of 8x8 blocks, of stride 8 in all.

    Raises:
        UsageError: another kind.
    """
    if kind not in _STEMS:
        raise UsageError(f"stem (={kind!r}) must be one of {', '.join(_STEMS)}")
    kernel_size, stride, pooled = _STEMS[kind]
    layers = nn.Sequential()
    if kind == DCT:
        layers.add_module("dct", dct := BlockDCT2d(in_chans))
        in_chans = dct.out_channels
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
        widths: output channels of the convolutions; of three, max pooling stands in the fourth's place ("3x 3x3").
        input_scale: of the first convolution.
        affine: a :class:`.ChannelAffine` stands in front of each activation.
    """
    stem, channels = Activated(), in_chans
    for i, (width, stride) in enumerate(zip(widths, DEEP_STRIDES, strict=False)):
        if i and affine:
            stem.add_module(f"affine{i - 1}", ChannelAffine(channels))
        if i:
            stem.add_module(f"act{i - 1}", act.clone())
        stem.add_module(f"conv{i}", conv(channels, width, 3, stride, input_scale=act.gamma if i else input_scale))
        channels = width
    if len(widths) < len(DEEP_STRIDES):
        stem.add_module("pool", MaxPoolSame())
    return stem


def nfnet_stem_widths(kind: str, width: int) -> tuple[int, ...]:
    """Output channels of the convolutions of an NFNet's stem, for a first stage of ``width`` channels.

    NFNet's own stem ends in half of them (NFNets, appendix C), and so do the stems for small images and of the DCT.
    Those of ResNet and ResNet-D ("7x7", "3x 3x3") end in a quarter, as there.
    """
    if kind == DEEP:
        return 16, 32, 64, width // 2
    if kind == DEEP_POOLED:
        return width // 8, width // 8, width // 4
    return (width // 4 if kind.startswith("7x7") else width // 2,)


def nfnet_strides(kind: str) -> tuple[int, ...]:
    """Strides of an NFNet's stages; behind the DCT's stride of 8, the second stage keeps its resolution."""
    return (1, 1, 2, 2) if kind == DCT else (1, 2, 2, 2)
