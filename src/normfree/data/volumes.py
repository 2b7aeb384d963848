"""Volumes with exact masks, made from a seed: ellipsoids and bent tubes in noise."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .pixels import IGNORE

CLASSES = ("background", "ellipsoid", "tube")
SIDES, SIDE = (16, 128), 32
MADE = re.compile(r"([0-9]{1,9})(?:,([0-9]{1,4}))?")  # what names made volumes; anything else is a folder
_FAINT, _BRIGHT = 70.0, 150.0  # of shapes over the background, whatever their kind
_NOISE = 30.0


def make_volume(part: int, index: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """The volume of a seed and its mask: the same for the same arguments.

    Both kinds of shape have the same range of brightness, so that only their form tells them apart.

    Args:
        part: 0 for training, 1 for held-out volumes; no volume is in both.
        index: number of the volume.
        side: S in voxels.

    Returns:
        (S, S, S) uint8 values, and (S, S, S) uint8 places in ``CLASSES``.

    Example:
        >>> volume, mask = make_volume(0, 0, side=16)
        >>> volume.shape, int(mask.max()) <= 2
        ((16, 16, 16), True)
    """
    rng = np.random.default_rng([part, index])
    values, mask = np.full((side,) * 3, 60.0, np.float32), np.zeros((side,) * 3, np.uint8)
    kinds = rng.permutation([1] * int(rng.integers(1, 4)) + [2] * int(rng.integers(1, 4)))
    for kind in kinds.tolist():
        inside = _ellipsoid(rng, side) if kind == 1 else _tube(rng, side)
        mask[inside] = kind
        values[inside] = 60.0 + rng.uniform(_FAINT, _BRIGHT)
    slope = rng.uniform(-20, 20, 3)
    values += sum(s * (axis / side - 0.5) for s, axis in zip(slope, _grid(side), strict=True))
    values += rng.normal(0, _NOISE, values.shape)
    return values.clip(0, 255).astype(np.uint8), mask


def _ellipsoid(rng: np.random.Generator, side: int) -> np.ndarray:
    """(S, S, S) of booleans: where it is."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    centre, radii = rng.uniform(0.2, 0.8, 3) * side, rng.uniform(0.1, 0.22, 3) * side
    places = np.stack([np.broadcast_to(axis, (side,) * 3) for axis in _grid(side)], -1) - centre
    return (((places @ turn) / radii) ** 2).sum(-1) < 1


def _tube(rng: np.random.Generator, side: int) -> np.ndarray:
    """The same of a curve from one face to the opposite one."""
    ends = rng.uniform(0.1, 0.9, (3, 3)) * side
    axis = int(rng.integers(0, 3))
    ends[0, axis], ends[2, axis] = 0.0, side
    t = np.linspace(0, 1, 2 * side)[:, None]
    curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
    nearest = np.full((side,) * 3, np.inf)
    for z, y, x in curve:
        rows, columns, depths = _grid(side)
        np.minimum(nearest, (rows - z) ** 2 + (columns - y) ** 2 + (depths - x) ** 2, out=nearest)
    return nearest < (rng.uniform(0.05, 0.08) * side) ** 2


@functools.lru_cache(maxsize=4)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the voxels: (S, 1, 1), (1, S, 1) and (1, 1, S) float32."""
    places = np.arange(side, dtype=np.float32) + 0.5
    return places[:, None, None], places[:, None], places


@dataclass(frozen=True)
class VolumeSplit:
    """Pairs of a volume (1, S, S, S) uint8 and its mask (S, S, S) int64, made when asked for."""

    length: int
    side: int
    part: int

    def __len__(self) -> int:
        return self.length

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        volume, mask = make_volume(self.part, index, self.side)
        return torch.from_numpy(volume)[None], torch.from_numpy(mask).long()

    def image(self, index: int) -> Tensor:
        return self.pair(index)[0]

    def name(self, index: int) -> str:
        return f"volumes/{('train', 'test')[self.part]}[{index}]"


def volumes(text: str) -> tuple[VolumeSplit, VolumeSplit]:
    """Training and held-out volumes of "N" or "N,SIDE" (32 voxels); a tenth of N are held out, at least 8.

    Raises:
        UsageError: no such numbers.

    Example:
        >>> train, test = volumes("100,16")
        >>> len(train), len(test)
        (100, 10)
    """
    match = MADE.fullmatch(text)
    count, side = (int(n) for n in match.groups(str(SIDE))) if match else (0, 0)
    if not count or not SIDES[0] <= side <= SIDES[1]:
        raise UsageError(
            f"data.source (='volumes:{text}') must be volumes:N or volumes:N,SIDE, N of 1 or more, "
            f"SIDE of {SIDES[0]} to {SIDES[1]} voxels"
        )
    lengths = count, max(8, count // 10)
    train, test = (VolumeSplit(n, side, part) for part, n in enumerate(lengths))
    return train, test


@dataclass(frozen=True)
class VolumeTransform:
    """Volume (C, D, H, W) and mask (D, H, W) -> (C, *size) normalized float32 and (*size), or of the whole volume.

    A longer axis is cropped, a shorter one padded: with the mean, and ``IGNORE`` in the mask.

    Args:
        size: (D, H, W) of the patch.
        mean, std: of each channel, on the scale where ``value_range`` is 0..1.
        value_range: what becomes 0 and 1, values beyond are clipped; "zscore": each channel of the whole volume gets
            mean 0 and standard deviation 1 instead.
        crop: whether patches are taken; else the whole volume.
        random: a random patch, else the centre.
        foreground: part of the random patches that are centred, as far as the volume goes, on a voxel of a class
            other than the first: a random one of those that the mask has.
        flip: mirror each axis of half of the volumes.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, ...] | str = (0.0, 255.0)
    crop: bool = True
    random: bool = False
    foreground: float = 0.0
    flip: bool = False

    def __call__(
        self, image: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        scale, shift = self._statistics(image)
        if self.crop:
            places, mirrors = torch.rand(2, 3, generator=generator).tolist()
            starts = self._starts(target, places if self.random else [0.5] * 3, generator)
            image, target = self._placed(image, starts), self._placed(target[None], starts)[0]
        else:
            mirrors = [1.0] * 3
        image, target = self._normalized(image, scale, shift), target.contiguous()
        if self.crop:
            image, target = self._padded(image, 0.0), self._padded(target, IGNORE)
        axes = [axis for axis, mirror in zip((-3, -2, -1), mirrors, strict=True) if self.flip and mirror < 0.5]
        return image.flip(axes), target.flip(axes)

    def view(self, image: Tensor) -> Tensor:
        """The patch in the centre of a volume without a mask: (C, *size)."""
        return self.centre(self.whole(image)[None])[0]

    def centre(self, images: Tensor) -> Tensor:
        """The patch in the centre of normalized volumes: (N, C, *size)."""
        for axis, side in zip((-3, -2, -1), self.size, strict=True):
            room = max(0, images.shape[axis] - side)
            images = images.narrow(axis, room // 2, images.shape[axis] - room)
        return self._padded(images, 0.0)

    def whole(self, image: Tensor) -> Tensor:
        """All of a volume without a mask, normalized: the same shape."""
        return self._normalized(image, *self._statistics(image))

    def _statistics(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, (C, 1, 1, 1) float32 each."""
        if self.value_range == "zscore":
            std, mean = torch.std_mean(image.flatten(1).float(), 1, correction=0)
            scale = 1 / std.clamp(min=1e-6 * mean.abs().clamp(min=1))
            shift = -mean * scale
        else:
            mean, std = torch.tensor(self.mean), torch.tensor(self.std)
            scale, shift = 1 / std, -mean / std
        return scale.view(-1, 1, 1, 1), shift.view(-1, 1, 1, 1)

    def _normalized(self, image: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        image = image.float()
        if not isinstance(self.value_range, str):
            low, high = self.value_range
            image = ((image - low) / (high - low)).clamp_(0, 1)
        return torch.addcmul(shift, image, scale)

    def _starts(self, target: Tensor, places: Sequence[float], generator: torch.Generator | None) -> list[int]:
        """Where the patch begins along each axis."""
        room = [max(0, has - side) for has, side in zip(target.shape, self.size, strict=True)]
        if self.random and self.foreground:
            chance, which, voxel = torch.rand(3, generator=generator).tolist()
            classes = target.unique().tolist()
            classes = [one for one in classes if one not in (0, IGNORE)]
            if chance < self.foreground and classes:
                found = (target == classes[int(which * len(classes))]).nonzero()
                centre = found[int(voxel * len(found))].tolist()
                return [min(max(0, c - n // 2), r) for c, n, r in zip(centre, self.size, room, strict=True)]
        return [min(int(place * (r + 1)), r) for place, r in zip(places, room, strict=True)]

    def _placed(self, maps: Tensor, starts: Sequence[int]) -> Tensor:
        """The patch of maps (C, D, H, W) that begins there, without padding."""
        for axis, (start, side) in enumerate(zip(starts, self.size, strict=True)):
            maps = maps.narrow(axis + 1, start, min(side, maps.shape[axis + 1]))
        return maps

    def _padded(self, maps: Tensor, value: float) -> Tensor:
        """Maps (..., D, H, W) in the middle of the patch."""
        sides = []
        for axis in (-1, -2, -3):
            more = self.size[axis] - maps.shape[axis]
            sides += [more // 2, more - more // 2]
        return F.pad(maps, sides, value=value) if any(sides) else maps
