"""Image files of every kind, and broken ones: read right or named."""

import io
import resource
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from image_files import break_file, pixels, write
from PIL import Image

from normfree.data import UnreadableImage, decode_image

# EXIF orientation -> the upright image
ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def hwc(image: torch.Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".ppm"])
def test_lossless_files_are_read_to_the_bit(tmp_path, suffix):
    path = write(tmp_path / f"a b ü{suffix}", pixels(5, 7))
    assert np.array_equal(hwc(decode_image(path)), pixels(5, 7))
    assert np.array_equal(hwc(decode_image(str(path))), pixels(5, 7))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_files_are_close(tmp_path, suffix):
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None], (16, 16, 3))
    read = hwc(decode_image(write(tmp_path / f"a{suffix}", ramp, quality=95)))
    assert np.abs(read.astype(int) - ramp).max() <= 6  # a smooth ramp at quality 95


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_orientation_is_applied(tmp_path, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels(4, 6) if channels == 3 else pixels(4, 6)[..., 0]
    path = write(tmp_path / "turned.png", stored, exif=exif)
    upright = ORIENTATIONS[orientation](stored.reshape(4, 6, channels))
    assert np.array_equal(hwc(decode_image(path, channels)), upright)


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(write(tmp_path / "turned.jpg", pixels(8, 24), exif=exif)).shape == (3, 24, 8)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, ".png") for mode in ("RGB", "RGBA", "P", "L", "LA", "1")),
        *((mode, ".jpg") for mode in ("CMYK", "YCbCr", "L")),
        ("P", ".gif"),
        ("CMYK", ".tif"),
    ],
)
def test_modes_become_rgb_or_grey(tmp_path, mode, suffix):
    colour = (204, 51, 102) if mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr") else (255, 255, 255)
    path = write(tmp_path / f"a{suffix}", np.full((4, 6, 3), colour, dtype=np.uint8), mode)
    rgb, grey = decode_image(path, 3), decode_image(path, 1)
    assert rgb.shape == (3, 4, 6)
    assert grey.shape == (1, 4, 6)
    # the colour is one of the web palette; JPEG is a few levels off, CMYK and luma round
    atol = 6 if suffix == ".jpg" else 1
    assert (rgb.int() - torch.tensor(colour).view(3, 1, 1)).abs().max() <= atol
    luma = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    assert (grey.int() - luma).abs().max() <= atol


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, channels):
    """Depth maps, X-rays and microscopy come as 16-bit PNG."""
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    image = decode_image(write(tmp_path / "a.png", levels), channels)
    assert (image.int() - torch.from_numpy((levels >> 8).astype(int))).abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_thin_images(tmp_path, shape):
    assert np.array_equal(hwc(decode_image(write(tmp_path / "a.png", pixels(*shape)))), pixels(*shape))


def zero_bytes(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is no image\n" * 20)


def header_only(path):
    write(path)
    path.write_bytes(path.read_bytes()[:20])


def directory(path):
    path.mkdir()


def nothing(path):
    pass


@pytest.mark.parametrize("make", [zero_bytes, text, header_only, break_file, directory, nothing])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_unreadable_files_are_named(tmp_path, make, suffix):
    path = tmp_path / f"a b{suffix}"
    make(path)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1
    assert len(message.splitlines()) == 1
    assert len(message) > len(f"{path}: ") + 5


@pytest.mark.parametrize("side", [11, 40])  # just above the limit PIL warns, above twice it raises
def test_absurdly_large_images_are_refused(tmp_path, monkeypatch, side):
    path = write(tmp_path / "bomb.png", pixels(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match=rf"bomb\.png: .*{side**2} pixels"):
        decode_image(path)


def test_pixels_are_the_callers_to_change(tmp_path):
    image = decode_image(write(tmp_path / "a.png"))
    image.zero_()  # a read-only array would warn when it becomes a tensor, and warnings are errors here
    assert image.sum() == 0


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    place = content.index(b"\xff\xc0") + 5  # the frame header: height and width
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_of(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif_of(width: int, height: int) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    )


def webp_of(width: int, height: int) -> bytes:
    lossless = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(40)
    return b"RIFF" + struct.pack("<I", len(lossless) + 12) + b"WEBPVP8L" + struct.pack("<I", len(lossless)) + lossless


def jpeg2000_of(width: int, height: int) -> bytes:
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, 1) + b"\7\1\1"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\xd9"


BOMBS = {
    "png": png_of(50_000, 50_000, zlib.compress(bytes(10_000_000))),
    "png text": png_of(4, 4, zlib.compress(bytes(52)))[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))),
    "png nothing": png_of(2**31 - 1, 2**31 - 1, b""),
    "png no width": png_of(0, 7, zlib.compress(b"")),
    "jpeg": jpeg_of(65_500, 65_500),
    "bmp": bmp_of(2**30, 2**30),
    "gif": gif_of(65_535, 65_535),
    "ppm": b"P6 400000 400000 255\n",
    "ppm digits": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "webp": webp_of(16_384, 16_384),
    "jpeg 2000": jpeg2000_of(2**30, 2**30),
    "tiff": b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 2**31, 257, 4, 1, 2**31) + bytes(4),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_memory_is_taken(tmp_path, kind):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(BOMBS[kind])
    before = peak_memory()
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"bomb\.jpg: "):
        decode_image(path)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 80e6
    assert peak_memory() - before < 200e6


def peak_memory() -> int:
    """Of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_other_programs_are_not_called(tmp_path):
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        decode_image(tmp_path / "a.jpg")
