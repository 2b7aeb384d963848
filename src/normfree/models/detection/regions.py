"""Region proposals and heads for regions: torchvision's Faster and Mask R-CNN, image by image.

Differences from torchvision: anchors and region pooling are given the strides instead of guessing them from the first
images; the anchors and regions of a loss are sampled with a seed that comes with each image; and each loss is a mean
within an image, so that the gradient of a batch is the mean of its images' gradients.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import roi_align

from .heads import BoxPredictor
from .pyramid import at_least_float32

ANCHORS, REGIONS = 0x0A_4C_08, 0x0E_61_05  # two different random samples from the one seed of an image
CELLS = 14.0  # least side of a region on its level, in places: 224 pixels at stride 16 (arXiv:1612.03144, eq. 1)
BETA = 1 / 9  # of the smooth L1 loss, as torchvision's
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the boxes' offsets


class Anchors(nn.Module):
    """Boxes of one area and several aspects around the centre of every place of every level.

    Args:
        strides: of the levels, in pixels.
        scale: side of a square anchor over its level's stride.
        ratios: heights over widths.
    """

    def __init__(self, strides: Sequence[int], scale: float, ratios: Sequence[float]):
        super().__init__()
        self.strides, self.scale, self.ratios = strides, scale, ratios

    def forward(self, images: ImageList, levels: Sequence[Tensor]) -> list[Tensor]:
        """(A, 4) for each image: left, top, right, bottom in pixels, in the order of the levels' places."""
        parts = []
        for stride, level in zip(self.strides, levels, strict=True):
            ratios = torch.tensor(self.ratios, device=level.device, dtype=level.dtype).sqrt()
            half = torch.stack([1 / ratios, ratios], 1) * (self.scale * stride / 2)  # widths and heights
            y, x = (
                stride * (torch.arange(side, device=level.device, dtype=level.dtype) + 0.5) for side in level.shape[-2:]
            )
            centres = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)[:, :, None]
            parts.append(torch.cat([centres - half, centres + half], -1).view(-1, 4))
        return [torch.cat(parts)] * len(images.image_sizes)


class RegionPool(nn.Module):
    """Bilinear samples of regions (RoIAlign, 2 x 2 per bin): K boxes -> (K, C, size, size).

    A region comes from the coarsest level on which it is at least 14 places across, else from the finest.
    """

    def __init__(self, strides: Sequence[int], size: int):
        super().__init__()
        self.strides, self.size = strides, size

    def forward(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        owners = torch.repeat_interleave(
            torch.arange(len(boxes), device=levels[0].device),
            torch.tensor([len(some) for some in boxes], device=levels[0].device),
        )
        all_boxes = torch.cat(list(boxes)).to(levels[0].dtype)
        rois = torch.cat([owners[:, None].to(all_boxes.dtype), all_boxes], 1)
        across = ((all_boxes[:, 2] - all_boxes[:, 0]) * (all_boxes[:, 3] - all_boxes[:, 1])).clamp(min=0).sqrt() / CELLS
        place = torch.zeros(len(all_boxes), dtype=torch.int64, device=all_boxes.device)
        for stride in self.strides[1:]:
            place += across >= stride
        out = levels[0].new_zeros(len(all_boxes), levels[0].shape[1], self.size, self.size)
        for number, (stride, level) in enumerate(zip(self.strides, levels, strict=False)):
            indices = torch.where(place == number)[0]
            samples = roi_align(level, rois[indices], self.size, 1 / stride, sampling_ratio=2, aligned=True)
            out = out.index_copy(0, indices, samples)
        return out


def sample_labels(labels: Tensor, count: int, fraction: float, seed: int) -> Tensor:
    """(A,) labels of a random sample of ``count`` of them; all others become -1.

    At most ``fraction`` of the sample is above 0, the rest is 0; -1 is never sampled. The sample depends only on the
    seed and the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    shuffled = labels[order]
    above, zero = order[shuffled > 0][: int(count * fraction)], order[shuffled == 0]
    chosen = torch.cat([above, zero[: count - len(above)]])
    return torch.full_like(labels, -1).index_copy(0, chosen, labels[chosen])


def mean_by_image(values: Tensor, owners: Tensor, counts: Tensor) -> Tensor:
    """(N,) sums of the (K,) values of each owner (an image) over its count; 0 where there are none."""
    sums = torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add(0, owners, values)
    return sums / counts.clamp(min=1)


class RegionProposals(RegionProposalNetwork):
    """torchvision's region proposal network; losses are (N,): each image's mean over its sampled anchors."""

    def __init__(self, *args: Any, anchors: int, fraction: float, **options: Any):
        super().__init__(*args, batch_size_per_image=anchors, positive_fraction=fraction, **options)
        self.anchors, self.fraction = anchors, fraction

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each anchor 1, 0 or -1 (not in the loss), and its target box."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        seeds = [target["seed"] ^ ANCHORS for target in targets]
        return [sample_labels(x, self.anchors, self.fraction, s) for x, s in zip(labels, seeds, strict=True)], boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of objectness and box of each image."""
        count = len(labels[0])
        all_labels, goals = torch.cat(labels), torch.cat(regression_targets)
        sampled, positive = torch.where(all_labels >= 0)[0], torch.where(all_labels > 0)[0]
        owners = torch.div(sampled, count, rounding_mode="floor")
        counts = torch.bincount(owners, minlength=len(labels))
        logits = objectness.flatten()[sampled]
        entropy = F.binary_cross_entropy_with_logits(logits, all_labels[sampled].to(logits.dtype), reduction="none")
        error = F.smooth_l1_loss(pred_bbox_deltas[positive], goals[positive], beta=BETA, reduction="none").sum(1)
        return mean_by_image(entropy, owners, counts), mean_by_image(
            error, torch.div(positive, count, rounding_mode="floor"), counts
        )


class RegionHeads(RoIHeads):
    """torchvision's heads for regions; in training they give (N, 4): losses of class, box and mask of each image, and
    the fraction of its sampled regions whose class is right."""

    box_predictor: BoxPredictor

    def __init__(self, *args: Any, regions: int, fraction: float, **options: Any):
        options |= dict(batch_size_per_image=regions, positive_fraction=fraction, bbox_reg_weights=BOX_WEIGHTS)
        super().__init__(*args, **options)
        self.regions, self.fraction = regions, fraction

    # levels in a list, and one tensor of losses: only DetectionNet calls it
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        features: Sequence[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Any]] | None = None,
    ) -> Tensor | list[dict[str, Tensor]]:
        """Losses in training, else a dict of ``boxes``, ``labels``, ``scores`` and perhaps ``masks`` per image."""
        if self.training:
            assert targets is not None
            return self._losses(features, proposals, targets)
        logits, deltas = self._predict(features, proposals)
        parts = zip(*self.postprocess_detections(logits, deltas, proposals, image_shapes), strict=True)
        detections = [dict(boxes=boxes, scores=scores, labels=labels) for boxes, scores, labels in parts]
        if self.has_mask():
            maps = self._masks(features, [detection["boxes"] for detection in detections])
            for detection, masks in zip(
                detections, maskrcnn_inference(maps, [f["labels"] for f in detections]), strict=True
            ):
                detection["masks"] = masks[:, 0]
        return detections

    def _predict(self, features: Sequence[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes)))
        return at_least_float32(logits), at_least_float32(deltas)

    def _masks(self, features: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        return at_least_float32(self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes))))

    # no images without targets: only this class calls it
    def select_training_samples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, proposals: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Sampled regions of each image, the object that each one is matched with, its class, and its box offsets."""
        kind = proposals[0].dtype
        true = [target["boxes"].to(kind) for target in targets]
        proposals = self.add_gt_proposals(proposals, true)
        matched, labels = self.assign_targets_to_proposals(proposals, true, [t["labels"] for t in targets])
        for i, target in enumerate(targets):
            sampled = sample_labels(labels[i], self.regions, self.fraction, target["seed"] ^ REGIONS)
            indices = torch.where(sampled >= 0)[0]
            proposals[i], matched[i], labels[i] = proposals[i][indices], matched[i][indices], labels[i][indices]
        boxes = [b if len(b) else b.new_zeros(1, 4) for b in true]  # no region is matched with it
        goals = self.box_coder.encode([b[m] for b, m in zip(boxes, matched, strict=True)], proposals)
        return proposals, matched, labels, list(goals)

    def _losses(self, features: Sequence[Tensor], proposals: list[Tensor], targets: list[dict[str, Any]]) -> Tensor:
        boxes, matched, labels, goals = self.select_training_samples(proposals, targets)
        logits, deltas = self._predict(features, boxes)
        all_labels, counts = torch.cat(labels), torch.tensor([len(some) for some in labels], device=logits.device)
        owners = torch.repeat_interleave(torch.arange(len(labels), device=logits.device), counts)
        entropy = F.cross_entropy(logits, all_labels, reduction="none")
        positive = torch.where(all_labels > 0)[0]
        predicted = deltas.view(len(all_labels), -1, 4)[positive, all_labels[positive]]
        error = F.smooth_l1_loss(predicted, torch.cat(goals)[positive], beta=BETA, reduction="none").sum(1)
        right = (logits.detach().argmax(1) == all_labels).to(entropy.dtype)
        columns = [mean_by_image(entropy, owners, counts), mean_by_image(error, owners[positive], counts)]
        if self.has_mask():
            columns.append(self._mask_losses(features, boxes, matched, labels, targets))
        else:
            columns.append(torch.zeros_like(columns[0]))
        return torch.stack([*columns, mean_by_image(right, owners, counts)], 1)

    def _mask_losses(
        self,
        features: Sequence[Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[dict[str, Any]],
    ) -> Tensor:
        """Of each image: the mean over its regions with an object of the mean binary cross-entropy over their masks."""
        positive = [torch.where(some > 0)[0] for some in labels]
        boxes = [b[a] for b, a in zip(boxes, positive, strict=True)]
        maps = self._masks(features, boxes)
        size = maps.shape[-1]
        goals = []
        for box, match, a, target in zip(boxes, matched, positive, targets, strict=True):
            which = match[a][:, None].to(box.dtype)
            masks = target["masks"][:, None].to(box.dtype)
            if not len(a):  # perhaps there is no mask to sample from, either
                goals.append(maps.new_zeros(0, size, size))
            else:
                goals.append(roi_align(masks, torch.cat([which, box], 1), size, aligned=True)[:, 0].to(maps.dtype))
        classes = torch.cat([some[a] for some, a in zip(labels, positive, strict=True)])
        predicted = maps[torch.arange(len(maps), device=maps.device), classes]
        entropy = F.binary_cross_entropy_with_logits(predicted, torch.cat(goals), reduction="none").mean((1, 2))
        counts = torch.tensor([len(a) for a in positive], device=maps.device)
        owners = torch.tensor(
            list(itertools.chain(*([i] * len(a) for i, a in enumerate(positive)))), device=maps.device
        )
        return mean_by_image(entropy, owners.long(), counts)
