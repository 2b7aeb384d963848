"""What a trained network is shown where its signal is recorded."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Split, UnreadableImage
from ..tasks import Trained
from ..words import counted
from .prepare import PROBE


@dataclass(frozen=True)
class Shown:
    """Inputs (N, C, H, W), what they are in words, and whether they are those of ``train --spp-every``."""

    inputs: Tensor
    what: str
    own: bool


def shown_to(trained: Trained, test: Split | None, count: int = PROBE) -> Shown:
    """The first readable test images as the network is evaluated on them; noise of that size where there are none."""
    images = None if test is None else _first_images(test, trained, count)
    if images is not None:
        return Shown(images, counted(len(images), "test image"), count == PROBE)
    noise = torch.randn((count, *trained.shape), generator=torch.Generator().manual_seed(0))
    return Shown(noise, "unit Gaussian noise, for want of test images", False)


def _first_images(split: Split, trained: Trained, count: int) -> Tensor | None:
    """(N, C, H, W) of so many readable ones; None if there are none."""
    images = []
    for index in range(min(len(split), 4 * count)):
        try:
            images.append(trained.view(split.image(index)))
        except UnreadableImage:
            continue
        if len(images) == count:
            break
    return torch.stack(images) if images else None
