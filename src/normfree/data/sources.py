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
from . import shards, torchvision_places
from .decode import EXTENSIONS, decode_image
from .held_out import HeldOut
from .splits import ImageSplit
from .volumes import MADE
from .walk import Walk

KINDS = (
    '"digits", "imagefolder:PATH", "wds:FOLDER", "wds:TRAIN_PATTERN,VAL_PATTERN", "csv:FILE", "csv:TRAIN_FILE,VAL_FILE"'
    ', "arrays:FILE.npz", "torchvision:NAME[:FOLDER]", "hf:NAME[:CONFIG]", "hf:PATH"'
    ' or "synthetic:N[,CLASSES]"'
)
VALIDATION_NAMES = ("val", "valid", "validation", "test")


S = TypeVar("S", bound=ImageSplit, covariant=True)


@dataclass(frozen=True)
class Source(Generic[S]):
    """A training split, a test split, and the names of the classes, in the order of the labels.

    Attributes:
        notes: sentences for the user.
        numbers: the ids that the files give to the classes, if these are not their indices (COCO's categories).
        held_out: which images are for testing, if the files have no test split.
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
    """Image files with labels, decoded when they are read."""

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
    """Image files with a target vector each, (N, K) float32: 0 or 1 for each class, or numbers."""

    images: ImageSplit
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
    """Noise with a fixed seed, made when it is read: (C, 256, 256) uint8; labels cycle through the classes."""

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
    """The error for a source whose kind is not among ``kinds``, with similar ones as suggestions.

    Args:
        wrong: the end of the sentence that begins with the source.
    """
    kind, colon, rest = source.partition(":")
    suggestions = [f"{name}{colon}{rest}" for name in nearest(kind, kinds)]
    if suggestions:
        wrong = f"{wrong}; did you mean {listed(suggestions)}?"
    elif not colon and source:
        wrong = f"{wrong}; as a folder, {source} {'is a file' if Path(source).is_file() else 'does not exist'}"
    return UsageError(f"data.source (={source!r}) {wrong}")


def check_channels(kind: str, channels: int) -> None:
    """Check the number of channels of the sources whose images are always grey or RGB.

    Raises:
        UsageError: it is not 1 or 3.
    """
    if kind in ("digits", "scenes", "voc", "nyu") and channels not in (1, 3):
        raise UsageError(f"data.channels (={channels}) must be 1 or 3 for {kind}, whose images are grey or RGB")


def absolute(source: str) -> str:
    """The same source with absolute paths."""
    kind, colon, rest = source.partition(":")
    if kind in ("imagefolder", "voc", "masks", "nyu", "depth", "coco") or (
        kind == "volumes" and not MADE.fullmatch(rest)
    ):
        rest = str(Path(rest).expanduser().resolve())
    elif kind == "wds":
        rest = shards.absolute(rest)
    elif kind == "csv":
        rest = ",".join(str(path.resolve()) for path in csv_paths(rest))
    elif kind == "arrays":
        file, part = array_parts(rest)
        rest = f"{Path(file).expanduser().resolve()}{f':{part}' if part else ''}"
    elif kind == "torchvision":
        rest = torchvision_places.absolute(rest)
    elif kind == "hf" and Path(rest).expanduser().is_dir():
        rest = str(Path(rest).expanduser().resolve())
    return f"{kind}{colon}{rest}"


def synthetic(size: str, channels: int = 3) -> Source[NoiseSplit]:
    """Noise for measuring speed, which is fast to make: "N" or "N,CLASSES" (1000 by default), and N / 10 test images.

    Raises:
        UsageError: ``size`` is not of this form, or a number is too large.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,7}))?", size)
    count, classes = (int(n) for n in match.groups("1000")) if match else (0, 0)
    if not count or not 0 < classes <= shards.MAX_LABEL + 1:
        raise UsageError(
            f"data.source (='synthetic:{size}') must be synthetic:N or synthetic:N,CLASSES, N of 1 or more, "
            f"CLASSES of 1 to {shards.MAX_LABEL + 1:,}"
        )
    train, test = (NoiseSplit(n, classes, channels, part) for part, n in enumerate((count, max(1, count // 10))))
    return Source(train, test, [str(i) for i in range(classes)])


def digits(channels: int = 1) -> Source[ArraySplit]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,437 for training, 360 for testing, always the same.

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


def find_images(
    paths: list[str | Path], walk: Walk | None = None, endings: tuple[str, ...] | None = None
) -> list[Path]:
    """Image files among the given files and, recursively and sorted, inside the given folders.

    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.png", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in find_images([folder])]
    ['a.png', 'b.png']

    Args:
        walk: collects what was left out.
        endings: of the files that are taken from folders; None: those of image files.

    Raises:
        UsageError: a path does not exist or is a pipe, socket or device; a folder holds no image.
    """
    images, walk = [], walk or Walk()
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = walk.images(path, endings=endings)
            if not inside:
                raise UsageError(f"{path} holds no image ({', '.join(endings or EXTENSIONS)})" + walk.reason())
            images += sorted(map(Path, inside))
        elif path.is_file():
            images.append(path)
        else:
            raise UsageError(f"{text} {'is not a regular file' if path.exists() else 'does not exist'}")
    return images


def array_parts(text: str) -> tuple[str, str | None]:
    """File and part of "FILE.npz" or "FILE.npz:PART".

    >>> array_parts("cells.npz:test")
    ('cells.npz', 'test')
    """
    file, colon, part = text.rpartition(":")
    return (file, part) if colon and part in ("train", *VALIDATION_NAMES) else (text, None)


def csv_paths(paths: str) -> list[Path]:
    """The files of "FILE" or "TRAIN_FILE,VAL_FILE".

    Raises:
        UsageError: a file does not exist, or there are more than two.
    """
    files = [Path(part.strip()).expanduser() for part in paths.split(",")]
    if not 1 <= len(files) <= 2 or not all(path.is_file() for path in files):
        missing = next((str(path) for path in files if not path.is_file()), paths)
        raise UsageError(f"data.source (='csv:{paths}') must be csv:FILE or csv:TRAIN_FILE,VAL_FILE; no file {missing}")
    return files
