"""What segmentation, depth and detection share: pairs of an image and its mask, depth map or objects."""

from collections.abc import Sequence
from typing import Any

from ..data import DataConfig, HeldOut, Source
from ..data.pairs import open_pairs
from ..data.pixels import PixelTransform
from ..data.scenes import SceneSplit
from ..errors import UsageError
from ..models import ResidualNet
from ..recipes import Recipe
from ..recipes.task import TaskConfig
from ..words import counted
from .statistics import image_statistics
from .task import Task, shape_of


class PairTask(Task):
    """Base of the tasks whose images come with a target for each pixel, or with objects.

    Args:
        source, data, options: as :class:`.Task`; batches have ``targets``.
    """

    targets = "pairs"
    holds_out = False

    def __init__(self, source: Source[Any], config: TaskConfig, data: DataConfig, **options: Any):
        if data.sampler != "shuffled":
            raise UsageError(f"data.sampler (={data.sampler!r}) is for classification")
        if data.test_crop is not None:
            raise UsageError(f"data.test_crop (={data.test_crop!r}) is for classification")
        super().__init__(source, config, data, **options)

    @classmethod
    def refuse_held_out(cls, recipe: Recipe) -> None:
        """Refuse ``data.val_fraction``: no images are held out from such sources.

        Raises:
            UsageError: it is set.
        """
        if recipe.data.val_fraction is not None:
            raise UsageError(
                f"data.val_fraction (={recipe.data.val_fraction:g}) is for classification and regression; for "
                f"{cls.name} the source needs test images of its own, such as a folder val beside train"
            )

    @classmethod
    def describe_classes(cls, classes: Sequence[str]) -> str:
        return f" of {counted(len(classes), 'class', 'classes')}" if classes else ""

    def check_targets(self, data: DataConfig) -> list[str]:
        """As in :class:`.Task`; scenes need no check."""
        return [] if isinstance(self.source.train, SceneSplit) else self.check_target_files(data)

    def check_target_files(self, data: DataConfig) -> list[str]:
        """The same for images in files."""
        return []


class PixelTask(PairTask):
    """Base of segmentation and depth, which predict something for each pixel."""

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        cls.refuse_held_out(recipe)
        data = recipe.data
        options: dict[str, Any] = dict(known=known, value_range=data.value_range)
        return open_pairs(source, cls.name, data.channels, data.mask_values, data.mask_ignored, **options)

    @classmethod
    def build_backbone(cls, recipe: Recipe) -> ResidualNet:
        """The network of a recipe without its classifier."""
        return recipe.model.build(num_classes=0, in_chans=recipe.data.channels)

    @classmethod
    def train_transform(cls, data: DataConfig) -> PixelTransform:
        if data.crop not in ("random", "none"):
            raise UsageError(f"data.crop (={data.crop!r}) must be 'random' or 'none' for segmentation and depth")
        refuse_mixing(data, "segmentation and depth")
        _, height, width = shape_of(data, data.image_size, data.image_width)
        random: dict[str, Any] = dict(random=data.crop == "random", scale=data.scale, flip=data.flip, color=data.color)
        return PixelTransform(height, width, *image_statistics(data), data.short_side, **random)

    @classmethod
    def test_transform(cls, data: DataConfig) -> PixelTransform:
        """The centre crop of evaluation."""
        _, height, width = shape_of(data, data.test_size, data.test_width)
        return PixelTransform(height, width, *image_statistics(data), data.short_side)


def refuse_mixing(data: DataConfig, tasks: str) -> None:
    """Refuse augmentations that are for classification.

    Raises:
        UsageError: one of them is set.
    """
    for name in ("mixup", "cutmix", "randaugment_layers", "cutout"):
        if getattr(data, name):
            raise UsageError(f"data.{name} (={getattr(data, name)}) must be 0 for {tasks}")
    if data.autoaugment is not None:
        raise UsageError(f"data.autoaugment (={data.autoaugment}) must be null for {tasks}")
