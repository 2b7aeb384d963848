"""Sources of images with objects: COCO's layout (a JSON file and a folder of images for each split), and scenes."""

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .decode import UnreadableImage, decode_image
from .objects import Objects, SceneObjects
from .scenes import CLASSES, scenes
from .sources import VALIDATION_NAMES, Source, unknown_source

KINDS = '"scenes:N" or "coco:PATH"'
FAR = 10.0  # times the image's longer side: a polygon that reaches so far is none
MOST_SIDE = 2**16  # pixels
Annotation = dict[str, Any]


@dataclass(frozen=True)
class CocoSplit:
    """Image files and what their annotations say.

    Attributes:
        images: file, height and width of each.
        annotations: of each image, as they are in the file ``path``; ``labels`` maps their categories.
        masks: whether to draw masks.
    """

    path: str
    images: list[tuple[str, int, int]]
    annotations: list[list[Annotation]]
    labels: dict[int, int]
    channels: int
    masks: bool

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index][0]

    def image(self, index: int) -> Tensor:
        file, height, width = self.images[index]
        image = decode_image(file, self.channels)
        if tuple(image.shape[-2:]) != (height, width):
            found = f"{image.shape[-1]} x {image.shape[-2]}"
            raise UnreadableImage(f"{file}: {found} pixels; {self.path} says {width} x {height}")
        return image

    def pair(self, index: int) -> tuple[Tensor, Objects]:
        return self.image(index), self.objects(index)

    def objects(self, index: int) -> Objects:
        """Without the image."""
        annotations, (_, height, width) = self.annotations[index], self.images[index]
        corners = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
        masks = None
        if self.masks:
            drawn = [_mask(a["segmentation"], height, width, f"{self.path}: annotation {a['id']}") for a in annotations]
            masks = torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, height, width, dtype=torch.bool)
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


def open_objects(source: str, channels: int = 3, *, masks: bool = True) -> Source:
    """A source of images with objects by its description; ``classes`` are without a background.

    Args:
        masks: whether masks are needed.

    Raises:
        UsageError: unknown kind, or what :func:`coco` refuses.
    """
    kind, _, rest = source.partition(":")
    if kind == "scenes":
        splits = scenes(rest, "masks" if masks else "boxes", channels, SceneObjects)
        return Source(*splits, list(CLASSES[1:]))
    if kind != "coco":
        raise unknown_source(source, ("scenes", "coco"), f"must be {KINDS} for detection")
    return coco(rest, channels, masks=masks)


def coco(path: str, channels: int = 3, *, masks: bool = True) -> Source:
    """COCO's folders, or one's own in its format.

    PATH/annotations/instances_train2017.json with PATH/train2017, and the same of val2017; or PATH/train.json with
    PATH/train, and the same of val (valid, validation, test). An image without annotations is one without objects. A
    box that reaches beyond its image is clipped in training. One of no width or height is left out in training and
    counted in evaluation, as COCO's own evaluation does.

    Args:
        masks: whether every annotation must have a segmentation (polygons, or run lengths of both kinds).

    Raises:
        UsageError: a file or folder is missing, a file is not of this format, an annotation does not fit its image or
            category, or the categories of the two splits differ; with file and value.
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
    parts = [_read(file, folder, channels, masks) for file, folder in (train, test)]
    if parts[0][1] != parts[1][1]:
        ours, theirs = (set(names.items()) for _, names in parts)
        number, name = sorted(ours ^ theirs)[0]
        file = train[0] if (number, name) in ours else test[0]
        raise UsageError(f"data.source: category {number} ({name!r:.40}) is only in {file}")
    for split, _ in parts:
        try:
            split.pair(0)  # a mistake that all files share is better said now than after ten of them
        except UnreadableImage as error:
            raise UsageError(f"data.source: {error}") from error
    return Source(parts[0][0], parts[1][0], list(parts[0][1].values()))


def mask_tools() -> Any:
    """pycocotools.mask; UsageError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError('masks of objects need pycocotools; pip install "normfree[detection]"') from error
    return mask


def _places(root: Path) -> list[tuple[Path, Path]]:
    """Annotations and images of the two splits."""
    official = root / "annotations" / "instances_train2017.json"
    if official.is_file():
        return [(official.with_name(f"instances_{part}2017.json"), root / f"{part}2017") for part in ("train", "val")]
    other = next((name for name in VALIDATION_NAMES if (root / f"{name}.json").is_file()), "val")
    return [(root / f"{part}.json", root / part) for part in ("train", other)]


def _read(file: Path, folder: Path, channels: int, masks: bool) -> tuple[CocoSplit, dict[int, str]]:
    """A split, and its categories in the order of their numbers."""
    for place, there in ((file, file.is_file()), (folder, folder.is_dir())):
        if not there:
            raise UsageError(f"data.source: {place} is missing")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"data.source: {file} is not JSON: {' '.join(str(error).split())[:200]}") from error
    images, entries, annotations = (_entries(content, name, file) for name in ("images", "categories", "annotations"))
    categories = {number: _text(item, "name", "category", file) for number, item in sorted(entries.items())}
    if not images or not categories:
        raise UsageError(f"data.source: {file} holds {len(images)} images and {len(categories)} categories")
    places = {number: _image(item, number, file, folder) for number, item in images.items()}
    found: dict[int, list[Annotation]] = {number: [] for number in images}
    for item in annotations.values():
        annotation = _annotation(item, places, categories, file, masks)
        found[item["image_id"]].append(annotation)
    labels = {number: place for place, number in enumerate(categories)}
    split = CocoSplit(str(file), list(places.values()), list(found.values()), labels, channels, masks)
    return split, categories


def _entries(content: Any, name: str, file: Path) -> dict[int, Annotation]:
    """Those of a list by their ids."""
    listed = content.get(name) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise UsageError(f"data.source: {file} has no list {name!r} of mappings, as COCO's files have")
    found: dict[int, Annotation] = {}
    for place, item in enumerate(listed):
        number = item.get("id")
        if type(number) is not int:
            raise UsageError(f"data.source: {file}: the id (={number!r:.40}) of {name}[{place}] must be an integer")
        if number in found:
            raise UsageError(
                f"data.source: {file}: two entries of {name!r} have the id {number!r:.40}; each needs its own"
            )
        found[number] = item
    return found


def _text(item: Annotation, key: str, kind: str, file: Path) -> str:
    found = item.get(key)
    if not isinstance(found, str) or not found.isprintable() or not found:
        raise UsageError(f"data.source: {file}: {key} (={found!r:.60}) of {kind} {item['id']} must be text")
    return found


def _image(item: Annotation, number: int, file: Path, folder: Path) -> tuple[str, int, int]:
    sides = []
    for key in ("height", "width"):
        side = item.get(key)
        if type(side) is not int or not 1 <= side <= MOST_SIDE:
            raise UsageError(f"data.source: {file}: {key} (={side!r:.40}) of image {number} must be pixels")
        sides.append(side)
    place = folder / _text(item, "file_name", "image", file)
    if not place.is_file():
        raise UsageError(f"data.source: {place} is missing; {file} names it")
    return str(place), *sides


def _annotation(
    item: Annotation,
    places: dict[int, tuple[str, int, int]],
    categories: dict[int, str],
    file: Path,
    masks: bool,
) -> Annotation:
    """What is kept of an annotation, checked."""
    where = f"data.source: {file}: annotation {item['id']!r:.40}"
    needed = ("id", "image_id", "category_id", "bbox", *(("segmentation",) if masks else ()))
    for key in needed:
        if key not in item:
            raise UsageError(f"{where} has no {key!r}")
    for key, known in (("image_id", places), ("category_id", categories)):
        if type(item[key]) is not int or item[key] not in known:
            raise UsageError(f"{where} has {key} {item[key]!r:.40}, which the file does not describe")
    box, (_, height, width) = item["bbox"], places[item["image_id"]]
    if not isinstance(box, list) or len(box) != 4 or not all(_number(side) for side in box) or min(box[2:]) < 0:
        raise UsageError(f"{where}: bbox (={box!r:.80}) must be left, top, width, height in pixels")
    left, top, wide, tall = box
    if left >= width or top >= height or left < 0 >= left + wide or top < 0 >= top + tall:
        raise UsageError(f"{where}: bbox (={box!r:.80}) lies outside of its image of {width} x {height} pixels")
    crowd, area = item.get("iscrowd"), item.get("area")
    if crowd is not None and crowd not in (0, 1):
        raise UsageError(f"{where}: iscrowd (={crowd!r:.40}) must be 0 or 1")
    if area is not None and not _number(area):
        raise UsageError(f"{where}: area (={area!r:.40}) must be a number")
    if masks and not isinstance(item["segmentation"], list | dict):
        raise UsageError(f"{where}: segmentation (={item['segmentation']!r:.40}) must be polygons or run lengths")
    return {key: item[key] for key in (*needed, "iscrowd", "area") if key in item and key != "image_id"}


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e9


def _mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """(H, W) bool of polygons [x, y, x, y, ...], or of run lengths down the columns.

    Raises:
        UnreadableImage: anything else; ``where`` says whose it is.
    """
    tools = mask_tools()
    try:
        if isinstance(segmentation, list):
            if not segmentation or not all(_polygon(part, FAR * max(height, width)) for part in segmentation):
                raise ValueError("polygons must be lists of x, y, x, y, ... of three points or more, near the image")
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
    return all(_number(value) and abs(value) <= far for value in part)


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
