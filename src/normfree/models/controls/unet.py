"""Controls: the U-Net with BatchNorm or InstanceNorm in front of each activation, and usual weights."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from ...gain import activation_function
from ...nn import SameConv1d, SameConv2d, SameConv3d, StochasticDepth
from ..body import Stage
from ..unet import VARIANTS as NF_VARIANTS
from ..unet import UNet, UNetOptions, as_large, check_levels

Norm = Literal["batch", "instance"]
CONVS = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}
UPS: dict[int, Callable[..., nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[tuple[str, int], Callable[..., nn.Module]] = {
    ("batch", 1): nn.BatchNorm1d,
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 1): nn.InstanceNorm1d,
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
}
BN_VARIANTS: dict[str, dict[str, Any]] = {name.replace("nf_", "bn_"): variant for name, variant in NF_VARIANTS.items()}
IN_VARIANTS: dict[str, dict[str, Any]] = {name.replace("nf_", "in_"): variant for name, variant in NF_VARIANTS.items()}


class NormActivation(nn.Module):
    """``act(norm(x))``, of any dimension: the same shape."""

    def __init__(self, channels: int, norm: Norm, dims: int, function: Callable[[Tensor], Tensor]):
        super().__init__()
        options: dict[str, Any] = dict(affine=True) if norm == "instance" else {}
        self.norm, self.function = NORMS[norm, dims](channels, **options), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(x))


class NormUNetBlock(nn.Module):
    """The branch of :class:`.NFBlock` with a normalization in front of each activation, added to the shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        inner: int,
        spatial_convs: int,
        dims: int,
        pre: Callable[[int], nn.Module],
        stochdepth_rate: float,
    ):
        super().__init__()
        conv = CONVS[dims]
        options: dict[str, Any] = dict(bias=False, init_gain=2**0.5)
        kernels, widths = [1, *(3,) * spatial_convs, 1], [*(inner,) * (spatial_convs + 1), out_channels]
        self.pre0 = pre(in_channels)
        self.conv_shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.conv_shortcut = conv(in_channels, out_channels, 1, stride, **options)
        self.layers = nn.Sequential()
        channels = in_channels
        for i, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
            if i:
                self.layers.add_module(f"pre{i}", pre(channels))
            self.layers.add_module(f"conv{i}", conv(channels, width, kernel, stride if i == 1 else 1, **options))
            channels = width
        self.stochdepth = StochasticDepth(stochdepth_rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pre0(x)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(out)
        return shortcut + self.stochdepth(self.layers(out))


class Concat(nn.Module):
    """Maps side by side: no parameters, no constants."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


class NormUp(nn.Module):
    """One level of the way up, as :class:`.Up`, with a normalization: ``blocks(concat(up(act(norm(x))), skip))``."""

    def __init__(self, pre: nn.Module, up: nn.Module, blocks: Stage):
        super().__init__()
        self.pre, self.up, self.concat, self.blocks = pre, up, Concat(), blocks

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(self.pre(x))
        return self.blocks(self.concat(as_large(x, skip), skip))


class BNUNet(UNet):
    """The shape of :class:`.NFUNet` with BatchNorm: (N, in_chans, *places) -> (N, num_classes, *places).

    ``norm(x)``, then the activation, then the convolution; He initialization, no alpha, beta, gamma, gains or skip
    gains; maps are concatenated as they are. The options are those of :class:`.NFUNet` that it has.

    Example:
        >>> model = BNUNet(widths=(8, 16), depths=(1, 1), dims=3, in_chans=1, num_classes=2)
        >>> model(torch.randn(1, 1, 8, 8, 7)).shape
        torch.Size([1, 2, 8, 8, 7])
    """

    family = "bn_unet"
    norm: Norm = "batch"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        up_depth: int = 1,
        ratio: float = 1.0,
        spatial_convs: int = 2,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        stochdepth_rate: float = 0.0,
        **options: Unpack[UNetOptions],
    ):
        dims, in_chans = options.get("dims", 2), options.get("in_chans", 3)
        check_levels(widths, depths, up_depth, dims)
        function, count = activation_function(activation), sum(depths) + up_depth * (len(depths) - 1)
        made = itertools.count()

        def pre(channels: int) -> nn.Module:
            return NormActivation(channels, self.norm, dims, function)

        def level(channels: int, width: int, depth: int, stride: int) -> Stage:
            blocks = []
            for i in range(depth):
                rate = stochdepth_rate * next(made) / count
                places = (width, width, 1) if i else (channels, width, stride)
                blocks.append(NormUNetBlock(*places, max(1, int(width * ratio)), spatial_convs, dims, pre, rate))
            return Stage(*blocks)

        stages = [
            level(widths[max(i - 1, 0)], width, depth, 2 if i else 1)
            for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
        ]
        ups = [
            NormUp(
                pre(widths[i + 1]),
                UPS[dims](widths[i + 1], widths[i], 2, 2),
                level(2 * widths[i], widths[i], up_depth, 1),
            )
            for i in reversed(range(len(widths) - 1))
        ]
        stem = CONVS[dims](in_chans, widths[0], 3, bias=False)
        super().__init__(stem=stem, stages=stages, ups=ups, final=pre(widths[0]), widths=widths, **options)


class INUNet(BNUNet):
    """The same with InstanceNorm, which does not depend on the batch."""

    family = "in_unet"
    norm = "instance"
