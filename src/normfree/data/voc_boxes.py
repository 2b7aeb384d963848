"""The boxes of Pascal VOC 2012: an XML file for each image (Everingham et al. 2010)."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import UsageError
from ..files import regular
from ..words import shown
from .coco import CocoSplit, checked_annotation, checked_image
from .pairs import VOC_CLASSES
from .sources import Source

NAMES = VOC_CLASSES[1:]
MAX_XML_BYTES = 2**20  # of an image's file, which have 1 kB


def voc_boxes(
    root: Path, channels: int = 3, *, test_only: bool = False, value_range: tuple[float, ...] | None = None
) -> Source[CocoSplit]:
    """VOC 2012 for detection: ``root``/VOCdevkit/VOC2012, of which train is trained on and val tested on.

    Objects that are marked as difficult are treated as COCO's crowds: neither training nor evaluation counts them.

    Args:
        test_only: do not read what is trained on; ``train`` is empty then.
        value_range: of images, see :func:`.decode_image`.

    Raises:
        UsageError: a list, an image or a file of boxes is missing or damaged, by its name.
    """
    base = root / "VOCdevkit" / "VOC2012"
    splits = [_split(base, part, channels, value_range) for part in (("val",) if test_only else ("train", "val"))]
    if test_only:
        splits.insert(0, CocoSplit(splits[0].path, [], [], splits[0].labels, channels, False))
    return Source(splits[0], splits[1], list(NAMES))


def _split(base: Path, part: str, channels: int, value_range: tuple[float, ...] | None) -> CocoSplit:
    file = base / "ImageSets" / "Main" / f"{part}.txt"
    try:
        stems = regular(file).read_text().split()
    except (OSError, ValueError) as error:
        raise UsageError(f"data.source: {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stems:
        raise UsageError(f"data.source: {file} names no images")
    images, annotations = [], []
    for number, stem in enumerate(stems):
        path = base / "Annotations" / f"{stem}.xml"
        size, objects = _read(path)
        image = dict(id=number, file_name=f"{stem}.jpg", **size)
        images.append(checked_image(image, number, path, base / "JPEGImages"))
        sized, categories = {number: images[-1]}, dict(enumerate(NAMES))
        items = [found | dict(id=place, image_id=number) for place, found in enumerate(objects)]
        annotations.append([checked_annotation(item, sized, categories, path, False) for item in items])
    labels = {label: label for label in range(len(NAMES))}
    return CocoSplit(str(file), images, annotations, labels, channels, False, value_range=value_range)


def _read(path: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Height and width of an image, and its objects as COCO has them."""
    try:
        content = regular(path).read_bytes()[: MAX_XML_BYTES + 1]
        if len(content) > MAX_XML_BYTES or b"<!" in content:  # entities might grow without bound
            raise ValueError("larger than a file of VOC's, or with declarations")
        root = ElementTree.fromstring(content)
        size = {side: int(_text(root, f"size/{side}")) for side in ("height", "width")}
        return size, [_object(item, path) for item in root.iter("object")]
    except OSError as error:
        raise UsageError(f"data.source: {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, ElementTree.ParseError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"data.source: {path} does not describe objects as Pascal VOC does: {reason}") from error


def _object(item: ElementTree.Element, path: Path) -> dict[str, Any]:
    """Class and box; both ends of VOC's boxes are pixels of the object, counted from 1."""
    name = _text(item, "name")
    if name not in NAMES:
        raise UsageError(f"data.source: {path}: class {shown(name, 60)} is none of Pascal VOC's")
    left, top, right, bottom = (float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    difficult = item.findtext("difficult", "0").strip() == "1"
    return dict(category_id=NAMES.index(name), bbox=box, iscrowd=int(difficult))


def _text(item: ElementTree.Element, name: str) -> str:
    found = item.findtext(name)
    if found is None:
        raise ValueError(f"no {name.rpartition('/')[2]}")
    return found.strip()
