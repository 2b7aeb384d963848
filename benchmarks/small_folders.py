"""Small folders by the plain command, beside timm's resnet18 with AdamW for the same processor time.

    python benchmarks/small_folders.py --cifar10 CIFAR10 --tiny-imagenet TINY --bccd BCCD [--init RUN] [--sets textures]

Textures are drawn; the other sets are parts of folders that you have (see small_sets.py), and are left out where no
folder is given. Ours is `normfree train FOLDER`, with nothing but that (and --init). timm's network is trained from
scratch at the same size of images: its transforms, its AdamW and its cosine schedule, which follows the processor time
that ours took. One thread each; processor time, so that other programs do not count. Test accuracy in percent, the
median of the seeds and each of them.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import small_sets
import torch
from PIL import Image
from torch import Tensor, nn

from normfree.recipes import load_recipe
from normfree.runs import train
from normfree.training import read_metrics

WARMUP, TICKS = 50, 1000  # of timm's schedule: a twentieth of the time


def ours(folder: Path, seed: int, init: str | None) -> tuple[float, float, int]:
    """Accuracy of the averaged weights, processor seconds, and side of the images."""
    start = time.process_time()
    overrides = {"data.source": str(folder), "train.seed": seed, "train.threads": 1, "data.workers": 0}
    with tempfile.TemporaryDirectory() as out:
        run = train(overrides=overrides, out=Path(out) / "run", init=init, progress=False)
        seconds = time.process_time() - start
        last = [line for line in read_metrics(run.folder) if line["kind"] == "eval"][-1]
        side = load_recipe(str(run.folder / "recipe.yaml")).data.image_size
    return 100 * last["ema_top1"], seconds, side


def theirs(folder: Path, seed: int, seconds: float, side: int, lr: float, batch: int = 32) -> tuple[float, int]:
    """Accuracy of timm's resnet18 after so many processor seconds, and the images that it has seen."""
    import timm
    from timm.data import create_transform
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    torch.manual_seed(seed)
    sets = {name: opened(folder / name) for name in ("train", "val")}
    model = timm.create_model("resnet18", pretrained=False, num_classes=len(os.listdir(folder / "train")))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=TICKS, warmup_t=WARMUP, warmup_lr_init=1e-6, lr_min=0)
    augment, view = (create_transform(side, is_training=training, crop_pct=1.0) for training in (True, False))
    criterion, seen, start = nn.CrossEntropyLoss(label_smoothing=0.1), 0, time.process_time()
    model.train()
    while (part := (time.process_time() - start) / seconds) < 1:
        for indices in torch.randperm(len(sets["train"])).split(batch):
            schedule.step(round(TICKS * part))
            images, labels = batched([sets["train"][i] for i in indices], augment)
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
            seen += len(labels)
            if (part := (time.process_time() - start) / seconds) >= 1:
                break
    model.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(sets["val"]), batch):
            images, labels = batched(sets["val"][i : i + batch], view)
            right += int((model(images).argmax(1) == labels).sum())
    return 100 * right / len(sets["val"]), seen


def opened(folder: Path) -> list[tuple[Image.Image, int]]:
    """Images in memory, with labels."""
    return [
        (Image.open(path).convert("RGB"), label)
        for label, name in enumerate(sorted(path.name for path in folder.iterdir()))
        for path in sorted((folder / name).iterdir())
    ]


def batched(entries: list[tuple[Image.Image, int]], transform) -> tuple[Tensor, Tensor]:
    return torch.stack([transform(image) for image, _ in entries]), torch.tensor([label for _, label in entries])


def made(options: argparse.Namespace, out: Path) -> dict[str, Path]:
    """The sets that are asked for and can be made, by name."""
    if "textures" in options.sets:
        small_sets.draw_textures(out / "textures")
    if options.bccd and "cells" in options.sets:
        small_sets.cut_boxes(options.bccd, out / "cells")
    if options.cifar10 and "cifar" in options.sets:
        small_sets.part_of_folder(options.cifar10, out / "cifar", classes=10, train=400, val=200)
    if options.tiny_imagenet and "tiny" in options.sets:
        small_sets.part_of_folder(options.tiny_imagenet, out / "tiny", classes=20, train=20, val=50)
    return {path.name: path for path in sorted(out.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "tiny-imagenet", "bccd"):
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    parser.add_argument("--init", metavar="RUN", help="train ours from these weights as well")
    parser.add_argument("--sets", nargs="+", default=["textures", "cells", "tiny", "cifar"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--timm-lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = ("set", "images", "classes", "seconds", "normfree", "timm resnet18", "normfree with --init")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    folder = Path(tempfile.mkdtemp())
    try:
        for name, path in made(options, folder).items():
            found: dict[str, list[float]] = {"ours": [], "theirs": [], "tuned": []}
            seconds = []
            for seed in range(options.seeds):
                score, took, side = ours(path, seed, None)
                found["ours"].append(score)
                seconds.append(took)
                found["theirs"].append(theirs(path, seed, took, side, options.timm_lr)[0])
                if options.init:
                    found["tuned"].append(ours(path, seed, options.init)[0])
            images = sum(1 for file in (path / "train").rglob("*") if file.is_file())
            scores = [
                f"{statistics.median(s):.1f} ({', '.join(f'{x:.1f}' for x in s)})" if s else "-" for s in found.values()
            ]
            columns = [name, f"{images:,}", str(len(os.listdir(path / "train"))), f"{statistics.median(seconds):.0f}"]
            print(f"| {' | '.join(columns + scores)} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
