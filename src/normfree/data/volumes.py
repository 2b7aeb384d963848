"""Volumes with exact masks, made from a seed: ellipsoids and bent tubes in noise."""

import functools
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .pixels import IGNORE

CLASSES = ("background", "ellipsoid", "tube")
MAX_VOLUMES, SIDES, SIDE = 10**9, (16, 128), 32
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
    match = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,4}))?", text)
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
    """Volume (C, D, H, W) uint8 and mask (D, H, W) -> (C, side, side, side) normalized float32 and (side, side, side).

    A longer axis is cropped, a shorter one padded: with the mean, and ``IGNORE`` in the mask.

    Args:
        random: a random crop, else the centre.
        flip: mirror each axis of half of the volumes.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    random: bool = False
    flip: bool = False

    def __call__(
        self, image: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        places, mirrors = torch.rand(2, 3, generator=generator).tolist()
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (self.mean, self.std))
        image = (image.float() / 255 - mean) / std
        for axis, (place, mirror) in enumerate(zip(places, mirrors, strict=True)):
            more = target.shape[axis] - self.side
            if more > 0:
                start = int((place if self.random else 0.5) * more)
                image, target = image.narrow(axis + 1, start, self.side), target.narrow(axis, start, self.side)
            elif more < 0:
                sides = [0, 0] * (2 - axis) + [-more // 2, -more - -more // 2]
                image, target = F.pad(image, sides), F.pad(target, sides, value=IGNORE)
            if self.flip and mirror < 0.5:
                image, target = image.flip(axis + 1), target.flip(axis)
        return image.contiguous(), target.contiguous()

    def view(self, image: Tensor) -> Tensor:
        """A volume without a mask, as in evaluation: (C, side, side, side)."""
        return self(image, torch.zeros(image.shape[1:], dtype=torch.int64))[0]
