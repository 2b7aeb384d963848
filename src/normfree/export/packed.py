"""Layers and blocks of a packed network: weights laid out for oneDNN, activations inside convolutions and merges."""

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import pad_same, residual_merge
from ..kernels import inference
from ..models import NFBlock, NFInvertedBlock
from ..models.body import Stage
from ..models.features import FeatureMaps
from ..nn import Activation, PaddedConv2d, SqueezeExcite
from ..nn.conv import in_place_of
from ..nn.folded import FoldedConv2d

# activations that oneDNN computes after a convolution: its names for them and for the algorithm
_FUSED = {"relu": ("relu", ""), "silu": ("swish", ""), "gelu": ("gelu", "tanh"), "gelu_erf": ("gelu", "none")}
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


def _packable_gate(gate: SqueezeExcite) -> bool:
    """The same of :class:`PackedGate`, of the class itself."""
    return _unchanged(gate, SqueezeExcite, ("forward", "gate", "gate_of")) and not {"gate", "gate_of"} & set(vars(gate))


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
    """A linear layer that uses all threads for a few rows, too, unlike a matrix-vector product."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight.detach().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().contiguous()
        self.parts = next(n for n in range(torch.get_num_threads(), 0, -1) if linear.out_features % n == 0)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is self.weight.dtype and inference.few(x, self.weight, self.bias):
            return inference.linear(x, self.weight, self.bias).to(x.dtype)
        if x.shape[0] != 1 or x.ndim != 2:
            return F.linear(x, self.weight, self.bias)
        rows = self.weight.view(self.parts, -1, self.weight.shape[1])  # without the kernels
        out = torch.bmm(rows, x.t().expand(self.parts, -1, -1)).view(1, -1)
        return out if self.bias is None else out + self.bias


class PackedGate(nn.Module):
    """A :class:`~normfree.nn.SqueezeExcite` whose means and matrices are computed in float32, without small steps."""

    def __init__(self, gate: SqueezeExcite):
        super().__init__()
        self.factor, self.function = gate.factor, gate.function
        self.fc0, self.fc1 = PackedLinear(gate.fc0), PackedLinear(gate.fc1)

    def gate(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the gate (N, C, 1, 1), float32."""
        return self.gate_of(inference.means(x))

    def gate_of(self, mean: Tensor, dims: int = 2) -> Tensor:
        """The gate of (N, C) means over places, for maps of ``dims`` dimensions, float32."""
        first, last = self.fc0, self.fc1
        if self.function is F.relu and inference.few(mean, first.weight, first.bias):
            hidden = inference.linear(mean, first.weight, first.bias, "relu")
            gate = inference.linear(hidden, last.weight, last.bias, "sigmoid", self.factor)
        else:
            mean = mean.to(first.weight.dtype)
            gate = self.factor * torch.sigmoid(last(self.function(first(mean))).float())
        return gate[(..., *(None,) * dims)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).to(x.dtype)


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
        shortcut, branch, gate = self.parts(x, _activated(x, self.act))
        return _merged(shortcut, branch, gate)

    def parts(self, x: Tensor, activated: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is merged, for an input and its activation: shortcut, branch, gate (N, C, 1, 1) or None."""
        shortcut = x
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(activated if self.pool is None else self.pool(activated))
        branch = self.branch(activated)
        return shortcut, branch, None if self.gate is None else self.gate.gate(branch)


class PackedStage(nn.Sequential):
    """Packed blocks in a row: each merge computes the activation that the next block begins with, too."""

    def forward(self, input: Tensor) -> Tensor:
        blocks = [block for block in self if isinstance(block, PackedBlock)]  # all of them, for the type checker
        x, activated = input, _activated(input, blocks[0].act)
        for block, following in itertools.pairwise(blocks):
            x, activated = _merged_and_activated(*block.parts(x, activated), following.act)
        return _merged(*blocks[-1].parts(x, activated))


def _merged(shortcut: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return shortcut + branch if gate is None else residual_merge(shortcut, branch, gate)


def _merged_and_activated(
    shortcut: Tensor, branch: Tensor, gate: Tensor | None, act: nn.Module
) -> tuple[Tensor, Tensor]:
    if _fusable(act) and inference.mergeable(shortcut, branch, gate):
        return inference.merged(shortcut, branch, gate, act.name)
    return (x := _merged(shortcut, branch, gate)), _activated(x, act)


def _activated(x: Tensor, act: nn.Module) -> Tensor:
    return inference.activated(x, act.name) if _fusable(act) and inference.supported(x) else act(x)


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


def _packed_stage(stage: nn.Module) -> nn.Module:
    """A stage of packed blocks that nothing watches as one that merges and activates in one pass."""
    blocks = list(stage.children())
    if not blocks or not all(type(block) is PackedBlock and not _hooked(block) for block in blocks):
        return stage
    return in_place_of(stage, PackedStage(*blocks))


def pack(
    module: nn.Module, shapes: dict[nn.Module, torch.Size], apart: frozenset[nn.Module] = frozenset()
) -> nn.Module:
    """Replace the layers of a module by packed ones, in place."""
    if isinstance(module, FeatureMaps):  # its outputs are taken before the activations
        apart = apart | {module.get_submodule(info["module"]) for info in module.present_maps}
    for name, child in module.named_children():
        if isinstance(child, NFBlock) and _packable_block(child):
            child = in_place_of(child, pack(PackedBlock(child, shapes), shapes))
        elif isinstance(child, NFInvertedBlock) and _packable_inverted(child):
            child = in_place_of(child, pack(PackedInverted(child, shapes), shapes))
        elif type(child) is nn.Linear and "forward" not in vars(child):
            child = in_place_of(child, PackedLinear(child))
        elif type(child) is SqueezeExcite and _packable_gate(child):
            child = in_place_of(child, PackedGate(child))
        elif isinstance(child, nn.Conv2d):
            child = _packed_layer(child, shapes)
        elif type(child) is nn.Sequential and "forward" not in vars(child):
            child = in_place_of(child, pack(_packed_sequence(child._modules, shapes, apart), shapes, apart))
        elif type(child) is Stage and "forward" not in vars(child):
            child = _packed_stage(pack(child, shapes, apart))
        else:
            child = pack(child, shapes, apart)
        setattr(module, name, child)
    return module
