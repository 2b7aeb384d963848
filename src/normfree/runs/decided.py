"""Filling in the fields of a recipe that follow from its images: ``data.decides``."""

from typing import Any

from ..data import HeldOut, NoTestImages, Source
from ..data.sides import Sides, sides
from ..recipes import Recipe
from ..recipes.decide import FIELDS, HELD_OUT, HELD_OUT_OF_MANY, MANY, Facts, decide, in_words
from ..tasks import open_images
from ..training.device import computes_bfloat16, pick_device
from .resume import set_value, value_at


def open_and_decide(
    recipe: Recipe, held_out: HeldOut | None = None, pretrained: bool = False
) -> tuple[Source[Any], list[str]]:
    """The images of a recipe, and messages for the user; the fields that follow from the images are filled in.

    Where ``data.val_fraction`` is among these, a part of each class is held out if the source has no test images.

    Args:
        held_out: which images a resumed run has held out.
        pretrained: whether training starts from other weights.

    Raises:
        UsageError: the source cannot be opened, or is for another task.
    """
    decides = {*recipe.data.decides}
    source = _open(recipe, held_out)
    recipe.data.decides = ()
    if not decides & FIELDS.keys():
        return source, []
    found = sides(source.train) or Sides(median=64, grey=False)
    native = computes_bfloat16(pick_device(recipe.train.device))
    facts = Facts(len(source.train), found.median, found.grey, pretrained, native)
    fixed = {path: value_at(recipe, path) for path in FIELDS if path not in decides}
    if "train.steps" not in decides:
        fixed["train.epochs"] = recipe.train.epochs
    for path, value in decide(facts, fixed).items():
        set_value(recipe, path, value)
    return source, in_words(facts, {path: value_at(recipe, path) for path in FIELDS}, decides)


def _open(recipe: Recipe, held_out: HeldOut | None) -> Source[Any]:
    try:
        return open_images(recipe, held_out)
    except NoTestImages:
        if "data.val_fraction" not in recipe.data.decides:
            raise
    recipe.data.val_fraction = HELD_OUT
    source = open_images(recipe)
    if len(source.train) + len(source.test) >= MANY:
        recipe.data.val_fraction = HELD_OUT_OF_MANY
        source = open_images(recipe)
    return source
