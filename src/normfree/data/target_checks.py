"""Checks of targets before a run starts: refuses those from which nothing can be learnt or measured."""

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

MAX_SHOWN = 8  # names in a line
MAX_DEPTH_MAPS = 16  # whose range is reported


def check_masks(
    source: Source[MapSplit], *, fixed: bool = False, allow_missing: bool = False
) -> tuple[list[str], str | None]:
    """Check the classes in the masks; training masks are read until every class has been found.

    Args:
        fixed: the classes are those of a published data set, of which some may be missing.
        allow_missing: accept a class that is in no training mask, and test masks with one class only.

    Returns:
        Notes for the user, and the name of the class if the test masks have only one.

    Raises:
        UsageError: a class is in no training mask; masks have one class, or only ignored pixels.
    """
    enough = 2 if fixed or allow_missing else len(source.classes)
    seen, ignored = _classes_of(source.train, enough)
    if seen is None:  # no mask can be read; training reports it
        return [], None
    missing = [label for label in range(len(source.classes)) if label not in seen]
    if len(seen) < 2 or (missing and not (fixed or allow_missing)):
        raise UsageError(_missing(source, sorted(seen), ignored, missing))
    return _check_test(source, enough, allow_missing)


def _missing(source: Source[MapSplit], seen: list[int], ignored: bool, missing: list[int]) -> str:
    """The message about training masks without some class, with possible remedies."""
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
    if plain and 2 <= len(values) <= MAX_SHOWN:
        ways.append(f"if these are the classes, give --data.mask_values {str(values).replace(' ', '')}")
    if len(seen) > 1:
        what = "the class" if len(missing) == 1 else "these classes"
        ways.append(f"take {what} out of classes.txt, or give --data.allow_missing_classes true")
    return f"data.source: {'; '.join([problem, *ways])}"


def _check_test(source: Source[MapSplit], enough: int, allow_missing: bool) -> tuple[list[str], str | None]:
    seen, _ = _classes_of(source.test, enough)
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
    if enough < len(names) or not missing:
        return [], None
    return [f"{_named(source, missing)}: in none of the {count} test masks, so not measured there"], None


def check_test_masks(source: Source[MapSplit]) -> None:
    """Check test masks that are evaluated without training masks: 255 may be meant as a class, not as ignored.

    Raises:
        UsageError: they have 255 and no other values except 0.
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
    """Whether the values of masks are class indices, so that 255 is ignored."""
    mask = getattr(split, "values", getattr(getattr(split, "read", None), "__self__", None))
    return isinstance(mask, MaskValues) and mask.values is None


def check_labels(split: Any) -> None:
    """Check that some test image of multi-label classification has a class; else nothing can be measured.

    Raises:
        UsageError: no image has a class.
    """
    if len(split) and not any(bool(split.target(index).any()) for index in range(len(split))):
        raise UsageError(f"data.source: no test image has a class; there are {len(split)}, and nothing to measure")


def check_numbers(split: Any) -> None:
    """Check that R2 is defined, which needs two test images.

    Raises:
        UsageError: there is one test image.
    """
    if len(split) == 1:
        raise UsageError("data.source: there is 1 test image; R2 needs at least 2")


def _classes_of(split: MapSplit, enough: int) -> tuple[set[int] | None, bool]:
    """The classes in masks, at least up to ``enough``, and whether pixels are ignored; None: no mask could be read."""
    seen: set[int] = set()
    ignored = read = False
    for mask in _targets(split):
        read = True
        classes = set(mask.unique().tolist())
        ignored |= IGNORE in classes
        seen |= classes - {IGNORE}
        if len(seen) >= enough:
            break
    return (seen if read else None), ignored


def check_depths(source: Source[MapSplit]) -> list[str]:
    """Check that depth was measured; returns a note with the range of a few maps, which shows a wrong unit.

    Raises:
        UsageError: no training map, or no test map, has a measured pixel.
    """
    for split, what in ((source.train, "training"), (source.test, "test")):
        measured = (bool((depth != INVALID).any()) for depth in _targets(split))
        first = next(measured, None)
        if first is False and not any(measured):
            raise UsageError(f"data.source: none of the {len(split)} {what} depth maps has a measured pixel")
    ranges = [depth[depth != INVALID] for _, depth in zip(range(MAX_DEPTH_MAPS), _targets(source.train), strict=False)]
    ranges = [values for values in ranges if len(values)]
    if not ranges:
        return []
    low, high = min(values.min().item() for values in ranges), max(values.max().item() for values in ranges)
    return [f"depth in {len(ranges)} of the training maps: {low:.2f} to {high:.2f} m"]


def check_objects(source: Source[CountedSplit]) -> list[str]:
    """Check that there are objects; returns notes about classes without any.

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
    """The targets that can be read, in a random order with a fixed seed, which finds rare classes early."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    for index in order.tolist():
        try:
            yield split.target(index)
        except UnreadableImage:  # training and evaluation report it
            continue


def _named(source: Source[ImageSplit], labels: Sequence[int]) -> str:
    return _listed([repr(source.classes[label]) for label in labels])


def _listed(values: Sequence[Any]) -> str:
    more = len(values) - MAX_SHOWN
    return ", ".join(map(str, values[:MAX_SHOWN])) + (f" and {more} more" if more > 0 else "")
