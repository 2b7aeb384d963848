"""Tiny data sets as torchvision has them on disk."""

import gzip
import hashlib
import pickle
from pathlib import Path

import image_files
import numpy as np
from PIL import Image
from torchvision import datasets

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def idx(array: np.ndarray) -> bytes:
    """The file of an array of bytes as MNIST has it."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist(folder: Path, packed: bool = False, train: int = 12, test: int = 6) -> Path:
    """The four files of MNIST and its like."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (first, count) in enumerate((("train", train), ("t10k", test))):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count) % 10)):
            path, content = folder / f"{first}-{name}-ubyte", idx(array)
            if packed:
                path = path.with_name(f"{path.name}.gz")
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def cifar10(root: Path, monkeypatch, each: int = 4) -> Path:
    """CIFAR-10 with few images; torchvision is told the hashes of these files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(seed: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).integers(0, 256, (each, 3072), dtype=np.uint8)
        return dict(data=pixels, labels=[(seed + i) % 10 for i in range(each)])

    names = [f"data_batch_{i}" for i in range(1, 6)]
    train = [[name, write(name, batch(i))] for i, name in enumerate(names)]
    test = [["test_batch", write("test_batch", batch(9))]]
    meta = dict(filename="batches.meta", key="label_names", md5=write("batches.meta", dict(label_names=CLASSES)))
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return root


def pets(root: Path, each: int = 3) -> Path:
    """Oxford-IIIT Pet: two breeds, with trimaps of an animal (1) on the left, its border (3), and background (2)."""
    base = root / "oxford-iiit-pet"
    (base / "annotations" / "trimaps").mkdir(parents=True)
    for part, first in (("trainval", 0), ("test", each)):
        lines = []
        for label, name in ((1, "Abyssinian"), (2, "yorkshire_terrier")):
            for i in range(first, first + each):
                image = image_files.pixels(20, 24, seed=i) // 4 + np.uint8(90 * label)
                image_files.write(base / "images" / f"{name}_{i}.jpg", image)
                mask = np.full((20, 24), 2, np.uint8)
                mask[:, :10], mask[:, 10] = 1, 3
                Image.fromarray(mask).save(base / "annotations" / "trimaps" / f"{name}_{i}.png")
                lines.append(f"{name}_{i} {label} {label} 1")
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def voc_objects(root: Path, each: int = 3) -> Path:
    """Pascal VOC 2012 for detection: a cat, and a difficult dog at the right border, in images of 40 x 30."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    found = "<object><name>{}</name>{}<bndbox><xmax>{}</xmax><xmin>{}</xmin><ymin>{}</ymin><ymax>{}</ymax></bndbox>"
    for part, first in (("train", 0), ("val", each)):
        stems = [f"2008_{i:06}" for i in range(first, first + each)]
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for i, stem in enumerate(stems):
            image_files.write(base / "JPEGImages" / f"{stem}.jpg", image_files.pixels(30, 40, seed=i))
            objects = found.format("cat", "", 11 + i, 1, 3, 22) + "</object>"
            objects += found.format("dog", "<difficult>1</difficult>", 40, 21, 1, 30) + "</object>"
            size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
            text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
            (base / "Annotations" / f"{stem}.xml").write_text(text)
    return root


def pcam(root: Path, each: int = 6) -> Path:
    """PatchCamelyon's HDF5 files; every other image is of class 1."""
    import h5py

    (root / "pcam").mkdir(parents=True)
    for seed, part in enumerate(("train", "valid", "test")):
        pixels = np.random.default_rng(seed).integers(0, 256, (each, 96, 96, 3), dtype=np.uint8)
        labels = (np.arange(each, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)
        for kind, array in (("x", pixels), ("y", labels)):
            with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file[kind] = array
    return root


def imagenette(root: Path, each: int = 3) -> Path:
    """Imagenette with two of its classes."""
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            for i in range(each):
                path = root / "imagenette2" / part / wnid / f"{i}.JPEG"
                image_files.write(path, image_files.pixels(16 + i, 18, seed=i), format="jpeg")
    return root


def eurosat(root: Path, each: int = 6) -> Path:
    """EuroSAT with two classes; it has no test split."""
    for label, name in enumerate(("Forest", "River")):
        for i in range(each):
            path = root / "eurosat" / "2750" / name / f"{name}_{i}.jpg"
            image_files.write(path, image_files.pixels(12, 12, seed=i) // 4 + np.uint8(90 * label))
    return root
