"""What a network for detection finds in images: pictures, and a file of boxes and masks as COCO's tools read."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import Objects
from ..data.coco_ids import CocoIds
from ..data.coco_masks import run_lengths
from ..errors import UsageError
from ..models import Detections
from ..models.detection import SCORE_THRESHOLD
from ..pictures.sheets import LEGEND_CLASSES, object_sheet
from ..training import pick_device
from ..words import tell
from .answers import Answers, Asked, PredictOptions, writing
from .pixel_answers import Pictures
from .trained import Trained

LEAST_TOLD = 0.5  # score


class ObjectAnswers(Answers):
    """Boxes, classes, scores and masks of objects, in pixels of the image.

    Args:
        options: of the command line: where files go, the least score.

    Raises:
        UsageError: a folder or file that cannot be made, or annotations that do not fit.
    """

    columns = ("class", "score", "left", "top", "right", "bottom", "pixels")

    def __init__(self, trained: Trained, options: PredictOptions):
        self.names, self.channels = trained.names, trained.recipe.data.channels
        data = trained.recipe.data
        self.value_range = None if data.value_range == "auto" else data.value_range
        self.place = pick_device(options.device)
        self.model, self.transform = trained.model.to(self.place), trained.transform
        self.least = LEAST_TOLD if options.score is None else options.score
        self.pictures, self.counts = Pictures(trained.task.kind, options), Counter()
        self.picture_ending = f"_{trained.task.kind}.png"
        self.boxes: BoxFile | None = None
        if options.boxes:
            self.boxes = BoxFile(options.boxes, options.annotations, trained, options.score or 0.0)

    def begin(self, paths: Sequence[Path]) -> None:
        if self.boxes:
            self.boxes.begin(paths)

    def placed(self, path: Path, image: Tensor) -> Tensor:
        return self.boxes.placed(path, image) if self.boxes else image

    def view(self, image: Tensor) -> Tensor:
        return self.transform.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Detections, tuple[int, int]]]:
        originals = [_size(image) for image in images]
        sizes = [self.transform.size_of(original) for original in originals]
        objects = [Objects.none(*both) for both in zip(sizes, originals, strict=True)]
        with torch.inference_mode():
            found = self.model(seen.to(self.place), objects)
        return list(zip(found, sizes, strict=True))

    def tell(self, asked: Asked, answer: tuple[Detections, tuple[int, int]]) -> dict[str, Any]:
        every, size = answer
        original = _size(asked.image)
        if self.boxes:
            self.boxes.add(asked, every, size)
        found = every.chosen(every.scores >= self.least).placed(size, original)
        told = self.pictures.save(asked, lambda: object_picture(asked.image, found, self.names))
        objects = listed(found, self.names)
        self.counts.update(one["name"] for one in objects)
        return told | dict(objects=objects)

    def lines(self, told: dict[str, Any]) -> list[str]:
        lines = [told["path"]]
        for one in told["objects"]:
            box = " ".join(f"{side:7.1f}" for side in one["box"])
            lines.append(f"  {one['score']:7.2%}  {box}  {one['name']}")
        picture = [f"  picture {told['picture']}"] if "picture" in told else []
        return [*lines, *([] if told["objects"] else ["  nothing"]), *picture]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        for one in told["objects"]:
            yield [one["name"], one["score"], *one["box"], one.get("pixels", "")]

    def finish(self) -> list[str]:
        lines = [f"  {count:7} {name}" for name, count in self.counts.most_common(LEGEND_CLASSES)] or ["  nothing"]
        return [*lines, *self.pictures.finish(), *(self.boxes.write() if self.boxes else [])]


class BoxFile:
    """Boxes and masks in the layout of COCO's results: a list with an entry for each object.

    The numbers of images and categories are those of an annotation file, where one is given. Else an image is counted
    from 1 unless all files are named by numbers, as COCO's are; and categories have the numbers that the training
    data gave them. With an annotation file, a photo that EXIF turns is taken as it is annotated there.

    Args:
        path: of the file.
        annotations: a file of COCO's format.
        least: score of an object that is written.

    Raises:
        UsageError: the file cannot be written; annotations of other classes.
    """

    def __init__(self, path: str, annotations: str | None, trained: Trained, least: float):
        self.path, self.least, self.found = Path(path), least, []
        self.ids = CocoIds.read(annotations, trained.classes) if annotations else None
        self.categories = self.ids.categories if self.ids else trained.numbers
        self.numbers: dict[Path, int] = {}
        try:
            self.path.open("a").close()
        except OSError as error:
            raise UsageError(f"--boxes {path} cannot be written: {error.strerror or error}") from error

    def begin(self, paths: Sequence[Path]) -> None:
        """Number the images.

        Raises:
            UsageError: one that the annotations do not name.
        """
        if self.ids:
            numbers, self.told = self.ids.image_ids(paths), []
            self.stored, told = self.ids.convention(paths)
            tell(*told, file=sys.stderr)
        else:
            named = all(path.stem.isascii() and path.stem.isdigit() for path in paths)
            numbers = [int(path.stem) for path in paths] if named else range(1, 1 + len(paths))
            how = "by their names" if named else "from 1"
            categories = ", ".join(map(str, self.categories[:8])) + (", ..." if len(self.categories) > 8 else "")
            self.told = [f"  images are numbered {how}, categories are {categories}; --annotations FILE gives others"]
        self.numbers = dict(zip(paths, numbers, strict=True))

    def placed(self, path: Path, image: Tensor) -> Tensor:
        """An upright image as the annotations see it."""
        return self.ids.as_annotated(image, path, self.numbers[path], self.stored) if self.ids else image

    def add(self, asked: Asked, found: Detections, size: tuple[int, int]) -> None:
        """Take what was found in an image of (height, width) as it lies in what the network saw."""
        about: dict[str, Any] = dict(image_id=self.numbers[asked.path], file_name=asked.path.name)
        original = _size(asked.image)
        for number in (found.scores >= self.least).nonzero()[:, 0].tolist():  # masks of large images one by one
            one = found.chosen(slice(number, number + 1)).placed(size, original)
            left, top, right, bottom = one.boxes[0].tolist()
            entry = about | dict(category_id=self.categories[int(one.labels[0])])
            entry |= dict(bbox=[left, top, right - left, bottom - top], score=one.scores[0].item())
            if one.masks is not None:
                entry["segmentation"] = run_lengths(one.masks[0])
            self.found.append(entry)

    def write(self) -> list[str]:
        """Write the file; what to tell about it."""
        try:
            self.path.write_text(json.dumps(self.found), encoding="utf-8")
        except OSError as error:
            raise writing(self.path, error) from error
        return [
            f"  {len(self.found)} boxes of at least {max(self.least, SCORE_THRESHOLD):g} in {self.path}",
            *self.told,
        ]


def _size(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    height, width = image.shape[-2:]
    return height, width


def object_picture(image: Tensor, found: Detections, names: list[str]) -> Image.Image:
    """An image beside itself with masks, boxes, classes and scores."""
    return object_sheet(image, found.boxes, found.scores, found.labels, found.masks, names)


def listed(found: Detections, names: list[str]) -> list[dict[str, Any]]:
    """The same as numbers, the surest first."""
    parts = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    told: list[dict[str, Any]] = [
        dict(name=names[label], score=round(score, 4), box=[round(side, 2) for side in box])
        for box, score, label in parts
    ]
    if found.masks is not None:
        for one, mask in zip(told, found.masks, strict=True):
            one["pixels"] = int(mask.sum())
    return told
