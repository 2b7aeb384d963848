"""Mask files, which hold the class of each pixel, and the values of the classes in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UsageError
from ..files import regular
from .decode import UnreadableImage, check_sides, named
from .matlab import matlab
from .pixels import IGNORE

MAX_VALUE = 2**16 - 1
Value = int | tuple[int, ...]  # of a pixel: a number, or red, green and blue


@dataclass(frozen=True)
class MaskValues:
    """The value of each class in a mask.

    Args:
        classes: their number.
        values: of each class, numbers or colours (red, green, blue); None: the index of the class.
        ignored: value of pixels that are ignored; None: 255 unless it is among ``values``, and none for colours.
    """

    classes: int
    values: tuple[Value, ...] | None = None
    ignored: Value | None = None

    @property
    def colours(self) -> bool:
        return self.values is not None and not isinstance(self.values[0], int)

    def read(self, path: str) -> Tensor:
        """The (H, W) int64 classes in a mask file; IGNORE for ignored pixels.

        Raises:
            UnreadableImage: see :func:`read_values`; or a value belongs to no class.
        """
        pixels = read_values(path, colours=self.colours, maximum=MAX_VALUE if self.values else IGNORE)
        return self.classes_of(pixels, path)

    def classes_of(self, pixels: np.ndarray, path: str) -> Tensor:
        """The int64 classes of values that were read, of the same shape; IGNORE for ignored ones.

        Args:
            pixels: integers, not below 0; colours packed.
            path: of the file, for the message.

        Raises:
            UnreadableImage: a value belongs to no class.
        """
        known = list(range(self.classes)) if self.values is None else [_packed(value) for value in self.values]
        ignored = _packed(self.ignored) if self.ignored is not None else None if self.colours else IGNORE
        if ignored is not None and ignored not in known:
            known.append(ignored)
        if self.colours:
            order = np.argsort(known)
            classes = order[np.searchsorted(known, pixels, sorter=order).clip(max=len(known) - 1)]
            wrong = np.asarray(known)[classes] != pixels
        else:
            table = np.full(MAX_VALUE + 1, -1, np.int64)
            table[known] = range(len(known))
            classes = table[pixels]
            wrong = classes < 0
        if wrong.any():
            raise UnreadableImage(f"{path}: {self._unknown(int(pixels[wrong].min()))}")
        return torch.from_numpy(np.where(classes < self.classes, classes, IGNORE))

    def image(self, classes: Tensor) -> Image.Image:
        """The mask of (H, W) classes as an image that :meth:`read` can read: 8 or 16 bits, or colours."""
        return Image.fromarray(self.values_of(classes))

    def values_of(self, classes: Tensor) -> np.ndarray:
        """The values of int64 classes: uint8 or uint16 of the same shape; colours have another axis."""
        values = np.array(range(self.classes) if self.values is None else self.values)
        kind = np.uint16 if values.max() > 255 else np.uint8
        return values.astype(kind)[classes.numpy()]

    def _unknown(self, value: int) -> str:
        if self.values is None:
            return f"class {value} is unknown; there are 0 to {self.classes - 1}, and 255 to ignore"
        shown = list(_unpacked(value)) if self.colours else value
        return f"the value {shown} is neither among data.mask_values (={listed(self.values)}) nor data.mask_ignored"


def read_values(path: str, *, colours: bool = False, maximum: int = IGNORE) -> np.ndarray:
    """The (H, W) values of a PNG file of one channel or a palette, or of one of SBD's .mat files.

    Args:
        colours: read colours, packed as 0xRRGGBB.
        maximum: the largest allowed value; above 255, images of 16 bits may be read.

    Raises:
        UnreadableImage: not there, or another kind of file.
    """
    if path.endswith(".mat"):
        return _segmentation(path)
    with open_png(path) as image:
        if colours:
            if image.mode not in ("RGB", "P", "L", "1"):
                needed = "data.mask_values are colours, red, green, blue; save the mask as RGB, without transparency"
                raise UnreadableImage(f"{path}: a {image.mode} image; {needed}")
            return np.array(image.convert("RGB")).astype(np.int64) @ (1 << 16, 1 << 8, 1)
        deep = maximum > 255 and image.mode.startswith("I")
        if image.mode not in ("L", "P", "1") and not deep:
            needed = "a mask holds one class number per pixel (8 bits)"
            more = ""
            if image.mode.startswith("RGB"):
                rgb = " of an RGB file" if image.mode != "RGB" else ""
                more = f"; colours{rgb} are given as data.mask_values [[0,0,0],[255,255,255]]: red, green, blue"
            elif image.mode.startswith("I"):
                more = "; for 16 bits, give data.mask_values"
            raise UnreadableImage(f"{path}: a {image.mode} image; {needed}{more}")
        return np.array(image).astype(np.uint16 if deep else np.uint8)


def check_values(values: Sequence[Value] | None, ignored: Value | None) -> None:
    """Check the values of masks in a recipe.

    Raises:
        UsageError: values that are neither all numbers nor all colours, out of range, or not distinct.
    """
    if values is None:
        if ignored is not None:
            raise UsageError(f"data.mask_ignored (={listed([ignored])[1:-1]}) needs data.mask_values, too")
        return
    every = [*values, *([] if ignored is None else [ignored])]
    numbers = all(isinstance(value, int) and 0 <= value <= MAX_VALUE for value in every)
    colours = all(
        not isinstance(value, int) and len(value) == 3 and all(0 <= part <= 255 for part in value) for value in every
    )
    if not numbers and not colours:
        raise UsageError(
            f"data.mask_values (={listed(values)}) must be numbers from 0 to {MAX_VALUE}, or colours [red, green, "
            "blue]; data.mask_ignored likewise"
        )
    if ignored is not None and _packed(ignored) in map(_packed, values):
        raise UsageError(
            f"data.mask_ignored (={listed([ignored])[1:-1]}) is among data.mask_values (={listed(values)})"
        )
    if not 2 <= len(values) < IGNORE or len(set(map(_packed, values))) < len(values):
        raise UsageError(f"data.mask_values (={listed(values)}) must be 2 to {IGNORE - 1} values, each once")


def listed(values: Sequence[Value]) -> str:
    """Values in a message."""
    shown = [str(value if isinstance(value, int) else list(value)) for value in values[:8]]
    return f"[{', '.join(shown + ['...'] * (len(values) > 8))}]"


def class_names(file: Path) -> list[str]:
    """The class names of a file, which has one per line in the order of their numbers.

    Raises:
        UsageError: it cannot be read, a line is blank, or a name is there twice.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"data.source: {file} cannot be read: {error}") from error
    if not 2 <= len(names) < IGNORE:
        raise UsageError(f"data.source: {file} holds {len(names)} names; it must hold 2 to {IGNORE - 1}")
    for place, name in enumerate(names):
        if not name:
            raise UsageError(f"data.source: line {place + 1} of {file} is blank; it must name class {place}")
        if (first := names.index(name)) < place:
            what = f"lines {first + 1} and {place + 1} of {file} are both {name!r:.40}"
            raise UsageError(f"data.source: {what}; each class must have a name of its own")
    return names


def _packed(value: Value) -> int:
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _unpacked(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def open_png(path: str) -> Image.Image:
    """A PNG file, loaded; UnreadableImage if it is another kind of file."""
    with named(path):
        try:
            image = Image.open(regular(path), formats=("PNG",))
        except UnidentifiedImageError as error:
            raise ValueError("not a PNG file that can be read") from error
        check_sides(*image.size)
        image.load()
        return image


def _segmentation(path: str) -> np.ndarray:
    """The mask in a .mat file of SBD, (H, W) uint8."""
    try:
        mask = np.asarray(matlab(regular(path), ["GTcls"])["GTcls"]["Segmentation"][0, 0])
    except UsageError:
        raise
    except Exception as error:  # whatever the file holds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{path}: no mask of SBD (GTcls.Segmentation): {reason}") from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise UnreadableImage(f"{path}: an array of shape {mask.shape} of {mask.dtype}; a mask is (H, W) uint8")
    return mask
