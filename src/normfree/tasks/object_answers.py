"""Predictions of detection: pictures, and a file of boxes and masks in COCO's format."""

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

MIN_SCORE = 0.5  # score


class ObjectAnswers(Answers):
    """Boxes, classes, scores and masks of objects, in pixels of the image.

    Args:
        options: of the command line.

    Raises:
        UsageError: a folder or file cannot be made, or annotations do not fit.
    """

    columns = ("class", "score", "left", "top", "right", "bottom", "pixels")

    def __init__(self, trained: Trained, options: PredictOptions):
        self.names, self.channels = trained.names, trained.recipe.data.channels
        data = trained.recipe.data
        self.value_range = None if isinstance(data.value_range, str) else data.value_range
        self.device = pick_device(options.device)
        self.model, self.transform = trained.model.to(self.device), trained.transform
        self.min_score = MIN_SCORE if options.score is None else options.score
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
            detections = self.model(seen.to(self.device), objects)
        return list(zip(detections, sizes, strict=True))

    def tell(self, item: Asked, answer: tuple[Detections, tuple[int, int]]) -> dict[str, Any]:
        output, size = answer
        original = _size(item.image)
        if self.boxes:
            self.boxes.add(item, output, size)
        detections = output.chosen(output.scores >= self.min_score).placed(size, original)
        result = self.pictures.save(item, lambda: object_picture(item.image, detections, self.names))
        objects = object_list(detections, self.names)
        self.counts.update(entry["name"] for entry in objects)
        return result | dict(objects=objects)

    def lines(self, result: dict[str, Any]) -> list[str]:
        lines = [result["path"]]
        for entry in result["objects"]:
            box = " ".join(f"{side:7.1f}" for side in entry["box"])
            lines.append(f"  {entry['score']:7.2%}  {box}  {entry['name']}")
        picture = [f"  picture {result['picture']}"] if "picture" in result else []
        return [*lines, *([] if result["objects"] else ["  nothing"]), *picture]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        for entry in result["objects"]:
            yield [entry["name"], entry["score"], *entry["box"], entry.get("pixels", "")]

    def finish(self) -> list[str]:
        lines = [f"  {count:7} {name}" for name, count in self.counts.most_common(LEGEND_CLASSES)] or ["  nothing"]
        return [*lines, *self.pictures.finish(), *(self.boxes.write() if self.boxes else [])]


class BoxFile:
    """Boxes and masks in the format of COCO's results: a list with an entry for each object.

    The ids of images and categories are those of an annotation file, if one is given. Else images are numbered by
    their file names if all of these are numbers, as COCO's are, or from 1; categories have the ids of the training
    data. With an annotation file, a photo that EXIF rotates is used in the orientation of its annotations.

    Args:
        path: of the file.
        annotations: a file of COCO's format.
        min_score: minimum score of the objects that are written.

    Raises:
        UsageError: the file cannot be written; annotations of other classes.
    """

    def __init__(self, path: str, annotations: str | None, trained: Trained, min_score: float):
        self.path, self.min_score, self.results = Path(path), min_score, []
        self.ids = CocoIds.read(annotations, trained.classes) if annotations else None
        self.categories = self.ids.categories if self.ids else trained.numbers
        self.numbers: dict[Path, int] = {}
        try:
            self.path.open("a").close()
        except OSError as error:
            raise UsageError(f"--boxes {path} cannot be written: {error.strerror or error}") from error

    def begin(self, paths: Sequence[Path]) -> None:
        """Find the ids of the images.

        Raises:
            UsageError: an image is not in the annotation file.
        """
        if self.ids:
            numbers, self.notes = self.ids.image_ids(paths), []
            self.stored, notes = self.ids.convention(paths)
            tell(*notes, file=sys.stderr)
        else:
            named = all(path.stem.isascii() and path.stem.isdigit() for path in paths)
            numbers = [int(path.stem) for path in paths] if named else range(1, 1 + len(paths))
            numbering = "by their names" if named else "from 1"
            categories = ", ".join(map(str, self.categories[:8])) + (", ..." if len(self.categories) > 8 else "")
            numbers_text = f"images are numbered {numbering}, categories are {categories}"
            self.notes = [f"  {numbers_text}; --annotations FILE gives others"]
        self.numbers = dict(zip(paths, numbers, strict=True))

    def placed(self, path: Path, image: Tensor) -> Tensor:
        """An upright image in the orientation that the annotations are for."""
        return self.ids.as_annotated(image, path, self.numbers[path], self.stored) if self.ids else image

    def add(self, item: Asked, detections: Detections, size: tuple[int, int]) -> None:
        """Add the detections of an image; ``size`` is its (height, width) in the network's input."""
        about: dict[str, Any] = dict(image_id=self.numbers[item.path], file_name=item.path.name)
        original = _size(item.image)
        for number in (detections.scores >= self.min_score).nonzero()[:, 0].tolist():  # one by one: masks may be large
            single = detections.chosen(slice(number, number + 1)).placed(size, original)
            left, top, right, bottom = single.boxes[0].tolist()
            entry = about | dict(category_id=self.categories[int(single.labels[0])])
            entry |= dict(bbox=[left, top, right - left, bottom - top], score=single.scores[0].item())
            if single.masks is not None:
                entry["segmentation"] = run_lengths(single.masks[0])
            self.results.append(entry)

    def write(self) -> list[str]:
        """Write the file; returns lines about it for the summary."""
        try:
            self.path.write_text(json.dumps(self.results), encoding="utf-8")
        except OSError as error:
            raise writing(self.path, error) from error
        return [
            f"  {len(self.results)} boxes of at least {max(self.min_score, SCORE_THRESHOLD):g} in {self.path}",
            *self.notes,
        ]


def _size(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    height, width = image.shape[-2:]
    return height, width


def object_picture(image: Tensor, detections: Detections, names: list[str]) -> Image.Image:
    """An image beside itself with masks, boxes, classes and scores."""
    return object_sheet(image, detections.boxes, detections.scores, detections.labels, detections.masks, names)


def object_list(detections: Detections, names: list[str]) -> list[dict[str, Any]]:
    """Detections as plain data, the highest score first."""
    parts = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    result: list[dict[str, Any]] = [
        dict(name=names[label], score=round(score, 4), box=[round(side, 2) for side in box])
        for box, score, label in parts
    ]
    if detections.masks is not None:
        for entry, mask in zip(result, detections.masks, strict=True):
            entry["pixels"] = int(mask.sum())
    return result
