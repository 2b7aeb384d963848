"""Control: EfficientNet B0 to B7 with BatchNorm (Tan & Le 2019; NF-ResNets, table 3)."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from torch import Tensor, nn

from ...errors import UsageError
from ...nn import Activation, SameConv2d, StochasticDepth
from ..body import Place
from ..efficientnet import (
    FINAL_FACTOR,
    STEM_WIDTH,
    EfficientNet,
    EfficientNetOptions,
    Inverted,
    InvertedBlock,
    efficientnet_variants,
)

BN_EPS, BN_MOMENTUM = 1e-3, 0.01  # EfficientNet's as released: decay rate 0.99
VARIANTS = efficientnet_variants("bn_efficientnet", 8, stochdepth_rate=0.2)


class BNInvertedBlock(InvertedBlock):
    """``x + f(x)``, or ``f(x)`` where stride or channels change: the inverted bottleneck of EfficientNet.

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. BatchNorm follows each
    convolution, an activation all but the last. Stochastic depth divides the branches it keeps by the survival rate.
    """

    def __init__(
        self,
        shape: Inverted,
        *,
        conv: Callable[..., SameConv2d],
        norm: Callable[[int], nn.Module],
        act: Activation,
        stochdepth_rate: float = 0.0,
    ):
        super().__init__(
            shape,
            conv=conv,
            depthwise=conv,
            act=act,
            se_factor=1.0,
            stochdepth=StochasticDepth(stochdepth_rate, "branch"),
        )
        self.bn0 = None if self.conv0 is None else norm(shape.width)
        self.bn1 = norm(shape.width)
        self.bn2 = norm(shape.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        if self.conv0 is not None and self.bn0 is not None:
            out = self.act(self.bn0(self.conv0(x)))
        out = self.squeeze_excite(self.act(self.bn1(self.conv1(out))))
        out = self.bn2(self.conv2(out))
        return x + self.stochdepth(out) if self.has_skip else out


class BNEfficientNet(EfficientNet):
    """EfficientNet with BatchNorm: (N, in_chans, H, W) -> (N, num_classes), strides 2, 4, 8, 16, 32.

    It starts as released: convolutions normal with variance 2 / fan-out, BatchNorm's epsilon 1e-3 and decay 0.99.

    Args:
        widths, depths, options: as :class:`.EfficientNet`.
        padding: "same" as TensorFlow and the release, or "symmetric" as torchvision's networks.
        bn_eps: of BatchNorm; torchvision's B0 to B4 have 1e-5.

    Raises:
        UsageError: ``bn_eps`` not above 0.
    """

    act: nn.Module
    final_bn: nn.Module
    family = "bn_efficientnet"
    paper = ("arXiv:1905.11946", "arXiv:2101.08692")

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem_width: int = STEM_WIDTH,
        activation: str | Callable[[Tensor], Tensor] = "silu",
        padding: Literal["same", "symmetric"] = "same",
        bn_eps: float = BN_EPS,
        **options: Unpack[EfficientNetOptions],
    ):
        if bn_eps <= 0:
            raise UsageError(f"bn_eps (={bn_eps}) must be above 0")
        conv = functools.partial(SameConv2d, padding=padding, bias=False)
        norm = functools.partial(nn.BatchNorm2d, eps=bn_eps, momentum=BN_MOMENTUM)
        act = Activation(activation, gamma=1.0)

        def make_block(shape: Inverted, place: Place) -> BNInvertedBlock:
            return BNInvertedBlock(shape, conv=conv, norm=norm, act=act.clone(), stochdepth_rate=place.stochdepth_rate)

        channels = FINAL_FACTOR * widths[-1]
        super().__init__(
            widths=widths,
            depths=depths,
            conv=conv,
            behind_stem=dict(bn=norm(stem_width), act=act.clone()),
            make_block=make_block,
            final_conv=conv(widths[-1], channels, 1),
            final=dict(final_bn=norm(channels), act=act),
            stem_width=stem_width,
            **options,
        )
        for module in self.modules():
            if isinstance(module, SameConv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size**2
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def forward_final(self, x: Tensor) -> Tensor:
        """BatchNorm and activation."""
        return self.act(self.final_bn(x))
