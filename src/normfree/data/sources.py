"""Where labelled images come from: each source has a training and a test split over the same classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, listed, nearest
from . import shards
from .decode import EXTENSIONS, decode_image
from .held_out import HeldOut
from .splits import ImageSplit
from .walk import Walk

KINDS = (
    '"digits", "imagefolder:PATH", "wds:FOLDER", "wds:TRAIN_PATTERN,VAL_PATTERN", "csv:FILE", "csv:TRAIN_FILE,VAL_FILE"'
    ' or "synthetic:N[,CLASSES]"'
)
VALIDATION_NAMES = ("val", "valid", "validation", "test")


S = TypeVar("S", bound=ImageSplit, covariant=True)


@dataclass(frozen=True)
class Source(Generic[S]):
    """Two splits and the names of their classes, in the order of the labels.

    ``numbers`` are what the files call the classes, where that is a number other than its place (COCO's categories).
    ``notes`` are sentences for the user. ``held_out`` says which images are for testing where the files have no test
    split.
    """

    train: S
    test: S
    classes: list[str]
    notes: tuple[str, ...] = ()
    numbers: list[int] | None = None
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory: (N, C, H, W) uint8 and (N,) int64."""

    images: Tensor
    labels: Tensor
    prefix: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.prefix}[{index}]"


@dataclass(frozen=True)
class FolderSplit:
    """Image files with labels, decoded when asked for."""

    samples: list[tuple[str, int]]
    channels: int
    value_range: tuple[float, ...] | None = None  # see decode_image

    def __len__(self) -> int:
        return len(self.samples)

    def file(self, index: int) -> str:
        return self.samples[index][0]

    def image(self, index: int) -> Tensor:
        return decode_image(self.file(index), self.channels, value_range=self.value_range)

    def label(self, index: int) -> int:
        return self.samples[index][1]

    def name(self, index: int) -> str:
        return self.samples[index][0]


@dataclass(frozen=True)
class TargetSplit:
    """Image files with a vector each, (N, K) float32: 0 or 1 for each class, or numbers."""

    images: FolderSplit
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        return self.images.image(index)

    def label(self, index: int) -> int:
        return 0

    def target(self, index: int) -> Tensor:
        return self.targets[index]

    def name(self, index: int) -> str:
        return self.images.name(index)


@dataclass(frozen=True)
class NoiseSplit:
    """Noise of a fixed seed, made when asked for: (C, 256, 256) uint8; labels count through the classes."""

    length: int
    classes: int
    channels: int
    part: int  # 0: train, 1: test

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        bits = np.random.PCG64([self.part, index]).random_raw(self.channels * 256 * 256 // 8)
        return torch.from_numpy(bits.view(np.uint8)).view(self.channels, 256, 256)

    def label(self, index: int) -> int:
        return index % self.classes

    def name(self, index: int) -> str:
        return f"synthetic/{('train', 'test')[self.part]}[{index}]"


def unknown_source(source: str, kinds: Sequence[str], wrong: str) -> UsageError:
    """The error of a description whose kind is not among ``kinds``, with what was probably meant."""
    kind, colon, rest = source.partition(":")
    near = [f"{one}{colon}{rest}" for one in nearest(kind, kinds)]
    if not colon and not near and source:
        there = "is a file" if Path(source).is_file() else "does not exist"
        wrong = f"{wrong}; as a folder, {source:.80} {there}"
    return UsageError(f"data.source (={source!r}) {wrong}{f'; did you mean {listed(near)}?' if near else ''}")


def check_channels(kind: str, channels: int) -> None:
    """Images that are made here, or are photographs by definition, have 1 or 3 channels; else UsageError."""
    if kind in ("digits", "scenes", "voc", "nyu") and channels not in (1, 3):
        raise UsageError(f"data.channels (={channels}) must be 1 or 3 for {kind}, whose images are grey or RGB")


def absolute(source: str) -> str:
    """The description of a source by which it is found from any folder."""
    kind, colon, rest = source.partition(":")
    if kind in ("imagefolder", "voc", "masks", "nyu", "depth", "coco"):
        rest = str(Path(rest).expanduser().resolve())
    elif kind == "wds":
        rest = shards.absolute(rest)
    elif kind == "csv":
        rest = ",".join(str(path.resolve()) for path in csv_paths(rest))
    return f"{kind}{colon}{rest}"


def synthetic(size: str, channels: int = 3) -> Source:
    """Noise to measure speed with, which costs next to nothing to make: "N" or "N,CLASSES" (1000), a tenth to test.

    Raises:
        UsageError: no such numbers.
    """
    numbers = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,7}))?", size)
    count, classes = (int(n) for n in numbers.groups("1000")) if numbers else (0, 0)
    if not count or not 0 < classes <= shards.MAX_LABEL + 1:
        raise UsageError(
            f"data.source (='synthetic:{size}') must be synthetic:N or synthetic:N,CLASSES, N of 1 or more, "
            f"CLASSES of 1 to {shards.MAX_LABEL + 1:,}"
        )
    train, test = (NoiseSplit(n, classes, channels, part) for part, n in enumerate((count, max(1, count // 10))))
    return Source(train, test, [str(i) for i in range(classes)])


def digits(channels: int = 1) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,437 to train, 360 to test, always the same ones.

    >>> source = digits()
    >>> len(source.train), len(source.test), source.train.image(0).shape
    (1437, 360, torch.Size([1, 8, 8]))
    """
    from sklearn.datasets import load_digits  # half a second to import, needed here only
    from sklearn.model_selection import train_test_split

    data: Any = load_digits()
    pixels = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    images, labels = pixels.expand(-1, channels, -1, -1), torch.from_numpy(data.target).long()
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    return Source(
        ArraySplit(images[train], labels[train], "digits/train"),
        ArraySplit(images[test], labels[test], "digits/test"),
        [str(name) for name in data.target_names],
    )


def find_images(paths: list[str | Path], walk: Walk | None = None) -> list[Path]:
    """Image files among the given files and, recursively and sorted, inside the given folders.

    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.png", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in find_images([folder])]
    ['a.png', 'b.png']

    Args:
        walk: remembers what was left out.

    Raises:
        UsageError: a path does not exist or is a pipe, socket or device; a folder holds no image.
    """
    found, walk = [], walk or Walk()
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = walk.images(path)
            if not inside:
                raise UsageError(f"{path} holds no image ({', '.join(EXTENSIONS)})" + walk.reason())
            found += sorted(map(Path, inside))
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{text} {'is no regular file' if path.exists() else 'does not exist'}")
    return found


def csv_paths(paths: str) -> list[Path]:
    """The files of "FILE" or "TRAIN_FILE,VAL_FILE".

    Raises:
        UsageError: there are none, or more.
    """
    found = [Path(part.strip()).expanduser() for part in paths.split(",")]
    if not 1 <= len(found) <= 2 or not all(path.is_file() for path in found):
        lacking = next((str(path) for path in found if not path.is_file()), paths)
        raise UsageError(f"data.source (='csv:{paths}') must be csv:FILE or csv:TRAIN_FILE,VAL_FILE; no file {lacking}")
    return found
