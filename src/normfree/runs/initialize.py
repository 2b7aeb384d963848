"""Other weights to start from: which network they describe, and filling it with them."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models import ResidualNet
from ..models.backbone import OnBackbone
from ..models.config import ModelConfig
from ..models.registry import lookup
from ..recipes import Recipe
from ..training import load_weights, read_checkpoint
from ..weights import convert
from ..weights.carry import carry, fitted, summary
from ..weights.file import Weights
from ..weights.state_dict import find_state
from ..words import tell
from .foreign import read_named
from .named import PREFIX, TRAINED, Kind, kind_of, other_wanted

OF_USE = ("stem", "output_stride")  # options that say how a network is used, not which one it is


def initialize(model: nn.Module, path: str | Path) -> str:
    """Start from other weights: a run folder, a file of anyone's, or ``pretrained:NAME``.

    Where the number of classes differs, the classifier stays freshly initialized; so does another stem. A first
    convolution of other channels is adapted. For segmentation, depth and detection the backbone is loaded, and the head
    as well where the weights are of one for the same task and classes.

    Returns:
        What was done, in one sentence.

    Raises:
        UsageError: nothing there, unreadable, or weights of another architecture.
    """
    weights = _read(str(path))[0]
    if isinstance(model, OnBackbone):
        own = {name: value.shape for name, value in model.state_dict().items()}
        if own == {name: getattr(value, "shape", None) for name, value in weights.tensors.items()}:
            load_weights(model, weights.tensors, weights.origin)
            return f"weights from {weights.origin}"
        weights = _of_backbone(weights)
        assert isinstance(model.backbone, ResidualNet)
        notes = carry(model.backbone, weights)
        return f"{summary(weights, notes)}, into the backbone; what stands behind it is new"
    weights = _of_backbone(weights)
    assert isinstance(model, ResidualNet)
    return summary(weights, carry(model, weights))


def adopt(recipe: Recipe, path: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> str | None:
    """Make the network that weights describe that of a recipe, which keeps its regularization, stem and output stride.

    Args:
        overrides: fields that were typed; options of the network among them outrank those of the weights.

    Returns:
        What changed, in one sentence; None where the recipe has this network already.

    Raises:
        UsageError: nothing there, unreadable, or of no network that is known.
    """
    weights, described = _read(path)
    before = recipe.model
    if described is None:
        if before.name and _takes(before, weights):
            return None
        shapes = convert.shapes_of(weights.tensors, weights.form)
        described = dict[str, Any](name=convert.choose_model(shapes, weights.form, path)[0], options={})
    name: str = described["name"]
    options: dict[str, Any] = dict(described["options"])
    if before.name and lookup(before.name)[0] is lookup(name)[0]:
        options |= {key: before.options[key] for key in OF_USE if key in before.options}
    elif (
        "output_stride" in before.options and "output_stride" in inspect.signature(lookup(name)[0].__init__).parameters
    ):
        options["output_stride"] = before.options["output_stride"]
    typed = {path.removeprefix("model.options.").partition(".")[0] for path in overrides if path != "model.options"}
    typed |= (overrides.get("model.options") or {}).keys()
    options |= {key: value for key, value in before.options.items() if key in typed}
    if (name, options) == (before.name, before.options):
        return None
    recipe.model = ModelConfig(name, before.drop_rate, before.stochdepth_rate, options)
    shown = f" with options {', '.join(f'{k}={v}' for k, v in options.items())}" if options else ""
    return f"the network is that of {path}: {name}{shown}; --model NAME builds another"


def _read(path: str) -> tuple[Weights, dict[str, Any] | None]:
    """Weights, and the name and options of their network where that is said."""
    kind = kind_of(path)
    if kind not in TRAINED:
        raise other_wanted(path, kind)
    if kind in (Kind.RUN, Kind.CHECKPOINT):
        state, description, file = read_checkpoint(path, say=lambda line: tell(line, file=sys.stderr))
        recipe = description.get("recipe") if isinstance(description, dict) else None
        model = recipe.get("model") if isinstance(recipe, dict) else None
        return Weights(state, "normfree", str(file)), _checked(model)
    named = dict(name=path.removeprefix(PREFIX), options={}) if kind is Kind.PUBLISHED else None
    return read_named(path), named


def _checked(model: Any) -> dict[str, Any] | None:
    """The model section of a description, if it is one; its words are whatever the file says."""
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        return None
    options = model.get("options", {})
    return dict(name=model["name"], options=options if isinstance(options, dict) else {})


def _of_backbone(weights: Weights) -> Weights:
    """Without the head of a network that answers for places."""
    if weights.form != "normfree":
        return weights
    state, _ = find_state(weights.tensors, Tensor, weights.origin)
    return replace(weights, tensors=state)


def _takes(config: ModelConfig, weights: Weights) -> bool:
    """Whether a network has these tensors, but for classes and channels."""
    with torch.device("meta"):
        model = config.build(num_classes=1000, in_chans=3)
    try:
        _, notes = fitted(model, weights)
    except UsageError:
        return False
    return not any("stem" in note for note in notes)
