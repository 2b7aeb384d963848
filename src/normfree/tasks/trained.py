"""A trained network, and one that is ready for predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ..data import DataConfig, EvalTransform, HeldOut, Loader, Source, normalize
from ..data.pixels import PixelTransform
from ..data.resize import centre_crop, padded_centre_window
from ..data.volumes import VolumeTransform
from ..export import Preprocessing
from ..recipes import Recipe
from .answers import Answers, PredictOptions
from .measured import Measured


class InferenceTask:
    """The part of :class:`normfree.tasks.Task` that a trained network needs; documented there."""

    name: ClassVar[str]
    kind: ClassVar[str]
    purpose: ClassVar[str]
    targets: ClassVar[Literal["labels", "vectors", "pairs"]]
    output: ClassVar[str | None]
    options: ClassVar[frozenset[str]]
    holds_out: ClassVar[bool]

    @classmethod
    def input_shape(
        cls, data: DataConfig, height: int | None, width: int | None = None, depth: int | None = None
    ) -> tuple[int, ...]:
        raise NotImplementedError

    @classmethod
    def set_sizes(cls, recipe: Recipe, model: nn.Module) -> None:
        raise NotImplementedError

    @classmethod
    def test_transform(cls, data: DataConfig) -> Any:
        raise NotImplementedError

    @classmethod
    def loader(cls, split: Any, transform: Any, batch_size: int, **options: Any) -> Loader:
        raise NotImplementedError

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        raise NotImplementedError

    @classmethod
    def metrics_of(cls, trained: "Trained") -> Any:
        raise NotImplementedError

    @classmethod
    def missing_targets(cls, metrics: Any) -> str | None:
        raise NotImplementedError

    @classmethod
    def measured(cls, metrics: Any, names: Sequence[str]) -> Measured:
        raise NotImplementedError

    @classmethod
    def answers(cls, network: "ReadyNetwork", options: PredictOptions) -> Answers:
        raise NotImplementedError

    @classmethod
    def gallery(cls, look: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, with what is needed to use it.

    Attributes:
        task: what it was trained for, one of :data:`normfree.tasks.TASKS`.
        classes: names of the classes, as in the training data; ``names``: readable names, if the file has such.
        numbers: ids of the classes in the files of the training data (COCO's categories), else counted from 1.
        source: the file that it was loaded from.
        held_out: which images were held out for testing, if the source has no test split.
    """

    model: nn.Module
    recipe: Recipe
    task: type[InferenceTask]
    classes: list[str]
    source: str
    names: list[str]
    numbers: list[int]
    held_out: HeldOut | None = None

    @property
    def transform(self) -> Any:
        """The preprocessing for evaluation; for pairs, that of image and target."""
        self.task.set_sizes(self.recipe, self.model)
        return self.task.test_transform(self.recipe.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the network's input for an image, (C, D, H, W) for a volume."""
        self.task.set_sizes(self.recipe, self.model)
        data = self.recipe.data
        return self.task.input_shape(data, data.test_size, data.test_width, data.test_depth)

    def view(self, image: Tensor) -> Tensor:
        """The network's input for an image (C, H, W) uint8."""
        return self.transform.view(image) if self.task.targets == "pairs" else self.transform(image)


@dataclass(frozen=True)
class ReadyNetwork:
    """A network for predictions, from a run, a checkpoint or an exported file.

    Attributes:
        run: from images (N, C, H, W) to outputs (N, ...), float32 on the CPU.
        preprocessing: of images; None if ``trained`` has it (tasks with pairs, unless it is an exported file).
        classes: their names, or None.
        exported: whether it is from an exported file, which takes images of one size.
        trained: the network that it was made from; None for an exported file.
    """

    run: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    task: type[InferenceTask]
    exported: bool = False
    trained: Trained | None = None
    targets: dict[str, Any] = field(default_factory=dict)

    def label(self, index: int) -> str:
        return str(index) if self.classes is None else self.classes[index]


@dataclass(frozen=True)
class AntialiasedTransform(EvalTransform):
    """The same preprocessing with torchvision's antialiased bicubic resize, on uint8 like Pillow's."""

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        side = self.size + self.margin
        if self.crop == "centre":
            height, width = image.shape[-2:]
            top, left, side, _ = padded_centre_window(height, width, self.size, self.margin)
            image, side = image[:, top : top + side, left : left + side], self.size
        image = TF.resize(image, [side] * 2, InterpolationMode.BICUBIC, antialias=True)
        return normalize(centre_crop(image, self.size), self.mean, self.std)


def view_of(
    preprocessing: Preprocessing, *, antialias: bool = False
) -> EvalTransform | PixelTransform | VolumeTransform:
    """The transform for a preprocessing; ``antialias`` is for classification and regression."""
    if preprocessing.depth is not None:
        _, *size = preprocessing.shape
        values = preprocessing.value_range or (0.0, 255.0)
        return VolumeTransform((size[0], size[1], size[2]), preprocessing.mean, preprocessing.std, values, crop=False)
    if preprocessing.resize not in ("squash", "centre"):
        _, height, width = preprocessing.shape
        return PixelTransform(height, width, preprocessing.mean, preprocessing.std, preprocessing.short_side)
    return vector_view_of(preprocessing, antialias=antialias)


def vector_view_of(preprocessing: Preprocessing, *, antialias: bool = False) -> EvalTransform:
    """The same for classification and regression."""
    transform, p = AntialiasedTransform if antialias else EvalTransform, preprocessing
    return transform(p.size, p.resize_margin, p.mean, p.std, p.resize)
