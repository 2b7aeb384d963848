"""Data sets of the Hugging Face hub, and folders that its library has written: "hf:NAME", "hf:NAME:CONFIG", "hf:PATH".

Nothing but data is read: the library's versions that could run code from the hub are not allowed.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..limits import MAX_TARGETS
from .decode import UnreadableImage, decode_image
from .held_out import HeldOut, NoTestImages, hold_out
from .sources import VALIDATION_NAMES, ArraySplit, Source, TargetSplit
from .tables import without_images

FLOOR = 4  # the first version that runs no code of data sets
IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")  # columns that are taken among several


@dataclass(frozen=True)
class HubSplit:
    """Images in a table of the library that has files as they are stored (Arrow's), decoded when asked for."""

    table: Any
    column: str
    labels: Tensor
    prefix: str
    channels: int
    value_range: tuple[float, ...] | None = None  # see decode_image

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, index: int) -> str | bytes:
        """The content of an image's file, or its path."""
        try:
            found = self.table[index][self.column][0].as_py()
            content = found["bytes"] or found["path"]
        except Exception as error:  # a damaged table, or no image in a row
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnreadableImage(f"{self.name(index)}: {reason}") from error
        if not content:
            raise UnreadableImage(f"{self.name(index)}: there is no image in this row")
        return content

    def image(self, index: int) -> Tensor:
        return decode_image(self.file(index), self.channels, self.name(index), self.value_range)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.prefix}[{index}]"


def hub_set(
    text: str,
    channels: int = 3,
    *,
    answers: str = "class",
    held_out: HeldOut | None = None,
    known: Sequence[str] | None = None,
) -> Source[Any]:
    """A data set of the hub: a column of images, and one of classes (``ClassLabel``, or a list of them).

    Args:
        text: "NAME", "NAME:CONFIG", or a folder that ``save_to_disk`` has written.
        answers, held_out: as of :func:`.folders.open_source`.
        known: classes of a network that is measured: ``train`` is empty then.

    Raises:
        UsageError: the library is not installed; there is no such set, or it has no such columns; no test images and
            none held out, or both.
    """
    if answers == "numbers":
        raise UsageError(f"data.source (='hf:{text}') has classes; numbers need a table: csv:FILE")
    tables = _tables(text)
    root = str(Path(text).expanduser()) if _is_folder(text) else text
    tested = [name for name in VALIDATION_NAMES if name in tables]
    if known is not None:
        part = tested[0] if tested else next(iter(tables))
        split, classes, several = _split(tables[part], f"{root}/{part}", channels, answers)
        empty = ArraySplit(torch.zeros(0, channels, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "")
        return Source(empty, split, classes, () if several else tuple(_not_tested(split, classes)))
    first = "train" if "train" in tables else next((name for name in tables if name not in tested), None)
    if first is None:
        raise UsageError(f"data.source: hf:{text} has no split train, but {', '.join(tables)}")
    split, classes, several = _split(tables[first], f"{root}/{first}", channels, answers)
    if not tested:
        if held_out is None:
            raise NoTestImages(
                f"data.source: hf:{text} has no test images; --data.val_fraction 0.1 holds a tenth of the images out"
            )
        groups = None if several else [classes[split.label(index)] for index in range(len(split))]
        train, test, held_out, told = hold_out(held_out, split, root, groups)
        return Source(train, test, classes, tuple(told), held_out=held_out)
    if held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): hf:{text} has test images of its own")
    test, names, _ = _split(tables[tested[0]], f"{root}/{tested[0]}", channels, answers)
    if names != classes:
        raise UsageError(f"data.source: hf:{text}: {tested[0]} has other classes than {first}")
    notes = [f"{', '.join(tested[1:])} of hf:{text} not used; {tested[0]} is what is tested on"] if tested[1:] else []
    return Source(split, test, classes, (*notes, *([] if several else _not_tested(test, classes))))


def _is_folder(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_dir()
    except OSError:  # a name too long for a file
        return False


def _library() -> Any:
    """The library, which takes a second to import."""
    hint = 'pip install "normfree[hf]"'
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UsageError(f"data.source: hf: needs the library datasets; {hint}") from error
    version = importlib.metadata.version("datasets")
    if int(version.partition(".")[0]) < FLOOR:
        raise UsageError(f"data.source: hf: needs datasets {FLOOR}.0 or later ({version} is installed); {hint}")
    return datasets


def _tables(text: str) -> dict[str, Any]:
    """The splits of a set by their names."""
    datasets = _library()
    name, _, config = text.partition(":")
    try:
        if _is_folder(text):
            found = datasets.load_from_disk(str(Path(text).expanduser()))
        else:
            found = datasets.load_dataset(name, config or None)
    except Exception as error:  # no network, no such set, a damaged folder, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(f"data.source: hf:{text} cannot be had: {reason}") from error
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    there = {part: table for part, table in splits.items() if len(table)}
    if not there:
        raise UsageError(f"data.source: hf:{text} is empty")
    return there


def _split(table: Any, prefix: str, channels: int, answers: str) -> tuple[Any, list[str], bool]:
    """A split, the names of its classes, and whether an image has several."""
    datasets = _library()
    features = table.features
    images = [name for name, one in features.items() if isinstance(one, datasets.Image)]
    several = answers == "classes"
    labels = [name for name, one in features.items() if isinstance(_inner(one, several), datasets.ClassLabel)]
    if not images or not labels:
        lacks = "images (Image)" if not images else f"classes ({'a list of ' if several else ''}ClassLabel)"
        there = ", ".join(f"{name} ({type(one).__name__})" for name, one in list(features.items())[:8])
        raise UsageError(f"data.source: {prefix} has no column of {lacks}, but {there}")
    image, label = _chosen(images, IMAGES), _chosen(labels, LABELS)
    names = list(_inner(features[label], several).names)
    values = table.select_columns([label])[:][label]
    files = table.select_columns([image]).with_format("arrow")
    if not several:
        wrong = next((row for row, one in enumerate(values) if one is None or not 0 <= one < len(names)), None)
        if wrong is not None:
            raise UsageError(
                f"data.source: {prefix}[{wrong}] has the class {values[wrong]}; there are {len(names)}, from 0"
            )
        return HubSplit(files, image, torch.tensor(values), prefix, channels), names, False
    if len(values) * len(names) > MAX_TARGETS:
        raise UsageError(f"data.source: {prefix}: {len(names):,} classes for {len(values):,} images are too many")
    targets = torch.zeros(len(values), len(names))
    for row, some in enumerate(values):
        targets[row, list(some or ())] = 1
    split = HubSplit(files, image, torch.zeros(len(values), dtype=torch.int64), prefix, channels)
    return TargetSplit(split, targets), names, True


def _inner(feature: Any, several: bool) -> Any:
    """Of a list, what it is of."""
    return getattr(feature, "feature", None) if several else feature


def _chosen(names: list[str], first: Sequence[str]) -> str:
    return next((name for name in first if name in names), names[0])


def _not_tested(split: HubSplit, classes: Sequence[str]) -> list[str]:
    return without_images(set(split.labels.tolist()), classes)
