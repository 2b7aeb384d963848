"""What a network is trained for: everything that differs between tasks, in one class each."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..data import Batch, DataConfig, HeldOut, Loader, Poisson, Share, Source, Split
from ..data.masks import listed
from ..data.memory import Memory, kept
from ..data.workers import workers_for
from ..errors import UsageError
from ..models.registry import test_crop
from ..recipes import Recipe
from ..recipes.task import TaskConfig
from .answers import Answers, PredictOptions
from .gallery import Gallery, Look
from .library import library_network
from .measured import Measured
from .trained import InferenceTask, ReadyNetwork, Trained

VOLUME_FIELDS: dict[str, Any] = dict(image_depth=None, test_depth=None, foreground=0.0, spacing=None)


class Task(InferenceTask):
    """Everything that differs between tasks: opening images, building, training and evaluating a network, predictions.

    Class methods describe the task itself; they take a recipe or a trained network. An object of the class is
    the task on the images of one run: loss, loaders and metrics for :class:`normfree.training.Trainer`. A new task is a
    subclass that is added with :func:`normfree.tasks.register`; nothing else in the library depends on its name.

    Attributes:
        name: ``task.name`` in recipes.
        kind: the key in :data:`normfree.tasks.TASKS` and in exported files; it differs from ``name`` if one name has
            two kinds.
        purpose: what such a network is for, as the end of a sentence in messages.
        score: the main metric, better when larger; ``score_label``, ``score_format``: how it is printed.
        targets: what an image comes with: "labels" (a class), "vectors" (K numbers), or "pairs" (a mask, a depth map
            or objects).
        named_outputs: whether outputs have names, of classes or of numbers.
        output: name of the output in an exported file, see :class:`normfree.export.Description`; None: not exported.
        options: the fields of :class:`.PredictOptions` that only some tasks have, and this one has.
        predicts: whether there are :meth:`answers`.
        holds_out: whether ``data.val_fraction`` may hold images out for testing.
    """

    score: str
    score_label: str
    score_format: str = ".2%"
    targets: ClassVar[Literal["labels", "vectors", "pairs"]] = "labels"
    named_outputs: ClassVar[bool] = True
    output: ClassVar[str | None] = None
    options: ClassVar[frozenset[str]] = frozenset()
    predicts: ClassVar[bool] = True
    holds_out: ClassVar[bool] = True

    # From a recipe.

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        """The images of a recipe, or of another source.

        Args:
            source: such as "imagefolder:PATH".
            held_out: which images a resumed run has held out for testing.
            known: classes of a network that is evaluated, which needs no training images.

        Raises:
            UsageError: the source cannot be opened, or is for another task.
        """
        raise NotImplementedError

    @classmethod
    def open_test(cls, recipe: Recipe, source: str, classes: Sequence[str], network: str) -> Source[Any]:
        """Test images for a trained network with these classes, from another source."""
        return cls.open(recipe, source, known=classes)

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        """The network of a recipe for these classes, with random weights.

        Raises:
            UsageError: the model or an option of it does not exist.
        """
        if recipe.model.is_library:
            return library_network(recipe, len(classes))
        return recipe.model.build(num_classes=len(classes), in_chans=recipe.data.channels)

    @classmethod
    def set_sizes(cls, recipe: Recipe, model: nn.Module) -> None:
        """Fill in the image sizes and the test crop that the recipe leaves to the model."""
        data = recipe.data  # for an exported file all of them are set, and the network has no config
        data.image_size = data.image_size or config_of(model)["input_size"][-1]
        data.test_size = data.test_size or config_of(model)["test_input_size"][-1]
        if cls.targets != "pairs":
            data.test_crop = data.test_crop or test_crop(config_of(model))

    @classmethod
    def from_recipe(cls, recipe: Recipe, source: Source[Any], share: Share = Share()) -> Self:  # noqa: B008 - immutable
        """The task on the images of a run. Sizes must be set; fields that depend on the images are filled in.

        Raises:
            UsageError: a field is for another task.
        """
        cls.resolve(recipe, source)
        data, train = recipe.data, recipe.train
        passes = train.epochs if train.steps is None else train.steps * train.batch_size / max(1, len(source.train))
        memory = kept(source, data.cache, pairs=cls.targets == "pairs", passes=passes, timeout=data.timeout)
        if data.workers is None:
            data = dataclasses.replace(data, workers=workers_for(source) if memory is None else memory.workers)
        return cls(
            source,
            recipe.task,
            data,
            batch_size=train.batch_size,
            seed=train.seed,
            share=share,
            across_epochs=train.across_epochs,
            poisson=Poisson(recipe.private.augmentations) if recipe.private.on else None,
            memory=memory,
        )

    @classmethod
    def resolve(cls, recipe: Recipe, source: Source[Any]) -> None:
        """Fill in the fields of the recipe that depend on the training images."""

    @classmethod
    def train_transform(cls, data: DataConfig) -> Any:
        """The augmentation of a recipe; sizes must be set.

        Raises:
            UsageError: a field is for another task.
        """
        raise NotImplementedError

    @classmethod
    def test_transform(cls, data: DataConfig) -> Any:
        """The preprocessing for evaluation; sizes must be set."""
        raise NotImplementedError

    @classmethod
    def loader(cls, split: Split, transform: Any, batch_size: int, **options: Any) -> Loader:
        """Batches of a split; ``options`` are those of :class:`normfree.data.Loader`."""
        return Loader(
            split, transform, batch_size, pairs=cls.targets == "pairs", vectors=cls.targets == "vectors", **options
        )

    @classmethod
    def describe_classes(cls, classes: Sequence[str]) -> str:
        """What follows "N training and M test images" in the first line of a run, such as " of 10 classes"."""
        return ""

    # Of a trained network.

    @classmethod
    def after_loading(cls, model: nn.Module, recipe: Recipe, classes: Sequence[str], file: str) -> None:
        """Change a loaded network in place before it is used, if the task needs that.

        Raises:
            UsageError: ``file`` lacks what is needed for it.
        """

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        """Refuse test images on which nothing can be measured.

        Raises:
            UsageError: they are such images.
        """

    @classmethod
    def metrics_of(cls, trained: Trained) -> Any:
        """The metrics of ``normfree eval``: ``update(output, batch)``, and ``compute()``, which includes ``images``."""
        raise NotImplementedError

    @classmethod
    def missing_targets(cls, metrics: Any) -> str | None:
        """What no test image had, such as "an object", so that there is no score; None if nothing is missing."""
        return None

    @classmethod
    def measured(cls, metrics: Any, names: Sequence[str]) -> Measured:
        """The results of the metrics, as text and as data; ``names`` are those of the classes."""
        scores = metrics.compute()
        line = "   ".join(f"{name} {value:.4g}" for name, value in scores.items() if name != "images")
        return Measured([line], scores)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        """What ``normfree predict`` prints, draws and writes.

        Raises:
            UsageError: an option does not fit the task, or a folder cannot be made.
        """
        raise UsageError(f"networks for {cls.kind} have no `normfree predict`")

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        """Test images for the page of ``normfree report``."""
        raise UsageError(f"networks for {cls.kind} have no pictures")

    # On the images of one run.

    def __init__(
        self,
        source: Source[Any],
        config: TaskConfig,
        data: DataConfig,
        *,
        batch_size: int,
        seed: int = 0,
        share: Share = Share(),  # noqa: B008 - immutable
        across_epochs: bool = False,
        poisson: Poisson | None = None,
        memory: Memory | None = None,
    ):
        """The task on the images of ``source``.

        Args:
            data: with ``image_size`` and ``test_size``.
            batch_size: images per training step.
            seed: for the order and the augmentation.
            share: which part of each batch this process loads.
            across_epochs: whether training batches run across the ends of epochs.
            poisson: draw training batches by Poisson sampling.
            memory: the same images kept in memory.
        """
        self.refuse_others(data)
        self.source, self.config, self.data, self.classes = source, config, data, len(source.classes)
        self.notes = [] if memory is None else [memory.told]  # for the user
        images = memory or source
        shared: dict[str, Any] = dict(workers=data.workers, timeout=data.timeout, share=share)
        self.train = self.loader(
            images.train,
            self.train_transform(data),
            batch_size,
            shape=self.input_shape(data, data.image_size, data.image_width, data.image_depth),
            seed=seed,
            shuffle=True,
            drop_last=len(source.train) >= batch_size,
            across=across_epochs,
            poisson=poisson,
            **self.train_options(data),
            **shared,
        )
        self.test = self.loader(
            images.test,
            self.test_transform(data),
            batch_size,
            shape=self.input_shape(data, data.test_size, data.test_width, data.test_depth),
            **shared,
        )

    @classmethod
    def refuse_others(cls, data: DataConfig) -> None:
        """Refuse fields of the data section that are for other tasks.

        Raises:
            UsageError: one is set.
        """
        refuse_fields(data, VOLUME_FIELDS, "volumes")

    @classmethod
    def input_shape(
        cls, data: DataConfig, height: int | None, width: int | None = None, depth: int | None = None
    ) -> tuple[int, ...]:
        """(C, H, W) of transformed images, of volumes (C, D, H, W); sizes are those of ``data``.

        Raises:
            UsageError: ``height`` is not set.
        """
        return shape_of(data, height, width)

    def probe(self, images: Tensor) -> Tensor:
        """What of a batch of test images is shown to the network to record its signals."""
        return images

    @classmethod
    def train_options(cls, data: DataConfig) -> dict[str, Any]:
        """Additional options of the training loader."""
        return {}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The loss of a batch, a mean over images: the gradient of a batch is the mean of its micro-batches'."""
        raise NotImplementedError

    def correct(self, output: Any, batch: Batch) -> Tensor:
        """How many predictions of the batch are correct, on the device: for the progress bar."""
        return torch.zeros((), device=output.device)

    def metrics(self) -> Any:
        """The metrics of evaluations during the run: ``update(output, batch)``, ``compute()`` and ``totals``."""
        raise NotImplementedError

    def score_note(self, score: float) -> str | None:
        """A warning about a score on the test images, if one is needed."""
        return None

    def check_targets(self, data: DataConfig) -> list[str]:
        """Check the targets of the training and test images; returns notes for the user.

        Raises:
            UsageError: there is nothing to learn or to measure.
        """
        return []


def shape_of(data: DataConfig, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(C, H, W) of transformed images; ``height`` is one of the sizes of ``data``, which must be set.

    Raises:
        UsageError: it is not.
    """
    if height is None:
        raise UsageError("data.image_size and data.test_size must be set")
    return data.channels, height, width or height


def config_of(model: nn.Module) -> dict[str, Any]:
    """The configuration of a normfree model, with timm's names."""
    return getattr(model, "default_cfg")  # noqa: B009 - which nn.Module declares as a tensor or a module


def refuse_fields(data: DataConfig, others: dict[str, Any], tasks: str) -> None:
    """Refuse fields of the data section that are for other tasks.

    Args:
        others: such fields, with their default values.
        tasks: the tasks that they are for.

    Raises:
        UsageError: one is set.
    """
    for name, default in others.items():
        if getattr(data, name) != default:
            raise UsageError(f"data.{name} (={getattr(data, name)!s:.80}) is for {tasks}")


def refuse_masks(recipe: Recipe) -> None:
    """Refuse ``data.mask_values``, which is for segmentation."""
    if recipe.data.mask_values is not None:
        values, task = listed(recipe.data.mask_values), recipe.task.name
        raise UsageError(f"data.mask_values (={values}) is for segmentation; task.name is {task}")
