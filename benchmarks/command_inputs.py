"""The inputs of command_lines.py, made of random numbers of one seed: images, tables, masks, boxes, shards, weights."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import tifffile
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

OWN_NETWORK = """\
from torch import nn


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
"""
OWN_RECIPE = """\
# A recipe of one's own.
model: {name: nf_resnet26_small, options: {depths: [1, 1, 1], widths: [16, 16, 32], activation: silu}}
data: {source: "synthetic:24", image_size: 16, test_size: 16, workers: 0}
optim: {lr: 0.05, warmup_epochs: 0, clipping: 0.04, lr_drops: [0.5], frozen: [stem]}
train: {batch_size: 4, steps: 3, log_every: 1, eval_every: 0.25, keep_every: 2}
"""


def pixels(random: np.random.Generator, side: int = 24, level: int = 0) -> np.ndarray:
    """Noise of (side, side, 3) uint8, above a level."""
    return (random.integers(0, 60, (side, side, 3)) + level).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def make(root: Path) -> None:
    """All of them, in a folder that is made here."""
    random = np.random.default_rng(0)
    root.mkdir()
    for part, count in (("train", 6), ("val", 3)):
        for name, level in (("cat", 20), ("dog", 150)):
            for i in range(count):
                write(root / "photos" / part / name / f"{i}.png", pixels(random, 20 + i, level))
    odd_images(root / "odd", random)
    tables(root / "tables", random)
    for part in ("train", "val"):
        pairs(root, part, random)
    boxes(root / "coco")
    shards(root / "shards", random)
    (root / "own.py").write_text(OWN_NETWORK)
    (root / "own.yaml").write_text(OWN_RECIPE)
    (root / "broken.yaml").write_text("model: {name: nf_resnet26_small\n")
    torch.manual_seed(0)
    save_file(timm.create_model("test_nfnet", num_classes=10).state_dict(), root / "theirs.safetensors")


def odd_images(folder: Path, random: np.random.Generator) -> None:
    """Of 16 bits, with transparency, of five bands; and a file that is none."""
    write(folder / "deep.png", random.integers(0, 60000, (20, 30)).astype(np.uint16))
    write(folder / "clear.png", random.integers(0, 255, (30, 20, 4)).astype(np.uint8))
    tifffile.imwrite(folder / "bands.tif", random.random((16, 16, 5)).astype(np.float32))
    (folder / "text.png").write_text("no image\n")


def tables(folder: Path, random: np.random.Generator) -> None:
    multi, numbers = ["file,class"], ["file,left,right"]
    for i, (left, right) in enumerate(random.integers(0, 190, (16, 2)).tolist()):
        image = pixels(random)
        image[:, :12] += np.uint8(left)
        image[:, 12:] += np.uint8(right)
        write(folder / "images" / f"{i}.png", image)
        names = [name for name, level in (("left", left), ("right", right)) if level > 95]
        multi.append(f"images/{i}.png,{';'.join(names)}")
        numbers.append(f"images/{i}.png,{left + 1000},{right / 1000}")
    for name, lines in (("multi", multi), ("numbers", numbers), ("broken", ["file", *multi[1:]])):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def pairs(root: Path, part: str, random: np.random.Generator) -> None:
    """Images of two halves, with masks of 0 and 200 and with depth in millimetres or, of odd numbers, metres."""
    for i in range(4):
        right = np.zeros((24, 24), bool)
        right[:, 8 + 2 * i :] = True
        image = np.where(right[..., None], pixels(random, level=150), pixels(random))
        for kind in ("masks", "depth"):
            write(root / kind / part / "images" / f"{i}.png", image)
        write(root / "masks" / part / "masks" / f"{i}.png", np.where(right, 200, 0).astype(np.uint8))
        depth = np.where(right, 2.5, 1.5).astype(np.float32)
        place = root / "depth" / part / "depths" / f"{i}.png"
        write(place, (depth * 1000).astype(np.uint16))
        if i % 2:
            place.unlink()
            np.save(place.with_suffix(".npy"), depth)
    (root / "masks" / "classes.txt").write_text("ground\nthing\n")


def boxes(root: Path) -> None:
    """A bright rectangle on each image, as a polygon in COCO's format."""
    for part, first in (("train", 0), ("val", 50)):
        images, annotations = [], []
        for i in range(first, first + 4):
            x, y, w, h, category = 4 + i % 10, 5, 12, 14, (7, 3)[i % 2]
            image = np.full((30, 40, 3), 30, np.uint8)
            image[y : y + h, x : x + w] = (240, 60, 40) if category == 7 else (40, 200, 240)
            write(root / part / f"{i}.png", image)
            images.append(dict(id=100 + i, file_name=f"{i}.png", width=40, height=30))
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            told = dict(id=i, image_id=100 + i, category_id=category, bbox=[x, y, w, h], area=w * h, iscrowd=0)
            annotations.append(told | dict(segmentation=corners))
        categories = [dict(id=7, name="cat"), dict(id=3, name="dog")]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f"{part}.json").write_text(json.dumps(content))


def shards(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir()
    for name, numbers in (("set-train-0000", range(6)), ("set-train-0001", range(6, 12)), ("set-val-0000", range(3))):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for n in numbers:
                picture = io.BytesIO()
                Image.fromarray(pixels(random, 16, 60 * (n % 3))).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", str(n % 3).encode())):
                    member = tarfile.TarInfo(f"{n:05}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
