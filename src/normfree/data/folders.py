"""Opening a source of labelled images: class folders, tables of labels, shards, embedded images, noise."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import regular
from . import shards, tables
from .decode import EXTENSIONS
from .held_out import HeldOut, NoTestImages, hold_out
from .hub_sets import hub_set
from .layouts import targets_beside_images
from .npz import array_file
from .sources import (
    KINDS,
    VALIDATION_NAMES,
    FolderSplit,
    Source,
    TargetSplit,
    check_channels,
    csv_paths,
    digits,
    synthetic,
    unknown_source,
)
from .splits import Split
from .tables import LABELS, without_images
from .torchvision_sets import torchvision_set
from .walk import Walk

ANSWERS = ("class", "classes", "numbers")  # labels of an image: one class, several, or numbers


def open_source(
    source: str, channels: int = 3, *, answers: str = "class", held_out: HeldOut | None = None
) -> Source[Split]:
    """A source by its description: "digits", "imagefolder:PATH", "csv:...", "wds:...", "synthetic:N[,CLASSES]", ...

    >>> source = open_source("synthetic:20,5")
    >>> len(source.train), len(source.test), source.classes
    (20, 2, ['0', '1', '2', '3', '4'])

    Args:
        answers: what images are labelled with, one of :data:`ANSWERS`.
        held_out: which images are for testing, of a source without a test split.

    Raises:
        UsageError: unknown kind; see :func:`digits`, :func:`image_folder`, :func:`csv_files`, :func:`.shards.shards`,
            :func:`.npz.array_file`, :func:`.torchvision_sets.torchvision_set`, :func:`.hub_sets.hub_set`,
            :func:`synthetic`; a kind that has other answers, or a test split of its own.
    """
    kind, _, rest = source.partition(":")
    check_channels(kind, channels)
    if kind == "imagefolder":
        return image_folder(rest, channels, answers=answers, held_out=held_out)
    if kind == "csv":
        return csv_files(rest, channels, answers=answers, held_out=held_out)
    if kind == "arrays":
        return array_file(rest, channels, answers=answers, held_out=held_out)
    if kind == "hf":
        return hub_set(rest, channels, answers=answers, held_out=held_out)
    if kind not in ("digits", "wds", "torchvision", "synthetic") or (kind == "digits" and rest):
        kinds = ("digits", "imagefolder", "csv", "wds", "arrays", "torchvision", "hf", "synthetic")
        raise unknown_source(source, kinds, f"is unknown; it must be {KINDS}")
    if answers != "class":
        raise UsageError(f"data.source (={source!r}) has one class per image; {answers} need a {LABELS}")
    if kind == "torchvision":
        return torchvision_set(rest, channels, held_out=held_out)
    if held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {source} has test images of its own")
    if kind == "wds":
        return Source(*shards.shards(rest, channels))
    return digits(channels) if kind == "digits" else synthetic(rest, channels)


def image_folder(
    path: str, channels: int = 3, *, answers: str = "class", held_out: HeldOut | None = None
) -> Source[Split]:
    """PATH/train/CLASS/* and PATH/val/CLASS/* (or valid, validation, test); PATH/labels.csv; or PATH/CLASS/*.

    In this order, for one class per image; for other answers PATH/labels.csv, see :func:`csv_files`, or two of them,
    PATH/train/labels.csv and PATH/val/labels.csv.

    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
    ...     (folder / name).mkdir(parents=True)
    ...     Image.new("RGB", (8, 8)).save(folder / name / "1.png")
    >>> source = image_folder(str(folder))
    >>> source.classes, len(source.train), source.test.label(1)
    (['cat', 'dog'], 2, 1)

    Args:
        answers, held_out: as of :func:`open_source`.

    Raises:
        UsageError: a folder is missing or empty; a class has no training images; there is no test split and
            ``held_out`` is None, or there is one and ``held_out`` is not None.
    """
    root = _root(path)
    train, test = root / "train", _validation(root)
    walk = Walk()
    folder = train if train.is_dir() or test is not None else root
    by_class = folder != root and folder.is_dir() and bool(walk.folders(folder))
    csvs = [root / LABELS] if (root / LABELS).is_file() or test is None else [train / LABELS, test / LABELS]
    if all(file.is_file() for file in csvs) and (answers != "class" or not by_class):
        return csv_files(",".join(map(str, csvs)), channels, answers=answers, held_out=held_out)
    _refuse_targets(folder, root, walk)
    if answers != "class":
        raise UsageError(
            f"data.source: {root} has no {LABELS}, which {answers} of images are read from: a heading such as file,... "
            "and a row per image"
        )
    if not folder.is_dir() or (test is None and held_out is None):
        needed = "it must hold train/CLASS/*.jpg and val/CLASS/*.jpg"
        if not folder.is_dir():
            raise UsageError(f"data.source: {root} has no folder 'train'; {needed}")
        hint = "--data.val_fraction 0.1 holds a tenth of the images out instead"
        raise NoTestImages(f"data.source: {root} has no folder 'val'; {needed}; {hint}")
    return _class_folders(root, folder, test, channels, held_out)


def _class_folders(
    root: Path, folder: Path, test: Path | None, channels: int, held_out: HeldOut | None
) -> Source[Split]:
    """Class folders of training images in ``folder``, and of test images in ``test``, or some held out."""
    walk = Walk()
    classes = _classes(folder, walk)
    if len(classes) == 1:
        raise UsageError(f"{folder} holds one class folder ({classes[0]}); a classifier needs two or more classes")
    test_classes = [] if test is None else _classes(test, walk)
    if set(test_classes) - set(classes):
        differing = sorted(set(classes) ^ set(test_classes))
        one_sided = [
            f"{name} (only in {folder.name if test is None or name in classes else test.name})" for name in differing
        ]
        raise UsageError(f"classes of {folder} and {test} differ: {_listed(one_sided)}")
    split = _folder_split(folder, classes, channels, walk)
    shared = _shared_images(split, classes)
    if test is None:
        assert held_out is not None  # checked by the caller
        groups = [classes[label] for _, label in split.samples]
        return _with_held_out(split, classes, root, held_out, groups, [*walk.notes(root), *shared])
    if held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {root} has test images of its own ({test.name})")
    test_split = _folder_split(test, classes, channels, walk, full=False)
    notes = [
        *walk.notes(root),
        *_unused(root, test),
        *shared,
        *without_images({label for _, label in test_split.samples}, classes),
    ]
    return Source(split, test_split, classes, tuple(notes))


def csv_files(
    paths: str, channels: int = 3, *, answers: str = "class", held_out: HeldOut | None = None
) -> Source[Split]:
    """Images by a CSV file, see :func:`.tables.read_table`: "FILE", or "TRAIN_FILE,VAL_FILE".

    One file has a column ``split`` of train and val (or valid, validation, test), or images are held out.

    Args:
        answers, held_out: as of :func:`open_source`.

    Raises:
        UsageError: a file is not valid; there is no test split and ``held_out`` is None, or there is one and
            ``held_out`` is not None; a class has test images but no training images.
    """
    files = csv_paths(paths)
    parts = [tables.read_table(path) for path in files]
    notes = []
    if len(parts) == 1:
        notes = tables.unused(parts[0], VALIDATION_NAMES)
        parts = tables.splits_of(parts[0], VALIDATION_NAMES)
    train = tables.labelled(parts[0], answers)
    if len(train.classes) == 1 and answers == "class":
        raise UsageError(f"{files[0]} has one class ({train.classes[0]}); a classifier needs two or more classes")
    if len(parts) == 1:
        if held_out is None:
            raise NoTestImages(
                f"data.source: {files[0]} has no test images; --data.val_fraction 0.1 holds a tenth of the images out, "
                "or a column split assigns each image to train or val"
            )
        return _with_held_out(_table_split(train, channels), train.classes, files[0].parent, held_out, train.groups)
    if held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {paths} has test images of its own")
    test = tables.labelled(parts[1], answers, train.classes)
    both = sorted(set(train.files) & set(test.files))
    if both:
        raise UsageError(f"{both[0]} is both a training and a test image of {paths}")
    splits = _table_split(train, channels), _table_split(test, channels)
    return Source(*splits, train.classes, (*notes, *test.without_images()))


def open_test(
    source: str, classes: list[str], channels: int = 3, *, answers: str = "class", network: str = "the network"
) -> Source[Split]:
    """Images to evaluate a trained network on. They need no training split: ``train`` of the result is empty.

    A folder without train and val is used as it is, and so is a CSV file without a column ``split``. Classes without
    images are allowed and get a note. Other kinds are opened as in :func:`open_source`.

    >>> source = open_test("synthetic:20,5", classes=["0", "1", "2", "3", "4"])
    >>> len(source.test)
    2

    Args:
        classes: of the network.
        network: its name, for messages.

    Raises:
        UsageError: no images, or images of classes that the network does not have.
    """
    kind, _, rest = source.partition(":")
    if kind == "arrays":
        return array_file(rest, channels, answers=answers, known=classes)
    if kind == "hf":
        return hub_set(rest, channels, answers=answers, known=classes)
    if kind == "torchvision" and answers == "class":
        return torchvision_set(rest, channels, known=classes)
    if kind not in ("imagefolder", "csv"):
        return open_source(source, channels, answers=answers)
    if kind == "csv":
        return _test_table(csv_paths(rest)[-1], classes, channels, answers)
    walk, root, folder = Walk(), _root(rest), _test_folder(rest)
    names = walk.folders(folder)
    if folder == root or answers != "class" or not names:
        table = next((path for path in (folder / LABELS, root / LABELS) if path.is_file()), None)
        if table is not None:
            return _test_table(table, classes, channels, answers)
    if answers != "class":
        raise UsageError(f"data.source: {folder} has no {LABELS}, which {answers} of images are read from")
    _classes(folder, walk)
    if set(names) - set(classes):
        differing = sorted(set(names) ^ set(classes))
        one_sided = [f"{name} (only in the {'images' if name in names else 'network'})" for name in differing]
        raise UsageError(f"classes of {source} and of {network} differ: {_listed(one_sided)}")
    split = _folder_split(folder, classes, channels, walk, full=False)
    notes = [*walk.notes(root), *without_images({label for _, label in split.samples}, classes)]
    return Source(FolderSplit([], channels), split, classes, tuple(notes))


def _test_table(path: Path, classes: list[str], channels: int, answers: str) -> Source[Split]:
    """The test images of a table."""
    rows = tables.splits_of(tables.read_table(path), VALIDATION_NAMES)[-1]
    table = tables.labelled(rows, answers, classes)
    return Source(FolderSplit([], channels), _table_split(table, channels), classes, tuple(table.without_images()))


def _refuse_targets(folder: Path, root: Path, walk: Walk) -> None:
    """Refuse a folder of images and their masks or depths, whose folders would be taken for classes."""
    kind = targets_beside_images(walk.folders(folder)) if folder.is_dir() else None
    if kind is None:
        return
    task = "segmentation" if kind == "masks" else "depth"
    needed = f"train/images, train/{kind}, val/images and val/{kind}"
    hint = f"; {'masks' if kind == 'masks' else 'depth'}:{root} reads such a folder" if folder != root else ""
    raise UsageError(
        f"data.source: {folder} holds images and their {kind}, not classes; for {task} a folder needs {needed}{hint}"
    )


def _classes(folder: Path, walk: Walk) -> list[str]:
    classes = walk.folders(folder)
    if not classes:
        raise UsageError(f"{folder} holds no class folders; it must hold one folder of images per class")
    return classes


def _folder_split(folder: Path, classes: list[str], channels: int, walk: Walk, *, full: bool = True) -> FolderSplit:
    """The images in the class folders of a folder; with ``full``, every class must have some."""
    samples = [(path, label) for label, name in enumerate(classes) for path in _images(walk, folder / name)]
    empty = sorted(set(classes) - {classes[label] for _, label in samples})
    if empty and (full or not samples):
        raise UsageError(
            f"{folder} has no images in {_listed(empty)}; formats: {', '.join(EXTENSIONS)}" + walk.reason()
        )
    return FolderSplit(samples, channels)


def _images(walk: Walk, folder: Path) -> list[str]:
    return walk.images(folder) if folder.is_dir() else []


def _with_held_out(
    split: Split, classes: list[str], root: Path, held_out: HeldOut, groups: list[str] | None, notes: Sequence[str] = ()
) -> Source[Split]:
    train, test, held_out, more = hold_out(held_out, split, root, groups)
    return Source(train, test, classes, (*notes, *more), held_out=held_out)


def _shared_images(split: FolderSplit, classes: list[str]) -> list[str]:
    """A note about images that lie in several class folders, as links or as copies with one name, if there are any."""
    by_name: dict[tuple[str, int], list[int]] = {}
    for index, (path, _) in enumerate(split.samples):
        by_name.setdefault((os.path.basename(path), _size(path)), []).append(index)
    copies = []
    for indices in by_name.values():
        labels = {split.samples[index][1] for index in indices}
        if len(labels) > 1 and len({_content(split.samples[index][0]) for index in indices}) < len(indices):
            copies.append(indices)
    if not copies:
        return []
    path, label = split.samples[copies[0][0]]
    other = next(split.samples[index][1] for index in copies[0] if split.samples[index][1] != label)
    lie, each = ("images lie", "count") if len(copies) > 1 else ("image lies", "counts")
    example = f"{os.path.basename(path)} in {classes[label]} and {classes[other]}"
    return [
        f"{len(copies)} {lie} in several class folders, such as {example}, "
        f"and {each} once for each; for several classes per image: {LABELS} and task.labels multi"
    ]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _content(path: str) -> bytes:
    try:
        with open(regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path.encode("utf-8", "surrogatepass")


def _table_split(table: tables.Labelled, channels: int) -> FolderSplit | TargetSplit:
    labels = table.labels or [0] * len(table.files)
    images = FolderSplit(list(zip(table.files, labels, strict=True)), channels)
    return images if table.targets is None else TargetSplit(images, table.targets)


def _root(path: str) -> Path:
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(
            f"data.source: {path or 'imagefolder:'} is not a folder; it must hold train/CLASS and val/CLASS"
        )
    if not any(root.iterdir()):
        raise UsageError(f"data.source: {root} is empty; it must hold train/CLASS and val/CLASS")
    return root


def _validation(root: Path) -> Path | None:
    return next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)


def _unused(root: Path, test: Path) -> list[str]:
    """A note about test folders that are not used, if there are any."""
    others = [name for name in VALIDATION_NAMES if name != test.name and (root / name).is_dir()]
    return [f"{', '.join(others)} of {root} not used; {test.name} is what is tested on"] if others else []


def _test_folder(path: str) -> Path:
    """The folder of the test images: val (or valid, validation, test), or the folder itself."""
    root = _root(path)
    test = _validation(root)
    if test is None and (root / "train").is_dir() and not (root / LABELS).is_file():
        raise UsageError(
            f"data.source: {root} has only training images; imagefolder:{root / 'train'} evaluates on these"
        )
    return test or root


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
