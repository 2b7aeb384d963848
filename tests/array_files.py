"""Arrays of images made up for a test."""

from pathlib import Path

import numpy as np


def images(count: int = 12, side: int = 8, channels: int | None = 3, classes: int = 3, seed: int = 0) -> np.ndarray:
    """(N, H, W[, C]) uint8 noise, brighter with each class; the labels count through them."""
    shape = (count, side, side) if channels is None else (count, side, side, channels)
    noise = np.random.default_rng(seed).integers(0, 60, shape, dtype=np.uint8)
    return noise + (np.arange(count) % classes * (190 // classes)).astype(np.uint8).reshape(-1, *[1] * (len(shape) - 1))


def labels(count: int = 12, classes: int = 3) -> np.ndarray:
    """(N,) uint8."""
    return (np.arange(count) % classes).astype(np.uint8)


def write(path: Path, parts: dict[str, int] | None = None, style: str = "{}_images {}_labels", **more) -> Path:
    """A .npz file with so many images of each part."""
    arrays = dict(more)
    for seed, (part, count) in enumerate((parts or dict(train=12, test=6)).items()):
        for name, value in zip(style.split(), (images(count, seed=seed), labels(count)), strict=True):
            arrays.setdefault(name.format(part), value)
    np.savez(path, **arrays)
    return path
