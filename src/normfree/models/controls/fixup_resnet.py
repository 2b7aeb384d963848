"""Control: the post-activation ResNet with FixUp initialization (Zhang et al. 2019; NF-ResNets, figure 10)."""

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ...nn import Activation, Role, SameConv2d, StochasticDepth
from ..block import Sampling
from ..body import Place, RegularizedOptions, ResidualNet
from ..resnet import STRIDES, resnet_variants
from ..stem import ResNetStem, conv_stem

VARIANTS = resnet_variants("fixup_resnet{}")


class ScalarBias(nn.Module):
    """One learnable number, 0 at first, added to all of ``x``; shape (1,)."""

    parameter_roles = {"bias": Role.BIAS}

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class FixupBlock(nn.Module):
    """``act(shortcut + scale * conv2(...) + bias3b)`` with a scalar bias around every convolution.

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. The last convolution starts at
    0 and the others are scaled down by ``num_blocks ** -0.25``; as in the authors' code, the 1x1 ones by their outputs.
    """

    parameter_roles = {"scale": Role.GAIN}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 - immutable
        ratio: float = 0.25,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        stochdepth_rate: float = 0.0,
    ):
        super().__init__()
        width = int(out_channels * ratio)
        self.act = Activation(activation, gamma=1.0)
        self.bias1a, self.bias1b = ScalarBias(), ScalarBias()
        self.bias2a, self.bias2b = ScalarBias(), ScalarBias()
        self.bias3a, self.bias3b = ScalarBias(), ScalarBias()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv_shortcut = None
        if sampling.reduces or in_channels != out_channels:
            self.conv_shortcut = SameConv2d(in_channels, out_channels, 1, sampling.stride, bias=False)
            nn.init.normal_(self.conv_shortcut.weight, std=(2 / out_channels) ** 0.5)
        self.conv0 = SameConv2d(in_channels, width, 1, bias=False)
        self.conv1 = SameConv2d(width, width, 3, bias=False, **sampling.first)
        self.conv2 = SameConv2d(width, out_channels, 1, bias=False)
        nn.init.normal_(self.conv0.weight, std=(2 / width) ** 0.5 * num_blocks**-0.25)
        nn.init.normal_(self.conv1.weight, std=(2 / (9 * width)) ** 0.5 * num_blocks**-0.25)
        nn.init.zeros_(self.conv2.weight)
        self.stochdepth = StochasticDepth(stochdepth_rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bias1a(x)
        shortcut = out if self.conv_shortcut is None else self.conv_shortcut(out)
        out = self.act(self.bias1b(self.conv0(out)))
        out = self.act(self.bias2b(self.conv1(self.bias2a(out))))
        out = self.bias3b(self.conv2(self.bias3a(out)) * self.scale)
        return self.act(shortcut + self.stochdepth(out))


class FixupResNet(ResidualNet):
    """ResNet without normalization whose branches start at 0: (N, in_chans, H, W) -> (N, num_classes)."""

    family = "fixup_resnet"
    bias2: nn.Module

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: ResNetStem = "7x7",
        in_chans: int = 3,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        ratio: float = 0.25,
        **options: Unpack[RegularizedOptions],
    ):
        conv = functools.partial(SameConv2d, bias=False)
        bias, act = ScalarBias(), Activation(activation, gamma=1.0)

        def make_block(place: Place) -> FixupBlock:
            return FixupBlock(
                place.in_channels,
                place.out_channels,
                sum(depths),
                sampling=place.sampling,
                ratio=ratio,
                activation=activation,
                stochdepth_rate=place.stochdepth_rate,
            )

        super().__init__(
            stem=conv_stem(stem, conv, in_chans, widths[0] // 4, bias1=bias, act=act),
            widths=widths,
            depths=depths,
            strides=STRIDES[: len(widths)],
            make_block=make_block,
            final=dict(bias2=ScalarBias()),
            classifier_std=0.0,
            **options,
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.head(x, pre_logits=True)
        return pooled if pre_logits or not self.num_classes else self.head.fc(self.bias2(pooled))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As in :class:`FeatureMaps`; the bias in front of the classifier is removed with it."""
        indices_kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if not self.num_classes:
            self.bias2 = nn.Identity()
        return indices_kept
