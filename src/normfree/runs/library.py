"""Networks of torchvision and timm that start from weights of their own: before or after their conversion."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models.library import TRAINED, classifier
from ..recipes import Recipe
from ..tasks.library import library_network
from ..training import load_weights
from ..weights.carry import summary
from ..weights.file import Weights

_PREFIXES = ("module.", "model.", "network.")  # of wrappers, when all names have one
_COUNT = "num_batches_tracked"  # which files of old versions of torch lack


def initialized_library(
    recipe: Recipe, outputs: int, weights: Weights, described: Mapping[str, Any] | None
) -> tuple[nn.Module, str]:
    """The network of a recipe, with weights of this network as its library has it, or of its conversion.

    Those of the library's network are loaded first, with the statistics of BatchNorm, and then converted: the outputs
    of ``model.convert`` keep stay the same. A rebuilt network takes the weights of the layers, standardized, and the
    normalization's are left out. Weights of a conversion come with the constants of their run.

    Args:
        described: the ``model`` section of the file's recipe, if it has one.

    Returns:
        The network, and a sentence on what was loaded.

    Raises:
        UsageError: weights of another network, or those of a rebuilt one without its constants.
    """
    config = recipe.model
    if config.options.get(option := TRAINED[config.name.partition(":")[0]]):
        raise UsageError(f"--init and model.options.{option} both give weights; leave one of them out")
    with torch.device("meta"):
        own = config.build_library(num_classes=outputs, in_chans=recipe.data.channels, trained=False).state_dict()
    state = _without_prefix(weights.tensors, own)
    notes = list(weights.notes)
    if config.convert is None or {name for name in own if not name.endswith(_COUNT)} <= state.keys():
        fill = lambda model: notes.extend(_load(model, state, weights.origin))  # noqa: E731 - of this network
        model = library_network(recipe, outputs, fill=fill)
        if config.convert in ("rebuild", "identity"):
            notes.append("without the factors and statistics of its normalization")
        return model, summary(weights, notes)
    before = (described or {}).get("convert")
    if described and before != config.convert:
        raise UsageError(f"{weights.origin} has model.convert {before or 'null'}; this network has {config.convert}")
    constants = (described or {}).get("constants")
    if config.convert == "rebuild" and not constants:
        raise UsageError(
            f"{weights.origin} has not all weights of {config.name}, and no constants of a rebuilt network either; "
            "give the run that trained it, or weights of the network with its normalization"
        )
    config.constants = constants if config.convert == "rebuild" else {}
    model = library_network(recipe, outputs)
    return model, summary(weights, notes + _load(model, state, weights.origin))


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and not any(name.startswith(prefix) for name in own):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _load(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> list[str]:
    """Load all but a classifier of other classes, which stays as it is; notes on what differs."""
    own, last = model.state_dict(), classifier(model)
    name = next(name for name, module in model.named_modules() if module is last)
    filled = {key: value for key, value in own.items() if key.endswith(_COUNT)} | dict(state)
    theirs = state.get(f"{name}.weight")
    if theirs is None or theirs.shape == last.weight.shape or theirs.shape[1:] != last.weight.shape[1:]:
        load_weights(model, filled, origin)
        return []
    filled |= {key: value for key, value in own.items() if key.startswith(f"{name}.")}
    load_weights(model, filled, origin)
    return [f"with a new classifier ({len(last.weight)} classes instead of {len(theirs)})"]
