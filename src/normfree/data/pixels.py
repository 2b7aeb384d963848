"""Transforms of an image and its target for each pixel (a mask or a depth map)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..limits import MAX_RESIZED_PIXELS
from .decode import UnreadableImage
from .resize import normalize

IGNORE = 255  # class of pixels that are ignored in the loss and the metrics
INVALID = 0.0  # depth of pixels that were not measured
MAX_DEPTH = 1e6  # metres: renderers write such numbers where there is no surface
GREY, BRIGHTNESS, SATURATION, HUE = 0.3, 0.1255, (0.5, 1.5), 0.2  # NF-ResNets, appendix H.2


@dataclass(frozen=True)
class PixelTransform:
    """Image (C, H, W) uint8 and target (H, W) -> (C, height, width) normalized float32 and (height, width).

    The image is resized bicubically with antialiasing, the target with nearest neighbours. Padding is the mean colour
    in the image, and ``IGNORE`` (int64 classes) or ``INVALID`` (float32 metres) in the target. An image that would
    become too large raises UnreadableImage, without its name.

    Args:
        height, width: of the crop.
        short_side: length that the shorter side of the image is resized to first; None: not resized.
        random: a random crop, else the centre.
        scale: range of a random factor of the size; depth is divided by it.
        flip: mirror half of the images.
        color: random colours, see :func:`recolored`.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None = None
    random: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    color: bool = False

    def __call__(
        self, image: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        depth = target.is_floating_point()
        scale, y, x, mirror = torch.rand(4, generator=generator).tolist()
        low, high = self.scale
        factor = low * (high / low) ** scale if low < high else low
        image, target = self._resized(image, target, factor)
        if depth and factor != 1:
            target = target / factor
        if not self.random:
            y = x = 0.5
        image = window(image.float(), self.height, self.width, y, x, [255 * m for m in self.mean])
        target = window(target[None], self.height, self.width, y, x, [INVALID if depth else IGNORE])[0]
        if self.flip and mirror < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        if self.color:
            image = recolored(image, generator)
        return normalize(image, self.mean, self.std), target.contiguous()

    def whole(self, image: Tensor) -> Tensor:
        """An image without a target, resized as above and not cropped: (C, H', W') normalized float32."""
        target = torch.zeros(image.shape[-2:])
        return normalize(self._resized(image, target, 1.0)[0].float(), self.mean, self.std)

    def view(self, image: Tensor) -> Tensor:
        """An image without a target, as in evaluation: (C, height, width) normalized float32."""
        return self(image, torch.zeros(image.shape[-2:]))[0]

    def _resized(self, image: Tensor, target: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        if self.short_side is not None:
            factor *= self.short_side / min(height, width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        if size == (height, width):
            return image, target
        if size[0] * size[1] > max(MAX_RESIZED_PIXELS, height * width):
            raise UnreadableImage(
                f"{width} x {height} pixels would become {size[1]:,} x {size[0]:,}; {MAX_RESIZED_PIXELS:,} is the limit"
            )
        resized = F.interpolate(image[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
        nearest = F.interpolate(target[None, None].float(), size, mode="nearest-exact")[0, 0]
        return resized.clamp_(0, 255), nearest.to(target.dtype)


def valid_depth(depth: np.ndarray) -> Tensor:
    """Metres as float32; INVALID where they are 0 or less, above MAX_DEPTH, or not finite."""
    with np.errstate(over="ignore"):  # to infinity
        depth = depth.astype(np.float32)
    return torch.from_numpy(np.where((depth > 0) & (depth <= MAX_DEPTH), depth, np.float32(INVALID)))


def window(maps: Tensor, height: int, width: int, y: float, x: float, fill: list[float]) -> Tensor:
    """Crop (C, height, width) from (C, H, W) maps; y and x from 0 to 1 choose among the possible positions.

    Smaller maps are centred and padded with ``fill``, a value per channel.
    """
    tall, wide = height - maps.shape[-2], width - maps.shape[-1]
    if tall > 0 or wide > 0:
        top, left = max(0, tall) // 2, max(0, wide) // 2
        canvas = torch.tensor(fill, dtype=maps.dtype)[:, None, None]
        canvas = canvas.repeat(1, max(height, maps.shape[-2]), max(width, maps.shape[-1]))
        canvas[:, top : top + maps.shape[-2], left : left + maps.shape[-1]] = maps
        maps = canvas
    top, left = (min(int(part * (room + 1)), room) for part, room in ((y, max(0, -tall)), (x, max(0, -wide))))
    return maps[:, top : top + height, left : left + width]


def recolored(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random colours of the paper's depth estimation (NF-ResNets, H.2): (C, H, W) float32, 0..255, in and out.

    Grey with probability 0.3; up to 0.1255 of the range is added to brightness; saturation changes by a factor of 0.5
    to 1.5, hue by up to a fifth of the circle. With one channel only brightness changes.
    """
    grey, bright, saturation, hue = torch.rand(4, generator=generator).tolist()
    image = (image / 255 + BRIGHTNESS * (2 * bright - 1)).clamp(0, 1)
    if len(image) == 3:
        if grey < GREY:
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        else:
            image = TF.adjust_saturation(image, SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation)
            image = TF.adjust_hue(image, HUE * (2 * hue - 1))
    return image * 255
