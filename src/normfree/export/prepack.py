"""Inference on the CPU: weights laid out for oneDNN once, activations computed inside its convolutions."""

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import pad_same, residual_merge
from ..models import NFBlock, NFInvertedBlock
from ..models.features import FeatureMaps
from ..nn import Activation, PaddedConv2d
from ..nn.conv import in_place_of
from ..nn.folded import FoldedConv2d
from .fold import fold

# activations that oneDNN computes after a convolution: its names for them and for the algorithm
_FUSED = {"relu": ("relu", ""), "silu": ("swish", ""), "gelu": ("gelu", "tanh"), "gelu_erf": ("gelu", "none")}
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
}  # packed against plain, on noise; a wrong operator differs far more
_OPAQUE = "a prepacked network stays as and where it is: copy, save, fold or convert the network that it was made from"


def _fusable(layer: nn.Module) -> TypeGuard[Activation]:
    return type(layer) is Activation and layer.name in _FUSED


def _plain(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that its attributes describe, which need not be so for a subclass."""
    zeros = isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
    return zeros and type(layer) in (nn.Conv2d, FoldedConv2d, PaddedConv2d) and "forward" not in vars(layer)


def _hooked(layer: nn.Module) -> bool:
    return any(value for name, value in vars(layer).items() if name.startswith("_forward_"))


def _packable_block(block: nn.Module) -> bool:
    """Whether a block is an unchanged :class:`NFBlock` of a kind that :class:`PackedBlock` knows, without hooks."""
    methods = ("forward", "_activated", "_downscale", "_merged", "_gate")
    return _unchanged(block, NFBlock, methods) and block.affines is None and block.se_position != "straddled"


def _packable_inverted(block: NFInvertedBlock) -> bool:
    """The same of :class:`PackedInverted`."""
    return _unchanged(block, NFInvertedBlock, ("forward", "_transformed")) and block.affines is None


def _unchanged(block: nn.Module, kind: type[nn.Module], methods: Sequence[str]) -> bool:
    """Whether a block has the methods of its kind, and no hooks inside."""
    own = all(getattr(type(block), name, None) is vars(kind)[name] for name in methods)
    return own and "forward" not in vars(block) and not any(_hooked(m) for m in block.modules() if m is not block)


class PackedConv2d(nn.Module):
    """A convolution whose weight oneDNN has reordered for inputs of one shape, with the activation behind it.

    It computes ``act(conv(x))`` at any shape and is fast at ``input_shape``. Its weight is opaque: it is not saved,
    moved or converted.
    """

    def __init__(self, conv: nn.Conv2d, input_shape: Sequence[int], act: Activation | None = None):
        super().__init__()
        self.same = conv.same if isinstance(conv, PaddedConv2d) else None
        self.padding = [
            side for side in conv.padding if isinstance(side, int)
        ]  # integers; for convolutions in general it may be a string
        self.geometry = list(conv.stride), list(conv.dilation), conv.groups
        self.fused = ("none", "") if act is None else _FUSED[act.name]
        x, padding = self._pad(torch.empty(input_shape, dtype=conv.weight.dtype, device="meta"))
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, *self.geometry, list(x.shape))
        self.bias = None if conv.bias is None else conv.bias.detach()

    def _pad(self, x: Tensor) -> tuple[Tensor, list[int]]:
        if self.same is None:
            return x, self.padding
        x, padding = pad_same(x, *self.same)
        return x, [padding, padding]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(_OPAQUE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        raise UsageError(_OPAQUE)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x, padding = self._pad(x)
        name, algorithm = self.fused
        run = torch.ops.mkldnn._convolution_pointwise
        out = run(x, self.weight, self.bias, padding, *self.geometry, name, [], algorithm)
        return out if scale is None else out * scale


class PackedLinear(nn.Module):
    """A linear layer that also uses all threads for a batch of one, unlike a matrix-vector product."""

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
            self.conv_shortcut = _packed_layer(block.conv_shortcut, shapes)
        layers: dict[str, nn.Module] = {}
        for name in ("conv0", "conv1", "conv1b"):
            if (conv := getattr(block, name)) is not None:
                last = name == ("conv1" if block.conv1b is None else "conv1b")
                layers[name] = conv
                if last and block.se_position == "middle" and block.squeeze_excite is not None:
                    layers["gate"] = block.squeeze_excite
                layers[f"{name}_act"] = block.act
        self.branch = _packed_sequence({**layers, "conv2": block.conv2}, shapes)
        self.gate = block.squeeze_excite if block.se_position == "end" else None

    def forward(self, x: Tensor) -> Tensor:
        out, shortcut = self.act(x), x
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(out if self.pool is None else self.pool(out))
        out = self.branch(out)
        return shortcut + out if self.gate is None else residual_merge(shortcut, out, self.gate.gate(out))


class PackedInverted(nn.Module):
    """A folded :class:`NFInvertedBlock` whose activations are computed inside its convolutions where oneDNN can."""

    def __init__(self, block: NFInvertedBlock, shapes: dict[nn.Module, torch.Size]):
        super().__init__()
        self.has_skip = block.has_skip
        layers: dict[str, nn.Module] = {}
        for name in ("conv0", "conv1"):
            if (conv := getattr(block, name)) is not None:
                layers |= {name: conv, f"{name}_act": block.act}
        self.branch = _packed_sequence({**layers, "gate": block.squeeze_excite, "conv2": block.conv2}, shapes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return x + out if self.has_skip else out


def _packed_sequence(
    layers: Mapping[str, nn.Module], shapes: dict[nn.Module, torch.Size], apart: Container[nn.Module] = ()
) -> nn.Sequential:
    """The layers in order, each convolution packed and fused with the activation after it if oneDNN has it.

    Names stay; a fused activation becomes an identity. Convolutions in ``apart`` are not fused, because their output is
    used elsewhere, too.
    """
    packed = nn.Sequential()
    before: nn.Module | None = None
    for name, layer in layers.items():
        if (
            _plain(before)
            and before in shapes
            and before not in apart
            and _fusable(layer)
            and not (_hooked(before) or _hooked(layer))
        ):
            packed[-1] = PackedConv2d(before, shapes[before], layer)
            packed.add_module(name, nn.Identity())
        else:
            packed.add_module(name, _packed_layer(layer, shapes))
        before = layer
    return packed


def _packed_layer(layer: nn.Module, shapes: dict[nn.Module, torch.Size]) -> nn.Module:
    """The packed layer of a convolution that the network has called; other layers as they are."""
    if not _plain(layer) or layer not in shapes:
        return layer
    return in_place_of(layer, PackedConv2d(layer, shapes[layer]))


@torch.no_grad()
def prepack(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> nn.Module:
    """A copy of a network for inference on this CPU with inputs of one shape: folded, prepacked, activations fused.

    The same function at any shape; weights are laid out as oneDNN wants them for ``input_shape``. They exist in this
    process alone: save the network itself and pack after loading. Packing uses private operators of PyTorch: where they
    are missing or compute something else, the plain folded network is returned, with a warning.

    >>> model = normfree.create_model("nf_resnet50", num_classes=10).eval()
    >>> fast = prepack(model, (1, 3, 64, 64))
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(fast(x), model(x), atol=1e-4)
    True

    Args:
        model: in evaluation mode, on the CPU, float32 or bfloat16; folded already or not.
        input_shape: (N, C, H, W).

    Raises:
        UsageError: a network in training mode, on another device, of another type, or an input that it does not take.
    """
    folded = fold(model)
    parameter = next(folded.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype not in _TOLERANCE:
        found = "nothing" if parameter is None else f"{parameter.dtype} on {parameter.device}"
        raise UsageError(f"prepack takes float32 or bfloat16 parameters on the CPU; the network has {found}")
    if not (isinstance(input_shape, Sequence) and len(input_shape) == 4 and all(_positive(n) for n in input_shape)):
        raise UsageError(f"input_shape (={input_shape!r}) must be (N, C, H, W), each at least 1")
    noise = torch.randn(*input_shape, generator=torch.Generator().manual_seed(0)).to(parameter.dtype)
    try:
        expected, shapes = _run(folded, noise)
    except RuntimeError as error:
        raise UsageError(f"the network does not take input_shape (={tuple(input_shape)}): {error}") from error
    try:
        packed = _pack(folded, shapes)
        difference = max(_difference(*pair) for pair in zip(_maps(packed(noise)), _maps(expected), strict=True))
    except (AttributeError, RuntimeError, TypeError) as error:  # private operators may change in any way
        warnings.warn(f"oneDNN's operators cannot be used, the folded network is not packed: {error}", stacklevel=2)
        return fold(model)
    if not difference <= _TOLERANCE[parameter.dtype]:
        warnings.warn(f"the packed network differs by {difference:.2g}, the folded one is not packed", stacklevel=2)
        return fold(model)
    return packed


def _positive(number: object) -> bool:
    return isinstance(number, int) and number > 0


def _maps(output: Any) -> list[Tensor]:
    """The outputs of a network as a list: one tensor, or a pyramid of them."""
    return [output] if isinstance(output, Tensor) else list(output)


def _difference(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)).item()


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[nn.Module, torch.Size]]:
    """The output, and the shape of the input of every convolution."""
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[module] = args[0].shape

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        return model(x), shapes
    finally:
        for hook in hooks:
            hook.remove()


def _pack(
    module: nn.Module, shapes: dict[nn.Module, torch.Size], apart: frozenset[nn.Module] = frozenset()
) -> nn.Module:
    """Replace the layers of a module by packed ones, in place."""
    if isinstance(module, FeatureMaps):  # its outputs are taken before the activations
        apart = apart | {module.get_submodule(info["module"]) for info in module.present_maps}
    for name, child in module.named_children():
        if isinstance(child, NFBlock) and _packable_block(child):
            child = in_place_of(child, _pack(PackedBlock(child, shapes), shapes))
        elif isinstance(child, NFInvertedBlock) and _packable_inverted(child):
            child = in_place_of(child, _pack(PackedInverted(child, shapes), shapes))
        elif type(child) is nn.Linear and "forward" not in vars(child):
            child = in_place_of(child, PackedLinear(child))
        elif isinstance(child, nn.Conv2d):
            child = _packed_layer(child, shapes)
        elif type(child) is nn.Sequential and "forward" not in vars(child):
            child = in_place_of(child, _pack(_packed_sequence(child._modules, shapes, apart), shapes, apart))
        else:
            child = _pack(child, shapes, apart)
        setattr(module, name, child)
    return module
