"""NF-ResNet and NF-SE-ResNet, 50 to 600 layers (NF-ResNets, sections 3 to 5)."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, MaxPoolSame, WSConv2d
from .block import Branch
from .body import NormFreeNet

DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}

VARIANTS = {
    f"nf_{'se' if se else ''}resnet{layers}": dict(
        widths=(256, 512, 1024, 2048), depths=depths, squeeze_excite=se, train_size=224, test_size=224
    )
    for se in (False, True)
    for layers, depths in DEPTHS.items()
} | {
    # Small images (8 to 64 px): 0.7 M parameters, trains on a laptop's CPU in a minute.
    "nf_resnet26_small": dict(widths=(64, 128, 256), depths=(2, 3, 3), stem="3x3", train_size=32, test_size=32)
}


class NFResNet(NormFreeNet):
    """NF-ResNet: the pre-activation bottleneck ResNet without normalization.

    ``(N, in_chans, H, W) -> (N, num_classes)``. ``stem="7x7"`` is the papers' (7x7 of stride 2 and 3x3 max pooling;
    strides 4, 8, 16, 32); ``stem="3x3"``, for small images, is one 3x3 convolution of stride 1 (strides 1, 2, 4, ...).
    Dropout and stochastic depth are off unless asked for, as in the paper's plain runs.
    """

    family = "nf_resnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        squeeze_excite: bool = False,
        stem: Literal["7x7", "3x3"] = "7x7",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stochdepth_rate: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        gamma: float | None = None,
        alpha: float = 0.2,
        ratio: float = 0.25,
        se_ratio: float = 0.25,
        global_pool: str = "avg",
    ):
        if stem not in ("7x7", "3x3"):
            raise UsageError(f'stem (={stem!r}) must be "7x7" or "3x3"')
        stem_channels = widths[0] // 4
        layers = nn.Sequential()
        if stem == "7x7":
            layers.add_module("conv", WSConv2d(in_chans, stem_channels, 7, 2))
            layers.add_module("pool", MaxPoolSame())
        else:
            layers.add_module("conv", WSConv2d(in_chans, stem_channels, 3))
        super().__init__(
            stem=layers,
            stem_channels=stem_channels,
            stem_stride=4 if stem == "7x7" else 1,
            widths=widths,
            depths=depths,
            strides=(1,) + (2,) * (len(widths) - 1),
            branch=Branch(ratio=ratio, squeeze_excite="end" if squeeze_excite else None, se_ratio=se_ratio),
            act=Activation(activation, gamma),
            alpha=alpha,
            num_classes=num_classes,
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            global_pool=global_pool,
        )
