"""Where labelled images come from: each source has a training and a test split over the same classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from ..errors import UsageError
from .decode import EXTENSIONS, decode_image

VALIDATION_NAMES = ("val", "valid", "validation", "test")


class Split(Protocol):
    """Indexable images: ``image(i)`` is (C, H, W) uint8 and may raise UnreadableImage; ``label(i)`` and ``name(i)``."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Tensor: ...
    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Source:
    """Two splits and the names of their classes, in the order of the labels."""

    train: Split
    test: Split
    classes: list[str]


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

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Tensor:
        return decode_image(self.samples[index][0], self.channels)

    def label(self, index: int) -> int:
        return self.samples[index][1]

    def name(self, index: int) -> str:
        return self.samples[index][0]


def open_source(source: str, channels: int = 3) -> Source:
    """A source by its description: "digits" or "imagefolder:PATH".

    Raises:
        UsageError: unknown kind; see :func:`digits` and :func:`image_folder`.
    """
    kind, _, rest = source.partition(":")
    if kind == "digits" and not rest:
        return digits(channels)
    if kind == "imagefolder":
        return image_folder(rest, channels)
    raise UsageError(f'data.source (={source!r}) is unknown; it must be "digits" or "imagefolder:PATH"')


def digits(channels: int = 1) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,437 to train, 360 to test, always the same ones."""
    from sklearn.datasets import load_digits  # half a second to import, needed here only
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    images, labels = pixels.expand(-1, channels, -1, -1), torch.from_numpy(data.target).long()
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    return Source(
        ArraySplit(images[train], labels[train], "digits/train"),
        ArraySplit(images[test], labels[test], "digits/test"),
        [str(name) for name in data.target_names],
    )


def image_folder(path: str, channels: int = 3) -> Source:
    """PATH/train/CLASS/* and PATH/val/CLASS/* (or valid, validation, test).

    Raises:
        UsageError: a folder is missing or empty, a class has no images, or the classes of the two splits differ.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(
            f"data.source: {path or 'imagefolder:'} is not a folder; it must hold train/CLASS and val/CLASS"
        )
    train = root / "train"
    test = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        lacking = "train" if not train.is_dir() else "val"
        raise UsageError(
            f"data.source: {root} has no folder {lacking!r}; it must hold train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    classes = _classes(train)
    differing = sorted(set(classes) ^ set(_classes(test)))
    if differing:
        one_sided = [f"{name} (only in {(train if name in classes else test).name})" for name in differing]
        raise UsageError(f"classes of {train} and {test} differ: {_listed(one_sided)}")
    return Source(_folder_split(train, classes, channels), _folder_split(test, classes, channels), classes)


def find_images(paths: list[str | Path]) -> list[Path]:
    """Image files among the given files and, recursively and sorted, inside the given folders.

    Raises:
        UsageError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = (p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            inside = sorted(p for p in images if not _hidden(p.relative_to(path)))
            if not inside:
                raise UsageError(f"{path} holds no image ({', '.join(EXTENSIONS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist")
    return found


def _classes(folder: Path) -> list[str]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(f"{folder} holds no class folders; it must hold one folder of images per class")
    return classes


def _folder_split(folder: Path, classes: list[str], channels: int) -> FolderSplit:
    to_label = {name: label for label, name in enumerate(classes)}
    samples = make_dataset(str(folder), to_label, extensions=EXTENSIONS, allow_empty=True)
    samples = [(path, label) for path, label in samples if not _hidden(Path(path).relative_to(folder))]
    empty = sorted(set(classes) - {classes[label] for _, label in samples})
    if empty:
        raise UsageError(f"{folder} has no images in {_listed(empty)}; formats: {', '.join(EXTENSIONS)}")
    return FolderSplit(samples, channels)


def _hidden(path: Path) -> bool:
    """Files that systems leave beside images (._a.png, .ipynb_checkpoints) are none."""
    return any(part.startswith(".") for part in path.parts)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
