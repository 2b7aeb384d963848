"""NF-EfficientNet B0 to B5: EfficientNet without normalization (NF-ResNets, section 5.2)."""

import math
from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor, nn

from ..errors import UsageError
from ..functional import expected_skip_variances, residual_merge
from ..nn import (
    Activation,
    Affine,
    ChannelAffine,
    SameConv2d,
    SkipInit,
    StochasticDepth,
    StochdepthScaling,
    WSConv2d,
    activated,
    affine_conv,
    gated_activated,
)
from .body import Place
from .efficientnet import (
    FINAL_FACTOR,
    STEM_WIDTH,
    EfficientNet,
    EfficientNetOptions,
    Inverted,
    InvertedBlock,
    efficientnet_variants,
    skip_flags,
)
from .weight_schemes import WeightScheme, default_gamma, scheme_conv

VARIANTS = efficientnet_variants("nf_efficientnet", 6, stochdepth_rate=0.1)


class NFInvertedBlock(InvertedBlock):
    """``x + alpha * skip_gain * f(x / beta)``, or ``f(x / beta)`` where stride or channels change.

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. ``f``: 1x1 convolution,
    depthwise convolution, Squeeze-Excite, 1x1 convolution, with scaled activations between them; it keeps a variance of
    1. So the variance grows by ``alpha ** 2`` where there is a skip, and is 1 again where there is none.

    Args:
        shape: channels, kernel size, stride.
        beta: square root of the expected variance of the input.
        skip_gain: initial value of a learnable factor of the branch (SkipInit); None: there is none.
        conv: makes the convolutions.
        depthwise: makes the depthwise one; None: ``conv``.
        affine: a :class:`.ChannelAffine` stands in front of each activation (NF-ResNets, appendix B.1).

    Example:
        >>> block = NFInvertedBlock(Inverted(8, 8), act=Activation("silu"), skip_gain=0.0)
        >>> x = torch.randn(1, 8, 6, 6)
        >>> torch.equal(block(x), x)
        True
    """

    def __init__(
        self,
        shape: Inverted,
        *,
        act: Activation,
        alpha: float = 0.2,
        beta: float = 1.0,
        skip_gain: float | None = None,
        se_factor: float = 2.0,
        conv: Callable[..., SameConv2d] = WSConv2d,
        depthwise: Callable[..., SameConv2d] | None = None,
        affine: bool = False,
        stochdepth_rate: float = 0.0,
        stochdepth_scaling: StochdepthScaling = "none",
    ):
        super().__init__(
            shape,
            conv=conv,
            depthwise=depthwise or conv,
            act=act,
            beta=beta,
            se_factor=se_factor,
            stochdepth=StochasticDepth(stochdepth_rate, stochdepth_scaling, alpha),
        )
        convs = ("conv2",) if self.conv0 is None else ("conv1", "conv2")  # with an activation in front
        self.affines = nn.ModuleDict({name: ChannelAffine(shape.width) for name in convs}) if affine else None
        self.skip_init: SkipInit | None = SkipInit(alpha, skip_gain) if shape.has_skip else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv0 is None:
            out = self.conv1(x)
        else:
            (out,) = activated(self.act, self._transformed("conv1", self.conv0(x)), self.conv1)
        scale = None if self.skip_init is None else self.skip_init.scale()
        last = self.conv2 if scale is None else lambda x: self.conv2(x, scale)
        out = gated_activated(self.act, self._transformed("conv2", out), self.squeeze_excite.gate, last)
        if not self.has_skip:
            return out
        keep = self.stochdepth.mask(x)
        return x + out if keep is None else residual_merge(self.stochdepth.skip(x, keep), out, keep)

    def _transformed(self, conv: str, x: Tensor) -> Tensor:
        """The input of the activation in front of ``conv``, which may have an affine transform in front."""
        return x if self.affines is None else self.affines[conv](x)

    @property
    def folded(self) -> bool:
        """Whether its convolutions are plain ones."""
        return not isinstance(self.conv2, SameConv2d)

    def fold_(self) -> None:
        """Fold the block's constants: afterwards all convolutions are plain ones, and there is no skip gain."""
        if self.folded:
            return
        scale = None if self.skip_init is None else self.skip_init.scale().detach()
        for name in ("conv0", "conv1", "conv2"):
            conv = getattr(self, name)
            if conv is not None:
                setattr(self, name, conv.folded(scale if name == "conv2" else None))
        self.skip_init = None


class NFEfficientNet(EfficientNet):
    """NF-EfficientNet: Scaled Weight Standardization and the Normalizer-Free structure on EfficientNet.

    ``(N, in_chans, H, W) -> (N, num_classes)``, strides 2, 4, 8, 16, 32; for small images, ``stem="3x3"`` is a
    convolution of stride 1 (strides 1, 2, 4, 8, 16). The classifier starts at weight 0, as that of NF-RegNets.

    B0 is 3.2 % below the network with BatchNorm (NF-ResNets, section 5.2); ``standardize_depthwise=False`` makes it
    more accurate and less stable, and ``skip_gain=0`` (SkipInit) is said to fail.

    Args:
        affine: gains and biases, see :func:`.affine_conv`.
    """

    act: nn.Module
    final_affine: nn.Module
    family = "nf_efficientnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem_width: int = STEM_WIDTH,
        activation: str | Callable[[Tensor], Tensor] = "silu",
        gamma: float | None = None,
        alpha: float = 0.2,
        skip_gain: float | None = None,
        se_factor: float = 2.0,
        weight_scheme: WeightScheme = "standardized",
        standardize_depthwise: bool = True,
        affine: Affine = "conv",
        stochdepth_scaling: StochdepthScaling = "none",
        **options: Unpack[EfficientNetOptions],
    ):
        conv, apart = scheme_conv(weight_scheme, affine), affine == "activation"
        act = Activation(activation, default_gamma(weight_scheme, activation) if gamma is None else gamma)
        if act.gamma <= 0:
            raise UsageError(f"gamma (={gamma}) must be above 0")
        # the stem ends in the bare activation, of variance gamma ** -2
        variances = expected_skip_variances(skip_flags(stem_width, widths, depths), alpha, first=act.gamma**-2)

        def make_block(shape: Inverted, place: Place) -> NFInvertedBlock:
            return NFInvertedBlock(
                shape,
                act=act.clone(),  # a copy for each block: a trace names a shared module by its first place
                alpha=alpha,
                beta=math.sqrt(variances[place.index]),
                skip_gain=skip_gain,
                se_factor=se_factor,
                conv=conv,
                depthwise=None if standardize_depthwise else affine_conv(affine, SameConv2d),
                affine=apart,
                stochdepth_rate=place.stochdepth_rate,
                stochdepth_scaling=stochdepth_scaling,
            )

        channels = FINAL_FACTOR * widths[-1]
        super().__init__(
            widths=widths,
            depths=depths,
            conv=conv,
            behind_stem=dict(affine=ChannelAffine(stem_width), act=act.clone()) if apart else dict(act=act.clone()),
            make_block=make_block,
            final_conv=conv(widths[-1], channels, 1, input_scale=variances[-1] ** -0.5),
            final=dict(final_affine=ChannelAffine(channels), act=act) if apart else dict(act=act),
            stem_width=stem_width,
            classifier_std=0.0,
            **options,
        )
        self.alpha, self.variances = alpha, variances
        self.feature_gamma = act.gamma

    def forward_final(self, x: Tensor) -> Tensor:
        """Activation and its gamma, perhaps behind an affine transform."""
        x = self.act(self.final_affine(x) if "final_affine" in self.final_names else x)
        return x if self.feature_gamma == 1.0 else x * self.feature_gamma

    def map_variances(self) -> list[float]:
        """As in :class:`.ResidualNet`; behind the final convolution it is 1."""
        depths = [len(list(stage.children())) for stage in self.stages]
        variances = [1.0, *(self.variances[sum(depths[:passed])] for passed in self.map_stages[1:])]
        if not isinstance(self.final_conv, nn.Identity):
            variances[-1] = 1.0
        return variances
