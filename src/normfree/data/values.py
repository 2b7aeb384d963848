"""Which values of images mean black and white, where they are no bytes: ``data.value_range``."""

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

S = TypeVar("S", bound=ImageSplit)
ValueRange = tuple[float, ...] | Literal["auto"] | None
BYTES = (0.0, 255.0)
SAMPLE, PIXELS = 64, 20_000  # images of a split that are looked at, and values of each
FEWEST, PER_LEVEL = 32, 8  # a range is refused if so few levels are left, each for more than so many values


@dataclass
class Sample:
    """What some images of a split hold: how many of each type, and the values of those that are no bytes."""

    types: Counter[str] = field(default_factory=Counter)
    values: list[np.ndarray] = field(default_factory=list)

    @property
    def images(self) -> str:
        """For sentences: "64 images that were looked at"."""
        count = sum(self.types.values())
        return f"{count} images that were looked at" if count != 1 else "1 image that was looked at"


def with_value_range(source: Source[S], value_range: ValueRange) -> Source[S]:
    """A source whose files are decoded by that range."""
    train, test = (_with_value_range(split, value_range) for split in (source.train, source.test))
    return dataclasses.replace(source, train=train, test=test)


def resolve_value_range(
    source: Source[S], value_range: ValueRange, part: str = "train"
) -> tuple[Source[S], ValueRange]:
    """A source with a range that fits its images, and that range; "auto" becomes numbers.

    Args:
        part: the split that is looked at: 64 images of it, always the same ones.

    Raises:
        UsageError: of types that no one range fits, or the range leaves nearly nothing of the images.
    """
    if value_range is None:
        return source, None
    seen = look(getattr(source, part))
    notes: tuple[str, ...] = ()
    if value_range == "auto":
        value_range = range_of(seen)
        if seen.values:
            notes = (_said(seen, value_range),)
    check(seen, value_range)
    return dataclasses.replace(with_value_range(source, value_range), notes=source.notes + notes), value_range


def look(split: Any) -> Sample:
    """A sample of a split; what cannot be read is left out. It is empty of a split that is not of files.

    Raises:
        UsageError: none of them can be read.
    """
    seen, unreadable = Sample(), []
    split, places = _files(split)
    for place in sorted(random.Random(0).sample(range(len(places)), min(SAMPLE, len(places)))):
        index = places[place]
        try:
            values = raw_values(split.file(index), split.channels, split.name(index))
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        seen.types["uint8" if values is None else str(values.dtype)] += 1
        if values is not None:
            flat = values.reshape(-1)
            seen.values.append(flat[:: max(1, len(flat) // PIXELS)] if len(flat) > PIXELS else flat)
            seen.values.append(np.array([flat.min(), flat.max()]))
    if unreadable and not seen.types:
        count = len(unreadable)
        raise UsageError(f"none of the {count} images that were looked at can be read; the first one: {unreadable[0]}")
    return seen


def _files(split: Any) -> tuple[Any, Sequence[int]]:
    """The split of files that a split is made of, and the places of its images in it; none where there are no files."""
    if isinstance(split, Part):
        inner, places = _files(split.split)
        return inner, [places[index] for index in split.indices] if places else []
    if isinstance(split, TargetSplit):
        return _files(split.images)
    return split, range(len(split)) if hasattr(split, "value_range") else []


def _with_value_range(split: Any, value_range: ValueRange) -> Any:
    if isinstance(split, Part):
        return dataclasses.replace(split, split=_with_value_range(split.split, value_range))
    if isinstance(split, TargetSplit):
        return dataclasses.replace(split, images=_with_value_range(split.images, value_range))
    return dataclasses.replace(split, value_range=value_range) if hasattr(split, "value_range") else split


def range_of(seen: Sample) -> tuple[float, float]:
    """The range for a sample: of integers the least number of bits, of numbers with a point 0..1, 0..255 or their own.

    Raises:
        UsageError: integers and numbers with a point together, or one value alone.
    """
    if not seen.values:
        return BYTES
    kinds = {values.dtype.kind.replace("u", "i") for values in seen.values}
    if len(kinds) > 1:
        types = ", ".join(f"{count} {name}" for name, count in sorted(seen.types.items()))
        raise UsageError(
            f"data.value_range (='auto') fits no mix of types ({types}, of the {seen.images}); convert them to one type"
        )
    low, high = (float(pick([pick(values) for values in seen.values])) for pick in (min, max))
    if kinds == {"i"} and low >= 0:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    for top in (1.0, 255.0):
        if kinds == {"f"} and low >= 0 and top / 2 < high <= top:
            return 0.0, top
    if low == high:
        raise UsageError(f"data.value_range (='auto') cannot be found: the {seen.images} hold nothing but {low:g}")
    return low, high


def check(seen: Sample, value_range: tuple[float, ...]) -> None:
    """Refuse a range in which images keep nearly none of their levels.

    Raises:
        UsageError: with the range that they have.
    """
    if not seen.values:
        return
    values = np.unique(np.concatenate([values.astype(np.float64) for values in seen.values]))
    left = len(np.unique(to_levels(values, value_range).round()))
    if left < FEWEST and len(values) > PER_LEVEL * left:
        raise UsageError(
            f"data.value_range (={[*value_range]}) leaves {left} of {LEVELS} levels to the {len(values):,} different "
            f"values of the {seen.images}, which are {values[0]:g} to {values[-1]:g}"
        )


def _said(seen: Sample, value_range: tuple[float, float]) -> str:
    types = ", ".join(f"{count} {name}" for name, count in sorted(seen.types.items()))
    low, high = value_range
    line = f"data.value_range: {low:g} is black and {high:g} is white, by the {seen.images} ({types})"
    return line + ("; images of 8 bits stay as they are" if "uint8" in seen.types else "")
