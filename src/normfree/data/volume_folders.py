"""Folders of volumes with a mask each: ``volumes:FOLDER``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import UsageError
from ..limits import MAX_VOLUME_VALUES
from ..words import counted
from .decode import UnreadableImage
from .held_out import HeldOut, NoTestImages, file_hash, hold_out
from .masks import MaskValues, Value, class_names, listed
from .pixels import IGNORE
from .sources import VALIDATION_NAMES, Source
from .volume_files import (
    ENDINGS,
    NIFTI,
    NUMPY,
    Header,
    Shape,
    Spacing,
    base_name,
    ending,
    need_nibabel,
    read_header,
    read_mask,
    read_volume,
)
from .walk import Walk

HOLDS = "images/NAME and masks/NAME, or train and val with these in each"
APART = 0.5  # voxels that the corners of a mask may lie from those of its volume, by their affines
UNEQUAL = 2.0  # times the smallest spacing from which the largest one is told to be unequal
SHOWN = 8  # classes in a line
Samples = list[tuple[str, str]]


@dataclass(frozen=True)
class VolumePairs:
    """Files of volumes and of their masks; ``pair`` gives (C, D, H, W) as stored and (D, H, W) int64 classes.

    Args:
        samples: of each pair the two files.
        values: of the masks.
        channels: of the volumes.
        spacing: in mm, to which both are resampled, see :func:`resampled`; None: not at all.
    """

    samples: Samples
    values: MaskValues
    channels: int = 1
    spacing: Spacing | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Tensor:
        return resampled(read_volume(self.name(index), self.channels), self.name(index), self.spacing)

    def target(self, index: int) -> Tensor:
        path = self.samples[index][1]
        return resampled(read_mask(path, self.values), self.name(index), self.spacing)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.image(index), self.target(index)
        if image.shape[1:] != target.shape:
            _differ(self.samples[index], tuple(target.shape), tuple(image.shape[1:]))
        return image, target

    def size(self, index: int) -> tuple[Shape, int]:
        """(D, H, W) of a volume and the bytes that it takes, by its header."""
        header = read_header(self.name(index))
        places, width = header.places(self.channels, self.name(index)), header.width
        if self.spacing is not None and header.spacing is not None:
            resized = _resized(places, header.spacing, self.spacing)
            places, width = resized, 4 if resized != places else width
        return places, self.channels * math.prod(places) * width

    def name(self, index: int) -> str:
        return self.samples[index][0]

    def target_hash(self, index: int) -> str:
        """Tells the file of a mask from another one, see :func:`.held_out.file_hash`."""
        return file_hash(self.samples[index][1])


def volume_folder(
    path: str,
    channels: int = 1,
    *,
    values: Sequence[Value] | None = None,
    ignored: Value | None = None,
    spacing: Spacing | None = None,
    held_out: HeldOut | None = None,
    known: Sequence[str] | None = None,
) -> Source[VolumePairs]:
    """PATH/train/images/NAME, PATH/train/masks/NAME, the same in PATH/val; or PATH/images and PATH/masks alone.

    The formats are those of :mod:`.volume_files`; a mask has that of its volume, .npy and .npz being one, .nii and
    .nii.gz another. What masks hold, and PATH/classes.txt, is as of :func:`.pairs.masks`. The header of each file is
    checked, and each mask is read.

    Args:
        channels: of the volumes.
        values, ignored: of a mask, see :class:`.masks.MaskValues`.
        spacing: in mm, to which volumes are resampled.
        held_out: which volumes are for testing, where there is no folder val.
        known: classes of a network that is measured; without ``held_out`` the test volumes alone are opened then.

    Raises:
        UsageError: a folder or a mask is missing, or two files do not fit together; the message names the file.
        NoTestImages: there is no folder val and ``held_out`` is None.
    """
    root, walk = Path(path).expanduser(), Walk()
    if not path or not root.is_dir():
        raise UsageError(f"data.source: {path or 'volumes:'} is not a folder; it must hold {HOLDS}")
    if values is not None and not isinstance(values[0], int):
        raise UsageError(f"data.mask_values (={listed(values)}) must be numbers for volumes, not colours")
    folders = _folders(root, held_out, known is not None)
    parts = [_matched(folder, walk) for folder in folders]
    notes = walk.notes(root)
    try:
        need_nibabel([file for samples in parts for pair in samples for file in pair])
        headers = [_checked(pair, channels, spacing) for samples in parts for pair in samples]
        notes.append(_geometry(headers, channels, spacing))
        split = VolumePairs(parts[0], MaskValues(IGNORE), channels, spacing)
        classes, counts = _named(root, values, known), []
        if classes is None:
            counts.append(_counts(split))
            classes = [f"class{i}" for i in range(max(2, 1 + int(counts[0][:IGNORE].nonzero().max())))]
        split = replace(split, values=MaskValues(len(classes), None if values is None else tuple(values), ignored))
        counts += [_counts(replace(split, samples=samples)) for samples in parts[len(counts) :]]
        notes += [_shares(*each, classes) for each in zip(folders, counts, strict=True)]
    except UnreadableImage as error:
        raise UsageError(f"data.source: {error}") from error
    if len(parts) == 2:
        return Source(split, replace(split, samples=parts[1]), classes, tuple(notes))
    if held_out is None:  # test volumes alone
        return Source(replace(split, samples=[]), split, classes, tuple(notes))
    train, test, held_out, told = hold_out(held_out, split, root)
    train, test = (replace(split, samples=[split.samples[i] for i in part.indices]) for part in (train, test))
    return Source(train, test, classes, (*notes, *told), held_out=held_out)


def resampled(maps: Tensor, path: str, spacing: Spacing | None) -> Tensor:
    """A volume (C, D, H, W) trilinearly, as float32, or a mask (D, H, W) by its nearest voxel, at another spacing.

    Args:
        path: of the volume, whose header has its spacing.
        spacing: in mm; None: it stays as it is.

    Raises:
        UnreadableImage: the file has no spacing, or the volume would become too large.
    """
    if spacing is None:
        return maps
    own = read_header(path).spacing
    if own is None:
        raise UnreadableImage(f"{path}: it has no spacing; data.spacing (={list(spacing)}) needs it")
    places = (maps.shape[-3], maps.shape[-2], maps.shape[-1])
    size = _resized(places, own, spacing)
    if size == places:
        return maps
    if math.prod(size) > MAX_VOLUME_VALUES:
        raise UnreadableImage(f"{path}: data.spacing would make {' x '.join(map(str, size))} voxels of it, too many")
    if maps.ndim == 3:
        return F.interpolate(maps[None, None].float(), size, mode="nearest-exact")[0, 0].to(maps.dtype)
    return F.interpolate(maps[None].float(), size, mode="trilinear", align_corners=False)[0]


def _resized(places: Shape, old: Spacing, new: Spacing) -> Shape:
    """The places of a volume at another spacing."""
    depth, height, width = (max(1, round(n * a / b)) for n, a, b in zip(places, old, new, strict=True))
    return depth, height, width


def _folders(root: Path, held_out: HeldOut | None, test_only: bool) -> list[Path]:
    """The folders of the splits: training and test; one, which is divided; or that of the test volumes alone."""
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    whole = root if (root / "images").is_dir() else root / "train"
    if validation is not None and held_out is not None:
        raise UsageError(f"data.val_fraction (={held_out.fraction:g}): {root} has test volumes of its own")
    if validation is not None:
        return [validation] if test_only else [root / "train", validation]
    if held_out is None and not test_only:
        missing = f"{root} has no test volumes (folder {root / 'val'})"
        raise NoTestImages(f"data.source: {missing}; --data.val_fraction 0.2 holds a fifth of the volumes out")
    return [whole]


def _matched(folder: Path, walk: Walk) -> Samples:
    """Volumes of FOLDER/images and the masks of the same name in FOLDER/masks."""
    images, masks = folder / "images", folder / "masks"
    for needed in (images, masks):
        if not needed.is_dir():
            raise UsageError(f"data.source: folder {needed} is missing; volumes need {HOLDS}")
    files = walk.images(images, deep=False, endings=ENDINGS)
    if not files:
        raise UsageError(f"data.source: {images} holds no volume ({', '.join(ENDINGS)})")
    samples = []
    for image in files:
        own = ending(image)
        kinds = sorted(NUMPY if own in NUMPY else NIFTI, key=lambda kind, own=own: kind != own)
        names = [masks / (base_name(image) + kind) for kind in kinds]
        mask = next((name for name in names if name.is_file()), None)
        if mask is None:
            raise UsageError(f"data.source: {names[0]} is missing; {image} needs it")
        samples.append((image, str(mask)))
    return samples


def _checked(pair: tuple[str, str], channels: int, spacing: Spacing | None) -> Header:
    """The header of a volume whose mask fits it."""
    image, mask = (read_header(file) for file in pair)
    places, labelled = image.places(channels, pair[0]), mask.places(1, pair[1])
    if places != labelled:
        _differ(pair, labelled, places)
    if image.affine is not None and mask.affine is not None and image.spacing is not None:
        corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0]) for n in places)).double().numpy()
        moved = corners @ (image.affine - mask.affine)[:3, :3].T + (image.affine - mask.affine)[:3, 3]
        far = float((moved**2).sum(1).max() ** 0.5)
        if far > APART * min(image.spacing):
            why = f"by its affine it lies {far:.3g} mm from its volume {pair[0]}"
            raise UnreadableImage(f"{pair[1]}: {why}; resample it, or give it the same affine")
    if spacing is not None and image.spacing is None:
        raise UnreadableImage(f"{pair[0]}: it has no spacing; data.spacing (={list(spacing)}) needs it")
    return image


def _differ(pair: tuple[str, str], mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    sizes = [" x ".join(map(str, shape)) for shape in (mask, image)]
    raise UnreadableImage(f"{pair[1]}: {sizes[0]} voxels, its volume {pair[0]} has {sizes[1]}")


def _named(root: Path, values: Sequence[Value] | None, known: Sequence[str] | None) -> list[str] | None:
    """The names of classes.txt, those that are known, or one for each value; None: the masks say how many there are."""
    file = root / "classes.txt"
    if not file.is_file():
        if known is not None:
            return list(known)
        return None if values is None else [f"class{i}" for i in range(len(values))]
    names = class_names(file)
    if values is not None and len(values) != len(names):
        what = f"data.mask_values (={listed(values)}) are {len(values)}"
        raise UsageError(f"{what}, {file} names {len(names)} classes; each class has one value")
    return names


def _counts(split: VolumePairs) -> Tensor:
    """How many voxels of the masks are each class, (IGNORE + 1,)."""
    bar = tqdm(range(len(split)), desc="reading masks", unit="mask", delay=2, leave=False, disable=None)
    counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
    for index in bar:
        counts += torch.bincount(read_mask(split.samples[index][1], split.values).flatten(), minlength=IGNORE + 1)
    return counts


def _shares(folder: Path, counts: Tensor, classes: Sequence[str]) -> str:
    """How much of the masks of a folder each class is, and how much is ignored."""
    labelled, total = max(1, int(counts[: len(classes)].sum())), max(1, int(counts.sum()))
    shares = [f"{name} {int(n) / labelled:.2%}" for name, n in zip(classes, counts.tolist(), strict=False)]
    more = f" and {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
    void = f"; {int(counts[IGNORE]) / total:.2%} of the voxels are ignored" if counts[IGNORE] else ""
    return f"{folder}: voxels of its masks are {', '.join(shares[:SHOWN])}{more}{void}"


def _geometry(headers: list[Header], channels: int, spacing: Spacing | None) -> str:
    """Sizes and spacing of all volumes, and what is made of the spacing."""
    places = torch.tensor([header.places(channels, "") for header in headers])
    sides = _range(places.tolist())
    known = [header.spacing for header in headers if header.spacing is not None]
    text = f"{counted(len(headers), 'volume')} of {sides} voxels"
    if not known:
        return f"{text}, whose files have no spacing"
    text += f"; spacing {_range([list(one) for one in known])} mm"
    if spacing is not None:
        return f"{text}, resampled to {' x '.join(f'{one:g}' for one in spacing)} mm"
    unequal = max(max(one) / min(one) for one in known) >= UNEQUAL
    differing = max(max(column) / min(column) for column in zip(*known, strict=True)) >= 1.05
    if not unequal and not differing:
        return text
    why = " and ".join(["differs between axes"] * unequal + ["between volumes"] * differing)
    return f"{text}: it {why}, and voxels are used as they are; data.spacing resamples them"


def _range(rows: list[list[float]]) -> str:
    """``16 x 32 x 32 to 24 x 48 x 32``, or one of these."""
    columns = list(zip(*rows, strict=True))
    low, high = (" x ".join(f"{round(pick(column), 3):g}" for column in columns) for pick in (min, max))
    return low if low == high else f"{low} to {high}"
