"""Files that say what each pixel is: masks, Pascal VOC, and depth maps."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..files import regular
from . import torchvision_places
from .arrays import read_numpy
from .decode import EXTENSIONS, UnreadableImage, decode_image, named
from .exif import as_annotated, convention, header
from .held_out import file_hash
from .masks import MaskValues, Value, class_names, listed, open_png
from .nyu import nyu
from .pixels import IGNORE, valid_depth
from .scenes import CLASSES, scenes
from .sources import VALIDATION_NAMES, Source, check_channels, unknown_source
from .splits import PairSplit
from .torchvision_sets import pet_masks
from .values import ValueRange, with_value_range
from .walk import Walk

KINDS = {
    "segmentation": '"scenes:N", "voc:PATH", "masks:PATH" or "torchvision:NAME"',
    "depth": '"scenes:N", "nyu:FILE.mat" or "depth:PATH"',
}
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MILLIMETRES = 1000.0  # of a metre: depth in PNG files


@dataclass(frozen=True)
class FilePairs:
    """Image files and the files of their targets; ``read`` is from a target's path to (H, W)."""

    samples: list[tuple[str, str]]
    read: Callable[[str], Tensor]
    channels: int
    stored: bool = False  # whether targets of photos that EXIF turns are for the stored pixels, see exif.py
    value_range: tuple[float, ...] | None = None  # of images, see decode_image

    def __len__(self) -> int:
        return len(self.samples)

    def file(self, index: int) -> str:
        return self.samples[index][0]

    def image(self, index: int) -> Tensor:
        return decode_image(self.file(index), self.channels, value_range=self.value_range)

    def target(self, index: int) -> Tensor:
        return self.read(self.samples[index][1])

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.samples[index][1]
        image, target = self.image(index), self.target(index)
        height, width = target.shape
        image = as_annotated(image, self.samples[index][0], (height, width), self.stored)
        if image.shape[-2:] != target.shape:
            sizes = [f"{width} x {height}" for height, width in (target.shape, image.shape[-2:])]
            raise UnreadableImage(f"{path}: {sizes[0]} pixels, its image {self.samples[index][0]} has {sizes[1]}")
        return image, target

    def name(self, index: int) -> str:
        return self.samples[index][0]

    def target_hash(self, index: int) -> str:
        """Tells the file of a target from another one, see :func:`.held_out.file_hash`."""
        return file_hash(self.samples[index][1])


def open_pairs(
    source: str,
    task: str,
    channels: int = 3,
    values: Sequence[Value] | None = None,
    ignored: Value | None = None,
    known: Sequence[str] | None = None,
    value_range: ValueRange = None,
) -> Source[PairSplit]:
    """A source of a "segmentation" or "depth" task by its description; of depth, ``classes`` is empty.

    Args:
        values, ignored: of "masks:PATH", see :class:`.masks.MaskValues`.
        known: classes of a network that is measured: of folders the test images alone are opened then, and ``train`` is
            empty.
        value_range: of images, see :func:`.decode_image`.

    Raises:
        UsageError: unknown kind, a missing file or folder, or a first or last pair that does not fit together.
    """
    kind, _, rest = source.partition(":")
    if values is not None and (task, kind) != ("segmentation", "masks"):
        raise UsageError(f'data.mask_values (={listed(values)}) is for "masks:PATH"; data.source is {source!r}')
    openers = {
        "segmentation": dict(
            voc=voc,
            masks=functools.partial(masks, values=values, ignored=ignored, known=known),
            torchvision=torchvision_masks,
        ),
        "depth": dict(nyu=nyu, depth=functools.partial(depths, test_only=known is not None)),
    }[task]
    check_channels(kind, channels)
    if kind == "scenes":
        target = "mask" if task == "segmentation" else "depth"
        train, test = scenes(rest, target, channels)
        return Source(train, test, list(CLASSES) if task == "segmentation" else [])
    if kind not in openers:
        raise unknown_source(source, ("scenes", *openers), f"must be {KINDS[task]} for {task}")
    opened = with_value_range(openers[kind](rest, channels), value_range)
    for split in (opened.train, opened.test):
        try:
            for index in {0, len(split) - 1} if len(split) else ():  # a mistake of all files is better said now
                split.pair(index)
        except UnreadableImage as error:
            raise UsageError(f"data.source: {error}") from error
    return opened


def masks(
    path: str,
    channels: int = 3,
    values: Sequence[Value] | None = None,
    ignored: Value | None = None,
    known: Sequence[str] | None = None,
) -> Source[FilePairs]:
    """PATH/train/images/*, PATH/train/masks/NAME.png, the same in PATH/val; PATH/classes.txt may have a name per line.

    A mask holds the number of the class at each pixel, counted from 0 (one channel or a palette); 255 is ignored.
    Without names, the classes are as many as the training masks' largest number says.

    Args:
        values, ignored: of a mask, where they are no such numbers; see :class:`.masks.MaskValues`.
        known: the classes where there are no names; nothing is read of PATH/train then, and PATH may be PATH/val.

    Raises:
        UsageError: a folder, an image's mask or the names are missing, or there are more names than values, or fewer.
    """
    root = _root(path, "masks", "train/images, train/masks, val/images and val/masks")
    names, walk = root / "classes.txt", Walk()
    parts = [_matched(root / part, "masks", (".png",), walk) for part in _parts(root, known is not None)]
    if names.is_file():
        classes = class_names(names)
        if values is not None and len(values) != len(classes):
            what = f"data.mask_values (={listed(values)}) are {len(values)}"
            raise UsageError(f"{what}, {names} names {len(classes)} classes; each class has one value")
    elif known is not None:
        classes = list(known)
    else:
        classes = [f"class{i}" for i in range(len(values or ()) or max(2, 1 + _largest(parts[0])))]
    read = MaskValues(len(classes), None if values is None else tuple(values), ignored).read
    return _opened(root, parts, read, channels, walk, classes)


def voc(path: str, channels: int = 3) -> Source[FilePairs]:
    """Pascal VOC 2012, 21 classes: PATH is VOC2012 or a folder with (VOCdevkit/)VOC2012 in it.

    The training images are those of ImageSets/Segmentation/trainaug.txt where it is there (SBD's further masks, which
    lie in SegmentationClassAug then), else of train.txt. With the latter come those of SBD (Hariharan et al., 2011)
    that are not among VOC's test images, where its archive is unpacked beside: benchmark_RELEASE/dataset in PATH or in
    a folder above VOC2012, masks in .mat files. The test images are those of val.txt.

    Raises:
        UsageError: a folder, list, image or mask is missing, by name.
    """
    root = _root(path, "voc", "JPEGImages, SegmentationClass and ImageSets/Segmentation")
    root = next((p for p in (root / "VOCdevkit" / "VOC2012", root / "VOC2012") if p.is_dir()), root)
    lists = root / "ImageSets" / "Segmentation"
    merged = lists / "trainaug.txt"
    train, test = (
        _listed(root, names) for names in (merged if merged.is_file() else lists / "train.txt", lists / "val.txt")
    )
    places = [p / "benchmark_RELEASE" / "dataset" for p in (root, *root.absolute().parents[:2])]
    sbd = next((p for p in places if p.is_dir()), None)
    if sbd is not None and not merged.is_file():
        train += _boundaries(sbd, {Path(image).stem for image, _ in train + test})
    read = MaskValues(len(VOC_CLASSES)).read
    return Source(FilePairs(train, read, channels), FilePairs(test, read, channels), list(VOC_CLASSES))


def torchvision_masks(text: str, channels: int = 3) -> Source[FilePairs]:
    """torchvision's VOCSegmentation, see :func:`voc`, or OxfordIIITPet: the animal on its background.

    The border between these two, which the pets' masks have, is ignored.

    Args:
        text: "NAME", or "NAME:FOLDER" where it lies.

    Raises:
        UsageError: an unknown name; the set is neither there nor can be downloaded; damaged files.
    """
    name, root = torchvision_places.placed(text, torchvision_places.PAIRS, "segmentation")
    if name == "VOCSegmentation":
        return voc(str(root), channels)
    parts, read = pet_masks(root), MaskValues(2, (2, 1), 3).read
    return _opened(root, parts, read, channels, Walk(), ["background", "pet"])


def depths(path: str, channels: int = 3, *, test_only: bool = False) -> Source[FilePairs]:
    """PATH/train/images/*, PATH/train/depths/NAME.png (16 bits, millimetres) or NAME.npy (metres); the same in val.

    What :func:`.pixels.valid_depth` says counts as not measured. With ``test_only``, PATH/val alone, which PATH may be.

    Raises:
        UsageError: a folder or an image's depth is missing.
    """
    root = _root(path, "depth", "train/images, train/depths, val/images and val/depths")
    walk = Walk()
    parts = [_matched(root / part, "depths", (".png", ".npy"), walk) for part in _parts(root, test_only)]
    return _opened(root, parts, read_depth, channels, walk, [])


def read_depth(path: str) -> Tensor:
    """The (H, W) float32 metres of a 16-bit PNG file in millimetres or a .npy file in metres; 0 where not measured.

    Raises:
        UnreadableImage: not there, or another kind of file.
    """
    if path.endswith(".npy"):
        with named(path):
            depth = read_numpy(regular(path))
        if depth.ndim != 2 or depth.dtype.kind != "f":
            what = f"an array of shape {depth.shape} of {depth.dtype}"
            raise UnreadableImage(f"{path}: {what}; it must be (H, W) metres as floating-point numbers")
    else:
        with open_png(path) as image:
            if not image.mode.startswith(("I", "F")):
                raise UnreadableImage(f"{path}: a {image.mode} image; depth holds 16 bits per pixel, in millimetres")
            depth = np.array(image).astype(np.float32) / MILLIMETRES
    return valid_depth(depth)


def _root(path: str, kind: str, what: str) -> Path:
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UsageError(f"data.source: {path or f'{kind}:'} is not a folder; it must hold {what}")
    return root


def _parts(root: Path, test_only: bool) -> tuple[str, ...]:
    """The folders of the splits."""
    if not test_only:
        return "train", _validation(root)
    part = _validation(root)
    return (part if (root / part).is_dir() or not (root / "images").is_dir() else ".",)


def _validation(root: Path) -> str:
    return next((name for name in VALIDATION_NAMES if (root / name).is_dir()), "val")


def _opened(
    root: Path,
    parts: list[list[tuple[str, str]]],
    read: Callable[[str], Tensor],
    channels: int,
    walk: Walk,
    classes: list[str],
) -> Source[FilePairs]:
    """The splits, with what to tell: files that were left out, photos that EXIF turns."""
    splits, notes = [], walk.notes(root)
    for samples in parts:
        files, where = [image for image, _ in samples], str(Path(samples[0][0]).parent)
        size_of = functools.partial(_target_size, samples)
        stored, lines = convention(files, size_of, where, default=False)
        splits.append(FilePairs(samples, read, channels, stored))
        notes += lines
    if len(splits) == 1:  # test images alone
        splits.insert(0, replace(splits[0], samples=[]))
    return Source(splits[0], splits[1], classes, tuple(notes))


def _target_size(samples: list[tuple[str, str]], index: int) -> tuple[int, int]:
    return header(samples[index][1])[0]  # of a .npy file (0, 0)


def _matched(folder: Path, kind: str, suffixes: tuple[str, ...], walk: Walk) -> list[tuple[str, str]]:
    """Images of FOLDER/images and the files of the same name in FOLDER/KIND."""
    images, targets = folder / "images", folder / kind
    for needed in (images, targets):
        if not needed.is_dir():
            what = f"folder {needed} is missing; train and val need images and {kind} each"
            raise UsageError(f"data.source: {what}")
    files = list(map(Path, walk.images(images, deep=False)))
    if not files:
        raise UsageError(f"data.source: {images} holds no image ({', '.join(EXTENSIONS)})" + walk.reason())
    samples = []
    for image in files:
        target = next((p for s in suffixes if (p := targets / (image.stem + s)).is_file()), None)
        if target is None:
            raise UsageError(f"data.source: {targets / (image.stem + suffixes[0])} is missing; {image} needs it")
        samples.append((str(image), str(target)))
    return samples


def _listed(root: Path, names: Path) -> list[tuple[str, str]]:
    """Images and masks of a list of Pascal VOC."""
    if not names.is_file():
        raise UsageError(f"data.source: {names} is missing")
    samples = []
    for name in names.read_text(encoding="utf-8-sig", errors="replace").split():
        image = root / "JPEGImages" / f"{name}.jpg"
        places = [root / folder / f"{name}.png" for folder in ("SegmentationClassAug", "SegmentationClass")]
        mask = next((place for place in places if os.path.isfile(place)), None)
        if mask is None or not os.path.isfile(image):
            missing = image if mask is not None else places[-1]
            raise UsageError(f"data.source: {missing} is missing; {names} names it")
        samples.append((str(image), str(mask)))
    if not samples:
        raise UsageError(f"data.source: {names} is empty")
    return samples


def _boundaries(sbd: Path, others: set[str]) -> list[tuple[str, str]]:
    """Images and masks of both lists of SBD, in order of their names, without others of these names."""
    names_found = set()
    for names in (sbd / "train.txt", sbd / "val.txt"):
        if not names.is_file():
            raise UsageError(f"data.source: {names} is missing")
        names_found.update(names.read_text(encoding="utf-8-sig", errors="replace").split())
    samples = [(sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat") for name in sorted(names_found - others)]
    for file in (file for pair in samples for file in pair):
        if not file.is_file():
            raise UsageError(f"data.source: {file} is missing; the lists in {sbd} name it")
    return [(str(image), str(mask)) for image, mask in samples]


def _largest(samples: list[tuple[str, str]]) -> int:
    """The largest class in masks."""
    largest = 0
    for _, path in samples:
        try:
            mask = MaskValues(IGNORE).read(path)
        except UnreadableImage as error:
            raise UsageError(f"data.source: {error}") from error
        largest = max(largest, int(mask[mask != IGNORE].max()) if (mask != IGNORE).any() else 0)
    return largest
