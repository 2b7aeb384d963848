"""A folder of images with objects in COCO's layouts: rectangles, whose boxes, polygons and run lengths are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [dict(id=7, name="cat"), dict(id=3, name="dog")]  # in this order in the file, 3 first among the labels


def rectangle(number: int, image: int, box: tuple[float, float, float, float], category: int, **more) -> dict[str, Any]:
    """An annotation of the rectangle left, top, width, height, as a polygon."""
    x, y, w, h = box
    corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    told = dict(id=number, image_id=image, category_id=category, bbox=list(box), area=w * h, iscrowd=0)
    return told | dict(segmentation=corners) | more


def run_lengths(height: int, width: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A rectangle's lengths of runs down the columns."""
    x, y, w, h = box
    mask = np.zeros((height, width), int)
    mask[y : y + h, x : x + w] = 1
    flat = mask.T.flatten()
    places = np.flatnonzero(np.diff(flat)) + 1
    return dict(size=[height, width], counts=np.diff([0, *places, flat.size]).tolist())


def content(count: int = 4, first: int = 0) -> dict[str, Any]:
    """Images of 40 x 30 pixels, 100 + first, ...; the second has no objects, the third a crowd in run lengths."""
    images = [dict(id=100 + first + i, file_name=f"{first + i}.png", width=40, height=30) for i in range(count)]
    annotations = []
    for i, image in enumerate(images):
        if i == 1:
            continue
        left = 4 + 2 * i
        annotations.append(rectangle(10 * i, image["id"], (left, 5, 12, 14), (7, 3)[i % 2]))
        if i == 2:
            crowd = dict(segmentation=run_lengths(30, 40, (24, 2, 10, 20)), iscrowd=1)
            annotations.append(rectangle(10 * i + 1, image["id"], (24, 2, 10, 20), 3, **crowd))
    return dict(images=images, annotations=annotations, categories=CATEGORIES)


def write_images(folder: Path, content: dict[str, Any]) -> None:
    """Dark images, their objects bright by category."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        pixels = np.full((image["height"], image["width"], 3), 30, np.uint8)
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = (int(side) for side in one["bbox"])
                pixels[y : y + h, x : x + w] = (240, 60, 40) if one["category_id"] == 7 else (40, 200, 240)
        Image.fromarray(pixels).save(folder / image["file_name"])


def coco_folder(root: Path, count: int = 4, *, official: bool = False) -> Path:
    """Both splits, of ``count`` images each."""
    for part, first in (("train", 0), ("val", 50)):
        told = content(count, first)
        file = (
            root / ("annotations" if official else "") / (f"instances_{part}2017.json" if official else f"{part}.json")
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told))
        write_images(root / (f"{part}2017" if official else part), told)
    return root
