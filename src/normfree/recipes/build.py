"""From a recipe to its images, its network and its task: the one place that knows which task needs what."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..data import HeldOut, Share, Source, open_source, open_test
from ..data.coco import open_objects
from ..data.folders import ANSWERS
from ..data.layouts import described
from ..data.masks import listed
from ..data.pairs import open_pairs
from ..data.sources import absolute
from ..data.values import fitted
from ..data.workers import workers_for
from ..errors import UsageError
from ..models import depth_estimator, detector, segmenter
from ..models.registry import test_crop
from ..tasks import Classification, Depth, Detection, MultiLabel, Regression, Segmentation
from ..tasks.classification import resolved_weights
from ..tasks.config import DETECTION
from ..tasks.regression import resolved_units
from .recipe import Recipe

Task = Classification | MultiLabel | Regression | Segmentation | Depth | Detection
DENSE = dict(segmentation=Segmentation, depth=Depth, detection=Detection)  # tasks that are about places in images


def is_dense(recipe: Recipe) -> bool:
    """Whether the network answers for places in an image: each pixel, or each object."""
    return recipe.task.name in DENSE


def describe(recipe: Recipe, classes: list[str], numbers: list[int] | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself, so that it can be used alone; ``numbers`` as of :class:`.data.Source`."""
    about = dict(recipe=dataclasses.asdict(recipe), classes=classes)
    return about if numbers is None else about | dict(numbers=numbers)


def open_images(
    recipe: Recipe,
    source: str | None = None,
    held_out: HeldOut | None = None,
    known: Sequence[str] | None = None,
) -> Source:
    """The images of a recipe, or of another source for its task.

    A ``data.value_range`` of "auto" becomes numbers in the recipe.

    Args:
        held_out: which images a run that goes on has held out for testing.
        known: classes of a network for places that is measured: it needs no training images.

    Raises:
        UsageError: they cannot be had, or are for another task.
    """
    part = "train" if source is None and known is None else "test"
    opened = _opened(recipe, source, held_out, known)
    opened, recipe.data.value_range = fitted(opened, recipe.data.value_range, part)
    return opened


def _opened(recipe: Recipe, source: str | None, held_out: HeldOut | None, known: Sequence[str] | None) -> Source:
    data, task = recipe.data, recipe.task.name
    source = described(data.source if source is None else source)
    if task != "segmentation" and data.mask_values is not None:
        raise UsageError(f"data.mask_values (={listed(data.mask_values)}) is for segmentation; task.name is {task}")
    if is_dense(recipe) and data.val_fraction is not None:
        raise UsageError(
            f"data.val_fraction (={data.val_fraction:g}) is for classification and regression; for {task} the source "
            "needs test images of its own, such as a folder val beside train"
        )
    if recipe.task.name == "detection":
        options = dict(masks=recipe.task.masks, test_only=known is not None, value_range=data.value_range)
        return open_objects(source, data.channels, **options)
    if is_dense(recipe):
        options = dict(known=known, value_range=data.value_range)
        return open_pairs(source, task, data.channels, data.mask_values, data.mask_ignored, **options)
    _check_kind(recipe, source)
    if held_out is None and data.val_fraction is not None:
        held_out = HeldOut(data.val_fraction, data.val_seed)
    return open_source(source, data.channels, answers=answers(recipe), held_out=held_out)


def open_test_images(
    recipe: Recipe,
    classes: Sequence[str],
    network: str,
    source: str | None = None,
    held_out: HeldOut | None = None,
) -> Source:
    """The test images of a recipe, or of another source for its task, to measure a trained network on.

    Other sources than the recipe's need no training images.

    Args:
        classes: of the network; network: its name, for messages.
        held_out: which images the run has held out for testing.

    Raises:
        UsageError: they cannot be had, are for another task, or of other classes than the network's.
    """
    source = None if source is None else described(source)
    own = source is None or absolute(source) == recipe.data.source
    if is_dense(recipe) or (own and recipe.data.val_fraction is not None):
        opened = open_images(recipe, source, held_out, classes if is_dense(recipe) else None)
    else:
        source = recipe.data.source if source is None else source
        _check_kind(recipe, source)
        options = dict(answers=answers(recipe), network=network)
        opened = open_test(source, list(classes), recipe.data.channels, **options)
    differing = _differing(list(opened.classes), list(classes))
    if differing:
        where = recipe.data.source if source is None else source
        raise UsageError(f"classes of {where} and of {network} differ: {', '.join(differing[:8])}")
    opened, recipe.data.value_range = fitted(opened, recipe.data.value_range, "test")
    return opened


def answers(recipe: Recipe) -> str:
    """What images are labelled with, one of :data:`.data.folders.ANSWERS`."""
    if recipe.task.name == "regression":
        return "numbers"
    return "classes" if recipe.task.labels == "multi" else "class"


def _differing(images: list[str], network: list[str]) -> list[str]:
    """How the classes of images differ from a network's."""
    if images == network:
        return []
    sided = [f"{n} (only in the {'images' if n in images else 'network'})" for n in sorted(set(images) ^ set(network))]
    pairs = enumerate(zip(images, network, strict=False))
    return sided or [f"class {i} is {one} there, {other} here" for i, (one, other) in pairs if one != other]


def _check_kind(recipe: Recipe, source: str) -> None:
    if source.partition(":")[0] in ("scenes", "voc", "masks", "nyu", "depth", "coco"):
        other = "detection" if source.startswith("coco") else "segmentation or depth"
        raise UsageError(f"data.source (={source!r}) is for {other}; task.name is {recipe.task.name}")


def build_network(recipe: Recipe, classes: Sequence[str]) -> nn.Module:
    """The network of a recipe for these classes, freshly initialized; of depth there are none.

    Raises:
        UsageError: a model or an option that there is not.
    """
    options = dict(in_chans=recipe.data.channels)
    if recipe.task.name == "segmentation":
        return segmenter(recipe.model.build(num_classes=0, **options), len(classes), width=recipe.task.head_width)
    if recipe.task.name == "depth":
        return depth_estimator(recipe.model.build(num_classes=0, **options), width=recipe.task.head_width)
    if recipe.task.name == "detection":
        fields = {name: getattr(recipe.task, name) for name in DETECTION}
        backbone = recipe.model.build(num_classes=0, **options)
        return detector(backbone, len(classes), width=recipe.task.head_width, **fields)
    return recipe.model.build(num_classes=len(classes), **options)


def set_sizes(recipe: Recipe, model: nn.Module) -> None:
    """Sizes of images, and the view of test images, that the recipe leaves to the model."""
    recipe.data.image_size = recipe.data.image_size or model.default_cfg["input_size"][-1]
    recipe.data.test_size = recipe.data.test_size or model.default_cfg["test_input_size"][-1]
    if not is_dense(recipe):
        recipe.data.test_crop = recipe.data.test_crop or test_crop(model.default_cfg)


def build_task(recipe: Recipe, source: Source, share: Share = Share()) -> Task:  # noqa: B008 - immutable
    """Data, loss and metrics of a recipe whose sizes are set; what it leaves to the images is filled in.

    Raises:
        UsageError: a field that is for another task.
    """
    if recipe.task.class_weights is not None:
        recipe.task.class_weights = resolved_weights(recipe.task.class_weights, source)
    if recipe.task.name == "regression":
        recipe.task.target_mean, recipe.task.target_std = resolved_units(recipe.task, source)
    data, train = recipe.data, recipe.train
    data = dataclasses.replace(data, workers=workers_for(source) if data.workers is None else data.workers)
    options = dict(batch_size=train.batch_size, seed=train.seed, share=share, across_epochs=train.across_epochs)
    if recipe.task.name == "detection" and recipe.train.compile:
        raise UsageError("train.compile (=True) is not for detection: the number of regions changes")
    if is_dense(recipe):
        return DENSE[recipe.task.name](source, recipe.task, data, **options)
    task = dict(zip(ANSWERS, (Classification, MultiLabel, Regression), strict=True))[answers(recipe)]
    return task(source, recipe.task, data, image_size=data.image_size, test_size=data.test_size, **options)
