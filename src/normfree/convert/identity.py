"""Leaving normalization out of a network, and nothing put in its place: the control beside a conversion."""

from collections import OrderedDict
from collections.abc import Collection

from torch import nn

from .change import Change, Refusal, is_left, put, refuse
from .fused import parts_behind
from .kinds import is_normalization, seems_normalization


def remove_norms(model: nn.Module, leave: Collection[str]) -> list[Change]:
    """Replace each normalization of ``model`` by :class:`torch.nn.Identity` in place; an activation in it stays.

    Raises:
        UsageError: a normalization of a class that is not known.
    """
    names = [(name, module) for name, module in model.named_modules() if name and not is_left(name, leave)]
    refusals = [
        Refusal(name, f"{type(module).__name__} is no normalization that is known")
        for name, module in names
        if seems_normalization(module)
    ]
    refuse(refusals, type(model).__name__)
    changes = []
    for name, module in names:
        if is_normalization(module):
            parts = parts_behind(module)
            put(model, name, nn.Sequential(OrderedDict(parts)) if parts else nn.Identity())
            changes.append(Change(name, type(module).__name__, "Identity", "left out, with nothing in its place"))
    return changes
