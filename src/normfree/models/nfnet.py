"""NFNet F0 to F7 and F0+ to F7+ (NFNets, section 5, table 1, appendix C)."""

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from torch import Tensor

from ..errors import UsageError
from ..nn import Activation, Affine
from .block import Branch, RatioOf, SEPosition, SEWidth, Shortcut, per_stage, se_placed
from .body import Final, NormFreeNet, NormFreeOptions
from .stem import NFNetStem, conv_stem, deep_stem, nfnet_stem_widths, nfnet_strides
from .weight_schemes import WeightScheme, default_gamma, scheme_conv

_TRAIN = (192, 224, 256, 320, 384, 416, 448, 480)
_TEST = (256, 320, 352, 416, 512, 544, 576, 608)
_DROP = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)

VARIANTS = {
    f"nfnet_f{k}{suffix}": dict(
        widths=widths,
        depths=tuple(depth * (k + 1) for depth in (1, 2, 6, 3)),
        drop_rate=_DROP[k],
        stochdepth_rate=0.25,
        train_size=_TRAIN[k],
        test_size=_TEST[k],
    )
    for suffix, widths in (("", (256, 512, 1536, 1536)), ("_plus", (384, 768, 2048, 2048)))
    for k in range(8)
}


class NFNet(NormFreeNet):
    """NFNet: SE-ResNeXt-D with two 3x3 convolutions of group width 128 and a four-convolution stem.

    ``(N, in_chans, H, W) -> (N, num_classes)``, strides 4, 8, 16, 32. For small images, ``stem="3x3"`` is one 3x3
    convolution of stride 1 (strides 1, 2, 4, 8; 32 px), ``"3x3-stride2"`` one of stride 2 (2, 4, 8, 16; 64 px).

    Args:
        stem: "4x 3x3"; of ResNet-D and ResNet: "3x 3x3", "7x7", "7x7-nopool"; for small images; or "dct": the
            coefficients of 8x8 blocks, stride 8 (NFNets, appendix E).
        ratio, ratio_of, group_width: the inner width of a branch over the channels of its output, or of its input; its
            3x3 convolutions' channels per group. One for all stages, or a list of one for each (NFNets, appendix E).
        pointwise_groups: groups of a branch's 1x1 convolutions (NFNets, appendix E).
        spatial_convs: 3x3 convolutions in a branch.
        first_ratio: ``ratio`` of the network's first block; None: as all others.
        shortcut: of a transition: a strided 1x1 convolution, or one behind 2x2 average pooling ("pooled").
        affine: gains and biases, see :func:`.affine_conv`.
        squeeze_excite, se_ratio, se_factor, se_width, se_position: whether, how wide and where, see :class:`.Branch`.
        final, final_factor: a 1x1 convolution behind the last stage, a linear layer behind the pooling ("linear"), or
            nothing ("none"); how many times the last stage's channels it makes.
        classifier_std: standard deviation of the classifier's first weight.

    Raises:
        UsageError: values that are out of range or contradict each other, by their names.

    Example:
        >>> options = dict(pointwise_groups=2, se_position="straddled", widths=(32, 64, 64, 64), group_width=16)
        >>> normfree.create_model("nfnet_f0", **options)(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """

    family = "nfnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        weight_scheme: WeightScheme = "standardized",
        stem: NFNetStem = "4x 3x3",
        in_chans: int = 3,
        drop_rate: float = 0.2,
        stochdepth_rate: float = 0.25,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        gamma: float | None = None,
        ratio: float | Sequence[float] = 0.5,
        ratio_of: RatioOf | Sequence[RatioOf] = "output",
        first_ratio: float | None = None,
        group_width: int | Sequence[int] = 128,
        pointwise_groups: int = 1,
        spatial_convs: Literal[1, 2] = 2,
        shortcut: Shortcut = "pooled",
        affine: Affine = "conv",
        squeeze_excite: bool = True,
        se_ratio: float = 0.5,
        se_factor: float = 2.0,
        se_width: SEWidth = "gated",
        se_position: SEPosition = "end",
        final: Final = "conv",
        final_factor: int = 2,
        classifier_std: float = 0.01,
        **options: Unpack[NormFreeOptions],
    ):
        if final == "none" and final_factor != 2:
            raise UsageError(
                f"final_factor (={final_factor}) must not be given with final='none', which widens nothing"
            )
        conv, stem_widths = scheme_conv(weight_scheme, affine), nfnet_stem_widths(stem, widths[0])
        act = Activation(activation, default_gamma(weight_scheme, activation) if gamma is None else gamma)
        stages = zip(
            per_stage("ratio", ratio, widths),
            per_stage("ratio_of", ratio_of, widths),
            per_stage("group_width", group_width, widths),
            strict=True,
        )
        super().__init__(
            stem=deep_stem(in_chans, stem_widths, conv, act, affine=affine == "activation")
            if len(stem_widths) > 1
            else conv_stem(stem, conv, in_chans, *stem_widths),
            widths=widths,
            depths=depths,
            strides=nfnet_strides(stem),
            branch=[
                Branch(
                    ratio=own_ratio,
                    expand_input=own_ratio_of == "input",
                    group_width=own_group_width,
                    pointwise_groups=pointwise_groups,
                    spatial_convs=spatial_convs,
                    squeeze_excite=se_placed(squeeze_excite, se_position, "end"),
                    se_ratio=se_ratio,
                    se_factor=se_factor,
                    se_width=se_width,
                    pool_shortcut=shortcut == "pooled",
                    conv=conv,
                    affine=affine == "activation",
                )
                for own_ratio, own_ratio_of, own_group_width in stages
            ],
            first_ratio=first_ratio,
            final=final,
            final_channels=final_factor * widths[-1],
            act=act,
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            classifier_std=classifier_std,
            **options,
        )
