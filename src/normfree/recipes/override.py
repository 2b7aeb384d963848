"""What else changes in a recipe when a field is overridden."""

import inspect
import shlex
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UsageError
from ..models.library import is_library
from ..models.registry import lookup_any
from ..nn import batch_norms
from ..optim.imported import is_import
from ..words import shown

# An override of the first field unsets the second one in the recipe, which would take precedence.
REPLACES = {"train.epochs": "train.steps", "optim.warmup_epochs": "optim.warmup_steps"}
TASK_OPTIONS = ("output_stride",)  # options that a task needs of every network


def resolve_overrides(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The overrides, preceded by the fields that they unset.

    The options of a recipe are for its model and its optimizer. If the name of one is overridden, its options are left
    out; a model of the same family keeps those that do not replace a number in the tables of variants (widths, depths,
    stem, ...).

    Args:
        content: the recipe's sections.
        overrides: by dotted path.

    Returns:
        All overrides in order, and messages for the user.
    """
    unset: dict[str, Any] = {}
    messages = []
    for name, other in REPLACES.items():
        if overrides.get(name) is not None and other not in overrides and _at(content, other) is not None:
            unset[other] = None
            messages.append(f"{name} (={shown(overrides[name])}) takes the place of {other} (={_at(content, other)})")
    name, before = overrides.get("optim.name"), _at(content, "optim.name") or "sgd"
    own = _at(content, "optim.options")
    if name is not None and name != before and isinstance(own, dict) and own:
        unset |= {f"optim.options.{key}": None for key in own}
        messages.append(f"optim.options of the recipe ({_listed(own)}) are for {before}; {name} is made without them")
    options = _at(content, "model.options")
    old, new = _at(content, "model.name"), overrides.get("model.name")
    if new is not None and not is_library(str(new)) and (how := _at(content, "model.convert")) is not None:
        unset["model.convert"] = overrides.get("model.convert")
        messages.append(f"model.convert of the recipe (={how}) is for {old}; {shown(new)} is built without it")
    for rate in ("model.drop_rate", "model.stochdepth_rate"):
        if new is not None and is_library(str(new)) and rate not in overrides and _at(content, rate) is not None:
            unset[rate] = None
            messages.append(f"{rate} of the recipe (={_at(content, rate)}) is for {old}; {shown(new)} has its own")
    if _at(content, "model.constants") is not None and any(path.startswith("model.") for path in overrides):
        unset["model.constants"] = None  # they are of the network that the recipe has
    if isinstance(options, dict) and old and new and old != new and (names := _unfit_options(options, old, new)):
        unset |= {f"model.options.{name}": None for name in names}
        left_out = _listed({name: options[name] for name in names})
        messages.append(f"model.options of the recipe ({left_out}) are for {old}; {new} is built without them")
    return unset | dict(overrides), messages


def check_import(optimizer: Any, overrides: Mapping[str, Any] | None, source: str) -> None:
    """Refuse the class of an optimizer that a file names: importing it runs code, which the user has to ask for.

    Args:
        optimizer: ``optim.name`` of the file.
        overrides: what the user asks for; None: nobody can.
        source: the file, for the message.

    Raises:
        UsageError: it names a class, and ``overrides`` name no optimizer.
    """
    if is_import(optimizer) and "optim.name" not in (overrides or {}):
        hint = f"if you trust it, say so with --optim.name {shlex.quote(str(optimizer))}"
        hint = f"{source} cannot name it" if overrides is None else hint
        raise UsageError(
            f"{source}: optim.name (={shown(optimizer)}) is a class to import, which runs its code; {hint}"
        )


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {shown(value)}" for name, value in options.items())


def check_exact(recipe: Any, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse the micro-batches of a recipe for another model that has BatchNorm, where they would not be exact.

    Args:
        recipe: with the overrides.
        content: the recipe's sections without them.

    Raises:
        UsageError: the recipe has micro-batches, and the model is not the recipe's and has BatchNorm.
    """
    train, name = recipe.train, recipe.model.name
    recipe_model = _at(content, "model.name")
    if "train.micro_batch" in overrides or train.micro_batch is None or recipe_model in (None, "", name):
        return
    if recipe.model.convert is not None:  # and has none
        return
    sizes: dict[str, Any] = dict(num_classes=2, in_chans=recipe.data.channels)
    with torch.device("meta"):
        own = recipe.model.is_library
        model = recipe.model.build_library(**sizes, trained=False) if own else recipe.model.build(**sizes)
    if batch_norms(model):
        raise UsageError(
            f"train.micro_batch (={shown(train.micro_batch)}) of the recipe is exact for networks without BatchNorm; "
            f"{name} would normalize over so many images instead of {train.batch_size}: "
            "use --train.micro_batch null for whole batches, or --train.micro_batch N for that"
        )


def _unfit_options(options: Mapping[str, Any], old_name: str, new_name: str) -> list[str]:
    """Names of a recipe's options for one model that do not fit another."""
    if is_library(str(old_name)) or is_library(str(new_name)):
        return list(options)
    try:
        (old, old_row), (new, new_row) = lookup_any(str(old_name)), lookup_any(str(new_name))
    except UsageError:  # building the network raises it again
        return []
    if old.family != new.family:
        known = inspect.signature(new.__init__).parameters
        return [name for name in options if name not in TASK_OPTIONS or name not in known]
    return [name for name in options if name in old_row or name in new_row]


def _at(content: Mapping[str, Any], path: str) -> Any:
    section, name = path.split(".")
    inner = content.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None
