"""Images per second that one core prepares from memory: `python benchmarks/input.py`, under a minute.

Images of CIFAR-10's shape (noise: what the pixels are makes no difference) in batches of 128, padded by 4 pixels and
cropped, half of them mirrored, normalized, a square of 8 pixels cut out: what a run does with each image beside
training. Once from arrays, once from decoded PNG files that are kept in memory, and once decoded each time.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from normfree.data import Loader, Source, Split, TrainTransform
from normfree.data.memory import kept
from normfree.data.sources import ArraySplit, FolderSplit

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def rate(split: Split, images: int, batch: int) -> float:
    """Images per second of processor time, of an epoch's first batches: other programs do not count."""
    transform = TrainTransform(32, "shift", True, MEAN, STD, padding_mode="reflect", cutout=8)
    loader = Loader(split, transform, batch, shuffle=True)
    done, start = 0, time.process_time()
    for images_of_batch in loader:
        done += len(images_of_batch)
        if done >= images:
            break
    return done / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    labels = torch.arange(options.images) % 10
    with tempfile.TemporaryDirectory() as folder:
        samples = [(str(Path(folder) / f"{i}.png"), i % 10) for i in range(options.images)]
        for (path, _), image in zip(samples, pixels, strict=True):
            Image.fromarray(image).save(path, compress_level=1)
        files = FolderSplit(samples, 3)
        memory = kept(Source(files, FolderSplit(samples[:10], 3), []), True, pairs=False, passes=2)
        assert memory is not None
        print(memory.told)
        splits = {
            "arrays": ArraySplit(torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, "noise"),
            "PNG files in memory": memory.train,
            "PNG files": files,
        }
        found: dict[str, list[float]] = {name: [] for name in splits}
        for _ in range(options.repeats):
            for name, split in splits.items():
                found[name].append(rate(split, options.images, options.batch))
    for name, rates in found.items():
        print(f"{name:20} {statistics.median(rates):8,.0f} images/s (from {min(rates):,.0f} to {max(rates):,.0f})")
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
