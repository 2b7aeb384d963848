"""Control: the NFNet with BatchNorm instead of everything Normalizer-Free (NFNets, table 6, row "-NF, + BN")."""

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from torch import Tensor

from ...nn import Activated, MaxPoolSame, SameConv2d
from ..block import Branch
from ..body import NetOptions
from ..nfnet import VARIANTS as NFNET_VARIANTS
from ..stem import DEEP_STRIDES, NFNetStem, conv_stem, nfnet_stem_widths, nfnet_strides
from .preact import Preactivation, PreactNet

VARIANTS = {f"bn_{name}": variant for name, variant in NFNET_VARIANTS.items()}


class BNNFNet(PreactNet):
    """NFNet's shape with BatchNorm-GELU-convolution, bare Squeeze-Excite, no alpha, beta, gamma, gains or skip gains.

    ``(N, in_chans, H, W) -> (N, num_classes)``. The papers' code has no such network; this follows the text.
    """

    family = "bn_nfnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: NFNetStem = "4x 3x3",
        in_chans: int = 3,
        drop_rate: float = 0.2,
        stochdepth_rate: float = 0.25,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        ratio: float = 0.5,
        group_width: int = 128,
        spatial_convs: Literal[1, 2] = 2,
        se_ratio: float = 0.5,
        final_factor: int = 2,
        **options: Unpack[NetOptions],
    ):
        pre, stem_widths = Preactivation(activation=activation), nfnet_stem_widths(stem, widths[0])
        super().__init__(
            stem=_deep_stem(in_chans, stem_widths, pre)
            if len(stem_widths) > 1
            else conv_stem(stem, pre.conv(1.0, bias=False), in_chans, *stem_widths),
            widths=widths,
            depths=depths,
            strides=nfnet_strides(stem),
            branch=Branch(
                ratio=ratio,
                group_width=group_width,
                spatial_convs=spatial_convs,
                squeeze_excite="end",
                se_ratio=se_ratio,
                se_factor=1.0,
                pool_shortcut=True,
                conv=SameConv2d,
            ),
            pre=pre,
            final_channels=final_factor * widths[-1],
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            **options,
        )


def _deep_stem(in_chans: int, widths: Sequence[int], pre: Preactivation) -> Activated:
    """Four 3x3 convolutions, or three and max pooling, with BatchNorm and activation between them."""
    stem, channels = Activated(), in_chans
    for i, (width, stride) in enumerate(zip(widths, DEEP_STRIDES, strict=False)):
        if i:
            norm, act = pre.layers(channels)
            stem.add_module(f"bn{i - 1}", norm)
            stem.add_module(f"act{i - 1}", act)
        gain = pre.gain if i else 1.0
        stem.add_module(f"conv{i}", SameConv2d(channels, width, 3, stride, bias=False, init_gain=gain))
        channels = width
    if len(widths) < len(DEEP_STRIDES):
        stem.add_module("pool", MaxPoolSame())
    return stem
