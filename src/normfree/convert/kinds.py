"""What a module or a function does to a signal, as far as a conversion has to know."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..nn import BATCH_NORM

Modules = Mapping[str, nn.Module]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMALIZATIONS = (*BATCH_NORM, *INSTANCE_NORM, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.Softsign),
)
_ACTIVATION_NAMES = (
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "selu", "gelu", "silu", "mish", "hardswish"),
    *("sigmoid", "sigmoid_", "hardsigmoid", "tanh", "tanh_", "softplus", "hardtanh"),
)
_IDEMPOTENT = ("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "hardtanh")
_SIGMOIDS = ("sigmoid", "sigmoid_", "hardsigmoid")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
FUNCTIONAL_NORMS = (F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.local_response_norm, F.rms_norm)
FUNCTIONAL_NORMS += (torch.batch_norm, torch.instance_norm, torch.group_norm, torch.layer_norm, torch.rms_norm)
_RESIZING = (F.interpolate, F.upsample, F.pixel_shuffle, F.grid_sample, F.conv_transpose2d)
_MOVES = ("contiguous", "clone", "to", "float", "detach", "view", "reshape", "flatten", "permute", "transpose", "chunk")
_MOVES += ("unsqueeze", "squeeze", "expand", "expand_as", "split", "unflatten", "narrow", "type_as")
_MOVE_FUNCTIONS = (
    *(operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.chunk, torch.split),
    *(torch.squeeze, torch.unsqueeze, torch.clone, torch.narrow, torch.swapaxes, torch.moveaxis, getattr),
    *(F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.pad),
)
_MOVING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten)
_MOVING += (nn.ChannelShuffle, nn.ZeroPad2d)
_DROPS = ("DropPath", "StochasticDepth", "DropBlock2d", "Permute")  # of torchvision and timm, which are not imported


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """BatchNorm whose parameters and statistics are buffers, as torchvision's and timm's FrozenBatchNorm2d."""
    return "FrozenBatchNorm" in type(module).__name__ and {"weight", "running_var"} <= set(module._buffers)


def is_normalization(module: nn.Module) -> bool:
    """Whether a conversion knows how to take the module out: its type is one of torch's, or of timm's above them."""
    return isinstance(module, NORMALIZATIONS) or is_frozen_batch_norm(module)


def is_batch_norm(module: nn.Module) -> bool:
    """BatchNorm of any dimension, frozen or not."""
    return isinstance(module, BATCH_NORM) or is_frozen_batch_norm(module)


def seems_normalization(module: nn.Module) -> bool:
    """Whether its class is called a normalization, although it is none of those known, and holds no layers."""
    if "Norm" not in type(module).__name__ or is_normalization(module):
        return False
    return not any(isinstance(m, WEIGHTED) or is_normalization(m) for m in module.modules())


def module_of(node: fx.Node, modules: Modules) -> nn.Module | None:
    """The module that a node calls."""
    return modules.get(str(node.target)) if node.op == "call_module" else None


def is_weighted(node: fx.Node, modules: Modules) -> bool:
    """A convolution or a linear layer."""
    return isinstance(module_of(node, modules), WEIGHTED)


def is_sum(node: fx.Node) -> bool:
    """An addition of two nodes."""
    return node.target in SUMS and len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)


def is_product(node: fx.Node) -> bool:
    """A product of two nodes."""
    return node.target in PRODUCTS and len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)


def function_name(node: fx.Node, modules: Modules) -> str:
    """What a node calls, as a name without its module."""
    module = module_of(node, modules)
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def activation_of(node: fx.Node, modules: Modules) -> Callable[[Tensor], Tensor] | None:
    """The elementwise function of an activation, out of place; None: it is none that is known."""
    module = module_of(node, modules)
    if module is not None:
        return module if isinstance(module, _ACTIVATIONS) and _is_scalar(module) else None
    name = function_name(node, modules)
    if node.op not in ("call_function", "call_method") or name not in _ACTIVATION_NAMES or len(node.args) != 1:
        return None
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    name = name.rstrip("_")
    function = getattr(F, name, None) or getattr(torch, name)
    kwargs: dict[str, Any] = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    return lambda x: function(x, **kwargs)


def _is_scalar(module: nn.Module) -> bool:
    return not isinstance(module, nn.PReLU) or module.num_parameters == 1


def _activation_name(node: fx.Node, modules: Modules) -> str:
    return function_name(node, modules).lower().removeprefix("nn.")


def is_idempotent(node: fx.Node, modules: Modules) -> bool:
    """An activation that leaves its own output as it is: ReLU, and nearly so LeakyReLU."""
    return _activation_name(node, modules) in (*_IDEMPOTENT, "leakyrelu")


def is_sigmoid(node: fx.Node, modules: Modules) -> bool:
    """A gate's function, 1/2 at 0."""
    return _activation_name(node, modules) in _SIGMOIDS


def is_move(node: fx.Node, modules: Modules) -> bool:
    """A node that only moves, drops or selects values."""
    module = module_of(node, modules)
    if module is not None:
        return isinstance(module, _MOVING) or type(module).__name__ in _DROPS
    if node.op == "call_method":
        return node.target in _MOVES
    return node.op == "call_function" and node.target in _MOVE_FUNCTIONS


def is_resizing(node: fx.Node, modules: Modules) -> bool:
    """A node that enlarges maps, as decoders and feature pyramids do."""
    module = module_of(node, modules)
    if module is not None:
        transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        return transposed or isinstance(module, nn.Upsample | nn.PixelShuffle)
    return node.target in _RESIZING
