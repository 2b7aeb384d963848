"""Networks that answer for every pixel: a backbone, a head without normalization, and a resize to the image's size."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, Role, WSConv2d
from ..nn.conv import in_place_of
from .body import ResidualNet
from .pyramid import level_scales

MOST_WIDTH = 16384  # channels of a head
_DOUBLES = dict(stride=2, padding=2, output_padding=1)  # a transposed convolution of 5x5, with zeros between pixels
START = 2.7  # metres, the mean of NYU Depth v2: clipping would move a bias from 0 by its eps only


class FCNHead(nn.Module):
    """Two 3x3 convolutions of dilation 6 and a 1x1 classifier: (N, in_features, H, W) -> (N, num_classes, H, W).

    Source: NF-ResNets, appendix H.1; 256 channels as in "Momentum Contrast" (arXiv:1911.05722), which it follows.

    Args:
        act: the family's activation; its gamma is folded into the convolution that follows.
        scale: constant that brings the input to variance 1, folded likewise.
        init_std: standard deviation of the classifier's initial weight.
    """

    parameter_roles = {"classifier.weight": Role.CLASSIFIER}

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 256,
        dilation: int = 6,
        act: Activation,
        scale: float = 1.0,
        init_std: float = 0.01,
    ):
        super().__init__()
        self.conv0 = WSConv2d(in_features, width, 3, dilation=dilation, input_scale=scale)
        self.act0 = like(act)
        self.conv1 = WSConv2d(width, width, 3, dilation=dilation, input_scale=act.gamma)
        self.act1 = like(act)
        self.gamma = act.gamma
        self.classifier = last_conv(width, num_classes, 1, init_std)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(self.act0(self.conv0(x))))
        return self.classifier(x * self.gamma)


class UpConv2d(WSConv2d):
    """A 5x5 convolution of a map with a zero behind each of its pixels: (N, C, H, W) -> (N, out_channels, 2 H, 2 W).

    Computed as a transposed convolution, which skips the zeros. Three of four inputs are zeros, which a factor of 2
    makes up for, so that the variance stays 1 at initialization. Parameters: as :class:`.WSConv2d`, the weight
    (out_channels, C, 5, 5) that of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, input_scale: float = 1.0):
        super().__init__(in_channels, out_channels, 5, input_scale=2 * input_scale)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        bias = self.bias if scale is None else self.bias * scale
        return self._apply_weight(lambda w: F.conv_transpose2d(x, w, bias, **_DOUBLES), scale, _transposed)

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: type | None = None) -> nn.ConvTranspose2d:
        """The same function as a plain transposed convolution, whatever ``plain_type``."""
        plain = nn.ConvTranspose2d(self.in_channels, self.out_channels, 5, **_DOUBLES, device="meta")
        plain.weight = nn.Parameter(_transposed(self.effective_weight(scale)).contiguous(), requires_grad=False)
        bias = self.bias.clone() if scale is None else self.bias * scale
        plain.bias = nn.Parameter(bias, requires_grad=False)
        return in_place_of(self, plain)


def _transposed(weight: Tensor) -> Tensor:
    """What a transposed convolution takes for a convolution's weight: the kernel flipped, the channels swapped."""
    return weight.flip(2, 3).transpose(0, 1)


class UpProjection(nn.Module):
    """Twice the size and half the channels: (N, C, H, W) -> (N, out_channels, 2 H, 2 W).

    The up-projection block of Laina et al. (arXiv:1606.00373, figure 2) without normalization: activation; zeros
    between the pixels and a 5x5 convolution, once followed by activation and a 3x3 convolution and once alone; their
    sum over sqrt(2).
    """

    def __init__(self, in_channels: int, out_channels: int, act: Activation):
        super().__init__()
        self.act0 = like(act)
        self.up_branch = UpConv2d(in_channels, out_channels, input_scale=act.gamma)
        self.act1 = like(act)
        self.conv = WSConv2d(out_channels, out_channels, 3, input_scale=act.gamma)
        self.up_shortcut = UpConv2d(in_channels, out_channels, input_scale=act.gamma)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act0(x)
        branch = self.conv(self.act1(self.up_branch(x)))
        return (branch + self.up_shortcut(x)) * 0.5**0.5


class UpProjectionHead(nn.Module):
    """From a network's last map to depth: (N, in_features, H, W) -> (N, 1, 2**count H, 2**count W), metres.

    A 1x1 convolution, up-projections that halve the channels, a 3x3 convolution (NF-ResNets, appendix H.2), whose bias
    starts at the mean of NYU Depth v2.

    Args:
        width: channels behind the 1x1 convolution; None: half of ``in_features``, as Laina et al.
        count: up-projections; 4 from stride 32 to stride 2.
        act, scale: as in :class:`FCNHead`.
        init_std: of the last convolution's weight; None: 1 / sqrt(fan-in), since metres differ by metres.
    """

    parameter_roles = {"last.weight": Role.CLASSIFIER}

    def __init__(
        self,
        in_features: int,
        *,
        width: int | None = None,
        count: int = 4,
        act: Activation,
        scale: float = 1.0,
        init_std: float | None = None,
    ):
        super().__init__()
        width = max(1, in_features // 2) if width is None else width
        widths = [max(1, width >> i) for i in range(count + 1)]
        self.conv = WSConv2d(in_features, width, 1, input_scale=scale)
        self.blocks = nn.Sequential(*(UpProjection(a, b, act) for a, b in itertools.pairwise(widths)))
        self.act, self.gamma = like(act), act.gamma
        self.last = last_conv(widths[-1], 1, 3, (9 * widths[-1]) ** -0.5 if init_std is None else init_std)
        nn.init.constant_(self.last.bias, START)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.blocks(self.conv(x))) * self.gamma)


class OnBackbone(nn.Module):
    """A network that stands on another one.

    Attributes:
        backbone: without its classifier; its parameters are named ``backbone.*``.
    """

    def __init__(self, backbone: ResidualNet):
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone = backbone

    @property
    def default_cfg(self) -> dict[str, Any]:
        return self.backbone.default_cfg

    @property
    def in_chans(self) -> int:
        return self.backbone.in_chans

    def set_grad_checkpointing(self, enable: bool = True, stages: Any = None) -> None:
        """As of the backbone."""
        self.backbone.set_grad_checkpointing(enable, stages)


class DenseNet(OnBackbone):
    """A backbone and a head: (N, in_chans, H, W) -> (N, outputs, H, W), the head's map resized bilinearly.

    Attributes:
        head: from ``backbone.forward_features``' map to ``outputs`` maps.
    """

    def __init__(self, backbone: ResidualNet, head: nn.Module):
        super().__init__(backbone)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.head(self.backbone.forward_features(x)), x.shape[-2:])


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size), in float32 at least.

    The outputs of strides with "SAME" padding lie on every so many-th pixel from the first to the last one if the sides
    are a multiple of the stride plus 1 (513 at stride 16); then the corners stay at the corners.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    pairs = [(side - 1, of - 1) for side, of in zip(size, maps.shape[-2:], strict=True)]
    corners = all(of > 0 and side % of == 0 for side, of in pairs)
    maps = maps.float() if maps.element_size() < 4 else maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=corners)


def segmenter(backbone: ResidualNet, num_classes: int, *, width: int | None = None) -> DenseNet:
    """The paper's fully convolutional network (NF-ResNets, H.1) on a backbone, whose classifier is removed.

    Args:
        backbone: of ``create_model(..., output_stride=16)`` for the last stage's stride 1 and dilation 2.
        width: channels of the head; None: 256.

    Raises:
        UsageError: ``num_classes`` below 2, a width out of range.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes (={num_classes}) must be at least 2 for segmentation")
    check_width(width)
    options = dict(width=width or 256, act=activation_of(backbone), scale=feature_scale(backbone))
    head = FCNHead(backbone.num_features, num_classes, **options)
    return DenseNet(backbone, head)


def depth_estimator(backbone: ResidualNet, *, width: int | None = None) -> DenseNet:
    """Up-projection blocks on a backbone (NF-ResNets, H.2), up to half of the image's size: (N, 1, H, W) metres.

    Args:
        width: channels behind the backbone; None: half of its own.

    Raises:
        UsageError: a width out of range.
    """
    check_width(width)
    count = max(0, round(math.log2(backbone.feature_info[-1]["reduction"])) - 1)
    options = dict(width=width, count=count, act=activation_of(backbone), scale=feature_scale(backbone))
    head = UpProjectionHead(backbone.num_features, **options)
    return DenseNet(backbone, head)


def activation_of(backbone: ResidualNet) -> Activation:
    """The backbone's activation, with the gamma that convolutions of standardized weights need."""
    found = [module for module in backbone.modules() if isinstance(module, Activation)]
    return Activation(found[-1].activation if found else "relu")


def feature_scale(backbone: ResidualNet) -> float:
    """1 / the standard deviation that theory gives ``forward_features`` at initialization, as a block's 1 / beta.

    1 for networks whose last map has variance 1 already: behind the last stage is a convolution or a normalization.
    """
    return level_scales(backbone)[-1]


def check_width(width: int | None) -> None:
    """Raise UsageError for a width of a head out of range."""
    if width is not None and not 1 <= width <= MOST_WIDTH:
        raise UsageError(f"width (={width}) must be at least 1 and at most {MOST_WIDTH}")


def like(act: Activation) -> Activation:
    """Another one of the same kind: a trace names what is called by its first place."""
    return Activation(act.activation, act.gamma)


def last_conv(in_channels: int, out_channels: int, kernel_size: int, std: float) -> nn.Conv2d:
    """A raw convolution, as a classifier: N(0, std), bias 0."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
    return conv
