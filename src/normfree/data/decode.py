"""Reading image files."""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message is ``PATH: reason``."""


def decode_image(path: str | Path, channels: int = 3) -> Tensor:
    """An image file as (channels, H, W) uint8, upright by its EXIF orientation.

    Raises:
        UnreadableImage: not there, not an image, truncated, or absurdly large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata of a readable image
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16"):  # convert() would clip to 255
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # decoders fail in many ways on broken files; each is a reason, none ends the run
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image of a known format"
        elif isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
            pixels = re.search(r"\d+", str(error))[0]
            reason = f"{pixels} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS}"
        raise UnreadableImage(f"{path}: {reason}") from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)
