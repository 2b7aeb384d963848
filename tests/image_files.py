"""Image files and folders made up for a test."""

from pathlib import Path

import numpy as np
from PIL import Image

from normfree.data.exif import ORIENTATION

BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition from shown to stored pixels


def pixels(height: int = 10, width: int = 12, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, array: np.ndarray | None = None, mode: str | None = None, **options) -> Path:
    """An image file of ``array`` (noise where None), converted to a PIL mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels() if array is None else array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def break_file(path: Path) -> Path:
    """An image file that ends in the middle."""
    write(path, pixels(40, 40))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 4, val: int = 2) -> Path:
    """ROOT/train/CLASS/*.png and ROOT/val/CLASS/*.png; classes differ in brightness."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for i in range(count):
                image = pixels(9 + i, 12, seed=i) // 4 + np.uint8(160 * label // max(1, len(classes) - 1))
                write(root / split / name / f"{i}.png", image)
    return root


def turn(path, orientation, shown=True):
    """Give a photo an EXIF orientation: what was in the file is ``shown`` then, or stays what is stored."""
    with Image.open(path) as image:
        image = image.copy()
    if shown and BACK[orientation] is not None:
        image = image.transpose(BACK[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
