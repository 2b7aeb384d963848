"""Reading image files."""

import functools
import importlib
import importlib.util
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

# what a file may be, whatever it is called: pictures of pixels. PIL would hand an EPS to another program
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000", "HEIF")
_SUFFIXES = dict(
    JPEG=(".jpg", ".jpeg", ".jpe", ".jfif"),
    PNG=(".png", ".apng"),
    BMP=(".bmp",),
    WEBP=(".webp",),
    TIFF=(".tif", ".tiff"),
    PPM=(".ppm", ".pgm", ".pbm", ".pnm"),
    GIF=(".gif",),
    AVIF=(".avif", ".avifs"),
    JPEG2000=(".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c"),
    HEIF=(".heic", ".heif", ".hif"),
    DIB=(".dib",),
)
_NEEDED = dict(
    HEIF='needs pillow-heif; pip install "normfree[heic]"',
    AVIF="needs Pillow 11.3 or later with AVIF",
    JPEG2000="needs a Pillow with OpenJPEG",
    WEBP="needs a Pillow with WebP",
)
# how files of these formats begin, behind four bytes
_BRANDS = dict(HEIF=(b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftypheim"), AVIF=(b"ftypavif", b"ftypavis"))
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
        raise UnreadableImage(f"{name}: {_reason(error, file)}") from error
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


def _reason(error: Exception, file: str | Path | bytes) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, FileNotFoundError) and os.path.islink(file):
        return f"a link to {os.path.realpath(file)}, which does not exist"
    if isinstance(error, UnidentifiedImageError):
        brand = file[4:12] if isinstance(file, bytes) else _beginning(file)[4:12]
        missing = next((kind for kind, brands in _BRANDS.items() if brand in brands and not _available(kind)), None)
        return f"a {missing} image, which {_NEEDED[missing]}" if missing else "not an image of a known format"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        count = re.search(r"\d+", str(error))[0]
        return f"{count} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS}"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _beginning(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(12)
    except OSError:
        return b""


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of FORMATS that can be decoded here."""
    Image.init()
    if _available("HEIF"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN and _available(kind))


def _available(kind: str) -> bool:
    """Whether the library behind a format is there; Pillow's plugins are there without it."""
    if kind == "HEIF":
        return importlib.util.find_spec("pillow_heif") is not None
    built = dict(AVIF="avif", JPEG2000="jpg_2000", WEBP="webp")
    return kind not in built or bool(features.check(built[kind]))


# suffixes of files that are taken for images; and of images that cannot be decoded here, with the reason
EXTENSIONS = tuple(suffix for kind, suffixes in _SUFFIXES.items() if _available(kind) for suffix in suffixes)
MISSING = {
    suffix: f"reading {suffix} {_NEEDED[kind]}"
    for kind, suffixes in _SUFFIXES.items()
    if not _available(kind)
    for suffix in suffixes
}
