"""Training images per second on one core, ours and timm's: `python benchmarks/pipeline.py` (three minutes).

200 JPEG files of about 500 x 375 pixels, made from scikit-learn's two photographs, go through both loaders without
workers: random crop, flip, 192 pixels, MixUp and CutMix, four RandAugment operations at magnitude 5, normalization.
Both sides alternate in one run. Not the same, and to be kept in mind: ours makes an image of two decoded ones and then
augments it, as the papers do; timm mixes a batch with itself in reverse, after augmentation. So timm decodes and
augments one image per output, ours decodes two and augments one: hence a line per image out and one per image decoded.
timm's resize is antialiased, its RandAugment on PIL images. Last, ours stage by stage.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from normfree.data import Loader, Mixing, RandAugment, TrainTransform, decode_image, normalize
from normfree.data.mixing import to_uint8
from normfree.data.sources import FolderSplit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_files(folder: Path, count: int) -> list[tuple[str, int]]:
    """JPEGs of random parts of the photographs, shrunk or enlarged a little; (path, label)."""
    draw, photographs = np.random.default_rng(0), [Image.fromarray(image) for image in load_sample_images().images]
    samples = []
    for i in range(count):
        part = draw.uniform(0.6, 1)
        width, height = int(640 * part), int(427 * part)
        left, top = draw.integers(640 - width + 1), draw.integers(427 - height + 1)
        size = int(500 * draw.uniform(0.9, 1.1)), int(375 * draw.uniform(0.9, 1.1))
        image = photographs[i % 2].crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + draw.normal(0, 4, (*size[::-1], 3))  # enlarging took the grain of a photograph
        path = folder / str(i % 2) / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=int(draw.integers(85, 97)))
        samples.append((str(path), i % 2))
    return samples


def ours(samples: list[tuple[str, int]], size: int, batch: int) -> Loader:
    transform = TrainTransform(size, "distorted", True, MEAN, STD, RandAugment(4, 5.0))
    return Loader(FolderSplit(samples, 3), transform, batch, shuffle=True, mixing=Mixing(0.2, 1.0))


def theirs(folder: Path, size: int, batch: int) -> Callable[[], Iterable]:
    loader = timm.data.create_loader(
        timm.data.ImageDataset(str(folder)),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        auto_augment="rand-m5-n4",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
        pin_memory=False,
    )
    mixup = timm.data.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=2)
    return lambda: (mixup(images, labels)[0] for images, labels in loader)


def compare(folder: Path, samples: list[tuple[str, int]], size: int, batch: int, rounds: int) -> None:
    loader, other = ours(samples, size, batch), theirs(folder, size, batch)
    times: dict[str, list[float]] = {"ours": [], "timm": []}
    for number in range(rounds + 1):
        loader.set_epoch(number)
        for name, images in (("ours", (b.images for b in loader)), ("timm", other())):
            begun = time.perf_counter()
            seen = sum(len(part) for part in images)
            times[name].append((time.perf_counter() - begun) / seen)
    print(f"{'images per second of one core':36} {'ours':>16} {'timm':>16} {'ours / timm':>16}")
    for what, decoded in (("made, of 2 decoded (ours), 1 (timm)", 1), ("decoded", 2)):
        ratios = [decoded * b / a for a, b in zip(times["ours"][1:], times["timm"][1:], strict=True)]
        rates = [[n / t for t in times[name][1:]] for name, n in (("ours", decoded), ("timm", 1))]  # the first warms up
        print(f"{what:36} {spread(rates[0], '.0f')} {spread(rates[1], '.0f')} {spread(ratios, '.2f')}")


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{f'{middle:{form}} ({low:{form}}..{high:{form}})':>16}"


def stages(samples: list[tuple[str, int]], size: int, rounds: int) -> None:
    """Each on all images, the median of the rounds; ms per image that goes in."""
    draw, mixing, augment = torch.Generator().manual_seed(0), Mixing(0.2, 1.0), RandAugment(4, 5.0)
    transform, count = TrainTransform(size, "distorted", True, MEAN, STD), len(samples)
    steps: dict[str, Callable] = {
        "decode": lambda i, _: decode_image(samples[i][0]),
        "crop, resize, flip": lambda i, image: transform.view(image, draw),
        "mix two": lambda i, image: mixing(image, image, i, count, draw)[0],
        "to uint8, RandAugment": lambda i, image: augment(to_uint8(image), draw),
        "normalize": lambda i, image: normalize(image, MEAN, STD),
    }
    inputs: list = [None] * count
    print("ours, per image that goes in:")
    for name, step in steps.items():
        taken = []
        for _ in range(rounds):
            begun = time.perf_counter()
            outputs = [step(i, x) for i, x in enumerate(inputs)]
            taken.append(1e3 * (time.perf_counter() - begun) / count)
        inputs = outputs
        print(f"  {name:24} {spread(taken, '.2f')} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        samples = make_files(Path(name), options.images)
        sizes = [os.path.getsize(path) for path, _ in samples]
        compare(Path(name), samples, options.size, options.batch, options.rounds)
        stages(samples, options.size, max(3, options.rounds // 3))
    names = ("torch", "timm", "torchvision", "pillow", "numpy")
    print(
        f"{options.images} JPEG files of {statistics.mean(sizes) / 1000:.0f} kB, {options.size} px, "
        f"batch {options.batch}, {options.rounds} alternating rounds, median (middle half); "
        f"one thread of {os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}); "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    )


if __name__ == "__main__":
    main()
