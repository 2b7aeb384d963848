"""Images with objects in COCO's layout: a JSON file and a folder of images for each split."""

import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_COCO_ID, MAX_IMAGE_SIDE, MAX_MASK_PIXELS, MAX_NAME_LENGTH, MAX_OBJECTS
from ..words import shown
from .coco_masks import is_number, mask_tools, rasterized
from .decode import UnreadableImage, decode_image
from .detection import Objects
from .exif import Size, as_annotated, convention
from .held_out import content_hash
from .sources import VALIDATION_NAMES, Source
from .splits import CountedSplit
from .values import ValueRange

Annotation = dict[str, Any]


@dataclass(frozen=True)
class CocoSplit:
    """Image files with COCO annotations.

    Attributes:
        path: of the annotation file.
        images: file, height and width of each.
        annotations: of each image, as they are in the file.
        labels: class index by category id.
        masks: whether to rasterize masks.
        stored: whether annotations of photos that EXIF turns are for the stored pixels, see :mod:`.exif`.
    """

    path: str
    images: list[tuple[str, int, int]]
    annotations: list[list[Annotation]]
    labels: dict[int, int]
    channels: int
    masks: bool
    stored: bool = True
    value_range: tuple[float, ...] | None = None  # of images, see decode_image

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index][0]

    def file(self, index: int) -> str:
        return self.images[index][0]

    def image(self, index: int) -> Tensor:
        file, height, width = self.images[index]
        image = decode_image(file, self.channels, value_range=self.value_range)
        image = as_annotated(image, file, (height, width), self.stored)
        if tuple(image.shape[-2:]) != (height, width):
            raise UnreadableImage(size_mismatch(file, image, self.path, (height, width)))
        return image

    def pair(self, index: int) -> tuple[Tensor, Objects]:
        return self.image(index), self.objects(index)

    def target_hash(self, index: int) -> str:
        """A hash of the annotations of an image."""
        return content_hash(json.dumps([self.images[index][1:], self.annotations[index]], sort_keys=True).encode())

    def counts(self) -> Counter[int]:
        """How many objects there are of each label, without crowds."""
        every = (annotation for annotations in self.annotations for annotation in annotations)
        return Counter(self.labels[a["category_id"]] for a in every if not a.get("iscrowd"))

    def objects(self, index: int) -> Objects:
        """The objects of an image, without reading the image.

        Raises:
            UnreadableImage: too many objects, or an invalid segmentation.
        """
        annotations, (file, height, width) = self.annotations[index], self.images[index]
        if len(annotations) > MAX_OBJECTS:
            raise UnreadableImage(
                f"{file}: {len(annotations):,} objects in {self.path}; an image may have {MAX_OBJECTS:,} at most"
            )
        corners = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
        masks = None
        if self.masks:
            if len(annotations) * height * width > MAX_MASK_PIXELS:
                what = f"{len(annotations):,} masks of {width} x {height} pixels in {self.path}"
                raise UnreadableImage(f"{file}: {what}; {MAX_MASK_PIXELS:,} pixels may be drawn at most")
            masks = torch.zeros(len(annotations), height, width, dtype=torch.bool)
            for mask, a in zip(masks.numpy(), annotations, strict=True):
                mask[:] = rasterized(a["segmentation"], height, width, f"{self.path}: annotation {a['id']}")
        size = (height, width)
        return Objects(
            boxes,
            torch.tensor([self.labels[a["category_id"]] for a in annotations], dtype=torch.int64),
            torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool),
            torch.tensor([float(a.get("area") or a["bbox"][2] * a["bbox"][3]) for a in annotations]),
            masks,
            size,
            size,
        )


def coco(
    path: str, channels: int = 3, *, masks: bool = True, test_only: bool = False, value_range: ValueRange = None
) -> Source[CountedSplit]:
    """The COCO data set, or a folder in its format.

    PATH/annotations/instances_train2017.json with PATH/train2017, and the same of val2017; or PATH/train.json with
    PATH/train, and the same of val (valid, validation, test). An image without annotations has no objects. A box that
    reaches beyond its image is clipped in training. A box without width or height is left out in training and counts
    in evaluation, as in COCO's evaluation.

    Args:
        masks: whether every annotation must have a segmentation (polygons, or run lengths of both kinds).
        test_only: do not read the training images.
        value_range: of images, see :func:`.decode_image`.

    Raises:
        UsageError: a file or folder is missing, a file is not of this format, an annotation does not fit its image or
            category, or the categories of the two splits differ. The message names file and value.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(
            f"data.source: {path or 'coco:'} is not a folder; it must hold annotations/instances_train2017.json, "
            "train2017, annotations/instances_val2017.json and val2017; or train.json, train, val.json and val"
        )
    if masks:
        mask_tools()
    train, test = _places(root)
    parts = [_read(file, folder, channels, masks) for file, folder in ((test,) if test_only else (train, test))]
    if parts[0][1] != parts[-1][1]:
        train_names, test_names = (set(names.items()) for _, names in parts)
        number, name = sorted(train_names ^ test_names)[0]
        file = train[0] if (number, name) in train_names else test[0]
        raise UsageError(f"data.source: category {number} ({name!r:.40}) is only in {file}")
    notes, splits = [], []
    for split, _ in parts:
        files, size_of = [image[0] for image in split.images], lambda index, split=split: split.images[index][1:]
        stored, lines = convention(files, size_of, split.path, default=True)
        splits.append(replace(split, stored=stored, value_range=value_range))
        notes += lines
    for split in splits:
        try:
            split.pair(0)  # a mistake in all files is reported now, not after ten of them
        except UnreadableImage as error:
            raise UsageError(f"data.source: {error}") from error
    if test_only:
        splits.insert(0, replace(splits[0], images=[], annotations=[]))
    categories = parts[0][1]
    return Source(splits[0], splits[1], list(categories.values()), tuple(notes), list(categories))


def size_mismatch(file: str, image: Tensor, annotations: str, size: Size) -> str:
    """The message about an image whose size is not the one in its annotation file."""
    actual, expected = ((f"{width} x {height}") for height, width in (image.shape[-2:], size))
    return f"{file}: {actual} pixels; {annotations} says {expected}"


def _places(root: Path) -> list[tuple[Path, Path]]:
    """Annotation file and image folder of the two splits."""
    folder = root / "annotations"
    official = folder / "instances_train2017.json"
    if official.is_file() or (folder / "instances_val2017.json").is_file():
        return [(official.with_name(f"instances_{part}2017.json"), root / f"{part}2017") for part in ("train", "val")]
    other = next((name for name in VALIDATION_NAMES if (root / f"{name}.json").is_file()), "val")
    return [(root / f"{part}.json", root / part) for part in ("train", other)]


def _read(file: Path, folder: Path, channels: int, masks: bool) -> tuple[CocoSplit, dict[int, str]]:
    """A split, and its categories in the order of their numbers."""
    for path, exists in ((file, file.is_file()), (folder, folder.is_dir())):
        if not exists:
            raise UsageError(f"data.source: {path} is missing")
    content = read_json(file)
    images, entries, annotations = (
        entries_by_id(content, name, file) for name in ("images", "categories", "annotations")
    )
    categories = {number: text_field(item, "name", "category", file) for number, item in sorted(entries.items())}
    if not images or not categories:
        raise UsageError(f"data.source: {file} holds {len(images)} images and {len(categories)} categories")
    sized = {number: checked_image(item, number, file, folder) for number, item in images.items()}
    by_image: dict[int, list[Annotation]] = {number: [] for number in images}
    for item in annotations.values():
        annotation = checked_annotation(item, sized, categories, file, masks)
        by_image[item["image_id"]].append(annotation)
    labels = {number: label for label, number in enumerate(categories)}
    split = CocoSplit(str(file), list(sized.values()), list(by_image.values()), labels, channels, masks)
    return split, categories


def read_json(file: Path) -> Any:
    """The content of an annotation file.

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(regular(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"data.source: {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"data.source: {file} is not JSON: {' '.join(str(error).split())[:200]}") from error


def entries_by_id(content: Any, name: str, file: Path) -> dict[int, Annotation]:
    """The entries of a list in an annotation file, by their ids."""
    items = content.get(name) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UsageError(f"data.source: {file} has no list {name!r} of mappings, as COCO's files have")
    by_id: dict[int, Annotation] = {}
    for place, item in enumerate(items):
        number = item.get("id")
        if type(number) is not int or abs(number) > MAX_COCO_ID:
            what = f"the id (={shown(number, 40)}) of {name}[{place}]"
            raise UsageError(f"data.source: {file}: {what} must be an integer below {MAX_COCO_ID:,}")
        if number in by_id:
            raise UsageError(
                f"data.source: {file}: two entries of {name!r} have the id {shown(number, 40)}; ids must be unique"
            )
        by_id[number] = item
    return by_id


def text_field(item: Annotation, key: str, kind: str, file: Path) -> str:
    """A field of an entry that must be text."""
    text = item.get(key)
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= MAX_NAME_LENGTH:
        what = f"{key} (={shown(text, 60)}) of {kind} {item['id']}"
        raise UsageError(f"data.source: {file}: {what} must be text of at most {MAX_NAME_LENGTH} letters")
    return text


def checked_image(item: Annotation, number: int, file: Path, folder: Path) -> tuple[str, int, int]:
    """File, height and width of an image of an annotation file, which must be there."""
    sides = []
    for key in ("height", "width"):
        side = item.get(key)
        if type(side) is not int or not 1 <= side <= MAX_IMAGE_SIDE:
            raise UsageError(f"data.source: {file}: {key} (={shown(side, 40)}) of image {number} must be pixels")
        sides.append(side)
    place = folder / text_field(item, "file_name", "image", file)
    if not os.path.isfile(place):
        raise UsageError(f"data.source: {place} is missing; {file} names it")
    return str(place), *sides


def checked_annotation(
    item: Annotation, images: dict[int, tuple[str, int, int]], categories: dict[int, str], file: Path, masks: bool
) -> Annotation:
    """The fields of an annotation that are used, checked."""
    where = f"data.source: {file}: annotation {shown(item['id'], 40)}"
    needed = ("id", "image_id", "category_id", "bbox", *(("segmentation",) if masks else ()))
    for key in needed:
        if key not in item:
            raise UsageError(f"{where} has no {key!r}")
    for key, known in (("image_id", images), ("category_id", categories)):
        if type(item[key]) is not int or item[key] not in known:
            raise UsageError(f"{where} has {key} {shown(item[key], 40)}, which the file does not describe")
    box, (_, height, width) = item["bbox"], images[item["image_id"]]
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(side) for side in box) or min(box[2:]) < 0:
        raise UsageError(f"{where}: bbox (={shown(box)}) must be left, top, width, height in pixels")
    left, top, wide, tall = box
    if left >= width or top >= height or left < 0 >= left + wide or top < 0 >= top + tall:
        raise UsageError(f"{where}: bbox (={shown(box)}) lies outside of its image of {width} x {height} pixels")
    crowd, area = item.get("iscrowd"), item.get("area")
    if crowd is not None and crowd not in (0, 1):
        raise UsageError(f"{where}: iscrowd (={shown(crowd, 40)}) must be 0 or 1")
    if area is not None and not is_number(area):
        raise UsageError(f"{where}: area (={shown(area, 40)}) must be a number")
    if masks and not isinstance(item["segmentation"], list | dict):
        raise UsageError(f"{where}: segmentation (={shown(item['segmentation'], 40)}) must be polygons or run lengths")
    return {key: item[key] for key in (*needed, "iscrowd", "area") if key in item and key != "image_id"}
