"""Images of more than 8 bits, of numbers with a point, or of any number of channels: NumPy files, TIFF, 16-bit PNG."""

import io
import itertools
import lzma
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..limits import MAX_FILE_BYTES, MAX_INPUT_CHANNELS

_SMALL_PART = 2**14  # bytes of compressed pixels
NUMPY, TIFFS = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEEP = ("I", "F")  # beginnings of PIL's modes of one channel and more than 8 bits
_WITHOUT_ALPHA = {"LA": 1, "RGBA": 3, "La": 1, "RGBa": 3}
LUMINANCE = np.array([0.299, 0.587, 0.114])  # as PIL's


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image file holds more than 8 bits for a value, of which PIL may give only 8."""
    if image.mode.startswith(_DEEP) or ";16" in str(getattr(image, "tile", "")):
        return True
    return any(bits > 8 for bits in _bits(image))


def read_numpy(file: str | Path | bytes) -> np.ndarray:
    """The array (H, W), (H, W, C) or (C, H, W) of a .npy file.

    Raises:
        ValueError: another kind of file or array, or too large.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(opened)
        size = int(np.prod(shape, dtype=object))
        if len(shape) not in (2, 3) or dtype.kind not in "buif" or not size:
            raise ValueError(
                f"an array of shape {shape} of {dtype}; an image is (H, W), (H, W, C) or (C, H, W) numbers"
            )
        if Image.MAX_IMAGE_PIXELS and size > 4 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"an array of {size} numbers, more than the limit of {4 * Image.MAX_IMAGE_PIXELS}")
        start = opened.tell()
        if size * dtype.itemsize > opened.seek(0, io.SEEK_END) - start:  # else that much memory is asked for first
            raise ValueError(f"truncated: it ends within its {size * dtype.itemsize:,} bytes of numbers")
        opened.seek(0)
        return np.lib.format.read_array(opened, allow_pickle=False)


def read_deep(image: Image.Image, file: str | Path | bytes) -> np.ndarray:
    """All bits of a file that PIL has opened and that :func:`is_deep`: (H, W) or (H, W, C), without alpha."""
    if image.format == "PNG" and not image.mode.startswith(_DEEP):
        from torchvision.io import ImageReadMode, decode_image

        content = file if isinstance(file, bytes) else _whole(file)
        pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        return pixels.permute(1, 2, 0).numpy()[:, :, : _WITHOUT_ALPHA.get(image.mode, len(pixels))]
    if image.format == "TIFF" and (len(image.getbands()) > 1 or _has_more(image)):
        return read_tiff(file)
    image.load()
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode == "I" and image.format in ("PNG", "PPM") else pixels


def _whole(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES:,} bytes, the limit for a PNG file of 16 bits")
    return content


def read_tiff(file: str | Path | bytes) -> np.ndarray:
    """The bands of a TIFF file as (H, W), (H, W, C) or (C, H, W): those of its first page, or a page each.

    Raises:
        ValueError: too large, or a compression that needs another package.
    """
    import tifffile  # 0.1 s to import, needed here only

    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as tiff:
        every = itertools.islice(tiff.pages, MAX_INPUT_CHANNELS)  # a page may name an earlier one as the next
        pages = [page for page in every if page.shape == tiff.pages[0].shape and page.dtype == tiff.pages[0].dtype]
        size = int(np.prod(pages[0].shape, dtype=object)) * (len(pages) if len(pages[0].shape) == 2 else 1)
        if Image.MAX_IMAGE_PIXELS and size > 4 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{size} values, more than the limit of {4 * Image.MAX_IMAGE_PIXELS}")
        for page in pages:
            _check_packed(page)
        if len(pages[0].shape) == 2 and len(pages) > 1:
            return np.stack([page.asarray() for page in pages])
        return pages[0].asarray()


def _check_packed(page: Any) -> None:
    """Refuse a page of a TIFF file whose compressed parts become larger than the page; they are unpacked at once."""
    unpacker = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}.get(page.compression)
    if unpacker is None:
        return
    file = page.parent.filehandle
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if length > _SMALL_PART:  # smaller ones cannot become large
            file.seek(start)
            unpacked = unpacker()
            unpacked.decompress(file.read(length), page.nbytes + 1)
            if not unpacked.eof and getattr(unpacked, "unconsumed_tail", b"1"):
                raise ValueError(f"compressed parts of more than the {page.nbytes:,} bytes of the image")


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, channels); grey of three channels by their luminance, or repeated.

    Raises:
        ValueError: another number of channels.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    known = (channels, 1, 3) if channels in (1, 3) else (channels,)
    if pixels.shape[-1] not in known and pixels.shape[0] in known:
        pixels = np.moveaxis(pixels, 0, -1)
    count = pixels.shape[-1]
    if count not in known:
        count = min(pixels.shape[0], count)
        raise ValueError(f"{count} channel{'' if count == 1 else 's'}; {channels} are needed")
    if count == channels:
        return pixels
    if count == 1:
        return pixels.repeat(channels, axis=2)
    grey = pixels @ LUMINANCE
    return (grey if pixels.dtype.kind == "f" else grey.round()).astype(pixels.dtype)[:, :, None]


def _has_more(image: Image.Image) -> bool:
    """Whether PIL shows less of a TIFF file than it holds: some bands alone, or 32 bits without a sign as with one."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(277, 1) > 1 or (_bits(image) == (32,) and tags.get(339, (1,)) == (1,))


def _bits(image: Image.Image) -> tuple[int, ...]:
    """Of each sample of a TIFF file."""
    tags = getattr(image, "tag_v2", None)
    return tuple(tags.get(258, ())) if tags is not None else ()
