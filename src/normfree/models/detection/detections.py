"""The objects that a network detects in an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The objects that a network detects in an image, by falling score.

    Attributes:
        boxes: (K, 4), left, top, right, bottom in pixels.
        scores: (K,), 0 to 1.
        labels: (K,) int64, counted from 0.
        masks: (K, 28, 28) probabilities within the boxes; after :meth:`placed` (K, H, W) bool; None: no masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def placed(self, size: tuple[int, int], original: tuple[int, int]) -> "Detections":
        """The same in pixels of the original image, with masks of its size, on the CPU.

        Args:
            size, original: (height, width) of the image as the network saw it, and as it was.
        """
        (height, width), (tall, wide) = size, original
        boxes, masks = self.boxes.float().cpu() * torch.tensor([wide / width, tall / height] * 2), self.masks
        boxes[:, 0::2].clamp_(0, wide)
        boxes[:, 1::2].clamp_(0, tall)
        if masks is not None:
            places = torch.zeros(len(masks), *original, dtype=torch.bool)
            for place, mask, box in zip(places, masks.float().cpu(), boxes.tolist(), strict=True):
                _place(mask, box, place)
            masks = places
        return Detections(boxes, self.scores.float().cpu(), self.labels.cpu(), masks)

    def without_masks(self) -> "Detections":
        return Detections(self.boxes, self.scores, self.labels)

    def chosen(self, which: Tensor | slice) -> "Detections":
        """Some of them, by a (K,) bool tensor or a slice."""
        masks = None if self.masks is None else self.masks[which]
        return Detections(self.boxes[which], self.scores[which], self.labels[which], masks)


def _place(mask: Tensor, box: Sequence[float], place: Tensor) -> None:
    """Set the pixels of ``place`` (H, W) whose centres lie within a mask (h, w), whose cells divide the box.

    The training targets of masks are sampled in the same way. torchvision rounds boxes to whole pixels here, which
    loses a fifth of a small object.
    """
    left, top, right, bottom = box
    columns, rows = (
        slice(math.ceil(left - 0.5), math.ceil(right - 0.5)),
        slice(math.ceil(top - 0.5), math.ceil(bottom - 0.5)),
    )
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return
    x = (torch.arange(columns.start, columns.stop) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(rows.start, rows.stop) + 0.5 - top) / (bottom - top) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    at = F.grid_sample(mask[None, None], grid, padding_mode="border", align_corners=False)
    place[rows, columns] = at[0, 0] >= 0.5
