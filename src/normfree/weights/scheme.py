"""Whose weights a network's can be."""

from torch import nn

from ..errors import UsageError
from ..nn import GainConv, WSConv


def check_standardized(model: nn.Module, whose: str) -> None:
    """Refuse a network with another weight scheme: the same numbers would be another function in that program.

    Raises:
        UsageError: naming the first such layer.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, GainConv) and not isinstance(layer, WSConv):
            raise UsageError(
                f"{whose} standardize weights in the forward pass, {name} ({type(layer).__name__}) does not: "
                'take a network with weight_scheme "standardized"'
            )
