"""NFNet F0 to F7 and F0+ to F7+ (NFNets, section 5, table 1, appendix C)."""

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor

from ..nn import Activated, Activation, SameConv2d, WSConv2d
from .block import Branch
from .body import NormFreeNet, NormFreeOptions

_TRAIN = (192, 224, 256, 320, 384, 416, 448, 480)
_TEST = (256, 320, 352, 416, 512, 544, 576, 608)
_DROP = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)

VARIANTS = {
    f"nfnet_f{k}{suffix}": dict(
        widths=widths,
        depths=tuple(depth * (k + 1) for depth in (1, 2, 6, 3)),
        drop_rate=_DROP[k],
        stochdepth_rate=0.25,
        train_size=_TRAIN[k],
        test_size=_TEST[k],
    )
    for suffix, widths in (("", (256, 512, 1536, 1536)), ("_plus", (384, 768, 2048, 2048)))
    for k in range(8)
}

STRIDES, STEM_STRIDES = (1, 2, 2, 2), (2, 1, 1, 2)


def stem_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Output channels of the stem's four convolutions."""
    return 16, 32, 64, widths[0] // 2


def deep_stem(
    in_chans: int, widths: Sequence[int], conv: Callable[..., SameConv2d], act: Activation, input_scale: float = 1.0
) -> Activated:
    """Four 3x3 convolutions with activations between them, whose gamma is folded into the next convolution.

    Args:
        widths: output channels of the convolutions.
        input_scale: of the first convolution.
    """
    stem, channels = Activated(), in_chans
    for i, (width, stride) in enumerate(zip(widths, STEM_STRIDES, strict=True)):
        if i:
            stem.add_module(f"act{i - 1}", act.clone())
        stem.add_module(f"conv{i}", conv(channels, width, 3, stride, input_scale=act.gamma if i else input_scale))
        channels = width
    return stem


class NFNet(NormFreeNet):
    """NFNet: SE-ResNeXt-D with two 3x3 convolutions of group width 128 and a four-convolution stem.

    ``(N, in_chans, H, W) -> (N, num_classes)``, strides 4, 8, 16, 32.
    """

    family = "nfnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        in_chans: int = 3,
        drop_rate: float = 0.2,
        stochdepth_rate: float = 0.25,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        gamma: float | None = None,
        ratio: float = 0.5,
        group_width: int = 128,
        se_ratio: float = 0.5,
        se_factor: float = 2.0,
        final_factor: int = 2,
        **options: Unpack[NormFreeOptions],
    ):
        act = Activation(activation, gamma)
        super().__init__(
            stem=deep_stem(in_chans, stem_widths(widths), WSConv2d, act),
            widths=widths,
            depths=depths,
            strides=STRIDES,
            branch=Branch(
                ratio=ratio,
                group_width=group_width,
                spatial_convs=2,
                squeeze_excite="end",
                se_ratio=se_ratio,
                se_factor=se_factor,
                pool_shortcut=True,
            ),
            final_channels=final_factor * widths[-1],
            act=act,
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            **options,
        )
