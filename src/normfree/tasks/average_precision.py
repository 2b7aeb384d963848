"""COCO's average precision of boxes and masks, and how well the objects of one image are found."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Batch, ObjectList, Objects
from ..data.coco_masks import mask_tools
from ..errors import UsageError
from ..models.detection import Detections

NAMES = dict(map="ap", map_50="ap50", map_75="ap75", map_small="ap_small", map_medium="ap_medium", map_large="ap_large")
IOU_TYPES = dict(bbox="", segm="mask_")  # what torchmetrics calls them, and our prefix
MAX_DETECTIONS = [1, 10, 100]  # detections per image that count, as COCO's
# COCO's own numbers, which differ from torchmetrics' by float32's rounding: an overlap of 0.8 is at least 0.8
OVERLAPS, RECALLS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0.0, 1.0, 101).tolist()


class AveragePrecision:
    """COCO's average precision of boxes and masks, in pixels of the files.

    Computed by torchmetrics, which runs COCO's own code.

    Args:
        classes: their number.
        masks: whether to evaluate masks, too.
    """

    def __init__(self, classes: int, masks: bool):
        self.classes, self.masks, self.order = classes, masks, []
        self.metric = needed_for_ap()(
            iou_type=("bbox", "segm") if masks else ("bbox",),
            iou_thresholds=OVERLAPS,
            rec_thresholds=RECALLS,
            max_detection_thresholds=MAX_DETECTIONS,
            extended_summary=True,
            backend="pycocotools",
        )

    def update(self, output: Sequence[Detections], batch: Batch) -> None:
        """Detections and objects of a batch's images."""
        if not len(batch):
            return
        self.order += batch.indices.tolist()
        for item, true in zip(
            output, batch.target_objects, strict=True
        ):  # masks of large images are packed before the next one's
            self.metric.update([_entry(item.placed(true.size, true.original))], _truths(ObjectList([true]), self.masks))

    @property
    def parts(self) -> dict[str, list[Any]]:
        """The state of this process: lists with an entry for each image."""
        return dict(order=self.order) | self.metric.metric_state

    def join(self, parts: Sequence[dict[str, list[Any]]]) -> None:
        """Join the states of all processes in the order of the images, as if there were one process."""
        every = {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
        places = sorted(range(len(every["order"])), key=every["order"].__getitem__)
        self.order = sorted(every.pop("order"))
        for name, entries in every.items():
            setattr(self.metric, name, [entries[place] for place in places] if entries else [])
        self.metric.update([], [])  # forgets what was computed before

    def compute(self) -> dict[str, float]:
        """``ap`` (mean over overlaps of 0.5 to 0.95), ``ap50``, ``ap75``, of sizes that occur (small: below 32 x 32
        pixels, large: above 96 x 96); of masks with ``mask_`` in front; and the number of images."""
        measured, results = self._computed(), dict[str, float]()
        for kind, prefix in IOU_TYPES.items():
            for theirs, name in NAMES.items():
                value = measured.get(f"{kind}_{theirs}" if self.masks else theirs)
                if value is None or (kind == "segm" and not self.masks):
                    continue
                if value >= 0 or name in ("ap", "ap50", "ap75"):  # -1: nothing of this size is there
                    results[prefix + name] = max(0.0, float(value))
        return results | dict(images=len(self.order))

    def per_class(self, kind: str = "bbox") -> list[float]:
        """AP of each class; NaN for a class without objects."""
        measured = self._computed()
        precision = measured[f"{kind}_precision" if self.masks else "precision"][:, :, :, 0, -1]  # (T, R, K)
        known = measured["classes"].view(-1).tolist()
        values = dict(zip(known, precision.flatten(0, 1).T, strict=True)) if precision.numel() else {}
        averages = {label: value[value >= 0].double().mean().item() for label, value in values.items()}
        return [averages.get(label, float("nan")) for label in range(self.classes)]

    def objects(self) -> list[int]:
        """Number of objects of each class, without crowds."""
        state = self.metric.metric_state
        pairs = zip(state["groundtruth_labels"], state["groundtruth_crowds"], strict=True)
        single = [labels[crowds == 0] for labels, crowds in pairs]
        return torch.bincount(torch.cat([torch.zeros(0).long(), *single]), minlength=self.classes).tolist()

    def _computed(self) -> dict[str, Any]:
        if not self.order:
            return {name: torch.tensor(-1.0) for name in NAMES} | {f"bbox_{name}": torch.tensor(-1.0) for name in NAMES}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools makes its arrays as NumPy 1 wants them
            return self.metric.compute()


def share_found(detections: Detections, true: Objects, *, min_score: float = 0.5, overlap: float = 0.5) -> float:
    """True positives over the sum of true positives, false positives and misses; 1 if all are 0.

    Detections of at least ``min_score``, the highest score first, are each matched to the object of their class with
    the largest overlap, of at least ``overlap`` (IoU). Crowds are ignored, and so are detections of them.

    Args:
        detections, true: boxes in the same pixels, the former on the CPU.
    """
    from torchvision.ops import box_iou

    crowd = true.crowd.cpu()
    detections, single = detections.chosen(detections.scores >= min_score), ~crowd
    inside = box_iou(detections.boxes, true.boxes.cpu()) * (detections.labels[:, None] == true.labels.cpu())
    crowded = (inside[:, crowd] >= overlap).any(1)
    inside, taken = inside[:, single], 0
    free = torch.ones(inside.shape[1], dtype=torch.bool)
    wrong = 0
    for overlaps, may in zip(inside, crowded.tolist(), strict=True):
        overlaps = overlaps * free
        if len(overlaps) and overlaps.max() >= overlap:
            free[overlaps.argmax()] = False
            taken += 1
        else:
            wrong += not may
    every = int(single.sum()) + wrong
    return taken / every if every else 1.0


def needed_for_ap() -> Any:
    """torchmetrics' MeanAveragePrecision; UsageError where it or pycocotools is not installed."""
    mask_tools()
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise UsageError('average precision needs torchmetrics; pip install "normfree[detection]"') from error
    return MeanAveragePrecision


def _entry(detections: Detections) -> dict[str, Tensor]:
    entry = dict(boxes=detections.boxes, scores=detections.scores, labels=detections.labels)
    return entry if detections.masks is None else entry | dict(masks=detections.masks)


def _truths(objects: ObjectList, masks: bool) -> list[dict[str, Tensor]]:
    """As torchmetrics names them, on the CPU."""
    entries = []
    for image in objects:
        entry = dict(boxes=image.boxes, labels=image.labels, iscrowd=image.crowd.long(), area=image.areas)
        entry |= dict(masks=image.masks) if masks and image.masks is not None else {}
        entries.append({name: value.cpu() for name, value in entry.items()})
    return entries
