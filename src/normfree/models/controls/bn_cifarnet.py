"""Controls: the network for small images with BatchNorm or GroupNorm."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import SameConv2d, StochasticDepth
from ..body import Place
from ..cifarnet import LOGIT_SCALE, CifarNet, CifarOptions, start_as_identity
from ..cifarnet import VARIANTS as NF_VARIANTS
from .preact import Preactivation

VARIANTS: dict[str, dict[str, Any]] = {name.replace("nf_", "bn_"): variant for name, variant in NF_VARIANTS.items()}
GN_VARIANTS: dict[str, dict[str, Any]] = {name.replace("nf_", "gn_"): variant for name, variant in NF_VARIANTS.items()}


class NormBlock(nn.Module):
    """``max_pool(conv(act(norm(x))))`` where a stage begins, else ``x + conv(act(norm(x)))``.

    ``(N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)``, or the same shape. The network's first block has no
    normalization, since its input is whitened.
    """

    def __init__(self, pre: Preactivation, place: Place, identity_init: bool):
        super().__init__()
        self.pooled, self.skipped = place.sampling.stride > 1, place.position > 0
        self.bn, self.act = pre.layers(place.in_channels)
        if place.index == 0:
            self.bn = nn.Identity()
        self.conv = pre.conv(pre.gain, bias=False)(place.in_channels, place.out_channels, 3)
        self.stochdepth = StochasticDepth(place.stochdepth_rate)
        if identity_init:
            start_as_identity(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(self.act(self.bn(x)))
        if self.skipped:
            return x + self.stochdepth(out)
        return F.max_pool2d(out, 2) if self.pooled else out


class BNCifarNet(CifarNet):
    """The shape of :class:`.NFCifarNet` with BatchNorm: (N, in_chans, H, W) -> (N, num_classes).

    ``norm(x)``, then the activation, then the convolution; no standardized weights, alpha, beta, gamma, gains or skip
    gains. The options are those of :class:`.NFCifarNet`.
    """

    final_bn: nn.Module
    act: nn.Module
    family = "bn_cifarnet"
    norm_groups: int | None = None  # see Preactivation

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        identity_init: bool = True,
        logit_scale: float = LOGIT_SCALE,
        **options: Unpack[CifarOptions],
    ):
        pre = Preactivation(activation=activation, groups=self.norm_groups)
        final_bn, act = pre.layers(widths[-1])
        super().__init__(
            widths=widths,
            depths=depths,
            conv=SameConv2d,
            make_block=lambda place: NormBlock(pre, place, identity_init),
            final=dict(final_bn=final_bn, act=act),
            **options,
        )
        self.feature_scale = logit_scale

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalization, activation and the scale of the logits."""
        return self.act(self.final_bn(x)) * self.feature_scale


class GNCifarNet(BNCifarNet):
    """The same with GroupNorm of 32 groups and standardized weights, which do not depend on the batch."""

    family = "gn_cifarnet"
    norm_groups = 32
