"""A backbone, a head, and a resize of the head's map to the image's size."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import OnBackbone
from ..body import ResidualNet


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


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size), in float32 at least.

    The outputs of strides with "SAME" padding lie on every so many-th pixel from the first to the last one if the sides
    are a multiple of the stride plus 1 (513 at stride 16); then the corners stay at the corners.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    pairs = [(side - 1, of - 1) for side, of in zip(size, maps.shape[-2:], strict=True)]
    corners = all(of > 0 and side % of == 0 for side, of in pairs)
    maps = maps.float() if maps.element_size() < 4 else maps
    return F.interpolate(maps, list(size), mode="bilinear", align_corners=corners)
