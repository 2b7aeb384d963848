"""Folding trained BatchNorms into trainable convolutions with gains: the same outputs in evaluation."""

from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from ..errors import UsageError
from ..nn import ChannelAffine
from .change import Change, is_left, put
from .fused import parts_behind
from .kinds import CONVOLUTIONS, is_batch_norm
from .layers import has_gain, is_plain, with_gain
from .structure import Structure


@torch.no_grad()
def fold_norms(model: nn.Module, structure: Structure, leave: Collection[str]) -> list[Change]:
    """Replace the BatchNorms of ``model`` in place, as far as they follow a layer; the others become gain and bias.

    Args:
        structure: of a graph of the network, with the same names.
    """
    changes = []
    for norm in structure.norms:
        name = str(norm.target)
        module = model.get_submodule(name)
        kind = type(module).__name__
        if is_left(name, leave):
            changes.append(Change(name, kind, "left", "as leave= says"))
        elif not is_batch_norm(module):
            changes.append(Change(name, kind, "left", "it does not depend on the batch"))
        else:
            changes += _fold(model, structure, norm)
    return changes


def _fold(model: nn.Module, structure: Structure, norm: fx.Node) -> list[Change]:
    name = str(norm.target)
    module = model.get_submodule(name)
    kind, parts = type(module).__name__, parts_behind(module)
    gain, bias = _affine(module)
    source = norm.all_input_nodes[0]
    layer = structure.modules.get(str(source.target)) if source.op == "call_module" else None
    if layer is not None and is_plain(layer) and len(source.users) == 1:
        where = str(source.target)
        now = _into_layer(model, where, gain, bias)
        put(model, name, _in_order(parts) if parts else nn.Identity())
        what = f"folded into {where}, which has the gain and the bias"
        return [
            Change(where, type(layer).__name__, now, "the same weight with gain and bias"),
            Change(name, kind, "removed", what),
        ]
    affine = ChannelAffine(len(gain)).to(gain.device, _type(module))
    affine.gain.copy_(gain)
    affine.bias.copy_(bias)
    put(model, name, _in_order({"affine": affine, **parts}) if parts else affine)
    return [Change(name, kind, "ChannelAffine", "it follows no layer of its own; gain and bias stand in its place")]


def _in_order(parts: dict[str, nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(parts))


def _type(module: nn.Module) -> torch.dtype:
    running = module.running_var
    return running.dtype if isinstance(running, Tensor) else torch.float32


def _affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The gain and bias that BatchNorm is in evaluation, in float64."""
    mean, var, eps = module.running_mean, module.running_var, module.eps
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    assert isinstance(eps, float)
    gain = (var.double() + eps).rsqrt()
    if isinstance(module.weight, Tensor):
        gain = gain * module.weight.double()
    bias = -mean.double() * gain
    return gain, bias + module.bias.double() if isinstance(module.bias, Tensor) else bias


def _into_layer(model: nn.Module, name: str, gain: Tensor, bias: Tensor) -> str:
    """A layer with a gain where there is one of ours, else the weight is multiplied; the class that stands there."""
    layer = model.get_submodule(name)
    own = layer.bias.double() * gain if isinstance(layer.bias, Tensor) else 0.0
    if has_gain(layer):
        ours = with_gain(layer)
        ours.gain.copy_(gain)
        ours.bias.copy_(bias + own)
        put(model, name, ours)
        return type(ours).__name__
    assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    weight, rest = layer.weight, (1,) * (layer.weight.ndim - 2)
    if transposed:  # (in, out / groups, ...): the outputs of a group are those of its inputs
        each = gain.view(layer.groups, 1, -1, *rest)
        scaled = weight.double().unflatten(0, (layer.groups, -1)) * each
        weight.copy_(scaled.flatten(0, 1))
    else:
        weight.copy_(weight.double() * gain.view(-1, 1, *rest))
    layer.bias = nn.Parameter((bias + own).to(weight.device, weight.dtype))
    return type(layer).__name__


def freeze(model: nn.Module, names: Collection[str]) -> list[Change]:
    """Parameters below these modules (names or patterns) do not train.

    Raises:
        UsageError: a name that no parameter has.
    """
    changes = []
    for one in names:
        below = [p for name, p in model.named_parameters() if is_left(name, [one])]
        if not below:
            raise UsageError(f"freeze (={one!r}) names no parameter of {type(model).__name__}")
        for parameter in below:
            parameter.requires_grad_(False)
        changes.append(Change(one, "trainable", "frozen", f"{len(below)} tensors"))
    return changes
