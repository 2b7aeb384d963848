"""Layers that are fitted to the training images before training."""

from collections.abc import Iterator

from torch import Tensor, nn

from ..data.decode import UnreadableImage
from ..errors import UsageError
from ..nn import PatchWhitening2d, fit_whitening
from ..tasks import Task

MAX_IMAGES, MAX_PIXELS = 2000, 4_000_000  # in all; the covariance of a patch has few numbers


def fit_to_images(model: nn.Module, task: Task) -> list[str]:
    """Fit the whitening layers of a new network to training images of the run; nothing happens without such a layer.

    Which images are read depends on nothing but their number, so all processes fit the same.

    Returns:
        Messages for the user.

    Raises:
        UsageError: no image can be read.
    """
    if not any(isinstance(module, PatchWhitening2d) for module in model.modules()):
        return []
    images = list(_images(task))
    if not images:
        raise UsageError("none of the training images that the first layer is fitted to can be read")
    fit_whitening(model, images)
    return [f"the first layer whitens patches as {len(images):,} of the training images have them"]


def _images(task: Task) -> Iterator[Tensor]:
    """Training images (1, C, H, W) at equal distances, as they are prepared for evaluation."""
    split, transform, size = task.source.train, task.test_transform(task.data), task.data.test_size or 1
    count = max(1, min(MAX_IMAGES, MAX_PIXELS // size**2, len(split)))
    for place in range(count):
        try:
            image = split.image(place * len(split) // count)
        except UnreadableImage:
            continue
        yield transform(image, None)[None]
