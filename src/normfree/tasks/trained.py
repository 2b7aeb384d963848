"""A trained network, and one that is ready to answer: what the rooms above hand to a task."""

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
from ..export import Preprocessing
from ..recipes import Recipe
from .answers import Answers, PredictOptions
from .measured import Measured


class InferenceTask:
    """The part of a task that a trained network needs; :class:`normfree.tasks.Task` has the rest, and says it all."""

    name: ClassVar[str]
    kind: ClassVar[str]
    purpose: ClassVar[str]
    targets: ClassVar[Literal["labels", "vectors", "pairs"]]
    output: ClassVar[str | None]
    options: ClassVar[frozenset[str]]

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
    """A network in evaluation mode and what it needs to be used.

    Attributes:
        task: what it was trained for, one of :data:`normfree.tasks.TASKS`.
        classes: names of the classes' folders; ``names`` say the same to a reader, where the file has such.
        numbers: what the files of the training data called the classes (COCO's categories), else counted from 1.
        source: the file that it came from.
        held_out: which images were held out for testing, where the source has no test split.
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
        """The preprocessing that the network is evaluated with; of pairs, that of image and target."""
        self.task.set_sizes(self.recipe, self.model)
        return self.task.test_transform(self.recipe.data)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees of an image."""
        self.task.set_sizes(self.recipe, self.model)
        data = self.recipe.data
        height = data.test_size or 0  # which is set by now
        return data.channels, height, data.test_width or height

    def view(self, image: Tensor) -> Tensor:
        """What the network sees of an image (C, H, W) uint8."""
        return self.transform.view(image) if self.task.targets == "pairs" else self.transform(image)


@dataclass(frozen=True)
class ReadyNetwork:
    """From images (N, C, H, W) to outputs (N, ...), float32 on the CPU.

    Attributes:
        preprocessing: None of a network that takes pairs and is no exported file: ``trained`` says it.
        classes: their names, or None.
        exported: it is from an exported file, which takes images of one size.
        trained: what it is made of, where it is no exported file.
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
    """The same view by torchvision's antialiased bicubic resize, on uint8 as Pillow does it."""

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        side = self.size + self.margin
        if self.crop == "centre":
            height, width = image.shape[-2:]
            top, left, side, _ = padded_centre_window(height, width, self.size, self.margin)
            image, side = image[:, top : top + side, left : left + side], self.size
        image = TF.resize(image, [side] * 2, InterpolationMode.BICUBIC, antialias=True)
        return normalize(centre_crop(image, self.size), self.mean, self.std)


def view_of(preprocessing: Preprocessing, *, antialias: bool = False) -> EvalTransform | PixelTransform:
    """The transform that the preprocessing describes, or the antialiased sibling of one for classification."""
    if preprocessing.resize not in ("squash", "centre"):
        _, height, width = preprocessing.shape
        return PixelTransform(height, width, preprocessing.mean, preprocessing.std, preprocessing.short_side)
    return vector_view_of(preprocessing, antialias=antialias)


def vector_view_of(preprocessing: Preprocessing, *, antialias: bool = False) -> EvalTransform:
    """The same for classification and regression."""
    made, about = AntialiasedTransform if antialias else EvalTransform, preprocessing
    return made(about.size, about.resize_margin, about.mean, about.std, about.resize)
