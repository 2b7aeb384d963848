"""The origin of activations: their depth, the dimension of their channels, the constants that scaled them."""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .moments import Moments, channel_moments

aten = torch.ops.aten


def operations(*names: str) -> frozenset[Any]:
    """The operations of aten with these names, if this torch has them."""
    return frozenset(getattr(aten, name) for name in names if hasattr(aten, name))


CONVOLUTIONS = operations("convolution", "_convolution")
LINEARS = operations("addmm", "mm", "bmm", "baddbmm", "linear")
_FUSED = operations("_native_multi_head_attention", "_transformer_encoder_layer_fwd")  # whole layers in one operation
_PRODUCTS = operations("mul", "mul_")
_QUOTIENTS = operations("div", "div_")
_COPIES = operations("clone", "detach", "alias", "_to_copy")


@dataclass(frozen=True)
class Origin:
    """The origin of an activation.

    Attributes:
        depth: convolutions and linear layers on its way from the network's input.
        channels: outputs of the last one of them, which are its dimension ``dim``.
        child: the last submodule of the running module that made it deeper.
        factor: product of the constants that it was multiplied with since it left a layer, (1,) or one per channel.
        number: product of the plain numbers among them (the rest are parameters); None: there are none.
        before: the activation without them: its moments if a constant is 0; the tensor itself if it is as small as a
            gate.
        gates: (time, mean) of the gates (Squeeze-Excite) that it was multiplied with.
        since: marks of the layers and concatenations that it has passed since the last layer, this one included.
    """

    depth: int = 0
    channels: int | None = None
    dim: int | None = None
    child: str = ""
    factor: Tensor | None = None
    number: float | None = None
    before: Moments | Tensor | None = None
    gates: tuple[tuple[int, float], ...] = ()
    since: frozenset[int] = frozenset()

    def gate(self, since: int) -> float | None:
        """Product of the gates since a time, without the plain numbers behind them; None: there was none."""
        means = [mean for time, mean in self.gates if time >= since]
        return math.prod(means) / (self.number or 1.0) if means else None

    def plain(self) -> "Origin":
        """Without constant factors."""
        return replace(self, factor=None, number=None, before=None)


class Origins:
    """Origins of the tensors that are alive and come from the network's input."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        self.time = 0  # counts operations

    def __getitem__(self, x: Any) -> Origin | None:
        """None for a value that does not come from the input: parameters, constants, numbers."""
        entry = self._entries.get(id(x))
        return entry[1] if entry is not None and entry[0]() is x else None

    def known(self, x: Tensor) -> Origin:
        """The origin of a tensor that comes from the input."""
        origin = self[x]
        assert origin is not None
        return origin

    def __setitem__(self, x: Tensor, origin: Origin) -> None:
        key = id(x)
        self._entries[key] = (weakref.ref(x, lambda _: self._entries.pop(key, None)), origin)

    def clear(self) -> None:
        self._entries.clear()

    def channel_dim(self, *alike: Tensor) -> int:
        """The dimension of the channels by the last layer of one of them, if the shape fits; else the usual one."""
        for x in alike:
            origin = self[x] or Origin()
            for dim in (origin.dim, 1, -1):
                if dim is not None and -x.ndim <= dim < x.ndim and x.shape[dim] == origin.channels:
                    return dim
        return -1 if alike[0].ndim == 3 else 1

    def moments(self, x: Tensor) -> Moments:
        return channel_moments(x, self.channel_dim(x))

    def of_result(self, func: Any, args: tuple[Any, ...], inputs: list[Tensor]) -> Origin:
        """Origin of the result of ``func(*args)``; ``inputs`` are its tensors with an origin, at least one."""
        self.time += 1
        deepest = max((self.known(x) for x in inputs), key=lambda origin: origin.depth)
        largest = self.known(max(inputs, key=Tensor.numel))
        if largest.channels is not None:  # a gate or shift may be deeper than its operand, but has another shape
            deepest = replace(deepest, channels=largest.channels, dim=largest.dim)
        kind = func.overloadpacket
        if kind is aten.cat and deepest.dim is not None:
            return self._joined(args, inputs, deepest)
        if kind in CONVOLUTIONS and self[args[1]] is None:
            outputs = args[1].shape[1] * args[8] if args[6] else args[1].shape[0]  # transposed or not
            return Origin(deepest.depth + 1, outputs, 1, deepest.child, gates=deepest.gates)
        if kind in LINEARS:
            weight = next((a for a in args if isinstance(a, Tensor) and a.ndim > 1 and self[a] is None), None)
            if weight is not None and deepest.dim not in (None, -1) and inputs[0].shape[-1] != deepest.channels:
                return replace(
                    deepest.plain(), depth=deepest.depth + 1
                )  # over tokens: the channels are in another dimension
            if weight is not None:
                outputs = weight.shape[0 if kind is aten.linear else -1]
                return Origin(deepest.depth + 1, outputs, -1, deepest.child, gates=deepest.gates)
        if kind in _FUSED:
            return Origin(deepest.depth + 1, inputs[0].shape[-1], -1, deepest.child, gates=deepest.gates)
        if kind in _PRODUCTS:
            return self._product(args[0], args[1], deepest)
        if kind in _QUOTIENTS and self[args[0]] is not None and isinstance(args[1], int | float) and args[1]:
            return self._scaled(args[0], 1 / args[1])
        if kind in (aten.permute, aten.transpose) and deepest.dim is not None:
            return replace(deepest.plain(), dim=_moved(deepest.dim, kind, args))
        return deepest if kind in _COPIES else deepest.plain()

    def _joined(self, args: tuple[Any, ...], inputs: list[Tensor], deepest: Origin) -> Origin:
        """Of concatenated maps; along their channels, these add up."""
        maps, *rest = args
        axis, ndim = (rest[0] if rest else 0), inputs[0].ndim
        dim = deepest.dim or 0
        if axis % ndim != dim % ndim:
            return deepest.plain()
        return replace(deepest.plain(), channels=sum(x.shape[axis] for x in tensors_in(maps)), gates=())

    def _product(self, a: Any, b: Any, deepest: Origin) -> Origin:
        x, other = (a, b) if self[a] is not None else (b, a)
        if self[other] is None:
            return self._scaled(x, other)
        large, small = (x, other) if x.numel() >= other.numel() else (other, x)
        if is_gate(small, large):
            return replace(deepest.plain(), gates=(*deepest.gates, (self.time, small.mean().item())))
        return deepest.plain()

    def _scaled(self, x: Tensor, constant: Any) -> Origin:
        """``x`` times a number, a parameter of one element, or one with an element per channel."""
        origin = self.known(x)
        number = isinstance(constant, int | float)
        if not number and not (isinstance(constant, Tensor) and self._is_factor(constant, x)):
            return origin.plain()
        value = torch.tensor([float(constant)]) if number else constant.detach().reshape(-1)
        value = value.to(x.device, torch.float64)
        before = origin.before
        if before is None and x.numel() == x.shape[:2].numel():
            before = x.clone()  # a gate: small enough to keep
        elif before is None and (x.dtype == torch.float16 or not bool(value.all())):  # 1e-6 is no float16 either
            before = self.moments(x) if origin.factor is None else self.moments(x).times(1 / origin.factor)
        factor = value if origin.factor is None else origin.factor * value
        if not number:
            return replace(origin, factor=factor, before=before)
        number, gates = float(value), origin.gates
        if gates:  # 2 * gate, written as 2 * (gate * x)
            gates = (*gates[:-1], (gates[-1][0], gates[-1][1] * number))
        return replace(origin, factor=factor, number=(origin.number or 1.0) * number, before=before, gates=gates)

    def _is_factor(self, constant: Tensor, x: Tensor) -> bool:
        """Whether it is real and has one element, or one for each channel of ``x``."""
        if constant.numel() == 1 or constant.is_complex():
            return not constant.is_complex()
        dim = self.channel_dim(x)
        dim = dim - x.ndim if dim >= 0 else dim  # as broadcasting counts
        return constant.ndim >= -dim and constant.shape[dim] == constant.numel() == self.known(x).channels


def is_gate(small: Tensor, large: Tensor) -> bool:
    """Whether ``small`` (N, C, 1, ...) or (N, 1, ..., C), perhaps expanded, scales the channels of ``large``."""
    own = math.prod(size for size, stride in zip(small.shape, small.stride(), strict=True) if stride)
    return small.ndim == large.ndim > 1 and small.shape[0] == large.shape[0] and own < large.numel()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def _moved(dim: int, kind: Any, args: tuple[Any, ...]) -> int:
    """The place of dimension ``dim`` after a permutation; -1 if it is the last, which joining the others keeps."""
    ndim = args[0].ndim
    order = list(range(ndim))
    if kind is aten.permute:
        order = [d % ndim for d in args[1]]
    else:
        a, b = (d % ndim for d in args[1:3])
        order[a], order[b] = order[b], order[a]
    place = order.index(dim % ndim)
    return -1 if place == ndim - 1 else place
