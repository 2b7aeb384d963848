"""Image and category ids of a COCO annotation file, for predictions in COCO's format."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UsageError
from .coco import entries_by_id, read_json, size_mismatch, text_field
from .decode import UnreadableImage
from .exif import Size, as_annotated, convention

MAX_FOLDERS = 16  # that are searched for the images of an annotation file


@dataclass(frozen=True)
class CocoIds:
    """The ids that an annotation file gives to images and classes.

    Attributes:
        path: of the file.
        images: file name and id of each.
        categories: id of each class, in the order of the network's classes.
        sizes: height and width by image id, for images whose entry has them.
    """

    path: str
    images: list[tuple[Path, int]]
    categories: list[int]
    sizes: dict[int, Size]

    @classmethod
    def read(cls, path: str, classes: Sequence[str]) -> "CocoIds":
        """Read an annotation file for a network with these classes.

        Raises:
            UsageError: not an annotation file, or a class has no category in it.
        """
        file = Path(path)
        try:
            content = read_json(file)
            images, entries = (entries_by_id(content, name, file) for name in ("images", "categories"))
            names = {text_field(item, "name", "category", file): number for number, item in entries.items()}
            files = [(Path(text_field(item, "file_name", "image", file)), number) for number, item in images.items()]
        except UsageError as error:
            raise UsageError(str(error).replace("data.source", "--annotations", 1)) from error
        missing = [name for name in classes if name not in names]
        if missing:
            raise UsageError(f"{file} has no category {missing[0]!r:.60}, which the network has")
        sizes = {
            number: (height, width)
            for number, item in images.items()
            if type(height := item.get("height")) is int and type(width := item.get("width")) is int
        }
        return cls(path, files, [names[name] for name in classes], sizes)

    def image_ids(self, paths: Sequence[Path]) -> list[int]:
        """The id of each image file: that of the entry whose file name the path ends with.

        Raises:
            UsageError: an image without an entry, or with several.
        """
        by_ending, by_name = self._by_ending(), dict[str, list[int]]()
        for name, number in self.images:
            by_name.setdefault(name.name, []).append(number)
        numbers = []
        for path in paths:
            matches = [number for end in _endings(path) for number in by_ending.get(end, [])]
            matches = matches or by_name.get(path.name, [])  # the folder in the file may be another one
            if len(matches) != 1:
                raise UsageError(f"{self.path} has {len(matches) or 'no'} images named {path.name}; {path} needs one")
            numbers.append(matches[0])
        return numbers

    def _by_ending(self) -> dict[tuple[str, ...], list[int]]:
        """The ids of images by the parts of their file names."""
        numbers: dict[tuple[str, ...], list[int]] = {}
        for name, number in self.images:
            numbers.setdefault(name.parts, []).append(number)
        return numbers

    def convention(self, paths: Sequence[Path]) -> tuple[bool, list[str]]:
        """See :func:`.exif.convention`; it looks at all images of the file that lie beside the given ones."""
        named = self._by_ending()
        above = {path.parents[len(end) - 1] for path in paths for end in _endings(path) if end in named}
        known = {
            folder / name: self.sizes[number]
            for folder in sorted(above)[:MAX_FOLDERS]
            for name, number in self.images
            if number in self.sizes and os.path.isfile(folder / name)
        }
        files = list(map(str, known))
        return convention(files, list(known.values()).__getitem__, self.path, default=True)

    def as_annotated(self, image: Tensor, path: Path, number: int, stored: bool) -> Tensor:
        """An upright image in the orientation that the annotations are for.

        Args:
            stored: the answer of :meth:`convention`.

        Raises:
            UnreadableImage: it is of another size than the file says.
        """
        size = self.sizes.get(number)
        if size is None:
            return image
        image = as_annotated(image, str(path), size, stored)
        if tuple(image.shape[-2:]) != size:
            raise UnreadableImage(size_mismatch(str(path), image, self.path, size))
        return image


def _endings(path: Path) -> list[tuple[str, ...]]:
    """The last part of a path, the last two parts, ..., without the root."""
    parts = path.parts
    return [parts[-count:] for count in range(1, len(parts) + (not path.is_absolute()))]
