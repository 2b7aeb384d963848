"""What the targets of images hold, looked at before a run starts: what cannot be learnt or measured is refused."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .decode import UnreadableImage
from .masks import MaskValues
from .pixels import IGNORE, INVALID
from .sources import Source
from .splits import CountedSplit, ImageSplit, MapSplit

MOST_SHOWN = 8  # names in a line
LOOKED_AT = 16  # depth maps whose range is said


def check_masks(
    source: Source[MapSplit], *, fixed: bool = False, allow_missing: bool = False
) -> tuple[list[str], str | None]:
    """Which classes the masks hold: all training masks are looked at, or as many as it takes to see every class.

    Args:
        fixed: the classes are those of a published set, of which there may be a part.
        allow_missing: train although a class occurs in no training mask, or the test masks hold one class alone.

    Returns:
        What to tell, and the name of the only class in the test masks.

    Raises:
        UsageError: a class that occurs in no training mask; masks in which every pixel is ignored, or of one class.
    """
    few = 2 if fixed or allow_missing else len(source.classes)
    seen, ignored = _classes_of(source.train, few)
    if seen is None:  # none can be read, which training says
        return [], None
    missing = [label for label in range(len(source.classes)) if label not in seen]
    if len(seen) < 2 or (missing and not (fixed or allow_missing)):
        raise UsageError(_missing(source, sorted(seen), ignored, missing))
    return _check_test(source, few, allow_missing)


def _missing(source: Source[MapSplit], seen: list[int], ignored: bool, missing: list[int]) -> str:
    """Of training masks in which a class never occurs, and how to go on."""
    count, plain = len(source.train), _plain(source.train)
    values = [*seen, *([IGNORE] if ignored and plain else [])]
    if not seen:
        problem = f"every pixel of the {count} training masks is {f'{IGNORE}, so ' if plain else ''}ignored"
    else:
        holds = f"value{'s' * (len(values) > 1)} {_listed(values)}" if plain else _named(source, seen)
        occurs = "occurs" if len(missing) == 1 else "occur"
        problem = f"{_named(source, missing)} {occurs} in none of the {count} training masks, which hold {holds}"
        problem += f" ({IGNORE} is ignored)" * (ignored and plain)
    ways = []
    if plain and 2 <= len(values) <= MOST_SHOWN:
        ways.append(f"if these are the classes, give --data.mask_values {str(values).replace(' ', '')}")
    if len(seen) > 1:
        what = "the class" if len(missing) == 1 else "these classes"
        ways.append(f"take {what} out of classes.txt, or give --data.allow_missing_classes true")
    return f"data.source: {'; '.join([problem, *ways])}"


def _check_test(source: Source[MapSplit], few: int, allow_missing: bool) -> tuple[list[str], str | None]:
    seen, _ = _classes_of(source.test, few)
    names, count = source.classes, len(source.test)
    if seen is None:
        return [], None
    if not seen:
        raise UsageError(f"data.source: none of the {count} test masks has a pixel of a class; all are ignored")
    if len(seen) == 1:
        name = names[next(iter(seen))]
        problem = f"the {count} test masks hold {name!r} alone, so their mean IoU says nothing about the other classes"
        if not allow_missing:
            raise UsageError(f"data.source: {problem}; add others, or give --data.allow_missing_classes true")
        return [problem], name
    missing = [label for label in range(len(names)) if label not in seen]
    if few < len(names) or not missing:
        return [], None
    return [f"{_named(source, missing)}: in none of the {count} test masks, so not measured there"], None


def check_test_masks(source: Source[MapSplit]) -> None:
    """Test masks that are measured alone: those of 0 and 255, where 255 means another class, not to ignore.

    Raises:
        UsageError: no other number than 0 and 255 is in them, and 255 is among them.
    """
    if not _plain(source.test):
        return
    seen, ignored = _classes_of(source.test, 2)
    if seen is not None and ignored and seen <= {0}:
        values = f"the values 0 and {IGNORE}" if seen else f"the value {IGNORE}"
        raise UsageError(
            f"data.source: the {len(source.test)} test masks hold {values} alone, and {IGNORE} is ignored; if it is a "
            f"class, write its number (0 to {len(source.classes) - 1}) into the masks, or train with data.mask_values"
        )


def _plain(split: Any) -> bool:
    """Whether masks hold the numbers of classes, so that 255 is ignored."""
    mask = getattr(getattr(split, "read", None), "__self__", None)
    return isinstance(mask, MaskValues) and mask.values is None


def check_labels(split: Any) -> None:
    """Whether any test image has a class, where each may have several or none: else nothing can be measured.

    Raises:
        UsageError: none has.
    """
    if len(split) and not any(bool(split.target(index).any()) for index in range(len(split))):
        raise UsageError(f"data.source: no test image has a class; there are {len(split)}, and nothing to measure")


def check_numbers(split: Any) -> None:
    """Whether R2, which a run is judged by, is defined: not of one test image.

    Raises:
        UsageError: it is not.
    """
    if len(split) == 1:
        raise UsageError("data.source: there is 1 test image; R2 needs at least 2")


def _classes_of(split: MapSplit, few: int) -> tuple[set[int] | None, bool]:
    """The classes in masks, and whether pixels are ignored; until so many classes are seen. None: nothing was read."""
    seen: set[int] = set()
    ignored = read = False
    for mask in _targets(split):
        read = True
        here = set(mask.unique().tolist())
        ignored |= IGNORE in here
        seen |= here - {IGNORE}
        if len(seen) >= few:
            break
    return (seen if read else None), ignored


def check_depths(source: Source[MapSplit]) -> list[str]:
    """Whether depth was measured anywhere; what to tell: the range of a few maps, in which a wrong unit shows.

    Raises:
        UsageError: no training map, or no test map, has a measured pixel.
    """
    for split, what in ((source.train, "training"), (source.test, "test")):
        measured = (bool((depth != INVALID).any()) for depth in _targets(split))
        first = next(measured, None)
        if first is False and not any(measured):
            raise UsageError(f"data.source: none of the {len(split)} {what} depth maps has a measured pixel")
    few = [depth[depth != INVALID] for _, depth in zip(range(LOOKED_AT), _targets(source.train), strict=False)]
    few = [values for values in few if len(values)]
    if not few:
        return []
    low, high = min(values.min().item() for values in few), max(values.max().item() for values in few)
    return [f"depth in {len(few)} of the training maps: {low:.2f} to {high:.2f} m"]


def check_objects(source: Source[CountedSplit]) -> list[str]:
    """Whether there are objects; what to tell: the classes of which there are none.

    Raises:
        UsageError: no training image, or no test image, has an object.
    """
    notes = []
    for split, what, then in (
        (source.train, "training", "not learnt"),
        (source.test, "test", "not measured there"),
    ):
        counts = split.counts()
        if not counts:
            raise UsageError(f"data.source: none of the {len(split)} {what} images has an object")
        missing = [label for label in range(len(source.classes)) if not counts[label]]
        if missing:
            notes.append(f"{_named(source, missing)}: in none of the {len(split)} {what} images, so {then}")
    return notes


def _targets(split: MapSplit) -> Iterator[Tensor]:
    """Those that can be read, in an order that meets rare classes soon: a seeded permutation."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    for index in order.tolist():
        try:
            yield split.target(index)
        except UnreadableImage:  # named and counted when its turn comes
            continue


def _named(source: Source[ImageSplit], labels: Sequence[int]) -> str:
    return _listed([repr(source.classes[label]) for label in labels])


def _listed(values: Sequence[Any]) -> str:
    more = len(values) - MOST_SHOWN
    return ", ".join(map(str, values[:MOST_SHOWN])) + (f" and {more} more" if more > 0 else "")
