"""The four small sets of benchmarks/small_folders.py, as folders train/CLASS and val/CLASS.

Textures are drawn. The others are parts of folders that you have: CIFAR-10 and Tiny ImageNet as train/CLASS and
val/CLASS, and BCCD's blood cells in COCO's layout (train.json, val.json), of which the boxes are cut out.
"""

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

TEXTURES = ("stripes", "checks", "dots", "rings", "bricks")
SIDE = 96  # pixels of a drawn texture


def texture(kind: str, rng: np.random.Generator) -> Image.Image:
    """A texture at a random scale, angle, place and colours, under noise and a shadow."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 22)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE) - rng.uniform(0, SIDE) for _ in range(2)]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y = np.einsum("ij,jhw->ihw", turn, grid) / period
    cell = np.stack([x - np.floor(x), y - np.floor(y)]) - 0.5
    if kind == "stripes":
        wave = np.abs(cell[0]) < 0.25
    elif kind == "checks":
        wave = (np.floor(x) + np.floor(y)) % 2 == 0
    elif kind == "dots":
        wave = np.hypot(*cell) < 0.32
    elif kind == "rings":
        wave = np.abs(np.hypot(*cell) - 0.33) < 0.1
    else:
        shifted = x + 0.5 * (np.floor(2 * y) % 2)
        wave = (shifted - np.floor(shifted) < 0.12) | (2 * y - np.floor(2 * y) < 0.2)
    fore, back = rng.uniform(0, 255, (2, 3))
    image = np.where(wave[..., None], fore, back)
    shadow = 1 - rng.uniform(0, 0.6) * np.linspace(0, 1, SIDE)[None, :, None]
    image = image * shadow + rng.normal(0, rng.uniform(5, 45), image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def draw_textures(out: Path, train: int = 60, val: int = 60) -> None:
    """``train`` and ``val`` images of each of five textures."""
    for split, count in dict(train=train, val=val).items():
        for label, kind in enumerate(TEXTURES):
            folder = out / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                texture(kind, np.random.default_rng([split == "val", label, index])).save(folder / f"{index}.png")


def part_of_folder(source: Path, out: Path, *, classes: int, train: int, val: int, seed: int = 0) -> None:
    """The first ``classes`` of a shuffled list of classes, with ``train`` and at most ``val`` images of each."""
    chosen = random.Random(seed)
    names = sorted(path.name for path in (source / "train").iterdir())
    for name in sorted(chosen.sample(names, min(classes, len(names)))):
        for split, count in dict(train=train, val=val).items():
            files = sorted((source / split / name).iterdir())
            (out / split / name).mkdir(parents=True)
            for file in chosen.sample(files, min(count, len(files))):
                shutil.copy(file, out / split / name / file.name)


def cut_boxes(source: Path, out: Path, *, most: int = 300, seed: int = 0) -> None:
    """The boxes of a COCO folder as squares with a margin of a tenth, at most ``most`` of each class and split."""
    for split in ("train", "val"):
        content = json.loads((source / f"{split}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        files = {entry["id"]: source / split / entry["file_name"] for entry in content["images"]}
        by_class = defaultdict(list)
        for entry in content["annotations"]:
            if min(entry["bbox"][2:]) >= 8:
                by_class[names[entry["category_id"]]].append((files[entry["image_id"]], entry["bbox"]))
        for name, boxes in by_class.items():
            (out / split / name).mkdir(parents=True)
            random.Random(seed).shuffle(boxes)
            for index, (file, (x, y, width, height)) in enumerate(boxes[:most]):
                half = 0.55 * max(width, height)
                corners = (x + width / 2 - half, y + height / 2 - half, x + width / 2 + half, y + height / 2 + half)
                with Image.open(file) as image:
                    image.convert("RGB").crop(tuple(map(round, corners))).save(out / split / name / f"{index}.png")
