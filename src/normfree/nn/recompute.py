"""Activations and weights that the backward pass computes again instead of keeping them.

A convolution keeps its input for the backward pass, and so does a smooth activation: ``conv(act(x))`` keeps both ``x``
and ``act(x)``, although the second can be computed from the first at little cost.
"""

import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..internals import private
from .activation import Activation

_hooks_are_allowed = private("torch._C._autograd._saved_tensors_hooks_is_enabled")
_innermost_hooks = private("torch._C._autograd._top_saved_tensors_default_hooks")


class _Watched:
    """A saved tensor; reading it is an error if it has been changed in place since, as with torch's saved tensors.

    torch does not check tensors that hooks save.
    """

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # shares the tensor's version counter, and holds no graph
        self.version = None if tensor.is_inference() else tensor._version

    def __call__(self) -> Tensor:
        tensor = self.tensor
        if self.version is not None and tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{tensor.type()} {list(tensor.shape)}] is at version {tensor._version}; expected version "
                f"{self.version} instead"
            )
        return tensor


class _Recomputations:
    """How to recompute tensors, by their address; the tensors are held, so that their memory is not used again.

    The key has shape and strides, since a view may have the same address.
    """

    def __init__(self) -> None:
        self.functions: dict[tuple[Any, ...], Callable[[], Tensor]] = {}
        self.tensors: list[Tensor] = []

    @staticmethod
    def key(tensor: Tensor) -> tuple[Any, ...]:
        version = None if tensor.is_inference() else tensor._version  # a change in place makes it another tensor
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, version

    def add(self, tensor: Tensor, function: Callable[[], Tensor]) -> None:
        self.functions[self.key(tensor)] = function
        self.tensors.append(tensor)

    def clear(self) -> None:
        self.functions.clear()
        self.tensors.clear()

    def pack(self, kept: Tensor) -> Callable[[], Tensor]:
        return self.functions.get(self.key(kept)) or _Watched(kept)


_recomputations: contextvars.ContextVar[_Recomputations | None] = contextvars.ContextVar("recomputations", default=None)


def activated(act: Activation, x: Tensor, *layers: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """``layer(act(x))`` of each layer; for the backward pass ``x`` is kept, but not ``act(x)``.

    It is the plain composition if something else decides what is kept (activation checkpointing, ``torch.compile``,
    other hooks), or if an activation's backward pass needs its output instead of its input (ReLU).

    Example:
        >>> x, layer = torch.randn(1, 3, 8, 8), nn.Conv2d(3, 8, 3)
        >>> (out,) = activated(Activation("gelu"), x, layer)
        >>> out.shape
        torch.Size([1, 8, 6, 6])
    """
    out = act(x)
    if _decided(out) or not act.keeps_input:
        return tuple(layer(out) for layer in layers)
    with not_kept(out, act.function, x):
        return tuple(layer(out) for layer in layers)


def gated_activated(
    act: Activation, x: Tensor, gate: Callable[[Tensor], Tensor], layer: Callable[[Tensor], Tensor]
) -> Tensor:
    """``layer(y * gate(y))`` of ``y = act(x)``; the backward pass computes both ``y`` and the product again from ``x``.

    ``gate`` maps (N, C, H, W) to (N, C, 1, 1), as :meth:`.SqueezeExcite.gate`. It is the plain composition in the cases
    that :func:`activated` names.

    Example:
        >>> x, gate = torch.randn(1, 8, 4, 4), lambda y: y.mean((2, 3), keepdim=True).sigmoid()
        >>> gated_activated(Activation("silu"), x, gate, nn.Conv2d(8, 3, 1)).shape
        torch.Size([1, 3, 4, 4])
    """
    out = act(x)
    factor = gate(out)
    if _decided(out) or not act.keeps_input:
        return layer(out * factor)
    with not_kept(out, act.function, x):
        product = out * factor
        with not_kept(product, lambda x, factor: act.function(x) * factor, x, factor):
            return layer(product)


@contextmanager
def not_kept(tensor: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None) -> Iterator[None]:
    """Operations inside do not keep ``tensor`` for the backward pass; ``function(*inputs)`` computes it again there.

    It has no effect if something else decides what is kept, as in :func:`activated`. An input that has been changed in
    place by then is an error.
    """
    active = _current()
    if active is not None:
        active.add(tensor, _from(function, inputs))
        yield
        return
    if _decided(tensor) or not (tensor.requires_grad and torch.is_grad_enabled()):
        yield
        return
    active = _Recomputations()
    active.add(tensor, _from(function, inputs))
    token = _recomputations.set(active)
    try:
        with saved_tensors_hooks(active.pack, _unpack):
            yield
    finally:
        _recomputations.reset(token)
        active.clear()  # the graph keeps the hooks


def _from(function: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> Callable[[], Tensor]:
    watched = [None if x is None else _Watched(x) for x in inputs]
    return lambda: function(*(None if x is None else x() for x in watched))


def derived(x: Tensor, out: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``out``, which is ``function(x)``; inside :func:`activated` it is computed again from ``x`` instead of kept."""
    active = _current()
    if active is not None and out is not x and (source := active.functions.get(active.key(x))) is not None:
        active.add(out, lambda: function(source()))
    return out


def _current() -> _Recomputations | None:
    """Of the innermost :func:`not_kept`; None under a compiler, which decides itself (torch 2.11's cannot read it)."""
    return None if torch.compiler.is_compiling() else _recomputations.get()


def _decided(out: Tensor) -> bool:
    """Whether something else decides what is kept, or the tensor has no memory."""
    if torch.compiler.is_compiling() or type(out) is not Tensor or out.is_meta:
        return True
    if not (_hooks_are_allowed and _innermost_hooks):
        _warn_once()
        return True
    return not _hooks_are_allowed() or _innermost_hooks(False) is not None


@functools.cache
def _warn_once() -> None:
    missing = _innermost_hooks if _hooks_are_allowed else _hooks_are_allowed
    warnings.warn(f"activations are kept for the backward pass, not computed again: {missing.reason}", stacklevel=2)


@torch.no_grad()
def _unpack(kept: Callable[[], Tensor]) -> Tensor:
    return kept()


class Activated(nn.Sequential):
    """Layers in a row; each that follows an :class:`Activation` goes through :func:`activated`.

    Example:
        >>> layers = Activated(nn.Conv2d(3, 8, 3), Activation("gelu"), nn.Conv2d(8, 8, 3))
        >>> layers(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        x, layers = input, list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, Activation) and layers:
                (x,) = activated(layer, x, layers.pop(0))
            else:
                x = layer(x)
        return x
