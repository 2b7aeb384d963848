"""Control: the NFNet with BatchNorm instead of everything Normalizer-Free (NFNets, table 6, row "-NF, + BN")."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..nn import Activated, SameConv2d
from .block import Branch, Sampling
from .body import ResidualNet
from .nfnet import BRANCH, STRIDES, stem_geometry
from .nfnet import VARIANTS as NFNET_VARIANTS
from .preact import PreactBlock, Preactivation

VARIANTS = {f"bn_{name}": variant for name, variant in NFNET_VARIANTS.items()}


class BNNFNet(ResidualNet):
    """NFNet's shape with BatchNorm-GELU-convolution, bare Squeeze-Excite, no alpha, beta, gamma, gains or skip gains.

    ``(N, in_chans, H, W) -> (N, num_classes)``. The papers' code has no such network; this is the plain reading.
    """

    family = "bn_nfnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        stochdepth_rate: float = 0.25,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        ratio: float = 0.5,
        group_width: int = 128,
        se_ratio: float = 0.5,
        final_factor: int = 2,
        global_pool: str = "avg",
        output_stride: int = 32,
    ):
        pre = Preactivation(activation=activation)
        shape = dict(BRANCH, ratio=ratio, group_width=group_width, se_ratio=se_ratio)
        branch = Branch(**shape, se_factor=1.0, conv=SameConv2d)
        stem, channels = Activated(), in_chans
        for i, (width, stride) in enumerate(stem_geometry(widths)):
            if i:
                norm, act = pre.layers(channels)
                stem.add_module(f"bn{i - 1}", norm)
                stem.add_module(f"act{i - 1}", act)
            gain = pre.gain if i else 1.0
            stem.add_module(f"conv{i}", SameConv2d(channels, width, 3, stride, bias=False, init_gain=gain))
            channels = width

        def make_block(stage: int, position: int, before: int, after: int, sampling: Sampling) -> PreactBlock:
            rate = stochdepth_rate * (sum(depths[:stage]) + position) / sum(depths)
            return PreactBlock(before, after, branch=branch, pre=pre, sampling=sampling, stochdepth_rate=rate)

        features = final_factor * widths[-1]
        final_conv = SameConv2d(widths[-1], features, 1, bias=False)
        final_bn, act = pre.layers(features)
        super().__init__(
            stem=stem,
            stem_channels=channels,
            stem_stride=4,
            widths=widths,
            depths=depths,
            strides=STRIDES,
            make_block=make_block,
            final_conv=final_conv,
            final=dict(final_bn=final_bn, act=act),
            num_features=features,
            num_classes=num_classes,
            drop_rate=drop_rate,
            global_pool=global_pool,
            output_stride=output_stride,
        )

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalization and activation."""
        return self.act(self.final_bn(x))
