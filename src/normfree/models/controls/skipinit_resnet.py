"""Control: the pre-activation ResNet with SkipInit (De & Smith 2020): no normalization, a zero scalar per branch."""

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor

from ..body import RegularizedOptions
from ..resnet import resnet_variants
from ..stem import ResNetStem
from .bn_resnet import BNResNet

VARIANTS = resnet_variants("skipinit_resnet{}")


class SkipInitResNet(BNResNet):
    """``x + skip_gain * f(x)`` with He initialization and skip gains of 0: (N, in_chans, H, W) -> (N, num_classes)."""

    family = "skipinit_resnet"

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
        super().__init__(
            widths=widths,
            depths=depths,
            norm=False,
            skip_init=True,
            bias=True,
            stem=stem,
            in_chans=in_chans,
            activation=activation,
            ratio=ratio,
            classifier_std=0.0,
            **options,
        )
