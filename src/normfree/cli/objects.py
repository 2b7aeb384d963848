"""What a network for detection finds in images: pictures, and a file of boxes and masks as COCO's tools read."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import Objects
from ..data.coco import CocoIds
from ..data.coco_masks import run_lengths
from ..errors import UsageError
from ..models import Detections
from ..models.detection import LEAST_SCORE
from ..report.drawing import class_colors, under_masks
from ..training import pick_device
from ..words import tell
from .answers import Answers, Asked, writing
from .overlays import INK, MOST_NAMED, TEXT, Pictures, beside, enlarged
from .trained import Trained, evaluation_transform

LEAST = 0.5  # score of what is told


class ObjectAnswers(Answers):
    """Boxes, classes, scores and masks of objects, in pixels of the image.

    Args:
        options: of the command line: where files go, the least score.

    Raises:
        UsageError: a folder or file that cannot be made, or annotations that do not fit.
    """

    columns = ("class", "score", "left", "top", "right", "bottom", "pixels")

    def __init__(self, trained: Trained, options: argparse.Namespace):
        self.names, self.channels = trained.names, trained.recipe.data.channels
        self.value_range = trained.recipe.data.value_range
        self.place = pick_device(options.device)
        self.model, self.transform = trained.model.to(self.place), evaluation_transform(trained)
        self.least = LEAST if options.score is None else options.score
        self.pictures, self.counts = Pictures(trained.recipe.task.name, options), Counter()
        self.boxes = options.boxes and BoxFile(options.boxes, options.annotations, trained, options.score or 0.0)

    def begin(self, paths: Sequence[Path]) -> None:
        if self.boxes:
            self.boxes.begin(paths)

    def placed(self, path: Path, image: Tensor) -> Tensor:
        return self.boxes.placed(path, image) if self.boxes else image

    def view(self, image: Tensor) -> Tensor:
        return self.transform.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Detections, tuple[int, int]]]:
        originals = [tuple(image.shape[-2:]) for image in images]
        sizes = [self.transform.size_of(original) for original in originals]
        objects = [Objects.none(*both) for both in zip(sizes, originals, strict=True)]
        with torch.inference_mode():
            found = self.model(seen.to(self.place), objects)
        return list(zip(found, sizes, strict=True))

    def tell(self, asked: Asked, answer: tuple[Detections, tuple[int, int]]) -> dict[str, Any]:
        every, size = answer
        original = tuple(asked.image.shape[-2:])
        if self.boxes:
            self.boxes.add(asked, every, size)
        found = every.chosen(every.scores >= self.least).placed(size, original)
        told = self.pictures.save(asked, lambda: drawn(asked.image, found, self.names))
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
        lines = [f"  {count:7} {name}" for name, count in self.counts.most_common(MOST_NAMED)] or ["  nothing"]
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
            numbers, self.told = self.ids.of(paths), []
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
        about, original = dict(image_id=self.numbers[asked.path], file_name=asked.path.name), asked.image.shape[-2:]
        for number in (found.scores >= self.least).nonzero()[:, 0].tolist():  # masks of large images one by one
            one = found.chosen(slice(number, number + 1)).placed(size, tuple(original))
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
        return [f"  {len(self.found)} boxes of at least {max(self.least, LEAST_SCORE):g} in {self.path}", *self.told]


def drawn(image: Tensor, found: Detections, names: list[str]) -> Image.Image:
    """An image beside itself with masks, boxes, classes and scores."""
    palette = class_colors(len(names) + 1)[1:]
    height, width = image.shape[-2:]
    sheet = beside(image, Image.fromarray(under_masks(image, found.labels, found.masks, palette)))
    times, right = enlarged(width, height)
    top = (sheet.height - height * times) // 2
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    parts = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for box, score, label in reversed(list(parts)):  # the surest on top
        color = tuple(palette[label].tolist())
        corners = [right + box[0] * times, top + box[1] * times, right + box[2] * times, top + box[3] * times]
        draw.rectangle(corners, outline=color, width=2)
        text = f"{names[label][:20]} {score:.2f}"
        wide = draw.textlength(text, font)
        # inside of the picture, above the box where there is room
        left = max(right, min(corners[0], right + width * times - wide - 4))
        line = corners[1] - TEXT - 4 if corners[1] - TEXT - 4 >= top else corners[1]
        draw.rectangle((left, line, left + wide + 4, line + TEXT + 4), fill=color)
        draw.text((left + 2, line + 1), text, INK if sum(color) > 300 else "white", font)
    return sheet


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
