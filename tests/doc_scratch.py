"""The files that the documentation speaks of: small ones, made when a page names them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import coco_files
import image_files
import pair_files
import timm
import torch
import volume_sets

from normfree.cli import main


def train(folder: Path, *options: str) -> None:
    assert main(["train", "--quiet", "--train.device", "cpu", "--out", str(folder), *options]) == 0


def photos(folder: Path) -> None:
    image_files.folder(folder)


def all_photos(folder: Path) -> None:
    photos(folder)
    shutil.move(folder / "train", folder.with_name("kept"))
    shutil.rmtree(folder)
    shutil.move(folder.with_name("kept"), folder)


def new_photos(folder: Path) -> None:
    for seed in range(4):
        image_files.write(folder / f"{seed}.png", image_files.pixels(60, 80, seed))


def photo(file: Path) -> None:
    image_files.write(file, image_files.pixels(60, 80))


def digit(file: Path) -> None:
    image_files.write(file, image_files.pixels(8, 8), "L")


def new_digits(folder: Path) -> None:
    for seed in range(4):
        image_files.write(folder / f"{seed}.png", image_files.pixels(8, 8, seed), "L")


def table(heading: str, *labels: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        rows = [f"img/{i}.png,{labels[i % len(labels)]}" for i in range(12)]
        file.write_text("\n".join([heading, *rows]) + "\n")
        for i in range(12):
            image_files.write(file.parent / "img" / f"{i}.png", image_files.pixels(20, 20, i))

    return write


def checkpoint(file: Path) -> None:
    model = timm.create_model("nf_resnet50", num_classes=3)
    torch.save(dict(state_dict=model.state_dict(), epoch=1), file)


def run(*options: str) -> Callable[[Path], None]:
    return lambda folder: train(folder, *options)


def first_record(folder: Path) -> None:
    train(folder, "--train.steps", "60", "--optim.warmup_epochs", "1", "--optim.ema_decay", "0.9")


MAKERS: dict[str, Callable[[Path], object]] = {
    "photos": photos,
    "all_photos": all_photos,
    "new_photos": new_photos,
    "new_digits": new_digits,
    "photo.png": photo,
    "image.png": digit,
    "labels.csv": table("file,class", "cat", "dog"),
    "tags.csv": table("file,class", "cat", "cat;dog", "dog"),
    "ages.csv": table("file,age,height", "31.5,1.72", "47,1.80", "12,1.5"),
    "model_best.pth.tar": checkpoint,
    "my_masks": pair_files.masks_folder,
    "my_depth": pair_files.depth_folder,
    "my_objects": coco_files.coco_folder,
    "runs/digits": first_record,
    "runs/demo_segmentation": run("--recipe", "demo_segmentation", "--train.steps", "3"),
    "runs/demo_depth": run("--recipe", "demo_depth", "--train.steps", "3"),
    "my_volumes": lambda folder: volume_sets.volumes_folder(folder, ".nii.gz"),
    "runs/demo_volumes": run("--recipe", "demo_volumes", "--train.steps", "3"),
    "runs/demo_detection": run("--recipe", "demo_detection", "--train.steps", "3"),
}


def fill(made: Path, here: Path, text: str) -> None:
    """Copy what ``text`` names into ``here``; ``made`` keeps it for other pages."""
    for name, make in MAKERS.items():
        if not re.search(rf"(?<![\w/]){re.escape(name)}(?![\w.-])", text):
            continue
        source = made / name
        if not source.exists():
            source.parent.mkdir(parents=True, exist_ok=True)
            make(source)
        target = here / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)
    if (made / "img").exists():
        shutil.copytree(made / "img", here / "img", dirs_exist_ok=True)
