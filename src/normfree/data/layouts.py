"""The kind of a source from the content of its folder or file: ``photos`` is short for ``imagefolder:photos``."""

from collections.abc import Iterable
from pathlib import Path

from .volume_files import ending

SPLITS = ("train", "val", "valid", "validation", "test")


def with_kind(source: str) -> str:
    """The description ``KIND:PATH`` of a source that is given as a bare path, if it is one; else as it is.

    A folder with masks or depths beside its images, volumes with masks, COCO's annotations, Pascal VOC or tar shards is
    that; any other is an image folder. A file is a table of labels (.csv), arrays of images (.npz) or NYU
    Depth v2 (.mat).
    """
    path = Path(source).expanduser()
    if not source or source == "digits":
        return source
    try:
        if path.is_dir():
            return f"{_kind(path)}:{source}"
        if path.is_file() and path.suffix == ".mat":
            return f"nyu:{source}"
        if path.is_file() and path.suffix == ".csv":
            return f"csv:{source}"
        if path.is_file() and path.suffix == ".npz":
            return f"arrays:{source}"
    except OSError:  # a name too long for a file
        pass
    return source


def targets_beside_images(folders: Iterable[str]) -> str | None:
    """ "masks" or "depths" where folders of such names hold images and their masks or depths, which are no classes."""
    names = {name.lower().removesuffix("s") for name in folders}
    return next((f"{kind}s" for kind in ("mask", "depth") if {"image", kind} <= names), None)


def _kind(folder: Path) -> str:
    for kind in ("masks", "depths"):
        places = [folder / split for split in ("", *SPLITS)]
        places = [place / kind for place in places if (place / "images").is_dir() and (place / kind).is_dir()]
        if kind == "masks" and any(ending(file) for place in places for file in place.iterdir()):
            return "volumes"
        if places:
            return "depth" if kind == "depths" else "masks"
    if any(folder.glob("annotations/instances_*.json")) or any(
        (folder / f"{split}.json").is_file() for split in SPLITS
    ):
        return "coco"
    if any((folder / inner / "SegmentationClass").is_dir() for inner in ("", "VOC2012", "VOCdevkit/VOC2012")):
        return "voc"
    if not any(child.is_dir() for child in folder.iterdir()) and any(folder.glob("*.tar")):
        return "wds"
    return "imagefolder"
