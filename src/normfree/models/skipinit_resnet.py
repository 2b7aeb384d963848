"""Control: the pre-activation ResNet with SkipInit (De & Smith 2020): no normalization, a zero scalar per branch."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .bn_resnet import BNResNet
from .resnet import resnet_variants

VARIANTS = resnet_variants("skipinit_resnet{}")


class SkipInitResNet(BNResNet):
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
        output_stride: int = 32,
    ):
        super().__init__(
            widths=widths,
            depths=depths,
            norm=False,
            skip_init=True,
            bias=True,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            activation=activation,
            ratio=ratio,
            classifier_std=0.0,
            global_pool=global_pool,
            output_stride=output_stride,
        )
