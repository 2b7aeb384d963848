"""Up-projection blocks for depth from one image (NF-ResNets, appendix H.2)."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import Activation, Role, WSConv2d
from ...nn.conv import in_place_of
from ..backbone import activation_of, check_width, feature_scale, last_conv
from ..body import ResidualNet
from .network import DenseNet

MEAN_DEPTH = 2.7  # metres, of NYU Depth v2; the bias starts here, since clipping would move it from 0 very slowly


class UpConv2d(WSConv2d):
    """A 5x5 convolution of a map with a zero behind each of its pixels: (N, C, H, W) -> (N, out_channels, 2 H, 2 W).

    Computed as a transposed convolution, which skips the zeros. Three of four inputs are zeros; a factor of 2
    compensates for them, so that the variance stays 1 at initialization. Parameters: as :class:`.WSConv2d`, the weight
    (out_channels, C, 5, 5) that of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, input_scale: float = 1.0):
        super().__init__(in_channels, out_channels, 5, input_scale=2 * input_scale)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        bias = self.bias if scale is None or self.bias is None else self.bias * scale
        return self._apply_weight(lambda w: F.conv_transpose2d(x, w, bias, 2, 2, 1), scale, _transposed)

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: object = None) -> nn.ConvTranspose2d:
        """The same function as a plain transposed convolution; ``plain_type`` is ignored."""
        plain = nn.ConvTranspose2d(self.in_channels, self.out_channels, 5, 2, 2, 1, device="meta")
        plain.weight = nn.Parameter(_transposed(self.effective_weight(scale)).contiguous(), requires_grad=False)
        if self.bias is not None:
            bias = self.bias.clone() if scale is None else self.bias * scale
            plain.bias = nn.Parameter(bias, requires_grad=False)
        return in_place_of(self, plain)


def _transposed(weight: Tensor) -> Tensor:
    """A convolution's weight for a transposed convolution: the kernel flipped, the channels swapped."""
    return weight.flip(2, 3).transpose(0, 1)


class UpProjection(nn.Module):
    """Twice the size and half the channels: (N, C, H, W) -> (N, out_channels, 2 H, 2 W).

    The up-projection block of Laina et al. (arXiv:1606.00373, figure 2) without normalization: activation; zeros
    between the pixels and a 5x5 convolution, one followed by activation and a 3x3 convolution, another one alone;
    their sum over sqrt(2).
    """

    def __init__(self, in_channels: int, out_channels: int, act: Activation):
        super().__init__()
        self.act0 = act.clone()
        self.up_branch = UpConv2d(in_channels, out_channels, input_scale=act.gamma)
        self.act1 = act.clone()
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
        init_std: of the last convolution's weight; None: 1 / sqrt(fan-in), since depths differ by metres.
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
        self.act, self.gamma = act.clone(), act.gamma
        std = (9 * widths[-1]) ** -0.5 if init_std is None else init_std
        self.last = last_conv(widths[-1], 1, 3, std, bias=MEAN_DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.blocks(self.conv(x))) * self.gamma)


def depth_estimator(backbone: ResidualNet, *, width: int | None = None) -> DenseNet:
    """Up-projection blocks on a backbone (NF-ResNets, H.2), up to half of the image's size: (N, 1, H, W) metres.

    Args:
        width: channels of the head's first convolution; None: half of the backbone's features.

    Raises:
        UsageError: a width out of range.

    Example:
        >>> backbone = build_model("nf_resnet26_small")
        >>> depth_estimator(backbone, width=16)(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """
    check_width(width)
    count = max(0, round(math.log2(backbone.feature_info[-1]["reduction"])) - 1)
    act, scale = activation_of(backbone), feature_scale(backbone)
    head = UpProjectionHead(backbone.num_features, width=width, count=count, act=act, scale=scale)
    return DenseNet(backbone, head)
