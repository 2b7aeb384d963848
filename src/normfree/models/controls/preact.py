"""The pre-activation residual block of the controls: BatchNorm in two orders, GroupNorm, or no normalization."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

from torch import Tensor, nn

from ...errors import UsageError
from ...functional import residual_merge
from ...gain import he_gain
from ...nn import Activation, SameConv2d, SkipInit, SqueezeExcite, StochasticDepth, WSConv2d
from ..block import Branch, Sampling
from ..body import Place, RegularizedOptions, ResidualNet

Order = Literal["bn-relu-conv", "relu-bn-conv"]
BN_EPS, BN_MOMENTUM = 1e-5, 0.1  # Haiku's epsilon and its decay rate 0.9
GN_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Preactivation:
    """Normalization and activation in front of each convolution, and the convolution's initialization.

    Attributes:
        activation: a name or an elementwise callable.
        norm: BatchNorm, or none at all.
        order: "bn-relu-conv" (He et al. 2016) or "relu-bn-conv" (NF-ResNets, section 3).
        init_gain: of the convolutions; None: He's gain behind the activation, 1 behind BatchNorm, which gives the
            branch variance 1 in the second order.
        groups: GroupNorm of at most so many groups instead of BatchNorm, and convolutions of standardized weights (Wu &
            He 2018; Qiao et al. 2019); None: BatchNorm.
    """

    activation: str | Callable[[Tensor], Tensor] = "relu"
    norm: bool = True
    order: Order = "bn-relu-conv"
    init_gain: float | None = None
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.order not in ("bn-relu-conv", "relu-bn-conv"):
            raise UsageError(f'order (={self.order!r}) must be "bn-relu-conv" or "relu-bn-conv"')

    def layers(self, channels: int) -> tuple[nn.Module, nn.Module]:
        """The normalization of ``channels`` maps (or an identity) and the activation; :meth:`apply` orders them."""
        norm: nn.Module = nn.Identity()
        if self.norm and self.groups is None:
            norm = nn.BatchNorm2d(channels, BN_EPS, BN_MOMENTUM)
        elif self.norm and self.groups is not None:
            norm = nn.GroupNorm(math.gcd(self.groups, channels), channels, GN_EPS)
        return norm, Activation(self.activation, gamma=1.0)

    def conv(self, gain: float, bias: bool) -> Callable[..., SameConv2d]:
        """The kind of the convolutions: what makes one of its channels, kernel size, stride, ..."""
        if self.groups is None:
            return functools.partial(SameConv2d, bias=bias, init_gain=gain)
        return functools.partial(WSConv2d, bias=bias, gain=False, input_scale=gain)

    def apply(self, x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
        return act(norm(x)) if self.order == "bn-relu-conv" else norm(act(x))

    @functools.cached_property
    def gain(self) -> float:
        """Of the convolutions behind :meth:`apply`."""
        if self.init_gain is not None:
            return self.init_gain
        return 1.0 if self.norm and self.order == "relu-bn-conv" else he_gain(self.activation)


class PreactBlock(nn.Module):
    """``shortcut + skip_gain * f(x)``, the pre-activation bottleneck (He et al. 2016; NF-ResNets, figure 4).

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. In a stage's first block the
    shortcut is a 1x1 convolution of the normalized, activated input.

    Args:
        branch: the shape of the block, as of the Normalizer-Free one.
        pre: normalization, activation and initialization.
        projection: whether the shortcut is a convolution even if the shape stays the same.
        bias: of the convolutions.
        skip_init: multiply the branch with a learnable scalar that starts at 0 (De & Smith 2020).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        branch: Branch,
        pre: Preactivation,
        sampling: Sampling = Sampling(),  # noqa: B008 - immutable
        projection: bool = False,
        bias: bool = False,
        skip_init: bool = False,
        stochdepth_rate: float = 0.0,
    ):
        super().__init__()
        self.pre = pre
        width, groups = branch.width(in_channels, out_channels)
        conv = pre.conv(pre.gain, bias)
        self.pool = sampling.pool() if branch.pool_shortcut and sampling.reduces else None
        self.conv_shortcut = None
        if projection or sampling.reduces or in_channels != out_channels:
            shortcut_stride = 1 if self.pool is not None else sampling.stride
            self.conv_shortcut = conv(in_channels, out_channels, 1, shortcut_stride)
        self.bn0, self.act = pre.layers(in_channels)
        self.conv0 = conv(in_channels, width, 1)
        self.bn1, _ = pre.layers(width)
        self.conv1 = conv(width, width, 3, groups=groups, **sampling.first)
        self.conv1b = None
        if branch.spatial_convs == 2:
            self.bn1b, _ = pre.layers(width)
            self.conv1b = conv(width, width, 3, groups=groups, **sampling.later)
        self.bn2, _ = pre.layers(width)
        self.conv2 = conv(width, out_channels, 1)
        self.squeeze_excite = None
        if branch.squeeze_excite is not None:
            self.squeeze_excite = SqueezeExcite(out_channels, branch.se_ratio, factor=branch.se_factor)
        self.skip_init = SkipInit(alpha=1.0) if skip_init else None
        self.stochdepth = StochasticDepth(stochdepth_rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pre.apply(x, self.bn0, self.act)
        shortcut = x
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(out if self.pool is None else self.pool(out))
        out = self.conv1(self.pre.apply(self.conv0(out), self.bn1, self.act))
        if self.conv1b is not None:
            out = self.conv1b(self.pre.apply(out, self.bn1b, self.act))
        out = self.conv2(self.pre.apply(out, self.bn2, self.act))
        if self.squeeze_excite is not None:
            out = self.squeeze_excite(out)
        out = self.stochdepth(out)
        return shortcut + out if self.skip_init is None else residual_merge(shortcut, out, self.skip_init.scale())


class PreactNet(ResidualNet):
    """A stem, pre-activation blocks, and normalization and activation in front of the classifier's pooling.

    Args:
        branch, pre: of all blocks, as :class:`PreactBlock`.
        final_channels: outputs of the 1x1 convolution behind the last stage; None: there is none.
        project: whether the shortcut of each stage's first block is a convolution even if the shape stays the same.
        bias, skip_init: as :class:`PreactBlock`.
    """

    final_bn: nn.Module
    act: nn.Module

    def __init__(
        self,
        *,
        stem: nn.Sequential,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        branch: Branch,
        pre: Preactivation,
        final_channels: int | None = None,
        project: bool = False,
        bias: bool = False,
        skip_init: bool = False,
        classifier_std: float = 0.01,
        **options: Unpack[RegularizedOptions],
    ):
        def make_block(place: Place) -> PreactBlock:
            return PreactBlock(
                place.in_channels,
                place.out_channels,
                branch=branch,
                pre=pre,
                sampling=place.sampling,
                projection=project and place.position == 0,
                bias=bias,
                skip_init=skip_init,
                stochdepth_rate=place.stochdepth_rate,
            )

        final_conv = SameConv2d(widths[-1], final_channels, 1, bias=False) if final_channels else None
        final_bn, act = pre.layers(final_channels or widths[-1])
        super().__init__(
            stem=stem,
            widths=widths,
            depths=depths,
            strides=strides,
            make_block=make_block,
            final_conv=final_conv,
            final=dict(final_bn=final_bn, act=act),
            classifier_std=classifier_std,
            **options,
        )
        self.pre = pre

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalization and activation."""
        return self.act(self.final_bn(x))
