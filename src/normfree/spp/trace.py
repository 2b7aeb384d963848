"""Finding residual blocks while a network runs: module hooks say where it is, a dispatch mode sees what is added.

A residual merge is an addition of two activations of one shape, of which one, the branch, has passed more convolutions
or linear layers than the other, the shortcut. Nothing is looked up by class or module name, so networks that nobody
has listed are understood as well, and nothing is changed: the operations run as they would without us.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..nn import SameConv2d
from .moments import Moments, channel_moments, image_moments
from .origin import Origin, Origins, tensors_in

aten = torch.ops.aten
_NORMALIZATIONS = {
    getattr(aten, name)
    for name in (
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        *("miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "native_layer_norm"),
        *("native_group_norm", "_fused_rms_norm", "rms_norm"),
    )
    if hasattr(aten, name)
}


@dataclass
class Merge:
    """One addition of a branch to a shortcut.

    Attributes:
        branch: moments of the branch's end, before skip gain, alpha and layer scale; ``added``: behind them.
        shortcut_var: variance of the shortcut; None where it is what the block before put out, untouched.
        output: moments of what the sum has become when the block returns it; ``activated``: it is not the sum itself.
    """

    child: str
    transition: bool
    branch: Moments
    added: Moments
    shortcut_var: float | None
    gate: float | None
    dim: int
    shape: torch.Size
    time: int
    result: Tensor | None = None
    version: int = 0
    output: Moments | None = None
    activated: bool = False

    def settle(self) -> None:
        """Take the moments of the sum, and let go of it."""
        if self.output is None:
            self.activated = self.activated or self.result._version != self.version
            self.output, self.result = channel_moments(self.result, self.dim), None


@dataclass
class Frame:
    """A module at work.

    Attributes:
        inputs: activations that it was given, the deepest of depth ``depth``; since: the time it began.
        signal: depth of its last merge, or of its input.
        normalized: a normalization has been at work in it.
    """

    name: str
    inputs: list[Tensor]
    depth: int
    signal: int
    since: int
    normalized: bool = False
    merges: list[Merge] = field(default_factory=list)


class Tracer(TorchDispatchMode):
    """Calls ``found(frame, output moments)`` for every residual block, or every module of ``named``, when it is done.

    Args:
        stem: called with the moments of the first block's input.
        named: names of the modules to take as blocks; None: those that merge.
    """

    def __init__(
        self,
        found: Callable[[Frame, Moments | None, torch.Size], None],
        stem: Callable[[Moments], None],
        named: set[str] | None = None,
    ):
        super().__init__()
        self.found, self.stem, self.named = found, stem, named
        self.frames: list[Frame] = []
        self.origins = Origins()
        self.paused, self.started = False, False
        self.latest: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)  # the last sum or block's output

    @contextmanager
    def watching(self, model: nn.Module, x: Tensor) -> Iterator[None]:
        """Hooks and mode are on inside and gone afterwards, also after an exception."""
        self.origins[x] = Origin()
        hooks = []
        try:
            for name, module in model.named_modules():
                hooks.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leaving(name)))
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self.frames.clear()
            self.origins.clear()

    # Modules

    def _entering(self, name: str) -> Callable:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            inputs = [x for x in tensors_in((args, kwargs)) if self.origins[x] is not None]
            depth = max((self.origins[x].depth for x in inputs), default=0)
            self.frames.append(Frame(name, inputs, depth, depth, self.origins.time))

        return enter

    def _leaving(self, module: nn.Module, args: tuple, output: Any) -> None:
        frame = self.frames.pop()
        tensor = next((x for x in tensors_in(output) if self.origins[x] is not None), None)
        self.paused = True
        try:
            if isinstance(module, SameConv2d) and len(args) == 2 and args[1] is not None:
                self._take_out_scale(module, *args, output)
            if frame.merges or (self.named is not None and frame.name in self.named and tensor is not None):
                self._report(frame, tensor)
        finally:
            self.paused = False
        if tensor is not None:
            self._label(frame, tensor)

    def _take_out_scale(self, layer: SameConv2d, x: Tensor, scale: Tensor, output: Tensor) -> None:
        """Our convolutions multiply alpha and skip gain into their weight; the branch ends before them."""
        factor = scale.detach().double().reshape(-1)
        before = None if bool(factor.all()) else channel_moments(layer.forward(x), 1)
        self.origins[output] = replace(self.origins[output], factor=factor, before=before)

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        """The last merge counts as what the module returns, which may be activated; inner sums of it are dropped."""
        if not self.started and frame.inputs:
            self.stem(self.origins.moments(frame.inputs[0]))
        self.started = True
        if output is not None and any(merge.shape == output.shape for merge in frame.merges):
            frame.merges = [merge for merge in frame.merges if merge.shape == output.shape]
            last = frame.merges[-1]
            last.activated = output is not last.result or output._version != last.version
            last.result = output
        for merge in frame.merges:
            merge.settle()
        alone = None if frame.merges else self.origins.moments(output)
        self.found(frame, alone, output.shape if output is not None else frame.merges[-1].shape)

    def _label(self, frame: Frame, output: Tensor) -> None:
        """What a module returns is what it is for: plain numbers that it multiplied with belong to its function."""
        origin = self.origins[output]
        origin = origin if origin.number is None else origin.plain()
        if origin.depth > frame.depth:
            origin = replace(origin, child=frame.name.rpartition(".")[2])
        self.origins[output] = origin

    # Operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        inputs = [x for x in tensors_in((args, kwargs)) if self.origins[x] is not None]
        if not inputs:
            return func(*args, **kwargs)
        if func.overloadpacket in _NORMALIZATIONS:
            for frame in self.frames:
                frame.normalized = True
        merge = self._merge(func.overloadpacket, args, kwargs) if len(inputs) > 1 else None
        origin = self.origins.of_result(func, args, inputs)
        output = func(*args, **kwargs)
        for x in tensors_in(output):
            self.origins[x] = origin if merge is None else replace(origin.plain(), gates=())
        if merge is not None:
            merge.result, merge.version = output, output._version
        return output

    def _merge(self, kind: Any, args: tuple, kwargs: dict) -> Merge | None:
        """The residual merge that an operation is about to do, if it is one."""
        if kind in (aten.add, aten.add_):
            a, b, gate = *args[:2], None
            alpha = kwargs.get("alpha", 1)
        elif kind in (aten.addcmul, aten.addcmul_):
            a, b, gate = args[:3]
            alpha = kwargs.get("value", 1)
        else:
            return None
        one, two = self.origins[a], self.origins[b]
        if one is None or two is None or a.shape != b.shape or a.ndim < 2 or not a.is_floating_point():
            return None
        if one.depth == two.depth or (gate is not None and one.depth > two.depth):
            return None
        shortcut, branch = (a, b) if two.depth > one.depth else (b, a)
        frame = self._owner(a, b)
        if frame is None:
            return None
        scale = gate if gate is not None else (torch.tensor(float(alpha)) if branch is b and alpha != 1 else None)
        merge = self._measured(frame, shortcut, branch, scale)
        if frame.merges:
            frame.merges[-1].settle()
        frame.merges.append(merge)
        frame.signal = self.origins[branch].depth
        return merge

    def _owner(self, a: Tensor, b: Tensor) -> Frame | None:
        """The module whose merge it is: not one that merely adds what it is given."""
        for frame in reversed(self.frames):
            if self.named is not None:
                if frame.name in self.named:
                    return frame
            elif not (any(a is x for x in frame.inputs) and any(b is x for x in frame.inputs)):
                return frame
        return None

    def _measured(self, frame: Frame, shortcut: Tensor, branch: Tensor, scale: Tensor | None) -> Merge:
        origin, dim = self.origins[branch], self.origins.channel_dim(branch)
        gate, gated = origin.gate(frame.since), self.origins[scale] if scale is not None else None
        if scale is not None and scale.numel() > 1 and dim == 1:  # a gate of Squeeze-Excite, a mask, a layer scale
            each = image_moments(branch)
            added = each.times(_per_image(scale, branch)).pooled()
            if gated is None:
                end = each.pooled()
            else:
                bare = gated.before if isinstance(gated.before, Tensor) else scale
                end = each.times(_per_image(bare, branch)).pooled()
                gate = bare.mean().item()
        else:
            end = channel_moments(branch, dim)
            added = end if scale is None else end.times(scale.double().reshape(-1))
        if isinstance(origin.before, Moments):
            end = origin.before
        elif origin.factor is not None and bool(origin.factor.all()):
            end = end.times(1 / origin.factor)
        transition = self.origins[shortcut].depth > frame.signal
        shortcut_var = self.origins.moments(shortcut).avg_var if transition else None
        return Merge(origin.child, transition, end, added, shortcut_var, gate, dim, branch.shape)


def _per_image(scale: Tensor, x: Tensor) -> Tensor:
    """A gate that multiplies ``x`` (N, C, ...) as (N, C) or what broadcasts to it."""
    scale = scale.reshape((1,) * (x.ndim - scale.ndim) + tuple(scale.shape))
    return scale.reshape(scale.shape[:2])
