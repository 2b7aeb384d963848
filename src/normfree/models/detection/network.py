"""Mask R-CNN: backbone, feature pyramid, region proposals, heads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ...nn import Activation
from ..backbone import OnBackbone, activation_of, check_width
from ..body import ResidualNet
from .detections import Detections
from .heads import POOLED, POOLED_MASK, BoxHead, BoxPredictor, MaskHead, MaskPredictor, ProposalHead
from .pyramid import Pyramid

if TYPE_CHECKING:
    from .regions import Anchors, RegionHeads, RegionProposals

LOSSES = ("objectness", "proposal", "class", "box", "mask")
BOX_FEATURES = 4  # times the pyramid's width: 1024 of 256
DETECTIONS_PER_IMAGE = 100
SCORE_THRESHOLD = 0.05  # below it a region is no detection
NMS_OVERLAP = 0.5  # of two detections of a class, from which on the less sure one is left out
ANCHORS_PER_IMAGE, ANCHORS_WITH_OBJECTS = 256, 0.5  # sampled for the proposals' loss, and the fraction of objects
REGIONS_WITH_OBJECTS = 0.25  # fraction of the regions sampled for the losses of the heads


class ObjectTarget(Protocol):
    """The objects of one training image; see :class:`DetectionNet`."""

    size: Sequence[int]
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    seed: int


class DetectionNet(OnBackbone):
    """Backbone, feature pyramid, region proposals and heads for regions.

    ``forward(images, targets)`` takes images (N, in_chans, H, W) and for each its ``size`` (height, width) within
    them; in training also ``boxes`` (K, 4) in pixels, ``labels`` (K,) from 0, ``masks`` (K, h, w) and the ``seed`` of
    its random samples (:class:`normfree.data.Objects` has all of these). In training it returns (N, 6): the five
    ``LOSSES`` of each image, and the fraction of its regions whose class is right; in evaluation a list of
    :class:`Detections`, in pixels of the input images. In evaluation targets may be left out; each image then has the
    size of the batch.
    """

    def __init__(self, backbone: ResidualNet, pyramid: Pyramid, proposals: "RegionProposals", heads: "RegionHeads"):
        super().__init__(backbone)
        self.pyramid, self.proposals, self.heads = pyramid, proposals, heads

    @property
    def masks(self) -> bool:
        """Whether it draws masks."""
        return self.heads.has_mask()

    def forward(self, images: Tensor, targets: Sequence[ObjectTarget] | None = None) -> Tensor | list[Detections]:
        if not len(images):  # all layers run nevertheless: other processes may wait for this one
            return self._without_images(images)
        height, width = images.shape[-2:]
        if self.training and targets is None:
            raise UsageError("a network for detection in training mode needs targets beside its images")
        if targets is not None and len(targets) != len(images):
            raise UsageError(f"{len(targets)} targets are given for {len(images)} images; each needs one")
        sizes = [(height, width)] * len(images)
        if targets is not None:
            sizes = [(height, width) for height, width in (target.size for target in targets)]
        if self.training and targets is not None:
            return self._losses(images, sizes, [self._target(target) for target in targets])
        levels, padded = self._levels(images, sizes)
        proposals, _ = self.proposals(padded, dict(enumerate(levels)))
        results = self.heads(levels[:-1], proposals, sizes)
        return [
            Detections(result["boxes"], result["scores"], result["labels"] - 1, result.get("masks"))
            for result in results
        ]

    def _without_images(self, images: Tensor) -> Tensor | list[Detections]:
        blank = images.new_zeros(1, *images.shape[1:])
        if not self.training:
            return self.forward(blank)[:0]
        labels = torch.zeros(0, dtype=torch.int64, device=images.device)
        nothing = dict(boxes=images.new_zeros(0, 4), labels=labels, masks=images.new_zeros(0, 1, 1), seed=0)
        height, width = images.shape[-2:]
        return self._losses(blank, [(height, width)], [nothing])[:0]

    def _levels(self, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[Tensor], Any]:
        """The pyramid of images, padded so that the strides divide their sides."""
        from torchvision.models.detection.image_list import ImageList

        stride = self.pyramid.strides[-2]
        bottom, right = (-side % stride for side in images.shape[-2:])
        images = F.pad(images, (0, right, 0, bottom)) if bottom or right else images
        return self.pyramid(self.backbone, images), ImageList(images, sizes)

    def _losses(self, images: Tensor, sizes: list[tuple[int, int]], targets: list[dict[str, Any]]) -> Tensor:
        levels, padded = self._levels(images, sizes)
        proposals, losses = self.proposals(padded, dict(enumerate(levels)), targets)
        first = torch.stack([losses["loss_objectness"], losses["loss_rpn_box_reg"]], 1)
        return torch.cat([first, self.heads(levels[:-1], proposals, sizes, targets)], 1)

    def _target(self, target: ObjectTarget) -> dict[str, Any]:
        """The target in torchvision's format, where class 0 is the background."""
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
        proposals: regions of an image that go to the second stage; in training, suppression starts from twice as many
            of each level.
        regions: how many of them are sampled per image in training, at most a quarter of them with objects.

    Raises:
        UsageError: a number out of range.

    Example:
        >>> network = detector(build_model("nf_resnet26_small"), num_classes=3, width=16).eval()
        >>> (detections,) = network(torch.randn(1, 3, 32, 32))
        >>> detections.boxes.shape[1], len(detections) <= 100
        (4, True)
    """
    check_width(width)
    for name, value in dict(num_classes=num_classes, proposals=proposals, regions=regions).items():
        if value < 1:
            raise UsageError(f"{name} (={value}) must be at least 1 for detection")
    if not anchor_scale > 0 or not anchor_ratios or not all(ratio > 0 for ratio in anchor_ratios):
        raise UsageError(f"anchor_scale (={anchor_scale}) and anchor_ratios (={list(anchor_ratios)}) must be above 0")
    from .regions import Anchors  # torchvision's models take a second to import

    width, act = width or 256, activation_of(backbone)
    pyramid = Pyramid(backbone, width, act)
    anchors = Anchors(pyramid.strides, anchor_scale, tuple(anchor_ratios))
    first = _region_proposals(anchors, ProposalHead(width, len(anchor_ratios), act), proposals)
    second = _region_heads(pyramid.strides[:-1], width, num_classes, act, masks=masks, regions=regions)
    return DetectionNet(backbone, pyramid, first, second)


def _region_proposals(anchors: "Anchors", head: ProposalHead, proposals: int) -> "RegionProposals":
    from .regions import RegionProposals

    return RegionProposals(
        anchors,
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        anchors=ANCHORS_PER_IMAGE,
        fraction=ANCHORS_WITH_OBJECTS,
        pre_nms_top_n=dict(training=2 * proposals, testing=proposals),
        post_nms_top_n=dict(training=proposals, testing=proposals),
        nms_thresh=0.7,
    )


def _region_heads(
    strides: Sequence[int], width: int, num_classes: int, act: Activation, *, masks: bool, regions: int
) -> "RegionHeads":
    from .regions import RegionHeads, RegionPool

    mask_layers: dict[str, nn.Module] = {}
    if masks:
        mask_layers = dict(mask_roi_pool=RegionPool(strides, POOLED_MASK), mask_head=MaskHead(width, act))
        mask_layers["mask_predictor"] = MaskPredictor(width, num_classes, act.gamma)
    features = BOX_FEATURES * width
    return RegionHeads(
        RegionPool(strides, POOLED),
        BoxHead(width, features, act),
        BoxPredictor(features, num_classes, act.gamma),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        regions=regions,
        fraction=REGIONS_WITH_OBJECTS,
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=NMS_OVERLAP,
        detections_per_img=DETECTIONS_PER_IMAGE,
        **mask_layers,
    )
