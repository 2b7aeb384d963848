"""Predictions for each pixel of test images, for the page of ``normfree report``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch import Tensor

from ..data import UnreadableImage
from ..data.resize import pixels_of
from ..pictures.drawing import rgb_picture
from ..report import Overlay, percent
from .gallery import Look


@dataclass(frozen=True)
class AnsweredImage:
    """An image (C, H, W) uint8 as it is evaluated, the truth (H, W), and the network's output (outputs, H, W)."""

    image: Tensor
    truth: Tensor
    answer: Tensor
    score: float
    name: str


def answered(look: Look, chosen: Sequence[tuple[float, int]]) -> list[AnsweredImage]:
    """Images by (score, index) with their outputs; those that have become unreadable are left out."""
    view, split, images = look.trained.transform, look.split, []
    for score, index in chosen:
        try:
            image, truth = view(*split.pair(index))
        except UnreadableImage:
            continue
        with torch.inference_mode():
            answer = look.trained.model(image[None].to(look.device))[0].float().cpu()
        images.append(AnsweredImage(pixels_of(image, view.mean, view.std), truth, answer, score, split.name(index)))
    return images


def overlay(one: AnsweredImage, truth: Image.Image, answer: Image.Image, detail: str = "") -> Overlay:
    """An image beside pictures of the truth and of the prediction."""
    panels = [("image", rgb_picture(one.image)), ("truth", truth), ("network", answer)]
    return Overlay(panels, percent(one.score, 1), detail + "/".join(PurePath(one.name).parts[-2:]), one.name)
