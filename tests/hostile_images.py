"""Hostile and damaged image files, and how files are damaged."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import image_files
import numpy as np
from PIL import Image

Write = Callable[[Path], None]
Cases = dict[tuple[str, str], Write]
Made = bytes | Callable[[], bytes]  # what is large, when it is asked for


def mutated(content: bytes, number: int) -> bytes:
    """One of many kinds of damage, by its number."""
    draw, damaged = np.random.default_rng(number), bytearray(content)
    head = min(len(damaged), 200)
    place = int(draw.integers(head if number % 3 else len(damaged)))
    kind = number % 7
    if kind == 0:
        del damaged[place:]
    elif kind == 1:
        damaged[place : place + 4] = b"\xff\xff\xff\xff"
    elif kind == 2:
        damaged[place : place + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
    elif kind == 3:
        damaged[place : place + 40] = bytes(40)
    elif kind == 4:
        damaged[place:place] = damaged[: int(draw.integers(1, 4000))]
    elif kind == 5:
        del damaged[place : place + int(draw.integers(1, 60))]
    else:
        for one in draw.integers(len(damaged), size=20):
            damaged[one] ^= 1 << int(draw.integers(8))
    return bytes(damaged)


def file(name: str, content: Made) -> Write:
    return lambda folder: put(folder / name, made(content))


def made(content: Made) -> bytes:
    return content() if callable(content) else content


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# images


def encoded(kind: str, size: tuple[int, int] = (24, 20), mode: str = "RGB", **options) -> bytes:
    held = io.BytesIO()
    array = image_files.pixels(size[1], size[0])
    image = Image.fromarray(array)
    if mode == "I;16":
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(held, kind, **options)
    return held.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, bits: int = 8, color: int = 0, rows: int | None = None) -> bytes:
    """A grey or colour image of zeros, whatever its size; ``rows`` of them are there."""
    line = 1 + (width * {0: 1, 2: 3}[color] * bits + 7) // 8
    packer = zlib.compressobj(6)
    count = height if rows is None else rows
    packed = b"".join(packer.compress(bytes(min(line * count - at, 2**20))) for at in range(0, line * count, 2**20))
    packed += packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


def tiff(tags: list[tuple[int, int, int, int]], strip: bytes, following: int = 0) -> bytes:
    """A TIFF file of one strip at byte 8; tags are (number, type, count, value)."""
    at = 8 + len(strip) + len(strip) % 2
    tags = sorted([*tags, (273, 4, 1, 8), (279, 4, 1, len(strip))])
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", at) + strip.ljust(at - 8, b"\0") + table + struct.pack("<I", following)


def float_tiff(side: int, packing: int, strip: bytes, following: int = 0, bands: int = 2) -> bytes:
    """Of bands of 32 bits, which tifffile reads."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 32), (259, 3, 1, packing), (262, 3, 1, 1)]
    tags += [(277, 3, 1, bands), (278, 4, 1, side), (339, 3, 1, 3), (284, 3, 1, 1)]
    return tiff(tags, strip, following)


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


def numbers(shape: str, descr: str = "'<f8'", order: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


class Mkdir:
    """Pickles as a call."""

    def __reduce__(self):
        import os

        return os.mkdir, ("canary",)


def _pickled_array() -> bytes:
    held = io.BytesIO()
    np.save(held, np.array([[Mkdir()]], object), allow_pickle=True)
    return held.getvalue()


def _zipped_array() -> bytes:
    held = io.BytesIO()
    np.savez(held, a=np.zeros((4, 4)))
    return held.getvalue()


def images() -> Iterator[tuple[str, str, Made]]:
    """Name, ending, content."""
    kinds = {
        "jpeg": (".jpg", encoded("JPEG")),
        "png": (".png", encoded("PNG")),
        "png 16 bits": (".png", encoded("PNG", mode="I;16")),
        "tiff": (".tif", encoded("TIFF", compression="tiff_adobe_deflate")),
        "webp": (".webp", encoded("WEBP")),
        "gif": (".gif", encoded("GIF", mode="P")),
        "bmp": (".bmp", encoded("BMP")),
        "ppm": (".ppm", encoded("PPM")),
        "npy": (".npy", npy(numbers("(20, 24)"), bytes(8 * 480))),
        "float tiff": (".tif", float_tiff(8, 8, zlib.compress(bytes(8 * 8 * 2 * 4)))),
    }
    for kind, (ending, content) in kinds.items():
        for number in range(7):
            yield f"{kind}, damage {number}", ending, mutated(content, zlib.crc32(kind.encode()) + number)
    yield "1 x 50,000 pixels", ".png", png(50_000, 1)
    yield "50,000 x 1 pixels", ".png", png(1, 50_000)
    yield "1 x 80 million pixels", ".png", lambda: png(80_000_000, 1)
    yield "80 million x 1 pixels", ".png", lambda: png(1, 80_000_000, rows=100)
    yield "a side of 2**31", ".png", png(2**31 - 1, 1, rows=0)
    yield "no pixels", ".png", png(0, 0)
    yield "rows that are not there", ".png", lambda: png(65_000, 200, rows=3)
    yield "100 megabytes of text", ".png", lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zeros(100)))
    yield "100 megabytes of profile", ".png", lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros(100)))
    yield (
        "10,000 texts",
        ".png",
        lambda: png(8, 8, *(chunk(b"zTXt", b"a%d\0\0" % n + zlib.compress(b"a")) for n in range(10_000))),
    )
    yield "16 bits, a long side", ".png", png(70_000, 2, bits=16)
    yield (
        "a bitmap of 2**31",
        ".bmp",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6),
    )
    yield "a picture of 10**9 x 10**9", ".ppm", b"P6 1000000000 1000000000 255\n" + bytes(99)
    yield "a picture of many digits", ".ppm", b"P6 " + b"9" * 100_000 + b" 1 255\n"
    yield "a GIF of 65535 x 65535", ".gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08" + bytes(9)
    yield "PostScript", ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n"
    yield "a drawing", ".png", b'<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>'
    yield "a TIFF of 300 MB that are 300 kB", ".tif", lambda: float_tiff(8, 8, zeros(300))
    yield "a TIFF of LZMA that is none", ".tif", float_tiff(8, 34925, bytes(99))
    yield "a TIFF of 2**31 x 2**31", ".tif", float_tiff(2**31 - 1, 1, bytes(64))
    yield "a TIFF of 60,000 bands", ".tif", float_tiff(60_000, 1, bytes(64), bands=60_000)
    strip = bytes(512)
    yield "a TIFF whose next page is itself", ".tif", float_tiff(8, 1, strip, following=8 + len(strip))
    yield "a TIFF of a strip beyond", ".tif", tiff([(256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 1, 2**32 - 1)], b"")
    yield "a TIFF of a tag of 2**32", ".tif", tiff([(256, 4, 1, 8), (257, 4, 1, 8), (320, 3, 2**32 - 1, 8)], bytes(64))
    yield "an array of 2**40 numbers", ".npy", npy(numbers(f"({2**20}, {2**20})"))
    yield "an array just below the limit that is not there", ".npy", npy(numbers("(18000, 19000)", "'<f16'"))
    yield "an array of a negative side", ".npy", npy(numbers("(-1, -1)"))
    yield "an array of a side of 4000 digits", ".npy", npy(numbers(f"({'9' * 4000}, 1)"))
    yield "an array of objects", ".npy", _pickled_array()
    yield "an archive of arrays", ".npy", _zipped_array()
    yield "an array of brackets", ".npy", npy("(" * 9000)
    yield "an array of a call", ".npy", npy(numbers("__import__('os').mkdir('canary')"))
    yield "an array of records", ".npy", npy(numbers("(2, 2)", "[('a', '<f4'), ('b', 'O')]"), bytes(48))
    yield "an array of a long heading", ".npy", lambda: npy(" " * 2_000_000, version=2)
    yield "an array that is no number", ".npy", npy(numbers("(2, 2)"), struct.pack("<4d", *[float("nan")] * 4))
    yield "nothing", ".jpg", b""
    yield "a pickle", ".npy", pickle.dumps(Mkdir())
