"""The labelled set of NYU Depth v2."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..words import counted
from .decode import UnreadableImage
from .hdf5 import check_chunks, one_line, opened
from .matlab import matlab
from .pixels import valid_depth
from .sources import Source

NAME, KEYS = "NYU Depth v2", ("images", "depths")
MAX_IMAGE_SIDE = 2**13  # pixels; the official ones have 640


@dataclass(frozen=True)
class NYUSplit:
    """Images of the official file, which each process opens for itself: (3, 480, 640) uint8, (480, 640) metres."""

    path: str
    places: list[int]
    channels: int

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Tensor:
        image = torch.from_numpy(self._read("images", index)).transpose(1, 2).contiguous()  # of (C, W, H)
        return image if self.channels == 3 else image.float().mean(0, keepdim=True).to(torch.uint8)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.target(index)

    def target(self, index: int) -> Tensor:
        return valid_depth(self._read("depths", index)).t().contiguous()

    def name(self, index: int) -> str:
        return f"{self.path}[{self.places[index]}]"

    def _read(self, key: str, index: int) -> np.ndarray:
        try:
            return opened(self.path, NAME)[key][self.places[index]]
        except Exception as error:  # HDF5 fails in many ways on a damaged file
            raise UnreadableImage(f"{self.name(index)}: {one_line(error)}") from error


def nyu(path: str, channels: int = 3) -> Source[NYUSplit]:
    """The official labelled set, nyu_depth_v2_labeled.mat, with the official split in splits.mat beside it.

    Raises:
        UsageError: a file is missing or has other contents, or h5py is not installed.
    """
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise UsageError(f"data.source: {path or 'nyu:'} is not a file; it must be nyu_depth_v2_labeled.mat")
    split = file.with_name("splits.mat")
    if not split.is_file():
        raise UsageError(f"data.source: {split} is missing; it holds the official training and test images")
    count, places = _checked(file), _splits(split)
    for numbers in places:
        if not numbers or not all(0 <= n < count for n in numbers):
            raise UsageError(f"data.source: {split} names images that {file} ({count} images) does not have")
    if both := sorted(set(places[0]) & set(places[1])):
        named = f"{counted(len(both), 'image')}, such as {both[0] + 1},"
        raise UsageError(
            f"data.source: {split} has {named} in both trainNdxs and testNdxs; each must be in one of them"
        )
    train, test = (NYUSplit(str(file), numbers, channels) for numbers in places)
    return Source(train, test, [])


def _checked(file: Path) -> int:
    """How many images a file has.

    Raises:
        UsageError: not of the shapes and types of the labelled set.
    """
    try:
        found = opened(str(file), NAME)
        images: tuple[int, ...] = tuple(found["images"].shape or ())
        depths: tuple[int, ...] = tuple(found["depths"].shape or ())
        colours, metres = (found[key].dtype for key in KEYS)
    except UsageError:
        raise
    except Exception as error:  # HDF5 fails in many ways on other files; a group has no shape
        raise UsageError(f"data.source: {file} is no labelled set of NYU Depth v2: {one_line(error)}") from error
    if len(images) != 4 or images[1] != 3 or depths != images[:1] + images[2:] or not np.prod(images, dtype=object):
        what = f"images of shape {images}, depths of shape {depths}"
        raise UsageError(f"data.source: {file}: {what}; they must be (N, 3, W, H) and (N, W, H)")
    if colours != np.uint8 or metres.kind != "f":
        what = f"images of {colours!s:.40}, depths of {metres!s:.40}"
        raise UsageError(f"data.source: {file}: {what}; they must be uint8 and floating-point numbers in metres")
    for key in KEYS:
        check_chunks(found[key], file, key)
    if max(images[2:]) > MAX_IMAGE_SIDE:
        raise UsageError(
            f"data.source: {file}: images of {images[2]} x {images[3]}; at most {MAX_IMAGE_SIDE} pixels a side"
        )
    return images[0]


def _splits(file: Path) -> tuple[list[int], list[int]]:
    """Places of the training and the test images, counted from 0."""
    try:
        content = matlab(str(file), keys := ("trainNdxs", "testNdxs"))
        train, test = (_numbers(content[key], key) for key in keys)
        return train, test
    except UsageError:
        raise
    except Exception as error:  # whatever the file holds
        raise UsageError(f"data.source: {file} is no list of NYU Depth v2: {one_line(error)}") from error


def _numbers(indices: np.ndarray, key: str) -> list[int]:
    """Places of images, which are counted from 1 in the file."""
    indices = np.asarray(indices)
    if indices.dtype.kind not in "uif":
        raise ValueError(f"{key} holds {indices.dtype!s:.40}; it must hold integers")
    for number in indices.ravel():
        if int(number) != number:
            raise ValueError(f"{key} holds {number}; it must hold integers")
    return [int(number) - 1 for number in indices.ravel()]
