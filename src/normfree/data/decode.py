"""Reading image files."""

import functools
import io
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
# what a file may be, whatever it is called: pictures of pixels. PIL would hand an EPS to another program
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message is ``PATH: reason``."""


def decode_image(file: str | Path | bytes, channels: int = 3, name: str | None = None) -> Tensor:
    """An image file as (channels, H, W) uint8, upright by its EXIF orientation; the first frame of an animation.

    Args:
        file: a path, or the content of a file.
        channels: 3 (RGB) or 1 (grey); 16 bits become 8, transparency is dropped.
        name: what messages call the image; None: its path.

    Raises:
        UnreadableImage: not there, not an image, truncated, or absurdly large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata of a readable image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = io.BytesIO(file) if isinstance(file, bytes) else file
            with Image.open(opened, formats=_known_formats()) as image:
                pixels = _pixels(image, "RGB" if channels == 3 else "L")
    except Exception as error:  # decoders fail in many ways on broken files; each is a reason, none ends the run
        name = name or ("image" if isinstance(file, bytes) else file)
        raise UnreadableImage(f"{name}: {_reason(error)}") from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8, the caller's to change."""
    image.load()
    upright = _upright(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert() would clip to 255
    if image.mode != mode:
        image = image.convert(mode)
    return np.array(image if upright is None else image.transpose(upright))


def _upright(image: Image.Image) -> Image.Transpose | None:
    """How to turn the stored pixels; not at all where the metadata cannot be read, which is no fault of the pixels."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION))
    except Exception:
        return None


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        count = re.search(r"\d+", str(error))[0]
        return f"{count} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS}"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this PIL was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
