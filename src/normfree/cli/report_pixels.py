"""What a network for segmentation or depth makes of test images, for the page of ``normfree report``."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ..data import Batch, Split, UnreadableImage
from ..data.resize import pixels_of
from ..report import Colors, Overlay, Overlays, Range, Table, percent
from ..report.drawing import class_colors, depth_colors, draw_depth, draw_mask, rgb_picture
from ..tasks.depth import NEAREST, fraction_near
from ..tasks.segmentation import Overlap, fraction_right
from .report_looks import Way
from .trained import Trained, evaluation_transform

SCORES = dict(segmentation=fraction_right, depth=fraction_near)
NAMES = dict(segmentation="of the pixels right", depth="of the pixels within a factor of 1.25")


def pixels(trained: Trained, split: Split, device: torch.device) -> Way:
    """Of segmentation and depth."""
    task, names = trained.recipe.task.name, trained.names

    def draw(chosen: list[tuple[float, int]], metrics: Any) -> Overlays:
        seen = [_seen(trained, split, index, score, device) for score, index in chosen]
        seen = [one for one in seen if one is not None]
        if task == "depth":
            return Overlays(*_depths(seen))
        return Overlays(*_masks(seen, names), [_by_class(metrics, names)])

    def score(output: Tensor, batch: Batch) -> list[float]:
        return SCORES[task](output, batch.targets).tolist()

    return Way(score, draw, f"the share {NAMES[task]}")


@dataclass(frozen=True)
class _Seen:
    """An image (C, H, W) uint8 as it is evaluated, the truth (H, W), the network's answer (outputs, H, W)."""

    image: Tensor
    truth: Tensor
    said: Tensor
    score: float
    name: str


def _seen(trained: Trained, split: Split, index: int, score: float, device: torch.device) -> _Seen | None:
    """None if it cannot be read any more."""
    view = evaluation_transform(trained)
    try:
        image, truth = view(*split.pair(index))
    except UnreadableImage:
        return None
    with torch.inference_mode():
        said = trained.model(image[None].to(device))[0].float().cpu()
    return _Seen(pixels_of(image, view.mean, view.std), truth, said, score, split.name(index))


def _overlay(one: _Seen, truth: Any, said: Any, more: str = "") -> Overlay:
    panels = [("image", rgb_picture(one.image)), ("truth", truth), ("network", said)]
    return Overlay(panels, percent(one.score, 1), more + "/".join(PurePath(one.name).parts[-2:]), one.name)


def _masks(seen: Sequence[_Seen], names: Sequence[str]) -> tuple[list[Overlay], Colors]:
    """Masks over their images, and the colours of the classes that are in any."""
    palette = class_colors(len(names))
    drawn, there = [], torch.zeros(len(names), dtype=torch.bool)
    for one in seen:
        answer = one.said.argmax(0)
        for mask in (one.truth, answer):
            there[mask[mask < len(names)]] = True
        drawn.append(_overlay(one, *(draw_mask(one.image, mask, palette) for mask in (one.truth, answer))))
    known = there.nonzero()[:, 0].tolist()
    return drawn, Colors([names[i] for i in known], palette[known])


def _depths(seen: Sequence[_Seen]) -> tuple[list[Overlay], Range]:
    """Depth in the same colours in all pictures: those of the range of what was measured in them."""
    measured = [one.truth[one.truth > 0] for one in seen if (one.truth > 0).any()]
    low = min((values.min().item() for values in measured), default=0.0)
    high = max((values.max().item() for values in measured), default=1.0)
    draw = functools.partial(draw_depth, low=low, high=high)
    drawn = []
    for one in seen:
        said = one.said[0].clamp(min=NEAREST)
        ends = [
            f"{values.min():.2f} to {values.max():.2f} m" for values in (one.truth[one.truth > 0], said) if len(values)
        ]
        more = f"{ends[0]}; network {ends[1]}\n" if len(ends) > 1 else ""
        drawn.append(_overlay(one, draw(one.truth), draw(said), more))
    return drawn, Range(low, high, "m", depth_colors())


def _by_class(metrics: Overlap, names: Sequence[str]) -> Table:
    """How well each class is found, and what it is taken for."""
    confusion = metrics.confusion.double()
    true, said, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    rows = []
    for i, (name, value) in enumerate(zip(names, metrics.per_class(), strict=True)):
        wrong = confusion[i].clone()
        wrong[i] = 0
        other = f"{names[int(wrong.argmax())]} {percent((wrong.max() / true[i]).item(), 1)}" if wrong.any() else ""
        parts = [_share(true[i], confusion.sum()), _share(right[i], true[i]), _share(right[i], said[i])]
        rows.append([name, percent(None if math.isnan(value) else value, 1), *parts, other])
    headings = ["class", "IoU", "of all pixels", "found", "right where said", "taken for most"]
    note = "IoU: pixels that are the class and are said to be, of those that are one or the other."
    return Table("Each class, over all test images", headings, rows, class_colors(len(names)), note)


def _share(part: Tensor, whole: Tensor) -> str:
    return percent((part / whole).item() if whole > 0 else None, 1)
