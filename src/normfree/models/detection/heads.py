"""The layers of the heads: for proposals, and for class, box and mask of a region."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...nn import Activation, Role, WSConv2d
from ..backbone import last_conv
from .pyramid import at_least_float32

POOLED, POOLED_MASK = 7, 14  # side of a region's pooled map, for its class and its mask
MASK_CONVS = 4


class ProposalHead(nn.Module):
    """Objectness and box offsets of the A anchors: (N, C, H, W) -> (N, A, H, W), (N, 4 A, H, W)."""

    parameter_roles = {"objectness.weight": Role.CLASSIFIER, "offsets.weight": Role.CLASSIFIER}

    def __init__(self, width: int, anchors: int, act: Activation):
        super().__init__()
        self.conv, self.act = WSConv2d(width, width, 3), act.clone()
        self.objectness = last_conv(width, anchors, 1, 0.01)
        self.offsets = last_conv(width, 4 * anchors, 1, 0.01)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        maps = [self.act(self.conv(level)) * self.act.gamma for level in levels]
        return [at_least_float32(self.objectness(x)) for x in maps], [at_least_float32(self.offsets(x)) for x in maps]


class BoxHead(nn.Sequential):
    """Two standardized layers on a whole region: (K, C, 7, 7) -> (K, features, 1, 1), of variance 1 as its input."""

    def __init__(self, width: int, features: int, act: Activation):
        first = WSConv2d(width, features, POOLED, padding=0)
        super().__init__(first, act.clone(), WSConv2d(features, features, 1, input_scale=act.gamma), act.clone())


class BoxPredictor(nn.Module):
    """Class and box of regions: (K, features, 1, 1) -> (K, classes + 1), (K, 4 (classes + 1)); 0 is the background."""

    parameter_roles = {"classes.weight": Role.CLASSIFIER, "offsets.weight": Role.CLASSIFIER}

    def __init__(self, features: int, num_classes: int, gamma: float):
        super().__init__()
        self.classes = last_conv(features, num_classes + 1, 1, 0.01)
        self.offsets = last_conv(features, 4 * (num_classes + 1), 1, 0.001)
        self.gamma = gamma

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * self.gamma
        return self.classes(x).flatten(1), self.offsets(x).flatten(1)


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions and twice the size: (K, C, 14, 14) -> (K, C, 28, 28).

    The transposed 2x2 convolution of stride 2 is computed as a 1x1 convolution to four times the channels and a
    shuffle, so that its units are rows of the weight, as in all other layers.
    """

    def __init__(self, width: int, act: Activation):
        layers: list[nn.Module] = []
        for i in range(MASK_CONVS):
            layers += [WSConv2d(width, width, 3, input_scale=act.gamma if i else 1.0), act.clone()]
        up = WSConv2d(width, 4 * width, 1, input_scale=act.gamma)
        super().__init__(*layers, up, Shuffle(), act.clone())


class Shuffle(nn.Module):
    """(K, 4 C, H, W) -> (K, C, 2 H, 2 W); as :class:`torch.nn.PixelShuffle`, whose backward pass fails for K = 0."""

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        parts = x.view(count, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(count, channels // 4, 2 * height, 2 * width)


class MaskPredictor(nn.Module):
    """A mask for each class: (K, C, 28, 28) -> (K, classes + 1, 28, 28) logits."""

    parameter_roles = {"classes.weight": Role.CLASSIFIER}

    def __init__(self, width: int, num_classes: int, gamma: float):
        super().__init__()
        self.classes, self.gamma = last_conv(width, num_classes + 1, 1, 0.01), gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(x * self.gamma)
