"""The 16 image operations of the released RandAugment, on (C, H, W) uint8 tensors.

Each returns a new image of the same shape and leaves its argument alone. They are TensorFlow's to the pixel: results of
float arithmetic are truncated, not rounded; geometric ones take the nearest pixel and fill with grey 128. What a
magnitude means, and what is odd about it, is in :mod:`.randaugment`.

An operation on single pixels is a table of 256 entries; a blend of two images, one of 256 x 256; a warp, a table of
source pixels. Any number of channels will do; grey is the mean of three by their luminance, or else the first.
"""

import functools

import numpy as np
import torch
from torch import Tensor

FILL = 128  # of pixels from outside of the image


def invert(image: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - image


def autocontrast(image: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays."""
    return torch.stack([_look_up(channel, _stretched(channel)) for channel in image])


def equalize(image: Tensor) -> Tensor:
    """Flatten each channel's histogram, as PIL does."""
    return torch.stack([_look_up(channel, _equalized(channel)) for channel in image])


def posterize(image: Tensor, bits: int) -> Tensor:
    """Keep the 1 to 8 highest bits."""
    return image & (0x100 - (1 << 8 - bits))


def solarize(image: Tensor, threshold: int) -> Tensor:
    """Invert the pixels at or above a threshold, 0..256."""
    return _look_up(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: Tensor, addition: int) -> Tensor:
    """Brighten the pixels below 128."""
    return _look_up(image, np.where(_VALUES < 128, np.minimum(_VALUES + addition, 255), _VALUES))


def color(image: Tensor, factor: float) -> Tensor:
    """Blend with the grey image: 0 is grey, 1 the image, above 1 more colourful; one channel stays as it is."""
    if len(image) != 3:
        return image.clone()
    return _blend(_grey(image).expand_as(image), image, factor)


def contrast(image: Tensor, factor: float, *, level: int | None = None) -> Tensor:
    """Blend with a constant image of value ``level`` (0..255): 0 is that, 1 the image.

    Args:
        level: None takes the mean of the grey image.
    """
    if level is None:
        level = int(_grey(image).float().mean())
    return _look_up(image, _blends(factor)[level])


def brightness(image: Tensor, factor: float) -> Tensor:
    """Blend with black."""
    return _look_up(image, _blends(factor)[0])


def sharpness(image: Tensor, factor: float) -> Tensor:
    """Blend with a smoothed image (3 x 3 kernel of ones with 5 in the middle, over 13; borders are not smoothed)."""
    *_, height, width = image.shape
    if height < 3 or width < 3:
        return image.clone()
    pixels, smooth = image.double(), torch.zeros(len(image), height - 2, width - 2, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            # product and sum in one rounding to float32, in this order: the truncation below shows every last bit.
            # In float64 both are exact, so that it is the same on processors that have no such instruction.
            smooth.add_(pixels[:, y : y + height - 2, x : x + width - 2], alpha=_FIVE if y == x == 1 else _ONE)
            smooth = smooth.float().double()
    degenerate = image.clone()
    degenerate[:, 1:-1, 1:-1] = smooth.to(torch.uint8)
    return _blend(degenerate, image, factor)


def rotate(image: Tensor, degrees: float) -> Tensor:
    """Turn about the centre; counterclockwise where ``degrees`` is positive."""
    return _warp(image, "rotate", degrees)


def shear_x(image: Tensor, level: float, *, centred: bool = False) -> Tensor:
    """Row y shows what was ``level * y`` further right; ``centred`` keeps the middle row, not the top one."""
    return _warp(image, "shear_x_centred" if centred else "shear_x", level)


def shear_y(image: Tensor, level: float, *, centred: bool = False) -> Tensor:
    """Column x shows what was ``level * x`` further down; ``centred`` keeps the middle column, not the left one."""
    return _warp(image, "shear_y_centred" if centred else "shear_y", level)


def translate_x(image: Tensor, pixels: float) -> Tensor:
    """Show what was so many pixels further right."""
    return translate_y(image.transpose(1, 2), pixels).transpose(1, 2).contiguous()


def translate_y(image: Tensor, pixels: float) -> Tensor:
    """Show what was so many pixels further down."""
    height, shift = image.shape[1], int(np.floor(pixels + 0.5))
    kept, moved = max(0, height - abs(shift)), torch.full_like(image, FILL)
    start = max(0, shift)
    moved[:, max(0, -shift) :][:, :kept] = image[:, start : start + kept]
    return moved


def cutout(image: Tensor, half: int, y: int, x: int) -> Tensor:
    """Fill a square of side ``2 * half`` around pixel corner (y, x) with grey, as far as it lies in the image."""
    image = image.clone()
    image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = FILL
    return image


_VALUES = np.arange(256)
_ONE, _FIVE = (float(np.float32(weight) / np.float32(13)) for weight in (1, 5))


def _look_up(image: Tensor, table: np.ndarray) -> Tensor:
    """``table[image]``; numpy does it ten times as fast as torch."""
    return torch.from_numpy(np.take(table.astype(np.uint8), image.numpy()))


def _stretched(channel: Tensor) -> np.ndarray:
    low, high = (np.float32(value) for value in channel.aminmax())
    if low == high:
        return _VALUES
    scale = np.float32(255) / (high - low)
    return np.clip(_VALUES.astype(np.float32) * scale - low * scale, 0, 255)


def _equalized(channel: Tensor) -> np.ndarray:
    counts = torch.bincount(channel.reshape(-1), minlength=256).numpy()
    step = (counts.sum() - counts[channel.max()]) // 255
    if step == 0:
        return _VALUES
    below = np.concatenate([[0], counts.cumsum()[:-1] + step // 2])
    return np.clip(below // step, 0, 255)


def _grey(image: Tensor) -> Tensor:
    """(H, W) uint8 as TensorFlow rounds: 255.5 times the weighted mean on the 0..1 scale, truncated."""
    if len(image) != 3:
        return image[0]
    red, green, blue = image.numpy().astype(np.float32) * np.float32(1 / 255)
    mean = red * np.float32(0.2989) + green * np.float32(0.587) + blue * np.float32(0.114)
    return torch.from_numpy((mean * np.float32(255.5)).astype(np.uint8))


@functools.lru_cache(maxsize=4)
def _blends(factor: float) -> np.ndarray:
    """(256, 256) uint8: a blended value by the degenerate image's value and the image's."""
    degenerate, value = np.meshgrid(*[np.arange(256, dtype=np.float32)] * 2, indexing="ij")
    return np.clip(degenerate + np.float32(factor) * (value - degenerate), 0, 255).astype(np.uint8)


def _blend(degenerate: Tensor, image: Tensor, factor: float) -> Tensor:
    places = degenerate.numpy().astype(np.uint16) << 8 | image.numpy()
    return torch.from_numpy(np.take(_blends(factor), places))


def _warp(image: Tensor, kind: str, amount: float) -> Tensor:
    channels, height, width = image.shape
    sources = _sources(kind, amount, height, width)
    filled = np.full((channels, height * width + 1), FILL, dtype=np.uint8)
    filled[:, :-1] = image.reshape(channels, -1).numpy()
    return torch.from_numpy(np.take(filled, sources, axis=1))


@functools.lru_cache(maxsize=8)  # a magnitude needs six: three kinds, two signs
def _sources(kind: str, amount: float, height: int, width: int) -> np.ndarray:
    """(height, width) places in the flattened image that a warp shows; ``height * width`` where it shows none.

    In float32 in the order of TensorFlow's projective transform, so that ties go where they go there.
    """
    (a, b, c), (d, e, f) = np.asarray(_matrix(kind, amount, height, width), dtype=np.float32)
    y, x = np.meshgrid(np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij")
    row, column = (_round(value) for value in (d * x + e * y + f, a * x + b * y + c))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, row * width + column, height * width)


def _matrix(kind: str, amount: float, height: int, width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Two rows: x and y of the source pixel are linear in (x, y, 1) of the place it is shown at."""
    x, y = np.float32(width - 1), np.float32(height - 1)
    if kind == "rotate":
        angle = np.float32(amount) * np.float32(np.pi / 180)
        cos, sin = np.cos(angle), np.sin(angle)
        right, down = (x - (cos * x - sin * y)) / 2, (y - (sin * x + cos * y)) / 2
        return (float(cos), float(-sin), float(right)), (float(sin), float(cos), float(down))
    middle = amount / 2 if kind.endswith("centred") else 0.0
    if kind.startswith("shear_x"):
        return (1, amount, float(-middle * y)), (0, 1, 0)
    return (1, 0, 0), (amount, 1, float(-middle * x))


def _round(value: np.ndarray) -> np.ndarray:
    """To the nearest integer, halves away from 0, as C does; float64, where adding a half is exact."""
    value = value.astype(np.float64)
    return np.trunc(value + np.copysign(0.5, value)).astype(np.int64)
