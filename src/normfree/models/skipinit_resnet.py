"""Control: the pre-activation ResNet with SkipInit (De & Smith 2020): no normalization, a zero scalar per branch."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..nn import Activation, SameConv2d
from .block import Branch
from .body import ResidualNet
from .preact import PreactBlock, Preactivation
from .resnet import STRIDES, resnet_stem, resnet_variants

VARIANTS = resnet_variants("skipinit_resnet{}")


class SkipInitResNet(ResidualNet):
    """``x + skip_gain * f(x)`` with He initialization and skip gains of 0: (N, in_chans, H, W) -> (N, num_classes)."""

    family = "skipinit_resnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stochdepth_rate: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        ratio: float = 0.25,
        global_pool: str = "avg",
    ):
        pre = Preactivation(activation=activation, norm=False)
        branch = Branch(ratio=ratio, conv=SameConv2d)
        channels = widths[0] // 4

        def conv(*geometry: int) -> SameConv2d:
            return SameConv2d(*geometry, bias=False)

        stem, stem_stride = resnet_stem("7x7", conv, in_chans, channels)

        def make_block(stage: int, position: int, before: int, after: int, stride: int) -> PreactBlock:
            rate = stochdepth_rate * (sum(depths[:stage]) + position) / sum(depths)
            at = dict(stride=stride, bias=True, skip_init=True, stochdepth_rate=rate)
            return PreactBlock(before, after, branch=branch, pre=pre, **at)

        super().__init__(
            stem=stem,
            stem_channels=channels,
            stem_stride=stem_stride,
            widths=widths,
            depths=depths,
            strides=STRIDES[: len(widths)],
            make_block=make_block,
            num_features=widths[-1],
            num_classes=num_classes,
            drop_rate=drop_rate,
            classifier_std=0.0,
            global_pool=global_pool,
        )
        self.act = Activation(activation, gamma=1.0)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, activated: (N, num_features, H', W')."""
        return self.act(self.stages(self.stem(x)))
