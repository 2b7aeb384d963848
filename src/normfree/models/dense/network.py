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

    If a side is a multiple of the stride plus 1 (513 at stride 16), "SAME" padding places the outputs from the first to
    the last pixel at equal distances; then corners are aligned.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    pairs = [(side - 1, steps - 1) for side, steps in zip(size, maps.shape[-2:], strict=True)]
    corners = all(steps > 0 and side % steps == 0 for side, steps in pairs)
    maps = maps.float() if maps.element_size() < 4 else maps
    return F.interpolate(maps, list(size), mode="bilinear", align_corners=corners)
