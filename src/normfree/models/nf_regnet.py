"""NF-RegNet B0 to B8 (NF-ResNets, section 5.2 and appendix C)."""

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, Affine, SameConv2d, affine_conv
from .block import Branch, SEPosition, SEWidth, Shortcut, se_placed
from .body import Final, NormFreeNet, NormFreeOptions
from .stem import RegNetStem, conv_stem
from .weight_schemes import WeightScheme, default_gamma, scheme_conv

TABLE = {  # width pattern, depths, train and test size, dropout
    "b0": ((48, 104, 208, 440), (1, 3, 6, 6), 192, 224, 0.2),
    "b1": ((48, 104, 208, 440), (2, 4, 7, 7), 224, 256, 0.2),
    "b2": ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272, 0.3),
    "b3": ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320, 0.3),
    "b4": ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384, 0.4),
    "b5": ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456, 0.4),
    "b6": ((88, 184, 376, 792), (3, 8, 16, 16), 448, 528, 0.5),
    "b7": ((96, 208, 416, 880), (4, 10, 19, 19), 512, 600, 0.5),
    "b8": ((104, 232, 456, 968), (4, 11, 22, 22), 600, 672, 0.5),
}

VARIANTS = {
    f"nf_regnet_{name}": dict(
        widths=tuple(int(0.75 * width) for width in pattern),
        depths=depths,
        drop_rate=drop_rate,
        stochdepth_rate=0.1,
        train_size=train,
        test_size=test,
    )
    for name, (pattern, depths, train, test, drop_rate) in TABLE.items()
}


class NFRegNet(NormFreeNet):
    """NF-RegNet: inverted bottlenecks of group width 8 with Squeeze-Excite in their middle.

    ``(N, in_chans, H, W) -> (N, num_classes)``, strides 4, 8, 16, 32; for small images, ``stem="3x3"`` is a
    convolution of stride 1 (strides 2, 4, 8, 16). The classifier starts at weight 0.

    With ``group_width=1`` its 3x3 convolutions are depthwise; ``standardize_depthwise=False`` leaves them their raw
    weights, as in section 5.2.

    Args:
        ratio, group_width: the inner width of a branch over its input's; channels per group of its 3x3 convolution.
        first_ratio: ``ratio`` of the network's first block; None: as all others.
        shortcut: of a transition: a strided 1x1 convolution, or one behind 2x2 average pooling ("pooled").
        affine: gains and biases, see :func:`.affine_conv`.
        squeeze_excite, se_ratio, se_factor, se_width, se_position: whether, how wide and where, see :class:`.Branch`.
        stem_norm: one BatchNorm behind the first convolution, for training with AutoAugment or RandAugment (section
            5.2).
        final: a 1x1 convolution behind the last stage, a linear layer behind the pooling ("linear"), or nothing
            ("none").
        classifier_std: standard deviation of the classifier's first weight.

    Raises:
        UsageError: values that are out of range or contradict each other, by their names.
    """

    family = "nf_regnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        weight_scheme: WeightScheme = "standardized",
        stem: RegNetStem = "3x3-stride2",
        in_chans: int = 3,
        drop_rate: float = 0.2,
        stochdepth_rate: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "silu",
        gamma: float | None = None,
        ratio: float = 2.25,
        first_ratio: float | None = 1.0,
        group_width: int = 8,
        standardize_depthwise: bool = True,
        shortcut: Shortcut = "pooled",
        affine: Affine = "conv",
        squeeze_excite: bool = True,
        se_ratio: float = 0.5,
        se_factor: float = 2.0,
        se_width: SEWidth = "gated",
        se_position: SEPosition = "middle",
        stem_norm: bool = False,
        final: Final = "conv",
        classifier_std: float = 0.0,
        **options: Unpack[NormFreeOptions],
    ):
        if not standardize_depthwise and group_width != 1:
            raise UsageError(f"standardize_depthwise (=False) needs group_width 1, not {group_width}")
        conv = scheme_conv(weight_scheme, affine)
        gamma = default_gamma(weight_scheme, activation) if gamma is None else gamma
        behind_stem = dict[str, nn.Module](norm=nn.BatchNorm2d(widths[0])) if stem_norm else {}
        super().__init__(
            stem=conv_stem(stem, conv, in_chans, widths[0], **behind_stem),
            widths=widths,
            depths=depths,
            strides=(2, 2, 2, 2),
            branch=Branch(
                ratio=ratio,
                expand_input=True,
                group_width=group_width,
                squeeze_excite=se_placed(squeeze_excite, se_position, "middle"),
                se_ratio=se_ratio,
                se_factor=se_factor,
                se_width=se_width,
                pool_shortcut=shortcut == "pooled",
                conv=conv,
                depthwise=None if standardize_depthwise else affine_conv(affine, SameConv2d),
                affine=affine == "activation",
            ),
            first_ratio=first_ratio,
            final=final,
            final_channels=1280 * widths[-1] // 440,
            act=Activation(activation, gamma),
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            classifier_std=classifier_std,
            **options,
        )
