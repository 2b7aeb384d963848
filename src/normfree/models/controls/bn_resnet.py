"""Controls: ResNets with BatchNorm (pre-activation in both orders, post-activation), with GroupNorm, with neither."""

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor, nn

from ...gain import he_gain
from ...nn import Activation, SameConv2d, SqueezeExcite, StochasticDepth
from ..block import Branch, Sampling
from ..body import Place, RegularizedOptions, ResidualNet
from ..resnet import STRIDES, resnet_variants
from ..stem import ResNetStem, conv_stem
from .preact import BN_EPS, BN_MOMENTUM, Order, Preactivation, PreactNet

VARIANTS = resnet_variants("bn_resnet{}")
PLAIN_VARIANTS = resnet_variants("plain_resnet{}", norm=False)
GN_VARIANTS = resnet_variants("gn_resnet{}")
V1_VARIANTS = resnet_variants("bn_resnet{}_v1")


class BNResNet(PreactNet):
    """Pre-activation ResNet ("V2") with BatchNorm, or with none (``norm=False``: ``plain_resnet``).

    ``(N, in_chans, H, W) -> (N, num_classes)``. ``order`` is that of BatchNorm and activation in front of each
    convolution (NF-ResNets, figure 1); ``activation="identity"`` with ``stem="7x7-nopool"`` is the linear network of
    figure 7; with ``norm=False`` the signal explodes (figure 6), unless ``skip_init`` multiplies each branch with a
    scalar that starts at 0.
    ``bias`` gives the blocks' convolutions a bias.
    """

    family = "bn_resnet"
    norm_groups: int | None = None  # see Preactivation

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        norm: bool = True,
        order: Order = "bn-relu-conv",
        skip_init: bool = False,
        bias: bool = False,
        squeeze_excite: bool = False,
        se_ratio: float = 0.25,
        se_factor: float = 1.0,
        stem: ResNetStem = "7x7",
        in_chans: int = 3,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        init_gain: float | None = None,
        ratio: float = 0.25,
        classifier_std: float = 0.01,
        **options: Unpack[RegularizedOptions],
    ):
        pre = Preactivation(activation=activation, norm=norm, order=order, init_gain=init_gain, groups=self.norm_groups)
        end = "end" if squeeze_excite else None
        conv = pre.conv(1.0, bias=False)  # it sees images, not activations
        super().__init__(
            stem=conv_stem(stem, conv, in_chans, widths[0] // 4),
            widths=widths,
            depths=depths,
            strides=STRIDES[: len(widths)],
            branch=Branch(ratio=ratio, squeeze_excite=end, se_ratio=se_ratio, se_factor=se_factor, conv=SameConv2d),
            pre=pre,
            project=True,
            bias=bias,
            skip_init=skip_init,
            classifier_std=classifier_std,
            **options,
        )


class GNResNet(BNResNet):
    """The same with GroupNorm of 32 groups instead of BatchNorm, and standardized weights (Wu & He 2018; Qiao et al.
    2019): normalization that does not depend on the batch.

    ``(N, in_chans, H, W) -> (N, num_classes)``. Where 32 does not divide the channels, there are fewer groups.
    """

    family = "gn_resnet"
    norm_groups = 32


class PostactBlock(nn.Module):
    """The original block, ``relu(shortcut + bn(conv(...)))`` (He et al. 2015; NF-ResNets, figure 5).

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        branch: Branch,
        sampling: Sampling = Sampling(),  # noqa: B008 - immutable
        projection: bool = False,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        stochdepth_rate: float = 0.0,
    ):
        super().__init__()
        width, groups = branch.width(in_channels, out_channels)
        conv = functools.partial(SameConv2d, bias=False, init_gain=he_gain(activation))
        self.conv_shortcut = None
        if projection or sampling.reduces or in_channels != out_channels:
            self.conv_shortcut = conv(in_channels, out_channels, 1, sampling.stride)
            self.shortcut_bn = nn.BatchNorm2d(out_channels, BN_EPS, BN_MOMENTUM)
        self.act = Activation(activation, gamma=1.0)
        self.conv0 = conv(in_channels, width, 1)
        self.bn0 = nn.BatchNorm2d(width, BN_EPS, BN_MOMENTUM)
        self.conv1 = conv(width, width, 3, groups=groups, **sampling.first)
        self.bn1 = nn.BatchNorm2d(width, BN_EPS, BN_MOMENTUM)
        self.conv2 = conv(width, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels, BN_EPS, BN_MOMENTUM)
        self.squeeze_excite = None
        if branch.squeeze_excite is not None:
            self.squeeze_excite = SqueezeExcite(out_channels, branch.se_ratio, factor=branch.se_factor)
        self.stochdepth = StochasticDepth(stochdepth_rate)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.conv_shortcut is None else self.shortcut_bn(self.conv_shortcut(x))
        out = self.act(self.bn0(self.conv0(x)))
        out = self.act(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        if self.squeeze_excite is not None:
            out = self.squeeze_excite(out)
        return self.act(shortcut + self.stochdepth(out))


class BNResNetV1(ResidualNet):
    """The original, post-activation ResNet with BatchNorm ("V1"; NF-ResNets, figure 11).

    ``(N, in_chans, H, W) -> (N, num_classes)``.
    """

    family = "bn_resnet_v1"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        squeeze_excite: bool = False,
        se_ratio: float = 0.25,
        stem: ResNetStem = "7x7",
        in_chans: int = 3,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        ratio: float = 0.25,
        **options: Unpack[RegularizedOptions],
    ):
        end = "end" if squeeze_excite else None
        branch = Branch(ratio=ratio, squeeze_excite=end, se_ratio=se_ratio, se_factor=1.0, conv=SameConv2d)
        channels = widths[0] // 4
        conv = functools.partial(SameConv2d, bias=False)
        norm, act = nn.BatchNorm2d(channels, BN_EPS, BN_MOMENTUM), Activation(activation, gamma=1.0)

        def make_block(place: Place) -> PostactBlock:
            return PostactBlock(
                place.in_channels,
                place.out_channels,
                branch=branch,
                sampling=place.sampling,
                projection=place.position == 0,
                activation=activation,
                stochdepth_rate=place.stochdepth_rate,
            )

        super().__init__(
            stem=conv_stem(stem, conv, in_chans, channels, bn=norm, act=act),
            widths=widths,
            depths=depths,
            strides=STRIDES[: len(widths)],
            make_block=make_block,
            **options,
        )
