"""Opening the images of a recipe, or of another source for its task."""

from collections.abc import Sequence
from typing import Any

from ..data import HeldOut, Source
from ..data.fewer import fewer_images
from ..data.layouts import with_kind
from ..data.sources import absolute
from ..data.values import resolve_value_range
from ..errors import UsageError
from ..recipes import Recipe
from .table import task_of


def open_images(recipe: Recipe, held_out: HeldOut | None = None) -> Source[Any]:
    """The images of a recipe. A ``data.value_range`` of "auto" becomes numbers in the recipe.

    Args:
        held_out: which images a resumed run has held out for testing.

    Raises:
        UsageError: the source cannot be opened, or is for another task.
    """
    data, task = recipe.data, task_of(recipe)
    source = _fitted(recipe, task.open(recipe, with_kind(data.source), held_out=held_out), "train")
    if data.train_fraction is None:
        return source
    if task.targets == "pairs":
        what = "classification and regression"
        raise UsageError(f"data.train_fraction (={data.train_fraction}) is for {what}; task.name is {recipe.task.name}")
    return fewer_images(source, data.train_fraction, data.train_seed)


def open_test_images(
    recipe: Recipe,
    classes: Sequence[str],
    network: str,
    source: str | None = None,
    held_out: HeldOut | None = None,
) -> Source[Any]:
    """The test images of a recipe, or of another source for its task, to evaluate a trained network on.

    Another source than the recipe's needs no training images.

    Args:
        classes: of the network; network: its name, for messages.
        held_out: which images the run has held out for testing.

    Raises:
        UsageError: the source cannot be opened, is for another task, or has other classes than the network.
    """
    task, own_source = task_of(recipe), with_kind(recipe.data.source)
    source = None if source is None else with_kind(source)
    own = source is None or absolute(source) == recipe.data.source
    if task.holds_out and own and recipe.data.val_fraction is not None:
        opened = _fitted(recipe, task.open(recipe, source or own_source, held_out=held_out), "test")
    else:
        opened = task.open_test(recipe, source or own_source, classes, network)
    differing = _differing(list(opened.classes), list(classes))
    if differing:
        where = recipe.data.source if source is None else source
        raise UsageError(f"classes of {where} and of {network} differ: {', '.join(differing[:8])}")
    return _fitted(recipe, opened, "test")


def _fitted(recipe: Recipe, source: Source[Any], part: str) -> Source[Any]:
    """The source with the value range of the recipe; "auto" is resolved from the images."""
    source, recipe.data.value_range = resolve_value_range(source, recipe.data.value_range, part)
    return source


def _differing(images: list[str], network: list[str]) -> list[str]:
    """How the classes of images differ from a network's."""
    if images == network:
        return []
    differing = sorted(set(images) ^ set(network))
    one_sided = [f"{name} (only in the {'images' if name in images else 'network'})" for name in differing]
    pairs = enumerate(zip(images, network, strict=False))
    return one_sided or [f"class {i} is {one} there, {other} here" for i, (one, other) in pairs if one != other]
