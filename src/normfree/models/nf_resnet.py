"""NF-ResNet and NF-SE-ResNet, 50 to 600 layers (NF-ResNets, sections 4 and 5)."""

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor

from ..errors import UsageError
from ..nn import Activation, Affine
from .block import Branch, SEPosition, SEWidth, Shortcut, se_placed
from .body import NormFreeNet, NormFreeOptions
from .constant_variance import Residual
from .resnet import resnet_variants
from .stem import ResNetStem, conv_stem
from .weight_schemes import WeightScheme, default_gamma, scheme_conv

VARIANTS = (
    resnet_variants("nf_resnet{}", squeeze_excite=False)
    | resnet_variants("nf_seresnet{}", squeeze_excite=True)
    # Small images (8 to 64 px): 0.7 M parameters, trains on a laptop's CPU in a minute.
    | {"nf_resnet26_small": dict(widths=(64, 128, 256), depths=(2, 3, 3), stem="3x3", train_size=32, test_size=32)}
    # Few images of 64 to 128 px: 0.9 M parameters; branches that are open from the start learn in fewer steps.
    | {
        "nf_resnet23_small": dict(
            widths=(64, 128, 256, 512),
            depths=(1, 2, 2, 2),
            stem="7x7-nopool",
            alpha=1.0,
            skip_gain=1.0,
            train_size=64,
            test_size=64,
        )
    }
)


class NFResNet(NormFreeNet):
    """NF-ResNet: the pre-activation bottleneck ResNet without normalization.

    ``(N, in_chans, H, W) -> (N, num_classes)``. ``stem="7x7"`` is the papers' (7x7 of stride 2 and 3x3 max pooling;
    strides 4, 8, 16, 32), ``"7x7-nopool"`` the same without pooling (strides 2, 4, 8, 16; figure 7). For small images,
    ``"3x3"`` is one 3x3 convolution of stride 1 (strides 1, 2, 4, ...; 32 px), ``"3x3-stride2"`` one of stride 2 (64
    px). Dropout and stochastic depth are off by default, as in the paper's plain runs.

    Three options are the paper's controls: ``standardize=False``, which is ``weight_scheme="raw"``, convolves with the
    raw weights, by default with the ``gamma`` of He initialization (figure 2); ``gamma=sqrt(2)`` is the gain of He for
    ReLU (figure 8); ``se_factor=1`` leaves Squeeze-Excite unmodified (figure 9). ``alpha=1, skip_gain=1`` is the
    setting of the figures.

    ``residual="constant-variance"`` divides the sum of shortcut and branch, so that the variance does not grow; with
    ``activation="selu"`` and ``weight_scheme="raw"`` it is the variant of appendix G.2. The other weight schemes are in
    :mod:`.weight_schemes`.

    Args:
        ratio: the inner width of a branch over its output's.
        first_ratio: ``ratio`` of the network's first block; None: as all others.
        shortcut: of a transition: a strided 1x1 convolution, or one behind 2x2 average pooling ("pooled").
        affine: gains and biases, see :func:`.affine_conv`.
        squeeze_excite, se_ratio, se_factor, se_width, se_position: whether, how wide and where, see :class:`.Branch`.
        classifier_std: standard deviation of the classifier's first weight.

    Raises:
        UsageError: values that are out of range or contradict each other, by their names.
    """

    family = "nf_resnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        squeeze_excite: bool = False,
        standardize: bool = True,
        weight_scheme: WeightScheme = "standardized",
        stem: ResNetStem = "7x7",
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stochdepth_rate: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        gamma: float | None = None,
        ratio: float = 0.25,
        first_ratio: float | None = None,
        shortcut: Shortcut = "strided",
        affine: Affine = "conv",
        se_ratio: float = 0.25,
        se_factor: float = 2.0,
        se_width: SEWidth = "gated",
        se_position: SEPosition = "end",
        classifier_std: float = 0.01,
        residual: Residual = "growing-variance",
        **options: Unpack[NormFreeOptions],
    ):
        scheme = weight_scheme if standardize else _without_standardization(weight_scheme)
        branch = Branch(
            ratio=ratio,
            squeeze_excite=se_placed(squeeze_excite, se_position, "end"),
            se_ratio=se_ratio,
            se_factor=se_factor,
            se_width=se_width,
            pool_shortcut=shortcut == "pooled",
            conv=scheme_conv(scheme, affine),
            affine=affine == "activation",
        )
        gamma = default_gamma(scheme, activation) if gamma is None else gamma
        super().__init__(
            stem=conv_stem(stem, branch.conv, in_chans, widths[0] // 4),
            widths=widths,
            depths=depths,
            strides=(1,) + (2,) * (len(widths) - 1),
            branch=branch,
            first_ratio=first_ratio,
            act=Activation(activation, gamma),
            residual=residual,
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            classifier_std=classifier_std,
            **options,
        )


def _without_standardization(scheme: WeightScheme) -> WeightScheme:
    """The scheme of ``standardize=False``."""
    if scheme not in ("standardized", "raw"):
        raise UsageError(f"weight_scheme (={scheme!r}) contradicts standardize (=False), which is weight_scheme raw")
    return "raw"
