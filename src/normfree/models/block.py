"""The Normalizer-Free residual block, one body for the three families."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from torch import Tensor, nn

from ..errors import UsageError
from ..functional import residual_merge
from ..nn import (
    Activation,
    AvgPoolSame,
    ChannelAffine,
    EfficientChannelAttention,
    SameConv2d,
    SkipInit,
    SqueezeExcite,
    StochasticDepth,
    StochdepthScaling,
    WSConv2d,
    activated,
    gated_merge,
    mean_over_places,
)
from ..words import shown

RatioOf = Literal["output", "input"]
SEPosition = Literal["end", "middle", "straddled"]
SEWidth = Literal["gated", "input"]
Shortcut = Literal["strided", "pooled"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The structure of a residual block, in which the families differ.

    Attributes:
        ratio: inner width over the block's output channels, or over its input channels if ``expand_input``.
        group_width: channels per group of the 3x3 convolutions; None: not grouped.
        pointwise_groups: groups of the two 1x1 convolutions (NFNets, appendix E).
        spatial_convs: number of 3x3 convolutions, 1 or 2; the first one is strided.
        squeeze_excite: behind the last convolution ("end"), behind the 3x3 ("middle"), or None; "straddled": the gate
            of the last convolution's input multiplies its output (NFNets, appendix E).
        se_ratio: hidden width of Squeeze-Excite over the channels that it pools, or over the block's input channels
            if ``se_width`` is "input" (NF-ResNets, appendix C).
        se_factor: factor of the sigmoid; 2 keeps the signal's variance.
        attention: "se", or "eca" for Efficient Channel Attention in its place.
        divisor: inner and Squeeze-Excite widths are rounded to multiples of it (timm: 8; else 1, no rounding).
        pool_shortcut: a strided shortcut averages 2x2 before its 1x1 convolution, which then has no stride.
        conv: makes the convolutions; :class:`SameConv2d` is the control without standardization.
        depthwise: makes the 3x3 convolutions where they are depthwise (``group_width=1``); None: ``conv``.
        affine: a :class:`.ChannelAffine` stands in front of each activation (NF-ResNets, appendix B.1).
    """

    ratio: float
    expand_input: bool = False
    group_width: int | None = None
    pointwise_groups: int = 1
    spatial_convs: int = 1
    squeeze_excite: SEPosition | None = None
    se_ratio: float = 0.5
    se_width: SEWidth = "gated"
    se_factor: float = 2.0
    attention: Literal["se", "eca"] = "se"
    divisor: int = 1
    pool_shortcut: bool = False
    conv: Callable[..., SameConv2d] = WSConv2d
    depthwise: Callable[..., SameConv2d] | None = None
    affine: bool = False

    def __post_init__(self) -> None:
        if self.squeeze_excite is None and self.se_width != "gated":
            raise UsageError(f'se_width (={self.se_width!r}) must be "gated" where squeeze_excite is off')
        if self.squeeze_excite == "straddled" and self.attention == "eca":
            raise UsageError(f'attention (={self.attention!r}) gates what it pools; it must be "se" to be straddled')

    def width(self, in_channels: int, out_channels: int) -> tuple[int, int]:
        """Inner width, rounded down to whole groups, and the number of groups."""
        width, groups = divisible((in_channels if self.expand_input else out_channels) * self.ratio, self.divisor), 1
        if self.group_width is not None:
            groups = width // self.group_width
            if groups == 0:
                raise UsageError(f"inner width (={width}) must be at least group_width (={self.group_width})")
            width = groups * self.group_width
        for name, channels in dict(input=in_channels, inner=width, output=out_channels).items():
            if channels % self.pointwise_groups:
                raise UsageError(
                    f"pointwise_groups (={self.pointwise_groups}) must divide a block's {name} channels (={channels})"
                )
        return width, groups

    def gate(self, in_channels: int, inner: int, out_channels: int) -> SqueezeExcite | EfficientChannelAttention | None:
        """Squeeze-Excite of a block with these widths, or Efficient Channel Attention in its place, or None."""
        if self.squeeze_excite is None:
            return None
        pooled = out_channels if self.squeeze_excite == "end" else inner
        if self.attention == "eca":
            return EfficientChannelAttention(pooled, factor=self.se_factor)
        hidden = None
        if self.se_width == "input" or self.divisor > 1:
            channels = in_channels if self.se_width == "input" else pooled
            hidden = max(1, divisible(channels * self.se_ratio, self.divisor, shrink=True))
        gated = inner if self.squeeze_excite == "middle" else out_channels
        return SqueezeExcite(pooled, self.se_ratio, hidden=hidden, gated=gated, factor=self.se_factor)

    def affines(self, in_channels: int, inner: int) -> nn.ModuleDict | None:
        """The affine transform in front of each convolution's activation, by the convolution's name; None: none."""
        if not self.affine:
            return None
        convs = ("conv1", "conv1b", "conv2") if self.spatial_convs == 2 else ("conv1", "conv2")
        return nn.ModuleDict({"conv0": ChannelAffine(in_channels)} | {name: ChannelAffine(inner) for name in convs})


class Steps(TypedDict):
    """How a convolution samples its input; arguments of :class:`SameConv2d`."""

    stride: int
    dilation: int
    atrous: int


@dataclass(frozen=True)
class Sampling:
    """How a block samples its input.

    Attributes:
        stride: of its first spatial convolution and its shortcut.
        dilation: of the spatial convolutions, in front of ``atrous``.
        atrous: the stride that is replaced by dilation: the layers behind it are dilated by this factor more.
    """

    stride: int = 1
    dilation: int = 1
    atrous: int = 1

    @property
    def reduces(self) -> bool:
        """Whether the block halves the map, or would without dilation."""
        return self.stride * self.atrous > 1

    @property
    def first(self) -> Steps:
        """Arguments of the first spatial convolution."""
        return Steps(stride=self.stride, dilation=self.dilation, atrous=self.atrous)

    @property
    def later(self) -> Steps:
        """Arguments of the later spatial convolutions."""
        return Steps(stride=1, dilation=self.dilation * self.atrous, atrous=1)

    def pool(self) -> AvgPoolSame:
        """The pooling of a shortcut."""
        return AvgPoolSame(None if self.stride > 1 else self.dilation)


def divisible(width: float, divisor: int, *, shrink: bool = False) -> int:
    """The multiple of ``divisor`` nearest to ``width``, never more than 10 % below it unless it may ``shrink``.

    With divisor 1: rounded down, as the papers' code does.
    """
    if divisor == 1:
        return int(width)
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if shrink or rounded >= 0.9 * width else rounded + divisor


def per_stage(name: str, choice: Any, widths: Sequence[int]) -> list[Any]:
    """An option's value of each stage, where it is one for all or one for each; UsageError, by ``name``, if neither.

    Example:
        >>> per_stage("group_width", 128, (256, 512)), per_stage("group_width", [8, 16], (256, 512))
        ([128, 128], [8, 16])
    """
    if isinstance(choice, str) or not isinstance(choice, Sequence):
        return [choice] * len(widths)
    if len(choice) != len(widths):
        raise UsageError(f"{name} (={shown(choice)}) must be one value, or one for each of {len(widths)} stages")
    return list(choice)


def se_placed(squeeze_excite: bool, position: SEPosition, usual: SEPosition) -> SEPosition | None:
    """A family's ``Branch.squeeze_excite``; UsageError if a place is chosen for what is off."""
    if not squeeze_excite and position != usual:
        raise UsageError(f"se_position (={position!r}) must be {usual!r} where squeeze_excite is off")
    return position if squeeze_excite else None


class NFBlock(nn.Module):
    """``shortcut + alpha * skip_gain * f(gamma * act(x) / beta)`` (NF-ResNets, section 4; NFNets, figures 5 and 6).

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. ``f``: 1x1 convolution, 3x3
    (grouped, strided), perhaps a second 3x3, 1x1. Where stride or channels change, the shortcut is a 1x1 convolution of
    the downscaled activation, which resets the variance.

    The only passes over memory are convolutions, bare activations and one merge: ``gamma / beta`` is folded into the
    weights behind the activation; ``alpha * skip_gain`` and stochastic depth into the gate of Squeeze-Excite or, if
    there is none at the end, into the last convolution.

    Example:
        >>> block = NFBlock(16, 16, branch=Branch(ratio=0.25), act=Activation("relu"))
        >>> x = torch.randn(1, 16, 8, 8)
        >>> torch.equal(block(x), x)  # the skip gain is 0 at first
        True
    """

    restarts = False  # whether its input has variance 1 whatever the block before leaves, as behind a concatenation

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        branch: Branch,
        sampling: Sampling = Sampling(),
        alpha: float = 0.2,
        beta: float = 1.0,
        act: Activation,
        skip_gain: float | None = 0.0,
        stochdepth_rate: float = 0.0,
        stochdepth_scaling: StochdepthScaling = "none",
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, sampling.stride
        self.beta = beta
        self.act = act
        conv = branch.conv
        width, groups = branch.width(in_channels, out_channels)
        first, rest = act.gamma / beta, act.gamma
        self.pool = sampling.pool() if branch.pool_shortcut and sampling.reduces else None
        self.conv_shortcut = None
        if sampling.reduces or in_channels != out_channels:
            shortcut_stride = 1 if self.pool is not None else sampling.stride
            self.conv_shortcut = conv(in_channels, out_channels, 1, shortcut_stride, input_scale=first)
        pointwise = branch.pointwise_groups
        self.conv0 = conv(in_channels, width, 1, groups=pointwise, input_scale=first)
        spatial = conv if branch.depthwise is None or groups < width else branch.depthwise
        self.conv1 = spatial(width, width, 3, groups=groups, input_scale=rest, **sampling.first)
        self.conv1b = None
        if branch.spatial_convs == 2:
            self.conv1b = spatial(width, width, 3, groups=groups, input_scale=rest, **sampling.later)
        self.conv2 = conv(width, out_channels, 1, groups=pointwise, input_scale=rest)
        self.affines = branch.affines(in_channels, width)
        self.se_position = branch.squeeze_excite
        self.squeeze_excite = branch.gate(in_channels, width, out_channels)
        self.skip_init: SkipInit | None = SkipInit(alpha, skip_gain)
        self.stochdepth = StochasticDepth(stochdepth_rate, stochdepth_scaling, alpha)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_shortcut is None:
            shortcut, (out,) = x, self._activated("conv0", x, self.conv0)
        else:
            shortcut, out = self._activated("conv0", x, self._downscale, self.conv0)
        (out,) = self._activated("conv1", out, self.conv1)
        if self.conv1b is not None:
            (out,) = self._activated("conv1b", out, self.conv1b)
        if self.squeeze_excite is not None and self.se_position == "middle":
            out = self.squeeze_excite(out)
        return self._merged(shortcut, out, self.stochdepth.mask(x))

    def _merged(self, shortcut: Tensor, out: Tensor, keep: Tensor | None) -> Tensor:
        """The sum of shortcut and branch; ``out`` is what the branch's last activation takes."""
        if keep is not None:
            shortcut = self.stochdepth.skip(shortcut, keep)
        scale = self._scale()
        if self.se_position == "end":
            (out,) = self._activated("conv2", out, self.conv2)
            return gated_merge(shortcut, out, lambda mean: self._gate(mean, scale, keep, out.ndim - 2))
        if self.se_position == "straddled":
            mean, out = self._activated("conv2", out, self._mean, self.conv2)
            return residual_merge(shortcut, out, self._gate(mean, scale, keep, out.ndim - 2))
        (out,) = self._activated("conv2", out, self.conv2 if scale is None else lambda x: self.conv2(x, scale))
        return shortcut + out if keep is None else residual_merge(shortcut, out, keep)

    def _activated(self, conv: str, x: Tensor, *layers: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        """The layers behind the activation in front of ``conv``, which may have an affine transform in front."""
        return activated(self.act, x if self.affines is None else self.affines[conv](x), *layers)

    def _mean(self, activated: Tensor) -> Tensor:
        """Means over places of a convolution's input, gamma included: (N, C)."""
        return mean_over_places(activated) * self.act.gamma

    def _scale(self) -> Tensor | None:
        """The factor of the branch, ``alpha * skip_gain``; None once it is folded."""
        return None if self.skip_init is None else self.skip_init.scale()

    def shares(self) -> tuple[float, float]:
        """The factors with which the variances of shortcut and branch enter the variance of their sum; not folded."""
        scale = self._scale()
        assert scale is not None
        return 1.0, scale.item() ** 2

    def _gate(self, mean: Tensor, scale: Tensor | None, keep: Tensor | None, dims: int) -> Tensor:
        """The factor of the branch: Squeeze-Excite, ``alpha * skip_gain``, stochastic depth."""
        assert self.squeeze_excite is not None
        gate = self.squeeze_excite.gate_of(mean, dims)
        gate = gate if scale is None else gate * scale
        return gate if keep is None else gate * keep

    def _downscale(self, x: Tensor) -> Tensor:
        """The shortcut of an activation, where stride or channels change."""
        assert self.conv_shortcut is not None
        return self.conv_shortcut(x if self.pool is None else self.pool(x))

    def fold_(self) -> None:
        """Fold the block's constants: afterwards all convolutions are plain ones, and there is no skip gain.

        ``alpha * skip_gain`` goes into the last convolution or, with Squeeze-Excite at the end, into its factor.
        """
        scale = self._scale()
        if scale is None:  # folded already
            return
        scale, gate_at_end = scale.detach(), self.se_position in ("end", "straddled")
        for name in ("conv_shortcut", "conv0", "conv1", "conv1b", "conv2"):
            conv = getattr(self, name)
            if conv is not None:
                last = name == "conv2" and not gate_at_end
                setattr(self, name, conv.folded(scale if last else None))
        if self.squeeze_excite is not None and gate_at_end:
            self.squeeze_excite.factor *= scale.item()
        self.skip_init = None
