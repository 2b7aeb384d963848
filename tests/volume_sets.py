"""Folders of small volumes with masks, in each format."""

from pathlib import Path

import nibabel
import numpy as np

AFFINE = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 6], [0, 1, 0, 7], [0, 0, 0, 1]])  # stored as posterior, superior, right


def volume(seed: int, shape: tuple[int, ...] = (10, 12, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Noise around -100, and a bright box of class 1 in it; a layer is ignored (255)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    low = rng.integers(1, 4, 3)
    mask[tuple(slice(a, a + 4) for a in low)] = 1
    values = (rng.normal(-100, 20, shape) + 400.0 * mask).astype(np.int16)
    mask[0] = 255
    return values, mask


def save(path: Path, values: np.ndarray, kind: str, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(path.name + kind)
    if kind == ".npy":
        np.save(file, values)
    elif kind == ".npz":
        np.savez(file, values=values, spacing=[2.0, 1.0, 1.0])
    else:
        nibabel.save(nibabel.Nifti1Image(values, affine), file)
    return file


def volumes_folder(root: Path, kind: str = ".npy", count: int = 4, parts: tuple[str, ...] = ("train", "val")) -> Path:
    for number, part in enumerate(parts):
        for i in range(count):
            values, mask = volume(10 * number + i)
            save(root / part / "images" / f"v{i}", values, kind)
            save(root / part / "masks" / f"v{i}", mask, kind)
    return root
