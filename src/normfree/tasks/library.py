"""The network of torchvision or timm that a recipe names, with or without its normalization."""

from collections.abc import Callable

import torch
from torch import nn

from ..convert import convert
from ..errors import UsageError
from ..models.library import describe
from ..recipes import Recipe


def library_network(recipe: Recipe, outputs: int, *, fill: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """The network of a recipe, converted as ``model.convert`` says: (N, C, H, W) -> (N, outputs).

    When it is first built, constants of a rebuilt network are found and written into ``model.constants``, which is
    empty for others. With these, and on the meta device, it gets its structure only: weights are loaded afterwards.

    Args:
        fill: loads weights into the library's network before it is converted.

    Raises:
        UsageError: the library does not have the network, or it cannot be converted; the message says why.
    """
    config, channels = recipe.model, recipe.data.channels
    if recipe.train.activation_checkpointing is not None:
        raise UsageError(f"train.activation_checkpointing must be null for {config.name}: it keeps all activations")
    fresh = config.constants is None and not _nothing_is_computed()
    model = config.build_library(num_classes=outputs, in_chans=channels, trained=fresh and fill is None)
    if fill is not None:
        fill(model)
    size = recipe.data.image_size or _size_of(model)
    constants = dict[str, float]()
    if config.convert is not None:
        shape = 4, channels, size, size
        given = None if fresh else config.constants or {}
        example = shape if fresh else torch.zeros(2, *shape[1:])
        try:
            conversion = convert(model, example, mode=config.convert, constants=given, init=fill is None)
        except UsageError as error:
            raise UsageError(f"model.convert (={config.convert}): {str(error).partition('; leave=')[0]}") from error
        model, constants = conversion.model, conversion.constants
        describe(model, config.name, outputs, channels, _size_of(conversion.original))
    if fresh:
        config.constants = constants
    return model


def _size_of(model: nn.Module) -> int:
    return getattr(model, "default_cfg")["input_size"][-1]  # noqa: B009 - which nn.Module declares otherwise


def _nothing_is_computed() -> bool:
    return torch.get_default_device() == torch.device("meta")
