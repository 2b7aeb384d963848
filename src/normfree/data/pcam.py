"""PatchCamelyon (Veeling et al., arXiv:1806.03962), as torchvision keeps it: HDF5 files of images and labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..limits import MAX_TARGETS
from .decode import UnreadableImage
from .hdf5 import check_chunks, one_line, opened

NAME, SHAPE = "PCAM", (96, 96, 3)
CLASSES = ["normal", "tumor"]  # of the middle 32 x 32 pixels


@dataclass(frozen=True)
class PatchSplit:
    """Images of 96 x 96 pixels in a file, which is read image by image, and their labels.

    Attributes:
        path: the file of images.
        labels: (N,) int64.
    """

    path: str
    labels: Tensor
    channels: int = 3

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        try:
            pixels = opened(self.path, NAME)["x"][index]
        except Exception as error:  # HDF5 fails in many ways on a damaged file
            raise UnreadableImage(f"{self.name(index)}: {one_line(error)}") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return image if self.channels == 3 else image.float().mean(0, keepdim=True).to(torch.uint8)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"


def patches(root: Path, part: str, channels: int = 3) -> PatchSplit:
    """The split "train", "valid" or "test" of ``root``/pcam.

    Raises:
        UsageError: a file is missing or has other contents; h5py is not installed.
    """
    file, answers = (root / "pcam" / f"camelyonpatch_level_2_split_{part}_{kind}.h5" for kind in "xy")
    for path in (file, answers):
        if not path.is_file():
            raise UsageError(f"data.source: {path} is missing")
    if channels not in (1, 3):
        raise UsageError(f"data.channels (={channels}) must be 1 or 3 for {NAME}")
    try:
        images, labels = opened(str(file), NAME)["x"], opened(str(answers), NAME)["y"]
        shape, kinds = tuple(images.shape), (images.dtype, labels.dtype)
        count, of_labels = (shape or (0,))[0], tuple(labels.shape)
    except UsageError:
        raise
    except Exception as error:  # another kind of file, or a damaged one
        raise UsageError(f"data.source: {file.parent} holds no {NAME}: {one_line(error)}") from error
    if shape[1:] != SHAPE or of_labels != (count, 1, 1, 1) or kinds[0] != np.uint8 or kinds[1].kind not in "ui":
        what = f"images of shape {shape} of {kinds[0]!s:.40}, labels of shape {of_labels} of {kinds[1]!s:.40}"
        raise UsageError(f"data.source: {file}: {what}; they must be (N, 96, 96, 3) of uint8 and (N, 1, 1, 1) integers")
    if count > MAX_TARGETS:
        raise UsageError(f"data.source: {file}: {count:,} images; there may be {MAX_TARGETS:,} at most")
    for array, path, name in ((images, file, "images"), (labels, answers, "labels")):
        check_chunks(array, path, name)
    try:
        read = np.asarray(labels[:, 0, 0, 0]).astype(np.int64)
    except Exception as error:
        raise UsageError(f"data.source: {answers} cannot be read: {one_line(error)}") from error
    if not count or not set(np.unique(read).tolist()) <= {0, 1}:
        raise UsageError(f"data.source: {answers}: {count} labels; they must be 0 or 1")
    return PatchSplit(str(file), torch.from_numpy(read), channels)
