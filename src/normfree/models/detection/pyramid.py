"""A feature pyramid without normalization, on the maps of any network here."""

from torch import Tensor, nn
from torch.nn import functional as F

from ...nn import Activation, WSConv2d, activated
from ..backbone import level_scales
from ..body import ResidualNet

FINEST = 4  # stride of the finest level, as of all pyramids for detection
BN_EPS, BN_MOMENTUM = 1e-5, 0.1  # as in the controls


class Pyramid(nn.Module):
    """Maps of one width at every scale, each of variance 1 at initialization (Lin et al., arXiv:1612.03144).

    A map of the backbone goes through the activation and a 1x1 convolution, as into a block; from the coarsest level
    down, the level above is doubled in size (nearest neighbour) and added. The sum is divided by sqrt(2), since both
    terms have variance 1 and independent weights. A 3x3 convolution follows on each level. One more level takes every
    second place of the coarsest one. The constant in front of each 1x1 convolution is gamma of the activation over the
    standard deviation that theory gives the backbone's map, see :func:`level_scales`.

    The maps of a BatchNorm control go through BatchNorm first, as in front of its blocks.

    Args:
        backbone: whose maps are taken: those of its stages from stride 4 on, one per stride.
        width: channels of every level.
        act: the backbone's activation.

    Attributes:
        indices: of the maps in ``feature_info``.
        strides: of the levels in pixels of the image, the finest first; the last one is the additional level's.
    """

    def __init__(self, backbone: ResidualNet, width: int, act: Activation):
        super().__init__()
        self.indices = pyramid_maps(backbone)
        infos, scales = backbone.feature_info, level_scales(backbone)
        self.strides = tuple(infos[i]["reduction"] for i in self.indices)
        self.strides += (2 * self.strides[-1],)
        normalized = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
        self.norms, self.lateral = nn.ModuleList(), nn.ModuleList()
        for i in self.indices:
            final = i == len(infos) - 1  # has passed the network's last layers
            norm = nn.BatchNorm2d(infos[i]["num_chs"], BN_EPS, BN_MOMENTUM) if normalized and not final else None
            self.norms.append(norm or nn.Identity())
            # the last layers of a Normalizer-Free network multiply by gamma themselves
            gamma = getattr(backbone, "feature_gamma", 1.0) if final else 1.0
            channels = backbone.num_features if final else infos[i]["num_chs"]
            self.lateral.append(WSConv2d(channels, width, 1, input_scale=act.gamma / gamma * scales[i]))
        self.act = act.clone()
        self.smooth = nn.ModuleList(WSConv2d(width, width, 3) for _ in self.indices)
        self.final = self.indices[-1] == len(infos) - 1

    def forward(self, backbone: ResidualNet, images: Tensor) -> list[Tensor]:
        """The levels of images (N, C, H, W) whose sides the coarsest of the backbone's strides divides.

        (N, width, H / stride, W / stride) float32 at least, the finest first.
        """
        last, maps = backbone.forward_intermediates(images, self.indices)
        above, levels = None, []
        for place in reversed(range(len(maps))):
            lateral = self.lateral[place]
            if place == len(maps) - 1 and self.final:
                level = lateral(last)
            else:
                (level,) = activated(self.act, self.norms[place](maps[place]), lateral)
            if above is not None:
                level = (level + F.interpolate(above, level.shape[-2:], mode="nearest")) * 0.5**0.5
            above = level
            levels.insert(0, at_least_float32(self.smooth[place](level)))
        return [*levels, levels[-1][..., ::2, ::2]]


def pyramid_maps(backbone: ResidualNet) -> list[int]:
    """Indices in ``feature_info`` of the last map of each stride from 4 on, without the stem's."""
    by_stride = {info["reduction"]: i for i, info in enumerate(backbone.feature_info) if i}
    return [i for stride, i in by_stride.items() if stride >= FINEST] or [max(by_stride.values())]


def at_least_float32(x: Tensor) -> Tensor:
    """Half types in float32: coordinates of boxes need more than 16 bits."""
    return x if x.element_size() >= 4 else x.float()
