"""Masks of objects in the forms of COCO's files: polygons and run lengths, packed or not."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..limits import MAX_OUTLINE_PIXELS, MAX_POLYGONS
from .decode import UnreadableImage

FAR = 10.0  # times the image's longer side: a polygon that reaches so far is none


def mask_tools() -> Any:
    """pycocotools.mask; UsageError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError('masks of objects need pycocotools; pip install "normfree[detection]"') from error
    return mask


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """A mask (H, W) bool as packed run lengths, ready for JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are made as NumPy 1 wants them
        packed = mask_tools().encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return dict(size=[int(side) for side in packed["size"]], counts=packed["counts"].decode("ascii"))


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number of pixels."""
    return type(value) in (int, float) and abs(value) < 1e9  # neither infinite nor nan


def rasterized(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """(H, W) bool of polygons [x, y, x, y, ...], or of run lengths down the columns.

    Raises:
        UnreadableImage: anything else; ``where`` says whose it is.
    """
    tools = mask_tools()
    try:
        if isinstance(segmentation, list):
            if len(segmentation) > MAX_POLYGONS:
                raise ValueError(f"{len(segmentation):,} polygons; {MAX_POLYGONS:,} are the limit")
            if not segmentation or not all(_polygon(part, FAR * max(height, width)) for part in segmentation):
                raise ValueError("polygons must be lists of x, y, x, y, ... of three points or more, near the image")
            if (length := sum(map(_outline, segmentation))) > MAX_OUTLINE_PIXELS:
                raise ValueError(f"polygons of {length:,.0f} pixels around; {MAX_OUTLINE_PIXELS:,} are the limit")
            runs = tools.merge(tools.frPyObjects(segmentation, height, width))
        else:
            return _runs(segmentation, height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are made as NumPy 1 wants them
            return tools.decode(runs).astype(bool)
    except Exception as error:  # the library fails in several ways on what is no segmentation
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UnreadableImage(f"{where}: segmentation: {reason}") from error


def _polygon(part: Any, far: float) -> bool:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    return all(is_number(value) and abs(value) <= far for value in part)


def _outline(part: list[float]) -> float:
    """Pixels that a polygon is drawn with, one at least for each of its points."""
    corners = np.asarray(part, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(1).clip(min=1).sum())


def unpacked(text: str) -> list[int]:
    """Run lengths of COCO's packed form: numbers in groups of five bits, from the fourth on less the one two before.

    Raises:
        ValueError: no such text. (The library reads beyond its end.)
    """
    counts: list[int] = []
    number = shift = 0
    for letter in text.encode():
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{chr(letter)!r} is no letter of packed run lengths")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more to come
            continue
        if bits & 16:  # negative
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("packed run lengths end within a number")
    return counts


def _runs(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(H, W) bool of lengths of runs of 0, 1, 0, ... down the columns."""
    size, counts = (segmentation.get(key) for key in ("size", "counts"))
    if size != [height, width]:
        raise ValueError(f"size (={size!r:.40}) of run lengths must be the image's, {[height, width]}")
    if not isinstance(counts, list | str):
        raise ValueError(f"counts (={counts!r:.40}) of run lengths must be a list or text")
    if isinstance(counts, str):
        counts = unpacked(counts)
    if not all(type(count) is int and 0 <= count <= height * width for count in counts):
        raise ValueError("run lengths must be integers of at least 0")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths add up to {sum(counts)}, the image has {height * width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T.copy()
