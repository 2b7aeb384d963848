"""Folders of images with masks or depth, in the layouts that users have."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, side: int = 24, seed: int = 0) -> np.ndarray:
    """An image of two colours, left and right of a seam; returns the mask (side, side) uint8 of 0 and 1."""
    seam = 6 + seed % 12
    mask = np.zeros((side, side), np.uint8)
    mask[:, seam:] = 1
    pixels = np.where(mask[..., None] == 1, (250, 20, 30), (10, 40, 200)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return mask


def masks_folder(root: Path, count: int = 6, names: str | None = "ground\nthing\n") -> Path:
    for part in ("train", "val"):
        for i in range(count):
            mask = picture(root / part / "images" / f"{i}.png", seed=i)
            mask[0] = 255
            (root / part / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / part / "masks" / f"{i}.png")
    if names is not None:
        (root / "classes.txt").write_text(names)
    return root


def depth_folder(root: Path, count: int = 6) -> Path:
    """Even numbers as PNG in millimetres, odd ones as .npy in metres; a row is not measured."""
    for part in ("train", "val"):
        for i in range(count):
            depth = 1.5 + picture(root / part / "images" / f"{i}.png", seed=i).astype(np.float32)
            depth[0] = 0
            place = root / part / "depths" / str(i)
            place.parent.mkdir(exist_ok=True)
            if i % 2:
                np.save(f"{place}.npy", depth)
            else:
                Image.fromarray((depth * 1000).astype(np.uint16)).save(f"{place}.png")
    return root


def voc_folder(root: Path, count: int = 4, *, augmented: bool = False) -> Path:
    """VOCdevkit/VOC2012 with masks of a palette; with ``augmented``, SBD's list and folder, too."""
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = {"train": [f"2007_{i:06}" for i in range(count)], "val": [f"2008_{i:06}" for i in range(count)]}
    for part, those in names.items():
        for i, name in enumerate(those):
            mask = picture(base / "JPEGImages" / f"{name}.jpg", seed=i) * 15  # a person
            mask[:, 5] = 255
            image = Image.fromarray(mask)
            image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
            (base / "SegmentationClass").mkdir(exist_ok=True)
            image.save(base / "SegmentationClass" / f"{name}.png")
        (lists / f"{part}.txt").write_text("\n".join(those) + "\n")
    if augmented:
        mask = picture(base / "JPEGImages" / "2009_000001.jpg") * 20
        (base / "SegmentationClassAug").mkdir()
        Image.fromarray(mask).save(base / "SegmentationClassAug" / "2009_000001.png")
        (lists / "trainaug.txt").write_text("\n".join([*names["train"], "2009_000001"]))
    return root


def sbd_folder(root: Path, train: list[str], val: list[str]) -> Path:
    """ROOT/benchmark_RELEASE/dataset with masks of class 7 in .mat files, as SBD's archive unpacks."""
    from scipy.io import savemat

    base = root / "benchmark_RELEASE" / "dataset"
    (base / "cls").mkdir(parents=True)
    for part, names in (("train", train), ("val", val)):
        for i, name in enumerate(names):
            mask = picture(base / "img" / f"{name}.jpg", seed=i) * 7
            content = dict(Boundaries=np.zeros((20, 1)), Segmentation=mask, CategoriesPresent=np.array([7], np.uint8))
            savemat(base / "cls" / f"{name}.mat", dict(GTcls=content))
        (base / f"{part}.txt").write_text("\n".join(names) + "\n")
    return base


def nyu_file(root: Path, count: int = 6) -> Path:
    """A labelled .mat of HDF5 as MATLAB writes it, transposed, and the split; images of 16 x 12 pixels."""
    import h5py
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (count, 3, 16, 12), dtype=np.uint8)  # (N, C, W, H)
        file["depths"] = rng.uniform(1, 5, (count, 16, 12)).astype(np.float32)
    split = dict(trainNdxs=np.arange(1, count - 1)[:, None], testNdxs=np.array([[count - 1], [count]]))
    savemat(root / "splits.mat", split)
    return root / "nyu_depth_v2_labeled.mat"
