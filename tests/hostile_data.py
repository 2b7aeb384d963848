"""Hostile and damaged files of data: images, masks, depth, tars, annotations, tables. Each case writes its folder."""

import contextlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import coco_files
import image_files
import pair_files
import shard_files
from hostile_images import Cases, Made, Write, file, images, made, mutated, put, zeros


def replaced(make: Callable[[Path], object], name: str, change: Callable[[bytes], bytes]) -> Write:
    """A whole folder with one file changed."""

    def write(folder: Path) -> None:
        make(folder)
        put(folder / name, change((folder / name).read_bytes() if (folder / name).exists() else b""))

    return write


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
