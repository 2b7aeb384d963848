"""Networks that find objects: Faster R-CNN and Mask R-CNN without normalization, on any network here.

Faster R-CNN: arXiv:1506.01497; Mask R-CNN: arXiv:1703.06870; both with a feature pyramid, arXiv:1612.03144. What
torchvision does between the layers (anchors, matching, proposals, suppression) is torchvision's, see :mod:`.regions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..nn import Activation, Role, WSConv2d
from .body import ResidualNet
from .dense import OnBackbone, activation_of, check_width, last_conv, like
from .pyramid import Pyramid, full

LOSSES = ("objectness", "proposal", "class", "box", "mask")
POOLED, POOLED_MASK = 7, 14  # places across a region, for its class and its mask
BOX_FEATURES = 4  # times the pyramid's width: 1024 of 256
MASK_CONVS = 4
DETECTIONS, LEAST_SCORE, OVERLAP = 100, 0.05, 0.5  # per image, of a detection, of two of a class
ANCHORS, ANCHORS_WITH_OBJECTS, REGIONS_WITH_OBJECTS = 256, 0.5, 0.25  # drawn per image, and parts of them


class ProposalHead(nn.Module):
    """On each level whether there is an object, and its box: (N, C, H, W) -> (N, A, H, W), (N, 4 A, H, W)."""

    parameter_roles = {"objectness.weight": Role.CLASSIFIER, "offsets.weight": Role.CLASSIFIER}

    def __init__(self, width: int, anchors: int, act: Activation):
        super().__init__()
        self.conv, self.act = WSConv2d(width, width, 3), like(act)
        self.objectness = last_conv(width, anchors, 1, 0.01)
        self.offsets = last_conv(width, 4 * anchors, 1, 0.01)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        maps = [self.act(self.conv(level)) * self.act.gamma for level in levels]
        return [full(self.objectness(x)) for x in maps], [full(self.offsets(x)) for x in maps]


class BoxHead(nn.Sequential):
    """Two standardized layers on a whole region: (K, C, 7, 7) -> (K, features, 1, 1), of variance 1 as its input."""

    def __init__(self, width: int, features: int, act: Activation):
        first = WSConv2d(width, features, POOLED, padding=0)
        super().__init__(first, like(act), WSConv2d(features, features, 1, input_scale=act.gamma), like(act))


class BoxPredictor(nn.Module):
    """Class and box of regions: (K, features, 1, 1) -> (K, classes + 1), (K, 4 (classes + 1)); class 0 is none."""

    parameter_roles = {"classes.weight": Role.CLASSIFIER, "offsets.weight": Role.CLASSIFIER}

    def __init__(self, features: int, num_classes: int, gamma: float):
        super().__init__()
        self.classes = last_conv(features, num_classes + 1, 1, 0.01)
        self.offsets = last_conv(features, 4 * (num_classes + 1), 1, 0.001)
        self.gamma = gamma

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * self.gamma
        return self.classes(x).flatten(1), self.offsets(x).flatten(1)


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions and twice the size: (K, C, 14, 14) -> (K, C, 28, 28).

    A transposed 2x2 convolution of stride 2 is a 1x1 convolution to four times the channels and a shuffle: so its
    units are rows of a weight, as of all others.
    """

    def __init__(self, width: int, act: Activation):
        layers: list[nn.Module] = []
        for i in range(MASK_CONVS):
            layers += [WSConv2d(width, width, 3, input_scale=act.gamma if i else 1.0), like(act)]
        up = WSConv2d(width, 4 * width, 1, input_scale=act.gamma)
        super().__init__(*layers, up, Shuffle(), like(act))


class Shuffle(nn.Module):
    """(K, 4 C, H, W) -> (K, C, 2 H, 2 W); as :class:`torch.nn.PixelShuffle`, which cannot go back from no images."""

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        parts = x.view(count, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(count, channels // 4, 2 * height, 2 * width)


class MaskPredictor(nn.Module):
    """A mask for each class: (K, C, 28, 28) -> (K, classes + 1, 28, 28) logits."""

    parameter_roles = {"classes.weight": Role.CLASSIFIER}

    def __init__(self, width: int, num_classes: int, gamma: float):
        super().__init__()
        self.classes, self.gamma = last_conv(width, num_classes + 1, 1, 0.01), gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(x * self.gamma)


@dataclass(frozen=True)
class Detections:
    """What was found in an image, the surest first.

    Attributes:
        boxes: (K, 4), left, top, right, bottom in pixels.
        scores: (K,), 0 to 1.
        labels: (K,) int64, counted from 0.
        masks: (K, 28, 28) probabilities within the boxes; of :meth:`placed` (K, H, W) bool; None: not asked for.
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
        return Detections(*(x if x is None else x[which] for x in (self.boxes, self.scores, self.labels, self.masks)))


def _place(mask: Tensor, box: Sequence[float], place: Tensor) -> None:
    """Set the pixels of an image (H, W) whose centres lie within a mask (h, w), whose cells divide the box.

    So masks are taught, too. Boxes of whole pixels, as torchvision has here, lose a fifth of a small object.
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


class DetectionNet(OnBackbone):
    """Backbone, feature pyramid, region proposals and heads for regions.

    ``forward(images, targets)`` takes images (N, in_chans, H, W) and for each its ``size`` (height, width) within
    them; in training also ``boxes`` (K, 4) in pixels, ``labels`` (K,) from 0, ``masks`` (K, h, w) and the ``seed`` of
    its draws (:class:`normfree.data.Objects` has all of these). It gives in training (N, 6): the five ``LOSSES`` of
    each image, and the share of its regions whose class is right; in evaluation a list of :class:`Detections`, in
    pixels of the images as given. Without targets, in evaluation, images are whole.
    """

    def __init__(self, backbone: ResidualNet, pyramid: Pyramid, proposals: nn.Module, heads: nn.Module):
        super().__init__(backbone)
        self.pyramid, self.proposals, self.heads = pyramid, proposals, heads

    @property
    def masks(self) -> bool:
        """Whether it draws masks."""
        return self.heads.has_mask()

    def forward(self, images: Tensor, targets: Sequence[Any] | None = None) -> Tensor | list[Detections]:
        if not len(images):  # of a process without images all layers run nevertheless: others may wait for its parts
            return self._without_images(images)
        whole = tuple(images.shape[-2:])
        if self.training and targets is None:
            raise UsageError("a network for detection in training mode needs targets beside its images")
        if targets is not None and len(targets) != len(images):
            raise UsageError(f"{len(targets)} targets are given for {len(images)} images; each needs one")
        sizes = [whole] * len(images) if targets is None else [tuple(target.size) for target in targets]
        if self.training:
            return self._losses(images, sizes, [self._target(target) for target in targets])
        levels, padded = self._levels(images, sizes)
        proposals, _ = self.proposals(padded, dict(enumerate(levels)))
        found = self.heads(levels[:-1], proposals, sizes)
        return [Detections(one["boxes"], one["scores"], one["labels"] - 1, one.get("masks")) for one in found]

    def _without_images(self, images: Tensor) -> Tensor | list[Detections]:
        blank = images.new_zeros(1, *images.shape[1:])
        if not self.training:
            return self.forward(blank)[:0]
        labels = torch.zeros(0, dtype=torch.int64, device=images.device)
        nothing = dict(boxes=images.new_zeros(0, 4), labels=labels, masks=images.new_zeros(0, 1, 1), seed=0)
        return self._losses(blank, [tuple(images.shape[-2:])], [nothing])[:0]

    def _levels(self, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[Tensor], Any]:
        """The pyramid of images, padded to what the strides divide."""
        from torchvision.models.detection.image_list import ImageList

        stride = self.pyramid.strides[-2]
        beyond = [-side % stride for side in images.shape[-2:]]
        images = F.pad(images, (0, beyond[1], 0, beyond[0])) if any(beyond) else images
        return self.pyramid(self.backbone, images), ImageList(images, sizes)

    def _losses(self, images: Tensor, sizes: list[tuple[int, int]], targets: list[dict[str, Any]]) -> Tensor:
        levels, padded = self._levels(images, sizes)
        proposals, losses = self.proposals(padded, dict(enumerate(levels)), targets)
        first = torch.stack([losses["loss_objectness"], losses["loss_rpn_box_reg"]], 1)
        return torch.cat([first, self.heads(levels[:-1], proposals, sizes, targets)], 1)

    def _target(self, target: Any) -> dict[str, Any]:
        """As torchvision names it; class 0 is none."""
        if self.masks and target.masks is None:
            raise UsageError("a network that draws masks needs targets with masks")
        boxes, labels, classes = target.boxes, target.labels, self.heads.box_predictor.classes.out_channels - 1
        if ((labels < 0) | (labels >= classes)).any():
            raise UsageError(f"labels (={labels.tolist()}) must be 0 to {classes - 1}")
        if not (boxes[:, :2] < boxes[:, 2:]).all():
            raise UsageError(f"boxes (={boxes.tolist()}) must be left, top, right, bottom, of an area above 0")
        return dict(boxes=target.boxes, labels=target.labels + 1, masks=target.masks, seed=target.seed)


def detector(
    backbone: ResidualNet,
    num_classes: int,
    *,
    masks: bool = True,
    width: int | None = None,
    anchor_scale: float = 8.0,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposals: int = 1000,
    regions: int = 512,
) -> DetectionNet:
    """Mask R-CNN, or Faster R-CNN without ``masks``, on a backbone, whose classifier is removed.

    Args:
        num_classes: kinds of objects, without the background.
        width: channels of the pyramid and the heads; None: 256.
        anchor_scale: side of a square anchor over its level's stride.
        anchor_ratios: heights over widths of the anchors at each place.
        proposals: regions of an image that the second stage looks at; twice as many of each level are compared first in
            training.
        regions: drawn of them per image in training, a quarter with objects where there are so many.

    Raises:
        UsageError: a number out of range.
    """
    check_width(width)
    for name, value in dict(num_classes=num_classes, proposals=proposals, regions=regions).items():
        if value < 1:
            raise UsageError(f"{name} (={value}) must be at least 1 for detection")
    if not anchor_scale > 0 or not anchor_ratios or not all(ratio > 0 for ratio in anchor_ratios):
        raise UsageError(f"anchor_scale (={anchor_scale}) and anchor_ratios (={list(anchor_ratios)}) must be above 0")
    from .regions import Anchors, RegionHeads, RegionPool, RegionProposals  # torchvision's models take a second

    width, act = width or 256, activation_of(backbone)
    pyramid = Pyramid(backbone, width, act)
    first = RegionProposals(
        Anchors(pyramid.strides, anchor_scale, tuple(anchor_ratios)),
        ProposalHead(width, len(anchor_ratios), act),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        anchors=ANCHORS,
        fraction=ANCHORS_WITH_OBJECTS,
        pre_nms_top_n=dict(training=2 * proposals, testing=proposals),
        post_nms_top_n=dict(training=proposals, testing=proposals),
        nms_thresh=0.7,
    )
    features, strides = BOX_FEATURES * width, pyramid.strides[:-1]
    drawing: dict[str, nn.Module] = {}
    if masks:
        drawing = dict(mask_roi_pool=RegionPool(strides, POOLED_MASK), mask_head=MaskHead(width, act))
        drawing["mask_predictor"] = MaskPredictor(width, num_classes, act.gamma)
    second = RegionHeads(
        RegionPool(strides, POOLED),
        BoxHead(width, features, act),
        BoxPredictor(features, num_classes, act.gamma),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        regions=regions,
        fraction=REGIONS_WITH_OBJECTS,
        score_thresh=LEAST_SCORE,
        nms_thresh=OVERLAP,
        detections_per_img=DETECTIONS,
        **drawing,
    )
    return DetectionNet(backbone, pyramid, first, second)
