"""Folding a trained network into plain layers: the same function without any arithmetic on weights."""

import copy

import torch
from torch import nn

from ..errors import UsageError
from ..models import NFBlock, NFInvertedBlock
from ..models.cifarnet import ConvBlock
from ..nn import SameConv, WSConvTranspose
from ..nn.folded import FOLDED


@torch.no_grad()
def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The network with weight standardization, gains, gamma, beta, alpha and skip gains folded into plain convolutions.

    Works on every family, on what timm makes of them with ``features_only=True``, and on any network that contains
    blocks or convolutions of ``normfree``. The result computes the same to float rounding, keeps forward hooks, is not
    for training, and keeps its accuracy when it is turned to bfloat16 or float16 afterwards.

    >>> model = normfree.create_model("nf_resnet50", num_classes=10).eval()
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(fold(model)(x), model(x), atol=1e-4)
    True

    Args:
        model: in evaluation mode.
        inplace: change ``model`` itself instead of a copy (no second set of weights in memory).

    Returns:
        The folded network; ``nn.Conv2d`` stands where our convolutions stood, in modules of one's own a subclass of it
        that takes ``scale`` and has ``standardized_weight()`` as before.

    Raises:
        UsageError: the network, or a part of it, is in training mode, or is no module; a subclass of a convolution has
            a ``forward`` of its own; a convolution alone is to be folded in place.
    """
    _check(model, inplace)
    model = model if inplace else copy.deepcopy(model)
    if isinstance(model, SameConv):
        return model.folded(plain_type=_with_scale(model))
    for module in model.modules():
        if isinstance(module, NFBlock | NFInvertedBlock | ConvBlock):
            module.fold_()
    modules = list(model.modules())
    with_scale = {child for module in modules if not _calls_plainly(module) for child in module.children()}
    folded: dict[nn.Module, nn.Module] = {}  # a layer may stand in several places
    for module in modules:
        for name, child in module._modules.items():
            if isinstance(child, SameConv):
                if child not in folded:
                    folded[child] = child.folded(plain_type=_with_scale(child) if child in with_scale else None)
                module._modules[name] = folded[child]
    return model.requires_grad_(False)


def _check(model: nn.Module, inplace: bool) -> None:
    """Refuse what :func:`fold` cannot fold."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"fold takes a torch.nn.Module, not a {type(model).__name__}")
    training = next((name or type(model).__name__ for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(f"fold takes a network in evaluation mode; {training} is in training mode: call model.eval()")
    for name, module in model.named_modules():
        if isinstance(module, SameConv) and (method := module.overridden()):
            raise UsageError(
                f"cannot tell what {name or 'the network'} computes: {type(module).__name__} has its own {method};"
                " give the class its own folded(), which returns a plain layer of the same function"
            )
    if inplace and isinstance(model, SameConv):
        raise UsageError(
            f"a {type(model).__name__} alone cannot be folded in place, since another layer replaces it; "
            "leave inplace=True out"
        )


def _with_scale(layer: SameConv) -> type[nn.Module] | None:
    """The plain layer that takes ``scale`` as this one does; None: there is none."""
    return None if isinstance(layer, WSConvTranspose) else FOLDED[layer.dims]


def _calls_plainly(module: nn.Module) -> bool:
    """Whether a module calls its folded layers with their input only."""
    return type(module) is nn.Sequential or type(module).__module__.partition(".")[0] == __name__.partition(".")[0]
