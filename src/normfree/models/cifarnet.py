"""NF-CifarNet: a fast network for small images (of about 32 px), without normalization."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import residual_merge
from ..nn import Activation, DecoupledWSConv2d, PatchWhitening2d, SameConv2d, SkipInit, StochasticDepth, activated
from .body import Place, ResidualNet
from .weight_schemes import WeightScheme, convolution_of, default_gamma

CifarStem = Literal["whiten", "3x3"]
Views = Literal[1, 2, 6]
VARIANTS: dict[str, dict[str, Any]] = {
    "nf_cifarnet": dict(widths=(64, 256, 256), depths=(2, 2, 2), train_size=32, test_size=32)
}
LOGIT_SCALE = 1 / 9  # of the features, whose maximum over the places is large; with it one learning rate fits all


class PoolBlock(nn.Module):
    """``max_pool(conv(act(x)))``, the first block of a stage, which has no skip.

    ``(N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)``, or the same size without pooling.
    """

    def __init__(self, conv: SameConv2d, act: Activation, pooled: bool):
        super().__init__()
        self.act, self.conv, self.pooled = act, conv, pooled

    def forward(self, x: Tensor) -> Tensor:
        (out,) = activated(self.act, x, self.conv)
        return F.max_pool2d(out, 2) if self.pooled else out


class ConvBlock(nn.Module):
    """``x + alpha * skip_gain * conv(act(x))``, a residual block of one convolution: (N, C, H, W) -> (N, C, H, W).

    Example:
        >>> block = ConvBlock(normfree.nn.WSConv2d(8, 8, 3), Activation("gelu"), SkipInit(0.2))
        >>> x = torch.randn(1, 8, 4, 4)
        >>> torch.equal(block(x), x)  # the skip gain is 0 at first
        True
    """

    def __init__(self, conv: SameConv2d, act: Activation, skip_init: SkipInit | None, stochdepth_rate: float = 0.0):
        super().__init__()
        self.act = act
        self.conv: nn.Module = conv  # plain once it is folded
        self.skip_init = skip_init
        self.stochdepth = StochasticDepth(stochdepth_rate)

    def forward(self, x: Tensor) -> Tensor:
        scale = None if self.skip_init is None else self.skip_init.scale()
        (out,) = activated(self.act, x, self.conv if scale is None else lambda x: self.conv(x, scale))
        keep = self.stochdepth.mask(x)
        return x + out if keep is None else residual_merge(x, out, keep)

    def fold_(self) -> None:
        """Fold ``alpha * skip_gain`` into the convolution, which becomes a plain one."""
        if self.skip_init is not None and isinstance(self.conv, SameConv2d):
            self.conv, self.skip_init = self.conv.folded(self.skip_init.scale().detach()), None


def cifar_stem(kind: CifarStem, conv: Callable[..., SameConv2d], in_chans: int) -> nn.Sequential:
    """The first layer: 24 fixed channels of whitened 2x2 patches (of three-channel images), or as many trained ones.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in ("whiten", "3x3"):
        raise UsageError(f'stem (={kind!r}) must be "whiten" or "3x3"')
    layer = PatchWhitening2d(in_chans, 2) if kind == "whiten" else conv(in_chans, 8 * in_chans, 3)
    stem = nn.Sequential()
    stem.add_module("conv", layer)
    return stem


def start_as_identity(conv: SameConv2d) -> SameConv2d:
    """Let the first outputs of a convolution pass on its inputs; the other outputs keep their random weights."""
    if not conv.weight.is_meta:
        nn.init.dirac_(conv.weight.data[: conv.in_channels])
        if isinstance(conv, DecoupledWSConv2d):
            conv.standardize_()
    return conv


class _BodyOptions(TypedDict, total=False):
    """Those of :class:`.RegularizedOptions` without ``global_pool``, which has another default here."""

    num_classes: int
    output_stride: int
    drop_rate: float
    stochdepth_rate: float


class CifarOptions(_BodyOptions, total=False):
    """Keyword arguments that the networks for small images take and pass on to :class:`CifarNet`."""

    global_pool: str
    stem: CifarStem
    in_chans: int
    views: Views


class CifarNet(ResidualNet):
    """The body of the networks for small images, with and without normalization.

    In evaluation mode it answers with the mean logits of several views of each image: ``views`` is 1, the image alone;
    2, the image and its mirror image; or 6, also both of these shifted by one pixel to the upper left and to the lower
    right, at half the weight in the sum (Jordan 2024, arXiv:2404.00498). Training sees images as they are.

    Args:
        conv: makes the first convolution where the stem is "3x3".
        stem: "whiten", a :class:`.PatchWhitening2d` that :func:`.fit_whitening` fits to the training images, or
            "3x3", a trained convolution.
        widths, depths, make_block, final, options: as :class:`.ResidualNet`; each stage halves the map.
    """

    counted_at = 32  # px: the patches need no padding, so that multiply-adds are not proportional to the area

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        conv: Callable[..., SameConv2d],
        make_block: Callable[[Place], nn.Module],
        final: Mapping[str, nn.Module],
        stem: CifarStem = "whiten",
        in_chans: int = 3,
        views: Views = 1,
        global_pool: str = "max",
        **options: Unpack[_BodyOptions],
    ):
        super().__init__(
            stem=cifar_stem(stem, conv, in_chans),
            widths=widths,
            depths=depths,
            strides=(2,) * len(widths),
            make_block=make_block,
            final=final,
            global_pool=global_pool,
            **options,
        )
        self.views: Views = views

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.views == 1:
            return super().forward(x)
        views, weights = image_views(x, self.views)
        logits = super().forward(torch.cat(views)).unflatten(0, (len(views), -1))
        return torch.einsum("v,vnk->nk", logits.new_tensor(weights), logits)


def image_views(x: Tensor, count: Views) -> tuple[list[Tensor], list[float]]:
    """The views of images (N, C, H, W), each of their shape, and their weights, whose sum is 1.

    Example:
        >>> views, weights = image_views(torch.randn(2, 3, 8, 8), 6)
        >>> len(views), views[5].shape, weights
        (6, torch.Size([2, 3, 8, 8]), [0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    """
    views, weights = [x], [1.0]
    if count == 6:
        height, width = x.shape[-2:]
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        views += [padded[..., :height, :width], padded[..., 2:, 2:]]
        weights = [0.5, 0.25, 0.25]
    if count > 1:
        views = [view for one in views for view in (one, one.flip(-1))]
        weights = [weight / 2 for weight in weights for _ in range(2)]
    return views, weights


class NFCifarNet(CifarNet):
    """Three stages of two 3x3 convolutions: (N, in_chans, H, W) -> (N, num_classes), without normalization.

    The shape is that of a network tuned for the speed of training on CIFAR-10 (Jordan 2024, arXiv:2404.00498): whitened
    patches, then stages of a convolution, 2x2 max pooling and a second convolution, then the maximum over all places.
    What replaces its BatchNorm is from the papers: standardized weights, scaled activations, SkipInit, and the second
    convolution as a residual block with alpha and beta (NF-ResNets, section 4). Max pooling is not rescaled.

    Args:
        widths, depths: channels and convolutions of each stage.
        identity_init: the first outputs of each convolution start by passing on its inputs.
        logit_scale: factor of the pooled features in front of the classifier.
        options: as :class:`CifarNet`.
    """

    act: nn.Module
    family = "nf_cifarnet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        weight_scheme: WeightScheme = "standardized",
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        gamma: float | None = None,
        alpha: float = 0.2,
        skip_gain: float | None = 0.0,
        identity_init: bool = True,
        logit_scale: float = LOGIT_SCALE,
        **options: Unpack[CifarOptions],
    ):
        act = Activation(activation, default_gamma(weight_scheme, activation) if gamma is None else gamma)
        conv_kind = convolution_of(weight_scheme)

        def deviation(branches: int) -> float:  # of a stage's signal behind so many residual branches
            return math.sqrt(1 + branches * alpha**2)

        def make_block(place: Place) -> nn.Module:
            first = place.position == 0
            before = (depths[place.stage - 1] if place.stage else 1) if first else place.position
            conv = conv_kind(place.in_channels, place.out_channels, 3, input_scale=act.gamma / deviation(before - 1))
            if identity_init:
                start_as_identity(conv)
            if first:
                return PoolBlock(conv, act.clone(), place.sampling.stride > 1)
            return ConvBlock(conv, act.clone(), SkipInit(alpha, skip_gain), place.stochdepth_rate)

        super().__init__(
            widths=widths, depths=depths, conv=conv_kind, make_block=make_block, final=dict(act=act), **options
        )
        self.alpha = alpha
        self.feature_scale = act.gamma / deviation(depths[-1] - 1) * logit_scale

    def forward_final(self, x: Tensor) -> Tensor:
        """Activation, its gamma and the scale of the logits."""
        return self.act(x) * self.feature_scale
