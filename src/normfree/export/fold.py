"""Folding a trained network into plain layers: the same function without any arithmetic on weights."""

import copy

import torch
from torch import nn

from ..errors import UsageError
from ..models import NFBlock
from ..nn import SameConv2d


@torch.no_grad()
def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The network with weight standardization, gains, gamma, beta, alpha and skip gains folded into plain convolutions.

    Works on every family, on what timm makes of them with ``features_only=True``, and on any network that contains
    blocks or convolutions of ``normfree``. The result computes the same to float rounding, is not for training, and
    keeps its accuracy when it is turned to bfloat16 or float16 afterwards.

    Args:
        model: in evaluation mode.
        inplace: change ``model`` itself instead of a copy (no second set of weights in memory).

    Returns:
        The folded network; ``nn.Conv2d`` stands where our convolutions stood.

    Raises:
        UsageError: the network, or a part of it, is in training mode, or is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"fold takes a torch.nn.Module, not a {type(model).__name__}")
    training = next((name or type(model).__name__ for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(f"fold takes a network in evaluation mode; {training} is in training mode: call model.eval()")
    model = model if inplace else copy.deepcopy(model)
    if isinstance(model, SameConv2d):
        return model.folded()
    for module in model.modules():
        if isinstance(module, NFBlock) and module.skip_init is not None:
            module.fold_()
    folded: dict[int, nn.Conv2d] = {}  # a layer may stand in several places
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, SameConv2d):
                if id(child) not in folded:
                    folded[id(child)] = child.folded()
                module._modules[name] = folded[id(child)]
    return model.requires_grad_(False)
