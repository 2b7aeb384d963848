"""The inputs for recording the signal of a trained network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Split, UnreadableImage
from ..tasks import Trained
from ..words import counted
from .prepare import PROBE


@dataclass(frozen=True)
class SignalInputs:
    """Inputs (N, C, H, W), a description of them, and whether they are those of ``train --spp-every``."""

    images: Tensor
    description: str
    of_training: bool


def signal_inputs(trained: Trained, test: Split | None, count: int = PROBE) -> SignalInputs:
    """The first readable test images, preprocessed as for evaluation; noise of that size if there are none."""
    images = None if test is None else _first_images(test, trained, count)
    if images is not None:
        return SignalInputs(images, counted(len(images), "test image"), count == PROBE)
    noise = torch.randn((count, *trained.shape), generator=torch.Generator().manual_seed(0))
    return SignalInputs(noise, "unit Gaussian noise, for want of test images", False)


def _first_images(split: Split, trained: Trained, count: int) -> Tensor | None:
    """The first ``count`` readable images (N, C, H, W); None if there are none."""
    images = []
    for index in range(min(len(split), 4 * count)):
        try:
            images.append(trained.view(split.image(index)))
        except UnreadableImage:
            continue
        if len(images) == count:
            break
    return torch.stack(images) if images else None
