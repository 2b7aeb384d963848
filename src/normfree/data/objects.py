"""Opening sources of images with objects: scenes, COCO's layout, and two sets of torchvision."""

from typing import Any

from ..errors import UsageError
from .coco import coco
from .detection import SceneObjects
from .scenes import CLASSES, scenes
from .sources import Source, check_channels, unknown_source
from .splits import CountedSplit, ObjectSplit
from .torchvision_places import OBJECTS, placed
from .values import ValueRange
from .voc_boxes import voc_boxes

KINDS = '"scenes:N", "coco:PATH" or "torchvision:NAME"'


def open_objects(
    source: str, channels: int = 3, *, masks: bool = True, test_only: bool = False, value_range: ValueRange = None
) -> Source[ObjectSplit]:
    """Open a source of images with objects; ``classes`` are without a background.

    Args:
        masks: whether masks are needed.
        test_only: open only the test images of a folder; ``train`` is empty then.

    Raises:
        UsageError: unknown kind, or what :func:`coco` refuses.
    """
    kind, _, rest = source.partition(":")
    check_channels(kind, channels)
    if kind == "scenes":
        train, test = scenes(rest, "masks" if masks else "boxes", channels, SceneObjects)
        return Source(train, test, list(CLASSES[1:]))
    options: dict[str, Any] = dict(test_only=test_only, value_range=value_range)
    if kind == "torchvision":
        return _of_torchvision(rest, channels, masks=masks, **options)
    if kind != "coco":
        raise unknown_source(source, ("scenes", "coco", "torchvision"), f"must be {KINDS} for detection")
    return coco(rest, channels, masks=masks, **options)


def _of_torchvision(text: str, channels: int, *, masks: bool, **options: Any) -> Source[CountedSplit]:
    """VOCDetection, which has boxes only, or CocoDetection, whose folder is as of "coco:PATH"."""
    name, root = placed(text, OBJECTS, "detection")
    if name == "CocoDetection":
        return coco(str(root), channels, masks=masks, **options)
    if masks:
        raise UsageError(f"data.source (='torchvision:{text}'): {name} has boxes and no masks; --task.masks false")
    return voc_boxes(root, channels, **options)
