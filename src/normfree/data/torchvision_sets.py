"""The data sets that torchvision knows, by name ("torchvision:CIFAR10"): found on disk, else downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from .array_splits import Labels, array_split, labels_of
from .held_out import HeldOut, NoTestImages, hold_out
from .idx import find_idx, read_idx
from .pcam import CLASSES, patches
from .sources import ArraySplit, FolderSplit, Source
from .tables import without_images
from .torchvision_places import SETS, Named, idx_folder, placed, torchvision_class


def torchvision_set(
    text: str, channels: int = 3, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
) -> Source[Any]:
    """A set for classification by its name in torchvision: "NAME", or "NAME:FOLDER" where it lies.

    Args:
        held_out: as of :func:`.folders.open_source`.
        known: classes of a network that is measured: ``train`` is empty then.

    Raises:
        UsageError: an unknown name; the set is neither there nor can be downloaded; damaged files.
    """
    name, root = placed(text, SETS, "classification")
    about = SETS[name]
    if about.test is None and held_out is None and known is None:
        raise NoTestImages(
            f"data.source: torchvision's {name} has no test images; --data.val_fraction 0.1 holds a tenth of the "
            "images out"
        )
    if about.test is not None and held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {name} has test images of its own")
    parts = [] if known is not None and about.test is not None else [about.train]
    parts += [] if about.test is None else [about.test]
    splits, classes = [], list[str]()
    for arguments in parts:
        split, names = _opened(name, about, root, arguments, channels)
        splits.append(split)
        classes = classes or names
    if len(splits) == 2:
        notes = [f"{about.unused} of {name} not used; test is what is tested on"] if about.unused else []
        return Source(splits[0], splits[1], classes, (*notes, *_not_tested(splits[1], classes)))
    if known is not None:
        nothing = ArraySplit(torch.zeros(0, channels, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "")
        return Source(nothing, splits[0], classes, tuple(_not_tested(splits[0], classes)))
    assert held_out is not None  # else there would be nothing to test on, which is refused above
    groups = [classes[splits[0].label(index)] for index in range(len(splits[0]))]
    train, test, held_out, told = hold_out(held_out, splits[0], root, groups)
    return Source(train, test, classes, tuple(told), held_out=held_out)


def pet_masks(root: Path) -> list[list[tuple[str, str]]]:
    """Images and trimaps (1 the animal, 2 background, 3 the border between them) of OxfordIIITPet's two splits."""
    splits = []
    for arguments in (SETS["OxfordIIITPet"].train, SETS["OxfordIIITPet"].test):
        images = _made("OxfordIIITPet", root, arguments or {})
        splits.append([(str(a), str(b)) for a, b in zip(images._images, images._segs, strict=True)])
    return splits


def _made(name: str, root: Path, arguments: dict[str, Any], **more: Any) -> Any:
    """torchvision's data set."""
    try:
        return torchvision_class(name)(str(root), **arguments, **more)
    except Exception as error:  # whatever is missing or damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"data.source: torchvision cannot open {name} in {root}: {reason}") from error


def _opened(name: str, about: Named, root: Path, arguments: dict[str, Any], channels: int) -> tuple[Any, list[str]]:
    """A split and the names of its classes."""
    part = "train" if arguments == about.train else "test"
    prefix = str(root / name / part)
    if about.images == "idx":
        images, labels = _idx(root, about, about.files[part != "train"])
        named = getattr(torchvision_class(name), "classes", None)
        if "split" in arguments:
            named = torchvision_class(name).classes_split_dict[arguments["split"]]
        said = labels_of(labels, prefix, "class")
        return array_split(images, said, prefix, channels), _names(named, said)
    if about.images == "arrays":
        found = _made(name, root, arguments, **(dict(download=False) if name == "SEMEION" else {}))
        labels = found.targets if hasattr(found, "targets") else found.labels
        said = labels_of(np.asarray(labels).astype(np.int64), prefix, "class")
        split = array_split(np.ascontiguousarray(found.data), said, prefix, channels)
        return split, _names(getattr(found, "classes", None), said)
    if about.images == "hdf5":
        return patches(root, arguments["split"], channels), CLASSES
    samples, named = _files(name, root, arguments)
    if not samples:
        raise UsageError(f"data.source: {name} in {root} holds no images")
    said = Labels(torch.tensor([label for _, label in samples]))
    return FolderSplit(samples, channels), _names(named, said)


def _idx(root: Path, about: Named, first: str) -> tuple[np.ndarray, np.ndarray]:
    folder = idx_folder(root, about) or root
    found = []
    for name in (f"{first}-images-idx3-ubyte", f"{first}-labels-idx1-ubyte"):
        path = find_idx(folder, name)
        if path is None:
            raise UsageError(f"data.source: {folder / name} is missing")
        found.append(read_idx(path))
    return found[0], found[1]


def _files(name: str, root: Path, arguments: dict[str, Any]) -> tuple[list[tuple[str, int]], Sequence[Any] | None]:
    """The files of a split with their labels, and names of classes. Nothing is decoded."""
    if name == "OxfordIIITPet":
        pets = _made(name, root, arguments)
        return [(str(path), label) for path, label in zip(pets._images, pets._labels, strict=True)], pets.classes
    if name == "GTSRB":
        signs = _made(name, root, arguments)
        return [(str(path), label) for path, label in signs._samples], None
    if name in ("Caltech101", "Caltech256"):
        made = _made(name, root, arguments)
        inner = Path(made.root) / SETS[name].there.partition("/")[2]
        pattern = "image_{1:04d}.jpg" if name == "Caltech101" else "{0:03d}_{1:04d}.jpg"
        places = zip(made.y, made.index, strict=True)
        return [(str(inner / made.categories[y] / pattern.format(y + 1, i)), y) for y, i in places], made.categories
    made = _made(name, root, arguments, loader=str)  # whose samples are paths then
    return [made[index] for index in range(len(made))], made.classes


def _names(named: Sequence[Any] | None, said: Labels) -> list[str]:
    """Names of classes as text, each once; numbers where there are none."""
    texts = [str(one if isinstance(one, str) else one[0]) for one in named or ()]
    texts += [str(number) for number in range(len(texts), said.count)]
    return texts if len(set(texts)) == len(texts) else [f"{text} ({number})" for number, text in enumerate(texts)]


def _not_tested(split: Any, classes: list[str]) -> list[str]:
    return without_images({split.label(index) for index in range(len(split))}, classes)
