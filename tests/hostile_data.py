"""Hostile and damaged files of data: images, masks, depth, tars, annotations, tables. Each case writes its folder."""

import contextlib
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import coco_files
import image_files
import numpy as np
import pair_files
import shard_files
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
    return lambda folder: _put(folder / name, made(content))


def made(content: Made) -> bytes:
    return content() if callable(content) else content


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def replaced(make: Callable[[Path], object], name: str, change: Callable[[bytes], bytes]) -> Write:
    """A whole folder with one file changed."""

    def write(folder: Path) -> None:
        make(folder)
        _put(folder / name, change((folder / name).read_bytes() if (folder / name).exists() else b""))

    return write


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


# tars


def _header(name: str, size: int, kind: bytes = b"0", **more: bytes) -> bytes:
    head = tarfile.TarInfo(name)
    head.size, head.type = size, kind
    block = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    for at, value in more.items():
        block[int(at[1:]) : int(at[1:]) + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _whole_shard() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in shard_files.numbered(0, 3).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return held.getvalue()


def _member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def _sparse(first: bytes, size: int, last: bytes) -> Write:
    """A shard with so many bytes that take no room on the disk."""

    def write(folder: Path) -> None:
        with (folder / "train.tar").open("wb") as made:
            made.write(first)
            made.seek(-(-size // 512) * 512, io.SEEK_CUR)
            made.write(last)

    return write


def tars() -> Iterator[tuple[str, Write]]:
    whole, end, size = _whole_shard(), bytes(1024), 300 * 10**9
    label = _member("a.cls", b"1")
    for number in range(21):
        yield f"damage {number}", file("train.tar", mutated(whole[:6000], number))
    yield "an image of 300 GB", _sparse(label + _header("a.png", size), size, end)
    yield "a label of 300 GB", _sparse(_member("a.png", shard_files.png(1)) + _header("a.cls", size), size, end)
    yield (
        "another member of 300 GB",
        _sparse(_header("a.bin", size), size, label + _member("a.png", shard_files.png(0)) + end),
    )
    for kind, what in ((b"x", "a header"), (b"g", "a header for all"), (b"L", "a name"), (b"K", "a link's name")):
        yield f"{what} of 300 GB", _sparse(_header("a.png", size, kind), size, label + end)
    yield "a header of 300 GB that is not there", file("train.tar", _header("a.png", size, b"x"))
    yield "an image of 2**62 bytes", file("train.tar", label + _header("a.png", 2**62) + end)
    yield "an image of a negative size", file("train.tar", _header("a.png", 0, n124=b"\xff" * 12) + label + end)
    yield "a size that is none", file("train.tar", _header("a.png", 0, n124=b"9z9z9z9z9z9\0") + label + end)
    yield "a sparse member", file("train.tar", _header("a.png", 512, b"S") + bytes(512) + label + end)
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n35 GNU.sparse.realsize=9999999999999\n"
    extended = _header("h", len(sparse), b"x") + sparse.ljust(512, b"\0")
    yield "a sparse map of 10**12", file("train.tar", extended + _header("a.png", 512) + b"9" * 512 + label + end)
    for text in (
        b"30 size=99999999999999999999\n",
        b"11 size=x\n\n",
        b"99999 path=a\n",
        b"-1 a=b\n",
        b"0 \n" * 9,
        b"9 path=\n\n",
    ):
        yield (
            f"a header that says {text[:20]!r}",
            file(
                "train.tar",
                _header("h", len(text), b"x") + text.ljust(512, b"\0") + _member("a.png", b"x") + label + end,
            ),
        )
    long = ("n" * 100_000).encode()
    named = _header("l", len(long), b"L") + long.ljust(-(-len(long) // 512) * 512, b"\0") + _member("a.cls", b"1")
    yield "a name of 100,000 letters", file("train.tar", named + _member("n" * 50 + ".png", b"x") + end)
    for text in (b"1e9", b"9" * 5000, b"-1", b"\xff\xfe", b"[" * 100_000, b"1" * 900_000):
        yield (
            f"a label {text[:9]!r}",
            file("train.tar", _member("a.cls", text) + _member("a.png", shard_files.png(1)) + end),
        )
        yield (
            f"a label in JSON {text[:9]!r}",
            file("train.tar", _member("a.json", b'{"label": %b}' % text) + _member("a.png", shard_files.png(1)) + end),
        )
    for kind in (b"1", b"2", b"3", b"4", b"6", b"V", b"Z"):
        yield f"a member of type {kind.decode()}", file("train.tar", _header("a.png", 0, kind) + label + end)
    yield "names with escapes", file("train.tar", _member("\x1b[2J\n.cls", b"1") + _member("\x1b[2J\n.png", b"x") + end)
    yield "names that climb", file("train.tar", _member("../../a.cls", b"1") + _member("../../a.png", b"x") + end)
    yield "zipped", file("train.tar", zlib.compress(whole))
    yield "zeros", file("train.tar", bytes(10_240))
    yield "nothing", file("train.tar", b"")
    yield (
        "30,000 members",
        file("train.tar", _header("a", 0) * 30_000 + label + _member("a.png", shard_files.png(1)) + end),
    )


# annotations


def _coco(change: Callable[[dict], object]) -> Write:
    def write(folder: Path) -> None:
        coco_files.coco_folder(folder, 2)
        told = coco_files.content(2)
        changed = change(told)
        text = changed if isinstance(changed, str) else json.dumps(told)
        (folder / "train.json").write_text(text)

    return write


def _set(path: str, value: object) -> Callable[[dict], object]:
    def change(told: dict) -> None:
        *way, last = path.split(".")
        inner = told
        for part in way:
            inner = inner[int(part) if part.isdigit() else part]
        inner[int(last) if last.isdigit() else last] = value

    return change


def _many(count: int) -> Callable[[dict], object]:
    def change(told: dict) -> None:
        first = told["annotations"][0]
        told["annotations"] = [dict(first, id=number) for number in range(count)]

    return change


def _colliding(told: dict) -> None:
    told["annotations"] = [dict(told["annotations"][0], id=n * (2**61 - 1)) for n in range(1, 30_000)]


def annotations() -> Iterator[tuple[str, Write]]:
    for number in range(21):
        yield (
            f"damage {number}",
            replaced(
                lambda folder: coco_files.coco_folder(folder, 2), "train.json", lambda text, n=number: mutated(text, n)
            ),
        )
    yield "20,000 boxes in an image", _coco(_many(20_000))
    yield "ids that collide", _coco(_colliding)
    first = "annotations.0"
    zigzag = [[(-400, 400)[n % 2] if n % 4 < 2 else n % 300 for n in range(40_000)]]
    values = {
        "a zigzag": (f"{first}.segmentation", zigzag),
        "100,000 polygons": (f"{first}.segmentation", [[1, 1, 2, 1, 2, 2]] * 100_000),
        "a polygon of 200,000 points": (f"{first}.segmentation", [[1, 1] * 200_000]),
        "a polygon of infinity": (f"{first}.segmentation", [[float("inf")] * 6]),
        "a polygon of text": (f"{first}.segmentation", [["1"] * 6]),
        "run lengths of 10**18": (f"{first}.segmentation", dict(size=[30, 40], counts=[10**18])),
        "a million run lengths": (f"{first}.segmentation", dict(size=[30, 40], counts=[0] * 1_000_000)),
        "packed run lengths": (f"{first}.segmentation", dict(size=[30, 40], counts="o" * 100_000)),
        "run lengths of another size": (f"{first}.segmentation", dict(size=[65_536, 65_536], counts=[2**32])),
        "no segmentation": (f"{first}.segmentation", None),
        "a box of nan": (f"{first}.bbox", [float("nan")] * 4),
        "a box of 10**300": (f"{first}.bbox", [1, 1, 1e300, 1e300]),
        "a box of large numbers": (f"{first}.bbox", [10**4000] * 4),
        "a box of lists": (f"{first}.bbox", [[1], [1], [1], [1]]),
        "a box that is deep": (f"{first}.bbox", json.loads("[" * 700 + "]" * 700)),
        "an id of 4000 digits": (f"{first}.id", 10**4000),
        "an id of text": (f"{first}.id", "1"),
        "an image of 10**9": (f"{first}.image_id", 10**9),
        "an image of a list": (f"{first}.image_id", [100]),
        "a category of null": (f"{first}.category_id", None),
        "a crowd of 7": (f"{first}.iscrowd", 7),
        "an area of text": (f"{first}.area", "large"),
        "an image of 65536 x 65536": ("images.0.width", 65_536),
        "an image of 10**12": ("images.0.width", 10**12),
        "an image of no height": ("images.0.height", 0),
        "a file elsewhere": ("images.0.file_name", "../../../../etc/passwd"),
        "a file with escapes": ("images.0.file_name", "\x1b[2J\n.png"),
        "a file of a null byte": ("images.0.file_name", "a\0.png"),
        "a file of 100,000 letters": ("images.0.file_name", "a" * 100_000),
        "a surrogate": ("images.0.file_name", "\ud800.png"),
        "a category of escapes": ("categories.0.name", "\x1b[2J\n"),
        "categories of a mapping": ("categories", dict(a=1)),
        "annotations of numbers": ("annotations", [1, 2]),
        "no images": ("images", []),
    }
    for name, (path, value) in values.items():
        yield name, _coco(_set(path, value))
    for text in ("", "null", "[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "NaN", '"' + "x" * 10**6 + '"', "{}"):
        yield f"a file of {text[:9]!r}, {len(text):,} letters", _coco(lambda told, text=text: text)


# tables


def tables() -> Iterator[tuple[str, Write]]:
    def of(text: str | bytes) -> Write:
        def write(folder: Path) -> None:
            for name in ("a", "b"):
                image_files.write(folder / f"{name}.png")
            content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            (folder / "labels.csv").write_bytes(content)

        return write

    whole = b"file,class,split\na.png,x,train\nb.png,y,val\n"
    for number in range(14):
        yield f"damage {number}", of(mutated(whole, number))
    yield "a quote without end", of('file,class\na.png,"' + "x\n" * 200_000)
    yield "a field of a megabyte", of("file,class\na.png," + "x" * 2**20)
    yield "a million columns", of("file," + "," * 1_000_000 + "\na.png,x\n")
    yield "100,000 columns of one name", of("file" + ",a" * 100_000 + "\n")
    yield "a million empty lines", of("file,class\n" + "\n" * 1_000_000)
    yield "a million commas", of("file,class\n" + "," * 1_000_000)
    yield "null bytes", of(b"file,class\na.png," + bytes(1000))
    yield "UTF-16", of("file,class\na.png,x\n".encode("utf-16"))
    yield "escapes", of("file,class\n\x1b[2J.png,x\n")
    yield "a file of 100,000 letters", of("file,class\n" + "a" * 100_000 + ",x\n")
    yield "a file elsewhere", of("file,class\n/dev/zero,x\n/dev/zero,y\n")
    yield "100,000 rows of one image", of("file,class\n" + "a.png,x\n" * 100_000)
    yield "nothing", of(b"")

    def classes(folder: Path) -> None:
        image_files.write(folder / "a.png")
        rows = []
        for number in range(17_000):
            (folder / f"{number}.png").hardlink_to(folder / "a.png")
            rows.append(f"{number}.png,c{number}")
        (folder / "labels.csv").write_text("file,class\n" + "\n".join(rows))

    yield "as many classes as images", classes


# MATLAB


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


def matrix(name: str, shape: tuple[int, ...], inner: bytes, cls: int = 9) -> bytes:
    """An element of MATLAB's files: of numbers (9: uint8), of cells (1)."""
    flags = element(6, struct.pack("<II", cls, 0))
    return element(14, flags + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name.encode()) + inner)


def cells(depth: int) -> bytes:
    """A cell in a cell in a cell."""
    inner = b""
    for _ in range(depth):
        inner = matrix("trainNdxs", (1, 1), inner, 1)
    return inner


def mat(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"".join(elements)


def packed(content: bytes) -> bytes:
    squeezed = zlib.compress(content, 9)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


def matlab_files() -> Iterator[tuple[str, Made]]:
    good = mat(*(matrix(name, (1, 2), element(2, bytes([1, 2]))) for name in ("trainNdxs", "testNdxs")))
    for number in range(14):
        yield f"damage {number}", mutated(good, number)
    yield "cells in cells", lambda: mat(cells(3000))
    yield "cells in cells, packed", lambda: mat(packed(cells(3000)))
    yield (
        "100 MB that are 100 kB",
        lambda: mat(packed(matrix("trainNdxs", (1, 100 * 2**20), element(2, bytes(100 * 2**20))))),
    )
    yield "30 MB many times", lambda: mat(*[packed(matrix("a", (1, 30 * 2**20), element(2, bytes(30 * 2**20))))] * 9)
    yield "a shape of 2**31 x 2**31", mat(matrix("trainNdxs", (2**31 - 1, 2**31 - 1), element(2, b"\1")))
    yield "2**31 cells", mat(matrix("trainNdxs", (2**31 - 1, 1), b"", 1))
    yield "a negative shape", mat(matrix("trainNdxs", (-1, -1), element(2, b"\1")))
    yield "an element of 2**32", mat(struct.pack("<II", 14, 2**32 - 8))
    yield "version 4, of 2**31 x 2**31", struct.pack("<5I", 0, 2**31 - 1, 2**31 - 1, 0, 4) + b"abc\0"
    yield "a function", mat(matrix("trainNdxs", (1, 1), element(1, b"@()system('mkdir canary')"), 16))
    yield "places of nan", mat(matrix("trainNdxs", (1, 1), element(9, struct.pack("<d", float("nan"))), 6))
    yield "nothing", b""
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)


def _hdf(change: Callable[[object], None]) -> Write:
    def write(folder: Path) -> None:
        import h5py

        with h5py.File(pair_files.nyu_file(folder), "r+") as opened:
            change(opened)

    return write


def _instead(key: str, **how) -> Callable[[object], None]:
    def change(opened) -> None:
        del opened[key]
        opened.create_dataset(key, **how)

    return change


def _link(opened) -> None:
    import h5py

    del opened["images"]
    opened["images"] = h5py.ExternalLink("/etc/passwd", "/")


def _itself(opened) -> None:
    import h5py

    del opened["images"]
    opened["images"] = h5py.SoftLink("/images")


def _huge(opened) -> None:
    for key, shape in (("images", (6, 3, 2**20, 2**20)), ("depths", (6, 2**20, 2**20))):
        _instead(key, shape=shape, dtype="u1" if key == "images" else "f4", chunks=(1, *[1] * (len(shape) - 2), 1024))(
            opened
        )


def _packed_chunk(opened) -> None:
    del opened["images"]
    made = opened.create_dataset(
        "images", shape=(6, 3, 16, 12), maxshape=(None,) * 4, chunks=(500, 3, 600, 400), dtype="u1", compression="gzip"
    )
    made.id.write_direct_chunk((0, 0, 0, 0), zeros(344))


def labelled_sets() -> Iterator[tuple[str, Write]]:
    for number in range(21):
        yield (
            f"damage {number}",
            replaced(
                pair_files.nyu_file,
                "nyu_depth_v2_labeled.mat",
                lambda content, n=number: mutated(content[: 2000 + 2000 * (n % 3)], n),
            ),
        )
    for name, content in matlab_files():
        yield f"places: {name}", replaced(pair_files.nyu_file, "splits.mat", lambda _, content=content: made(content))
    yield "images of 2**20 x 2**20", _hdf(_huge)
    yield "a packed chunk of 344 MB", _hdf(_packed_chunk)
    yield "images elsewhere", _hdf(_link)
    yield "images that are themselves", _hdf(_itself)
    yield "images of text", _hdf(_instead("images", shape=(6, 3, 16, 12), dtype="S9"))
    yield "images of 2**60", _hdf(_instead("images", shape=(2**60, 3, 16, 12), chunks=(1, 3, 16, 12), dtype="u1"))
    yield "images of a number", _hdf(_instead("images", data=1))


def cases() -> Cases:
    found: Cases = {}
    for name, ending, content in images():
        found["image", name] = file(f"a{ending}", content)
    for name, content in matlab_files():
        found["mask", name] = file("a.mat", content)
    for name, ending, content in images():
        if ending in (".png", ".npy") and "damage" not in name:
            found["mask" if ending == ".png" else "depth", name] = file(f"a{ending}", content)
    every = dict(shard=tars(), coco=annotations(), csv=tables())
    with contextlib.suppress(ImportError):
        import h5py  # noqa: F401 - an extra

        every["nyu"] = labelled_sets()
    for reader, some in every.items():
        found |= {(reader, name): write for name, write in some}
    return found
