"""Initializing a network from other weights, and building the network that they are of."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..limits import MAX_INPUT_SIDE
from ..models import ResidualNet
from ..models.backbone import OnBackbone
from ..models.config import CONVERSIONS, ModelConfig
from ..models.library import LIBRARIES, is_library
from ..models.library import TRAINED as OF_LIBRARY
from ..models.registry import lookup
from ..recipes import Recipe
from ..recipes.decide import without_sizes
from ..tasks import task_of
from ..training import load_weights, read_checkpoint
from ..weights import convert
from ..weights.carry import carry, fitted, summary
from ..weights.file import Weights
from ..weights.state_dict import find_state
from ..words import tell
from .foreign import read_named
from .library import initialized_library
from .named import PREFIX, TRAINED, Kind, kind_of, other_wanted

TASK_OPTIONS = ("stem", "output_stride")  # options for the task at hand, with which the same weights fit


def build_initialized(recipe: Recipe, classes: Sequence[str], path: str) -> tuple[nn.Module, str]:
    """The network of a recipe with weights of ``path``, and a sentence on what was loaded; see :func:`initialize`.

    A network of torchvision or timm takes its own weights before it is converted.
    """
    if recipe.model.is_library:
        return initialized_library(recipe, len(classes), *_read(path))
    model = task_of(recipe).build_network(recipe, classes)
    return model, initialize(model, path)


def initialize(model: nn.Module, path: str | Path) -> str:
    """Load weights of a run folder, of any file, or of ``pretrained:NAME``.

    The classifier stays as it is where the number of classes differs, and the stem where it is another one. A first
    convolution for another number of channels is adapted. For segmentation, depth and detection the backbone is
    loaded, and also the head if the weights are for the same task and classes.

    Returns:
        A sentence on what was loaded.

    Raises:
        UsageError: nothing there, unreadable, or weights of another architecture.
    """
    weights = _read(str(path))[0]
    if isinstance(model, OnBackbone):
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if shapes == {name: getattr(value, "shape", None) for name, value in weights.tensors.items()}:
            load_weights(model, weights.tensors, weights.origin)
            return f"weights from {weights.origin}"
        weights = _of_backbone(weights)
        assert isinstance(model.backbone, ResidualNet)
        notes = carry(model.backbone, weights)
        return f"{summary(weights, notes)}, into the backbone; what stands behind it is new"
    weights = _of_backbone(weights)
    if not isinstance(model, ResidualNet):
        raise _of_library(type(model).__name__)
    return summary(weights, carry(model, weights))


def adopt(recipe: Recipe, path: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> str | None:
    """Set a recipe's network to that of the weights; its regularization, stem and output stride stay.

    Where the recipe leaves the size of images open (``data.decides``), it becomes the one that the weights were trained
    at, or the network's.

    Args:
        overrides: fields that the user gave; options of the network among them replace those of the weights.

    Returns:
        A sentence on the change; None if the recipe has this network already.

    Raises:
        UsageError: nothing there, unreadable, or of an unknown network.
    """
    weights, described = _read(path)
    before = recipe.model
    _adopt_sizes(recipe, described)
    if is_library(before.name) or is_library((described or {}).get("name", "")):
        return _adopt_library(recipe, path, described)
    if described is None:
        if before.name and _fits(before, weights):
            return None
        shapes = convert.shapes_of(weights.tensors, weights.form)
        described = dict[str, Any](name=convert.choose_model(shapes, weights.form, path)[0], options={})
    name: str = described["name"]
    options: dict[str, Any] = dict(described["options"])
    if before.name and lookup(before.name)[0] is lookup(name)[0]:
        options |= {key: before.options[key] for key in TASK_OPTIONS if key in before.options}
    elif (
        "output_stride" in before.options and "output_stride" in inspect.signature(lookup(name)[0].__init__).parameters
    ):
        options["output_stride"] = before.options["output_stride"]
    given = {path.removeprefix("model.options.").partition(".")[0] for path in overrides if path != "model.options"}
    given |= (overrides.get("model.options") or {}).keys()
    options |= {key: value for key, value in before.options.items() if key in given}
    if (name, options) == (before.name, before.options):
        return None
    recipe.model = ModelConfig(name, before.drop_rate, before.stochdepth_rate, options)
    shown = f" with options {', '.join(f'{k}={v}' for k, v in options.items())}" if options else ""
    return f"the network is that of {path}: {name}{shown}; --model NAME builds another"


def _adopt_library(recipe: Recipe, path: str, described: Mapping[str, Any] | None) -> str | None:
    """What :func:`adopt` does where a library has the network of the file or of the recipe; two are refused."""
    before = recipe.model
    if described is None:
        return None
    if is_library(before.name) and described["name"] != before.name:
        raise UsageError(
            f"--init {path} is of {described['name']}, and the recipe trains {before.name}; "
            f"--model {described['name']} trains the former"
        )
    options = {key: value for key, value in described["options"].items() if key not in OF_LIBRARY.values()}
    convert = described["convert"]
    if is_library(before.name):
        options, convert = options | before.options, before.convert
    if (described["name"], options, convert) == (before.name, before.options, before.convert):
        return None
    recipe.model = ModelConfig(described["name"], options=options, convert=convert)
    shown = f" with model.convert {convert}" if convert else ""
    return f"the network is that of {path}: {described['name']}{shown}; --model NAME builds another"


def _of_library(name: str) -> UsageError:
    return UsageError(
        f"these weights are for normfree's own networks, and {name} is a network of {' or '.join(LIBRARIES)}"
    )


def _read(path: str) -> tuple[Weights, dict[str, Any] | None]:
    """Weights, and name and options of their network if they are given."""
    kind = kind_of(path)
    if kind not in TRAINED:
        raise other_wanted(path, kind)
    if kind in (Kind.RUN, Kind.CHECKPOINT):
        state, description, file = read_checkpoint(path, say=lambda line: tell(line, file=sys.stderr))
        recipe = description.get("recipe") if isinstance(description, dict) else None
        model, data = (recipe.get(part) if isinstance(recipe, dict) else None for part in ("model", "data"))
        described = _checked(model)
        if described is not None and isinstance(data, dict):
            described["sizes"] = {name: data.get(name) for name in ("image_size", "test_size", "resize_margin")}
        return Weights(state, "normfree", str(file)), described
    named = dict(name=path.removeprefix(PREFIX), options={}) if kind is Kind.PUBLISHED else None
    return read_named(path), named


def _checked(model: Any) -> dict[str, Any] | None:
    """The model section of a description if it is valid; the file may contain anything."""
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        return None
    options = model.get("options", {})
    options = options if isinstance(options, dict) else {}
    convert, constants = model.get("convert"), model.get("constants")
    known = dict(
        convert=convert if convert in CONVERSIONS else None, constants=constants if _is_numbers(constants) else None
    )
    return dict(name=model["name"], options=options) | known


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, int | float) for one in value.values())


def _adopt_sizes(recipe: Recipe, described: Mapping[str, Any] | None) -> None:
    """Take the sizes of images in a description, which may hold anything; without one they are left to the network."""
    if "data.image_size" not in recipe.data.decides:
        return
    sizes = (described or {}).get("sizes", {})
    sizes = {name: value for name, value in sizes.items() if type(value) is int and 0 <= value <= MAX_INPUT_SIDE}
    sizes = {name: value for name, value in sizes.items() if value or name == "resize_margin"}
    taken = {name: value for name, value in sizes.items() if f"data.{name}" in recipe.data.decides}
    recipe.data = replace(recipe.data, **taken, decides=without_sizes(recipe.data.decides))


def _of_backbone(weights: Weights) -> Weights:
    """Without the head of a network for segmentation, depth or detection."""
    if weights.form != "normfree":
        return weights
    state, _ = find_state(weights.tensors, Tensor, weights.origin)
    return replace(weights, tensors=state)


def _fits(config: ModelConfig, weights: Weights) -> bool:
    """Whether the weights fit a network, apart from the numbers of classes and channels."""
    with torch.device("meta"):
        model = config.build(num_classes=1000, in_chans=3)
    try:
        _, notes = fitted(model, weights)
    except UsageError:
        return False
    return not any("stem" in note for note in notes)
