"""Loaders of images with a target for each pixel: what segmentation and depth share."""

from collections.abc import Sequence
from typing import Any

from ..data import DataConfig, Loader, Share, Source
from ..data.dense import DenseTransform
from ..data.scenes import SceneSplit
from ..errors import UsageError
from .statistics import image_statistics


def train_transform(data: DataConfig) -> DenseTransform:
    """The augmentation of a recipe.

    Raises:
        UsageError: a crop or an augmentation of classification.
    """
    if data.crop not in ("random", "none"):
        raise UsageError(f"data.crop (={data.crop!r}) must be 'random' or 'none' for segmentation and depth")
    for name in ("mixup", "cutmix", "randaugment_layers"):
        if getattr(data, name):
            raise UsageError(f"data.{name} (={getattr(data, name)}) must be 0 for segmentation and depth")
    height = data.image_size
    size = height, data.image_width or height
    random = dict(random=data.crop == "random", scale=data.scale, flip=data.flip, color=data.color)
    return DenseTransform(*size, *image_statistics(data), data.short_side, **random)


def test_transform(data: DataConfig) -> DenseTransform:
    """The centre crop that a recipe is evaluated on; its sizes must be set."""
    height = data.test_size
    return DenseTransform(height, data.test_width or height, *image_statistics(data), data.short_side)


test_transform.__test__ = False  # no test, whatever its name


class DenseTask:
    """Training and test batches, with ``targets``.

    Args:
        source: pairs, see :func:`normfree.data.open_pairs`.
        data: with ``image_size`` and ``test_size``.
        batch_size: images per training step.
        seed: of the order and the augmentation.
        share: which part of each batch this process loads.
        across_epochs: whether training batches run across the ends of epochs.
    """

    score_format = ".2%"
    notes: Sequence[str] = ()  # what a user should know

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        *,
        batch_size: int,
        seed: int = 0,
        share: Share = Share(),  # noqa: B008 - immutable
        across_epochs: bool = False,
    ):
        if data.sampler != "shuffled":
            raise UsageError(f"data.sampler (={data.sampler!r}) is for classification")
        if data.test_crop is not None:
            raise UsageError(f"data.test_crop (={data.test_crop!r}) is for classification")
        self.source = source
        transform, view = self.transforms(data)
        options = dict(workers=data.workers, timeout=data.timeout, share=share, pairs=True)
        self.train = Loader(
            source.train,
            transform,
            batch_size,
            shape=(data.channels, transform.height, transform.width),
            seed=seed,
            shuffle=True,
            drop_last=len(source.train) >= batch_size,
            across=across_epochs,
            **options,
        )
        self.test = Loader(source.test, view, batch_size, shape=(data.channels, view.height, view.width), **options)

    def transforms(self, data: DataConfig) -> tuple[Any, Any]:
        """Of training and of evaluation."""
        return train_transform(data), test_transform(data)

    def remark(self, score: float) -> str | None:
        """What must be said about a score, if anything."""
        return None

    def examine(self, data: DataConfig) -> list[str]:
        """Look at what is to be learnt and measured; what to tell. Scenes are known to be sound.

        Raises:
            UsageError: there is nothing to learn or to measure.
        """
        return [] if isinstance(self.source.train, SceneSplit) else self.look(data)

    def look(self, data: DataConfig) -> list[str]:
        """The same of files."""
        raise NotImplementedError
