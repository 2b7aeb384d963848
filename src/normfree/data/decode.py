"""Reading image files."""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from ..files import regular
from ..limits import MAX_IMAGE_SIDE
from . import arrays

# allowed formats, whatever the file's suffix. Not EPS, for which PIL would start another program.
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
    NumPy=(".npy",),
)
_NEEDED = dict(
    HEIF='needs pillow-heif; pip install "normfree[heic]"',
    AVIF="needs Pillow 11.3 or later with AVIF",
    JPEG2000="needs a Pillow with OpenJPEG",
    WEBP="needs a Pillow with WebP",
)
_MODES = {2: "LA", 4: "RGBA"}  # PIL's modes by number of channels
MAX_WHITE = 0.01  # fraction of an image's values that may be clipped to white if other images have 8 bits
LEVELS, MIN_LEVELS, MAX_PER_LEVEL = 256, 4, 16  # an image is refused if it keeps fewer levels, with more values each
# the bytes 4 to 12 of files in these formats
_BRANDS = dict(HEIF=(b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftypheim"), AVIF=(b"ftypavif", b"ftypavis"))
_in_threads = False  # see threads_decode
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


@dataclass(frozen=True)
class Unreadable:
    """An image of a split that was left out, and why; it is counted once by its name."""

    image: str
    reason: str = ""

    @classmethod
    def of(cls, image: str, error: UnreadableImage) -> "Unreadable":
        """From the error that reading it, or what belongs to it, raised."""
        return cls(image, str(error).removeprefix(f"{image}: "))

    @classmethod
    def stored(cls, value: Any) -> "Unreadable":
        """From the stored state of a run: a mapping, or in earlier versions the message as text."""
        if isinstance(value, Mapping):
            return cls(str(value.get("image", "")), str(value.get("reason", "")))
        return cls(str(value))

    def __str__(self) -> str:
        return f"{self.image}: {self.reason}" if self.reason else self.image


def decode_image(
    file: str | Path | bytes,
    channels: int = 3,
    name: str | None = None,
    value_range: tuple[float, ...] | Literal["auto"] | None = None,
) -> Tensor:
    """An image file as (channels, H, W) on the 0..255 scale, upright by its EXIF orientation; the first frame of many.

    Images of 8 bits are exact, as uint8. Others are mapped by ``value_range`` to float32, so that no level is lost.

    >>> file = Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.new("L", (3, 2), 128).save(file)
    >>> decode_image(file).shape, decode_image(file, channels=1)[0, 0, 0]
    (torch.Size([3, 2, 3]), tensor(128, dtype=torch.uint8))

    Args:
        file: a path, or the content of a file: a picture, or a NumPy array (H, W), (H, W, C) or (C, H, W).
        channels: 3 (RGB), 1 (grey) or what the file has; of RGB and grey, transparency is dropped.
        name: what messages call the image; None: its path.
        value_range: the values of other images than those of 8 bits that become 0 and 255; values beyond are clipped.
            None: of 16 bits the upper 8 are used (uint8); all other values are taken as 0..255. "auto": the
            smallest and largest value of this file.

    Raises:
        UnreadableImage: the file does not exist, is not an image, is truncated or too large, or has another number of
            channels; values are not finite, or nearly all levels would be lost.
    """
    with named(file, name):
        deep, picture = _opened(file, channels, all_bits=value_range is not None)
        if deep is None:
            assert picture is not None  # as it was loaded
            pixels = picture
        elif value_range is None:
            pixels = _as_bytes(deep)
        else:
            _check_finite(deep)
            low, high = (deep.min(), deep.max()) if value_range == "auto" else value_range
            pixels = to_levels(deep, (float(low), float(high) if high > low else float(low) + 1))
            _check_levels(deep, pixels)
            _check_white(deep, value_range)
    return torch.from_numpy(np.ascontiguousarray(pixels)).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def raw_values(file: str | Path | bytes, channels: int = 3, name: str | None = None) -> np.ndarray | None:
    """The values of an image as they are stored, (H, W, channels); None of one of 8 bits, which is only opened.

    Raises:
        UnreadableImage: as :func:`decode_image`.
    """
    with named(file, name):
        deep, _ = _opened(file, channels, load=False)
        if deep is not None:
            _check_finite(deep)
    return deep


def to_levels(values: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
    """Values on the 0..255 scale, float32: the range becomes 0 to 255, values beyond it are clipped."""
    low, high = value_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.clip(0, 255).astype(np.float32)


@contextlib.contextmanager
def named(file: str | Path | bytes, name: str | None = None) -> Iterator[None]:
    """Turn any error about a file into an UnreadableImage with its name; PIL's limit of pixels applies."""
    try:
        with contextlib.nullcontext() if _in_threads else _warnings_of_files():
            yield
    except Exception as error:  # decoders fail in many ways on broken files; each is a reason, none ends the run
        label = name or ("image" if isinstance(file, bytes) else file)
        raise UnreadableImage(f"{label}: {_reason(error, file)}") from error


@contextlib.contextmanager
def _warnings_of_files() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata of a readable image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def threads_decode() -> Iterator[None]:
    """Threads may decode meanwhile. What becomes of a warning is the same for all threads, so it is chosen once here.

    Entered by the main thread.
    """
    global _in_threads
    with _warnings_of_files():
        _in_threads = True
        try:
            yield
        finally:
            _in_threads = False


def _opened(
    file: str | Path | bytes, channels: int, all_bits: bool = True, load: bool = True
) -> tuple[np.ndarray, None] | tuple[None, np.ndarray | None]:
    """The stored values of an image of more than 8 bits, (H, W, channels); or those of one of 8 bits.

    Args:
        all_bits: of RGB, too; else these are read with 8.
        load: whether those of 8 bits are wanted at all.
    """
    beginning = file[:6] if isinstance(file, bytes) else _beginning(regular(file))[:6]
    upright = None
    if beginning == arrays.NUMPY:
        pixels = arrays.read_numpy(file)
    else:
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=known_formats()) as image:
                check_sides(*image.size)
                if image.format == "TIFF" and channels not in (1, 3):  # PIL knows only some numbers of bands
                    pixels = arrays.read_tiff(file)
                elif arrays.is_deep(image) and (all_bits or len(image.getbands()) == 1):
                    upright = _upright(image)
                    pixels = arrays.read_deep(image, file)
                elif channels in (1, 3):
                    return None, _pixels(image, "RGB" if channels == 3 else "L") if load else None
                elif _MODES.get(channels) == image.mode:
                    return None, _pixels(image, image.mode) if load else None
                else:
                    count = len(image.getbands())
                    raise ValueError(f"{count} channel{'' if count == 1 else 's'}; {channels} are needed")
        except UnidentifiedImageError:
            if beginning[:4] not in arrays.TIFFS:
                raise
            pixels = arrays.read_tiff(file)
    pixels = arrays.with_channels(pixels, channels)
    check_sides(pixels.shape[1], pixels.shape[0])
    if upright is not None:
        pixels = _turned(pixels, upright)
    if pixels.dtype == bool or pixels.dtype == np.uint8:
        return None, pixels.astype(np.uint8) * (255 if pixels.dtype == bool else 1)
    return pixels, None


def check_sides(width: int, height: int) -> None:
    """Refuse an image with a very long side, which would become huge if its short side is enlarged.

    Raises:
        ValueError: the reason.
    """
    if max(width, height) > MAX_IMAGE_SIDE:
        raise ValueError(f"{width} x {height} pixels; a side may have {MAX_IMAGE_SIDE:,} at most")


def _turned(pixels: np.ndarray, upright: Image.Transpose) -> np.ndarray:
    """An array (H, W, C) turned as PIL would."""
    height, width = pixels.shape[:2]
    places = np.arange(height * width, dtype=np.int32).reshape(height, width)
    return pixels.reshape(height * width, -1)[np.asarray(Image.fromarray(places).transpose(upright))]


def _as_bytes(deep: np.ndarray) -> np.ndarray:
    """The upper 8 of 16 bits; all other values are taken as 0..255."""
    if deep.dtype.kind == "u" and deep.dtype.itemsize == 2:
        return (deep >> 8).astype(np.uint8)
    _check_finite(deep)
    pixels = deep.clip(0, 255).astype(np.uint8)
    _check_levels(deep, pixels)
    return pixels


def _check_finite(values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not (fine := np.isfinite(values)).all():
        raise ValueError(f"{int((~fine).sum()):,} of its {values.size:,} values are not finite")


def _check_levels(values: np.ndarray, pixels: np.ndarray) -> None:
    """An image of many values must not become one of two or three levels."""
    left = np.count_nonzero(np.bincount(pixels.round().astype(np.uint8).reshape(-1), minlength=LEVELS))
    if left < MIN_LEVELS and (count := len(np.unique(values))) > MAX_PER_LEVEL * left:
        low, high = values.min(), values.max()
        raise ValueError(
            f"its {count:,} different values ({low:g} to {high:g}) would become {left} of {LEVELS} levels; "
            "convert it to 8 bits, or train with data.value_range, the values of black and white"
        )


def _check_white(values: np.ndarray, value_range: tuple[float, ...] | str) -> None:
    """Refuse an image whose values would become white, in a data set of images with 8 bits."""
    if value_range != "auto" and tuple(value_range) == (0, LEVELS - 1):
        clipped = np.count_nonzero(values > LEVELS - 1) / values.size
        if clipped > MAX_WHITE:
            raise ValueError(
                f"{clipped:.0%} of its values ({values.min():g} to {values.max():g}) are above 255, and 255 is white; "
                "convert it to 8 bits, or train with data.value_range, the values of black and white"
            )


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """(H, W, C) or (H, W) uint8, the caller's to change."""
    image.load()
    upright = _upright(image)
    if image.mode != mode:
        image = image.convert(mode)
    return np.array(image if upright is None else image.transpose(upright))


def _upright(image: Image.Image) -> Image.Transpose | None:
    """How to turn the stored pixels; not at all where the metadata cannot be read, which is no fault of the pixels."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
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
        count = re.findall(r"\d+", str(error))[0]
        return f"{count} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS}"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:300]


def _beginning(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(12)
    except OSError:
        return b""


@functools.cache
def known_formats() -> tuple[str, ...]:
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
    return kind not in built or built[kind] in features.get_supported()  # older ones warn of what they do not know


# suffixes of files that are taken for images; and of images that cannot be decoded here, with the reason
EXTENSIONS = tuple(suffix for kind, suffixes in _SUFFIXES.items() if _available(kind) for suffix in suffixes)
MISSING = {
    suffix: f"reading {suffix} {_NEEDED[kind]}"
    for kind, suffixes in _SUFFIXES.items()
    if not _available(kind)
    for suffix in suffixes
}
