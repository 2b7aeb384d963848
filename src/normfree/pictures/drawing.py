"""Numbers of pixels as colours: classes over their image, depth on a scale; for pages and for pictures."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

BLEND = 0.6  # of the class's colour over the image
UNKNOWN = 127  # grey level of pixels whose depth was not measured


def class_colors(count: int) -> np.ndarray:
    """(count, 3) uint8: black first, then hues that are far apart, as of neighbours in the legend."""
    hues = (np.arange(count) * 0.381966) % 1  # of the golden angle
    wheel = np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    light = np.where(np.arange(count) % 2 == 0, 0.95, 0.75)[:, None]
    colors = (255 * light * (1 - 0.85 * (1 - np.clip(wheel, 0, 1)))).astype(np.uint8)
    colors[0] = 0
    return colors


@functools.cache
def depth_colors() -> np.ndarray:
    """(256, 3) uint8, from near (bright) to far."""
    from matplotlib import colormaps  # slow to import, needed here only

    return (colormaps["viridis_r"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def rgb(image: Tensor) -> np.ndarray:
    """A (C, H, W) image on the 0..255 scale as (H, W, 3) uint8; of 2 channels the first, of more the first three."""
    image = image[: 3 if len(image) > 2 else 1]
    if image.is_floating_point():
        image = image.round().clamp(0, 255).byte()
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def rgb_picture(image: Tensor) -> Image.Image:
    """The same as a picture."""
    return Image.fromarray(np.ascontiguousarray(rgb(image)))


def draw_mask(image: Tensor, mask: Tensor, palette: np.ndarray) -> Image.Image:
    """The (C, H, W) uint8 image under the colours of its pixels' classes (H, W); pixels of no class are left bare."""
    base, known = rgb(image).astype(np.float32), (mask < len(palette)).numpy()[..., None]
    colors = palette[mask.clamp(max=len(palette) - 1).numpy()]
    return Image.fromarray((base + (colors - base) * BLEND * known).astype(np.uint8))


def draw_objects(
    image: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor | None, palette: np.ndarray
) -> Image.Image:
    """The (C, H, W) uint8 image under masks (K, H, W) and boxes (K, 4) of its pixels in their classes' colours.

    The first ones on top.
    """
    picture = Image.fromarray(under_masks(image, labels, masks, palette))
    draw = ImageDraw.Draw(picture)
    thick = max(1, round(max(picture.size) / 320))
    for box, label in reversed(list(zip(boxes.tolist(), labels.tolist(), strict=True))):
        left, top, right, bottom = box
        corners = [left, top, max(left, right - 1), max(top, bottom - 1)]  # the last pixel inside
        draw.rectangle(corners, outline=tuple(palette[label].tolist()), width=thick)
    return picture


def under_masks(image: Tensor, labels: Tensor, masks: Tensor | None, palette: np.ndarray) -> np.ndarray:
    """The (C, H, W) uint8 image as (H, W, 3) under masks (K, H, W) bool in the colours of their classes."""
    colored = rgb(image).astype(np.float32)
    for number, mask in reversed(list(enumerate([] if masks is None else masks))):  # the first on top
        inside = mask.numpy()
        colored[inside] += (palette[labels[number]] - colored[inside]) * BLEND
    return colored.astype(np.uint8)


def draw_depth(depth: Tensor, low: float, high: float) -> Image.Image:
    """Depth (H, W) in the colours between two depths in metres; what is 0 was not measured and is grey."""
    steps = ((depth - low) / max(high - low, 1e-6) * 255).round().clamp(0, 255).byte().numpy()
    return Image.fromarray(np.where((depth > 0).numpy()[..., None], depth_colors()[steps], np.uint8(UNKNOWN)))
