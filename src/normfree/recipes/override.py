"""What overriding a field changes in the rest of a recipe."""

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UsageError
from ..models.registry import lookup
from ..nn import batch_norms
from ..words import shown

# a number that is given replaces the recipe's other one for the same thing, which would take precedence in a file
INSTEAD = {"train.epochs": "train.steps", "optim.warmup_epochs": "optim.warmup_steps"}
OF_THE_TASK = ("output_stride",)  # options that a task asks of every network


def resolve_overrides(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The overrides, preceded by the fields that must give way to them.

    The options in a recipe are for its own network. With another model they are left out; a model of the same family
    keeps those that do not replace a number in the tables of variants (widths, depths, stem, ...).

    Args:
        content: the recipe's sections.
        overrides: by dotted path.

    Returns:
        All overrides in order, and lines to tell the user.
    """
    found: dict[str, Any] = {}
    told = []
    for given, other in INSTEAD.items():
        if overrides.get(given) is not None and other not in overrides and _at(content, other) is not None:
            found[other] = None
            told.append(f"{given} (={shown(overrides[given])}) takes the place of {other} (={_at(content, other)})")
    options = _at(content, "model.options")
    before, now = _at(content, "model.name"), overrides.get("model.name")
    if isinstance(options, dict) and before and now and before != now:
        unfit = _unfit(options, before, now)
        if unfit:
            found |= {f"model.options.{name}": None for name in unfit}
            left = ", ".join(f"{name}: {shown(options[name])}" for name in unfit)
            told.append(f"model.options of the recipe ({left}) are for {before}; {now} is built without them")
    return found | dict(overrides), told


def check_exact(recipe: Any, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse a recipe's micro-batches for another model that has BatchNorm: their update would not be exact.

    Args:
        recipe: with the overrides.
        content: the recipe's sections without them.

    Raises:
        UsageError: the recipe has micro-batches, and the model is not the recipe's own and has BatchNorm.
    """
    train, name = recipe.train, recipe.model.name
    before = _at(content, "model.name")
    if "train.micro_batch" in overrides or train.micro_batch is None or not before or before == name:
        return
    with torch.device("meta"):
        model = recipe.model.build(num_classes=2, in_chans=recipe.data.channels)
    if batch_norms(model):
        raise UsageError(
            f"train.micro_batch (={shown(train.micro_batch)}) of the recipe is exact for networks without BatchNorm; "
            f"{name} would normalize over so many images instead of {train.batch_size}: "
            "say --train.micro_batch null for whole batches, or --train.micro_batch N for that"
        )


def _unfit(options: Mapping[str, Any], before: str, now: str) -> list[str]:
    """Names of a recipe's options for one model that do not fit another."""
    try:
        (old, old_row), (new, new_row) = lookup(str(before)), lookup(str(now))
    except UsageError:  # said where the network is built
        return []
    if old.family != new.family:
        return [name for name in options if name not in OF_THE_TASK]
    return [name for name in options if name in old_row or name in new_row]


def _at(content: Mapping[str, Any], path: str) -> Any:
    section, name = path.split(".")
    inner = content.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None
