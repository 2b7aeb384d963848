"""How large the images of a split are, and whether they are grey, from a sample of them."""

import io
import random
import statistics
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .decode import UnreadableImage, known_formats, named
from .values import files_of

SAMPLE = 64  # images that are looked at, always the same ones
GREY_MODES = ("1", "L", "LA", "I", "F")  # of PIL; those of 16 bits begin with "I;"


@dataclass(frozen=True)
class Sides:
    """Of a sample of images: the median of their shorter sides in pixels, and whether all of them are grey."""

    median: int
    grey: bool


def sides(split: Any) -> Sides | None:
    """The sides of a split's images; of files, only the headers are read. None if no image can be read.

    Example:
        >>> from normfree.data import open_source
        >>> sides(open_source("synthetic:100").train)
        Sides(median=256, grey=False)
    """
    found = list[tuple[int, bool]]()
    for index in sorted(random.Random(0).sample(range(len(split)), min(SAMPLE, len(split)))):
        try:
            found.append(_from_header(split, index) or _from_pixels(split, index))
        except UnreadableImage:
            continue
    if not found:
        return None
    return Sides(round(statistics.median(side for side, _ in found)), all(grey for _, grey in found))


def _from_header(split: Any, index: int) -> tuple[int, bool] | None:
    """Shorter side and whether it is grey, of an image file that PIL reads; else None."""
    files, places = files_of(split)
    if not places:
        return None
    file = files.file(places[index])
    with named(file, split.name(index)):
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=known_formats()) as image:
                return min(image.size), image.mode in GREY_MODES or image.mode.startswith("I;")
        except Image.UnidentifiedImageError:
            return None


def _from_pixels(split: Any, index: int) -> tuple[int, bool]:
    pixels = split.image(index)
    grey = bool((pixels == pixels[:1]).all()) if pixels.shape[0] in (1, 3) else False
    return min(pixels.shape[1:]), grey
