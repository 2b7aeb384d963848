"""Finding residual blocks while a network runs, by module hooks and a dispatch mode that sees additions.

A residual merge is an addition (or subtraction) of two activations of one shape, of which one, the branch, has passed
more convolutions or linear layers than the other, the shortcut. No class or module names are used, so unknown
networks are understood as well. Nothing is changed: the operations run as they would without the tracer.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..internals import private
from ..nn import SameConv
from .backward import GradientEdge, edge_of
from .moments import Moments, Products, channel_moments, projected_moments, row_moments
from .observed import NORMALIZATIONS, Observed
from .origin import CONVOLUTIONS, LINEARS, Origin, Origins, tensors_in

aten = torch.ops.aten


@dataclass
class Merge:
    """One addition of a branch to a shortcut.

    Attributes:
        branch: moments of the branch's end, before skip gain, alpha and layer scale; ``added``: behind them.
        shortcut_var: variance of the shortcut; None if it is the unchanged output of the block before.
        output: moments of the sum when the block returns it; ``activated``: it has been changed since the addition.
        examples: number of the network's inputs, as the tracer's.
        depth: of the sum.
        edge: where the gradient of the output arrives, if it is asked for.
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
    examples: int
    result: Tensor | None = None
    version: int = 0
    output: Moments | None = None
    activated: bool = False
    depth: int = 0
    edge: GradientEdge | None = None

    def settle(self) -> Moments:
        """Take the moments of the sum, and drop its tensor."""
        if self.output is None:
            assert self.result is not None
            self.activated = self.activated or self.result._version != self.version
            self.edge = edge_of(self.result)
            self.output, self.result = row_moments(self.result, self.dim, self.examples), None
        return self.output


@dataclass
class Frame:
    """A running module.

    Attributes:
        inputs: its input activations, the deepest of depth ``depth``; since: the time of its start.
        signal: depth of its last merge, or of its input.
        normalized: it has run a normalization.
        edge, deepest: where the gradient of its output arrives, and its depth.
    """

    name: str
    inputs: list[Tensor]
    depth: int
    signal: int
    since: int
    normalized: bool = False
    merges: list[Merge] = field(default_factory=list)
    deepest: int = 0
    edge: GradientEdge | None = None


class Tracer(private("torch.utils._python_dispatch.TorchDispatchMode")):
    """Calls ``on_block(frame, output moments, shape)`` at the end of every residual block, or module of ``named``.

    Args:
        on_stem: called with the moments and the depth of the first block's input, and where its gradient arrives.
        named: names of the modules to take as blocks; None: those that merge.
        whole: names of blocks without a skip, which are taken although they do not merge.
        examples: number of the inputs, to compare them; 0: they are not compared.
    """

    def __init__(
        self,
        on_block: Callable[[Frame, Moments | None, torch.Size], None],
        on_stem: Callable[[Moments, int, GradientEdge | None], None],
        named: set[str] | None = None,
        whole: Set[str] = frozenset(),
        examples: int = 0,
    ):
        super().__init__()
        self.on_block, self.on_stem, self.named, self.examples = on_block, on_stem, named, examples
        self.taken = whole if named is None else named
        self.frames: list[Frame] = []
        self.origins = Origins()
        self.observed = Observed(nn.Module())
        self.paused, self.started = False, False
        self.flat: set[str] = set()  # names of graphs, which call modules within modules
        self.latest: tuple[Callable[[], Tensor | None], int] = (lambda: None, 0)  # the last sum or block's output

    @contextmanager
    def watching(self, model: nn.Module, signals: Iterable[Tensor]) -> Iterator[None]:
        """Hooks and mode are active inside the ``with`` block, and removed afterwards, also after an exception."""
        self.observed = Observed(model)
        for x in signals:
            self.origins[x] = Origin()
        self.flat = {name for name, module in model.named_modules() if isinstance(module, torch.fx.GraphModule)}
        hooks = []
        try:
            for name, module in model.named_modules():
                hooks.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leaving, always_call=True))
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self.frames.clear()
            self.origins.clear()

    # Modules

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = [x for x in tensors_in((args, kwargs)) if self.origins[x] is not None]
            depth = max((self.origins.known(x).depth for x in inputs), default=0)
            self.frames.append(Frame(name, inputs, depth, depth, self.origins.time))
            if name in self.taken:
                with self._pause():
                    self._start(self.frames[-1])

        return enter

    def _leaving(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frame = self.frames.pop()
        if output is None:  # the module raised; the model may catch it
            return
        tensor = next((x for x in tensors_in(output) if self.origins[x] is not None), None)
        with self._pause():
            if isinstance(module, SameConv) and len(args) == 2 and args[1] is not None and output is tensor:
                self._take_out_scale(module, *args, output)
            if frame.merges or (frame.name in self.taken and tensor is not None):
                self._report(frame, tensor)
        if tensor is not None:
            self._label(frame, tensor)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Do not watch the tracer's own operations."""
        self.paused = True
        try:
            with torch.no_grad():
                yield
        finally:
            self.paused = False

    def _start(self, frame: Frame) -> None:
        """Measure the first block's input, before the block may change it in place."""
        if not self.started and frame.inputs:
            x = frame.inputs[0]
            self.on_stem(self._row_moments(x), self.origins.known(x).depth, edge_of(x))
            self._remember(x)
        self.started = True

    def _row_moments(self, x: Tensor) -> Moments:
        return row_moments(x, self.origins.channel_dim(x), self.examples)

    def _remember(self, x: Tensor, *, changing: bool = False) -> None:
        """Store the signal, to compare the next row's shortcut with; ``changing``: its version will still increase."""
        self.latest = (weakref.ref(x), x._version + changing)

    def _take_out_scale(self, layer: SameConv, x: Tensor, scale: Tensor, output: Tensor) -> None:
        """Undo alpha and skip gain, which normfree's convolutions have in their weight; the branch ends before them."""
        factor = scale.detach().double().reshape(-1)
        before = None
        if not factor.all():  # the output is 0: measure it without the scale
            one = layer.kernel_size == layer.stride == layer.groups == 1
            pointwise = one and layer.dims > 0 and x.is_floating_point()
            weight, bias = layer.effective_weight(), layer.bias
            channels = 1 if layer.dims else -1  # of the output
            before = projected_moments(x, weight, bias) if pointwise else channel_moments(layer.forward(x), channels)
        self.origins[output] = replace(self.origins.known(output), factor=factor, before=before)

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        """The last merge stands for the module's output, which may be activated; inner sums of it are dropped."""
        alike = [merge for merge in frame.merges if output is not None and merge.shape.numel() == output.numel()]
        if output is not None and alike:
            frame.merges, last = alike, alike[-1]
            if last.output is None:
                last.activated = last.result is None or not _same_memory(output, last.result)
                last.result, last.dim, last.shape = output, self.origins.channel_dim(output), output.shape
        for merge in frame.merges + [merge for outer in self.frames for merge in outer.merges]:
            merge.settle()  # of outer modules, too: their output has passed this module
        alone = None if frame.merges or output is None else self._row_moments(output)
        if output is not None:
            self._remember(output)
            frame.edge, frame.deepest = edge_of(output), self.origins.known(output).depth
        self.on_block(frame, alone, output.shape if output is not None else frame.merges[-1].shape)

    def _label(self, frame: Frame, output: Tensor) -> None:
        """Plain numbers that a module multiplied its output with belong to its function."""
        origin = self.origins.known(output)
        origin = origin if origin.number is None else origin.plain()
        if origin.depth > frame.depth:
            origin = replace(origin, child=self._child(frame.name))
        self.origins[output] = origin

    def _child(self, name: str) -> str:
        """A module in the words of the one that runs it: a graph calls modules of any depth."""
        parent = self.frames[-1].name if self.frames else ""
        if parent in self.flat:
            return name.removeprefix(f"{parent}.")
        return name.rpartition(".")[2]

    # Operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        inputs = [x for x in tensors_in((args, kwargs)) if self.origins[x] is not None]
        if not inputs:
            return func(*args, **kwargs)
        kind = func.overloadpacket
        merge = self._merge(kind, args, kwargs) if len(inputs) > 1 else None
        marks = self._marks(kind, args, inputs)
        origin = replace(self.origins.of_result(func, args, inputs), since=marks)
        output = func(*args, **kwargs)
        if merge is not None:
            origin = replace(origin.plain(), gates=(), channels=merge.shape[merge.dim], dim=merge.dim)
            self._remember(output, changing=func._schema.is_mutable)
            merge.result, merge.version = output, self.latest[1]
        for x in tensors_in(output):
            self.origins[x] = origin
        return output

    def _marks(self, kind: Any, args: tuple[Any, ...], inputs: list[Tensor]) -> frozenset[int]:
        """Those of the result; a layer begins anew."""
        marks = frozenset[int]().union(*(self.origins.known(x).since for x in inputs))
        if kind in NORMALIZATIONS:
            for frame in self.frames:
                frame.normalized = True
            self.observed.normalized(marks, kind, args)
        mark = self.observed.operation(kind, args, self.frames[-1].name if self.frames else "", self.origins)
        if kind in CONVOLUTIONS or kind in LINEARS:
            marks = frozenset()
        return marks if mark is None else marks | {mark}

    def _merge(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Merge | None:
        """The residual merge of an operation that is about to run, if it is one."""
        if kind in (aten.add, aten.add_, aten.sub, aten.sub_):  # signs do not matter to squares
            a, b, gate = *args[:2], None
            alpha = kwargs.get("alpha", 1)
        elif kind in (aten.addcmul, aten.addcmul_):
            a, b, gate = args[:3] if args[1].shape == args[0].shape else (args[0], args[2], args[1])
            alpha = kwargs.get("value", 1)
        else:
            return None
        one, two = self.origins[a], self.origins[b]
        if one is None or two is None or a.shape != b.shape or a.ndim < 2 or not a.is_floating_point():
            return None
        frame = self._owner(a, b)
        if frame is None:
            return None
        summed = frame.merges[-1].result if frame.merges else None  # a second parallel branch has the same depth
        if one.depth == two.depth and not any(x is summed for x in (a, b)):
            return None
        shortcut, branch = (a, b) if two.depth > one.depth or a is summed else (b, a)
        if gate is not None and shortcut is not a:
            return None
        self._start(frame)
        merge = self._measured(frame, shortcut, branch, gate, float(alpha) if branch is b else 1.0)
        if frame.merges:
            frame.merges[-1].settle()
        frame.merges.append(merge)
        frame.signal = merge.depth = self.origins.known(branch).depth
        return merge

    def _owner(self, a: Tensor, b: Tensor) -> Frame | None:
        """The module of a merge; a module that only adds its inputs is none."""
        for frame in reversed(self.frames):
            if self.named is not None:
                if frame.name in self.named:
                    return frame
            elif not (any(a is x for x in frame.inputs) and any(b is x for x in frame.inputs)):
                return frame
        return None

    def _measured(self, frame: Frame, shortcut: Tensor, branch: Tensor, factor: Tensor | None, alpha: float) -> Merge:
        origin, dim = self.origins.known(branch), self.origins.channel_dim(shortcut, branch)
        gate, gated = origin.gate(frame.since), self.origins[factor] if factor is not None else None
        times = Products(branch, dim)
        before, constants = origin.before, origin.factor
        if factor is None and isinstance(before, Moments) and constants is not None and len(constants) == 1:
            added = before.times(constants)  # a skip gain of 0
        else:
            added = times(factor)
        added = added.times(torch.tensor(alpha, dtype=torch.float64))
        if factor is not None and gated is not None:  # Squeeze-Excite; else a parameter (layer scale) or a mask
            bare = gated.before if isinstance(gated.before, Tensor) else factor
            end, gate = times(bare), bare.mean().item()
        elif isinstance(before, Moments):
            end = before
        elif isinstance(before, Tensor):
            end = channel_moments(before, dim)
        else:
            end = times.one if constants is None else times.one.times(1 / constants)
        transition = self.origins.known(shortcut).depth > frame.signal
        signal, version = self.latest[0](), self.latest[1]
        known = shortcut is signal and shortcut._version == version and not transition
        shortcut_var = None if known else channel_moments(shortcut, dim).avg_var
        time = self.origins.time
        return Merge(origin.child, transition, end, added, shortcut_var, gate, dim, branch.shape, time, self.examples)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether one is the other, perhaps in another shape."""
    return a is b or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
