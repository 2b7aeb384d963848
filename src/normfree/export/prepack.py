"""Inference on the CPU: weights laid out for oneDNN once, activations computed inside its convolutions."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import pad_same, residual_merge
from ..models import NFBlock, NormFreeNet
from ..nn import Activation, PaddedConv2d
from .fold import fold

# oneDNN's names, with the algorithm, of what it computes behind a convolution
_FUSED = {"relu": ("relu", ""), "silu": ("swish", ""), "gelu": ("gelu", "tanh"), "gelu_erf": ("gelu", "none")}
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # packed against plain, on noise; a wrong operator is far off


def _fused(layer: nn.Module) -> tuple[str, str] | None:
    return _FUSED.get(layer.name) if type(layer) is Activation else None


class PackedConv2d(nn.Module):
    """A convolution whose weight oneDNN has reordered for inputs of one shape, with the activation behind it.

    It computes ``act(conv(x))`` at any shape and is fast at ``input_shape``. Its weight is opaque: it is not saved,
    moved or converted.
    """

    def __init__(self, conv: nn.Conv2d, input_shape: Sequence[int], act: Activation | None = None):
        super().__init__()
        self.same = conv.same if isinstance(conv, PaddedConv2d) else None
        self.padding, self.geometry = list(conv.padding), (list(conv.stride), list(conv.dilation), conv.groups)
        self.fused = ("none", "") if act is None else _fused(act)
        x, padding = self._pad(torch.empty(input_shape, dtype=conv.weight.dtype, device="meta"))
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, *self.geometry, list(x.shape))
        self.bias = None if conv.bias is None else conv.bias.detach()

    def _pad(self, x: Tensor) -> tuple[Tensor, list[int]]:
        if self.same is None:
            return x, self.padding
        x, padding = pad_same(x, *self.same)
        return x, [padding, padding]

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self._pad(x)
        name, algorithm = self.fused
        run = torch.ops.mkldnn._convolution_pointwise
        return run(x, self.weight, self.bias, padding, *self.geometry, name, [], algorithm)


class PackedLinear(nn.Module):
    """A linear layer that reads its weight with all threads for one row too, which a matrix-vector product does not."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        self.parts = next(n for n in range(torch.get_num_threads(), 0, -1) if linear.out_features % n == 0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1 or x.ndim != 2:
            return F.linear(x, self.weight, self.bias)
        rows = self.weight.view(self.parts, -1, self.weight.shape[1])
        out = torch.bmm(rows, x.t().expand(self.parts, -1, -1)).view(1, -1)
        return out if self.bias is None else out + self.bias


class PackedBlock(nn.Module):
    """A folded :class:`NFBlock` whose activations are computed inside its convolutions where oneDNN can."""

    def __init__(self, block: NFBlock, shapes: dict[nn.Module, torch.Size]):
        super().__init__()
        self.act, self.pool = block.act, block.pool
        self.conv_shortcut = None
        if block.conv_shortcut is not None:
            self.conv_shortcut = PackedConv2d(block.conv_shortcut, shapes[block.conv_shortcut])
        convs = [conv for conv in (block.conv0, block.conv1, block.conv1b) if conv is not None]
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [conv, block.act]
        if block.se_position == "middle":
            layers.insert(-1, block.squeeze_excite)
        self.branch = _packed_sequence([*layers, block.conv2], shapes)
        self.gate = block.squeeze_excite if block.se_position == "end" else None

    def forward(self, x: Tensor) -> Tensor:
        out, shortcut = self.act(x), x
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(out if self.pool is None else self.pool(out))
        out = self.branch(out)
        return shortcut + out if self.gate is None else residual_merge(shortcut, out, self.gate.gate(out))


def _packed_sequence(layers: Sequence[nn.Module], shapes: dict[nn.Module, torch.Size]) -> nn.Sequential:
    """The layers in order, each convolution packed, together with the activation behind it where oneDNN has it."""
    packed: list[nn.Module] = []
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, nn.Conv2d):
            layer = PackedConv2d(layer, shapes[layer], rest.pop(0) if rest and _fused(rest[0]) else None)
        packed.append(layer)
    return nn.Sequential(*packed)


@torch.no_grad()
def prepack(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> nn.Module:
    """A copy of a network for inference on this CPU with inputs of one shape: folded, prepacked, activations fused.

    The same function at any shape; weights are laid out as oneDNN wants them for ``input_shape``. They exist in this
    process alone: save the network itself and pack after loading. Packing uses private operators of PyTorch: where they
    are missing or compute something else, the plain folded network is returned, with a warning.

    Args:
        model: in evaluation mode, on the CPU, float32 or bfloat16; folded already or not.
        input_shape: (N, C, H, W).

    Raises:
        UsageError: a network in training mode, on another device, of another type, or an input that it does not take.
    """
    folded = fold(model)
    parameter = next(folded.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype not in _CLOSE:
        found = "nothing" if parameter is None else f"{parameter.dtype} on {parameter.device}"
        raise UsageError(f"prepack takes float32 or bfloat16 parameters on the CPU; the network has {found}")
    noise = torch.randn(*input_shape, generator=torch.Generator().manual_seed(0)).to(parameter.dtype)
    try:
        expected, shapes = _run(folded, noise)
    except RuntimeError as error:
        raise UsageError(f"the network does not take input_shape (={tuple(input_shape)}): {error}") from error
    try:
        packed = _pack(folded, shapes)
        difference = ((packed(noise) - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    except (AttributeError, RuntimeError, TypeError) as error:  # private operators may change in any way
        warnings.warn(f"oneDNN's operators cannot be used, the folded network is not packed: {error}", stacklevel=2)
        return fold(model)
    if not difference <= _CLOSE[parameter.dtype]:
        warnings.warn(f"the packed network differs by {difference:.2g}, the folded one is not packed", stacklevel=2)
        return fold(model)
    return packed


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[nn.Module, torch.Size]]:
    """The output, and the input's shape of every convolution."""
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[module] = args[0].shape

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        return model(x), shapes
    finally:
        for hook in hooks:
            hook.remove()


def _pack(module: nn.Module, shapes: dict[nn.Module, torch.Size]) -> nn.Module:
    """In place."""
    if isinstance(module, NormFreeNet) and isinstance(module.final_conv, nn.Conv2d) and _fused(module.act):
        module.final_conv = PackedConv2d(module.final_conv, shapes[module.final_conv], module.act)
        module.act = nn.Identity()
    for name, child in module.named_children():
        if isinstance(child, NFBlock):
            child = _pack(PackedBlock(child, shapes), shapes)
        elif isinstance(child, nn.Linear):
            child = PackedLinear(child)
        elif isinstance(child, nn.Conv2d):
            child = PackedConv2d(child, shapes[child])
        else:
            child = _pack(_packed_sequence(child, shapes) if type(child) is nn.Sequential else child, shapes)
        setattr(module, name, child)
    return module
