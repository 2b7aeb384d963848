"""Images in tar files ("shards", as webdataset writes them), read in any order.

A sample is two members of a tar with one name up to the first dot: KEY.jpg (or another image) and KEY.cls, a label as
an integer, or KEY.json, an object with "label". Other members are left alone; KEY.cls wins over KEY.json.

The webdataset library is not needed, and its way of reading would not do: it streams shards from front to back, so its
order is only nearly random, and depends on the number of workers and processes. Here each tar's table of contents is
read once and kept in ~/.cache/normfree, and then images are read by their place: any order, like files of a folder, so
that seeds, resuming and several processes are exact. Tars must not be compressed (the images in them are).
"""

import contextlib
import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_FILE_BYTES, MAX_NAME_LENGTH, MAX_TAR_HEADER_BYTES
from .decode import EXTENSIONS, UnreadableImage, decode_image

CLASSES = "classes.txt"
MAX_LABEL = 999_999  # a label beyond is a mistake that would name a million classes
MAX_LABEL_BYTES = 1 << 20
MAX_SHARDS = 1_000_000
WHOLE, PLACES, BLOCK = 2**20, 8, 2**15  # bytes of a shard that are compared: all, or so many at each place
_FORMAT = 3  # of the cached tables


@dataclass(frozen=True)
class Table:
    """Samples of a shard, in its order: keys (n,) as bytes; offsets and sizes of their images, labels, (n,) int64."""

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ShardSplit:
    """Images in shards, read and decoded when asked for.

    A shard is opened for each image (some 10 us; a folder of images does the same), so nothing is shared by workers.
    """

    paths: list[str]
    shards: np.ndarray  # (N,) int32: which of paths
    table: Table
    channels: int
    value_range: tuple[float, ...] | None = None  # see decode_image

    def __len__(self) -> int:
        return len(self.shards)

    def image(self, index: int) -> Tensor:
        return decode_image(self.file(index), self.channels, self.name(index), self.value_range)

    def file(self, index: int) -> bytes:
        """The content of an image's file."""
        path, name = self.paths[self.shards[index]], self.name(index)
        offset, size = int(self.table.offsets[index]), int(self.table.sizes[index])
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(f"{name}: {size:,} bytes; an image in a shard may have {MAX_FILE_BYTES:,} at most")
        try:
            with open(regular(path), "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UnreadableImage(f"{name}: {error.strerror}") from error

    def label(self, index: int) -> int:
        return int(self.table.labels[index])

    def name(self, index: int) -> str:
        return f"{self.paths[self.shards[index]]}:{self.table.keys[index].decode(errors='replace')}"


def shards(pattern: str, channels: int = 3) -> tuple[ShardSplit, ShardSplit, list[str]]:
    """Training and test split and class names of "TRAIN_PATTERN,VAL_PATTERN" or a folder of *train*.tar and *val*.tar.

    Patterns have numbers in braces, {000..127}, alternatives, {a,b}, and the wildcards of file names. Class names are
    the lines of classes.txt beside the training shards; without it, classes are numbers, as far as training labels go.

    Raises:
        UsageError: no or too few files, a tar that is none or damaged, a sample that is not one, a label out of range.
    """
    patterns = _split_commas(pattern)
    if len(patterns) == 1 and os.path.isdir(os.path.expanduser(pattern)):
        folder = glob.escape(pattern.rstrip("/"))
        patterns = [f"{folder}/*train*.tar", f"{folder}/*val*.tar"]
    if len(patterns) != 2 or not all(patterns):
        raise UsageError(
            f"data.source (='wds:{pattern}') must be wds:FOLDER or wds:TRAIN_PATTERN,VAL_PATTERN, "
            "such as wds:/data/train-{0000..0127}.tar,/data/val-*.tar"
        )
    files = [find_shards(one) for one in patterns]
    train, test = (_open(paths, channels) for paths in files)
    class_file = Path(files[0][0]).with_name(CLASSES)
    if class_file.is_file():
        classes, known = _lines(class_file), f"{class_file} names"
    else:
        classes, known = [str(i) for i in range(int(train.table.labels.max()) + 1)], "the training shards have"
    for split in (train, test):
        beyond = np.flatnonzero(split.table.labels >= len(classes))
        if len(beyond):
            name, label = split.name(beyond[0]), split.label(beyond[0])
            raise UsageError(f"{name}: label {label} is out of range; {known} {len(classes)} classes, from 0")
    return train, test, classes


def find_shards(pattern: str) -> list[str]:
    """The files that a pattern means, each once, in the order of its braces and sorted within.

    Raises:
        UsageError: one of them does not exist, or nothing matches.
    """
    paths: dict[str, None] = {}
    for count, path in enumerate(_expand(os.path.expanduser(pattern))):
        if count >= MAX_SHARDS:
            raise UsageError(f"data.source: {pattern} means more than {MAX_SHARDS:,} shards")
        matches = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
        if not matches:
            raise UsageError(f"data.source: {path} {'matches no file' if glob.has_magic(path) else 'does not exist'}")
        paths |= dict.fromkeys(matches)
    return list(paths)


def read_table(path: str) -> Table:
    """The samples of one shard, from the cache if it has this file, see :func:`_stamp`.

    Raises:
        UsageError: see :func:`shards`.
    """
    stamp, cached = _stamp(path), _cache_file(path)
    # a broken one is made anew
    with contextlib.suppress(Exception), open(cached, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        if np.array_equal(arrays["stamp"], stamp):
            return Table(*(arrays[name] for name in ("keys", "offsets", "sizes", "labels")))
    table = _scan(path)
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, not the run
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            np.savez(Path(folder) / cached.name, stamp=stamp, **vars(table))
            os.replace(Path(folder) / cached.name, cached)
    return table


def _stamp(path: str) -> np.ndarray:
    """What tells a shard from any other: (9,) int64.

    Its size, when it was written, which file it is on its disk and when the disk last changed it; and a hash of what
    it holds, of more than 1 MiB at eight places, the beginning and the end among them: whole shards would take as long
    as an epoch. So other bytes of the same size and time are noticed in a small shard always, and in a large one where
    the file system keeps the time of each change, as local ones do, or where they lie at one of these places.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            size, block = status.st_size, BLOCK if status.st_size > WHOLE else status.st_size
            digest = hashlib.sha256()
            for place in range(PLACES) if size > WHOLE else (0,):
                digest.update(os.pread(file.fileno(), block, place * (size - block) // (PLACES - 1)))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    stamp = [_FORMAT, size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    numbers = np.array([number % 2**64 for number in stamp], np.uint64)
    return np.concatenate([numbers.view(np.int64), np.frombuffer(digest.digest(), np.int64)])


def _open(paths: list[str], channels: int) -> ShardSplit:
    tables = [read_table(path) for path in tqdm(paths, "tables of contents", delay=2, leave=False, disable=None)]
    counts = [len(table.keys) for table in tables]
    joined = Table(*(np.concatenate([getattr(table, name) for table in tables]) for name in Table.__annotations__))
    return ShardSplit(paths, np.repeat(np.arange(len(paths), dtype=np.int32), counts), joined, channels)


def _scan(path: str) -> Table:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with _Headers(regular(path)) as file, tarfile.open(path, "r:", fileobj=file) as tar:
            for member in tar:
                key, extension = _key(member.name)
                kind = extension if extension == "npy" else "image" if f".{extension}" in EXTENSIONS else extension
                if not member.isreg() or member.issparse() or not key or kind not in ("image", "npy", "cls", "json"):
                    continue
                sample = samples.setdefault(key, {})
                if kind in sample:
                    raise UsageError(
                        f"{path}:{key} has two members .{sample[kind].name.rpartition('.')[2]} and .{extension}"
                    )
                sample[kind] = member
            end = tar.offset
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged header makes tarfile fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{path} is no tar, is compressed, or is damaged: {reason}") from error
    with open(path, "rb") as file:
        _check_end(path, os.pread(file.fileno(), tarfile.BLOCKSIZE, end), end)
        rows = [_row(path, key, sample, file.fileno()) for key, sample in samples.items()]
    if not rows:
        raise UsageError(f"{path} holds no sample; it must hold KEY.jpg with KEY.cls or KEY.json")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Table(columns[0], *(column.astype(np.int64) for column in columns[1:]))


class _Headers(io.FileIO):
    """A tar of which headers alone are read: what they say about a member may not fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size or -1:,} bytes; {MAX_TAR_HEADER_BYTES:,} are the limit")
        return super().read(size)


def _check_end(path: str, block: bytes, place: int) -> None:
    """``tarfile`` takes whatever is no header for the end of a tar; then samples would be missing without a word."""
    if len(block) < tarfile.BLOCKSIZE:
        raise UsageError(f"{path} is truncated: it ends at byte {place + len(block)}, without the mark of a tar's end")
    if any(block):
        raise UsageError(f"{path} is damaged at byte {place}: neither a member nor the end of a tar")


def _row(path: str, key: str, sample: dict[str, tarfile.TarInfo], file: int) -> tuple[bytes, int, int, int]:
    """Key, place and size of the image, and label."""
    if len(os.fsencode(key)) > MAX_NAME_LENGTH:
        raise UsageError(f"{path}:{key[:60]}... is a name of more than {MAX_NAME_LENGTH:,} bytes")
    image, label_file = sample.get("image") or sample.get("npy"), sample.get("cls") or sample.get("json")
    if image is None:
        raise UsageError(f"{path}:{key} has no image ({', '.join(EXTENSIONS)})")
    if label_file is None:
        raise UsageError(f"{path}:{key} has no label; it must be in {key}.cls or {key}.json")
    content = os.pread(file, min(label_file.size, MAX_LABEL_BYTES), label_file.offset_data)
    try:
        label = int(content) if label_file is sample.get("cls") else json.loads(content)["label"]
        if type(label) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        right = 'an object with an integer "label"' if label_file is not sample.get("cls") else "an integer"
        raise UsageError(f"{path}:{label_file.name} (={content[:40]!r}) must be {right}") from None
    if not 0 <= label <= MAX_LABEL:
        raise UsageError(f"{path}:{label_file.name}: label {label} is out of range; it must be 0 to {MAX_LABEL:,}")
    return os.fsencode(key), image.offset_data, image.size, label


def _key(name: str) -> tuple[str, str]:
    """Name up to the first dot of its last part, and what follows, in small letters; hidden files have no key."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return (folder + slash + stem if stem else "", extension.lower())


def _cache_file(path: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return Path(cache) / "normfree" / "shards" / f"{name}.npz"


def _expand(pattern: str) -> Iterator[str]:
    """Patterns without braces: {08..11} counts, with as many digits; {a,b} lists."""
    parts = re.split(r"\{([^{}]*)\}", pattern)  # text, inside, text, inside, ..., text
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _choices(inside: str) -> list[str]:
    match = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside)
    if not match:
        return inside.split(",")
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= MAX_SHARDS:
        raise UsageError(f"data.source: {{{inside}}} must count up, to at most {MAX_SHARDS:,} shards")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def absolute(pattern: str) -> str:
    """The same shards from any folder."""
    return ",".join(os.path.abspath(os.path.expanduser(part)) for part in _split_commas(pattern))


def _split_commas(pattern: str) -> list[str]:
    """At the commas outside of braces."""
    return [part.strip() for part in re.split(r",(?![^{}]*\})", pattern)]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} must be text in UTF-8, a class per line: {error}") from error
