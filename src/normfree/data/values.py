"""Which values become black and white in images that do not have 8 bits: ``data.value_range``."""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import UsageError
from .decode import LEVELS, UnreadableImage, raw_values, to_levels
from .held_out import Part
from .sources import Source, TargetSplit
from .splits import ImageSplit
from .volume_folders import VolumePairs

S = TypeVar("S", bound=ImageSplit)
ValueRange = tuple[float, ...] | Literal["auto", "zscore"] | None
ZSCORE = "zscore"  # of volumes: each by its own mean and standard deviation
BYTES = (0.0, 255.0)
MAX_IMAGES, MAX_VALUES = 64, 20_000  # images of a split that are sampled, and values of each
MIN_LEVELS, MAX_PER_LEVEL = 32, 8  # a range is refused if it keeps fewer levels, with more values per level


@dataclass
class Sample:
    """A sample of a split: number of images of each type, and values of the images that do not have 8 bits."""

    types: Counter[str] = field(default_factory=Counter)
    values: list[np.ndarray] = field(default_factory=list)

    @property
    def images(self) -> str:
        """The number of images as text, for messages."""
        count = sum(self.types.values())
        return f"{count} images that were looked at" if count != 1 else "1 image that was looked at"


def with_value_range(source: Source[S], value_range: ValueRange) -> Source[S]:
    """The same source, with files that are decoded with this range."""
    train, test = (_with_value_range(split, value_range) for split in (source.train, source.test))
    return dataclasses.replace(source, train=train, test=test)


def resolve_value_range(
    source: Source[S], value_range: ValueRange, part: str = "train"
) -> tuple[Source[S], ValueRange]:
    """The source with its value range, and this range; "auto" becomes two numbers.

    Args:
        part: the split whose images are sampled: 64 of them, always the same ones.

    Raises:
        UsageError: the images have types that no single range fits, or the range leaves too few levels.
    """
    if value_range == ZSCORE:
        if not isinstance(source.test, VolumePairs):
            raise UsageError(f"data.value_range (={ZSCORE}) is for volumes in files; give auto, or two numbers")
        return source, value_range
    if value_range is None:
        return source, None
    sample = sample_values(getattr(source, part))
    notes: tuple[str, ...] = ()
    if value_range == "auto":
        value_range = range_of(sample)
        if sample.values:
            notes = (_note(sample, value_range),)
    check_range(sample, value_range)
    return dataclasses.replace(with_value_range(source, value_range), notes=source.notes + notes), value_range


def sample_values(split: Any) -> Sample:
    """Sample a split, without images that cannot be read. The sample is empty if the split has no files.

    Raises:
        UsageError: no image can be read.
    """
    sample, unreadable = Sample(), []
    split, indices = files_of(split)
    for place in sorted(random.Random(0).sample(range(len(indices)), min(MAX_IMAGES, len(indices)))):
        index = indices[place]
        try:
            values = raw_values(split.file(index), split.channels, split.name(index))
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        sample.types["uint8" if values is None else str(values.dtype)] += 1
        if values is not None:
            flat = values.reshape(-1)
            sample.values.append(flat[:: max(1, len(flat) // MAX_VALUES)] if len(flat) > MAX_VALUES else flat)
            sample.values.append(np.array([flat.min(), flat.max()]))
    if unreadable and not sample.types:
        count = len(unreadable)
        raise UsageError(f"none of the {count} images that were looked at can be read; the first one: {unreadable[0]}")
    return sample


def files_of(split: Any) -> tuple[Any, Sequence[int]]:
    """The split of files inside a split, and the indices of its images there; no indices if there are no files."""
    if isinstance(split, Part):
        inner, places = files_of(split.split)
        return inner, [places[index] for index in split.indices] if places else []
    if isinstance(split, TargetSplit):
        return files_of(split.images)
    return split, range(len(split)) if hasattr(split, "value_range") else []


def _with_value_range(split: Any, value_range: ValueRange) -> Any:
    if isinstance(split, Part):
        return dataclasses.replace(split, split=_with_value_range(split.split, value_range))
    if isinstance(split, TargetSplit):
        return dataclasses.replace(split, images=_with_value_range(split.images, value_range))
    return dataclasses.replace(split, value_range=value_range) if hasattr(split, "value_range") else split


def range_of(sample: Sample) -> tuple[float, float]:
    """The value range of a sample.

    For integers it is that of the smallest sufficient number of bits; for floating-point numbers 0..1, 0..255, or the
    smallest and largest value.

    Raises:
        UsageError: integers are mixed with floating-point numbers, or all values are equal.
    """
    if not sample.values:
        return BYTES
    kinds = {values.dtype.kind.replace("u", "i") for values in sample.values}
    if len(kinds) > 1:
        raise UsageError(
            f"data.value_range (='auto') fits no mix of types ({_types(sample)}, of the {sample.images}); "
            "convert them to one type"
        )
    low, high = (float(pick([pick(values) for values in sample.values])) for pick in (min, max))
    if kinds == {"i"} and low >= 0:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    for top in (1.0, 255.0):
        if kinds == {"f"} and low >= 0 and top / 2 < high <= top:
            return 0.0, top
    if low == high:
        raise UsageError(f"data.value_range (='auto') cannot be found: the {sample.images} hold nothing but {low:g}")
    return low, high


def check_range(sample: Sample, value_range: tuple[float, ...]) -> None:
    """Refuse a range that leaves too few levels of the images.

    Raises:
        UsageError: with the range of the values.
    """
    if not sample.values:
        return
    values = np.unique(np.concatenate([values.astype(np.float64) for values in sample.values]))
    left = len(np.unique(to_levels(values, value_range).round()))
    if left < MIN_LEVELS and len(values) > MAX_PER_LEVEL * left:
        raise UsageError(
            f"data.value_range (={[*value_range]}) leaves {left} of {LEVELS} levels to the {len(values):,} different "
            f"values of the {sample.images}, which are {values[0]:g} to {values[-1]:g}"
        )


def _types(sample: Sample) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(sample.types.items()))


def _note(sample: Sample, value_range: tuple[float, float]) -> str:
    low, high = value_range
    line = f"data.value_range: {low:g} is black and {high:g} is white, by the {sample.images} ({_types(sample)})"
    return line + ("; images of 8 bits stay as they are" if "uint8" in sample.types else "")
